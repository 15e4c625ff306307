package objstore_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/objstore/objstoretest"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

func openDir(t *testing.T, fsys vfs.FS, root string) objstore.Store {
	t.Helper()
	s, err := objstore.NewDir(fsys, root)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// newMem returns a file system in memory with an empty directory /store.
func newMem(t *testing.T) *vfs.Mem {
	t.Helper()
	m := vfs.NewMem()
	if err := m.MkdirAll("/store"); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestDirConformance(t *testing.T) {
	t.Parallel()
	t.Run("os", func(t *testing.T) {
		t.Parallel()
		objstoretest.Run(t, func(t *testing.T) objstore.Store { return openDir(t, vfs.OS, t.TempDir()) })
	})
	t.Run("mem", func(t *testing.T) {
		t.Parallel()
		objstoretest.Run(t, func(t *testing.T) objstore.Store { return openDir(t, newMem(t), "/store") })
	})
}

func TestDirMustExist(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "store")
	if _, err := objstore.NewDir(vfs.OS, root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("NewDir without a directory: %v, want fs.ErrNotExist", err)
	}
	if err := os.WriteFile(root, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := objstore.NewDir(vfs.OS, root); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("NewDir of a file: %v", err)
	}
}

// TestDirVanishes moves the directory away, as an unmounted file system: nothing
// may be written elsewhere, nothing may look as if it were absent, and all goes
// on when it is back.
func TestDirVanishes(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	root := filepath.Join(t.TempDir(), "store")
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	s := openDir(t, vfs.OS, root)
	if err := s.Put(ctx, "a/b", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(root, root+".away"); err != nil {
		t.Fatal(err)
	}
	_, _, getErr := s.Get(ctx, "a/b")
	_, listErr := s.List(ctx, "a/", "")
	_, swapErr := s.CompareAndSwap(ctx, "c", nil, "")
	for op, err := range map[string]error{
		"get": getErr, "list": listErr, "swap": swapErr, "delete": s.Delete(ctx, "a/b"),
		"put": s.Put(ctx, "a/c", nil), "put if absent": s.PutIfAbsent(ctx, "z/c", nil),
	} {
		if !errors.Is(err, fs.ErrNotExist) || errors.Is(err, objstore.ErrNotFound) {
			t.Errorf("%s without the directory: %v, want fs.ErrNotExist", op, err)
		}
	}
	if _, err := os.Stat(root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory was made anew: %v", err)
	}
	if err := os.Rename(root+".away", root); err != nil {
		t.Fatal(err)
	}
	if err := s.PutIfAbsent(ctx, "z/c", []byte("y")); err != nil {
		t.Errorf("put when the directory is back: %v", err)
	}
	if b, _, err := s.Get(ctx, "a/b"); err != nil || string(b) != "x" {
		t.Errorf("get when the directory is back: %q, %v", b, err)
	}
}

// TestDirErrorsStayVisible fails each kind of operation in turn: the cause must
// be found by errors.Is, no part of the object may be seen, and the same put must
// succeed afterwards.
func TestDirErrorsStayVisible(t *testing.T) {
	t.Parallel()
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EIO, syscall.EROFS} {
		for _, kind := range []vfs.OpKind{vfs.OpCreate, vfs.OpWrite, vfs.OpSync, vfs.OpLink, vfs.OpSyncDir, vfs.OpMkdirAll} {
			t.Run(fmt.Sprintf("%s-%s", kind, errno), func(t *testing.T) {
				t.Parallel()
				var faults vfs.Faults
				s := openDir(t, vfs.WithFaults(newMem(t), &faults), "/store")
				faults.Inject(vfs.Fault{Kind: kind, Err: errno, Partial: true, Count: 1})
				err := s.PutIfAbsent(t.Context(), "a/b", []byte("content"))
				if !errors.Is(err, errno) {
					t.Fatalf("put: %v, want %v", err, errno)
				}
				b, _, err := s.Get(t.Context(), "a/b")
				if err == nil && string(b) != "content" || err != nil && !errors.Is(err, objstore.ErrNotFound) {
					t.Fatalf("after a failed put: %q, %v", b, err)
				}
				there := err == nil
				err = s.PutIfAbsent(t.Context(), "a/b", []byte("content"))
				if there != errors.Is(err, objstore.ErrExists) || !there && err != nil {
					t.Fatalf("put again: %v, was there: %t", err, there)
				}
			})
		}
	}
}

// TestDirFull fills the file system: what was there stays, and what was freed
// can be used.
func TestDirFull(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	m := newMem(t)
	s := openDir(t, m, "/store")
	m.SetLimit(1 << 20)
	var err error
	n := 0
	for ; err == nil; n++ {
		err = s.PutIfAbsent(ctx, fmt.Sprintf("o/%d", n), bytes.Repeat([]byte{1}, 100_000))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("put into a full store: %v, want ENOSPC", err)
	}
	entries, err := s.List(ctx, "", "")
	if err != nil || len(entries) != n-1 {
		t.Fatalf("%d objects (%v), want %d", len(entries), err, n-1)
	}
	if err := s.Delete(ctx, "o/0"); err != nil {
		t.Fatalf("delete in a full store: %v", err)
	}
	if err := s.PutIfAbsent(ctx, fmt.Sprintf("o/%d", n), bytes.Repeat([]byte{1}, 100_000)); err != nil {
		t.Fatalf("put after a delete: %v; a failed put has left something behind", err)
	}
}

// TestDirSweepsLeavings looks for temporary files of crashed writers: old ones go,
// new ones may be in use and stay.
func TestDirSweepsLeavings(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, ".tmp"), 0o700); err != nil {
		t.Fatal(err)
	}
	fresh, stale := filepath.Join(root, ".tmp", "fresh"), filepath.Join(root, ".tmp", "stale")
	for _, name := range []string{fresh, stale} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Now().Add(-25 * time.Hour)
	if err := os.Chtimes(stale, old, old); err != nil {
		t.Fatal(err)
	}
	if err := openDir(t, vfs.OS, root).Put(t.Context(), "a", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(fresh); err != nil {
		t.Errorf("what may be in use was removed: %v", err)
	}
	if _, err := os.Stat(stale); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what a crash had left behind is still there: %v", err)
	}
}

// acknowledged is what a scenario was told.
type acknowledged struct {
	present map[string]string // must be there, with this content
	maybe   map[string]string // was under way: there with this content, or as before
}

// scenario writes in every way there is; it stops at the first error.
func scenario(t *testing.T, fsys vfs.FS) acknowledged {
	ctx := t.Context()
	a := acknowledged{map[string]string{}, map[string]string{}}
	s, err := objstore.NewDir(fsys, "/store")
	if err != nil {
		return a
	}
	do := func(name, content string, f func() error) bool {
		a.maybe[name] = content
		if f() != nil {
			return false
		}
		a.present[name] = content
		delete(a.maybe, name)
		return true
	}
	etag := ""
	for i := range 3 {
		name, content := fmt.Sprintf("a/%d/o", i), strings.Repeat(fmt.Sprint(i), 3000)
		ok := do(name, content, func() error { return s.PutIfAbsent(ctx, name, []byte(content)) }) &&
			do("put", content, func() error { return s.Put(ctx, "put", []byte(content)) }) &&
			do("swap", content, func() (err error) {
				etag, err = s.CompareAndSwap(ctx, "swap", []byte(content), etag)
				return err
			})
		if !ok {
			return a
		}
	}
	return a
}

// TestDirCrashes cuts the power before every change, and looks at what is left:
// what was acknowledged is there, what was under way is there as a whole or as it
// was before, and the store can be written.
func TestDirCrashes(t *testing.T) {
	t.Parallel()
	var count vfs.Faults
	if a := scenario(t, vfs.WithFaults(newMem(t), &count)); len(a.present) != 5 {
		t.Fatalf("without a crash the scenario wrote %v", a.present)
	}
	for at := 1; at <= count.Changes()+1; at++ {
		mem := newMem(t)
		var faults vfs.Faults
		faults.CrashBefore(at)
		a := scenario(t, vfs.WithFaults(mem, &faults))
		for seed := range uint64(6) {
			var rng *rand.Rand
			if seed > 0 {
				rng = rand.New(rand.NewPCG(seed, uint64(at)))
			}
			checkCrashed(t, at, a, openDir(t, mem.CrashClone(rng), "/store"))
		}
	}
}

func checkCrashed(t *testing.T, at int, a acknowledged, s objstore.Store) {
	t.Helper()
	ctx := t.Context()
	names := map[string]bool{}
	for name, want := range a.present {
		names[name] = true
		b, _, err := s.Get(ctx, name)
		if other, ok := a.maybe[name]; err != nil || string(b) != want && !(ok && string(b) == other) {
			t.Errorf("crash before change %d: object %s has %.10q (%v), want %.10q", at, name, b, err, want)
		}
	}
	for name, want := range a.maybe {
		names[name] = true
		b, _, err := s.Get(ctx, name)
		if before, ok := a.present[name]; err == nil && string(b) != want && (!ok || string(b) != before) {
			t.Errorf("crash before change %d: object %s is torn: %.10q", at, name, b)
		}
	}
	entries, err := s.List(ctx, "", "")
	if err != nil {
		t.Errorf("crash before change %d: list: %v", at, err)
	}
	for _, e := range entries {
		if !names[e.Name] {
			t.Errorf("crash before change %d: object %s was never written", at, e.Name)
		}
	}
	if err := s.PutIfAbsent(ctx, "a/9/o", []byte("x")); err != nil {
		t.Errorf("crash before change %d: put afterwards: %v", at, err)
	}
}

// TestAnchor takes a store's file system away, so that an empty directory is in
// its place, and then another store: nothing is written there, and nothing there
// passes for what the store has.
func TestAnchor(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	base := t.TempDir()
	root, away := filepath.Join(base, "vault"), filepath.Join(base, "away")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := objstore.NewDir(vfs.OS, root)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Put(ctx, "vault", []byte("mine")), s.Put(ctx, "a/b", []byte("x"))); err != nil {
		t.Fatal(err)
	}
	s.(objstore.Anchorer).Anchor("vault", func(b []byte) bool { return string(b) == "mine" })
	calls := map[string]func() error{
		"Put":            func() error { return s.Put(ctx, "a/c", []byte("y")) },
		"PutIfAbsent":    func() error { return s.PutIfAbsent(ctx, "a/d", []byte("y")) },
		"CompareAndSwap": func() error { _, err := s.CompareAndSwap(ctx, "a/e", []byte("y"), ""); return err },
		"Get":            func() error { _, _, err := s.Get(ctx, "a/b"); return err },
		"List":           func() error { _, err := s.List(ctx, "a/", ""); return err },
		"List all":       func() error { _, err := s.List(ctx, "", ""); return err },
		"Delete":         func() error { return s.Delete(ctx, "a/b") },
	}
	if err := os.Rename(root, away); err != nil {
		t.Fatal(err)
	}
	for _, other := range []string{"", "another's"} {
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		if other != "" {
			if err := os.WriteFile(filepath.Join(root, "vault"), []byte(other), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		for name, call := range calls {
			for range 3 { // the first failure may change what is remembered
				if err := call(); !errors.Is(err, objstore.ErrGone) {
					t.Errorf("%s where there is %q: %v, want ErrGone", name, other, err)
				}
			}
		}
		found, err := filepath.Glob(filepath.Join(root, "*"))
		if err != nil || len(found) > len(other) {
			t.Errorf("there is %v now, %v", found, err)
		}
		if err := os.RemoveAll(root); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(away, root); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"Put", "PutIfAbsent", "CompareAndSwap", "Get", "List", "Delete"} {
		if err := calls[name](); err != nil {
			t.Errorf("%s when it is back: %v", name, err)
		}
	}
}
