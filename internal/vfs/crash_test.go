package vfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/holdfast-dr/holdfast/internal/vfs"
)

func seeded(n uint64) *rand.Rand { return rand.New(rand.NewPCG(n, n+1)) }

// tree returns all files with their content, and directories with a slash.
func tree(t interface{ Fatal(...any) }, fsys vfs.FS, dir string) map[string]string {
	out := map[string]string{}
	names, err := fsys.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		name = path.Join(dir, name)
		st, err := fsys.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if st.IsDir {
			out[name+"/"] = ""
			maps.Copy(out, tree(t, fsys, name))
			continue
		}
		b, err := read(fsys, name)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = string(b)
	}
	return out
}

// outcomes crashes many times and returns what f says of each, sorted.
func outcomes(m *vfs.Mem, f func(*vfs.Mem) string) []string {
	seen := map[string]bool{}
	for seed := range uint64(300) {
		seen[f(m.CrashClone(seeded(seed)))] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

// show lists a tree of short files in one line.
func show(t *testing.T) func(*vfs.Mem) string {
	return func(m *vfs.Mem) string {
		files := tree(t, m, "/")
		var parts []string
		for _, name := range slices.Sorted(maps.Keys(files)) {
			parts = append(parts, strings.TrimPrefix(name, "/")+"="+files[name])
		}
		return strings.Join(parts, " ")
	}
}

// TestCrash lists all that a power cut can leave.
func TestCrash(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		do   func(p place)
		want []string
	}{
		{"synced file, synced name", func(p place) {
			p.put("a", "A")
			p.must(p.fs.SyncDir("/"))
		}, []string{"a=A"}},
		{"synced file", func(p place) { p.put("a", "A") }, []string{"", "a=A"}},
		{"synced name", func(p place) {
			f, err := p.fs.Create("/a")
			p.must(errors.Join(err, p.fs.SyncDir("/")))
			_, err = f.Write([]byte("A"))
			p.must(err)
		}, []string{"a=", "a=A", "a=\x00"}},
		{"two names", func(p place) { p.put("a", "A"); p.put("b", "B") }, []string{"", "a=A", "a=A b=B", "b=B"}},
		{"directory", func(p place) { p.must(p.fs.MkdirAll("/d/e")) }, []string{"d/= d/e/="}},
		{"rename", func(p place) {
			p.put("a", "A")
			p.must(p.fs.SyncDir("/"))
			p.must(p.fs.Rename("/a", "/b"))
		}, []string{"a=A", "b=A"}},
		{"rename of a new file", func(p place) {
			p.put("a", "A")
			p.must(p.fs.Rename("/a", "/b"))
		}, []string{"", "a=A", "b=A"}},
		{"rename over", func(p place) {
			p.put("a", "A")
			p.put("b", "B")
			p.must(p.fs.SyncDir("/"))
			p.must(p.fs.Rename("/a", "/b"))
		}, []string{"a=A b=B", "b=A"}},
		{"renames in a row", func(p place) {
			p.put("a", "A")
			p.must(p.fs.SyncDir("/"))
			p.must(errors.Join(p.fs.Rename("/a", "/b"), p.fs.Rename("/b", "/c")))
		}, []string{"a=A", "b=A", "c=A"}},
		{"rename of an unsynced file", func(p place) { // the mistake that makes empty files
			f, err := p.fs.Create("/a")
			p.must(err)
			_, err = f.Write([]byte("A"))
			p.must(errors.Join(err, f.Close(), p.fs.Rename("/a", "/b"), p.fs.SyncDir("/")))
		}, []string{"b=", "b=A", "b=\x00"}},
		{"rename to another directory", func(p place) {
			p.must(p.fs.MkdirAll("/d"))
			p.put("a", "A")
			p.must(errors.Join(p.fs.SyncDir("/"), p.fs.Rename("/a", "/d/a")))
		}, []string{"a=A d/=", "d/= d/a=A"}},
		{"rename to another directory, one synced", func(p place) {
			p.must(p.fs.MkdirAll("/d"))
			p.put("a", "A")
			p.must(errors.Join(p.fs.Rename("/a", "/d/a"), p.fs.SyncDir("/d")))
		}, []string{"d/= d/a=A"}},
		{"rename to another directory, the first synced", func(p place) {
			p.must(p.fs.MkdirAll("/d"))
			p.put("a", "A")
			p.must(errors.Join(p.fs.Rename("/a", "/d/a"), p.fs.SyncDir("/")))
			p.put("d/b", "B")
		}, []string{"d/= d/a=A", "d/= d/a=A d/b=B"}},
		{"replaced after a rename elsewhere that is durable", func(p place) {
			p.must(p.fs.MkdirAll("/d"))
			p.put("d/y", "old")
			p.put("x", "new")
			p.must(errors.Join(p.fs.Rename("/x", "/d/y"), p.fs.SyncDir("/")))
		}, []string{"d/= d/y=new"}},
		{"link", func(p place) {
			p.put("a", "A")
			p.must(errors.Join(p.fs.SyncDir("/"), p.fs.Link("/a", "/b")))
		}, []string{"a=A", "a=A b=A"}},
		{"link and remove", func(p place) { // without a sync between: the file may be lost
			p.put("a", "A")
			p.must(errors.Join(p.fs.SyncDir("/"), p.fs.Link("/a", "/b"), p.fs.Remove("/a")))
		}, []string{"", "a=A", "a=A b=A", "b=A"}},
		{"link, sync, remove", func(p place) {
			p.put("a", "A")
			p.must(errors.Join(p.fs.Link("/a", "/b"), p.fs.SyncDir("/"), p.fs.Remove("/a")))
		}, []string{"a=A b=A", "b=A"}},
		{"remove", func(p place) {
			p.put("a", "A")
			p.must(errors.Join(p.fs.SyncDir("/"), p.fs.Remove("/a")))
		}, []string{"", "a=A"}},
		{"remove, sync", func(p place) {
			p.put("a", "A")
			p.must(errors.Join(p.fs.SyncDir("/"), p.fs.Remove("/a"), p.fs.SyncDir("/")))
		}, []string{""}},
		{"other directory synced", func(p place) {
			p.must(p.fs.MkdirAll("/d"))
			p.put("a", "A")
			p.put("d/b", "B")
			p.must(p.fs.SyncDir("/d"))
		}, []string{"a=A d/= d/b=B", "d/= d/b=B"}},
		{"content through another name", func(p place) {
			p.put("a", "A")
			p.must(errors.Join(p.fs.Link("/a", "/b"), p.fs.SyncDir("/")))
			f, err := p.fs.OpenRW("/b")
			p.must(err)
			_, err = f.WriteAt([]byte("B"), 0)
			p.must(errors.Join(err, f.Close()))
		}, []string{"a=A b=A", "a=B b=B"}},
		{"truncate by create", func(p place) {
			p.put("a", "A")
			p.must(p.fs.SyncDir("/"))
			f, err := p.fs.Create("/a")
			p.must(errors.Join(err, f.Close()))
		}, []string{"a=", "a=A", "a=\x00"}},
		{"versions in between", func(p place) {
			p.put("a", "0")
			p.must(p.fs.SyncDir("/"))
			f, err := p.fs.OpenRW("/a")
			p.must(err)
			for _, s := range []string{"1", "2"} {
				_, err := f.WriteAt([]byte(s), 0)
				p.must(err)
			}
			p.must(f.Close())
		}, []string{"a=0", "a=1", "a=2"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := vfs.NewMem()
			tt.do(place{t, m, "/"})
			before := tree(t, m, "/")
			slices.Sort(tt.want)
			if diff := cmp.Diff(tt.want, outcomes(m, show(t))); diff != "" {
				t.Errorf("what a power cut leaves (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(before, tree(t, m, "/")); diff != "" {
				t.Errorf("crashing a clone changed the original:\n%s", diff)
			}
			if diff := cmp.Diff(before, tree(t, m.KillClone(), "/")); diff != "" {
				t.Errorf("being killed lost something:\n%s", diff)
			}
			if got := show(t)(m.CrashClone(nil)); !slices.Contains(tt.want, got) {
				t.Errorf("without chance %q is left", got)
			}
		})
	}
}

// TestCrashStrict loses all that was not synced.
func TestCrashStrict(t *testing.T) {
	t.Parallel()
	m := vfs.NewMem()
	p := place{t, m, "/"}
	p.put("a", "A")
	p.must(m.SyncDir("/"))
	p.put("b", "B")
	f, err := m.OpenRW("/a")
	p.must(err)
	_, err = f.Write([]byte("A"))
	p.must(err)
	for range 20 { // more versions than are remembered
		_, err := f.WriteAt([]byte("B"), 0)
		p.must(errors.Join(err, f.Truncate(1), f.Truncate(2)))
	}
	if got := show(t)(m.CrashClone(nil)); got != "a=A" {
		t.Errorf("got %q, want a=A", got)
	}
}

// TestCrashTearsWrites writes over a synced file and looks at each sector.
func TestCrashTearsWrites(t *testing.T) {
	t.Parallel()
	const pages = 6
	m := vfs.NewMem()
	p := place{t, m, "/"}
	p.put("a", strings.Repeat("o", pages*4096))
	p.must(m.SyncDir("/"))
	f, err := m.OpenRW("/a")
	p.must(err)
	_, err = f.WriteAt(bytes.Repeat([]byte("n"), (pages-1)*4096+1000), 0)
	p.must(err)
	_, err = f.Write(bytes.Repeat([]byte("n"), 3000))
	p.must(err)
	var lost, kept, mixed, torn, between bool
	for seed := range uint64(300) {
		got := place{t, m.CrashClone(seeded(seed)), "/"}.get("a")
		if again := (place{t, m.CrashClone(seeded(seed)), "/"}).get("a"); again != got {
			t.Fatal("the same seed gave another crash")
		}
		if len(got) < pages*4096 || len(got) > pages*4096+3000 {
			t.Fatalf("size %d", len(got))
		}
		between = between || len(got) > pages*4096 && len(got) < pages*4096+3000
		old := strings.Count(got[:(pages-1)*4096], "o")
		lost = lost || old == (pages-1)*4096 && len(got) == pages*4096
		kept = kept || old == 0 && len(got) == pages*4096+3000
		mixed = mixed || old > 0 && old < (pages-1)*4096
		for off := 0; off < (pages-1)*4096; off += 512 {
			if s := got[off : off+512]; strings.Trim(s, s[:1]) != "" {
				t.Fatalf("the sector at %d is torn", off)
			}
			torn = torn || off%4096 != 0 && got[off] != got[off-1]
		}
		if got[(pages-1)*4096+1000:pages*4096] != strings.Repeat("o", 4096-1000) {
			t.Fatal("synced bytes that nobody wrote over have changed")
		}
		if strings.Trim(got[pages*4096:], "n\x00") != "" {
			t.Fatal("the tail has what nobody wrote")
		}
	}
	for what, seen := range map[string]bool{"all lost": lost, "all kept": kept, "some pages": mixed, "torn pages": torn, "a size in between": between} {
		if !seen {
			t.Errorf("in 300 crashes never: %s", what)
		}
	}
}

// TestCrashTailIsZero cuts a file in a crash and lets it grow again: what was
// beyond the end must not come back.
func TestCrashTailIsZero(t *testing.T) {
	t.Parallel()
	m := vfs.NewMem()
	p := place{t, m, "/"}
	p.put("a", "A")
	p.must(m.SyncDir("/"))
	f, err := m.OpenRW("/a")
	p.must(err)
	_, err = f.Write(bytes.Repeat([]byte("x"), 9999))
	p.must(err)
	for seed := range uint64(100) {
		clone := m.CrashClone(seeded(seed))
		g, err := clone.OpenRW("/a")
		p.must(err)
		size, err := g.Size()
		p.must(errors.Join(err, g.Truncate(20000)))
		b := make([]byte, 20000-size)
		_, err = g.ReadAt(b, size)
		p.must(errors.Join(err, g.Close()))
		if !bytes.Equal(b, make([]byte, len(b))) {
			t.Fatalf("seed %d: what was beyond %d bytes came back", seed, size)
		}
	}
}

func TestCloneHasNoLocks(t *testing.T) {
	t.Parallel()
	m := vfs.NewMem()
	l, err := m.Lock("/lock")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, clone := range []*vfs.Mem{m.KillClone(), m.CrashClone(seeded(1))} {
		if _, err := clone.Lock("/lock"); err != nil {
			t.Error(err)
		}
	}
	if _, err := m.Lock("/lock"); !errors.Is(err, vfs.ErrLocked) {
		t.Errorf("the original: %v", err)
	}
}

// TestCrashProperties does random operations and crashes: the same seed gives
// the same, what was synced is there, and nothing appears that never was.
func TestCrashProperties(t *testing.T) {
	t.Parallel()
	names := rapid.SampledFrom([]string{"/a", "/b", "/d/a", "/d/b"})
	rapid.Check(t, func(t *rapid.T) {
		m := vfs.NewMem()
		if err := m.MkdirAll("/d"); err != nil {
			t.Fatal(err)
		}
		safe := map[string]string{} // names that are durable with content that is
		n := 0
		linked := false // two names may be one file
		write := func(name string, sync bool) {
			f, err := m.Create(name)
			if err != nil {
				t.Fatal(err)
			}
			n++
			content := fmt.Sprintf("content %d of %s", n, name)
			_, err = f.Write([]byte(content))
			delete(safe, name)
			if linked {
				clear(safe)
			}
			if sync {
				err = errors.Join(err, f.Sync(), m.SyncDir(path.Dir(name)))
				safe[name] = content
			}
			if err := errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"write":      func(t *rapid.T) { write(names.Draw(t, "name"), false) },
			"write safe": func(t *rapid.T) { write(names.Draw(t, "name"), true) },
			"rename": func(t *rapid.T) {
				from, to := names.Draw(t, "from"), names.Draw(t, "to")
				if err := m.Rename(from, to); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
				delete(safe, from)
				delete(safe, to)
			},
			"link": func(t *rapid.T) {
				if err := m.Link(names.Draw(t, "from"), names.Draw(t, "to")); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist) {
					t.Fatal(err)
				}
				linked = true
			},
			"remove": func(t *rapid.T) {
				name := names.Draw(t, "name")
				if err := m.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
				delete(safe, name)
			},
			"sync dir": func(t *rapid.T) {
				if err := m.SyncDir(rapid.SampledFrom([]string{"/", "/d"}).Draw(t, "dir")); err != nil {
					t.Fatal(err)
				}
			},
			"crash": func(t *rapid.T) {
				seed := rapid.Uint64().Draw(t, "seed")
				crashed := m.CrashClone(seeded(seed))
				got := tree(t, crashed, "/")
				if diff := cmp.Diff(got, tree(t, m.CrashClone(seeded(seed)), "/")); diff != "" {
					t.Fatalf("the same seed gave another crash:\n%s", diff)
				}
				for name, content := range safe {
					if got[name] != content {
						t.Fatalf("%s has %q, was synced with %q", name, got[name], content)
					}
				}
				if diff := cmp.Diff(got, tree(t, crashed.CrashClone(seeded(seed)), "/")); diff != "" {
					t.Fatalf("a second crash took more:\n%s", diff)
				}
				if rapid.Bool().Draw(t, "go on there") {
					m = crashed // what was safe still is
				}
			},
		})
	})
}
