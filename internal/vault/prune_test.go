package vault_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// keeping is what a model of a stream keeps of each timeline.
type keeping map[int]*struct {
	upto holdfast.Position
	kept map[holdfast.Position]bool
}

// has says whether a position of a timeline is kept, on the way to it too.
func (k keeping) has(b branches, tl int, pos holdfast.Position) bool {
	for ; tl != 0; tl = b[tl].parent {
		if pos > b[tl].forkAt {
			if x := k[tl]; x != nil && pos <= x.upto && !x.kept[pos] {
				return false
			}
		}
		pos = min(pos, b[tl].forkAt)
	}
	return true
}

// prune prunes a timeline of the model.
func (k keeping) prune(b branches, tl int, upto holdfast.Position, keep []holdfast.Position) {
	x := k[tl]
	if x == nil {
		x = &struct {
			upto holdfast.Position
			kept map[holdfast.Position]bool
		}{}
		k[tl] = x
	}
	upto = max(x.upto, min(upto, b.tail(tl)))
	for i := range b {
		for c, at := i, holdfast.Position(1<<63); c != 0; c = b[c].parent {
			if c == tl && i != tl {
				keep = append(keep, at)
			}
			at = min(at, b[c].forkAt)
		}
	}
	kept := map[holdfast.Position]bool{}
	for _, p := range keep {
		if p > b[tl].forkAt && p <= upto && (p > x.upto || x.kept[p]) {
			kept[p] = true
		}
	}
	x.upto, x.kept = upto, kept
}

// TestRandomPrune grows a tree of timelines whose disks change, prunes it at
// random, and compares every position that is kept with a plain model: in the
// stream that prunes, in one that was just opened, and in views that were open
// before in another process. What is not kept is refused.
func TestRandomPrune(t *testing.T) {
	t.Parallel()
	for seed := range uint64(10) {
		rng := rand.New(rand.NewPCG(seed, 13))
		v, _, _ := newVault(t)
		disks := []vault.Disk{{ID: "vda", Size: 40 << 10}, {ID: "vdb", Size: 16 << 10}}
		s, err := v.CreateStream(t.Context(), vault.StreamOptions{ID: holdfast.NewStreamID(), Disks: disks, Now: start})
		if err == nil {
			err = s.Refresh(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		model, kept := branches{nil, {disks: disks}}, keeping{}
		type open struct {
			view *vault.View
			tl   int
		}
		var views []open
		other := func() *vault.Stream {
			o, err := v.OpenStream(t.Context(), s.ID())
			if err == nil {
				err = o.Refresh(t.Context())
			}
			if err != nil {
				t.Fatal(err)
			}
			return o
		}
		for step := range 120 {
			tl := 1 + rng.IntN(len(model)-1)
			pos := holdfast.Position(rng.Uint64N(uint64(model.tail(tl)) + 1))
			switch rng.IntN(9) {
			case 0:
				if !kept.has(model, tl, pos) {
					continue
				}
				o := vault.ForkOptions{From: holdfast.TimelineID(tl), At: pos, Generation: 1, Now: start}
				next := &branch{parent: tl, forkAt: pos, disks: model.disksAt(tl, pos)}
				if rng.IntN(2) == 0 {
					o.Disks = randomDisks(rng, next.disks)
					next.disks = o.Disks
				}
				if _, err := s.Fork(t.Context(), o); err != nil {
					t.Fatal(err)
				}
				model = append(model, next)
			case 1, 2, 3, 4:
				if rng.IntN(12) == 0 {
					if _, err := s.End(t.Context(), holdfast.TimelineID(tl), vault.EndOptions{Generation: 2, Now: start}); err != nil {
						t.Fatal(err)
					}
					model[tl].ended = true
				}
				if !model[tl].ended {
					model.write(t, rng, s, tl, start.Add(time.Duration(step)*time.Second))
				}
			case 5:
				o := vault.PruneOptions{Timeline: holdfast.TimelineID(tl), Upto: pos, Target: 1 << (8 + rng.IntN(12)), Waste: rng.Float64()}
				for range rng.IntN(5) {
					o.Keep = append(o.Keep, holdfast.Position(rng.Uint64N(uint64(pos)+1)))
				}
				kept.prune(model, tl, o.Upto, slices.Clone(o.Keep))
				if _, err := s.Prune(t.Context(), o); err != nil {
					t.Fatal(err)
				}
				model.checkKept(t, s, kept)
				model.checkKept(t, other(), kept)
			case 6:
				if view, err := other().View(t.Context(), holdfast.TimelineID(tl), pos); err == nil {
					views = append(views, open{view, tl})
				}
			default:
				for _, o := range views {
					if p := o.view.Position(); kept.has(model, o.tl, p) {
						model.compare(t, o.view, o.tl, model.at(o.tl, p, false))
					}
				}
			}
			if t.Failed() {
				t.Fatalf("seed %d, step %d", seed, step)
			}
		}
	}
}

// checkKept looks at every position of every timeline.
func (b branches) checkKept(t *testing.T, s *vault.Stream, kept keeping) {
	t.Helper()
	for tl := 1; tl < len(b); tl++ {
		for pos := holdfast.Position(0); pos <= b.tail(tl); pos++ {
			view, err := s.View(t.Context(), holdfast.TimelineID(tl), pos)
			if !kept.has(b, tl, pos) {
				if !errors.Is(err, vault.ErrPruned) {
					t.Fatalf("timeline %d at %d, which is not kept: %v", tl, pos, err)
				}
				continue
			}
			if err != nil {
				t.Fatalf("timeline %d at %d: %v", tl, pos, err)
			}
			b.compare(t, view, tl, b.at(tl, pos, false))
		}
	}
}

// pruneLife writes, prunes twice, and goes on, until its file system fails.
type pruneLife struct {
	t     *testing.T
	key   vault.Key
	model branches
	kept  keeping
	// asked is what the prune under way keeps: what was kept before holds, or that.
	asked keeping
}

func (l *pruneLife) run(fsys vfs.FS) error {
	store, err := objstore.NewDir(fsys, "/v")
	if err != nil {
		return err
	}
	v, err := vault.Create(l.t.Context(), store, vault.CreateOptions{Key: l.key, Now: start})
	if err != nil {
		return err
	}
	disks := []vault.Disk{{ID: "vda", Size: 64 << 10}}
	s, err := v.CreateStream(l.t.Context(), vault.StreamOptions{ID: holdfast.StreamID{7}, Disks: disks, Now: start})
	if err != nil {
		return err
	}
	l.model, l.kept = branches{nil, {disks: disks}}, keeping{}
	rng := rand.New(rand.NewPCG(1, 14))
	for round := range 3 {
		w, err := s.Writer(l.t.Context(), vault.WriterOptions{Timeline: 1, Generation: 1})
		if err != nil {
			return err
		}
		for range 5 {
			h := &history{log: make([]change, l.model.tail(1))}
			for range 3 {
				h.step(l.t, rng, w, disks, start)
			}
			sealed, err := w.Seal(start)
			if err != nil {
				return err
			}
			if err := w.Commit(l.t.Context(), sealed); err != nil {
				return err
			}
			l.model[1].own = append(l.model[1].own, h.log[l.model.tail(1):]...)
		}
		upto := l.model.tail(1) - 4
		keep := []holdfast.Position{upto / 3, upto / 2, upto - 1}
		l.asked = keeping{}
		l.asked.prune(l.model, 1, upto, slices.Clone(keep))
		if x := l.kept[1]; x != nil {
			for p := range l.asked[1].kept {
				if p <= x.upto && !x.kept[p] {
					delete(l.asked[1].kept, p)
				}
			}
		}
		if _, err := s.Prune(l.t.Context(), vault.PruneOptions{Timeline: 1, Upto: upto, Keep: keep, Target: 1 << 16}); err != nil {
			return err
		}
		l.kept, l.asked = l.asked, nil
		if err := s.PutCanary(l.t.Context(), vault.Canary{Time: start, Timeline: 1, Seq: uint64(5 * (round + 1)), Position: l.model.tail(1)}); err != nil {
			return err
		}
	}
	return nil
}

// TestCrashInPrune cuts the power before every change to the file system while a
// stream is written and pruned, and opens what is left: all that is kept is there,
// nothing is damaged, and another prune ends what was begun.
func TestCrashInPrune(t *testing.T) {
	t.Parallel()
	key, err := vault.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	newFS := func() *vfs.Mem {
		m := vfs.NewMem()
		if err := m.MkdirAll("/v"); err != nil {
			t.Fatal(err)
		}
		return m
	}
	var count vfs.Faults
	if err := (&pruneLife{t: t, key: key}).run(vfs.WithFaults(newFS(), &count)); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d changes", count.Changes())
	for at := 1; at <= count.Changes(); at++ {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			t.Parallel()
			mem := newFS()
			var faults vfs.Faults
			faults.CrashBefore(at)
			l := &pruneLife{t: t, key: key}
			if err := l.run(vfs.WithFaults(mem, &faults)); !errors.Is(err, vfs.ErrCrashed) {
				t.Errorf("the crash is not visible in %v", err)
			}
			if len(l.model) == 0 {
				return
			}
			l.reopens(mem.CrashClone(nil))
			l.reopens(mem.KillClone())
			for seed := range uint64(3) {
				l.reopens(mem.CrashClone(rand.New(rand.NewPCG(seed, uint64(at)))))
			}
		})
	}
}

// reopens looks at what a crash has left.
func (l *pruneLife) reopens(fsys vfs.FS) {
	t := l.t
	store, err := objstore.NewDir(fsys, "/v")
	if err != nil {
		t.Fatal(err)
	}
	v, err := vault.Open(t.Context(), store, l.key, vault.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := v.OpenStream(t.Context(), holdfast.StreamID{7})
	if err == nil {
		err = s.Refresh(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	verify(t, v)
	tail := s.Timelines()[0].Tail.Position
	for pos := holdfast.Position(0); pos <= min(tail, l.model.tail(1)); pos++ {
		must := l.kept.has(l.model, 1, pos) && (l.asked == nil || l.asked.has(l.model, 1, pos))
		view, err := s.View(t.Context(), 1, pos)
		if err != nil && (must || !errors.Is(err, vault.ErrPruned)) {
			t.Fatalf("position %d: %v", pos, err)
		}
		if err == nil {
			l.model.compare(t, view, 1, l.model.at(1, pos, false))
		}
	}
	if l.asked == nil {
		return
	}
	if _, err := s.Prune(t.Context(), vault.PruneOptions{Timeline: 1, Upto: l.asked[1].upto, Keep: keys(l.asked[1].kept), Target: 1 << 16}); err != nil {
		t.Fatal(err)
	}
	if tail == l.model.tail(1) {
		l.model.checkKept(t, s, l.asked)
	}
	verify(t, v)
}

func keys(m map[holdfast.Position]bool) (out []holdfast.Position) {
	for p := range m {
		out = append(out, p)
	}
	return out
}

// TestPruneFrees writes the same blocks again and again: what is left takes little
// more than what is kept, and a timeline that nobody needs takes next to nothing.
func TestPruneFrees(t *testing.T) {
	t.Parallel()
	v, store, _ := newVault(t)
	const size = 1 << 20
	s, err := v.CreateStream(t.Context(), vault.StreamOptions{ID: holdfast.NewStreamID(), Disks: []vault.Disk{{ID: "vda", Size: size}}, Now: start})
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 15))
	w := openWriter(t, s)
	var last holdfast.Position
	for range 40 {
		for off := int64(0); off < size; off += 64 << 10 {
			p := make([]byte, 64<<10)
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
			if last, err = w.Write("vda", off, p, start); err != nil {
				t.Fatal(err)
			}
		}
		seal(t, w)
	}
	kept, err := s.Fork(t.Context(), vault.ForkOptions{From: 1, At: last, Generation: 1, Now: start})
	if err != nil {
		t.Fatal(err)
	}
	w = writerOf(t, s, kept)
	if _, err := w.Mark(vault.Mark{Kind: vault.MarkConsistent}, start); err != nil {
		t.Fatal(err)
	}
	seal(t, w)
	before := s.StoredBytes()
	rep, err := s.Prune(t.Context(), vault.PruneOptions{Timeline: 1, Upto: last})
	if err != nil {
		t.Fatal(err)
	}
	objects, err := store.List(t.Context(), "streams/", "")
	if err != nil {
		t.Fatal(err)
	}
	var stored int64
	for _, o := range objects {
		stored += o.Size
	}
	t.Logf("%d bytes before, %d now, for a disk of %d: %+v", before, stored, size, rep)
	// The last segment stays whole, and has all of it here.
	if stored > size*11/10 || rep.Freed < before-2*size {
		t.Errorf("%d bytes are stored for %d that are kept; %+v", stored, size, rep)
	}
	again, err := s.Prune(t.Context(), vault.PruneOptions{Timeline: 1, Upto: last})
	if err != nil || again.Written > 0 || again.Removed > 0 {
		t.Errorf("a second run did %+v, %v", again, err)
	}
	if got := content(t, s, kept, last, "vda"); bytes.Equal(got, make([]byte, size)) {
		t.Error("what the fork begins with is gone")
	}
}

// TestKeptDamaged damages what says what is kept: what came after it can be read,
// verify names it, and when it is mended all is there again.
func TestKeptDamaged(t *testing.T) {
	t.Parallel()
	v, store, _ := newVault(t)
	disks := []vault.Disk{{ID: "vda", Size: 64 << 10}}
	s, err := v.CreateStream(t.Context(), vault.StreamOptions{ID: holdfast.NewStreamID(), Disks: disks, Now: start})
	if err != nil {
		t.Fatal(err)
	}
	model, kept := branches{nil, {disks: disks}}, keeping{}
	rng := rand.New(rand.NewPCG(5, 16))
	for range 12 {
		model.write(t, rng, s, 1, start)
	}
	upto := model.tail(1) - 5
	kept.prune(model, 1, upto, []holdfast.Position{upto / 2})
	if rep, err := s.Prune(t.Context(), vault.PruneOptions{Timeline: 1, Upto: upto, Keep: []holdfast.Position{upto / 2}, Waste: 0.01}); err != nil || rep.Written == 0 {
		t.Fatal(rep, err)
	}
	name := fmt.Sprintf("streams/%s/kept/00000001", s.ID())
	good, etag, err := store.Get(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	for what, damage := range map[string]func() error{
		"changed": func() error {
			_, err := store.CompareAndSwap(t.Context(), name, bytes.Replace(good, []byte("upto"), []byte("otpu"), 1), etag)
			return err
		},
		"missing": func() error { return store.Delete(t.Context(), name) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		o, err := v.OpenStream(t.Context(), s.ID())
		if err == nil {
			err = o.Refresh(t.Context())
		}
		if !errors.Is(err, vault.ErrCorrupt) {
			t.Errorf("%s: refresh says %v", what, err)
		}
		for pos := upto + 1; pos <= model.tail(1); pos++ {
			view, err := o.View(t.Context(), 1, pos)
			if err != nil {
				t.Fatalf("%s: position %d: %v", what, pos, err)
			}
			model.compare(t, view, 1, model.at(1, pos, false))
		}
		if _, err := o.View(t.Context(), 1, upto/2-1); err == nil {
			t.Errorf("%s: a position that is not kept can be opened", what)
		}
		if _, err := o.Prune(t.Context(), vault.PruneOptions{Timeline: 1, Upto: upto}); err == nil {
			t.Errorf("%s: it is pruned all the same", what)
		}
		rep, err := v.Verify(t.Context(), vault.VerifyOptions{})
		if err != nil || len(rep.Damaged) != 1 || rep.Damaged[0].Object != name {
			t.Errorf("%s: verify finds %+v, %v", what, rep, err)
		}
		_ = store.Delete(t.Context(), name)
		if err := store.PutIfAbsent(t.Context(), name, good); err != nil {
			t.Fatal(err)
		}
		if _, etag, err = store.Get(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if err := o.Refresh(t.Context()); err != nil {
			t.Errorf("%s, and mended: %v", what, err)
		}
		model.checkKept(t, o, kept)
	}
}
