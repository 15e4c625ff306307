package vault

import (
	"context"
	"math"
	"slices"
	"sort"
	"sync"

	"github.com/tidwall/btree"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/vault/segment"
)

// piece says where the bytes of a range of a disk are.
type piece struct {
	end  int64
	seg  *loaded
	base *segment.Entry // of seg; its Offset may lie before the piece
}

// same says whether two pieces are of the same write, also when they are of
// different openings of the stream.
func (p piece) same(q piece) bool {
	return p.base == q.base || p.seg.name == q.seg.name && p.base.Position == q.base.Position && p.base.Offset == q.base.Offset
}

// extents are the pieces of a disk by where they begin. What is not there reads
// as zero.
type extents = btree.Map[int64, piece]

// layout says where every byte of the disks is at one position. Once others know
// it, it does not change.
type layout struct {
	tl    holdfast.TimelineID // of which the position is
	pos   holdfast.Position
	disks []Disk
	maps  map[string]*extents
}

// clone returns a layout that can be changed; they share what does not. Nobody
// else may clone l at the same time.
func (l *layout) clone() *layout {
	c := &layout{tl: l.tl, pos: l.pos, disks: l.disks, maps: make(map[string]*extents, len(l.maps))}
	for id, m := range l.maps {
		c.maps[id] = m.Copy()
	}
	return c
}

// stretch is a part of a timeline as it was when a view was opened.
type stretch struct {
	tl    holdfast.TimelineID
	disks []Disk
	segs  []*loaded
	to    holdfast.Position // inclusive
	kept  bool              // to is
}

// keeps says whether what a way leads to is kept.
func keeps(way []stretch) bool {
	return !slices.ContainsFunc(way, func(x stretch) bool { return !x.kept })
}

// layout returns where everything is at a position, which the last stretch has.
// It goes on from the nearest layout that it finds.
func (s *Stream) layout(ctx context.Context, way []stretch) (*layout, error) {
	l := s.layouts.nearest(way)
	if l == nil {
		l = &layout{maps: map[string]*extents{}}
	}
	for _, x := range way {
		if x.tl < l.tl {
			continue // the layout has all of it: what is older has a lower number
		}
		l.reshape(x.disks)
		if err := l.apply(ctx, x); err != nil {
			return nil, err
		}
		l.tl, l.pos = x.tl, x.to
	}
	s.layouts.put(l)
	return l, nil
}

// reshape gives the layout the disks of the stretch that comes next: a new disk,
// and what a larger one has more, is zero; what a smaller one has less is gone,
// as is all of a disk that is not there any more.
func (l *layout) reshape(disks []Disk) {
	maps := make(map[string]*extents, len(disks))
	for _, d := range disks {
		m := l.maps[d.ID]
		if m == nil {
			m = &extents{}
		}
		cut(m, d.Size, math.MaxInt64)
		maps[d.ID] = m
	}
	l.disks, l.maps = disks, maps
}

// apply takes a stretch's entries behind the layout's position, in order.
func (l *layout) apply(ctx context.Context, x stretch) error {
	first := sort.Search(len(x.segs), func(i int) bool { return x.segs[i].Header.Last > l.pos })
	for _, seg := range x.segs[first:] {
		if err := ctx.Err(); err != nil {
			return err
		}
		if seg.Header.First > x.to {
			return nil
		}
		disks := make([]*extents, len(seg.Index.Disks))
		for i, id := range seg.Index.Disks {
			disks[i] = l.maps[id] // there is one: checkEntries
		}
		for i := range seg.Index.Entries {
			e := &seg.Index.Entries[i]
			if e.Position > x.to {
				return nil
			}
			if e.Kind != segment.Mark && e.Position > l.pos {
				put(disks[e.Disk], seg, e)
			}
		}
	}
	return nil
}

// put lays an entry over what was there.
func put(m *extents, seg *loaded, e *segment.Entry) {
	start, end := e.Offset, e.Offset+e.Length
	cut(m, start, end)
	if e.Kind == segment.Data {
		m.Set(start, piece{end, seg, e})
	}
}

// cut takes [start, end) out.
func cut(m *extents, start, end int64) {
	var at int64
	var p piece
	found := false
	m.Descend(start, func(a int64, x piece) bool { at, p, found = a, x, true; return false })
	if found && p.end > start {
		if at < start {
			m.Set(at, piece{start, p.seg, p.base})
		} else {
			m.Delete(at)
		}
		if p.end > end {
			m.Set(end, p)
			return
		}
	}
	for {
		found = false
		m.Ascend(start, func(a int64, x piece) bool { at, p, found = a, x, a < end; return false })
		if !found {
			return
		}
		m.Delete(at)
		if p.end > end {
			m.Set(end, p)
			return
		}
	}
}

// layoutCache keeps the layouts of the views opened last, so that the next one
// need not begin at the beginning. They share most of their memory.
type layoutCache struct {
	// mu guards recent, the last used last. It is held while one is cloned.
	mu     sync.Mutex
	recent []*layout
}

// keptLayouts is how many layouts are kept.
const keptLayouts = 8

// nearest returns a copy of the layout that is furthest on a way, or nil.
func (c *layoutCache) nearest(way []stretch) *layout {
	c.mu.Lock()
	defer c.mu.Unlock()
	best := -1
	for i, l := range c.recent {
		on := slices.ContainsFunc(way, func(x stretch) bool { return x.tl == l.tl && l.pos <= x.to })
		if on && (best < 0 || l.pos > c.recent[best].pos) {
			best = i
		}
	}
	if best < 0 {
		return nil
	}
	l := c.recent[best]
	c.recent = append(slices.Delete(c.recent, best, best+1), l)
	return l.clone()
}

// reset forgets all.
func (c *layoutCache) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recent = nil
}

// put keeps a copy of a layout that nobody else knows yet.
func (c *layoutCache) put(l *layout) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.ContainsFunc(c.recent, func(o *layout) bool { return o.tl == l.tl && o.pos == l.pos }) {
		return
	}
	if len(c.recent) >= keptLayouts {
		c.recent = slices.Delete(c.recent, 0, 1)
	}
	c.recent = append(c.recent, l.clone())
}
