package vault

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/vault/segment"
)

// ErrPruned says that a position was there and is kept no longer.
var ErrPruned = errors.New("the position is not kept any more")

// KeptPosition is one of a timeline's past that is kept.
type KeptPosition struct {
	Position holdfast.Position `json:"position"`
	Time     time.Time         `json:"time"`
}

// keptDocument is the object `streams/ID/kept/TIMELINE`. It is written before
// anything is removed, and only ever says less than before.
type keptDocument struct {
	Format   int                 `json:"format"`
	Timeline holdfast.TimelineID `json:"timeline"`
	// Epoch is raised by each change. What was written under a later one than the
	// document that a reader has is a reason to read it again.
	Epoch uint32 `json:"epoch"`
	// Upto is where all positions begin to be kept: up to it, only Positions are.
	Upto     holdfast.Position `json:"upto"`
	UptoTime time.Time         `json:"upto_time"`
	// Positions are sorted.
	Positions []KeptPosition `json:"positions"`
}

func keptName(id holdfast.StreamID, tl holdfast.TimelineID) string {
	return streamName(id, "kept", tl.String())
}

// has says whether a position of the timeline's own is kept.
func (k *keptDocument) has(pos holdfast.Position) bool {
	if pos > k.Upto {
		return true
	}
	_, ok := slices.BinarySearchFunc(k.Positions, pos, func(p KeptPosition, q holdfast.Position) int {
		switch {
		case p.Position < q:
			return -1
		case p.Position > q:
			return 1
		}
		return 0
	})
	return ok
}

// check returns what cannot be in a document of a timeline.
func (k *keptDocument) check(tl holdfast.TimelineID) error {
	if k.Timeline != tl || k.Epoch == 0 {
		return fmt.Errorf("%w: not the document of timeline %s", ErrCorrupt, tl)
	}
	for i, p := range k.Positions {
		if p.Position > k.Upto || i > 0 && p.Position <= k.Positions[i-1].Position {
			return fmt.Errorf("%w: its positions are not in order", ErrCorrupt)
		}
	}
	return nil
}

// loadKept reads what is kept of a timeline; all, if nothing says otherwise.
func (s *Stream) loadKept(ctx context.Context, tl holdfast.TimelineID) (k keptDocument, etag string, err error) {
	name := keptName(s.desc.ID, tl)
	etag, err = s.v.getDocument(ctx, name, &k)
	if missing(err) {
		return keptDocument{Format: FormatVersion, Timeline: tl}, "", nil
	}
	if err == nil {
		if err = k.check(tl); err != nil {
			err = damaged(name, err)
		}
	}
	return k, etag, err
}

// putKept replaces what is kept of a timeline, durably, unless somebody else has
// since it was read.
func (s *Stream) putKept(ctx context.Context, k keptDocument, etag string) error {
	name := keptName(s.desc.ID, k.Timeline)
	if etag == "" {
		return s.v.putNew(ctx, name, k)
	}
	return s.v.replace(ctx, name, k, etag)
}

// keptMark is the first entry of a segment of kind kept.
type keptMark struct {
	Kind  string `json:"kind"` // keptKind
	From  uint64 `json:"from"` // the first sequence number that it stands for
	Epoch uint32 `json:"epoch"`
	// Upto is that of the document then: what is not kept lies before it.
	Upto holdfast.Position `json:"upto"`
	Hash string            `json:"hash"` // the chain hash of the last segment that it stands for
}

const keptKind = "kept"

// newLoaded returns a segment that was read.
func newLoaded(r *segment.Reader, name string, size int64) (*loaded, error) {
	l := &loaded{Reader: r, name: name, size: size, from: r.Header.Seq, hash: r.Hash}
	if r.Header.Kind != segment.Kept {
		return l, nil
	}
	var m keptMark
	var err error
	if first := r.Index.Entries[0]; first.Kind == segment.Mark {
		err = json.Unmarshal(first.Mark, &m)
	}
	b, hexErr := hex.DecodeString(m.Hash)
	if err != nil || hexErr != nil || m.Kind != keptKind || len(b) != len(l.hash) || m.Epoch == 0 || m.From == 0 || m.From > r.Header.Seq {
		return nil, fmt.Errorf("%w: it does not say what it stands for", ErrCorrupt)
	}
	l.from, l.epoch, l.upto = m.From, m.Epoch, m.Upto
	copy(l.hash[:], b)
	return l, nil
}

// place returns where it belongs.
func (l *loaded) place() place { return place{l.from, l.Header.Seq, l.epoch} }

// place is what the name of a segment says.
type place struct {
	from, to uint64
	epoch    uint32 // 0: a segment as it was written
}

func (p place) name(id holdfast.StreamID, tl holdfast.TimelineID) string {
	if p.epoch == 0 {
		return segmentName(id, tl, p.from)
	}
	return streamName(id, tl.String(), fmt.Sprintf("%016x-%016x-%08x.seg", p.from, p.to, p.epoch))
}

// placeOf takes the name of a segment apart.
func placeOf(name string) (p place, ok bool) {
	base, ok := strings.CutSuffix(path.Base(name), ".seg")
	if !ok {
		return p, false
	}
	parts := strings.Split(base, "-")
	number := func(s string, digits, bits int) uint64 {
		n, err := strconv.ParseUint(s, 16, bits)
		if err != nil || len(s) != digits || strings.ToLower(s) != s {
			return 0
		}
		return n
	}
	switch len(parts) {
	case 1:
		p.from = number(parts[0], 16, 64)
		p.to = p.from
		return p, p.from > 0
	case 3:
		p = place{number(parts[0], 16, 64), number(parts[1], 16, 64), uint32(number(parts[2], 8, 32))}
		return p, p.from > 0 && p.to >= p.from && p.epoch > 0
	}
	return p, false
}

// better says of two places that begin alike whether one stands for more than the
// other, or is newer.
func (p place) better(q place) bool {
	return p.to > q.to || p.to == q.to && p.epoch > q.epoch
}

// thin returns what is left of ranges: of what is pruned, only single positions.
// The caller holds mu.
func (s *Stream) thin(parts []part, ranges []Range) []Range {
	var out []Range
	for _, r := range ranges {
		for _, p := range parts {
			k := &p.t.kept
			hi := min(k.Upto, p.to, r.To)
			lo := max(p.t.desc.ForkAt+1, r.From)
			if lo > hi {
				continue
			}
			if r.From < lo {
				out = append(out, Range{From: r.From, To: lo - 1, FromTime: r.FromTime, ToTime: partOf(parts, lo-1).t.timeOf(lo - 1), Confirmed: r.Confirmed, Open: r.Open})
			}
			for _, x := range k.Positions {
				if lo <= x.Position && x.Position <= hi {
					out = append(out, Range{From: x.Position, To: x.Position, FromTime: x.Time, ToTime: x.Time, Confirmed: r.Confirmed, Open: r.Open})
				}
			}
			if r.From = hi + 1; hi == k.Upto {
				r.FromTime = k.UptoTime
			}
		}
		if r.From <= r.To {
			out = append(out, r)
		}
	}
	return out
}
