package vault

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/vault/segment"
)

// View is a stream at one position: the disks that the machine had then, as they
// were. Safe for concurrent use. It holds the index in memory and reads data on
// demand.
type View struct {
	s          *Stream
	timeline   holdfast.TimelineID
	pos        holdfast.Position
	base       bool
	consistent bool
	disks      map[string]*diskView

	// lay is where everything is; another one once that was replaced by others.
	lay atomic.Pointer[layout]
	// renewing makes renew one at a time.
	renewing sync.Mutex
}

// diskView is one disk of a view.
type diskView struct {
	view *View
	disk Disk
}

// extents are where the disk's bytes are.
func (d *diskView) extents() *extents { return d.view.lay.Load().maps[d.disk.ID] }

// View opens a position of a timeline; it fails with ErrNoPosition if that is
// beyond its end, with ErrPruned if it is not kept, and with ErrCorrupt if it is
// beyond damage. It reads no data, and goes on while others prune the stream, as
// long as its position is kept.
// Refresh first to see the newest. The disks are those that the machine had then:
// where a timeline forks, those of the timeline that it is a fork of.
func (s *Stream) View(ctx context.Context, tl holdfast.TimelineID, pos holdfast.Position) (*View, error) {
	return s.view(ctx, tl, pos, false)
}

// Base is View, but where the timeline forks it has the timeline's own disks: it
// is what a writer begins with.
func (s *Stream) Base(ctx context.Context, tl holdfast.TimelineID, pos holdfast.Position) (*View, error) {
	return s.view(ctx, tl, pos, true)
}

func (s *Stream) view(ctx context.Context, tl holdfast.TimelineID, pos holdfast.Position, base bool) (*View, error) {
	v := &View{s: s, timeline: tl, pos: pos, base: base, disks: map[string]*diskView{}}
	if err := v.layOut(ctx); err != nil {
		return nil, err
	}
	for _, d := range v.lay.Load().disks {
		v.disks[d.ID] = &diskView{view: v, disk: d}
	}
	return v, nil
}

func (v *View) layOut(ctx context.Context) error {
	way, err := v.find(v.base)
	if err != nil {
		return err
	}
	l, err := v.s.layout(ctx, way)
	if err != nil {
		return fmt.Errorf("open view at position %s: %w", v.pos, err)
	}
	v.lay.Store(l)
	return nil
}

// renew lays a view out again when an object was missing that old has. The stream
// is read anew, unless it does not have that object any more: then who has removed
// it has told.
func (v *View) renew(ctx context.Context, old *layout, missing error) error {
	v.renewing.Lock()
	defer v.renewing.Unlock()
	if v.lay.Load() != old {
		return nil // somebody else has
	}
	var c *CorruptError
	if !errors.As(missing, &c) || v.s.has(c.Object) {
		if err := v.s.reload(ctx); err != nil {
			return err
		}
	}
	return v.layOut(ctx)
}

// has says whether an object is one of the segments that are loaded.
func (s *Stream) has(name string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, t := range s.timelines {
		if slices.ContainsFunc(t.segs, func(l *loaded) bool { return l.name == name }) {
			return true
		}
	}
	return false
}

// find returns the way from the beginning to the view's position.
func (v *View) find(base bool) ([]stretch, error) {
	v.s.mu.RLock()
	defer v.s.mu.RUnlock()
	parts, broken := v.s.lineage(v.timeline)
	if len(parts) == 0 {
		return nil, fmt.Errorf("open view: %w", broken)
	}
	if last := parts[len(parts)-1].to; v.pos > last {
		if broken == nil {
			broken = ErrNoPosition
		}
		return nil, fmt.Errorf("open view at position %s: timeline %s can be read to %s: %w", v.pos, v.timeline, last, broken)
	}
	way := v.s.way(parts, v.pos, base)
	if !keeps(way) {
		return nil, fmt.Errorf("open view at position %s of timeline %s: %w", v.pos, v.timeline, ErrPruned)
	}
	if v.lay.Load() != nil {
		return way, nil // renewed, it is as consistent as it was
	}
	v.consistent = slices.ContainsFunc(v.s.ranges(v.timeline), func(r Range) bool { return r.From <= v.pos && v.pos <= r.To })
	return way, nil
}

// way returns what leads to a position, of the parts that a timeline has. A part
// of which the timeline was forked off before its own beginning is not on it, and
// one that forks at the very position only for its base. The caller holds mu.
func (s *Stream) way(parts []part, pos holdfast.Position, base bool) []stretch {
	var way []stretch
	for _, p := range parts {
		at := p.t.desc.ForkAt
		if len(way) == 0 || at < min(pos, p.to) || base && at <= min(pos, p.to) {
			to := min(pos, p.to)
			way = append(way, stretch{p.t.desc.ID, s.disksOf(p.t.desc.ID), p.t.segs, to, to <= at || p.t.kept.has(to)})
		}
	}
	return way
}

// Position returns where the view is.
func (v *View) Position() holdfast.Position { return v.pos }

// Consistent says whether the view is crash-consistent.
func (v *View) Consistent() bool { return v.consistent }

// Disks returns the disks that the machine had.
func (v *View) Disks() []Disk { return slices.Clone(v.lay.Load().disks) }

// Disk returns a disk as an image. Closing the image frees nothing.
func (v *View) Disk(id string) (block.Image, error) {
	d, ok := v.disks[id]
	if !ok {
		return nil, fmt.Errorf("stream %s has no disk %q at position %s", v.s.desc.ID, id, v.pos)
	}
	return d, nil
}

// Size returns the disk's size in bytes.
func (d *diskView) Size() int64 { return d.disk.Size }

// Close does nothing.
func (d *diskView) Close() error { return nil }

// within calls f for the pieces that overlap [off, end), in order, clipped, until
// it returns false.
func (d *diskView) within(off, end int64, f func(start, end int64, p piece) bool) {
	m, from := d.extents(), off
	m.Descend(off, func(a int64, _ piece) bool { from = a; return false })
	m.Ascend(from, func(a int64, p piece) bool {
		if a >= end {
			return false
		}
		x, y := max(a, off), min(p.end, end)
		return x >= y || f(x, y, p)
	})
}

// Map reports data and zeroes.
func (d *diskView) Map(_ context.Context, e block.Extent) ([]block.Span, error) {
	if e.Offset < 0 || e.Length < 0 || e.Offset > d.disk.Size-e.Length {
		return nil, fmt.Errorf("map %d bytes at %d of a disk of %d bytes", e.Length, e.Offset, d.disk.Size)
	}
	const most = 1024
	var out []block.Span
	add := func(start, end int64, zero bool) {
		if n := len(out); n > 0 && out[n-1].Zero == zero && out[n-1].End() == start {
			out[n-1].Length += end - start
			return
		}
		out = append(out, block.Span{Extent: block.Extent{Offset: start, Length: end - start}, Zero: zero, Hole: zero})
	}
	at := e.Offset
	d.within(e.Offset, e.End(), func(start, end int64, _ piece) bool {
		if at < start {
			add(at, start, true)
		}
		add(start, end, false)
		at = end
		return len(out) < most
	})
	if len(out) < most && at < e.End() {
		add(at, e.End(), true)
	}
	return out, nil
}

// ReadAt fills p from off.
func (d *diskView) ReadAt(ctx context.Context, p []byte, off int64) error {
	if off < 0 || off > d.disk.Size-int64(len(p)) {
		return fmt.Errorf("read %d bytes at %d of a disk of %d bytes", len(p), off, d.disk.Size)
	}
	for tries := 0; ; tries++ {
		old := d.view.lay.Load()
		err := d.read(ctx, p, off)
		if !errors.Is(err, errMissing) || tries > 0 {
			return err
		}
		if err := d.view.renew(ctx, old, err); err != nil {
			return err
		}
	}
}

func (d *diskView) read(ctx context.Context, p []byte, off int64) error {
	var err error
	at := off
	d.within(off, off+int64(len(p)), func(start, end int64, x piece) bool {
		clear(p[at-off : start-off])
		var frame []byte
		if frame, err = d.view.s.frame(ctx, x.seg, x.base.Frame); err != nil {
			return false
		}
		copy(p[start-off:end-off], frame[int64(x.base.FrameOff)+start-x.base.Offset:])
		at = end
		return true
	})
	clear(p[at-off:])
	return err
}

// frame returns a decoded frame, from the cache if it is there.
func (s *Stream) frame(ctx context.Context, l *loaded, n uint32) ([]byte, error) {
	id := frameID{l, n}
	if p := s.cache.get(id); p != nil {
		return p, nil
	}
	f := l.Index.Frames[n]
	stored, err := s.v.store.GetRange(ctx, l.name, f.Offset, int64(f.Stored))
	if err != nil {
		return nil, gone(l.name, err)
	}
	p, err := l.Frame(n, stored)
	if err != nil {
		return nil, damaged(l.name, err)
	}
	s.cache.put(id, p)
	return p, nil
}

// BlockHash returns the hash of a 4 KiB block, if one entry has all of it.
func (v *View) BlockHash(disk string, n int64) ([segment.BlockHash]byte, bool) {
	d, ok := v.disks[disk]
	if !ok {
		return [segment.BlockHash]byte{}, false
	}
	start := n * segment.BlockSize
	var out [segment.BlockHash]byte
	whole := false
	d.within(start, start+segment.BlockSize, func(a, b int64, p piece) bool {
		if b-a == segment.BlockSize {
			out, whole = p.base.Hashes[start/segment.BlockSize-p.base.Offset/segment.BlockSize], true
		}
		return false
	})
	return out, whole
}

// Diff returns where a disk differs between two views of the same stream, also
// of different timelines. It reads data only where indexes and hashes do not
// tell.
func (v *View) Diff(ctx context.Context, o *View, disk string) (*block.Set, error) {
	a, ok := v.disks[disk]
	b, ok2 := o.disks[disk]
	if !ok || !ok2 || v.s.desc.ID != o.s.desc.ID {
		return nil, fmt.Errorf("diff views: they have no disk %q in common", disk)
	}
	if a.Size() != b.Size() {
		return nil, fmt.Errorf("diff views: disk %q has %d bytes in one and %d in the other", disk, a.Size(), b.Size())
	}
	candidates := &block.Set{}
	a.unlike(b, candidates)
	b.unlike(a, candidates)
	out := &block.Set{}
	for e := range candidates.Extents() {
		if err := a.compare(ctx, b, e, out); err != nil {
			return nil, fmt.Errorf("diff disk %q: %w", disk, err)
		}
	}
	return out, nil
}

// unlike adds what d has from another entry than o.
func (d *diskView) unlike(o *diskView, out *block.Set) {
	d.extents().Scan(func(a int64, p piece) bool {
		at := a
		o.within(a, p.end, func(start, end int64, q piece) bool {
			if q.same(p) {
				if at < start {
					out.Add(block.Extent{Offset: at, Length: start - at})
				}
				at = end
			}
			return true
		})
		if at < p.end {
			out.Add(block.Extent{Offset: at, Length: p.end - at})
		}
		return true
	})
}

// compare adds to out what really differs within e, block by block.
func (d *diskView) compare(ctx context.Context, o *diskView, e block.Extent, out *block.Set) error {
	var x, y [segment.BlockSize]byte
	for off := e.Offset; off < e.End(); {
		n := min(segment.BlockSize-off%segment.BlockSize, e.End()-off)
		if n == segment.BlockSize {
			h, ok := d.view.BlockHash(d.disk.ID, off/segment.BlockSize)
			k, ok2 := o.view.BlockHash(o.disk.ID, off/segment.BlockSize)
			if ok && ok2 {
				if h != k {
					out.Add(block.Extent{Offset: off, Length: n})
				}
				off += n
				continue
			}
		}
		if err := d.ReadAt(ctx, x[:n], off); err != nil {
			return err
		}
		if err := o.ReadAt(ctx, y[:n], off); err != nil {
			return err
		}
		if string(x[:n]) != string(y[:n]) {
			out.Add(block.Extent{Offset: off, Length: n})
		}
		off += n
	}
	return nil
}

var _ block.Image = (*diskView)(nil)
