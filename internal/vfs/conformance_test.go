package vfs_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"path"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// place is a file system under test and a directory of it that exists.
type place struct {
	t   *testing.T
	fs  vfs.FS
	dir string
}

// systems are all file systems, which must not be told apart.
var systems = []struct {
	name string
	make func(t *testing.T) place
}{
	{"OS", func(t *testing.T) place { return place{t, vfs.OS, t.TempDir()} }},
	{"Mem", func(t *testing.T) place { return place{t, vfs.NewMem(), "/"} }},
	{"Mem relative", func(t *testing.T) place { return place{t, vfs.NewMem(), "."} }},
	{"Faults", func(t *testing.T) place { return place{t, vfs.WithFaults(vfs.NewMem(), &vfs.Faults{}), "/"} }},
	{"Log", func(t *testing.T) place { return place{t, vfs.WithLog(vfs.OS, io.Discard), t.TempDir()} }},
}

func (p place) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p place) name(name string) string { return path.Join(p.dir, name) }

// put writes a file and closes it.
func (p place) put(name, content string) {
	p.t.Helper()
	f, err := p.fs.Create(p.name(name))
	p.must(err)
	_, err = f.Write([]byte(content))
	p.must(errors.Join(err, f.Sync(), f.Close()))
}

// get reads a file.
func (p place) get(name string) string {
	p.t.Helper()
	b, err := read(p.fs, p.name(name))
	p.must(err)
	return string(b)
}

func read(fsys vfs.FS, name string) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	size, err := f.Size()
	b := make([]byte, size)
	if err == nil && size > 0 {
		_, err = f.ReadAt(b, 0)
	}
	return b, errors.Join(err, f.Close())
}

func (p place) want(name, content string) {
	p.t.Helper()
	if got := p.get(name); got != content {
		p.t.Errorf("%s has %q, want %q", name, got, content)
	}
}

func (p place) wantNames(dir string, want ...string) {
	p.t.Helper()
	got, err := p.fs.List(p.name(dir))
	p.must(err)
	if diff := cmp.Diff(append([]string{}, want...), append([]string{}, got...)); diff != "" {
		p.t.Errorf("names in %q (-want +got):\n%s", dir, diff)
	}
}

func (p place) wantErr(what string, err, want error) {
	p.t.Helper()
	if !errors.Is(err, want) {
		p.t.Errorf("%s: got %v, want %v", what, err, want)
	}
}

var conformance = []struct {
	name string
	run  func(p place)
}{
	{"create, write, read", func(p place) {
		f, err := p.fs.Create(p.name("a"))
		p.must(err)
		for _, s := range []string{"hello ", "world"} {
			n, err := f.Write([]byte(s))
			p.must(err)
			if n != len(s) {
				p.t.Errorf("wrote %d of %d", n, len(s))
			}
		}
		_, err = f.WriteAt([]byte("W"), 6)
		p.must(err)
		_, err = f.Write([]byte("!")) // WriteAt has not moved it
		p.must(err)
		p.must(errors.Join(f.Sync(), f.Close()))
		p.want("a", "hello World!")
		p.put("a", "new") // Create truncates
		p.want("a", "new")
		st, err := p.fs.Stat(p.name("a"))
		p.must(err)
		if st.Size != 3 || st.IsDir || st.ModTime.IsZero() {
			p.t.Errorf("stat %+v", st)
		}
	}},
	{"write offset", func(p place) {
		p.put("a", "0123")
		f, err := p.fs.OpenRW(p.name("a"))
		p.must(err)
		_, err = f.Write([]byte("45")) // begins at the end
		p.must(errors.Join(err, f.Truncate(1)))
		_, err = f.Write([]byte("6")) // and stays where it was
		p.must(errors.Join(err, f.Close()))
		p.want("a", "0\x00\x00\x00\x00\x006")
	}},
	{"read at the end", func(p place) {
		p.put("a", "0123")
		f, err := p.fs.Open(p.name("a"))
		p.must(err)
		defer f.Close()
		b := make([]byte, 3)
		if n, err := f.ReadAt(b, 2); n != 2 || err != io.EOF || string(b[:n]) != "23" {
			p.t.Errorf("read across the end: %d, %v, %q", n, err, b)
		}
		if n, err := f.ReadAt(b, 9); n != 0 || err != io.EOF {
			p.t.Errorf("read beyond the end: %d, %v", n, err)
		}
		if n, err := f.ReadAt(b, 1); n != 3 || err != nil || string(b) != "123" {
			p.t.Errorf("read up to the end: %d, %v, %q", n, err, b)
		}
		if _, err := f.ReadAt(b, -1); err == nil || errors.Is(err, io.EOF) {
			p.t.Errorf("read at -1: %v", err)
		}
	}},
	{"holes and truncate", func(p place) {
		f, err := p.fs.Create(p.name("a"))
		p.must(err)
		_, err = f.WriteAt([]byte("end"), 10000)
		p.must(err)
		b := bytes.Repeat([]byte{1}, 10003)
		_, err = f.ReadAt(b, 0)
		p.must(err)
		if !bytes.Equal(b, append(make([]byte, 10000), "end"...)) {
			p.t.Error("a hole is not zero")
		}
		p.must(errors.Join(f.Truncate(10001), f.Truncate(10003)))
		_, err = f.ReadAt(b, 0)
		p.must(err)
		if !bytes.Equal(b, append(make([]byte, 10000), 'e', 0, 0)) {
			p.t.Error("what was cut off came back")
		}
		if size, err := f.Size(); size != 10003 || err != nil {
			p.t.Errorf("size %d, %v", size, err)
		}
		p.wantErr("truncate to -1", f.Truncate(-1), syscall.EINVAL)
		_, err = f.WriteAt([]byte("x"), -1)
		if err == nil {
			p.t.Error("wrote at -1")
		}
		p.must(f.Close())
	}},
	{"open for reading", func(p place) {
		p.put("a", "0123")
		f, err := p.fs.Open(p.name("a"))
		p.must(err)
		defer f.Close()
		_, err = f.Write([]byte("x"))
		p.wantErr("write", err, syscall.EBADF)
		_, err = f.WriteAt([]byte("x"), 0)
		p.wantErr("write at", err, syscall.EBADF)
		p.wantErr("truncate", f.Truncate(0), syscall.EINVAL)
		p.want("a", "0123")
	}},
	{"closed file", func(p place) {
		f, err := p.fs.Create(p.name("a"))
		p.must(errors.Join(err, f.Close()))
		_, rerr := f.ReadAt(make([]byte, 1), 0)
		_, werr := f.Write([]byte("x"))
		_, waerr := f.WriteAt([]byte("x"), 0)
		_, serr := f.Size()
		for what, err := range map[string]error{"read": rerr, "write": werr, "write at": waerr, "size": serr, "sync": f.Sync(), "truncate": f.Truncate(0), "close": f.Close()} {
			p.wantErr(what, err, fs.ErrClosed)
		}
	}},
	{"missing", func(p place) {
		p.must(p.fs.MkdirAll(p.name("d")))
		p.put("file", "x")
		_, oerr := p.fs.Open(p.name("no"))
		_, rwerr := p.fs.OpenRW(p.name("no"))
		_, cerr := p.fs.Create(p.name("no/a"))
		_, lerr := p.fs.List(p.name("no"))
		_, sterr := p.fs.Stat(p.name("no"))
		_, loerr := p.fs.Lock(p.name("no/a"))
		_, ferr := p.fs.Free(p.name("no"))
		_, eerr := p.fs.Create("")
		for what, err := range map[string]error{
			"open": oerr, "open-rw": rwerr, "create": cerr, "list": lerr, "stat": sterr, "lock": loerr, "free": ferr, "create nothing": eerr,
			"remove": p.fs.Remove(p.name("no")), "sync-dir": p.fs.SyncDir(p.name("no")),
			"rename": p.fs.Rename(p.name("no"), p.name("a")), "rename into": p.fs.Rename(p.name("file"), p.name("no/a")),
			"link": p.fs.Link(p.name("no"), p.name("a")), "link into": p.fs.Link(p.name("file"), p.name("no/a")),
		} {
			p.wantErr(what, err, fs.ErrNotExist)
			p.wantErr(what, err, syscall.ENOENT)
		}
		_, err := p.fs.Open(p.name("file/below"))
		p.wantErr("open below a file", err, syscall.ENOTDIR)
		_, err = p.fs.Create(p.name("file/below"))
		p.wantErr("create below a file", err, syscall.ENOTDIR)
		p.wantNames("", "d", "file")
	}},
	{"directories", func(p place) {
		p.must(p.fs.MkdirAll(p.name("a/b/c")))
		p.must(p.fs.MkdirAll(p.name("a/b/c")))
		p.put("a/file", "x")
		p.wantNames("a", "b", "file")
		p.wantNames("a/b/c")
		st, err := p.fs.Stat(p.name("a/b"))
		if err != nil || !st.IsDir {
			p.t.Errorf("stat %+v, %v", st, err)
		}
		_, oerr := p.fs.Open(p.name("a"))
		p.wantErr("open", oerr, syscall.EISDIR)
		_, rwerr := p.fs.OpenRW(p.name("a"))
		p.wantErr("open-rw", rwerr, syscall.EISDIR)
		_, cerr := p.fs.Create(p.name("a"))
		p.wantErr("create", cerr, syscall.EISDIR)
		_, lerr := p.fs.List(p.name("a/file"))
		p.wantErr("list a file", lerr, syscall.ENOTDIR)
		p.wantErr("sync a file as a directory", p.fs.SyncDir(p.name("a/file")), syscall.ENOTDIR)
		p.wantErr("mkdir over a file", p.fs.MkdirAll(p.name("a/file")), syscall.ENOTDIR)
		p.wantErr("mkdir below a file", p.fs.MkdirAll(p.name("a/file/x")), syscall.ENOTDIR)
		p.wantErr("remove what is not empty", p.fs.Remove(p.name("a/b")), syscall.ENOTEMPTY)
		p.must(errors.Join(p.fs.Remove(p.name("a/b/c")), p.fs.Remove(p.name("a/b")), p.fs.Remove(p.name("a/file"))))
		p.wantNames("a")
		p.must(p.fs.SyncDir(p.name("a")))
	}},
	{"list is sorted", func(p place) {
		for _, name := range []string{"b", "a.tmp", "a", "C", "aa", "10", "9"} {
			p.put(name, "")
		}
		p.wantNames("", "10", "9", "C", "a", "a.tmp", "aa", "b")
	}},
	{"rename", func(p place) {
		p.must(p.fs.MkdirAll(p.name("d")))
		p.put("a", "A")
		p.put("b", "B")
		f, err := p.fs.Open(p.name("b"))
		p.must(err)
		defer f.Close()
		p.must(p.fs.Rename(p.name("a"), p.name("b")))
		p.want("b", "A")
		b := make([]byte, 1)
		if _, err := f.ReadAt(b, 0); err != nil || b[0] != 'B' {
			p.t.Errorf("an open file that was replaced reads %q, %v", b, err)
		}
		p.must(p.fs.Rename(p.name("b"), p.name("d/c")))
		p.wantNames("", "d")
		p.want("d/c", "A")
		p.must(p.fs.Rename(p.name("d/c"), p.name("d/c")))
		p.must(p.fs.Rename(p.name("d"), p.name("e")))
		p.want("e/c", "A")
		p.put("f", "F")
		p.must(p.fs.MkdirAll(p.name("empty")))
		p.wantErr("file over directory", p.fs.Rename(p.name("f"), p.name("empty")), fs.ErrExist)
		p.wantErr("directory over directory", p.fs.Rename(p.name("e"), p.name("empty")), fs.ErrExist)
		p.wantErr("directory over file", p.fs.Rename(p.name("e"), p.name("f")), syscall.ENOTDIR)
		p.wantErr("directory into itself", p.fs.Rename(p.name("e"), p.name("e/x")), syscall.EINVAL)
		p.wantNames("", "e", "empty", "f")
	}},
	{"link", func(p place) {
		p.put("a", "A")
		p.put("b", "B")
		p.wantErr("link to what exists", p.fs.Link(p.name("a"), p.name("b")), fs.ErrExist)
		p.must(p.fs.Link(p.name("a"), p.name("c")))
		f, err := p.fs.OpenRW(p.name("a"))
		p.must(err)
		_, err = f.Write([]byte("+"))
		p.must(errors.Join(err, f.Close()))
		p.want("c", "A+")
		p.must(p.fs.Rename(p.name("a"), p.name("c"))) // one file: nothing happens
		p.wantNames("", "a", "b", "c")
		p.must(p.fs.Remove(p.name("a")))
		p.want("c", "A+")
		p.must(p.fs.MkdirAll(p.name("d")))
		p.wantErr("link to a directory", p.fs.Link(p.name("d"), p.name("e")), syscall.EPERM)
	}},
	{"removed while open", func(p place) {
		p.put("a", "A")
		f, err := p.fs.OpenRW(p.name("a"))
		p.must(err)
		p.must(p.fs.Remove(p.name("a")))
		_, err = f.Write([]byte("B"))
		p.must(err)
		b := make([]byte, 2)
		if _, err := f.ReadAt(b, 0); err != nil || string(b) != "AB" {
			p.t.Errorf("read %q, %v", b, err)
		}
		p.put("a", "new")
		p.must(f.Close())
		p.want("a", "new")
	}},
	{"lock", func(p place) {
		l, err := p.fs.Lock(p.name("lock"))
		p.must(err)
		_, err = p.fs.Lock(p.name("lock"))
		p.wantErr("second lock", err, vfs.ErrLocked)
		other, err := p.fs.Lock(p.name("other"))
		p.must(errors.Join(err, other.Close()))
		p.must(l.Close())
		l, err = p.fs.Lock(p.name("lock"))
		p.must(err)
		p.must(l.Close())
		p.wantErr("second close", l.Close(), fs.ErrClosed)
		p.put("file", "content")
		l, err = p.fs.Lock(p.name("file"))
		p.must(errors.Join(err, l.Close()))
		p.want("file", "content")
	}},
	{"free", func(p place) {
		if free, err := p.fs.Free(p.dir); err != nil || free <= 0 {
			p.t.Errorf("free %d, %v", free, err)
		}
	}},
}

func TestConformance(t *testing.T) {
	t.Parallel()
	for _, system := range systems {
		for _, c := range conformance {
			t.Run(system.name+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				c.run(system.make(t))
			})
		}
	}
}

// TestMemLimit fills a disk, where a write is cut short, and frees it again.
func TestMemLimit(t *testing.T) {
	t.Parallel()
	m := vfs.NewMem()
	p := place{t, m, "/"}
	free := func(want int64) {
		t.Helper()
		if got, err := m.Free("/"); err != nil || got != want {
			t.Errorf("free %d, %v, want %d", got, err, want)
		}
	}
	m.SetLimit(4 * 4096)
	p.put("a", "x") // a page
	free(3 * 4096)
	f, err := m.Create("/b")
	p.must(err)
	if n, err := f.Write(make([]byte, 5*4096)); n != 3*4096 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("wrote %d, %v, want %d and ENOSPC", n, err, 3*4096)
	}
	if n, err := f.WriteAt([]byte("over"), 100); n != 4 || err != nil {
		t.Errorf("wrote over what is there: %d, %v", n, err)
	}
	if n, err := f.Write([]byte("y")); n != 0 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("wrote %d, %v on a full disk", n, err)
	}
	free(0)
	if clone, err := m.KillClone().Free("/"); err != nil || clone != 0 {
		t.Errorf("the clone has %d free, %v", clone, err)
	}
	clone := m.KillClone()
	p.must(errors.Join(clone.Link("/b", "/c"), clone.Remove("/b"), clone.Remove("/a")))
	if got, err := clone.Free("/"); err != nil || got != 4096 {
		t.Errorf("the clone without a has %d free, %v, want a page", got, err)
	}
	p.must(f.Truncate(1))
	free(2 * 4096)
	p.must(m.Link("/b", "/c"))
	p.must(errors.Join(m.Remove("/b"), m.Remove("/c")))
	free(2 * 4096) // still open
	p.must(f.Close())
	free(3 * 4096)
	p.must(m.Rename("/a", "/z"))
	free(3 * 4096)
	p.put("y", "y")
	p.must(m.Rename("/z", "/y")) // frees what was there
	free(3 * 4096)
	p.put("y", "")
	free(4 * 4096)
	m.SetLimit(0)
	free(0)
}
