package vault_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

func newKey(t *testing.T) vault.Key {
	t.Helper()
	k, err := vault.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestWords writes keys as words and reads them back, and changes words.
func TestWords(t *testing.T) {
	t.Parallel()
	for range 50 {
		k := newKey(t)
		text, err := k.Words()
		if err != nil {
			t.Fatal(err)
		}
		words := strings.Fields(text)
		back, err := vault.ParseKey("  " + strings.ToUpper(strings.Join(words, "\n ")) + "\n")
		if err != nil || back.String() != k.String() || back.Recipient() != k.Recipient() {
			t.Fatalf("%q: %v, want the key again", text, err)
		}
		i, j := rand.IntN(len(words)), rand.IntN(len(words))
		if words[i] == words[j] {
			continue
		}
		words[i], words[j] = words[j], words[i]
		if other, err := vault.ParseKey(strings.Join(words, " ")); err == nil && other.String() == k.String() {
			t.Errorf("words %d and %d changed places, and nobody noticed", i, j)
		}
		words[i] = "holdfast"
		if _, err := vault.ParseKey(strings.Join(words, " ")); err == nil {
			t.Errorf("with a foreign word: %v", err)
		}
	}
}

// TestWordsAreKept holds the words to a key that people may have written down.
func TestWordsAreKept(t *testing.T) {
	t.Parallel()
	const words = "abandon amount liar amount expire adjust cage candy arch gather drum bullet absurd math era live bid rhythm alien crouch range attend journey unaware"
	k, err := vault.ParseKey(words)
	if err != nil {
		t.Fatal(err)
	}
	if got := k.Recipient(); got != "age13aqvttdk3ujkyjh9kg2w5an6dmy5mq5a84a4uxk3hfhnugfc9p0sy5p2wh" {
		t.Errorf("the words are now the key of %s", got)
	}
}

// TestRekey changes both keys of a vault, and cuts the power before every change: the
// old key or the new one opens all of it, and another call completes the work.
func TestRekey(t *testing.T) {
	t.Parallel()
	old, oldRecovery, fresh, recovery := newKey(t), newKey(t), newKey(t), newKey(t)
	disks := []vault.Disk{{ID: "vda", Size: 64 << 10}}
	life := func(fsys vfs.FS, from *int, count func() int) error {
		store, err := objstore.NewDir(fsys, "/v")
		if err != nil {
			return err
		}
		v, err := vault.Create(t.Context(), store, vault.CreateOptions{Key: old, Recovery: []string{oldRecovery.Recipient()}, Now: start})
		if err != nil {
			return err
		}
		for _, id := range []holdfast.StreamID{{1}, {2}} {
			s, err := v.CreateStream(t.Context(), vault.StreamOptions{ID: id, Disks: disks, Now: start})
			if err != nil {
				return err
			}
			branches{nil, {disks: disks}}.write(t, rand.New(rand.NewPCG(1, 18)), s, 1, start)
		}
		*from = count()
		return v.Rekey(t.Context(), fresh, []string{recovery.Recipient()})
	}
	// opens says whether a key opens all there is.
	opens := func(store objstore.Store, k vault.Key) (*vault.Vault, error) {
		v, err := vault.Open(t.Context(), store, k, vault.Options{})
		if err != nil {
			return nil, err
		}
		for _, id := range []holdfast.StreamID{{1}, {2}} {
			if _, err := v.OpenStream(t.Context(), id); err != nil {
				return nil, err
			}
		}
		return v, nil
	}
	newFS := func() *vfs.Mem {
		m := vfs.NewMem()
		if err := m.MkdirAll("/v"); err != nil {
			t.Fatal(err)
		}
		return m
	}
	var faults vfs.Faults
	var from, unused int
	if err := life(vfs.WithFaults(newFS(), &faults), &from, faults.Changes); err != nil {
		t.Fatal(err)
	}
	last := faults.Changes()
	t.Logf("%d changes", last-from)
	for at := from + 1; at <= last+1; at++ {
		t.Run(fmt.Sprint(at-from), func(t *testing.T) {
			mem := newFS()
			var faults vfs.Faults
			if at <= last {
				faults.CrashBefore(at)
			}
			_ = life(vfs.WithFaults(mem, &faults), &unused, faults.Changes)
			for _, left := range []vfs.FS{mem.CrashClone(nil), mem.KillClone(), mem.CrashClone(rand.New(rand.NewPCG(1, uint64(at))))} {
				store, err := objstore.NewDir(left, "/v")
				if err != nil {
					t.Fatal(err)
				}
				// As the command does: the new one if that opens the vault, else the old.
				k := fresh
				if _, err := vault.Open(t.Context(), store, fresh, vault.Options{}); errors.Is(err, vault.ErrWrongKey) {
					k = old
				}
				v, err := opens(store, k)
				if err != nil {
					t.Fatal(err)
				}
				verify(t, v)
				if err := v.Rekey(t.Context(), fresh, []string{recovery.Recipient()}); err != nil {
					t.Fatal(err)
				}
				for _, k := range []vault.Key{fresh, recovery} {
					v, err := opens(store, k)
					if err != nil {
						t.Fatal(err)
					}
					verify(t, v)
				}
				for _, k := range []vault.Key{old, oldRecovery} {
					if _, err := opens(store, k); !errors.Is(err, vault.ErrWrongKey) {
						t.Errorf("a key of before: %v", err)
					}
				}
			}
		})
	}
}
