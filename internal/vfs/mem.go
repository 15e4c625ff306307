package vfs

import (
	"io"
	iofs "io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// unlimited is what a Mem without a limit says to be free.
const unlimited = int64(1) << 50

// Mem is a file system in memory that knows what a power cut would leave of
// it. Relative names begin at its root, which is all that exists at first. It
// fails as the real one does, with the same errors. Safe for concurrent use.
type Mem struct {
	// mu guards what follows, and all inodes and open files.
	mu    sync.Mutex
	root  *inode
	seq   uint64
	log   []change // changes of directories that no SyncDir made durable, in order
	used  int64
	limit int64
}

var _ FS = (*Mem)(nil)

// inode is a file or directory, under any number of names.
type inode struct {
	isDir   bool
	modTime time.Time
	locked  bool
	links   int // names that it has now
	opens   int // open files

	entries map[string]*inode // of a directory: as it is
	durable map[string]entry  // and as a power cut would leave it at least
	content                   // of a file
}

// entry is a name that is durable, or durably removed if node is nil. Of two
// changes of a name that with the higher seq wins, in whatever order they are
// made durable.
type entry struct {
	node *inode
	seq  uint64
}

// change is what one operation did to directories; all of it survives a power
// cut, or nothing.
type change struct {
	seq   uint64
	parts []part // of a rename the old name first
}

// part is a new meaning of a name; no node means that it is removed.
type part struct {
	dir  *inode
	name string
	node *inode
}

func newDir() *inode {
	return &inode{isDir: true, modTime: time.Now(), entries: map[string]*inode{}, durable: map[string]entry{}}
}

// NewMem returns an empty file system without a limit.
func NewMem() *Mem { return &Mem{root: newDir(), limit: unlimited} }

// SetLimit sets how many bytes files can have together, counted in pages of
// 4096 bytes that are not holes. Writes beyond it are cut short with ENOSPC.
func (m *Mem) SetLimit(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.limit = bytes
}

func pathError(op, name string, errno syscall.Errno) error {
	return &iofs.PathError{Op: op, Path: name, Err: errno}
}

// split returns the parts of a name from the root.
func split(name string) []string {
	clean := strings.Trim(path.Clean("/"+name), "/")
	if clean == "" {
		return nil
	}
	return strings.Split(clean, "/")
}

// walk follows parts from the root.
func (m *Mem) walk(parts []string) (*inode, syscall.Errno) {
	n := m.root
	for _, p := range parts {
		if !n.isDir {
			return nil, syscall.ENOTDIR
		}
		next, ok := n.entries[p]
		if !ok {
			return nil, syscall.ENOENT
		}
		n = next
	}
	return n, 0
}

// place returns the directory of a name, its last part, and what is there.
func (m *Mem) place(name string) (dir *inode, base string, node *inode, errno syscall.Errno) {
	if name == "" {
		return nil, "", nil, syscall.ENOENT
	}
	parts := split(name)
	if len(parts) == 0 {
		return nil, "", nil, syscall.EBUSY // the root
	}
	dir, errno = m.walk(parts[:len(parts)-1])
	if errno == 0 && !dir.isDir {
		errno = syscall.ENOTDIR
	}
	if errno != 0 {
		return nil, "", nil, errno
	}
	base = parts[len(parts)-1]
	return dir, base, dir.entries[base], 0
}

// apply changes directories, for now not durably.
func (m *Mem) apply(parts ...part) {
	for _, p := range parts {
		if was := p.dir.entries[p.name]; was != nil {
			was.links--
			m.release(was)
		}
		if p.node == nil {
			delete(p.dir.entries, p.name)
		} else {
			p.dir.entries[p.name] = p.node
			p.node.links++
		}
		p.dir.modTime = time.Now()
	}
	m.seq++
	m.log = append(m.log, change{m.seq, parts})
}

// release gives the space of a file back that nothing can reach any more. Its
// content stays: a power cut may bring a name of it back.
func (m *Mem) release(n *inode) {
	if n.links == 0 && n.opens == 0 {
		m.used -= n.allocated()
	}
}

// make makes a change durable in the given state of directories.
func (c change) make(durable func(*inode) map[string]entry) {
	for _, p := range c.parts {
		if d := durable(p.dir); d[p.name].seq < c.seq {
			d[p.name] = entry{p.node, c.seq}
		}
	}
}

// Create creates or truncates a file.
func (m *Mem) Create(name string) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.create("open", name)
	if err != nil {
		return nil, err
	}
	m.used -= n.truncate(0)
	n.modTime = time.Now()
	return m.open(n, name, true), nil
}

// create finds a file or makes it.
func (m *Mem) create(op, name string) (*inode, error) {
	dir, base, n, errno := m.place(name)
	switch {
	case errno == syscall.EBUSY || errno == 0 && n != nil && n.isDir:
		return nil, pathError(op, name, syscall.EISDIR)
	case errno != 0:
		return nil, pathError(op, name, errno)
	case n == nil:
		n = &inode{modTime: time.Now()}
		m.apply(part{dir, base, n})
	}
	return n, nil
}

func (m *Mem) open(n *inode, name string, write bool) File {
	n.opens++
	return &memFile{m: m, n: n, name: name, write: write}
}

// Open opens a file for reading.
func (m *Mem) Open(name string) (File, error) { return m.openExisting(name, false) }

// OpenRW opens a file for reading and writing.
func (m *Mem) OpenRW(name string) (File, error) { return m.openExisting(name, true) }

func (m *Mem) openExisting(name string, write bool) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, errno := m.find(name)
	if errno == 0 && n.isDir {
		errno = syscall.EISDIR
	}
	if errno != 0 {
		return nil, pathError("open", name, errno)
	}
	f := m.open(n, name, write)
	f.(*memFile).off = n.size
	return f, nil
}

func (m *Mem) find(name string) (*inode, syscall.Errno) {
	if name == "" {
		return nil, syscall.ENOENT
	}
	return m.walk(split(name))
}

// Remove removes a file or an empty directory.
func (m *Mem) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, base, n, errno := m.place(name)
	switch {
	case errno != 0:
	case n == nil:
		errno = syscall.ENOENT
	case n.isDir && len(n.entries) > 0:
		errno = syscall.ENOTEMPTY
	}
	if errno != 0 {
		return pathError("remove", name, errno)
	}
	m.apply(part{dir, base, nil})
	return nil
}

// Rename replaces newname atomically.
func (m *Mem) Rename(oldname, newname string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	oldDir, oldBase, n, errno := m.place(oldname)
	if errno == 0 && n == nil {
		errno = syscall.ENOENT
	}
	var newDir, was *inode
	var newBase string
	if errno == 0 {
		newDir, newBase, was, errno = m.place(newname)
	}
	if errno == 0 {
		from, to := split(oldname), split(newname)
		switch {
		case was == n && !n.isDir:
			return nil // two names of one file: nothing happens
		case was != nil && was.isDir:
			errno = syscall.EEXIST
		case was != nil && n.isDir:
			errno = syscall.ENOTDIR
		case n.isDir && len(to) > len(from) && slices.Equal(from, to[:len(from)]):
			errno = syscall.EINVAL
		}
	}
	if errno != 0 {
		return &os.LinkError{Op: "rename", Old: oldname, New: newname, Err: errno}
	}
	n.links++ // or it is free for a moment
	m.apply(part{oldDir, oldBase, nil}, part{newDir, newBase, n})
	n.links--
	return nil
}

// Link makes newname another name of oldname.
func (m *Mem) Link(oldname, newname string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, errno := m.find(oldname)
	var dir, was *inode
	var base string
	if errno == 0 {
		dir, base, was, errno = m.place(newname)
	}
	switch {
	case errno == syscall.EBUSY || errno == 0 && was != nil:
		errno = syscall.EEXIST
	case errno == 0 && n.isDir:
		errno = syscall.EPERM
	}
	if errno != 0 {
		return &os.LinkError{Op: "link", Old: oldname, New: newname, Err: errno}
	}
	m.apply(part{dir, base, n})
	return nil
}

// MkdirAll creates a directory and its missing parents, durably.
func (m *Mem) MkdirAll(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if dir == "" {
		return pathError("mkdir", dir, syscall.ENOENT)
	}
	n := m.root
	for _, p := range split(dir) {
		next, ok := n.entries[p]
		if !ok {
			next = newDir()
			m.apply(part{n, p, next})
			m.syncDir(n)
		}
		if n = next; !n.isDir {
			return pathError("mkdir", dir, syscall.ENOTDIR)
		}
	}
	return nil
}

// SyncDir makes the entries of a directory durable. A rename between two
// directories is durable as a whole when either is synced.
func (m *Mem) SyncDir(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, errno := m.find(dir)
	if errno == 0 && !n.isDir {
		errno = syscall.ENOTDIR
	}
	if errno != 0 {
		return pathError("sync", dir, errno)
	}
	m.syncDir(n)
	return nil
}

func (m *Mem) syncDir(n *inode) {
	m.log = slices.DeleteFunc(m.log, func(c change) bool {
		if !slices.ContainsFunc(c.parts, func(p part) bool { return p.dir == n }) {
			return false
		}
		c.make(func(dir *inode) map[string]entry { return dir.durable })
		return true
	})
	// No change of this directory is left that a removed name must win against.
	maps.DeleteFunc(n.durable, func(_ string, e entry) bool { return e.node == nil })
}

// List returns the names in a directory, sorted.
func (m *Mem) List(dir string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, errno := m.find(dir)
	if errno == 0 && !n.isDir {
		errno = syscall.ENOTDIR
	}
	if errno != 0 {
		return nil, pathError("readdir", dir, errno)
	}
	return slices.Sorted(maps.Keys(n.entries)), nil
}

// Stat describes a file or directory.
func (m *Mem) Stat(name string) (Stat, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, errno := m.find(name)
	if errno != 0 {
		return Stat{}, pathError("stat", name, errno)
	}
	return Stat{Size: n.size, ModTime: n.modTime, IsDir: n.isDir}, nil
}

// Lock takes an exclusive lock on a file, which is held until it is closed. A
// clone has no locks: the process that held them is gone.
func (m *Mem) Lock(name string) (io.Closer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.create("open", name)
	if err != nil {
		return nil, err
	}
	if n.locked {
		return nil, &iofs.PathError{Op: "lock", Path: name, Err: ErrLocked}
	}
	n.locked = true
	return &memLock{m.open(n, name, false).(*memFile)}, nil
}

// memLock is an open file that holds the lock.
type memLock struct{ f *memFile }

// Close gives the lock up.
func (l *memLock) Close() error {
	l.f.m.mu.Lock()
	if !l.f.closed {
		l.f.n.locked = false
	}
	l.f.m.mu.Unlock()
	return l.f.Close()
}

// Free returns the bytes that can still be written.
func (m *Mem) Free(dir string) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, errno := m.find(dir); errno != 0 {
		return 0, pathError("statfs", dir, errno)
	}
	return max(0, m.limit-m.used), nil
}
