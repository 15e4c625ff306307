package vault_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// start is the time at which every test's history begins.
var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// newVault makes a vault in a directory of the test, and verifies it at the end.
func newVault(t *testing.T) (*vault.Vault, objstore.Store, vault.Key) {
	t.Helper()
	store, err := objstore.NewDir(vfs.OS, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	key, err := vault.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	v, err := vault.Create(t.Context(), store, vault.CreateOptions{Key: key, Now: start})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { verify(t, v) })
	return v, store, key
}

// verify fails the test if anything in the vault is damaged.
func verify(t *testing.T, v *vault.Vault) {
	t.Helper()
	rep, err := v.Verify(context.Background(), vault.VerifyOptions{})
	if err != nil {
		t.Errorf("verify: %v", err)
		return
	}
	for _, d := range rep.Damaged {
		t.Errorf("verify: %s: %s", d.Object, d.Detail)
	}
}

// history is the model: what a disk had at every position.
type history struct {
	disks map[string][]byte
	log   []change
}

type change struct {
	disk string
	off  int64
	data []byte // nil: nothing changed
}

func newHistory(disks []vault.Disk) *history {
	h := &history{disks: map[string][]byte{}}
	for _, d := range disks {
		h.disks[d.ID] = make([]byte, d.Size)
	}
	return h
}

// at returns a disk as it was at a position.
func (h *history) at(disk string, size int64, pos holdfast.Position) []byte {
	p := make([]byte, size)
	for _, c := range h.log[:pos] {
		if c.disk == disk {
			copy(p[c.off:], c.data)
		}
	}
	return p
}

// TestRandomHistory writes, zeroes, marks, seals and reopens at random, and
// compares views at random positions with a plain history.
func TestRandomHistory(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 1))
		v, _, _ := newVault(t)
		disks := []vault.Disk{{ID: "vda", Size: 300 << 10}, {ID: "vdb", Size: 64 << 10}}
		s, err := v.CreateStream(t.Context(), vault.StreamOptions{ID: holdfast.NewStreamID(), Name: "m", Disks: disks, Now: start})
		if err != nil {
			t.Fatal(err)
		}
		h := newHistory(disks)
		w := openWriter(t, s)
		for step := range 400 {
			switch {
			case rng.IntN(20) == 0:
				seal(t, w)
			case rng.IntN(60) == 0:
				seal(t, w)
				w = openWriter(t, s)
			default:
				h.step(t, rng, w, disks, start.Add(time.Duration(step)*time.Millisecond))
			}
		}
		seal(t, w)
		if err := s.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		var prev *vault.View
		var prevAt holdfast.Position
		for range 40 {
			pos := holdfast.Position(rng.IntN(len(h.log) + 1))
			view := h.check(t, s, 1, pos, disks)
			if prev != nil {
				h.checkDiff(t, prev, view, prevAt, pos, disks)
			}
			prev, prevAt = view, pos
		}
	}
}

func openWriter(t *testing.T, s *vault.Stream) *vault.Writer {
	t.Helper()
	w, err := s.Writer(t.Context(), vault.WriterOptions{Timeline: 1, Generation: 1})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func seal(t *testing.T, w *vault.Writer) {
	t.Helper()
	sealed, err := w.Seal(start)
	if err != nil {
		t.Fatal(err)
	}
	if sealed == nil {
		return
	}
	if err := w.Commit(t.Context(), sealed); err != nil {
		t.Fatal(err)
	}
}

// step does one random thing to both.
func (h *history) step(t *testing.T, rng *rand.Rand, w *vault.Writer, disks []vault.Disk, now time.Time) {
	t.Helper()
	d := disks[rng.IntN(len(disks))]
	off := rng.Int64N(d.Size/512) * 512
	n := min(512*(1+rng.Int64N(200)), d.Size-off)
	c := change{disk: d.ID, off: off}
	var err error
	var pos holdfast.Position
	switch rng.IntN(8) {
	case 0:
		pos, err = w.Mark(vault.Mark{Kind: vault.MarkNote, Name: "n"}, now)
		c.disk = ""
	case 1, 2:
		c.data = make([]byte, n)
		pos, err = w.Zero(d.ID, block.Extent{Offset: off, Length: n}, rng.IntN(2) == 0, now)
	default:
		c.data = make([]byte, n)
		for i := range c.data {
			c.data[i] = byte(rng.IntN(4)) // compresses
		}
		if rng.IntN(3) == 0 {
			for i := range c.data {
				c.data[i] = byte(rng.Uint32()) // does not
			}
		}
		pos, err = w.Write(d.ID, off, c.data, now)
	}
	if err != nil {
		t.Fatal(err)
	}
	h.log = append(h.log, c)
	if int(pos) != len(h.log) {
		t.Fatalf("step %d was given position %d", len(h.log), pos)
	}
}

// check compares a view with the model.
func (h *history) check(t *testing.T, s *vault.Stream, tl holdfast.TimelineID, pos holdfast.Position, disks []vault.Disk) *vault.View {
	t.Helper()
	view, err := s.View(t.Context(), tl, pos)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range disks {
		want := h.at(d.ID, d.Size, pos)
		image, err := view.Disk(d.ID)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, d.Size)
		if err := image.ReadAt(t.Context(), got, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("disk %s at position %d differs from the model", d.ID, pos)
		}
		spans, err := image.Map(t.Context(), block.Extent{Length: d.Size})
		if err != nil {
			t.Fatal(err)
		}
		at := int64(0)
		for _, sp := range spans {
			if sp.Offset != at {
				t.Fatalf("map of disk %s at position %d has a gap at %d", d.ID, pos, at)
			}
			at = sp.End()
			if sp.Zero && len(bytes.Trim(want[sp.Offset:sp.End()], "\x00")) > 0 {
				t.Fatalf("map of disk %s at position %d calls data at %d zero", d.ID, pos, sp.Offset)
			}
		}
		if at != d.Size {
			t.Fatalf("map of disk %s ends at %d", d.ID, at)
		}
	}
	return view
}

// checkDiff compares Diff with the model: everything that differs is in it, and
// nothing of it is in a block that is equal.
func (h *history) checkDiff(t *testing.T, a, b *vault.View, aAt, bAt holdfast.Position, disks []vault.Disk) {
	t.Helper()
	for _, d := range disks {
		set, err := a.Diff(t.Context(), b, d.ID)
		if err != nil {
			t.Fatal(err)
		}
		x, y := h.at(d.ID, d.Size, aAt), h.at(d.ID, d.Size, bAt)
		for off := int64(0); off < d.Size; off += 512 {
			if !bytes.Equal(x[off:off+512], y[off:off+512]) && !set.Contains(off) {
				t.Fatalf("diff of disk %s between %d and %d misses %d", d.ID, aAt, bAt, off)
			}
		}
		for e := range set.Extents() {
			lo, hi := e.Offset/4096*4096, min((e.End()+4095)/4096*4096, d.Size)
			if bytes.Equal(x[lo:hi], y[lo:hi]) {
				t.Fatalf("diff of disk %s between %d and %d has %v, which is equal", d.ID, aAt, bAt, e)
			}
		}
	}
}

// TestForkAndEnd closes a timeline against its writer and goes on in a fork.
func TestForkAndEnd(t *testing.T) {
	t.Parallel()
	v, _, _ := newVault(t)
	disks := []vault.Disk{{ID: "vda", Size: 64 << 10}}
	s, err := v.CreateStream(t.Context(), vault.StreamOptions{ID: holdfast.NewStreamID(), Disks: disks, Now: start})
	if err != nil {
		t.Fatal(err)
	}
	w := openWriter(t, s)
	fill := func(w *vault.Writer, b byte) *vault.Sealed {
		if _, err := w.Write("vda", 0, bytes.Repeat([]byte{b}, 4096), start); err != nil {
			t.Fatal(err)
		}
		sealed, err := w.Seal(start)
		if err != nil {
			t.Fatal(err)
		}
		return sealed
	}
	first := fill(w, 1)
	if err := w.Commit(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	late := fill(w, 2)
	last, err := s.End(t.Context(), 1, vault.EndOptions{Generation: 2, Now: start})
	if err != nil || last != first.Last {
		t.Fatalf("End = %v, %v; want %v", last, err, first.Last)
	}
	if err := w.Commit(t.Context(), late); !errors.Is(err, vault.ErrFenced) {
		t.Fatalf("commit behind the end: %v, want ErrFenced", err)
	}
	if again, err := s.End(t.Context(), 1, vault.EndOptions{Generation: 3, Now: start}); err != nil || again != last {
		t.Fatalf("End again = %v, %v; want %v", again, err, last)
	}
	tl, err := s.Fork(t.Context(), vault.ForkOptions{From: 1, At: last, Generation: 2, Now: start})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Writer(t.Context(), vault.WriterOptions{Timeline: 1, Generation: 1}); !errors.Is(err, vault.ErrFenced) {
		t.Fatalf("writer of the closed timeline: %v, want ErrFenced", err)
	}
	w2, err := s.Writer(t.Context(), vault.WriterOptions{Timeline: tl, Generation: 2})
	if err != nil {
		t.Fatal(err)
	}
	if err := w2.Commit(t.Context(), fill(w2, 3)); err != nil {
		t.Fatal(err)
	}
	if err := s.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		tl   holdfast.TimelineID
		pos  holdfast.Position
		want byte
	}{{1, last, 1}, {tl, last, 1}, {tl, last + 1, 3}} {
		view, err := s.View(t.Context(), c.tl, c.pos)
		if err != nil {
			t.Fatal(err)
		}
		image, err := view.Disk("vda")
		if err != nil {
			t.Fatal(err)
		}
		var b [1]byte
		if err := image.ReadAt(t.Context(), b[:], 100); err != nil || b[0] != c.want {
			t.Errorf("timeline %s at %s has %d (%v), want %d", c.tl, c.pos, b[0], err, c.want)
		}
	}
}
