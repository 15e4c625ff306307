package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/store"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// flip changes a bit of the first segment of the vault in a directory.
func flip(t *testing.T, dir string) {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "streams", "*", "*", "*.seg"))
	if err != nil || len(all) == 0 {
		t.Fatal(all, err)
	}
	b, err := os.ReadFile(all[0])
	if err == nil {
		b[len(b)/2] ^= 1
		err = os.WriteFile(all[0], b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestCopyAndHeal copies a vault with the command, damages each of the two, and heals
// it from the other: a segment, a descriptor, and a key that is not theirs.
func TestCopyAndHeal(t *testing.T) {
	t.Parallel()
	o, _, _, _ := lostServer(t)
	to := location{at: filepath.Join(t.TempDir(), "deep", "copy")}
	var out bytes.Buffer
	one := other{offline: o, at: to}
	if err := one.copy(t.Context(), &out, io.Discard); err != nil || !strings.Contains(out.String(), "objects copied, 0 removed") {
		t.Fatalf("copy: %v\n%s", err, &out)
	}
	twin := other{offline: offline{vault: to, key: o.key}, at: o.vault}
	heal := func(which other, want string, wantErr string) {
		t.Helper()
		out.Reset()
		err := which.heal(t.Context(), &out, io.Discard)
		if !strings.Contains(out.String(), want) || (err == nil) != (wantErr == "") || err != nil && !strings.Contains(err.Error(), wantErr) {
			t.Errorf("heal: %v, want %q\n%s want %q", err, wantErr, &out, want)
		}
	}
	heal(one, "0 objects healed, 0 damaged", "")
	flip(t, o.vault.at)
	var said *holdfast.Error
	if err := one.copy(t.Context(), &out, io.Discard); err != nil && (!errors.As(err, &said) || said.Kind != holdfast.KindCorrupt) {
		t.Errorf("copy of a damaged vault: %v", err)
	}
	heal(one, "1 objects healed, 0 damaged", "")
	flip(t, to.at)
	heal(twin, "1 objects healed, 0 damaged", "")
	for _, damage := range []func(string) error{os.Remove, func(name string) error { return os.WriteFile(name, []byte("x"), 0o600) }} {
		if err := damage(filepath.Join(o.vault.at, "vault")); err != nil {
			t.Fatal(err)
		}
		heal(one, "healed vault\n", "")
	}
	flip(t, o.vault.at)
	flip(t, to.at)
	heal(one, "0 objects healed, 1 damaged", "not whole in the copy either")

	empty := other{offline: offline{vault: location{at: t.TempDir()}, key: o.key}, at: to}
	heal(empty, "", "vault")
	if left, err := os.ReadDir(empty.vault.at); err != nil || len(left) > 0 {
		t.Errorf("a directory that had no vault has %v, %v", left, err)
	}
	strange, _, _, _ := lostServer(t)
	if err := (&other{offline: o, at: strange.vault}).copy(t.Context(), &out, io.Discard); err == nil || holdfast.HintOf(err) == "" {
		t.Errorf("copy over another vault: %v", err)
	}
	heal(other{offline: o, at: strange.vault}, "0 objects healed, 1 damaged", "not whole")
}

// TestServerKeepsCopy has a copy that a server keeps: it follows the vault, its
// directory goes away and comes back, and damage is seen and healed.
func TestServerKeepsCopy(t *testing.T) {
	t.Parallel()
	o, _, _, _ := lostServer(t)
	v, err := o.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	dir := filepath.Join(t.TempDir(), "copy")
	p := &parts{vault: v, db: db, log: slog.New(slog.DiscardHandler)}
	opts := serverOptions{vault: o.vault, copy: location{at: dir}, copyEvery: 5 * time.Millisecond}
	start := func() (*vaultCopy, func()) {
		t.Helper()
		c, err := newVaultCopy(t.Context(), opts, p)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		return c, func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	until := func(c *vaultCopy, what string, ok func(api.VaultCopy) bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !ok(c.State()); time.Sleep(2 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("never %s: %+v", what, c.State())
			}
		}
	}
	whole := func(s api.VaultCopy) bool { return s.Problem == "" && !s.AsOf.IsZero() && s.Objects > 2 }
	failing := func(s api.VaultCopy) bool { return s.Problem != "" }

	c, stop := start()
	until(c, "whole", whole)
	away := dir + "-away"
	if err := os.Rename(dir, away); err != nil {
		t.Fatal(err)
	}
	until(c, "failing without its directory", failing)
	if err := os.Mkdir(dir, 0o700); err != nil { // what it was mounted on
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	stop()
	c, stop = start() // it does not begin anew either
	until(c, "failing with an empty directory", failing)
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Fatalf("an empty directory has %v, %v", left, err)
	}
	if err := errors.Join(os.Remove(dir), os.Rename(away, dir)); err != nil {
		t.Fatal(err)
	}
	until(c, "whole again", whole)
	flip(t, o.vault.at)
	rep, healed, err := c.Verify(t.Context(), vault.VerifyOptions{})
	if err != nil || len(rep.Damaged) > 0 || len(healed) != 1 {
		t.Errorf("healed %q, left %+v, %v", healed, rep, err)
	}
	stop()

	opts.copy.at = "" // without one, it is forgotten that there was one
	if c, err := newVaultCopy(t.Context(), opts, p); err != nil || c != nil {
		t.Errorf("without a copy: %v, %v", c, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	opts.copy.at = dir
	c, stop = start()
	until(c, "whole anew", whole)
	stop()
	opts.copy = opts.vault
	if _, err := newVaultCopy(t.Context(), opts, p); err == nil || !strings.Contains(err.Error(), "where the vault itself is") {
		t.Errorf("over the vault itself: %v", err)
	}
	if _, err := objstore.Location(dir).Absolute(); err != nil {
		t.Error(err)
	}
}
