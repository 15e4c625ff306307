package objstore

import (
	"context"
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
	"time"

	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// lockName is a file in the store's directory; CompareAndSwap locks it.
const lockName = ".lock"

// tempDir has objects that are not whole yet.
const tempDir = ".tmp"

// dirStore keeps objects as files below a directory.
type dirStore struct {
	fs   vfs.FS
	root string

	// mu guards seq, by which temporary names differ, and makes CompareAndSwap
	// one at a time within this process.
	mu  sync.Mutex
	seq uint64
	id  string
}

// NewDir returns the store in a directory, which must exist. Objects are files;
// many processes may use it at the same time.
func NewDir(fsys vfs.FS, root string) (Store, error) {
	st, err := fsys.Stat(root)
	if err != nil {
		return nil, fmt.Errorf("object store %s: %w", root, err)
	}
	if !st.IsDir {
		return nil, fmt.Errorf("object store %s: not a directory", root)
	}
	return &dirStore{fs: fsys, root: root, id: processID()}, nil
}

// checkName refuses names that are not of [a-z0-9._-] parts.
func checkName(name string) error {
	for _, part := range strings.Split(name, "/") {
		if part == "" || part[0] == '.' {
			return fmt.Errorf("object name %q: want slash-separated parts of [a-z0-9._-]", name)
		}
		for _, c := range []byte(part) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
				return fmt.Errorf("object name %q: want slash-separated parts of [a-z0-9._-]", name)
			}
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
		return "", fmt.Errorf("object %s has %d bytes, the limit is %d", name, len(data), MaxObjectSize)
	}
	if err := d.parents(name); err != nil {
		return "", err
	}
	d.mu.Lock()
	d.seq++
	temp := path.Join(d.root, tempDir, fmt.Sprintf("%s-%d", d.id, d.seq))
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
	return temp, nil
}

// parents makes the directories of a name, if they are not there.
func (d *dirStore) parents(name string) error {
	if _, err := d.fs.Stat(d.root); err != nil {
		return err // the store itself is never made: it may be a mount that is away
	}
	for _, dir := range []string{path.Join(d.root, tempDir), path.Dir(d.file(name))} {
		if _, err := d.fs.Stat(dir); err == nil {
			continue
		}
		if err := d.fs.MkdirAll(dir); err != nil {
			return err
		}
	}
	return nil
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
	return wrap("put", name, err)
}

// PutIfAbsent writes an object unless there is one.
func (d *dirStore) PutIfAbsent(ctx context.Context, name string, data []byte) error {
	temp, err := d.temp(ctx, name, data)
	if err != nil {
		return wrap("put", name, err)
	}
	err = d.fs.Link(temp, d.file(name))
	if errors.Is(err, fs.ErrExist) {
		err = ErrExists
	}
	if err == nil || errors.Is(err, ErrExists) {
		// Also for the loser: what it then reads must not vanish in a crash.
		err = errors.Join(err, d.fs.SyncDir(path.Dir(d.file(name))))
	}
	return wrap("put", name, errors.Join(err, d.fs.Remove(temp)))
}

// CompareAndSwap replaces an object of a known version.
func (d *dirStore) CompareAndSwap(ctx context.Context, name string, data []byte, etag string) (string, error) {
	d.mu.Lock()
	lock, err := d.fs.Lock(path.Join(d.root, lockName))
	d.mu.Unlock()
	for errors.Is(err, vfs.ErrLocked) && wait(ctx) { // held for the time of one write
		lock, err = d.fs.Lock(path.Join(d.root, lockName))
	}
	if err != nil {
		return "", wrap("replace", name, err)
	}
	defer lock.Close()
	_, have, err := d.Get(ctx, name)
	if errors.Is(err, ErrNotFound) {
		have, err = "", nil
	}
	if err != nil {
		return "", err
	}
	if have != etag {
		return "", wrap("replace", name, ErrChanged)
	}
	return version(data), d.Put(ctx, name, data)
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
	b, err := d.GetRange(ctx, name, 0, MaxObjectSize)
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
	f, err := d.fs.Open(d.file(name))
	if err != nil {
		return nil, wrap("get", name, err)
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, wrap("get", name, err)
	}
	if off < 0 {
		off = max(0, size+off)
	}
	b := make([]byte, max(0, min(length, size-off)))
	if len(b) == 0 {
		return b, nil
	}
	_, err = f.ReadAt(b, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return b, wrap("get", name, err)
}

// List returns objects in order of their names.
func (d *dirStore) List(ctx context.Context, prefix, after string) ([]Entry, error) {
	var out []Entry
	err := d.list(ctx, "", prefix, after, &out)
	slices.SortFunc(out, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return out, wrap("list", prefix, err)
}

func (d *dirStore) list(ctx context.Context, dir, prefix, after string, out *[]Entry) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	names, err := d.fs.List(path.Join(d.root, dir))
	if err != nil {
		if dir != "" && errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	for _, base := range names {
		if base[0] == '.' {
			continue
		}
		name := path.Join(dir, base)
		// Below a directory there is something only if it and prefix agree as far
		// as both go.
		n := min(len(name), len(prefix))
		if name[:n] != prefix[:n] || len(name) >= len(prefix) && after != "" && len(after) >= len(name) && name < after[:len(name)] {
			continue
		}
		st, err := d.fs.Stat(path.Join(d.root, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return err
		}
		if st.IsDir {
			if err := d.list(ctx, name, prefix, after, out); err != nil {
				return err
			}
			continue
		}
		if strings.HasPrefix(name, prefix) && name > after {
			*out = append(*out, Entry{Name: name, Size: st.Size, ModTime: st.ModTime})
		}
	}
	return nil
}

// Delete removes an object.
func (d *dirStore) Delete(ctx context.Context, name string) error {
	if err := errors.Join(ctx.Err(), checkName(name)); err != nil {
		return wrap("delete", name, err)
	}
	err := d.fs.Remove(d.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = d.fs.SyncDir(path.Dir(d.file(name)))
	}
	return wrap("delete", name, err)
}

// wrap says what was done to which object, and gives a missing one its name.
func wrap(op, name string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) && op == "get" {
		return fmt.Errorf("%s object %s: %w", op, name, ErrNotFound)
	}
	return fmt.Errorf("%s object %s: %w", op, name, err)
}

var _ Store = (*dirStore)(nil)
