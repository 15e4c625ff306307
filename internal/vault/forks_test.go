package vault_test

import (
	"math/rand/v2"
	"testing"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// TestRandomForks grows a tree of timelines at random, forks also before the
// parent's own beginning, and compares views and diffs of any two moments, in any
// order, with plain histories; now and then with a stream that was just opened.
func TestRandomForks(t *testing.T) {
	t.Parallel()
	for seed := range uint64(5) {
		rng := rand.New(rand.NewPCG(seed, 11))
		v, _, _ := newVault(t)
		disks := []vault.Disk{{ID: "vda", Size: 96 << 10}, {ID: "vdb", Size: 16 << 10}}
		s, err := v.CreateStream(t.Context(), vault.StreamOptions{ID: holdfast.NewStreamID(), Disks: disks, Now: start})
		if err == nil {
			err = s.Refresh(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		// logs has what is committed of each timeline; [0] is not one.
		logs := []*history{nil, newHistory(disks)}
		type moment struct {
			view *vault.View
			h    *history
			pos  holdfast.Position
		}
		var prev *moment
		for step := range 120 {
			tl := 1 + rng.IntN(len(logs)-1)
			h := logs[tl]
			switch rng.IntN(6) {
			case 0:
				pos := rng.IntN(len(h.log) + 1)
				id, err := s.Fork(t.Context(), vault.ForkOptions{From: holdfast.TimelineID(tl), At: holdfast.Position(pos), Generation: 1, Now: start})
				if err != nil || int(id) != len(logs) {
					t.Fatalf("fork of timeline %d at %d = %d, %v", tl, pos, id, err)
				}
				logs = append(logs, &history{disks: h.disks, log: append([]change{}, h.log[:pos]...)})
			case 1, 2:
				w, err := s.Writer(t.Context(), vault.WriterOptions{Timeline: holdfast.TimelineID(tl), Generation: 1})
				if err != nil {
					t.Fatal(err)
				}
				for range 1 + rng.IntN(12) {
					h.step(t, rng, w, disks, start.Add(time.Duration(step)*time.Second))
				}
				seal(t, w)
				if err := s.Refresh(t.Context()); err != nil {
					t.Fatal(err)
				}
			default:
				if rng.IntN(8) == 0 {
					if s, err = v.OpenStream(t.Context(), s.ID()); err != nil {
						t.Fatal(err)
					}
					if err = s.Refresh(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				pos := holdfast.Position(rng.IntN(len(h.log) + 1))
				now := &moment{h.check(t, s, holdfast.TimelineID(tl), pos, disks), h, pos}
				if prev != nil {
					checkMoments(t, prev.view, now.view, disks, func(disk string, size int64) ([]byte, []byte) {
						return prev.h.at(disk, size, prev.pos), now.h.at(disk, size, now.pos)
					})
				}
				prev = now
			}
			if t.Failed() {
				t.Fatalf("seed %d, step %d", seed, step)
			}
		}
	}
}

// checkMoments compares the diff of two views with what they should be.
func checkMoments(t *testing.T, a, b *vault.View, disks []vault.Disk, want func(disk string, size int64) ([]byte, []byte)) {
	t.Helper()
	for _, d := range disks {
		set, err := a.Diff(t.Context(), b, d.ID)
		if err != nil {
			t.Fatal(err)
		}
		x, y := want(d.ID, d.Size)
		for off := int64(0); off < d.Size; off += 512 {
			if string(x[off:off+512]) != string(y[off:off+512]) && !set.Contains(off) {
				t.Errorf("the diff of disk %s misses %d", d.ID, off)
			}
		}
		for e := range set.Extents() {
			for off := e.Offset / 4096 * 4096; off < e.End(); off += 4096 {
				end := min(off+4096, d.Size)
				if string(x[off:end]) == string(y[off:end]) {
					t.Errorf("the diff of disk %s has the block at %d, which is equal", d.ID, off)
				}
			}
		}
	}
}
