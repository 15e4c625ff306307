package vault_test

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// asked counts the requests to a store.
type asked struct {
	objstore.Store
	gets, lists atomic.Int64
}

func (a *asked) Get(ctx context.Context, name string) ([]byte, string, error) {
	a.gets.Add(1)
	return a.Store.Get(ctx, name)
}

func (a *asked) GetRange(ctx context.Context, name string, off, length int64) ([]byte, error) {
	a.gets.Add(1)
	return a.Store.GetRange(ctx, name, off, length)
}

func (a *asked) List(ctx context.Context, prefix, after string) ([]objstore.Entry, error) {
	a.lists.Add(1)
	return a.Store.List(ctx, prefix, after)
}

// openStream opens a stream and reads it.
func openStream(t *testing.T, v *vault.Vault, id holdfast.StreamID) *vault.Stream {
	t.Helper()
	s, err := v.OpenStream(t.Context(), id)
	if err == nil {
		err = s.Refresh(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// manySmall makes a stream of many small segments, and its model.
func manySmall(t *testing.T, v *vault.Vault, rng *rand.Rand, segments int) (*vault.Stream, branches) {
	t.Helper()
	disks := []vault.Disk{{ID: "vda", Size: 64 << 10}, {ID: "vdb", Size: 32 << 10}}
	s, err := v.CreateStream(t.Context(), vault.StreamOptions{ID: holdfast.NewStreamID(), Disks: disks, Now: start})
	if err != nil {
		t.Fatal(err)
	}
	model := branches{nil, {disks: disks}}
	for i := range segments {
		model.write(t, rng, s, 1, start.Add(time.Duration(i)*time.Second))
	}
	return s, model
}

// TestOpenRequests shows that a stream of small segments is read with one request
// for each, and that what was read is not asked for again.
func TestOpenRequests(t *testing.T) {
	t.Parallel()
	dir, err := objstore.NewDir(vfs.OS, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	key, err := vault.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	store := &asked{Store: dir}
	v, err := vault.Create(t.Context(), store, vault.CreateOptions{Key: key, Now: start})
	if err != nil {
		t.Fatal(err)
	}
	const segments = 600 // more than are read at once
	s, _ := manySmall(t, v, rand.New(rand.NewPCG(1, 2)), segments)
	store.gets.Store(0)
	store.lists.Store(0)
	o := openStream(t, v, s.ID())
	if n := o.SegmentCount(); n != segments {
		t.Errorf("%d segments are loaded of %d", n, segments)
	}
	const documents = 10
	if n := store.gets.Load(); n > segments+documents {
		t.Errorf("%d requests for %d small segments", n, segments)
	}
	if n := store.lists.Load(); n > 4 {
		t.Errorf("%d listings for one stream", n)
	}
	store.gets.Store(0)
	if err := o.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := store.gets.Load(); n > documents {
		t.Errorf("%d requests although nothing is new", n)
	}
	verify(t, v)
}

// TestPruneWindow prunes a stream of which every position is kept: few segments are
// left, in the stream and in the store, and every position is what it was, also in
// a view that was open before.
func TestPruneWindow(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 71))
		v, _, _ := newVault(t)
		s, model := manySmall(t, v, rng, 60)
		o := openStream(t, v, s.ID())
		middle := model.tail(1) / 2
		view, err := o.View(t.Context(), 1, middle)
		if err != nil {
			t.Fatal(err)
		}
		rep, err := s.Prune(t.Context(), vault.PruneOptions{Timeline: 1})
		if err != nil {
			t.Fatal(err)
		}
		if n := s.SegmentCount(); n > 3 {
			t.Errorf("%d segments are left of 60", n)
		}
		if rep.Kept != 0 || rep.Removed < 57 || rep.Written == 0 || float64(rep.Rewritten) > 1.1*float64(rep.Freed) {
			t.Errorf("it reports %+v", rep)
		}
		model.compare(t, view, 1, model.at(1, middle, false))
		all := func() {
			t.Helper()
			for _, s := range []*vault.Stream{s, openStream(t, v, s.ID())} {
				model.checkKept(t, s, keeping{})
			}
		}
		all()
		if rep, err = s.Prune(t.Context(), vault.PruneOptions{Timeline: 1}); err != nil || rep.Written > 0 {
			t.Errorf("a second run with nothing new: %+v, %v", rep, err)
		}
		// The process that had it open goes on writing, and a fork is made inside.
		model.write(t, rng, o, 1, start.Add(time.Hour))
		if _, err := o.Fork(t.Context(), vault.ForkOptions{From: 1, At: middle, Generation: 2, Now: start}); err != nil {
			t.Fatal(err)
		}
		model = append(model, &branch{parent: 1, forkAt: middle, disks: model[1].disks})
		if err := s.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		all()
	}
}

// TestPruneWindowThenHistory prunes first inside the history window, and later what
// was put together there, with other segments and by itself.
func TestPruneWindowThenHistory(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 72))
		v, _, _ := newVault(t)
		s, model := manySmall(t, v, rng, 30)
		kept := keeping{}
		for range 12 {
			for range 1 + rng.IntN(20) {
				model.write(t, rng, s, 1, start)
			}
			upto := holdfast.Position(rng.Uint64N(uint64(model.tail(1)) + 1))
			var keep []holdfast.Position
			for range rng.IntN(4) {
				keep = append(keep, holdfast.Position(rng.Uint64N(uint64(upto)+1)))
			}
			if rng.IntN(2) == 0 {
				upto, keep = 0, nil
			}
			kept.prune(model, 1, upto, keep)
			for p := range kept[1].kept {
				keep = append(keep, p)
			}
			if _, err := s.Prune(t.Context(), vault.PruneOptions{Timeline: 1, Upto: upto, Keep: keep}); err != nil {
				t.Fatal(err)
			}
		}
		model.checkKept(t, s, kept)
		model.checkKept(t, openStream(t, v, s.ID()), kept)
	}
}

// TestWindowGrows writes for as long as a stream is pruned again and again inside its
// window: no segment is written anew more often than the logarithm of their count.
func TestWindowGrows(t *testing.T) {
	t.Parallel()
	v, store, _ := newVault(t)
	s, model := manySmall(t, v, rand.New(rand.NewPCG(5, 6)), 1)
	rng := rand.New(rand.NewPCG(7, 8))
	var written int64
	const rounds, each = 20, 16
	for range rounds {
		for range each {
			model.write(t, rng, s, 1, start)
		}
		rep, err := s.Prune(t.Context(), vault.PruneOptions{Timeline: 1})
		if err != nil {
			t.Fatal(err)
		}
		written += rep.Rewritten
	}
	entries, err := store.List(t.Context(), "streams/"+s.ID().String()+"/", "")
	if err != nil {
		t.Fatal(err)
	}
	var size int64
	for _, e := range entries {
		size += e.Size
	}
	if n := s.SegmentCount(); n > 3*keptManyOf {
		t.Errorf("%d segments are left of %d", n, rounds*each)
	}
	if written > 8*size {
		t.Errorf("%d bytes were written anew for %d that are stored", written, size)
	}
	model.checkKept(t, openStream(t, v, s.ID()), keeping{})
}

// keptManyOf is how many small segments Prune leaves alone.
const keptManyOf = 16
