// Package objstore is the thin face over the object store that holds a vault:
// a directory, S3 or Azure Blob. Objects are small enough (at most
// MaxObjectSize) to be handled as byte slices. SDKs of object stores are
// imported here and nowhere else.
package objstore

import (
	"context"
	"errors"
	"time"
)

// MaxObjectSize bounds an object, in bytes.
const MaxObjectSize = 256 << 20

var (
	// ErrNotFound says that there is no object of that name.
	ErrNotFound = errors.New("object not found")
	// ErrExists says that PutIfAbsent found an object of that name.
	ErrExists = errors.New("object exists already")
	// ErrChanged says that CompareAndSwap found another version.
	ErrChanged = errors.New("object was changed by someone else")
	// ErrGone says that the store is not there any more; see Anchorer.
	ErrGone = errors.New("the store is not the one that was opened")
)

// Store holds named, immutable or atomically replaced objects. Names are
// slash-separated, of [a-z0-9._-] parts, and sort bytewise. Every write is
// durable when the method returns. Safe for concurrent use by many processes.
// Seven methods: the least that vault, lease and canary need; S3 and Azure Blob
// have each of them natively.
type Store interface {
	// Put writes or atomically replaces an object.
	Put(ctx context.Context, name string, data []byte) error
	// PutIfAbsent writes an object unless one of that name exists (ErrExists).
	// Of many concurrent callers exactly one wins.
	PutIfAbsent(ctx context.Context, name string, data []byte) error
	// CompareAndSwap replaces the object if its version is still etag
	// (ErrChanged if not); etag "" means that it must be absent. It returns the
	// new version.
	CompareAndSwap(ctx context.Context, name string, data []byte, etag string) (string, error)
	// Get returns the whole object and its version.
	Get(ctx context.Context, name string) ([]byte, string, error)
	// GetRange returns length bytes from off; a negative off counts from the
	// end. It returns fewer bytes only at the end of the object.
	GetRange(ctx context.Context, name string, off, length int64) ([]byte, error)
	// List returns the objects whose names start with prefix and sort after
	// "after", in order.
	List(ctx context.Context, prefix, after string) ([]Entry, error)
	// Delete removes an object; it is no error if there is none.
	Delete(ctx context.Context, name string) error
}

// Anchorer is a store from under which its place can be taken away, and with it
// all objects: a directory whose file system is unmounted, where an empty one
// appears. What is written then is lost, and what is there looks as if it had
// never been.
type Anchorer interface {
	// Anchor names an object by which the store is known. From then on writes,
	// listings, and readings of objects that are not there fail with ErrGone
	// unless the object is there and same is true of what it has.
	Anchor(name string, same func(data []byte) bool)
}

// Entry is one object in a listing.
type Entry struct {
	Name    string
	Size    int64
	ModTime time.Time
}
