package block

import (
	"context"
	"fmt"
	"io"
	"sync"
)

const (
	// chunkSize is the granularity of a MemDisk.
	chunkSize = 4096
	// maxMapped bounds what one call of MemDisk.Map looks at.
	maxMapped = 1 << 30
)

// MemDisk is a sparse disk in memory: an Image and a Sink. It is safe for
// concurrent use, also on extents that overlap.
type MemDisk struct {
	size int64

	// mu guards chunks. A missing chunk is a hole, a nil one is allocated and
	// reads as zeroes.
	mu     sync.RWMutex
	chunks map[int64]*[chunkSize]byte
}

var (
	_ Image = (*MemDisk)(nil)
	_ Sink  = (*MemDisk)(nil)
)

// NewMemDisk returns a disk of the size in bytes, a multiple of SectorSize, that
// reads as zeroes.
func NewMemDisk(size int64) (*MemDisk, error) {
	if size < 0 || size%SectorSize != 0 {
		return nil, fmt.Errorf("disk in memory of %d bytes: want a multiple of %d", size, SectorSize)
	}
	return &MemDisk{size: size, chunks: map[int64]*[chunkSize]byte{}}, nil
}

// Size returns the size in bytes.
func (d *MemDisk) Size() int64 { return d.size }

// pieces calls f for each chunk that [off, off+n) meets, with the part of the
// chunk that is meant.
func pieces(off, n int64, f func(chunk int64, from, to int64)) {
	for end := off + n; off < end; {
		from := off % chunkSize
		to := min(chunkSize, from+end-off)
		f(off/chunkSize, from, to)
		off += to - from
	}
}

// ReadAt fills p from off.
func (d *MemDisk) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := check(ctx, off, int64(len(p)), d.size); err != nil {
		return err
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	pieces(off, int64(len(p)), func(chunk, from, to int64) {
		if c := d.chunks[chunk]; c != nil {
			copy(p[:to-from], c[from:to])
		} else {
			clear(p[:to-from])
		}
		p = p[to-from:]
	})
	return nil
}

// Map reports holes, and allocated zeroes, in whole chunks of 4 KiB.
func (d *MemDisk) Map(ctx context.Context, e Extent) ([]Span, error) {
	if err := check(ctx, e.Offset, e.Length, d.size); err != nil {
		return nil, err
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	var out []Span
	pieces(e.Offset, min(e.Length, maxMapped), func(chunk, from, to int64) {
		c, allocated := d.chunks[chunk]
		out = appendSpan(out, Span{Extent{chunk*chunkSize + from, to - from}, c == nil, !allocated})
	})
	return out, nil
}

// appendSpan appends a span to those before it, or makes the last one longer.
func appendSpan(spans []Span, sp Span) []Span {
	if n := len(spans); n > 0 && spans[n-1].Zero == sp.Zero && spans[n-1].Hole == sp.Hole && spans[n-1].End() == sp.Offset {
		spans[n-1].Length += sp.Length
		return spans
	}
	return append(spans, sp)
}

// WriteAt writes p at off.
func (d *MemDisk) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := check(ctx, off, int64(len(p)), d.size); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	pieces(off, int64(len(p)), func(chunk, from, to int64) {
		c := d.chunks[chunk]
		if c == nil {
			c = new([chunkSize]byte)
			d.chunks[chunk] = c
		}
		copy(c[from:to], p)
		p = p[to-from:]
	})
	return nil
}

// Zero makes the extent read as zeroes; with punch whole chunks become holes.
func (d *MemDisk) Zero(ctx context.Context, e Extent, punch bool) error {
	if err := check(ctx, e.Offset, e.Length, d.size); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	pieces(e.Offset, e.Length, func(chunk, from, to int64) {
		whole := from == 0 && (to == chunkSize || chunk*chunkSize+to == d.size)
		switch c := d.chunks[chunk]; {
		case whole && punch:
			delete(d.chunks, chunk)
		case whole:
			d.chunks[chunk] = nil
		case c != nil:
			clear(c[from:to])
		}
	})
	return nil
}

// Flush does nothing: memory is as durable as it gets.
func (d *MemDisk) Flush(ctx context.Context) error { return ctx.Err() }

// Close does nothing; the disk can still be used.
func (d *MemDisk) Close() error { return nil }

// check refuses what lies outside of a disk, and what nobody waits for any more.
func check(ctx context.Context, off, n, size int64) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("%d bytes at %d are outside of a disk of %d bytes: %w", n, off, size, io.ErrUnexpectedEOF)
	}
	return nil
}

// ZeroImage is an image of so many bytes, all of them zero.
type ZeroImage int64

var _ Image = ZeroImage(0)

// Size returns the size in bytes.
func (z ZeroImage) Size() int64 { return int64(z) }

// ReadAt fills p with zeroes.
func (z ZeroImage) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := check(ctx, off, int64(len(p)), int64(z)); err != nil {
		return err
	}
	clear(p)
	return nil
}

// Map reports a hole.
func (z ZeroImage) Map(ctx context.Context, e Extent) ([]Span, error) {
	if err := check(ctx, e.Offset, e.Length, int64(z)); err != nil || e.Length == 0 {
		return nil, err
	}
	return []Span{{Extent: e, Zero: true, Hole: true}}, nil
}

// Close does nothing.
func (z ZeroImage) Close() error { return nil }
