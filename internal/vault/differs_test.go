package vault_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// TestDiffers changes a copy of a view at random and looks whether exactly the
// changed blocks are found; copying those makes the two equal.
func TestDiffers(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		v, _, _ := newVault(t)
		disks := []vault.Disk{{ID: "a", Size: 3<<20 + 512*9}, {ID: "b", Size: 512}}
		s, err := v.CreateStream(t.Context(), vault.StreamOptions{ID: holdfast.NewStreamID(), Disks: disks, Now: start})
		if err != nil {
			t.Fatal(err)
		}
		h := newHistory(disks)
		w := openWriter(t, s)
		for range 60 {
			h.step(t, rng, w, disks, start)
		}
		seal(t, w)
		if err := s.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		view, err := s.View(t.Context(), 1, w.Next()-1)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range disks {
			differs(t, rng, view, d)
		}
		verify(t, v)
	}
}

func differs(t *testing.T, rng *rand.Rand, view *vault.View, d vault.Disk) {
	t.Helper()
	img, err := view.Disk(d.ID)
	if err != nil {
		t.Fatal(err)
	}
	model := make([]byte, d.Size)
	if err := img.ReadAt(t.Context(), model, 0); err != nil {
		t.Fatal(err)
	}
	replica, err := block.NewMemDisk(d.Size)
	if err != nil {
		t.Fatal(err)
	}
	if err := replica.WriteAt(t.Context(), model, 0); err != nil {
		t.Fatal(err)
	}
	changed := bytes.Clone(model)
	for range rng.IntN(30) {
		at := rng.Int64N(d.Size/512) * 512
		p := make([]byte, 512) // zeroes, or else
		if rng.IntN(2) == 0 {
			p[rng.IntN(512)] = byte(rng.Uint32())
		}
		copy(changed[at:], p)
		if err := replica.WriteAt(t.Context(), p, at); err != nil {
			t.Fatal(err)
		}
	}
	want := &block.Set{}
	for at := int64(0); at < d.Size; at += 4096 {
		n := min(4096, d.Size-at)
		if !bytes.Equal(model[at:at+n], changed[at:at+n]) {
			want.Add(block.Extent{Offset: at, Length: n})
		}
	}
	var done, total int64
	got, err := view.Differs(t.Context(), d.ID, replica, func(d, t int64) { done, total = d, t })
	if err != nil {
		t.Fatal(err)
	}
	if done != d.Size || total != d.Size {
		t.Errorf("progress ended at %d of %d", done, total)
	}
	wrong := got.Clone()
	wrong.Subtract(want)
	if got.Bytes() != want.Bytes() || wrong.Bytes() != 0 {
		t.Errorf("%d bytes differ, of them %d wrongly; want %d", got.Bytes(), wrong.Bytes(), want.Bytes())
	}
	if _, err := block.Copy(t.Context(), replica, img, block.CopyOptions{Extents: got}); err != nil {
		t.Fatal(err)
	}
	if left, err := view.Differs(t.Context(), d.ID, replica, nil); err != nil || left.Bytes() != 0 {
		t.Errorf("after copying what differs, %d bytes differ: %v", left.Bytes(), err)
	}
	larger, err := block.NewMemDisk(d.Size + 512)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := view.Differs(t.Context(), d.ID, larger, nil); err == nil {
		t.Error("a copy of another size was compared")
	}
}

// TestNoTimeline asks for what cannot be: that is an error, never a panic.
func TestNoTimeline(t *testing.T) {
	t.Parallel()
	v, _, _ := newVault(t)
	s, err := v.CreateStream(t.Context(), vault.StreamOptions{ID: holdfast.NewStreamID(), Disks: []vault.Disk{{ID: "a", Size: 512}}, Now: start})
	if err != nil {
		t.Fatal(err)
	}
	for _, tl := range []holdfast.TimelineID{0, 2, 1 << 31} {
		if _, err := s.View(t.Context(), tl, 0); !errors.Is(err, vault.ErrNoPosition) {
			t.Errorf("view of timeline %d: %v", tl, err)
		}
		if _, err := s.Writer(t.Context(), vault.WriterOptions{Timeline: tl, Generation: 9}); err == nil {
			t.Errorf("a writer of timeline %d", tl)
		}
		if n := len(s.Points(tl)) + len(s.Ranges(tl)); n != 0 {
			t.Errorf("timeline %d has %d points and ranges", tl, n)
		}
	}
	verify(t, v)
}
