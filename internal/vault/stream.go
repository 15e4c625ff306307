package vault

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/vault/segment"
)

// Stream is the ordered writes of a replication group. Safe for concurrent use.
type Stream struct {
	v     *Vault
	desc  streamDescriptor
	key   segment.Key
	cache *frameCache
	// layouts are those of the views opened last.
	layouts layoutCache

	// forking keeps Fork and Prune apart: a position that a fork is about to begin
	// at is kept. It is taken before refresh.
	forking sync.Mutex
	// refresh makes Refresh one at a time.
	refresh sync.Mutex
	// mu guards what follows. What is loaded of segments never changes.
	mu        sync.RWMutex
	timelines map[holdfast.TimelineID]*timeline
	highest   holdfast.TimelineID // that there is, loaded or damaged
	damage    error               // what the last Refresh found
}

// timelineDescriptor is the object `streams/ID/timelines/TIMELINE`.
type timelineDescriptor struct {
	Format     int                 `json:"format"`
	ID         holdfast.TimelineID `json:"id"`
	Parent     holdfast.TimelineID `json:"parent,omitempty"`
	ForkAt     holdfast.Position   `json:"fork_at"`
	Generation holdfast.Generation `json:"generation"`
	Reason     string              `json:"reason"`
	CreatedAt  time.Time           `json:"created_at"` // not before the position where it forks
	// Disks are those of the machine from here on; nil: those of the parent.
	Disks []Disk `json:"disks,omitempty"`
	// Confirmed is until when the parent's source is known to have missed nothing, as
	// the canary had it at the fork; zero: not known.
	Confirmed time.Time `json:"confirmed,omitzero"`
}

// timeline is what is loaded of one.
type timeline struct {
	desc   timelineDescriptor
	segs   []*loaded
	marks  []placedMark
	ended  *segment.Header
	kept   keptDocument
	bytes  int64
	pruned uint32 // the epoch of kept that Prune has carried out here
	// keptErr says why what is kept is not known; then kept says less than there is.
	keptErr error
	tail    Tail
	// broken says why nothing behind tail can be read, although there is
	// something, or was; cut that it is this timeline's own segments.
	broken error
	cut    bool
}

// loaded is a segment whose index is in memory.
type loaded struct {
	*segment.Reader
	name string
	size int64
	from uint64 // the first sequence number that it stands for
	// hash is that by which the next one names it, or the last that it stands for.
	hash  [segment.HashSize]byte
	epoch uint32            // of what was kept when it was written; 0: all
	upto  holdfast.Position // of that
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
	Tail       Tail  // of what could be read
	Damaged    error // why more could not be; nil if nothing is damaged
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

// Disks returns the disks that a timeline has at its end. Those of an earlier
// position may be others: see View.
func (s *Stream) Disks(tl holdfast.TimelineID) []Disk {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Clone(s.disksOf(tl))
}

// DisksAt returns the disks that the machine had at a position, as View would. It
// fails as View does.
func (s *Stream) DisksAt(tl holdfast.TimelineID, pos holdfast.Position) ([]Disk, error) {
	v := &View{s: s, timeline: tl, pos: pos}
	way, err := v.find(false)
	if err != nil {
		return nil, err
	}
	return slices.Clone(way[len(way)-1].disks), nil
}

// disksOf returns the disks of a timeline: its own, or those of the nearest
// ancestor that has some. The caller holds mu or refresh.
func (s *Stream) disksOf(tl holdfast.TimelineID) []Disk {
	for id := tl; id != 0; {
		t := s.timelines[id]
		if t == nil {
			break // its forks cannot be read either
		}
		if t.desc.Disks != nil {
			return t.desc.Disks
		}
		id = t.desc.Parent
	}
	return s.desc.Disks
}

// Timelines returns what is known of all timelines, by id.
func (s *Stream) Timelines() []Timeline {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]Timeline, 0, len(s.timelines))
	for _, t := range s.timelines {
		out = append(out, Timeline{
			ID: t.desc.ID, Parent: t.desc.Parent, ForkAt: t.desc.ForkAt, Generation: t.desc.Generation, Reason: t.desc.Reason,
			Ended: t.ended != nil, Tail: t.tail, Damaged: t.broken,
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
	// Confirmed is until when the source is known to have missed nothing. Zero: not
	// known.
	Confirmed time.Time `json:"confirmed,omitzero"`
}

// canaryDocument is the object `streams/ID/canary`.
type canaryDocument struct {
	Format int `json:"format"`
	Canary
}

// PutCanary replaces the canary, durably.
func (s *Stream) PutCanary(ctx context.Context, c Canary) error {
	name := streamName(s.desc.ID, "canary")
	b, err := s.v.secret.document(name, canaryDocument{FormatVersion, c})
	if err != nil {
		return err
	}
	return s.v.store.Put(ctx, name, b)
}

// Canary reads the canary; it fails with objstore.ErrNotFound if there is none.
func (s *Stream) Canary(ctx context.Context) (Canary, error) {
	var c canaryDocument
	_, err := s.v.getDocument(ctx, streamName(s.desc.ID, "canary"), &c)
	return c.Canary, err
}
