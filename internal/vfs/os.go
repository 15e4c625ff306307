package vfs

import (
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// ErrLocked says that somebody else holds a lock.
var ErrLocked = errors.New("the file is locked by another process")

// OS is the real file system. New files have mode 0600, new directories 0700.
var OS FS = osFS{}

type osFS struct{}

// osFile adds Size to an operating system's file.
type osFile struct{ *os.File }

// Size returns the file's size in bytes.
func (f osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func openOS(name string, flag int) (File, error) {
	f, err := os.OpenFile(name, flag, 0o600)
	if err != nil {
		return nil, err
	}
	// A directory can be opened for reading.
	if st, err := f.Stat(); err != nil || st.IsDir() {
		if err == nil {
			err = pathError("open", name, unix.EISDIR)
		}
		return nil, errors.Join(err, f.Close())
	}
	return osFile{f}, nil
}

// Create creates or truncates a file, with mode 0600.
func (osFS) Create(name string) (File, error) {
	return openOS(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
}

// Open opens a file for reading.
func (osFS) Open(name string) (File, error) { return openOS(name, os.O_RDONLY) }

// OpenRW opens a file for reading and writing.
func (osFS) OpenRW(name string) (File, error) {
	f, err := openOS(name, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	if _, err := f.(osFile).Seek(0, io.SeekEnd); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Remove removes a file or an empty directory.
func (osFS) Remove(name string) error { return os.Remove(name) }

// Rename replaces newname atomically.
func (osFS) Rename(oldname, newname string) error { return os.Rename(oldname, newname) }

// Link makes newname another name of oldname.
func (osFS) Link(oldname, newname string) error { return os.Link(oldname, newname) }

// MkdirAll creates a directory and its missing parents, and makes them durable.
func (fs osFS) MkdirAll(dir string) error {
	var made []string
	for d := filepath.Clean(dir); ; d = filepath.Dir(d) {
		if _, err := os.Stat(d); err == nil || d == filepath.Dir(d) {
			break
		}
		made = append(made, d)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, d := range slices.Backward(made) {
		if err := fs.SyncDir(filepath.Dir(d)); err != nil {
			return err
		}
	}
	return nil
}

// SyncDir makes the entries of a directory durable.
func (osFS) SyncDir(dir string) error {
	d, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, unix.EINVAL) {
		// Some network file systems cannot sync a directory: they change it at
		// the server, and there is nothing that a client could do.
		err = nil
	}
	return errors.Join(err, d.Close())
}

// List returns the names in a directory, sorted.
func (osFS) List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

// Stat describes a file or directory.
func (osFS) Stat(name string) (Stat, error) {
	st, err := os.Stat(name)
	if err != nil {
		return Stat{}, err
	}
	return Stat{Size: st.Size(), ModTime: st.ModTime(), IsDir: st.IsDir()}, nil
}

// Lock takes an exclusive flock, which ends with the process.
func (osFS) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, errors.Join(&os.PathError{Op: "lock", Path: name, Err: err}, f.Close())
	}
	return osLock{f}, nil
}

// flock calls flock(2) on an open file.
func flock(f *os.File, how int) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) {
		for {
			if err = unix.Flock(int(fd), how); !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}); cerr != nil {
		return cerr
	}
	return err
}

// osLock is an open file that holds the lock.
type osLock struct{ f *os.File }

// Close gives the lock up. Closing the file alone would not: a process that is
// being forked has it, too, until it becomes another program.
func (l osLock) Close() error { return errors.Join(flock(l.f, unix.LOCK_UN), l.f.Close()) }

// Free returns the bytes that an ordinary user can still write below dir.
func (osFS) Free(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	free := st.Bavail * uint64(st.Frsize)
	if st.Frsize > 0 && free/uint64(st.Frsize) != st.Bavail || free > math.MaxInt64 {
		return math.MaxInt64, nil // some virtual file systems have no bounds
	}
	return int64(free), nil
}

var _ FS = osFS{}
