package vfs_test

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/internal/vfs"
)

const wantLog = `mkdir-all d
create d/a.tmp
write d/a.tmp +5
sync d/a.tmp
close d/a.tmp
rename d/a.tmp d/a
sync-dir d
open-rw d/a
write d/a 0+1
truncate d/a 3
size d/a
read d/a 0+9 = EOF
close d/a
open d/missing = ENOENT
link d/a d/a = EEXIST
stat d/a
list d
free d
lock d/lock
lock d/lock = locked
unlock d/lock
remove d = ENOTEMPTY
remove d/lock
write d/a +1 = file already closed
sync-dir d = crashed
`

func TestLog(t *testing.T) {
	t.Parallel()
	faults := &vfs.Faults{}
	var log strings.Builder
	fsys := vfs.WithLog(vfs.WithFaults(vfs.NewMem(), faults), &log)
	p := place{t, fsys, "."}
	p.must(fsys.MkdirAll("d"))
	p.must(vfs.WriteFileAtomic(fsys, "d/a", []byte("hello")))
	f, err := fsys.OpenRW("d/a")
	p.must(err)
	_, werr := f.WriteAt([]byte("H"), 0)
	terr := f.Truncate(3)
	_, serr := f.Size()
	p.must(errors.Join(werr, terr, serr))
	_, _ = f.ReadAt(make([]byte, 9), 0)
	p.must(f.Close())
	_, _ = fsys.Open("d/missing")
	_ = fsys.Link("d/a", "d/a")
	_, _ = fsys.Stat("d/a")
	_, _ = fsys.List("d")
	_, _ = fsys.Free("d")
	l, err := fsys.Lock("d/lock")
	p.must(err)
	_, _ = fsys.Lock("d/lock")
	p.must(l.Close())
	_ = fsys.Remove("d")
	p.must(fsys.Remove("d/lock"))
	_, _ = f.Write([]byte("x"))
	faults.CrashBefore(1)
	_ = fsys.SyncDir("d")
	if diff := cmp.Diff(strings.SplitAfter(wantLog, "\n"), strings.SplitAfter(log.String(), "\n")); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}

func TestLogThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	r, w := io.Pipe()
	r.Close()
	if err := vfs.WithLog(vfs.NewMem(), w).MkdirAll("d"); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v, want %v", err, io.ErrClosedPipe)
	}
}
