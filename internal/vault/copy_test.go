package vault_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// brittle is a store whose writes fail at random.
type brittle struct {
	objstore.Store
	rng *rand.Rand
	one int // in so many fails; 0: none
}

var errBrittle = errors.New("the store failed, by a test")

func (b *brittle) fails() error {
	if b.one > 0 && b.rng.IntN(b.one) == 0 {
		return errBrittle
	}
	return nil
}

func (b *brittle) Put(ctx context.Context, name string, data []byte) error {
	return errors.Join(b.fails(), b.Store.Put(ctx, name, data))
}

func (b *brittle) PutIfAbsent(ctx context.Context, name string, data []byte) error {
	return errors.Join(b.fails(), b.Store.PutIfAbsent(ctx, name, data))
}

func (b *brittle) Delete(ctx context.Context, name string) error {
	if err := b.fails(); err != nil {
		return err
	}
	return b.Store.Delete(ctx, name)
}

func newDir(t *testing.T) (objstore.Store, string) {
	t.Helper()
	dir := t.TempDir()
	store, err := objstore.NewDir(vfs.OS, dir)
	if err != nil {
		t.Fatal(err)
	}
	return store, dir
}

// TestCopy writes, forks and prunes at random, and copies in between to a store whose
// writes fail at times. Whatever a pass came to, the copy is a vault without damage;
// after a whole one it has every moment that the first has.
func TestCopy(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 31))
			v, _, key := newVault(t)
			disks := []vault.Disk{{ID: "vda", Size: 40 << 10}}
			s, err := v.CreateStream(t.Context(), vault.StreamOptions{ID: holdfast.NewStreamID(), Disks: disks, Now: start})
			if err != nil {
				t.Fatal(err)
			}
			model := branches{nil, {disks: disks}}
			plain, _ := newDir(t)
			store := &brittle{Store: plain, rng: rng}
			c := v.NewCopier(store, false)
			removed, failed := 0, 0
			for step := range 60 {
				tl := 1 + rng.IntN(len(model)-1)
				model.write(t, rng, s, tl, start.Add(time.Duration(step)*time.Second))
				switch rng.IntN(8) {
				case 0:
					at := model.tail(tl)
					if _, err := s.Fork(t.Context(), vault.ForkOptions{From: holdfast.TimelineID(tl), At: at, Generation: 1, Now: start.Add(time.Duration(step) * time.Second)}); err != nil {
						t.Fatal(err)
					}
					model = append(model, &branch{parent: tl, forkAt: at, disks: disks})
				case 1, 2:
					if _, err := s.Prune(t.Context(), vault.PruneOptions{Timeline: holdfast.TimelineID(tl), Upto: model.tail(tl) - 2, Waste: 0.01}); err != nil {
						t.Fatal(err)
					}
				case 3, 4:
					if store.one = 0; rng.IntN(3) == 0 {
						store.one = 4
					}
					if rng.IntN(4) == 0 {
						c = v.NewCopier(store, false) // another server's
					}
					rep, err := c.Pass(t.Context(), nil)
					if err != nil && !errors.Is(err, errBrittle) || len(rep.Damaged) > 0 {
						t.Fatalf("%+v, %v", rep, err)
					}
					if removed += rep.Removed; err != nil {
						failed++
					}
					if _, _, err := plain.Get(t.Context(), "vault"); err == nil {
						o, err := vault.Open(t.Context(), plain, key, vault.Options{})
						if err != nil {
							t.Fatal(err)
						}
						verify(t, o)
					}
				}
			}
			store.one = 0
			if _, err := c.Pass(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			again, err := v.NewCopier(store, false).Pass(t.Context(), nil)
			if err != nil || again.Objects > 0 || again.Removed > 0 {
				t.Errorf("a pass over a copy that is up to date: %+v, %v", again, err)
			}
			o, err := vault.Open(t.Context(), plain, key, vault.Options{})
			if err != nil {
				t.Fatal(err)
			}
			verify(t, o)
			sameMoments(t, s, o, model)
			t.Logf("%d objects removed, %d passes failed", removed, failed)
		})
	}
}

// hooked is a store where something happens right after a listing of what ends so.
type hooked struct {
	objstore.Store
	of    string
	after func()
}

func (h *hooked) List(ctx context.Context, prefix, after string) ([]objstore.Entry, error) {
	entries, err := h.Store.List(ctx, prefix, after)
	if f := h.after; f != nil && strings.HasSuffix(prefix, h.of) {
		h.after = nil
		f()
	}
	return entries, err
}

// TestCopyWhilePruned has segments put together right after they were listed, to be
// copied, verified or loaded: the copy has no hole, and nobody sees damage.
func TestCopyWhilePruned(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 33))
	v, store, key := newVault(t)
	disks := []vault.Disk{{ID: "vda", Size: 40 << 10}}
	s, err := v.CreateStream(t.Context(), vault.StreamOptions{ID: holdfast.NewStreamID(), Disks: disks, Now: start})
	if err != nil {
		t.Fatal(err)
	}
	model := branches{nil, {disks: disks}}
	h := &hooked{Store: store}
	seen, err := vault.Open(t.Context(), h, key, vault.Options{})
	if err != nil {
		t.Fatal(err)
	}
	reader, err := seen.OpenStream(t.Context(), s.ID())
	if err != nil {
		t.Fatal(err)
	}
	copied, _ := newDir(t)
	c := seen.NewCopier(copied, false)
	prune := func() {
		upto := model.tail(1) - holdfast.Position(1+rng.IntN(6)) // what was listed last stays
		for range 8 {
			model.write(t, rng, s, 1, start)
		}
		if _, err := s.Prune(t.Context(), vault.PruneOptions{Timeline: 1, Upto: upto, Waste: 0.01, Target: 1 << 20}); err != nil {
			t.Fatal(err)
		}
	}
	for round := range 18 {
		for range 5 {
			model.write(t, rng, s, 1, start)
		}
		h.after, h.of = prune, "/00000001/"
		switch round % 3 {
		case 0:
			h.of = ""
			if rep, err := c.Pass(t.Context(), nil); err != nil || len(rep.Damaged) > 0 {
				t.Fatalf("round %d: %+v, %v", round, rep, err)
			}
			o, err := vault.Open(t.Context(), copied, key, vault.Options{})
			if err != nil {
				t.Fatal(err)
			}
			verify(t, o)
		case 1:
			verify(t, seen)
		default:
			if err := reader.Refresh(t.Context()); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
	}
	h.after = nil
	if _, err := c.Pass(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	o, err := vault.Open(t.Context(), copied, key, vault.Options{})
	if err != nil {
		t.Fatal(err)
	}
	sameMoments(t, s, o, model)
}

// sameMoments compares all that two vaults have of a stream.
func sameMoments(t *testing.T, s *vault.Stream, v *vault.Vault, model branches) {
	t.Helper()
	o, err := v.OpenStream(t.Context(), s.ID())
	if err == nil {
		err = errors.Join(o.Refresh(t.Context()), s.Refresh(t.Context()))
	}
	if err != nil {
		t.Fatal(err)
	}
	for tl := 1; tl < len(model); tl++ {
		for pos := range model.tail(tl) + 1 {
			_, one := s.View(t.Context(), holdfast.TimelineID(tl), pos)
			if _, two := o.View(t.Context(), holdfast.TimelineID(tl), pos); errors.Is(one, vault.ErrPruned) != errors.Is(two, vault.ErrPruned) {
				t.Fatalf("timeline %d position %d: %v, and in the copy %v", tl, pos, one, two)
			}
			if one == nil {
				model.check(t, o, tl, pos)
			}
		}
	}
}

// TestCopyRefuses has stores that are no copies of this vault.
func TestCopyRefuses(t *testing.T) {
	t.Parallel()
	v, _, _ := newVault(t)
	_, other, _ := newVault(t)
	if _, err := v.NewCopier(other, false).Pass(t.Context(), nil); !errors.Is(err, vault.ErrExists) {
		t.Errorf("over another vault: %v", err)
	}
	strange, dir := newDir(t)
	if err := os.WriteFile(filepath.Join(dir, "photo"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := v.NewCopier(strange, false).Pass(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("over something else: %v", err)
	}
	used, _ := newDir(t)
	if _, err := v.NewCopier(used, false).Pass(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := used.Put(t.Context(), "lease", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := v.NewCopier(used, false).Pass(t.Context(), nil); !errors.Is(err, vault.ErrCopyInUse) {
		t.Errorf("over a copy that became a vault: %v", err)
	}
}

// TestHeal damages random objects of a vault that has a copy: damage is not copied,
// and is healed from there until verify finds nothing.
func TestHeal(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 32))
			store, dir := newDir(t)
			key := newKey(t)
			v, err := vault.Create(t.Context(), store, vault.CreateOptions{Key: key, Now: start})
			if err != nil {
				t.Fatal(err)
			}
			disks := []vault.Disk{{ID: "vda", Size: 40 << 10}}
			s, err := v.CreateStream(t.Context(), vault.StreamOptions{ID: holdfast.NewStreamID(), Disks: disks, Now: start})
			if err != nil {
				t.Fatal(err)
			}
			model := branches{nil, {disks: disks}}
			for range 8 {
				model.write(t, rng, s, 1, start)
			}
			copied, _ := newDir(t)
			c := v.NewCopier(copied, false)
			if _, err := c.Pass(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			damageSome(t, rng, dir)
			rep, err := v.Verify(t.Context(), vault.VerifyOptions{})
			if err != nil || len(rep.Damaged) == 0 {
				t.Fatalf("verify finds %+v, %v", rep, err)
			}
			if _, err := c.Pass(t.Context(), nil); err != nil && !errors.Is(err, vault.ErrCorrupt) {
				t.Fatal(err)
			}
			rep, healed, err := v.VerifyAndHeal(t.Context(), copied, vault.VerifyOptions{})
			if err != nil || len(rep.Damaged) > 0 || len(healed) == 0 {
				t.Fatalf("healed %q, left %+v, %v", healed, rep.Damaged, err)
			}
			verify(t, v)
			if s, err = v.OpenStream(t.Context(), s.ID()); err == nil {
				err = s.Refresh(t.Context())
			}
			if err != nil {
				t.Fatal(err)
			}
			for pos := range model.tail(1) + 1 {
				model.check(t, s, 1, pos)
			}
		})
	}
}

// damageSome flips bits of, cuts or removes one to three segments.
func damageSome(t *testing.T, rng *rand.Rand, dir string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "streams", "*", "00000001", "*.seg"))
	if err != nil || len(names) < 8 {
		t.Fatal(names, err)
	}
	for range 1 + rng.IntN(3) {
		name := names[rng.IntN(len(names)-1)]
		b, err := os.ReadFile(name)
		if err != nil {
			continue // removed just now
		}
		switch rng.IntN(3) {
		case 0:
			b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
			err = os.WriteFile(name, b, 0o600)
		case 1:
			err = os.WriteFile(name, b[:rng.IntN(len(b))], 0o600)
		default:
			err = os.Remove(name)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
