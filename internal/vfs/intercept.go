package vfs

import "io"

// OpKind is a kind of operation on a file system or file.
type OpKind string

// The kinds of operations.
const (
	OpCreate   OpKind = "create"
	OpOpen     OpKind = "open"
	OpOpenRW   OpKind = "open-rw"
	OpRemove   OpKind = "remove"
	OpRename   OpKind = "rename"
	OpLink     OpKind = "link"
	OpMkdirAll OpKind = "mkdir-all"
	OpSyncDir  OpKind = "sync-dir"
	OpList     OpKind = "list"
	OpStat     OpKind = "stat"
	OpLock     OpKind = "lock"
	OpUnlock   OpKind = "unlock"
	OpFree     OpKind = "free"
	OpRead     OpKind = "read"
	OpWrite    OpKind = "write"
	OpSync     OpKind = "sync"
	OpTruncate OpKind = "truncate"
	OpSize     OpKind = "size"
	OpClose    OpKind = "close"
)

// Changes says whether an operation of this kind can change what a power cut
// leaves.
func (k OpKind) Changes() bool {
	switch k {
	case OpCreate, OpRemove, OpRename, OpLink, OpMkdirAll, OpSyncDir, OpLock, OpWrite, OpSync, OpTruncate:
		return true
	}
	return false
}

// Op is one operation.
type Op struct {
	// Number counts operations, and Change those that change something, from 1;
	// Change is 0 for others.
	Number, Change int
	Kind           OpKind
	// Name is the file or directory; of an open file, the name that it was
	// opened by. NewName is there for rename and link.
	Name, NewName string
	// Offset and Length are those of a read or write, in bytes. Offset is -1 for
	// a write at the file's own offset. Length is the size of a truncate.
	Offset, Length int64
}

// around is called for each operation and does it by do, or not. Of a write, do
// writes no more than op.Length by then.
type around func(op *Op, do func() error) error

// intercepted calls around for each operation of a file system.
type intercepted struct {
	fs     FS
	around around
}

var _ FS = intercepted{}

func (i intercepted) simple(kind OpKind, name string, do func() error) error {
	return i.around(&Op{Kind: kind, Name: name}, do)
}

func (i intercepted) open(kind OpKind, name string, open func(string) (File, error)) (File, error) {
	var f File
	err := i.simple(kind, name, func() (err error) {
		f, err = open(name)
		return err
	})
	if err != nil {
		if f != nil {
			f.Close()
		}
		return nil, err
	}
	return &interceptedFile{f, i.around, name}, nil
}

// Create creates or truncates a file.
func (i intercepted) Create(name string) (File, error) { return i.open(OpCreate, name, i.fs.Create) }

// Open opens a file for reading.
func (i intercepted) Open(name string) (File, error) { return i.open(OpOpen, name, i.fs.Open) }

// OpenRW opens a file for reading and writing.
func (i intercepted) OpenRW(name string) (File, error) { return i.open(OpOpenRW, name, i.fs.OpenRW) }

// Remove removes a file or an empty directory.
func (i intercepted) Remove(name string) error {
	return i.simple(OpRemove, name, func() error { return i.fs.Remove(name) })
}

// Rename replaces newname atomically.
func (i intercepted) Rename(oldname, newname string) error {
	return i.around(&Op{Kind: OpRename, Name: oldname, NewName: newname}, func() error { return i.fs.Rename(oldname, newname) })
}

// Link makes newname another name of oldname.
func (i intercepted) Link(oldname, newname string) error {
	return i.around(&Op{Kind: OpLink, Name: oldname, NewName: newname}, func() error { return i.fs.Link(oldname, newname) })
}

// MkdirAll creates a directory and its missing parents.
func (i intercepted) MkdirAll(dir string) error {
	return i.simple(OpMkdirAll, dir, func() error { return i.fs.MkdirAll(dir) })
}

// SyncDir makes the entries of a directory durable.
func (i intercepted) SyncDir(dir string) error {
	return i.simple(OpSyncDir, dir, func() error { return i.fs.SyncDir(dir) })
}

// List returns the names in a directory, sorted.
func (i intercepted) List(dir string) (names []string, err error) {
	err = i.simple(OpList, dir, func() (err error) {
		names, err = i.fs.List(dir)
		return err
	})
	return names, err
}

// Stat describes a file or directory.
func (i intercepted) Stat(name string) (st Stat, err error) {
	err = i.simple(OpStat, name, func() (err error) {
		st, err = i.fs.Stat(name)
		return err
	})
	return st, err
}

// Lock takes an exclusive lock on a file.
func (i intercepted) Lock(name string) (io.Closer, error) {
	var lock io.Closer
	err := i.simple(OpLock, name, func() (err error) {
		lock, err = i.fs.Lock(name)
		return err
	})
	if err != nil {
		if lock != nil {
			lock.Close()
		}
		return nil, err
	}
	return closer(func() error { return i.simple(OpUnlock, name, lock.Close) }), nil
}

// closer is a Close as a function.
type closer func() error

func (c closer) Close() error { return c() }

// Free returns the bytes that can still be written.
func (i intercepted) Free(dir string) (free int64, err error) {
	err = i.simple(OpFree, dir, func() (err error) {
		free, err = i.fs.Free(dir)
		return err
	})
	return free, err
}

// interceptedFile calls around for each operation of a file.
type interceptedFile struct {
	f      File
	around around
	name   string
}

var _ File = (*interceptedFile)(nil)

// ReadAt reads at off.
func (f *interceptedFile) ReadAt(p []byte, off int64) (n int, err error) {
	err = f.around(&Op{Kind: OpRead, Name: f.name, Offset: off, Length: int64(len(p))}, func() (err error) {
		n, err = f.f.ReadAt(p, off)
		return err
	})
	return n, err
}

// WriteAt writes at off.
func (f *interceptedFile) WriteAt(p []byte, off int64) (n int, err error) {
	op := &Op{Kind: OpWrite, Name: f.name, Offset: off, Length: int64(len(p))}
	err = f.around(op, func() (err error) {
		n, err = f.f.WriteAt(p[:op.Length], off)
		return err
	})
	return n, err
}

// Write appends at the file's own offset.
func (f *interceptedFile) Write(p []byte) (n int, err error) {
	op := &Op{Kind: OpWrite, Name: f.name, Offset: -1, Length: int64(len(p))}
	err = f.around(op, func() (err error) {
		n, err = f.f.Write(p[:op.Length])
		return err
	})
	return n, err
}

// Sync makes content and size durable.
func (f *interceptedFile) Sync() error {
	return f.around(&Op{Kind: OpSync, Name: f.name}, f.f.Sync)
}

// Truncate sets the size.
func (f *interceptedFile) Truncate(size int64) error {
	return f.around(&Op{Kind: OpTruncate, Name: f.name, Length: size}, func() error { return f.f.Truncate(size) })
}

// Size returns the file's size in bytes.
func (f *interceptedFile) Size() (size int64, err error) {
	err = f.around(&Op{Kind: OpSize, Name: f.name}, func() (err error) {
		size, err = f.f.Size()
		return err
	})
	return size, err
}

// Close closes the file.
func (f *interceptedFile) Close() error {
	return f.around(&Op{Kind: OpClose, Name: f.name}, f.f.Close)
}
