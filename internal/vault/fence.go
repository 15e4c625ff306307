package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
// returns, and may be repeated: then it returns the same.
func (s *Stream) End(ctx context.Context, tl holdfast.TimelineID, o EndOptions) (holdfast.Position, error) {
	for {
		if err := s.Refresh(ctx); err != nil {
			return 0, err
		}
		s.mu.RLock()
		t, ok := s.timelines[tl]
		if !ok {
			s.mu.RUnlock()
			return 0, fmt.Errorf("end timeline %s: %w", tl, ErrNoPosition)
		}
		tail, ended, generation := t.tail, t.ended, t.desc.Generation
		s.mu.RUnlock()
		if ended != nil {
			return ended.Last, nil
		}
		if o.Generation <= generation {
			return 0, fmt.Errorf("end timeline %s of generation %d as generation %d: %w", tl, generation, o.Generation, ErrFenced)
		}
		err := s.putEnd(ctx, tl, tail, o)
		if err != nil && !errors.Is(err, objstore.ErrExists) {
			return 0, fmt.Errorf("end timeline %s: %w", tl, err)
		}
	}
}

// putEnd writes the segment that closes a timeline.
func (s *Stream) putEnd(ctx context.Context, tl holdfast.TimelineID, tail Tail, o EndOptions) error {
	at := o.Now.Round(0).Truncate(time.Microsecond)
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
}

// Fork begins a new timeline at a position of another, whose past it shares. It
// closes nothing. It is durable when it returns.
func (s *Stream) Fork(ctx context.Context, o ForkOptions) (holdfast.TimelineID, error) {
	for {
		if err := s.Refresh(ctx); err != nil {
			return 0, err
		}
		id, err := s.nextTimeline(o)
		if err != nil {
			return 0, fmt.Errorf("fork timeline %s at position %s: %w", o.From, o.At, err)
		}
		b, err := json.MarshalIndent(timelineDescriptor{
			Format: FormatVersion, ID: id, Parent: o.From, ForkAt: o.At, Generation: o.Generation, Reason: o.Reason, CreatedAt: o.Now.UTC(),
		}, "", "  ")
		if err != nil {
			return 0, err
		}
		err = s.v.store.PutIfAbsent(ctx, timelineName(s.desc.ID, id), b)
		if errors.Is(err, objstore.ErrExists) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("fork timeline %s at position %s: %w", o.From, o.At, err)
		}
		return id, s.Refresh(ctx)
	}
}

func (s *Stream) nextTimeline(o ForkOptions) (holdfast.TimelineID, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	from, ok := s.timelines[o.From]
	if !ok || o.At > from.tail.Position || o.At < from.desc.ForkAt {
		return 0, ErrNoPosition
	}
	var last holdfast.TimelineID
	for id, t := range s.timelines {
		last = max(last, id)
		if t.desc.Generation > o.Generation {
			return 0, fmt.Errorf("%w: there is generation %d", ErrFenced, t.desc.Generation)
		}
	}
	return last + 1, nil
}
