package vault_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// goldenStream is the stream of the golden vault.
const goldenStream = "streams/00112233445566778899aabbccddeeff/"

// goldenObjects returns the names and content of the golden vault's objects.
func goldenObjects(t testing.TB) (names []string, content map[string][]byte) {
	t.Helper()
	content = map[string][]byte{}
	root := filepath.Join("testdata", "v1")
	err := filepath.WalkDir(root, func(name string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || e.Name()[0] == '.' {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		names = append(names, filepath.ToSlash(rel))
		content[names[len(names)-1]], err = os.ReadFile(name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names, content
}

// memStore returns a store in memory with objects.
func memStore(t testing.TB, objects map[string][]byte) objstore.Store {
	t.Helper()
	fsys := vfs.NewMem()
	if err := fsys.MkdirAll("v"); err != nil {
		t.Fatal(err)
	}
	store, err := objstore.NewDir(fsys, "v")
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range objects {
		if err := store.Put(t.Context(), name, b); err != nil {
			t.Fatal(err)
		}
	}
	return store
}

// isDamage says that an error tells of damage, in one of the ways a caller can
// decide on.
func isDamage(err error) bool {
	return errors.Is(err, vault.ErrCorrupt) || errors.Is(err, vault.ErrNewerFormat)
}

// FuzzDocument replaces each document of the golden vault, with a checksum that
// is right and without: nothing panics, and what is wrong is damage.
func FuzzDocument(f *testing.F) {
	names, golden := goldenObjects(f)
	var documents []string
	for _, name := range names {
		if body, err := vault.Body(name, golden[name]); err == nil {
			f.Add(len(documents), body, true)
			f.Add(len(documents), golden[name], false)
			documents = append(documents, name)
		}
	}
	if len(documents) != 6 {
		f.Fatalf("documents %v, want vault, lease, stream, canary and two timelines", documents)
	}
	key := mustKey(f, goldenKey)
	good, err := vault.Open(f.Context(), memStore(f, golden), key, vault.Options{})
	if err != nil {
		f.Fatal(err)
	}
	id, err := holdfast.ParseStreamID("00112233445566778899aabbccddeeff")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, which int, b []byte, authentic bool) {
		name := documents[uint(which)%uint(len(documents))]
		if authentic {
			b = good.Document(name, b)
		}
		same := bytes.Equal(b, golden[name])
		objects := map[string][]byte{}
		for n, content := range golden {
			objects[n] = content
		}
		objects[name] = b
		v, err := vault.Open(t.Context(), memStore(t, objects), key, vault.Options{})
		if err != nil {
			if name != "vault" || same || !isDamage(err) && !errors.Is(err, vault.ErrWrongKey) {
				t.Fatalf("open with another %s: %v", name, err)
			}
			return
		}
		rep, err := v.Verify(t.Context(), vault.VerifyOptions{})
		if err != nil {
			t.Fatalf("verify with another %s: %v", name, err)
		}
		if !same && !authentic && len(rep.Damaged) == 0 || same && len(rep.Damaged) > 0 {
			t.Fatalf("another %s (%v): verify says %v", name, !same, rep.Damaged)
		}
		s, err := v.OpenStream(t.Context(), id)
		if err != nil {
			if !isDamage(err) && !errors.Is(err, vault.ErrWrongKey) {
				t.Fatalf("open stream with another %s: %v", name, err)
			}
			return
		}
		if err := s.Refresh(t.Context()); err != nil && !isDamage(err) {
			t.Fatalf("refresh with another %s: %v", name, err)
		}
		for _, tl := range s.Timelines() {
			s.Points(tl.ID)
			s.Ranges(tl.ID)
			for pos := holdfast.Position(0); pos < 7; pos++ {
				if _, err := s.View(t.Context(), tl.ID, pos); err != nil && !isDamage(err) && !errors.Is(err, vault.ErrNoPosition) {
					t.Fatalf("view with another %s: %v", name, err)
				}
			}
		}
	})
}
