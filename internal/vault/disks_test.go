package vault_test

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// branch is a timeline of the model.
type branch struct {
	parent int
	forkAt holdfast.Position
	disks  []vault.Disk
	own    []change // at forkAt + 1, …
	ended  bool
}

// branches is a plain model of a stream whose disks come, go, grow and shrink.
// [0] is not a timeline.
type branches []*branch

// tail returns the last position of a timeline.
func (b branches) tail(tl int) holdfast.Position {
	return b[tl].forkAt + holdfast.Position(len(b[tl].own))
}

// at returns the disks of a position of a timeline, with what they had; those
// that the timeline itself begins with if base.
func (b branches) at(tl int, pos holdfast.Position, base bool) map[string][]byte {
	t := b[tl]
	if t.parent != 0 && pos <= t.forkAt && !base {
		return b.at(t.parent, pos, false)
	}
	state := map[string][]byte{}
	if t.parent != 0 {
		before := b.at(t.parent, t.forkAt, false)
		for _, d := range t.disks {
			state[d.ID] = make([]byte, d.Size)
			copy(state[d.ID], before[d.ID])
		}
	} else {
		for _, d := range t.disks {
			state[d.ID] = make([]byte, d.Size)
		}
	}
	for _, c := range t.own[:pos-t.forkAt] {
		if c.data != nil {
			copy(state[c.disk][c.off:], c.data)
		}
	}
	return state
}

// disksAt returns the disks of a position.
func (b branches) disksAt(tl int, pos holdfast.Position) []vault.Disk {
	if b[tl].parent != 0 && pos <= b[tl].forkAt {
		return b.disksAt(b[tl].parent, pos)
	}
	return b[tl].disks
}

// randomDisks returns other disks than before: some are gone, some new, some of
// another size.
func randomDisks(rng *rand.Rand, before []vault.Disk) []vault.Disk {
	var out []vault.Disk
	for _, id := range []string{"vda", "vdb", "vdc"} {
		size := 512 * (1 + rng.Int64N(100))
		for _, d := range before {
			if d.ID == id && rng.IntN(3) == 0 {
				size = d.Size
			}
		}
		if rng.IntN(4) > 0 {
			out = append(out, vault.Disk{ID: id, Size: size})
		}
	}
	if len(out) == 0 {
		return before
	}
	return out
}

// TestRandomDisks forks at random positions with disks that come, go, grow and
// shrink, writes, reopens, and compares every disk of random moments with a plain
// model: a moment has the disks that the machine had then.
func TestRandomDisks(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 12))
		v, _, _ := newVault(t)
		disks := []vault.Disk{{ID: "vda", Size: 40 << 10}, {ID: "vdb", Size: 16 << 10}}
		s, err := v.CreateStream(t.Context(), vault.StreamOptions{ID: holdfast.NewStreamID(), Disks: disks, Now: start})
		if err == nil {
			err = s.Refresh(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		model := branches{nil, {disks: disks}}
		for step := range 150 {
			tl := 1 + rng.IntN(len(model)-1)
			pos := holdfast.Position(rng.Uint64N(uint64(model.tail(tl)) + 1))
			switch rng.IntN(6) {
			case 0:
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
			case 1, 2:
				model.write(t, rng, s, tl, start.Add(time.Duration(step)*time.Second))
			default:
				if rng.IntN(8) == 0 {
					if s, err = v.OpenStream(t.Context(), s.ID()); err == nil {
						err = s.Refresh(t.Context())
					}
					if err != nil {
						t.Fatal(err)
					}
				}
				model.check(t, s, tl, pos)
			}
			if t.Failed() {
				t.Fatalf("seed %d, step %d", seed, step)
			}
		}
	}
}

// write adds some writes to a timeline and to its model.
func (b branches) write(t *testing.T, rng *rand.Rand, s *vault.Stream, tl int, now time.Time) {
	t.Helper()
	w, err := s.Writer(t.Context(), vault.WriterOptions{Timeline: holdfast.TimelineID(tl), Generation: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write("vdx", 0, make([]byte, 512), now); err == nil {
		t.Error("a disk that is not there takes a write")
	}
	h := &history{log: make([]change, b.tail(tl))}
	for range 1 + rng.IntN(8) {
		d := b[tl].disks[rng.IntN(len(b[tl].disks))]
		if _, err := w.Write(d.ID, d.Size, make([]byte, 512), now); err == nil {
			t.Errorf("disk %s of %d bytes takes a write behind its end", d.ID, d.Size)
		}
		h.step(t, rng, w, []vault.Disk{d}, now)
	}
	b[tl].own = append(b[tl].own, h.log[b.tail(tl):]...)
	seal(t, w)
	if err := s.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// check compares all disks of a moment with the model.
func (b branches) check(t *testing.T, s *vault.Stream, tl int, pos holdfast.Position) {
	t.Helper()
	view, err := s.View(t.Context(), holdfast.TimelineID(tl), pos)
	if err != nil {
		t.Fatal(err)
	}
	b.compare(t, view, tl, b.at(tl, pos, false))
	disks, err := s.DisksAt(holdfast.TimelineID(tl), pos)
	if err != nil || !slices.Equal(disks, view.Disks()) {
		t.Errorf("timeline %d at %d has disks %v (%v), its view has %v", tl, pos, disks, err, view.Disks())
	}
	if pos = b[tl].forkAt; b[tl].parent == 0 {
		return
	}
	if view, err = s.Base(t.Context(), holdfast.TimelineID(tl), pos); err != nil {
		t.Fatal(err)
	}
	b.compare(t, view, tl, b.at(tl, pos, true))
}

// compare compares a view with what should be there.
func (b branches) compare(t *testing.T, view *vault.View, tl int, want map[string][]byte) {
	t.Helper()
	pos := view.Position()
	if len(view.Disks()) != len(want) {
		t.Errorf("timeline %d at %d has disks %v, want %d", tl, pos, view.Disks(), len(want))
	}
	for _, d := range view.Disks() {
		if int64(len(want[d.ID])) != d.Size {
			t.Fatalf("disk %s of timeline %d at %d has %d bytes, want %d", d.ID, tl, pos, d.Size, len(want[d.ID]))
		}
		image, err := view.Disk(d.ID)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, d.Size)
		if err := image.ReadAt(t.Context(), got, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want[d.ID]) {
			t.Errorf("disk %s of timeline %d at %d differs from the model", d.ID, tl, pos)
		}
	}
}

// TestShrunkDisk shows that what a disk has lost by being made smaller does not
// come back when it grows, nor a disk that was gone for a time; and that a fork
// from before has what was there then.
func TestShrunkDisk(t *testing.T) {
	t.Parallel()
	v, _, _ := newVault(t)
	large, small := vault.Disk{ID: "vda", Size: 8192}, vault.Disk{ID: "vda", Size: 4096}
	other := vault.Disk{ID: "vdb", Size: 4096}
	s, err := v.CreateStream(t.Context(), vault.StreamOptions{ID: holdfast.NewStreamID(), Disks: []vault.Disk{large, other}, Now: start})
	if err != nil {
		t.Fatal(err)
	}
	w := openWriter(t, s)
	ones := bytes.Repeat([]byte{1}, 8192)
	for _, d := range []vault.Disk{large, other} {
		if _, err := w.Write(d.ID, 0, ones[:d.Size], start); err != nil {
			t.Fatal(err)
		}
	}
	seal(t, w)
	tl := holdfast.TimelineID(1)
	w = writerOf(t, s, 1)
	if _, err := w.Mark(vault.Mark{Kind: vault.MarkConsistent}, start); err != nil {
		t.Fatal(err)
	}
	seal(t, w)
	at := holdfast.Position(3)
	for _, disks := range [][]vault.Disk{{small}, {large, other}, nil} {
		if tl, err = s.Fork(t.Context(), vault.ForkOptions{From: tl, At: at, Generation: 1, Now: start, Disks: disks}); err != nil {
			t.Fatal(err)
		}
		w = writerOf(t, s, tl)
		if at, err = w.Mark(vault.Mark{Kind: vault.MarkNote}, start); err != nil {
			t.Fatal(err)
		}
		seal(t, w)
	}
	before, err := s.Fork(t.Context(), vault.ForkOptions{From: tl, At: 2, Generation: 1, Now: start})
	if err == nil {
		err = s.Refresh(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := content(t, s, tl, at, "vda"); !bytes.Equal(got, append(bytes.Repeat([]byte{1}, 4096), make([]byte, 4096)...)) {
		t.Error("a disk that was made smaller and larger again has what it had before")
	}
	if got := content(t, s, tl, at, "vdb"); !bytes.Equal(got, make([]byte, 4096)) {
		t.Error("a disk that was gone has what it had before")
	}
	if got := content(t, s, before, 2, "vda"); !bytes.Equal(got, ones) {
		t.Error("a fork from before the disk was made smaller has not what was there")
	}
	// With other disks nothing is consistent before somebody notes it.
	if rs := s.Ranges(tl); len(rs) != 1 || rs[0].To != 3 {
		t.Errorf("ranges are %+v, want one that ends where the disks change", rs)
	}
	if _, err := s.Fork(t.Context(), vault.ForkOptions{From: tl, At: 2, Generation: 1, Now: start, Disks: []vault.Disk{}}); err == nil {
		t.Error("a fork without disks is made")
	}
}

func writerOf(t *testing.T, s *vault.Stream, tl holdfast.TimelineID) *vault.Writer {
	t.Helper()
	w, err := s.Writer(t.Context(), vault.WriterOptions{Timeline: tl, Generation: 1})
	if err != nil {
		t.Fatal(err)
	}
	return w
}
