package nbd_test

import (
	"bytes"
	"context"
	"fmt"
	"sync"

	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/nbd"
)

// grain is the granularity in which a disk of the tests knows its holes.
const grain = 4096

// disk is a Backend in memory that writes down how it was called, and may be
// told to fail or to wait.
type disk struct {
	// before, if set, runs ahead of every call; its error is the call's.
	before func(ctx context.Context, op string, off, n int64) error

	// mu guards the fields below.
	mu      sync.Mutex
	data    []byte
	written []bool // by grain
	hole    []bool
	calls   []string
}

func newDisk(size int64) *disk {
	n := (size + grain - 1) / grain
	d := &disk{data: make([]byte, size), written: make([]bool, n), hole: make([]bool, n)}
	for i := range d.hole {
		d.hole[i] = true
	}
	return d
}

func (d *disk) enter(ctx context.Context, op string, off, n int64) error {
	d.mu.Lock()
	d.calls = append(d.calls, fmt.Sprintf("%s %d+%d", op, off, n))
	d.mu.Unlock()
	if d.before != nil {
		return d.before(ctx, op, off, n)
	}
	return nil
}

// log returns the calls since the last log.
func (d *disk) log() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.calls
	d.calls = nil
	return l
}

func (d *disk) Size() int64 { return int64(len(d.data)) }

func (d *disk) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := d.enter(ctx, "read", off, int64(len(p))); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(p, d.data[off:off+int64(len(p))])
	return nil
}

func (d *disk) mark(off, n int64, written, hole bool) {
	for g := off / grain; g*grain < off+n; g++ {
		whole := off <= g*grain && (g+1)*grain <= off+n
		if written || whole {
			d.written[g], d.hole[g] = written, hole
		}
	}
}

func (d *disk) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	op := "write"
	if fua {
		op = "write-fua"
	}
	if err := d.enter(ctx, op, off, int64(len(p))); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.data[off:], p)
	d.mark(off, int64(len(p)), true, false)
	return nil
}

func (d *disk) Zero(ctx context.Context, off, n int64, punch, fua bool) error {
	op := "zero"
	if punch {
		op = "punch"
	}
	if fua {
		op += "-fua"
	}
	if err := d.enter(ctx, op, off, n); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.data[off : off+n])
	d.mark(off, n, false, punch)
	return nil
}

func (d *disk) Flush(ctx context.Context) error { return d.enter(ctx, "flush", 0, 0) }

func (d *disk) Map(ctx context.Context, e block.Extent) ([]block.Span, error) {
	if err := d.enter(ctx, "map", e.Offset, e.Length); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var spans []block.Span
	for at := e.Offset; at < e.End(); {
		g := at / grain
		next := min((g+1)*grain, e.End())
		spans = append(spans, block.Span{
			Extent: block.Extent{Offset: at, Length: next - at}, Zero: !d.written[g], Hole: !d.written[g] && d.hole[g],
		})
		at = next
	}
	return spans, nil
}

// content returns a copy of what the disk has.
func (d *disk) content() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Clone(d.data)
}

// plain hides that a disk knows its holes.
type plain struct{ nbd.Backend }

var (
	_ nbd.Backend      = (*disk)(nil)
	_ nbd.StatusMapper = (*disk)(nil)
)
