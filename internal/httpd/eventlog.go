package httpd

import (
	"context"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/api"
)

// EventLog keeps the newest events in memory and gives them to all who follow.
// A follower that is slow holds up nobody: it misses events and is told so.
// Safe for concurrent use.
type EventLog struct {
	// mu guards what follows.
	mu     sync.Mutex
	kept   []api.Event   // ids grow by one from one to the next
	next   uint64        // id of the next event
	size   int           // how many are kept
	change chan struct{} // closed and replaced with each event
}

var _ Events = (*EventLog)(nil)

// NewEventLog returns a log that keeps the given number of events, at least
// one. Its ids begin after the microsecond of now, so that they are above those
// of any earlier run of the server, and a follower of that run notices.
func NewEventLog(size int, now time.Time) *EventLog {
	return &EventLog{size: max(size, 1), next: uint64(now.UnixMicro()) + 1, change: make(chan struct{})}
}

// Publish appends an event, whose id it sets, and wakes all followers. It does
// not block. The oldest event is dropped if there are too many.
func (l *EventLog) Publish(event api.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	event.ID = l.next
	if event.Severity == "" {
		event.Severity = "info"
	}
	l.next++
	if len(l.kept) == l.size {
		copy(l.kept, l.kept[1:])
		l.kept = l.kept[:l.size-1]
	}
	l.kept = append(l.kept, event)
	close(l.change)
	l.change = make(chan struct{})
}

// FollowEvents implements Events.
func (l *EventLog) FollowEvents(ctx context.Context, after uint64, each func(api.Event) error) error {
	if after == 0 {
		l.mu.Lock()
		after = l.next - 1
		l.mu.Unlock()
	}
	for {
		events, change := l.since(after)
		for _, event := range events {
			if err := each(event); err != nil {
				return err
			}
			after = event.ID
		}
		if len(events) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-change:
		}
	}
}

// since returns the kept events after the given one, led by a reset if some
// are missing between, and what is closed when there are more.
func (l *EventLog) since(after uint64) ([]api.Event, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	oldest := l.next - uint64(len(l.kept))
	if after+1 >= oldest && after < l.next {
		return append([]api.Event(nil), l.kept[after+1-oldest:]...), l.change
	}
	// Too old, or of another server's run: the reset carries the id before the
	// oldest kept, so that following goes on from there.
	reset := api.Event{ID: oldest - 1, Type: api.EventReset, Severity: "info", Message: "some events are no longer kept: read everything anew"}
	if len(l.kept) > 0 {
		reset.Time = l.kept[0].Time
	}
	return append([]api.Event{reset}, l.kept...), l.change
}
