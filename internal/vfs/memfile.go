package vfs

import (
	"errors"
	"io"
	iofs "io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"
)

const (
	pageSize   = 4096
	sectorSize = 512
	// maxVersions bounds what is remembered of a page, and of the size, between
	// two syncs.
	maxVersions = 8
)

// page is never changed once a file has it, so that versions and clones can
// share it.
type page [pageSize]byte

// content is what a file has, and what it had since it was last synced.
type content struct {
	size  int64
	pages map[int64]*page // a page that is missing reads as zeroes
	// What was before, oldest first, beginning with what is durable; empty if
	// that is all there is. A nil page is a missing one.
	sizes    []int64
	versions map[int64][]*page
}

// allocated returns how much space the content takes, in bytes.
func (c *content) allocated() int64 { return int64(len(c.pages)) * pageSize }

// remember adds to what was before. It forgets what is neither durable nor new.
func remember[T any](before []T, x T) []T {
	if len(before) == maxVersions {
		before = slices.Delete(slices.Clone(before), 1, 2)
	}
	return append(before, x)
}

func (c *content) setPage(i int64, p *page) {
	if c.pages == nil {
		c.pages = map[int64]*page{}
	}
	if c.versions == nil {
		c.versions = map[int64][]*page{}
	}
	c.versions[i] = remember(c.versions[i], c.pages[i])
	if p == nil {
		delete(c.pages, i)
	} else {
		c.pages[i] = p
	}
}

func (c *content) setSize(size int64) {
	if size != c.size {
		c.sizes = remember(c.sizes, c.size)
		c.size = size
	}
}

// read fills p as far as there is something.
func (c *content) read(p []byte, off int64) int {
	p = p[:max(0, min(int64(len(p)), c.size-off))]
	for done := 0; done < len(p); {
		at := off + int64(done)
		n := min(pageSize-int(at%pageSize), len(p)-done)
		if pg := c.pages[at/pageSize]; pg != nil {
			copy(p[done:done+n], pg[at%pageSize:])
		} else {
			clear(p[done : done+n])
		}
		done += n
	}
	return len(p)
}

// write writes p at off, with at most free bytes of new pages, and returns how
// much was written and how much new pages take.
func (c *content) write(p []byte, off, free int64) (done int, used int64) {
	for done < len(p) {
		at := off + int64(done)
		n := min(pageSize-int(at%pageSize), len(p)-done)
		next := new(page)
		if was := c.pages[at/pageSize]; was != nil {
			*next = *was
		} else if used += pageSize; used > free {
			used -= pageSize
			break
		}
		copy(next[at%pageSize:], p[done:done+n])
		c.setPage(at/pageSize, next)
		done += n
	}
	if done > 0 {
		c.setSize(max(c.size, off+int64(done)))
	}
	return done, used
}

// truncate sets the size and returns how much space that frees.
func (c *content) truncate(size int64) (freed int64) {
	before := c.allocated()
	if size < c.size {
		for _, i := range slices.Collect(maps.Keys(c.pages)) {
			if i*pageSize >= size {
				c.setPage(i, nil)
			}
		}
		if last := c.pages[size/pageSize]; last != nil {
			next := *last
			clear(next[size%pageSize:])
			c.setPage(size/pageSize, &next)
		}
	}
	c.setSize(size)
	return before - c.allocated()
}

// sync makes what there is durable.
func (c *content) sync() { c.sizes, c.versions = nil, nil }

// clone returns what there is, as durable.
func (c *content) clone() content { return content{size: c.size, pages: maps.Clone(c.pages)} }

// fate is what becomes of changes in a power cut.
type fate int

const (
	lost fate = iota
	kept
	mixed
)

// draw draws a fate; without rng everything is lost.
func draw(rng *rand.Rand) fate {
	if rng == nil {
		return lost
	}
	return min(fate(rng.IntN(4)), mixed)
}

// crashed returns what a power cut leaves of the content.
func (c *content) crashed(rng *rand.Rand) content {
	out := c.clone()
	what := draw(rng)
	if len(c.sizes) > 0 {
		out.size = survivingSize(append(slices.Clone(c.sizes), c.size), what, rng)
	}
	for _, i := range slices.Sorted(maps.Keys(c.versions)) {
		if p := survivingPage(append(slices.Clone(c.versions[i]), c.pages[i]), what, rng); p != nil {
			out.set(i, p)
		} else {
			delete(out.pages, i)
		}
	}
	// What lies beyond the size must not come back when the file grows.
	maps.DeleteFunc(out.pages, func(i int64, _ *page) bool { return i*pageSize >= out.size })
	if last := out.pages[out.size/pageSize]; last != nil {
		cut := *last
		clear(cut[out.size%pageSize:])
		out.set(out.size/pageSize, &cut)
	}
	return out
}

// set sets a page without remembering what was.
func (c *content) set(i int64, p *page) {
	if c.pages == nil {
		c.pages = map[int64]*page{}
	}
	c.pages[i] = p
}

// survivingSize chooses among the sizes that a file had, oldest first, or a
// size between them: one write may be half extended.
func survivingSize(sizes []int64, what fate, rng *rand.Rand) int64 {
	switch what {
	case lost:
		return sizes[0]
	case kept:
		return sizes[len(sizes)-1]
	}
	if rng.IntN(2) == 0 {
		return sizes[rng.IntN(len(sizes))]
	}
	low, high := slices.Min(sizes), slices.Max(sizes)
	return max(low, (low+rng.Int64N(high-low+1))/sectorSize*sectorSize)
}

// survivingPage chooses among the versions that a page had, oldest first, or
// mixes the sectors of two.
func survivingPage(versions []*page, what fate, rng *rand.Rand) *page {
	switch what {
	case lost:
		return versions[0]
	case kept:
		return versions[len(versions)-1]
	}
	a, b := versions[rng.IntN(len(versions))], versions[rng.IntN(len(versions))]
	if a == b || rng.IntN(2) == 0 {
		return a
	}
	torn := new(page)
	for s := 0; s < pageSize; s += sectorSize {
		from := a
		if rng.IntN(2) == 0 {
			from = b
		}
		if from != nil {
			copy(torn[s:s+sectorSize], from[s:])
		}
	}
	return torn
}

// memFile is an open file of a Mem, whose mutex guards it.
type memFile struct {
	m      *Mem
	n      *inode
	name   string
	write  bool
	off    int64
	closed bool
}

var _ File = (*memFile)(nil)

// begin locks the file system, and says why an operation cannot be done.
func (f *memFile) begin(op string, write bool) error {
	f.m.mu.Lock()
	switch {
	case f.closed:
		return &iofs.PathError{Op: op, Path: f.name, Err: iofs.ErrClosed}
	case write && !f.write:
		return pathError(op, f.name, syscall.EBADF)
	}
	return nil
}

// ReadAt reads at off; at the end of the file it returns io.EOF.
func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	err := f.begin("read", false)
	defer f.m.mu.Unlock()
	if err == nil && off < 0 {
		err = &iofs.PathError{Op: "readat", Path: f.name, Err: errors.New("negative offset")}
	}
	if err != nil {
		return 0, err
	}
	n := f.n.read(p, off)
	if n < len(p) {
		err = io.EOF
	}
	return n, err
}

// WriteAt writes at off.
func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	err := f.begin("write", true)
	defer f.m.mu.Unlock()
	if err == nil && off < 0 {
		err = &iofs.PathError{Op: "writeat", Path: f.name, Err: errors.New("negative offset")}
	}
	if err != nil {
		return 0, err
	}
	return f.writeAt(p, off)
}

// Write appends at the file's own offset.
func (f *memFile) Write(p []byte) (int, error) {
	err := f.begin("write", true)
	defer f.m.mu.Unlock()
	if err != nil {
		return 0, err
	}
	n, err := f.writeAt(p, f.off)
	f.off += int64(n)
	return n, err
}

func (f *memFile) writeAt(p []byte, off int64) (int, error) {
	n, used := f.n.write(p, off, f.m.limit-f.m.used)
	f.m.used += used
	f.n.modTime = time.Now()
	if n < len(p) {
		return n, pathError("write", f.name, syscall.ENOSPC)
	}
	return n, nil
}

// Sync makes the content and size durable.
func (f *memFile) Sync() error {
	err := f.begin("sync", false)
	defer f.m.mu.Unlock()
	if err == nil {
		f.n.sync()
	}
	return err
}

// Truncate sets the size.
func (f *memFile) Truncate(size int64) error {
	err := f.begin("truncate", false)
	defer f.m.mu.Unlock()
	if err == nil && (!f.write || size < 0) {
		err = pathError("truncate", f.name, syscall.EINVAL)
	}
	if err == nil {
		f.m.used -= f.n.truncate(size)
		f.n.modTime = time.Now()
	}
	return err
}

// Size returns the file's size in bytes.
func (f *memFile) Size() (int64, error) {
	err := f.begin("stat", false)
	defer f.m.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return f.n.size, nil
}

// Close closes the file, without syncing it.
func (f *memFile) Close() error {
	err := f.begin("close", false)
	defer f.m.mu.Unlock()
	if err != nil {
		return err
	}
	f.closed = true
	f.n.opens--
	f.m.release(f.n)
	return nil
}
