package block

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// CopyOptions say what Copy copies and how. The zero value copies everything.
type CopyOptions struct {
	Extents    *Set           // only these; nil means all
	BufferSize int            // bytes of a read; default 1 MiB
	Parallel   int            // reads and writes under way; default 4
	SkipZero   bool           // the sink reads as zeroes already
	Progress   func(Progress) // called at most 5 times a second, and at the end
}

// Progress is how far a copy is.
type Progress struct {
	Done, Total int64         // bytes
	Rate        float64       // bytes per second
	ETA         time.Duration // 0 if not known
}

// CopyResult is what a copy did.
type CopyResult struct {
	Data int64 // bytes read and written
	Zero int64 // bytes that were zero at the source, and skipped or zeroed
}

// Copy copies an image into a sink, and returns when everything is written; it
// does not flush. It stops at the first error, which names the extent, and when
// ctx ends.
func Copy(ctx context.Context, dst Sink, src Image, o CopyOptions) (CopyResult, error) {
	if o.BufferSize <= 0 {
		o.BufferSize = 1 << 20
	}
	if o.Parallel <= 0 {
		o.Parallel = 4
	}
	if dst.Size() < src.Size() {
		return CopyResult{}, fmt.Errorf("copy: the target has %d bytes, the source %d", dst.Size(), src.Size())
	}
	if o.Extents == nil {
		o.Extents = &Set{}
		o.Extents.Add(Extent{0, src.Size()})
	}
	c := &copier{dst: dst, src: src, o: o, began: time.Now()}
	c.pool.New = func() any { b := make([]byte, o.BufferSize); return &b }
	err := c.run(ctx)
	c.report(true)
	return c.res, err
}

type copier struct {
	dst   Sink
	src   Image
	o     CopyOptions
	pool  sync.Pool
	began time.Time

	// mu guards what follows.
	mu   sync.Mutex
	res  CopyResult
	told time.Time
}

func (c *copier) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(c.o.Parallel)
	err := c.each(ctx, func(sp Span) {
		for e := sp.Extent; e.Length > 0; {
			part := Extent{e.Offset, e.Length}
			if !sp.Zero {
				part.Length = min(part.Length, int64(c.o.BufferSize))
			}
			g.Go(func() error { return c.part(ctx, Span{part, sp.Zero, sp.Hole}) })
			e = Extent{part.End(), e.End() - part.End()}
		}
	})
	if werr := g.Wait(); werr != nil {
		return werr
	}
	return err
}

// each maps what is to be copied.
func (c *copier) each(ctx context.Context, f func(Span)) error {
	for e := range c.o.Extents.Extents() {
		for e.Length > 0 {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			spans, err := c.src.Map(ctx, e)
			if err != nil {
				return fmt.Errorf("map %d bytes at %d: %w", e.Length, e.Offset, err)
			}
			if len(spans) == 0 {
				return fmt.Errorf("map %d bytes at %d: the image reports nothing", e.Length, e.Offset)
			}
			for _, sp := range spans {
				f(sp)
				e = Extent{sp.End(), e.End() - sp.End()}
			}
		}
	}
	return nil
}

func (c *copier) part(ctx context.Context, sp Span) error {
	if sp.Zero {
		if !c.o.SkipZero {
			if err := c.dst.Zero(ctx, sp.Extent, true); err != nil {
				return fmt.Errorf("zero %d bytes at %d: %w", sp.Length, sp.Offset, err)
			}
		}
		c.add(0, sp.Length)
		return nil
	}
	b := c.pool.Get().(*[]byte)
	defer c.pool.Put(b)
	p := (*b)[:sp.Length]
	if err := c.src.ReadAt(ctx, p, sp.Offset); err != nil {
		return fmt.Errorf("read %d bytes at %d: %w", sp.Length, sp.Offset, err)
	}
	if err := c.dst.WriteAt(ctx, p, sp.Offset); err != nil {
		return fmt.Errorf("write %d bytes at %d: %w", sp.Length, sp.Offset, err)
	}
	c.add(sp.Length, 0)
	return nil
}

func (c *copier) add(data, zero int64) {
	c.mu.Lock()
	c.res.Data += data
	c.res.Zero += zero
	c.mu.Unlock()
	c.report(false)
}

// report tells how far the copy is, if it is time.
func (c *copier) report(end bool) {
	if c.o.Progress == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if !end && now.Sub(c.told) < 200*time.Millisecond {
		return
	}
	c.told = now
	p := Progress{Done: c.res.Data + c.res.Zero, Total: c.o.Extents.Bytes()}
	if took := now.Sub(c.began).Seconds(); took > 0 {
		p.Rate = float64(p.Done) / took
	}
	if p.Rate > 0 {
		p.ETA = time.Duration(float64(p.Total-p.Done) / p.Rate * float64(time.Second))
	}
	c.o.Progress(p)
}
