package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// damage changes a bit of a random object of a vault, or cuts it, as often as it is
// told. Each time verify must name that object, a random position must be read as it
// was or not at all, and the object must be healed from a copy.
func damage(ctx context.Context, o options, trials int) error {
	dir, err := os.MkdirTemp(o.dir, "damage-")
	if err != nil {
		return err
	}
	if err := grow(ctx, dir); err != nil {
		return err
	}
	copied, err := objstore.NewDir(vfs.OS, filepath.Join(dir, "copy"))
	if err != nil {
		return err
	}
	v, err := open(ctx, dir, "vault")
	if err != nil {
		return err
	}
	entries, err := copied.List(ctx, "", "")
	if err != nil {
		return err
	}
	byKind := map[string][]string{}
	for _, e := range entries {
		byKind[kindOf(e.Name)] = append(byKind[kindOf(e.Name)], e.Name)
	}
	all := slices.Sorted(maps.Keys(byKind))
	rng := rand.New(rand.NewPCG(o.seed, 1))
	began, kinds := time.Now(), map[string]int{}
	for n := range trials {
		names := byKind[all[n%len(all)]]
		name := names[rng.IntN(len(names))]
		what, err := v.damageOne(ctx, filepath.Join(dir, "vault", name), name, copied, rng)
		if err != nil {
			return fmt.Errorf("%s: %s, %s: %w", dir, name, what, err)
		}
		kinds[kindOf(name)]++
		if (n+1)%1000 == 0 || n+1 == trials {
			took := time.Since(began)
			fmt.Fprintf(o.out, "%d of %d objects damaged, all noticed and healed: %v; %s, %s left\n", n+1, trials, kinds, took.Round(time.Second),
				time.Duration(float64(took)/float64(n+1)*float64(trials-n-1)).Round(time.Second))
		}
	}
	return os.RemoveAll(dir)
}

// kindOf is the kind of an object by its name.
func kindOf(name string) string {
	base := filepath.Base(name)
	switch dir := filepath.Base(filepath.Dir(name)); {
	case strings.HasSuffix(base, ".seg"):
		return "segment"
	case dir == "timelines" || dir == "kept":
		return dir
	}
	return base
}

// grow makes a vault with all kinds of objects, and its copy.
func grow(ctx context.Context, dir string) error {
	if err := create(ctx, dir); err != nil {
		return err
	}
	o, err := open(ctx, dir, "vault")
	if err != nil {
		return err
	}
	w, err := o.s.Writer(ctx, vault.WriterOptions{Timeline: 1, Generation: 1})
	if err != nil {
		return err
	}
	for range 40 {
		if err := writeSegment(ctx, w, 12); err != nil {
			return err
		}
	}
	if err := o.s.Refresh(ctx); err != nil {
		return err
	}
	upto := o.tail() - window
	if _, err := o.s.Prune(ctx, vault.PruneOptions{Timeline: 1, Upto: upto, Keep: kept(upto), Waste: 0.05, Target: 256 << 10}); err != nil {
		return err
	}
	if err := o.s.PutCanary(ctx, vault.Canary{Timeline: 1, Seq: w.Tail().Seq, Position: w.Tail().Position, Time: time.Now()}); err != nil {
		return err
	}
	to, err := objstore.NewDir(vfs.OS, filepath.Join(dir, "copy"))
	if err == nil {
		_, err = o.v.NewCopier(to, false).Pass(ctx, nil)
	}
	return err
}

// damageOne damages an object and heals it. It says what it did to it.
func (o opened) damageOne(ctx context.Context, file, name string, copied objstore.Store, rng *rand.Rand) (what string, err error) {
	whole, err := os.ReadFile(file)
	if err != nil {
		return "read", err
	}
	bad := bytes.Clone(whole)
	if at := rng.IntN(len(bad)); rng.IntN(3) == 0 {
		bad, what = bad[:at], fmt.Sprintf("cut to %d bytes", at)
	} else {
		bit := byte(1) << rng.IntN(8)
		bad[at] ^= bit
		what = fmt.Sprintf("byte %d changed by %#x", at, bit)
	}
	if err := os.WriteFile(file, bad, 0o600); err != nil {
		return what, err
	}
	rep, err := o.v.Verify(ctx, vault.VerifyOptions{})
	if err != nil {
		return what, err
	}
	if !slices.ContainsFunc(rep.Damaged, func(d vault.Damage) bool { return d.Object == name }) {
		return what, fmt.Errorf("verify does not name it: %+v", rep.Damaged)
	}
	if err := o.readsRight(ctx, rng); err != nil {
		return what, err
	}
	rep, healed, err := o.v.VerifyAndHeal(ctx, copied, vault.VerifyOptions{})
	if err != nil || len(rep.Damaged) > 0 || !slices.Equal(healed, []string{name}) {
		return what, errors.Join(err, fmt.Errorf("healed %q, left %+v", healed, rep.Damaged))
	}
	got, err := os.ReadFile(file)
	if err == nil && !bytes.Equal(got, whole) {
		err = errors.New("it was healed to something else")
	}
	return what, err
}

// readsRight opens the stream anew and compares a random position, if it can be read.
func (o opened) readsRight(ctx context.Context, rng *rand.Rand) error {
	s, err := o.v.OpenStream(ctx, o.s.ID())
	if err == nil {
		err = s.Refresh(ctx)
	}
	said := errors.Is(err, vault.ErrCorrupt) || errors.Is(err, vault.ErrNewerFormat) // the version is what is damaged
	if err != nil && !said && !errors.Is(err, vault.ErrNoStream) {
		return err
	}
	if s == nil {
		return nil
	}
	tail := o.tail()
	positions := append(kept(tail-window), tail, tail-1, tail-window/2)
	fresh := opened{v: o.v, s: s}
	err = compare(ctx, fresh, positions[rng.IntN(len(positions))])
	if err != nil && !errors.Is(err, errDiffers) {
		return nil // it says that it cannot be read
	}
	return err
}
