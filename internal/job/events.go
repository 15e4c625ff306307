package job

import (
	"context"
	"sync"
	"time"
)

// EventType is what happened to a job.
type EventType string

// The types of events.
const (
	// EventJob says that the job was recorded anew: its state, a task's, its result.
	EventJob EventType = "job"
	// EventProgress says that the present task has moved on. Several in a short
	// time come as one.
	EventProgress EventType = "progress"
	// EventLog says that a task had something to say.
	EventLog EventType = "log"
)

// Event tells what happened to a job, with the job as it then stood.
type Event struct {
	Type EventType
	Time time.Time
	Job  Job
	Task string // progress, log
	Text string // log
	// Lost is how many events before this one the subscriber missed because it
	// was too slow. Since every event carries the whole job, only log lines are
	// really lost, and those are in the job.
	Lost int
}

// Broadcaster hands values to any number of subscribers. It never waits for
// one: a subscriber whose buffer is full loses the oldest values in it and is
// told how many with the next. The zero value is not usable; see
// NewBroadcaster. Safe for concurrent use.
type Broadcaster[T any] struct {
	lost func(value *T) *int

	// mu guards what is below and orders publishing: all subscribers see the
	// same order.
	mu   sync.Mutex
	subs map[*subscriber[T]]struct{}
}

type subscriber[T any] struct {
	ch     chan T
	filter func(T) bool
	last   func(T) bool
	lost   int
	stop   func() bool
}

// Subscription is what a subscriber wants.
type Subscription[T any] struct {
	// Buffer is how many values may wait; 0 means 64.
	Buffer int
	// Filter chooses values; nil means all. Called with a lock held: it must be
	// quick and must not call the broadcaster.
	Filter func(T) bool
	// Last says that no value follows this one, so that the channel is closed
	// after it; nil means never. Called like Filter.
	Last func(T) bool
	// First are values put into the channel before any other.
	First []T
}

// NewBroadcaster returns a broadcaster. Lost tells where in a value it is noted
// how many before it a subscriber missed.
func NewBroadcaster[T any](lost func(value *T) *int) *Broadcaster[T] {
	return &Broadcaster[T]{lost: lost, subs: map[*subscriber[T]]struct{}{}}
}

// Subscribe returns a channel of what is published from now on. It is closed
// once ctx ends, or after the last value.
func (b *Broadcaster[T]) Subscribe(ctx context.Context, s Subscription[T]) <-chan T {
	if s.Buffer <= 0 {
		s.Buffer = 64
	}
	sub := &subscriber[T]{ch: make(chan T, max(s.Buffer, len(s.First))), filter: s.Filter, last: s.Last}
	for _, v := range s.First {
		sub.ch <- v
		if s.Last != nil && s.Last(v) {
			close(sub.ch)
			return sub.ch
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.subs[sub] = struct{}{}
	sub.stop = context.AfterFunc(ctx, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.remove(sub)
	})
	return sub.ch
}

// remove closes a subscriber's channel, once. Called with mu held.
func (b *Broadcaster[T]) remove(sub *subscriber[T]) {
	if _, ok := b.subs[sub]; ok {
		delete(b.subs, sub)
		sub.stop()
		close(sub.ch)
	}
}

// Publish hands the value to every subscriber that wants it, and returns at once.
func (b *Broadcaster[T]) Publish(value T) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for sub := range b.subs {
		if sub.filter != nil && !sub.filter(value) {
			continue
		}
		b.deliver(sub, value)
		if sub.last != nil && sub.last(value) {
			b.remove(sub)
		}
	}
}

// deliver drops the oldest value if there is no room: the newest says how
// things stand, and the last must never be the one that is lost.
func (b *Broadcaster[T]) deliver(sub *subscriber[T], value T) {
	for {
		v := value
		*b.lost(&v) = sub.lost
		select {
		case sub.ch <- v:
			sub.lost = 0
			return
		default:
		}
		select {
		case dropped := <-sub.ch:
			sub.lost += 1 + *b.lost(&dropped)
		default: // the subscriber took one meanwhile
		}
	}
}
