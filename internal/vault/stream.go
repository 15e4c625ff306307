package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault/segment"
)

// Stream is the ordered writes of a replication group. Safe for concurrent use.
type Stream struct {
	v     *Vault
	desc  streamDescriptor
	key   segment.Key
	cache *frameCache

	// refresh makes Refresh one at a time.
	refresh sync.Mutex
	// mu guards timelines, whose loaded segments never change.
	mu        sync.RWMutex
	timelines map[holdfast.TimelineID]*timeline
}

// timelineDescriptor is the object `streams/ID/timelines/TIMELINE`.
type timelineDescriptor struct {
	Format     int                 `json:"format"`
	ID         holdfast.TimelineID `json:"id"`
	Parent     holdfast.TimelineID `json:"parent,omitempty"`
	ForkAt     holdfast.Position   `json:"fork_at"`
	Generation holdfast.Generation `json:"generation"`
	Reason     string              `json:"reason"`
	CreatedAt  time.Time           `json:"created_at"`
}

// timeline is what is loaded of one.
type timeline struct {
	desc  timelineDescriptor
	segs  []*loaded
	marks []placedMark
	ended *segment.Header
	bytes int64
	tail  Tail
}

// loaded is a segment whose index is in memory.
type loaded struct {
	*segment.Reader
	name string
	hash [segment.HashSize]byte
	size int64
}

// Tail is the end of a timeline.
type Tail struct {
	Seq      uint64
	Position holdfast.Position
	Time     time.Time
	Hash     [segment.HashSize]byte
}

// Timeline is what is known of a timeline.
type Timeline struct {
	ID         holdfast.TimelineID
	Parent     holdfast.TimelineID // 0 for the first
	ForkAt     holdfast.Position
	Generation holdfast.Generation
	Reason     string
	Ended      bool
	Tail       Tail
}

func timelineName(id holdfast.StreamID, tl holdfast.TimelineID) string {
	return streamName(id, "timelines", tl.String())
}

func segmentName(id holdfast.StreamID, tl holdfast.TimelineID, seq uint64) string {
	return streamName(id, tl.String(), fmt.Sprintf("%016x.seg", seq))
}

// ID returns what names the stream.
func (s *Stream) ID() holdfast.StreamID { return s.desc.ID }

// Name returns the name that it was given when it was made.
func (s *Stream) Name() string { return s.desc.Name }

// Disks returns its disks.
func (s *Stream) Disks() []Disk { return slices.Clone(s.desc.Disks) }

// Refresh loads what has come since the last one: timelines, and the indexes of
// new segments. It is cheap when nothing is new.
func (s *Stream) Refresh(ctx context.Context) error {
	s.refresh.Lock()
	defer s.refresh.Unlock()
	if err := s.refreshTimelines(ctx); err != nil {
		return fmt.Errorf("refresh stream %s: %w", s.desc.ID, err)
	}
	s.mu.RLock()
	all := make([]*timeline, 0, len(s.timelines))
	for _, t := range s.timelines {
		all = append(all, t)
	}
	s.mu.RUnlock()
	slices.SortFunc(all, func(a, b *timeline) int { return int(a.desc.ID) - int(b.desc.ID) })
	for _, t := range all {
		if err := s.refreshTimeline(ctx, t); err != nil {
			return fmt.Errorf("refresh stream %s: %w", s.desc.ID, err)
		}
	}
	return nil
}

func (s *Stream) refreshTimelines(ctx context.Context) error {
	entries, err := s.v.store.List(ctx, streamName(s.desc.ID, "timelines")+"/", "")
	if err != nil {
		return err
	}
	for _, e := range entries {
		n, err := strconv.ParseUint(path.Base(e.Name), 16, 32)
		if err != nil || n == 0 {
			return damaged(e.Name, fmt.Errorf("%w: not the name of a timeline", ErrCorrupt))
		}
		s.mu.RLock()
		_, known := s.timelines[holdfast.TimelineID(n)]
		s.mu.RUnlock()
		if known {
			continue
		}
		if err := s.loadTimeline(ctx, e.Name, holdfast.TimelineID(n)); err != nil {
			return err
		}
	}
	if len(entries) == 0 {
		return damaged(streamName(s.desc.ID, "timelines"), fmt.Errorf("%w: it has no timeline", ErrCorrupt))
	}
	return nil
}

func (s *Stream) loadTimeline(ctx context.Context, name string, id holdfast.TimelineID) error {
	b, _, err := s.v.store.Get(ctx, name)
	if err != nil {
		return err
	}
	t := &timeline{}
	if err := json.Unmarshal(b, &t.desc); err != nil || t.desc.ID != id || t.desc.Generation == 0 {
		return damaged(name, fmt.Errorf("%w: not the descriptor of this timeline", ErrCorrupt))
	}
	if t.desc.Format > FormatVersion {
		return fmt.Errorf("timeline %s: %w", id, ErrNewerFormat)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := t.desc.Parent; p != 0 {
		if parent, ok := s.timelines[p]; !ok || p >= id {
			return damaged(name, fmt.Errorf("%w: parent timeline %s is not there", ErrCorrupt, p))
		} else if t.desc.ForkAt < parent.desc.ForkAt {
			return damaged(name, fmt.Errorf("%w: it forks before its parent", ErrCorrupt))
		}
	}
	t.tail = Tail{Position: t.desc.ForkAt, Time: t.desc.CreatedAt}
	s.timelines[id] = t
	return nil
}

// refreshTimeline loads a timeline's new segments.
func (s *Stream) refreshTimeline(ctx context.Context, t *timeline) error {
	if t.ended != nil {
		return nil
	}
	prefix := streamName(s.desc.ID, t.desc.ID.String()) + "/"
	after := ""
	if t.tail.Seq > 0 {
		after = segmentName(s.desc.ID, t.desc.ID, t.tail.Seq)
	}
	entries, err := s.v.store.List(ctx, prefix, after)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name, ".seg") {
			continue
		}
		l, err := s.loadSegment(ctx, e)
		if err != nil {
			return err
		}
		if err := t.follows(l); err != nil {
			return damaged(e.Name, err)
		}
		s.mu.Lock()
		err = t.append(l)
		s.mu.Unlock()
		if err != nil {
			return damaged(e.Name, err)
		}
	}
	return nil
}

// loadSegment reads a segment's header, index and checksum.
func (s *Stream) loadSegment(ctx context.Context, e objstore.Entry) (*loaded, error) {
	head, err := s.v.store.GetRange(ctx, e.Name, 0, segment.HeaderSize)
	if err != nil {
		return nil, err
	}
	h, err := segment.ParseHeader(head)
	if err != nil {
		return nil, damaged(e.Name, err)
	}
	if e.Size != h.Size() {
		return nil, damaged(e.Name, fmt.Errorf("%w: it has %d bytes, its header says %d", ErrCorrupt, e.Size, h.Size()))
	}
	rest, err := s.v.store.GetRange(ctx, e.Name, h.IndexOff, h.IndexLen+segment.FooterSize)
	if err != nil {
		return nil, err
	}
	if int64(len(rest)) != h.IndexLen+segment.FooterSize {
		return nil, damaged(e.Name, fmt.Errorf("%w: it ends early", ErrCorrupt))
	}
	r, err := segment.NewReader(head, rest[:h.IndexLen], s.key, s.v.codec)
	if err != nil {
		return nil, damaged(e.Name, err)
	}
	l := &loaded{Reader: r, name: e.Name, size: e.Size}
	copy(l.hash[:], rest[h.IndexLen:])
	return l, nil
}

// follows checks that a segment belongs at the end of the timeline.
func (t *timeline) follows(l *loaded) error {
	h := l.Header
	switch {
	case h.Timeline != t.desc.ID:
		return fmt.Errorf("%w: it is of timeline %s", ErrCorrupt, h.Timeline)
	case h.Seq != t.tail.Seq+1:
		return fmt.Errorf("%w: it has sequence number %d, the one before is %d: a segment is missing", ErrCorrupt, h.Seq, t.tail.Seq)
	case h.Prev != t.tail.Hash:
		return fmt.Errorf("%w: the segment before it is not the one that it was written after", ErrCorrupt)
	case h.First != t.tail.Position+1:
		return fmt.Errorf("%w: it begins at position %s, the one before ends at %s", ErrCorrupt, h.First, t.tail.Position)
	case h.Generation < t.desc.Generation:
		return fmt.Errorf("%w: it is of generation %d, its timeline of %d", ErrCorrupt, h.Generation, t.desc.Generation)
	}
	return nil
}

// append takes a segment that follows.
func (t *timeline) append(l *loaded) error {
	var marks []placedMark
	for i := range l.Index.Entries {
		e := &l.Index.Entries[i]
		if e.Kind != segment.Mark {
			continue
		}
		m := placedMark{pos: e.Position, at: e.Time}
		if err := json.Unmarshal(e.Mark, &m.Mark); err != nil {
			return fmt.Errorf("%w: mark at position %s: %w", ErrCorrupt, e.Position, err)
		}
		marks = append(marks, m)
	}
	t.marks = append(t.marks, marks...)
	t.segs = append(t.segs, l)
	t.bytes += l.size
	t.tail.Seq, t.tail.Hash = l.Header.Seq, l.hash
	if l.Header.First <= l.Header.Last {
		t.tail.Position, t.tail.Time = l.Header.Last, l.Header.LastTime
	}
	if l.Header.Kind == segment.End {
		h := l.Header
		t.ended = &h
	}
	return nil
}

// Timelines returns what is known of all timelines, by id.
func (s *Stream) Timelines() []Timeline {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]Timeline, 0, len(s.timelines))
	for _, t := range s.timelines {
		out = append(out, Timeline{
			ID: t.desc.ID, Parent: t.desc.Parent, ForkAt: t.desc.ForkAt, Generation: t.desc.Generation, Reason: t.desc.Reason,
			Ended: t.ended != nil, Tail: t.tail,
		})
	}
	slices.SortFunc(out, func(a, b Timeline) int { return int(a.ID) - int(b.ID) })
	return out
}

// StoredBytes returns what the loaded segments take.
func (s *Stream) StoredBytes() int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var n int64
	for _, t := range s.timelines {
		n += t.bytes
	}
	return n
}

// SegmentCount returns how many segments are loaded.
func (s *Stream) SegmentCount() int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	n := 0
	for _, t := range s.timelines {
		n += len(t.segs)
	}
	return int64(n)
}

// Canary is the gateway's word in the vault on how far the vault is.
type Canary struct {
	// Time: everything that had arrived by then is in the vault.
	Time     time.Time           `json:"time"`
	Timeline holdfast.TimelineID `json:"timeline"`
	Seq      uint64              `json:"seq"`
	Position holdfast.Position   `json:"position"`
}

// PutCanary replaces the canary.
func (s *Stream) PutCanary(ctx context.Context, c Canary) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return s.v.store.Put(ctx, streamName(s.desc.ID, "canary"), b)
}

// Canary reads the canary; it fails with objstore.ErrNotFound if there is none.
func (s *Stream) Canary(ctx context.Context) (Canary, error) {
	var c Canary
	name := streamName(s.desc.ID, "canary")
	b, _, err := s.v.store.Get(ctx, name)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, damaged(name, errors.Join(ErrCorrupt, err))
	}
	return c, nil
}
