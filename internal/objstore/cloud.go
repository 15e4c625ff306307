package objstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"slices"
	"strings"
	"time"
)

// bucket is what a cloud's client does for a store. Keys are objects' names below the
// prefix. Errors are those of this package where it has one for the case.
type bucket interface {
	// put writes an object, and returns its version; errCondition if the condition
	// does not hold, ErrNotFound if there is none whose version could be compared.
	put(ctx context.Context, key string, data []byte, w writing) (string, error)
	// get begins to read length bytes from off, which is not negative, or the whole
	// object if length is 0; errRange if it ends before.
	get(ctx context.Context, key string, off, length int64) (io.ReadCloser, found, error)
	// tail begins to read the last n bytes, or all there are.
	tail(ctx context.Context, key string, n int64) (io.ReadCloser, found, error)
	list(ctx context.Context, prefix, after string, add func(Entry)) error
	remove(ctx context.Context, key string) error
}

// writing says under which condition, and as what, an object is written.
type writing struct {
	absent bool      // there must be no such object
	etag   string    // its version, unless empty
	nonce  string    // kept with the object: whose writing it is
	until  time.Time // locked until then; zero: not locked
}

// found says which object is being read.
type found struct {
	etag, nonce string
}

var (
	errCondition = errors.New("the condition does not hold")
	errDenied    = errors.New("the store refuses these credentials, or what they may not do")
	errRange     = errors.New("the object ends before that")
)

const (
	// nonceKey is the name of the metadata by which a writing is known again.
	nonceKey = "holdfastput"
	// attempts is how often what a store's client gave up on is tried; the client
	// itself tries several times.
	attempts = 3
	// clientTries is how often a client sends a request that fails for now.
	clientTries = 4
	// slowest is the rate below which a transfer is given up, in bytes per second.
	slowest = 64 << 10
)

// cloud is a store in a bucket.
type cloud struct {
	bucket bucket
	prefix string
	lock   time.Duration
	now    func() time.Time
}

// limit bounds a transfer of n bytes: a connection that says nothing must not hold
// its caller for ever.
func limit(ctx context.Context, n int64) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, time.Minute+time.Duration(n/slowest)*time.Second)
}

func (c *cloud) key(name string) string { return path.Join(c.prefix, name) }

// write is put with what all writings have in common.
func (c *cloud) write(ctx context.Context, name string, data []byte, w writing) (string, error) {
	if err := errors.Join(ctx.Err(), checkName(name)); err != nil {
		return "", err
	}
	if len(data) > MaxObjectSize {
		return "", fmt.Errorf("%d bytes, the limit is %d", len(data), MaxObjectSize)
	}
	ctx, cancel := limit(ctx, int64(len(data)))
	defer cancel()
	w.nonce = rand.Text()
	var etag string
	var err error
	for try := 1; try == 1 || try <= attempts && temporary(ctx, err); try++ {
		etag, err = c.bucket.put(ctx, c.key(name), data, w)
	}
	if (errors.Is(err, errCondition) || missing(err)) && (w.absent || w.etag != "") {
		// The answer to an earlier sending of this request may have been lost.
		if have, herr := c.stat(ctx, name); herr == nil && have.nonce == w.nonce {
			return have.etag, nil
		}
	}
	return etag, err
}

// temporary says whether it makes sense to try again after an error.
func temporary(ctx context.Context, err error) bool {
	return err != nil && ctx.Err() == nil && !missing(err) && !errors.Is(err, ErrGone) && !errors.Is(err, errCondition) && !errors.Is(err, errDenied)
}

// Put writes or replaces an object.
func (c *cloud) Put(ctx context.Context, name string, data []byte) error {
	_, err := c.write(ctx, name, data, writing{})
	return wrap("put", name, err)
}

// PutIfAbsent writes an object unless there is one.
func (c *cloud) PutIfAbsent(ctx context.Context, name string, data []byte) error {
	w := writing{absent: true}
	if c.lock > 0 {
		w.until = c.now().Add(c.lock)
	}
	_, err := c.write(ctx, name, data, w)
	if errors.Is(err, errCondition) {
		err = ErrExists
	}
	return wrap("put", name, err)
}

// CompareAndSwap replaces an object of a known version.
func (c *cloud) CompareAndSwap(ctx context.Context, name string, data []byte, etag string) (string, error) {
	version, err := c.write(ctx, name, data, writing{absent: etag == "", etag: etag})
	if errors.Is(err, errCondition) || missing(err) {
		err = ErrChanged
	}
	if err != nil {
		return "", wrap("replace", name, err)
	}
	return version, nil
}

// Get returns an object.
func (c *cloud) Get(ctx context.Context, name string) ([]byte, string, error) {
	b, f, err := c.read(ctx, name, 0, whole)
	if err == nil && len(b) > MaxObjectSize {
		err = fmt.Errorf("it has more than %d bytes", MaxObjectSize)
	}
	if err != nil {
		return nil, "", wrap("get", name, err)
	}
	return b, f.etag, nil
}

// GetRange returns a part of an object.
func (c *cloud) GetRange(ctx context.Context, name string, off, length int64) ([]byte, error) {
	b, _, err := c.read(ctx, name, off, length)
	return b, wrap("get", name, err)
}

// stat says which object there is.
func (c *cloud) stat(ctx context.Context, name string) (found, error) {
	_, f, err := c.read(ctx, name, 0, 1)
	if err == nil && f.etag == "" { // it is empty
		_, f, err = c.read(ctx, name, 0, whole)
	}
	return f, err
}

// whole is the length by which read knows that an object is wanted, not a part.
const whole = MaxObjectSize + 1

// read reads a part of an object; again, if the connection breaks in the middle.
func (c *cloud) read(ctx context.Context, name string, off, length int64) ([]byte, found, error) {
	if err := errors.Join(ctx.Err(), checkName(name)); err != nil {
		return nil, found{}, err
	}
	want := min(length, whole)
	ctx, cancel := limit(ctx, want)
	defer cancel()
	for try := 1; ; try++ {
		b, f, err := c.read1(ctx, name, off, want)
		switch {
		case errors.Is(err, errRange):
			return nil, f, nil // it is there, and shorter
		case !temporary(ctx, err) || try == attempts:
			return b, f, err
		}
	}
}

func (c *cloud) read1(ctx context.Context, name string, off, length int64) ([]byte, found, error) {
	// Of nothing too it must be known whether the object is there.
	ask := max(length, 1)
	var r io.ReadCloser
	var f found
	var err error
	switch {
	case off == 0 && length == whole:
		r, f, err = c.bucket.get(ctx, c.key(name), 0, 0)
	case off >= 0:
		r, f, err = c.bucket.get(ctx, c.key(name), off, min(ask, math.MaxInt64-off))
	default:
		r, f, err = c.bucket.tail(ctx, c.key(name), -off)
	}
	if err != nil {
		return nil, f, err
	}
	b, err := io.ReadAll(io.LimitReader(r, length))
	return b, f, errors.Join(err, r.Close())
}

// List returns objects in order of their names.
func (c *cloud) List(ctx context.Context, prefix, after string) ([]Entry, error) {
	if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
		if err := checkName(prefix[:i]); err != nil {
			return nil, wrap("list", prefix, err)
		}
	}
	root := ""
	if c.prefix != "" {
		root = c.prefix + "/"
	}
	for try := 1; ; try++ {
		out, err := c.list1(ctx, root, prefix, after)
		if !temporary(ctx, err) || try == attempts {
			return out, wrap("list", prefix, errors.Join(ctx.Err(), err))
		}
	}
}

func (c *cloud) list1(ctx context.Context, root, prefix, after string) ([]Entry, error) {
	var out []Entry
	from := ""
	if after > prefix {
		from = root + after
	}
	err := c.bucket.list(ctx, root+prefix, from, func(e Entry) {
		e.Name = strings.TrimPrefix(e.Name, root)
		if strings.HasPrefix(e.Name, prefix) && e.Name > after && checkName(e.Name) == nil {
			out = append(out, e)
		}
	})
	// Not every store lists in bytewise order, nor only what was asked for.
	slices.SortFunc(out, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return slices.CompactFunc(out, func(a, b Entry) bool { return a.Name == b.Name }), err
}

// Delete removes an object.
func (c *cloud) Delete(ctx context.Context, name string) error {
	if err := errors.Join(ctx.Err(), checkName(name)); err != nil {
		return wrap("delete", name, err)
	}
	ctx, cancel := limit(ctx, 0)
	defer cancel()
	var err error
	for try := 1; try == 1 || try <= attempts && temporary(ctx, err); try++ {
		err = c.bucket.remove(ctx, c.key(name))
	}
	if missing(err) {
		err = nil
	}
	return wrap("delete", name, err)
}

// missing says whether an error is that there is no such object.
func missing(err error) bool { return errors.Is(err, ErrNotFound) }

// body returns what a client sends.
func body(data []byte) io.ReadSeekCloser { return nopCloser{bytes.NewReader(data)} }

type nopCloser struct{ *bytes.Reader }

// Close implements io.Closer.
func (nopCloser) Close() error { return nil }

var _ Store = (*cloud)(nil)
