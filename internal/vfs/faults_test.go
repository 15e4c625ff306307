package vfs_test

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/internal/vfs"
)

func TestFaults(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		faults []vfs.Fault
		want   string // which of the operations below fail
	}{
		{"none", nil, ""},
		{"first of a kind", []vfs.Fault{{Kind: vfs.OpSync, Err: syscall.EIO}}, "sync a1"},
		{"third of a kind", []vfs.Fault{{Kind: vfs.OpSync, Nth: 3, Err: syscall.EIO}}, "sync b1"},
		{"second and third", []vfs.Fault{{Kind: vfs.OpSync, Nth: 2, Count: 2, Err: syscall.EIO}}, "sync a2, sync b1"},
		{"all from the second", []vfs.Fault{{Kind: vfs.OpSync, Nth: 2, Count: -1, Err: syscall.EIO}}, "sync a2, sync b1, sync b2"},
		{"by last part", []vfs.Fault{{Kind: vfs.OpWrite, Path: "b*", Count: -1, Err: syscall.EIO}}, "write b1, write b2"},
		{"by whole name", []vfs.Fault{{Path: "/d/?2", Count: -1, Err: syscall.EIO}}, "write a2, sync a2, write b2, sync b2, rename a2"},
		{"by new name", []vfs.Fault{{Kind: vfs.OpRename, Path: "new", Err: syscall.EIO}}, "rename a2"},
		{"other directory", []vfs.Fault{{Path: "/e/*", Count: -1, Err: syscall.EIO}}, ""},
		{"two at once", []vfs.Fault{{Kind: vfs.OpSync, Path: "a1", Err: syscall.EIO}, {Kind: vfs.OpSync, Count: 2, Err: syscall.EIO}}, "sync a1, sync a2"},
		{"delay only", []vfs.Fault{{Kind: vfs.OpSync, Count: -1, Delay: time.Nanosecond}}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			faults := &vfs.Faults{}
			p := place{t, vfs.WithFaults(vfs.NewMem(), faults), "/"}
			p.must(p.fs.MkdirAll("/d"))
			files := map[string]vfs.File{}
			names := []string{"a1", "a2", "b1", "b2"}
			for _, name := range names {
				f, err := p.fs.Create("/d/" + name)
				p.must(err)
				files[name] = f
			}
			for _, f := range tt.faults {
				faults.Inject(f)
			}
			var failed []string
			try := func(what string, err error) {
				if err != nil && !errors.Is(err, syscall.EIO) {
					t.Errorf("%s: got %v, want EIO", what, err)
				}
				if err != nil {
					failed = append(failed, what)
				}
			}
			for _, name := range names {
				_, err := files[name].Write([]byte("x"))
				try("write "+name, err)
				try("sync "+name, files[name].Sync())
			}
			try("rename a2", p.fs.Rename("/d/a2", "/d/new"))
			if got := strings.Join(failed, ", "); got != tt.want {
				t.Errorf("failed: %q, want %q", got, tt.want)
			}
			faults.Clear()
			p.must(files["a1"].Sync())
		})
	}
}

func TestFaultOnWrite(t *testing.T) {
	t.Parallel()
	faults := &vfs.Faults{}
	p := place{t, vfs.WithFaults(vfs.NewMem(), faults), "/"}
	f, err := p.fs.Create("/a")
	p.must(err)
	faults.Inject(vfs.Fault{Kind: vfs.OpWrite, Err: syscall.ENOSPC})
	faults.Inject(vfs.Fault{Kind: vfs.OpWrite, Nth: 2, Err: syscall.EIO, Partial: true})
	if n, err := f.Write([]byte("12345678")); n != 0 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write: %d, %v", n, err)
	}
	if n, err := f.Write([]byte("12345678")); n != 4 || !errors.Is(err, syscall.EIO) {
		t.Errorf("partial write: %d, %v", n, err)
	}
	p.want("a", "1234")
	faults.Inject(vfs.Fault{Path: "[", Err: syscall.EIO})
	p.wantErr("bad pattern", f.Sync(), path.ErrBadPattern)
}

func TestFaultDelay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		faults := &vfs.Faults{}
		faults.Inject(vfs.Fault{Kind: vfs.OpStat, Delay: time.Minute, Err: syscall.EIO})
		began := time.Now()
		if _, err := vfs.WithFaults(vfs.NewMem(), faults).Stat("/"); !errors.Is(err, syscall.EIO) || time.Since(began) != time.Minute {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}

func TestHook(t *testing.T) {
	t.Parallel()
	faults := &vfs.Faults{}
	p := place{t, vfs.WithFaults(vfs.NewMem(), faults), "/"}
	why := errors.New("not today")
	var seen []string
	faults.SetHook(func(op vfs.Op) error {
		seen = append(seen, fmt.Sprintf("%d %d %s", op.Number, op.Change, op))
		if op.Kind == vfs.OpRemove {
			return why
		}
		if op.Kind == vfs.OpLink {
			return fmt.Errorf("power cut: %w", vfs.ErrCrashed)
		}
		return nil
	})
	p.put("a", "hello")
	_, err := p.fs.Stat("/a")
	p.must(err)
	p.wantErr("remove", p.fs.Remove("/a"), why)
	p.must(p.fs.SyncDir("/"))
	p.wantErr("link", p.fs.Link("/a", "/b"), vfs.ErrCrashed)
	p.wantErr("after the crash", p.fs.SyncDir("/"), vfs.ErrCrashed)
	want := []string{
		"1 1 create /a", "2 2 write /a +5", "3 3 sync /a", "4 0 close /a", "5 0 stat /a", "6 4 remove /a", "7 5 sync-dir /", "8 6 link /a /b",
	}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("operations (-want +got):\n%s", diff)
	}
	if faults.Changes() != 7 {
		t.Errorf("%d changes, want 7", faults.Changes())
	}
}

// TestCrashClosesFiles crashes with a file and a lock open: those of the real
// file system must not stay open for ever.
// TestHookLetsGo has a hook that makes unlocking fail: the lock is free all the same,
// as with a real file system, or whoever wants it next would wait forever.
func TestHookLetsGo(t *testing.T) {
	t.Parallel()
	var faults vfs.Faults
	fsys := vfs.WithFaults(vfs.NewMem(), &faults)
	lock, err := fsys.Lock("/lock")
	if err != nil {
		t.Fatal(err)
	}
	faults.SetHook(func(vfs.Op) error { return syscall.EROFS })
	if err := lock.Close(); !errors.Is(err, syscall.EROFS) {
		t.Errorf("unlock: %v, want EROFS", err)
	}
	faults.Clear()
	if lock, err = fsys.Lock("/lock"); err != nil {
		t.Fatalf("lock again: %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Error(err)
	}
}

func TestCrashClosesFiles(t *testing.T) {
	t.Parallel()
	faults := &vfs.Faults{}
	m := vfs.NewMem()
	p := place{t, vfs.WithFaults(m, faults), "/"}
	f, err := p.fs.Create("/a")
	p.must(err)
	l, err := p.fs.Lock("/lock")
	p.must(err)
	faults.CrashBefore(faults.Changes() + 1)
	if _, err := f.ReadAt(make([]byte, 1), 0); errors.Is(err, vfs.ErrCrashed) {
		t.Error("crashed before the operation that was named")
	}
	p.wantErr("sync", f.Sync(), vfs.ErrCrashed)
	_, err = f.ReadAt(make([]byte, 1), 0)
	p.wantErr("read", err, vfs.ErrCrashed)
	p.wantErr("close", f.Close(), vfs.ErrCrashed)
	p.wantErr("second close", f.Close(), fs.ErrClosed)
	p.wantErr("unlock", l.Close(), vfs.ErrCrashed)
	if l, err := m.Lock("/lock"); err != nil {
		t.Errorf("the lock is still held: %v", err)
	} else {
		p.must(l.Close())
	}
}

// crashEverywhere runs a scenario over and over, with a crash before each of
// its operations, and each time lets check look at several of what a power cut
// may leave. done says whether the scenario came to its end. It returns how
// often something was wrong.
func crashEverywhere(t *testing.T, scenario func(vfs.FS) error, check func(fsys vfs.FS, done bool) error) int {
	t.Helper()
	wrong, total := 0, 1
	for crash := 1; crash <= total+1; crash++ {
		m, faults := vfs.NewMem(), &vfs.Faults{}
		faults.CrashBefore(crash)
		err := scenario(vfs.WithFaults(m, faults))
		if err != nil && !errors.Is(err, vfs.ErrCrashed) {
			t.Fatalf("crash before %d: %v", crash, err)
		}
		total = max(total, faults.Changes())
		for seed := range uint64(40) {
			if cerr := check(m.CrashClone(seeded(seed)), err == nil); cerr != nil {
				t.Logf("crash before %d, seed %d: %v", crash, seed, cerr)
				wrong++
			}
		}
		if err == nil {
			return wrong
		}
	}
	t.Fatal("the scenario never came to its end")
	return wrong
}

// writeWithout is WriteFileAtomic with a step left out.
func writeWithout(step string) func(vfs.FS, string, []byte) error {
	return func(fsys vfs.FS, name string, data []byte) error {
		temp := name + ".tmp"
		if step == "rename" {
			temp = name
		}
		f, err := fsys.Create(temp)
		if err != nil {
			return err
		}
		if _, err := f.Write(data); err != nil {
			return err
		}
		if step != "sync" {
			if err := f.Sync(); err != nil {
				return err
			}
		}
		if err := f.Close(); err != nil {
			return err
		}
		if step != "rename" {
			if err := fsys.Rename(temp, name); err != nil {
				return err
			}
		}
		if step == "sync-dir" {
			return nil
		}
		return fsys.SyncDir(path.Dir(name))
	}
}

// TestWriteFileAtomicCrashes shows that a crash anywhere leaves the old or the
// new file, and that this test would notice if a step were missing.
func TestWriteFileAtomicCrashes(t *testing.T) {
	t.Parallel()
	before, after := strings.Repeat("old", 3000), strings.Repeat("newer", 3000)
	tests := []struct {
		name  string
		write func(vfs.FS, string, []byte) error
		good  bool
	}{
		{"WriteFileAtomic", vfs.WriteFileAtomic, true},
		{"all steps", writeWithout(""), true},
		{"without sync", writeWithout("sync"), false},
		{"without sync-dir", writeWithout("sync-dir"), false},
		{"without rename", writeWithout("rename"), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			written := false
			wrong := crashEverywhere(t, func(fsys vfs.FS) error {
				written = false
				if err := vfs.WriteFileAtomic(fsys, "/a", []byte(before)); err != nil {
					return err
				}
				written = true
				return tt.write(fsys, "/a", []byte(after))
			}, func(fsys vfs.FS, done bool) error {
				b, err := read(fsys, "/a")
				switch got := string(b); {
				case errors.Is(err, fs.ErrNotExist) && !written:
				case err != nil:
					return err
				case got != after && (got != before || done):
					return fmt.Errorf("%d bytes are neither old nor new, or the new ones are lost", len(got))
				}
				return nil
			})
			if good := wrong == 0; good != tt.good {
				t.Errorf("wrong after %d crashes", wrong)
			}
		})
	}
}

// TestWriteFileAtomicFails leaves the old file, and no other, when a step fails.
func TestWriteFileAtomicFails(t *testing.T) {
	t.Parallel()
	for _, kind := range []vfs.OpKind{vfs.OpCreate, vfs.OpWrite, vfs.OpSync, vfs.OpClose, vfs.OpRename} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			faults := &vfs.Faults{}
			p := place{t, vfs.WithFaults(vfs.NewMem(), faults), "/"}
			p.must(vfs.WriteFileAtomic(p.fs, "/a", []byte("old")))
			faults.Inject(vfs.Fault{Kind: kind, Err: syscall.ENOSPC, Partial: true})
			p.wantErr("write", vfs.WriteFileAtomic(p.fs, "/a", []byte("new")), syscall.ENOSPC)
			p.want("a", "old")
			p.wantNames("", "a")
		})
	}
}
