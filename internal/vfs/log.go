package vfs

import (
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// WithLog returns fsys such that each operation writes a line to w, for golden
// files: what was done, to what, and after " = " the error if there was one, as
// its number's name. Lines have no times, and operations go one at a time, so
// that the order of the lines is the order of what happened. An operation whose
// line cannot be written fails.
//
//	create dir/name
//	write dir/name 0+512
//	write dir/name +512           at the file's own offset
//	rename dir/name dir/other
//	sync-dir dir = EIO
func WithLog(fsys FS, w io.Writer) FS {
	l := &opLog{w: w}
	return intercepted{fsys, l.around}
}

type opLog struct {
	// mu is held during an operation and its line.
	mu sync.Mutex
	w  io.Writer
}

func (l *opLog) around(op *Op, do func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := do()
	line := op.String()
	if err != nil {
		line += " = " + errorName(err)
	}
	if _, werr := io.WriteString(l.w, line+"\n"); werr != nil {
		return errors.Join(err, fmt.Errorf("log of operations: %w", werr))
	}
	return err
}

// String returns the operation as WithLog writes it.
func (op Op) String() string {
	s := string(op.Kind) + " " + op.Name
	switch op.Kind {
	case OpRename, OpLink:
		s += " " + op.NewName
	case OpTruncate:
		s += fmt.Sprintf(" %d", op.Length)
	case OpRead, OpWrite:
		if op.Offset < 0 {
			s += fmt.Sprintf(" +%d", op.Length)
		} else {
			s += fmt.Sprintf(" %d+%d", op.Offset, op.Length)
		}
	}
	return s
}

// errorName returns a name of an error without paths, that is the same on every
// file system.
func errorName(err error) string {
	var errno syscall.Errno
	var pathErr *iofs.PathError
	switch {
	case errors.Is(err, ErrLocked):
		return "locked"
	case errors.Is(err, ErrCrashed):
		return "crashed"
	case errors.As(err, &errno) && unix.ErrnoName(errno) != "":
		return unix.ErrnoName(errno)
	case errors.As(err, &pathErr):
		return pathErr.Err.Error()
	}
	return err.Error()
}
