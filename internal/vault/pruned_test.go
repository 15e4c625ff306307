package vault_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"testing"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// TestReadWhilePruned reads a view again and again, which another process has
// open, while the stream is written and pruned.
func TestReadWhilePruned(t *testing.T) {
	t.Parallel()
	v, _, _ := newVault(t)
	disks := []vault.Disk{{ID: "vda", Size: 64 << 10}}
	s, err := v.CreateStream(t.Context(), vault.StreamOptions{ID: holdfast.NewStreamID(), Disks: disks, Now: start})
	if err != nil {
		t.Fatal(err)
	}
	model := branches{nil, {disks: disks}}
	rng := rand.New(rand.NewPCG(9, 17))
	for range 20 {
		model.write(t, rng, s, 1, start)
	}
	pos := model.tail(1) / 2
	want := model.at(1, pos, false)["vda"]
	o, err := v.OpenStream(t.Context(), s.ID())
	if err == nil {
		err = o.Refresh(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	view, err := o.View(t.Context(), 1, pos)
	if err != nil {
		t.Fatal(err)
	}
	image, err := view.Disk("vda")
	if err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan error, 2)
	for range cap(done) {
		go func() {
			for {
				got := make([]byte, len(want))
				err := image.ReadAt(t.Context(), got, 0)
				if err == nil && !bytes.Equal(got, want) {
					err = errors.New("it reads other data than before")
				}
				if err != nil {
					done <- err
					return
				}
				select {
				case <-stop:
					done <- nil
					return
				default:
				}
			}
		}()
	}
	for range 12 {
		model.write(t, rng, s, 1, start)
		if _, err := s.Prune(t.Context(), vault.PruneOptions{Timeline: 1, Upto: model.tail(1) - 3, Keep: []holdfast.Position{pos}, Waste: 0.01}); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestPrunedPoints shows what can be recovered to after a prune: the points that
// are kept, single moments before Upto as far as they are consistent, and all
// after it.
func TestPrunedPoints(t *testing.T) {
	t.Parallel()
	for _, waste := range []float64{0.01, 1} { // all is written anew; nothing is
		prunedPoints(t, waste)
	}
}

func prunedPoints(t *testing.T, waste float64) {
	t.Helper()
	v, _, _ := newVault(t)
	s, err := v.CreateStream(t.Context(), vault.StreamOptions{ID: holdfast.NewStreamID(), Disks: []vault.Disk{{ID: "vda", Size: 4096}}, Now: start})
	if err != nil {
		t.Fatal(err)
	}
	w := openWriter(t, s)
	second := func(n int) time.Time { return start.Add(time.Duration(n) * time.Second) }
	// Position n is of second n. 1: consistent, 5, 10, … 40: points, 21: no longer
	// consistent, 25: again.
	for n := 1; n <= 40; n++ {
		switch {
		case n == 1 || n == 25:
			_, err = w.Mark(vault.Mark{Kind: vault.MarkConsistent}, second(n))
		case n == 21:
			_, err = w.Mark(vault.Mark{Kind: vault.MarkInconsistent}, second(n))
		case n%5 == 0:
			_, err = w.Mark(vault.Mark{Kind: vault.MarkPoint, Name: fmt.Sprint(n), Consistency: vault.CrashConsistent}, second(n))
		default:
			_, err = w.Write("vda", 0, bytes.Repeat([]byte{byte(n)}, 4096), second(n))
		}
		if err != nil {
			t.Fatal(err)
		}
		if n%3 == 0 || n == 40 {
			seal(t, w)
		}
	}
	if _, err := s.Prune(t.Context(), vault.PruneOptions{Timeline: 1, Upto: 32, Keep: []holdfast.Position{5, 15, 23, 28}, Waste: waste}); err != nil {
		t.Fatal(err)
	}
	again, err := v.OpenStream(t.Context(), s.ID())
	if err == nil {
		err = again.Refresh(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*vault.Stream{s, again} {
		var points, ranges []holdfast.Position
		for _, p := range s.Points(1) {
			points = append(points, p.Position)
		}
		for _, r := range s.Ranges(1) {
			ranges = append(ranges, r.From, r.To)
			if r.To <= 32 && (!r.FromTime.Equal(second(int(r.From))) || !r.ToTime.Equal(r.FromTime)) {
				t.Errorf("the range of position %d is from %s to %s", r.From, r.FromTime, r.ToTime)
			}
		}
		if want := []holdfast.Position{5, 15, 35, 40}; !slices.Equal(points, want) {
			t.Errorf("points are at %v, want %v", points, want)
		}
		if want := []holdfast.Position{5, 5, 15, 15, 28, 28, 33, 40}; !slices.Equal(ranges, want) {
			t.Errorf("ranges are %v, want %v", ranges, want)
		}
		for at, want := range map[int]holdfast.Position{4: 0, 5: 5, 14: 5, 15: 15, 27: 15, 28: 28, 31: 28, 34: 34, 60: 40} {
			if got, err := s.Resolve(1, second(at)); got != want || (err != nil) != (want == 0) {
				t.Errorf("second %d resolves to %d, %v; want %d", at, got, err, want)
			}
		}
		if _, err := s.Fork(t.Context(), vault.ForkOptions{From: 1, At: 12, Generation: 1, Now: start}); !errors.Is(err, vault.ErrPruned) {
			t.Errorf("a fork of what is not kept: %v", err)
		}
	}
}

// lateStore has something happen before the canary is read.
type lateStore struct {
	objstore.Store
	before func()
}

func (l *lateStore) Get(ctx context.Context, name string) ([]byte, string, error) {
	if f := l.before; f != nil && path.Base(name) == "canary" {
		l.before = nil
		f()
	}
	return l.Store.Get(ctx, name)
}

// TestVerifyWhileWritten has a segment and its canary come while verify is between
// the two: that is no damage. A canary without its segment is.
func TestVerifyWhileWritten(t *testing.T) {
	t.Parallel()
	_, store, key := newVault(t)
	late := &lateStore{Store: store}
	v, err := vault.Open(t.Context(), late, key, vault.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := v.CreateStream(t.Context(), vault.StreamOptions{ID: holdfast.NewStreamID(), Disks: []vault.Disk{{ID: "vda", Size: 4096}}, Now: start})
	if err != nil {
		t.Fatal(err)
	}
	w := openWriter(t, s)
	put := func(seq uint64) {
		if err := s.PutCanary(t.Context(), vault.Canary{Time: start, Timeline: 1, Seq: seq, Position: w.Tail().Position}); err != nil {
			t.Error(err)
		}
	}
	more := func() {
		if _, err := w.Write("vda", 0, make([]byte, 4096), start); err != nil {
			t.Error(err)
		}
		seal(t, w)
		put(w.Tail().Seq)
	}
	more()
	late.before = more
	verify(t, v)
	if late.before != nil {
		t.Fatal("nothing came meanwhile")
	}
	put(w.Tail().Seq + 1)
	if rep, err := v.Verify(t.Context(), vault.VerifyOptions{}); err != nil || len(rep.Damaged) != 1 {
		t.Errorf("a segment is missing that the canary names: %+v, %v", rep, err)
	}
	put(w.Tail().Seq)
}
