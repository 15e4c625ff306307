package orchestrator_test

import (
	"context"
	"sync"

	"github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/orchestrator"
)

// gate stops whoever records something of an item: a job, at a moment that the
// test chooses. Nothing of the engine is locked meanwhile.
type gate struct {
	mu      sync.Mutex // guards the fields below
	stops   func(holdfast.Item) bool
	early   bool // before it is recorded, not after
	reached chan struct{}
	open    chan struct{}
	fails   error
}

// gatedStore has what it records pass a gate.
type gatedStore struct {
	orchestrator.Store
	gate *gate
}

func (s gatedStore) UpdateItem(ctx context.Context, it holdfast.Item) (holdfast.Item, error) {
	if err := s.gate.pass(ctx, it, true); err != nil {
		return it, err
	}
	it, err := s.Store.UpdateItem(ctx, it)
	if err == nil {
		_ = s.gate.pass(ctx, it, false)
	}
	return it, err
}

func (g *gate) pass(ctx context.Context, it holdfast.Item, early bool) error {
	g.mu.Lock()
	stops := g.stops != nil && g.early == early && g.stops(it)
	if stops {
		g.stops = nil // once
	}
	reached, open, fails := g.reached, g.open, g.fails
	g.mu.Unlock()
	if !stops {
		return nil
	}
	close(reached)
	if fails != nil {
		return fails
	}
	select {
	case <-open:
	case <-ctx.Done():
	}
	return nil
}

// hold stops a job once it records, or with early is about to record, an item
// that at accepts. wait returns when that has come to pass; release lets it go on.
func (r *rig) hold(early bool, at func(holdfast.Item) bool) (wait, release func()) {
	r.gate.mu.Lock()
	defer r.gate.mu.Unlock()
	reached, open := make(chan struct{}), make(chan struct{})
	r.gate.stops, r.gate.early, r.gate.reached, r.gate.open, r.gate.fails = at, early, reached, open, nil
	return func() {
		r.t.Helper()
		r.eventually("the job is where it is to be held", func() bool {
			select {
			case <-reached:
				return true
			default:
				return false
			}
		})
	}, sync.OnceFunc(func() { close(open) })
}

// refuse has the store take no such record of an item, once.
func (r *rig) refuse(err error, at func(holdfast.Item) bool) {
	r.hold(true, at)
	r.gate.mu.Lock()
	defer r.gate.mu.Unlock()
	r.gate.fails = err
}

// works accepts an item in a state on which a job works.
func works(s holdfast.State) func(holdfast.Item) bool {
	return func(it holdfast.Item) bool { return it.State == s && it.CurrentJob != "" }
}
