package vault_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// TestDeleteStream deletes one of two streams, and cuts the power before every
// change: the stream is there as a whole or not at all, the other is untouched,
// nothing is damaged, and another call removes the rest.
func TestDeleteStream(t *testing.T) {
	t.Parallel()
	key, err := vault.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	victim, other := holdfast.StreamID{1}, holdfast.StreamID{2}
	disks := []vault.Disk{{ID: "vda", Size: 64 << 10}}
	// life makes both, with histories, and deletes the first.
	life := func(fsys vfs.FS, from *int, count func() int) error {
		store, err := objstore.NewDir(fsys, "/v")
		if err != nil {
			return err
		}
		v, err := vault.Create(t.Context(), store, vault.CreateOptions{Key: key, Now: start})
		if err != nil {
			return err
		}
		for _, id := range []holdfast.StreamID{victim, other} {
			s, err := v.CreateStream(t.Context(), vault.StreamOptions{ID: id, Disks: disks, Now: start})
			if err != nil {
				return err
			}
			branches{nil, {disks: disks}}.write(t, rand.New(rand.NewPCG(1, 18)), s, 1, start)
		}
		*from = count()
		return v.DeleteStream(t.Context(), victim, start, nil)
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
				v, err := vault.Open(t.Context(), store, key, vault.Options{})
				if err != nil {
					t.Fatal(err)
				}
				verify(t, v)
				ids, err := v.Streams(t.Context())
				if err != nil || ids[len(ids)-1] != other {
					t.Fatalf("streams are %v, %v", ids, err)
				}
				if s, err := v.OpenStream(t.Context(), victim); len(ids) == 2 {
					if err != nil || s.Refresh(t.Context()) != nil {
						t.Errorf("the stream is listed, and cannot be read: %v", err)
					}
				} else if !errors.Is(err, vault.ErrNoStream) {
					t.Errorf("the stream is not listed, and opening it says %v", err)
				}
				if err := v.DeleteStream(t.Context(), victim, start, nil); err != nil {
					t.Fatal(err)
				}
				entries, err := store.List(t.Context(), "streams/"+victim.String()+"/", "")
				if err != nil || len(entries) > 0 {
					t.Errorf("there is left %v, %v", entries, err)
				}
				verify(t, v)
			}
		})
	}
}
