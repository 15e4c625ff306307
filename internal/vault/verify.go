package vault

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault/segment"
)

// VerifyOptions say what to verify.
type VerifyOptions struct {
	Stream   *holdfast.StreamID // nil: all
	Progress func(done, total int64)
}

// Report is what Verify found.
type Report struct {
	Segments int
	Bytes    int64 // read
	Damaged  []Damage
}

// Damage is an object that is not as it was written, or missing.
type Damage struct {
	Object      string
	Detail      string
	Stream      holdfast.StreamID
	Timeline    holdfast.TimelineID
	First, Last holdfast.Position // that cannot be read because of it; Last 0: all after First
	Points      []Point
}

// Verify reads all, recomputes all, and follows the chain of segments. What it
// finds is in the report; an error says that it could not go on.
func (v *Vault) Verify(ctx context.Context, o VerifyOptions) (*Report, error) {
	prefix := streamsPrefix
	if o.Stream != nil {
		prefix = streamName(*o.Stream) + "/"
	}
	entries, err := v.store.List(ctx, prefix, "")
	if err != nil {
		return nil, fmt.Errorf("verify vault: %w", err)
	}
	c := &verifier{v: v, o: o, rep: &Report{}}
	streams := map[holdfast.StreamID][]objstore.Entry{}
	var order []holdfast.StreamID
	for _, e := range entries {
		c.total += e.Size
		id, err := holdfast.ParseStreamID(strings.SplitN(strings.TrimPrefix(e.Name, streamsPrefix), "/", 2)[0])
		if err != nil {
			c.rep.Damaged = append(c.rep.Damaged, Damage{Object: e.Name, Detail: "it is not in the directory of a stream"})
			continue
		}
		if streams[id] == nil {
			order = append(order, id)
		}
		streams[id] = append(streams[id], e)
	}
	for _, id := range order {
		if err := c.stream(ctx, id, streams[id]); err != nil {
			return c.rep, fmt.Errorf("verify stream %s: %w", id, err)
		}
	}
	return c.rep, nil
}

type verifier struct {
	v           *Vault
	o           VerifyOptions
	rep         *Report
	done, total int64
}

// found notes damage; other errors end the verification.
func (c *verifier) found(d Damage, err error) error {
	if err == nil || !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNewerFormat) && !errors.Is(err, objstore.ErrNotFound) && !errors.Is(err, ErrNoStream) && !errors.Is(err, ErrWrongKey) {
		return err
	}
	var ce *CorruptError
	if errors.As(err, &ce) {
		d.Object, err = ce.Object, ce.Err
	}
	d.Detail = err.Error()
	c.rep.Damaged = append(c.rep.Damaged, d)
	return nil
}

func (c *verifier) stream(ctx context.Context, id holdfast.StreamID, entries []objstore.Entry) error {
	s, err := c.v.OpenStream(ctx, id)
	if err != nil {
		return c.found(Damage{Object: streamName(id, "stream"), Stream: id}, err)
	}
	if err := s.refreshTimelines(ctx); err != nil {
		return c.found(Damage{Object: streamName(id, "timelines"), Stream: id}, err)
	}
	for _, tl := range s.Timelines() {
		if err := c.timeline(ctx, s, tl.ID, entries); err != nil {
			return err
		}
	}
	if _, err := s.Canary(ctx); err != nil && !errors.Is(err, objstore.ErrNotFound) {
		return c.found(Damage{Object: streamName(id, "canary"), Stream: id}, err)
	}
	return nil
}

// timeline reads every segment of a timeline, also behind a damaged one.
func (c *verifier) timeline(ctx context.Context, s *Stream, tl holdfast.TimelineID, entries []objstore.Entry) error {
	dir := streamName(s.desc.ID, tl.String())
	t := s.timelines[tl]
	broken := false
	for _, e := range entries {
		if path.Dir(e.Name) != dir || !strings.HasSuffix(e.Name, ".seg") {
			continue
		}
		c.rep.Segments++
		c.done += e.Size
		if c.o.Progress != nil {
			c.o.Progress(c.done, c.total)
		}
		l, err := c.segment(ctx, s, e)
		if err == nil && !broken {
			if err = t.follows(l); err == nil {
				err = t.append(l)
			}
		}
		if err == nil {
			continue
		}
		d := Damage{Object: e.Name, Stream: s.desc.ID, Timeline: tl, First: t.tail.Position + 1}
		if !broken {
			d.Points = c.touched(ctx, s, tl, d.First)
		}
		broken = true // what follows is still read, but has no place to follow
		if err := c.found(d, err); err != nil {
			return err
		}
	}
	return nil
}

// touched returns the recovery points at or after a position, as far as they
// can be read.
func (c *verifier) touched(ctx context.Context, s *Stream, tl holdfast.TimelineID, from holdfast.Position) []Point {
	full, err := c.v.OpenStream(ctx, s.desc.ID)
	if err != nil {
		return nil
	}
	_ = full.Refresh(ctx) // it stops at the damage; what came before is loaded
	var out []Point
	for _, p := range full.Points(tl) {
		if p.Position >= from {
			out = append(out, p)
		}
	}
	return out
}

// segment reads a segment as a whole and checks all of it.
func (c *verifier) segment(ctx context.Context, s *Stream, e objstore.Entry) (*loaded, error) {
	b, _, err := c.v.store.Get(ctx, e.Name)
	if err != nil {
		return nil, err
	}
	c.rep.Bytes += int64(len(b))
	r, err := segment.Verify(b, s.key, c.v.codec)
	if err != nil {
		return nil, damaged(e.Name, err)
	}
	want := segmentName(s.desc.ID, r.Header.Timeline, r.Header.Seq)
	if r.Header.Stream != s.desc.ID || want != e.Name {
		return nil, damaged(e.Name, fmt.Errorf("%w: it is segment %s", ErrCorrupt, want))
	}
	l := &loaded{Reader: r, name: e.Name, size: int64(len(b))}
	copy(l.hash[:], b[len(b)-segment.FooterSize:])
	return l, nil
}
