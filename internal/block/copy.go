package block

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// maxZeroPart bounds what one call of Sink.Zero is asked for, so that a copy
	// can stop and show progress in between.
	maxZeroPart = 256 << 20
	// minZeroRun is how many zeroes in data are worth a call of Sink.Zero.
	minZeroRun = 64 << 10
	zeroPiece  = 4096
)

// zeroes is a block to compare with.
var zeroes [zeroPiece]byte

// CopyOptions say what Copy copies and how. The zero value copies everything.
type CopyOptions struct {
	Extents    *Set // only these, which lie within the source; nil means all
	BufferSize int  // bytes of a read, a multiple of SectorSize; default 1 MiB
	Parallel   int  // reads and writes under way, and buffers held; default 4
	// SkipZero says that the sink reads as zeroes already, so that nothing is
	// done for what is zero at the source.
	SkipZero bool
	// BytesPerSecond limits how fast data is copied; zeroes do not count. 0 or
	// less means no limit.
	BytesPerSecond int64
	// Progress, if not nil, is called at the beginning, then at most 5 times a
	// second, also when nothing moves, and once at the end. The calls come one
	// at a time and do not hold the copy up, except for the last.
	Progress func(Progress)
}

// CopyResult is what a copy did.
type CopyResult struct {
	Data int64 // bytes read and written
	Zero int64 // bytes that were zero at the source, and skipped or zeroed
}

// Copy copies an image into a sink, which may be larger, and returns when
// everything is written; it does not flush. What Map calls zero is not read,
// and zeroes found in data are not written but zeroed; both may become holes.
// Copy holds Parallel buffers. It stops at the first error, which names the
// extent, or when ctx ends, with its cause; the sink then has parts of the
// image in no particular order, and the result says how much.
func Copy(ctx context.Context, dst Sink, src Image, o CopyOptions) (CopyResult, error) {
	if err := o.complete(dst, src); err != nil {
		return CopyResult{}, fmt.Errorf("copy: %w", err)
	}
	c := &copier{dst: dst, src: src, o: o, pace: pace{perSecond: o.BytesPerSecond}}
	stop := c.watch()
	err := c.run(ctx)
	stop()
	return CopyResult{Data: c.data.Load(), Zero: c.zero.Load()}, failure(ctx, "copy", err)
}

// failure says what failed or, if the context ended and that is all there is to
// say, why: not whichever read it was that noticed.
func failure(ctx context.Context, what string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil && (errors.Is(err, ctx.Err()) || errors.Is(err, context.Cause(ctx))) {
		err = context.Cause(ctx)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// complete sets defaults and refuses what cannot be copied.
func (o *CopyOptions) complete(dst Sink, src Image) error {
	if dst.Size() < src.Size() {
		return fmt.Errorf("the target has %d bytes, the source %d", dst.Size(), src.Size())
	}
	if o.BufferSize <= 0 {
		o.BufferSize = 1 << 20
	}
	if o.BufferSize%SectorSize != 0 {
		return fmt.Errorf("buffers of %d bytes: want a multiple of %d", o.BufferSize, SectorSize)
	}
	if o.Parallel <= 0 {
		o.Parallel = 4
	}
	if o.BytesPerSecond > 0 { // several parts a second, or it goes by fits and starts
		steady := max(zeroPiece, o.BytesPerSecond/8/zeroPiece*zeroPiece)
		o.BufferSize = int(min(int64(o.BufferSize), steady))
	}
	if o.Extents == nil {
		o.Extents = &Set{}
		o.Extents.Add(Extent{0, src.Size()})
	}
	for e := range o.Extents.Extents() {
		if e.Offset < 0 || e.End() > src.Size() {
			return fmt.Errorf("%d bytes at %d are outside of a disk of %d bytes", e.Length, e.Offset, src.Size())
		}
	}
	return nil
}

type copier struct {
	dst  Sink
	src  Image
	o    CopyOptions
	pace pace

	data, zero atomic.Int64
}

// run lets one goroutine find the parts and others copy them.
func (c *copier) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	parts := make(chan Span)
	g.Go(func() error {
		defer close(parts)
		for e := range c.o.Extents.Extents() {
			if err := c.find(ctx, e, parts); err != nil {
				return err
			}
		}
		return nil
	})
	for range c.o.Parallel {
		g.Go(func() error {
			var buf []byte
			for sp := range parts {
				if buf == nil && !sp.Zero {
					buf = make([]byte, c.o.BufferSize)
				}
				if err := c.part(ctx, sp, buf); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// find maps an extent and gives its spans away in parts.
func (c *copier) find(ctx context.Context, e Extent, parts chan<- Span) error {
	m := mapper{img: c.src}
	for e.Length > 0 {
		sp, err := m.at(ctx, e)
		if err != nil {
			return err
		}
		if sp.Zero && c.o.SkipZero {
			c.zero.Add(sp.Length)
		} else {
			most := int64(c.o.BufferSize)
			if sp.Zero {
				most = maxZeroPart
			}
			sp.Length = min(sp.Length, most)
			select {
			case parts <- sp:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		e = Extent{sp.End(), e.End() - sp.End()}
	}
	return nil
}

// part copies what fits in one buffer, or zeroes.
func (c *copier) part(ctx context.Context, sp Span, buf []byte) error {
	if sp.Zero {
		return c.clear(ctx, sp.Extent)
	}
	if err := c.pace.wait(ctx, sp.Length); err != nil {
		return err
	}
	p := buf[:sp.Length]
	if err := c.src.ReadAt(ctx, p, sp.Offset); err != nil {
		return fmt.Errorf("read %d bytes at %d: %w", sp.Length, sp.Offset, err)
	}
	for _, run := range zeroRuns(p, sp.Offset) {
		if run.Zero {
			if err := c.clear(ctx, run.Extent); err != nil {
				return err
			}
			continue
		}
		if err := c.dst.WriteAt(ctx, p[run.Offset-sp.Offset:run.End()-sp.Offset], run.Offset); err != nil {
			return fmt.Errorf("write %d bytes at %d: %w", run.Length, run.Offset, err)
		}
		c.data.Add(run.Length)
	}
	return nil
}

func (c *copier) clear(ctx context.Context, e Extent) error {
	if !c.o.SkipZero {
		if err := c.dst.Zero(ctx, e, true); err != nil {
			return fmt.Errorf("zero %d bytes at %d: %w", e.Length, e.Offset, err)
		}
	}
	c.zero.Add(e.Length)
	return nil
}

// zeroRuns divides what was read from off into data and long runs of zeroes.
func zeroRuns(p []byte, off int64) []Span {
	var runs []Span
	for end := off + int64(len(p)); off < end; {
		n := min(zeroPiece-off%zeroPiece, end-off)
		runs = appendSpan(runs, Span{Extent: Extent{off, n}, Zero: bytes.Equal(p[:n], zeroes[:n])})
		off, p = off+n, p[n:]
	}
	var out []Span
	for _, run := range runs {
		run.Zero = run.Zero && (run.Length >= minZeroRun || len(runs) == 1)
		out = appendSpan(out, run)
	}
	return out
}

// pace spreads work evenly over time.
type pace struct {
	perSecond int64

	// mu guards next, when the next part may begin.
	mu   sync.Mutex
	next time.Time
}

// wait returns when n bytes may be copied.
func (p *pace) wait(ctx context.Context, n int64) error {
	if p.perSecond <= 0 {
		return nil
	}
	p.mu.Lock()
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	begin := p.next
	p.next = begin.Add(time.Duration(float64(n) / float64(p.perSecond) * float64(time.Second)))
	p.mu.Unlock()
	if !begin.After(now) {
		return nil
	}
	t := time.NewTimer(begin.Sub(now))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// mapper asks an image for its spans, and hands them out one at a time.
type mapper struct {
	img   Image
	spans []Span
}

// at returns the span at the beginning of e, and no more than e. It refuses a
// map with gaps: what is left out would be lost without a word.
func (m *mapper) at(ctx context.Context, e Extent) (Span, error) {
	for len(m.spans) > 0 && m.spans[0].End() <= e.Offset {
		m.spans = m.spans[1:]
	}
	if len(m.spans) == 0 {
		if ctx.Err() != nil {
			return Span{}, context.Cause(ctx)
		}
		spans, err := m.img.Map(ctx, e)
		if err != nil {
			return Span{}, fmt.Errorf("map %d bytes at %d: %w", e.Length, e.Offset, err)
		}
		next := e.Offset
		for _, sp := range spans {
			if sp.Offset != next || sp.Length <= 0 || sp.End() > e.End() {
				return Span{}, fmt.Errorf("map %d bytes at %d: the image reports %d bytes at %d where those from %d are due", e.Length, e.Offset, sp.Length, sp.Offset, next)
			}
			next = sp.End()
		}
		if len(spans) == 0 {
			return Span{}, fmt.Errorf("map %d bytes at %d: the image reports nothing", e.Length, e.Offset)
		}
		m.spans = spans
	}
	sp := m.spans[0]
	end := min(sp.End(), e.End())
	return Span{Extent{e.Offset, end - e.Offset}, sp.Zero || sp.Hole, sp.Hole}, nil
}
