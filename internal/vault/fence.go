package vault

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault/segment"
)

// EndOptions say who closes a timeline and why.
type EndOptions struct {
	Generation holdfast.Generation // the new one
	Reason     string
	Now        time.Time
}

// End closes a timeline, so that no writer can append to it any more, and
// returns its last position. A writer that is at it races for each place in the
// timeline and loses the one after which End has written. It is durable when it
// returns, and may be repeated: then it returns the same. Also a damaged timeline
// can be closed; then the position is the last that can be read.
func (s *Stream) End(ctx context.Context, tl holdfast.TimelineID, o EndOptions) (holdfast.Position, error) {
	for {
		if err := s.Refresh(ctx); err != nil && !isDamage(err) {
			return 0, err
		}
		last, done, err := s.tryEnd(ctx, tl, o)
		if err != nil && !errors.Is(err, objstore.ErrExists) {
			return 0, fmt.Errorf("end timeline %s: %w", tl, err)
		}
		if err == nil && done {
			return last, nil
		}
	}
}

// tryEnd says whether a timeline is closed; if not, it tries to close it behind
// what is known of it.
func (s *Stream) tryEnd(ctx context.Context, tl holdfast.TimelineID, o EndOptions) (last holdfast.Position, done bool, err error) {
	s.mu.RLock()
	t, ok := s.timelines[tl]
	if !ok {
		_, err := s.lineage(tl)
		s.mu.RUnlock()
		return 0, false, err
	}
	tail, ended, generation, cut := t.tail, t.ended != nil, t.desc.Generation, t.cut
	last = tail.Position
	s.mu.RUnlock()
	if cut {
		if tail, ended, err = s.tailBehindDamage(ctx, tl, tail); err != nil {
			return 0, false, err
		}
	}
	if ended {
		return last, true, nil
	}
	if o.Generation <= generation {
		return 0, false, fmt.Errorf("timeline is of generation %d, the one that ends it is %d: %w", generation, o.Generation, ErrFenced)
	}
	return 0, false, s.putEnd(ctx, tl, tail, o)
}

// tailBehindDamage returns the end of a timeline that has damaged segments, from
// its last object, so that nobody can append to it.
func (s *Stream) tailBehindDamage(ctx context.Context, tl holdfast.TimelineID, tail Tail) (Tail, bool, error) {
	entries, err := s.v.store.List(ctx, streamName(s.desc.ID, tl.String())+"/", "")
	if err != nil {
		return tail, false, err
	}
	for _, e := range slices.Backward(entries) {
		p, ok := placeOf(e.Name)
		seq := p.to // the last segment of a timeline is never replaced
		if !ok || p.epoch > 0 || seq <= tail.Seq {
			continue
		}
		b, _, err := s.v.store.Get(ctx, e.Name)
		if err != nil {
			return tail, false, err
		}
		tail = Tail{Seq: seq, Position: tail.Position, Time: tail.Time}
		if h, err := segment.ParseHeader(b); err == nil && h.Stream == s.desc.ID && h.Timeline == tl && h.Seq == seq {
			if h.Kind == segment.End {
				return tail, true, nil
			}
			tail.Position, tail.Time = h.Last, h.LastTime
			tail.Hash, _ = segment.ChainHash(b) // zero if it is damaged itself
		}
		break
	}
	return tail, false, nil
}

// putEnd writes the segment that closes a timeline.
func (s *Stream) putEnd(ctx context.Context, tl holdfast.TimelineID, tail Tail, o EndOptions) error {
	at := stamp(o.Now)
	if at.Before(tail.Time) {
		at = tail.Time
	}
	h := segment.Header{
		Kind: segment.End, Generation: o.Generation, Stream: s.desc.ID, Timeline: tl, Seq: tail.Seq + 1,
		Last: tail.Position, FirstTime: at, LastTime: at, Prev: tail.Hash,
	}
	encoded, _, err := segment.NewBuilder().Finish(h, s.key, s.v.codec)
	if err != nil {
		return err
	}
	return s.v.store.PutIfAbsent(ctx, segmentName(s.desc.ID, tl, h.Seq), encoded)
}

// ForkOptions say where a new timeline begins and for whom.
type ForkOptions struct {
	From       holdfast.TimelineID
	At         holdfast.Position
	Generation holdfast.Generation
	Reason     string
	Now        time.Time
	// Disks are those that the machine has from here on, in any order; nil: those
	// that it had at the position. A disk is known by its ID.
	Disks []Disk
}

// confirmedOf returns until when a timeline's source is known to have missed nothing,
// as far as that is in the vault; zero if nobody knows.
func (s *Stream) confirmedOf(ctx context.Context, tl holdfast.TimelineID) time.Time {
	c, err := s.Canary(ctx)
	if err != nil || c.Timeline != tl {
		return time.Time{}
	}
	return earlier(c.Confirmed, c.Time)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// Fork begins a new timeline at a position of another, whose past it shares. It
// closes nothing. It is durable when it returns.
func (s *Stream) Fork(ctx context.Context, o ForkOptions) (holdfast.TimelineID, error) {
	if o.Disks != nil {
		if err := checkDisks(o.Disks); err != nil {
			return 0, fmt.Errorf("fork timeline %s at position %s: %w", o.From, o.At, err)
		}
	}
	s.forking.Lock()
	defer s.forking.Unlock()
	for {
		if err := s.Refresh(ctx); err != nil && !isDamage(err) {
			return 0, err
		}
		id, at, err := s.nextTimeline(o)
		if err != nil {
			return 0, fmt.Errorf("fork timeline %s at position %s: %w", o.From, o.At, err)
		}
		err = s.v.putNew(ctx, timelineName(s.desc.ID, id), timelineDescriptor{
			Format: FormatVersion, ID: id, Parent: o.From, ForkAt: o.At, Generation: o.Generation, Reason: o.Reason, CreatedAt: at,
			Disks: s.disksOfFork(o), Confirmed: s.confirmedOf(ctx, o.From),
		})
		if errors.Is(err, objstore.ErrExists) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("fork timeline %s at position %s: %w", o.From, o.At, err)
		}
		if err := s.Refresh(ctx); err != nil && !isDamage(err) {
			return 0, err
		}
		return id, nil
	}
}

// disksOfFork returns the disks of a fork if they are not those of the timeline
// that it is a fork of: others are wanted, or it goes back to before that one had
// its own.
func (s *Stream) disksOfFork(o ForkOptions) []Disk {
	s.mu.RLock()
	defer s.mu.RUnlock()
	want := o.Disks
	if want == nil {
		parts, _ := s.lineage(o.From)
		way := s.way(parts, o.At, false)
		want = way[len(way)-1].disks
	}
	if slices.Equal(want, s.disksOf(o.From)) {
		return nil
	}
	return slices.Clone(want)
}

// nextTimeline returns the id of a fork, and its time, which is not before that
// of the position.
func (s *Stream) nextTimeline(o ForkOptions) (holdfast.TimelineID, time.Time, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	at := stamp(o.Now)
	parts, broken := s.lineage(o.From)
	if len(parts) == 0 {
		return 0, at, broken
	}
	last := parts[len(parts)-1]
	switch {
	case o.At > last.to && broken != nil:
		return 0, at, broken
	case o.At > last.to:
		return 0, at, ErrNoPosition
	case !keeps(s.way(parts, o.At, false)):
		return 0, at, ErrPruned
	case s.highest >= MaxTimelines:
		return 0, at, fmt.Errorf("the stream has %d timelines, the most there can be", MaxTimelines)
	}
	for _, t := range s.timelines {
		if t.desc.Generation > o.Generation {
			return 0, at, fmt.Errorf("%w: there is generation %d", ErrFenced, t.desc.Generation)
		}
	}
	if forked := partOf(parts, o.At).t.timeOf(o.At); at.Before(forked) {
		at = stamp(forked)
	}
	return s.highest + 1, at, nil
}
