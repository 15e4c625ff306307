package objstore

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// lockName is a file in the store's directory, locked while CompareAndSwap
// compares and swaps.
const lockName = ".lock"

// tempDir has objects that are not whole yet.
const tempDir = ".tmp"

// staleTemp is the age at which what is in tempDir is taken for the leavings of
// a crash. No write takes that long.
const staleTemp = 24 * time.Hour

// dirStore keeps objects as files below a directory.
type dirStore struct {
	fs   vfs.FS
	root string
	id   string // no other opening of a store has it

	// mu guards seq, by which temporary names differ; dirs, which were seen to be
	// there; swept: whether stale temporary files were removed; and the anchor.
	mu     sync.Mutex
	seq    uint64
	dirs   map[string]bool
	swept  bool
	anchor string
	same   func([]byte) bool
}

// NewDir returns the store in a directory, which must exist, and is never made:
// it may be a file system that is not mounted. Objects are files; many processes
// may use the store at the same time. Errors of the file system (ENOSPC, EROFS,
// EIO) stay visible to errors.Is.
func NewDir(fsys vfs.FS, root string) (Store, error) {
	st, err := fsys.Stat(root)
	if err != nil {
		return nil, fmt.Errorf("object store %s: %w", root, err)
	}
	if !st.IsDir {
		return nil, fmt.Errorf("object store %s: not a directory", root)
	}
	return &dirStore{fs: fsys, root: root, id: rand.Text(), dirs: map[string]bool{}}, nil
}

// checkName refuses names that are not of [a-z0-9._-] parts.
func checkName(name string) error {
	for part := range strings.SplitSeq(name, "/") {
		bad := func(c rune) bool {
			return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-'
		}
		if part == "" || part[0] == '.' || strings.ContainsFunc(part, bad) {
			return fmt.Errorf("object name %q: want slash-separated parts of [a-z0-9._-] that do not begin with a dot", name)
		}
	}
	return nil
}

func (d *dirStore) file(name string) string { return path.Join(d.root, name) }

// temp writes data durably under a name that nobody else uses.
func (d *dirStore) temp(ctx context.Context, name string, data []byte) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if err := checkName(name); err != nil {
		return "", err
	}
	if len(data) > MaxObjectSize {
		return "", fmt.Errorf("%d bytes, the limit is %d", len(data), MaxObjectSize)
	}
	if err := d.checkRoot(); err != nil {
		return "", err
	}
	for _, dir := range []string{path.Join(d.root, tempDir), path.Dir(d.file(name))} {
		if err := d.makeDir(dir); err != nil {
			return "", err
		}
	}
	d.mu.Lock()
	d.seq++
	temp := path.Join(d.root, tempDir, fmt.Sprintf("%s-%d", d.id, d.seq))
	sweep := !d.swept
	d.swept = true
	d.mu.Unlock()
	f, err := d.fs.Create(temp)
	if err != nil {
		return "", err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, d.fs.Remove(temp))
	}
	if sweep {
		d.sweep(temp)
	}
	return temp, nil
}

// sweep removes temporary files that a crash has left behind. As own is new, its
// time says what the file system takes for now.
func (d *dirStore) sweep(own string) {
	now, err := d.fs.Stat(own)
	if err != nil {
		return
	}
	dir := path.Dir(own)
	names, err := d.fs.List(dir)
	if err != nil {
		return
	}
	for _, base := range names {
		st, err := d.fs.Stat(path.Join(dir, base))
		if err == nil && now.ModTime.Sub(st.ModTime) > staleTemp {
			_ = d.fs.Remove(path.Join(dir, base)) // the next opening tries again
		}
	}
}

// makeDir makes a directory below the store's, unless it was seen before.
func (d *dirStore) makeDir(dir string) error {
	d.mu.Lock()
	seen := d.dirs[dir]
	d.mu.Unlock()
	if seen {
		return nil
	}
	if _, err := d.fs.Stat(dir); err != nil {
		if err := d.fs.MkdirAll(dir); err != nil {
			return err
		}
	}
	// Another process may have made it just now, or died before it was durable.
	for up := dir; up != path.Clean(d.root); {
		up = path.Dir(up)
		if err := d.fs.SyncDir(up); err != nil {
			return err
		}
	}
	d.mu.Lock()
	d.dirs[dir] = true
	d.mu.Unlock()
	return nil
}

// forget looks at the directories again after a failure.
func (d *dirStore) forget(err error) error {
	if err != nil {
		d.mu.Lock()
		clear(d.dirs)
		d.mu.Unlock()
	}
	return err
}

// Anchor names an object by which the store is known.
func (d *dirStore) Anchor(name string, same func([]byte) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.anchor, d.same = name, same
}

// checkRoot says whether the store itself is there.
func (d *dirStore) checkRoot() error {
	if _, err := d.fs.Stat(d.root); err != nil {
		return err
	}
	d.mu.Lock()
	anchor, same := d.anchor, d.same
	d.mu.Unlock()
	if anchor == "" {
		return nil
	}
	b, err := d.read(anchor, 0, MaxObjectSize)
	if absent(err) || err == nil && !same(b) {
		return fmt.Errorf("%w: %s has no object %s of it; is its file system mounted?", ErrGone, d.root, anchor)
	}
	return err
}

// Put writes or replaces an object.
func (d *dirStore) Put(ctx context.Context, name string, data []byte) error {
	temp, err := d.temp(ctx, name, data)
	if err == nil {
		if err = d.fs.Rename(temp, d.file(name)); err != nil {
			err = errors.Join(err, d.fs.Remove(temp))
		}
	}
	if err == nil {
		err = d.fs.SyncDir(path.Dir(d.file(name)))
	}
	if err == nil {
		err = d.checkRoot() // it may have gone meanwhile
	}
	return wrap("put", name, d.forget(err))
}

// PutIfAbsent writes an object unless there is one.
func (d *dirStore) PutIfAbsent(ctx context.Context, name string, data []byte) error {
	temp, err := d.temp(ctx, name, data)
	if err != nil {
		return wrap("put", name, d.forget(err))
	}
	err = d.fs.Link(temp, d.file(name))
	exists := errors.Is(err, fs.ErrExist)
	if exists {
		err = nil
	}
	if err == nil {
		// Also for the loser: what it then reads must not vanish in a crash.
		err = d.fs.SyncDir(path.Dir(d.file(name)))
	}
	if err == nil {
		err = d.checkRoot() // it may have gone meanwhile
	}
	// The object is what counts: a temporary file that stays is swept one day.
	if rerr := d.fs.Remove(temp); err != nil {
		err = errors.Join(err, rerr)
	}
	if err == nil && exists {
		return wrap("put", name, ErrExists)
	}
	return wrap("put", name, d.forget(err))
}

// CompareAndSwap replaces an object of a known version.
func (d *dirStore) CompareAndSwap(ctx context.Context, name string, data []byte, etag string) (string, error) {
	if err := errors.Join(checkName(name), d.checkRoot()); err != nil {
		return "", wrap("replace", name, err)
	}
	lock, err := d.fs.Lock(path.Join(d.root, lockName))
	for errors.Is(err, vfs.ErrLocked) && wait(ctx) { // held for the time of one write
		lock, err = d.fs.Lock(path.Join(d.root, lockName))
	}
	if err != nil {
		return "", wrap("replace", name, errors.Join(ctx.Err(), err))
	}
	err = d.swap(ctx, name, data, etag)
	if err := errors.Join(err, lock.Close()); err != nil {
		return "", wrap("replace", name, err)
	}
	return version(data), nil
}

// swap is CompareAndSwap under the lock.
func (d *dirStore) swap(ctx context.Context, name string, data []byte, etag string) error {
	_, have, err := d.Get(ctx, name)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if have != etag {
		return ErrChanged
	}
	return d.Put(ctx, name, data)
}

// wait waits a moment and says whether ctx is still alive.
func wait(ctx context.Context) bool {
	t := time.NewTimer(2 * time.Millisecond)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// version names an object's content.
func version(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:16])
}

// Get returns an object.
func (d *dirStore) Get(ctx context.Context, name string) ([]byte, string, error) {
	b, err := d.GetRange(ctx, name, 0, MaxObjectSize+1)
	if err == nil && len(b) > MaxObjectSize {
		err = wrap("get", name, fmt.Errorf("it has more than %d bytes", MaxObjectSize))
	}
	if err != nil {
		return nil, "", err
	}
	return b, version(b), nil
}

// GetRange returns a part of an object.
func (d *dirStore) GetRange(ctx context.Context, name string, off, length int64) ([]byte, error) {
	if err := errors.Join(ctx.Err(), checkName(name)); err != nil {
		return nil, wrap("get", name, err)
	}
	b, err := d.read(name, off, length)
	if absent(err) {
		// A store that is not there must not look like an empty one.
		if err = d.checkRoot(); err == nil {
			err = ErrNotFound
		}
	}
	return b, wrap("get", name, err)
}

func (d *dirStore) read(name string, off, length int64) ([]byte, error) {
	f, err := d.fs.Open(d.file(name))
	if err != nil {
		return nil, err
	}
	size, err := f.Size()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if off < 0 {
		off = max(0, size+off)
	}
	b := make([]byte, max(0, min(length, size-off)))
	n, err := f.ReadAt(b, off)
	if errors.Is(err, io.EOF) || len(b) == 0 {
		err = nil
	}
	return b[:n], errors.Join(err, f.Close())
}

// List returns objects in order of their names.
func (d *dirStore) List(ctx context.Context, prefix, after string) ([]Entry, error) {
	// The directory that the prefix names in full is where to begin.
	dir := ""
	if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
		if dir = prefix[:i]; checkName(dir) != nil {
			return nil, wrap("list", prefix, checkName(dir))
		}
	}
	l := lister{d: d, prefix: prefix, after: after}
	err := l.walk(ctx, dir)
	if absent(err) && dir != "" || err == nil {
		err = d.checkRoot() // a store that is not there must not look like an empty one
	}
	slices.SortFunc(l.out, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return l.out, wrap("list", prefix, err)
}

// lister is one listing.
type lister struct {
	d             *dirStore
	prefix, after string
	out           []Entry
}

func (l *lister) walk(ctx context.Context, dir string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	names, err := l.d.fs.List(l.d.file(dir))
	if err != nil {
		return err
	}
	for _, base := range names {
		name := path.Join(dir, base)
		if base[0] == '.' || !l.mayHold(name) {
			continue
		}
		st, err := l.d.fs.Stat(l.d.file(name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return err
		}
		if st.IsDir {
			if err := l.walk(ctx, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			continue
		}
		if strings.HasPrefix(name, l.prefix) && name > l.after {
			l.out = append(l.out, Entry{Name: name, Size: st.Size, ModTime: st.ModTime})
		}
	}
	return nil
}

// mayHold says whether a file or directory of this name can be, or have, what is
// listed: it and the prefix agree as far as both go, and it is not before after.
func (l *lister) mayHold(name string) bool {
	if n := min(len(name), len(l.prefix)); name[:n] != l.prefix[:n] {
		return false
	}
	return len(l.after) < len(name) || name >= l.after[:len(name)]
}

// Delete removes an object.
func (d *dirStore) Delete(ctx context.Context, name string) error {
	if err := errors.Join(ctx.Err(), checkName(name)); err != nil {
		return wrap("delete", name, err)
	}
	if err := d.checkRoot(); err != nil {
		return wrap("delete", name, err)
	}
	err := d.fs.Remove(d.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		return wrap("delete", name, d.checkRoot())
	}
	if err == nil {
		err = d.fs.SyncDir(path.Dir(d.file(name)))
	}
	return wrap("delete", name, err)
}

// absent says whether an error is that there is no such file, or that what would
// be its directory is one.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

// wrap says what was done to which object.
func wrap(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s object %s: %w", op, name, err)
}

var (
	_ Store    = (*dirStore)(nil)
	_ Anchorer = (*dirStore)(nil)
)
