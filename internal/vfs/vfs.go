// Package vfs is the seam between Holdfast's stores and the file system: the
// real one, a crashable in-memory one, fault injection, and an operation log
// for golden tests. It imports nothing of this module.
package vfs

import (
	"io"
	"time"
)

// FS is a file system. Names are slash-separated paths. Errors wrap
// fs.ErrNotExist, fs.ErrExist and syscall errors (ENOSPC, EIO, EROFS) so that
// errors.Is finds them. Safe for concurrent use.
type FS interface {
	// Create creates or truncates a file for reading and writing. The name is
	// durable only after the parent directory's SyncDir.
	Create(name string) (File, error)
	// Open opens an existing file for reading. A directory is an error.
	Open(name string) (File, error)
	// OpenRW opens an existing file for reading and writing.
	OpenRW(name string) (File, error)
	// Remove removes a file or an empty directory.
	Remove(name string) error
	// Rename replaces newname atomically, which may not be a directory. Durable
	// after SyncDir of the parent(s).
	Rename(oldname, newname string) error
	// Link makes newname another name of oldname; it fails with fs.ErrExist
	// if newname exists. Durable after SyncDir.
	Link(oldname, newname string) error
	// MkdirAll creates a directory and its missing parents, and makes those
	// that it created durable.
	MkdirAll(dir string) error
	// SyncDir makes the entries of a directory durable: what was created,
	// renamed, linked and removed there. The content of files is not: see Sync.
	SyncDir(dir string) error
	// List returns the names in a directory, sorted, without its path.
	List(dir string) ([]string, error)
	// Stat describes a file or directory.
	Stat(name string) (Stat, error)
	// Lock takes an exclusive lock on a file, creating it if need be, held
	// until closed or the process ends. It fails with ErrLocked at once if
	// anyone holds it.
	Lock(name string) (io.Closer, error)
	// Free returns the bytes that can still be written below dir.
	Free(dir string) (int64, error)
}

// File is an open file. WriteAt and ReadAt are safe for concurrent use.
type File interface {
	io.ReaderAt
	io.WriterAt
	// Write appends at the file's own write offset, which starts at 0 after
	// Create and at the end after OpenRW. WriteAt does not move it.
	io.Writer
	// Close does not sync. What is done with a closed file fails with
	// fs.ErrClosed.
	io.Closer
	// Sync returns when the file's content and size are durable. After an
	// error nothing is known of what was written since the last success: do
	// not take a later success for this one, write again.
	Sync() error
	// Truncate cuts the file, or extends it with zeroes, to a size in bytes.
	Truncate(size int64) error
	// Size returns the file's size in bytes.
	Size() (int64, error)
}

// Stat is what is known of a file or directory.
type Stat struct {
	Size    int64 // bytes; of a directory it means nothing
	ModTime time.Time
	IsDir   bool
}
