package block

import (
	"iter"

	"github.com/tidwall/btree"
)

// Set is a set of bytes of a disk, kept as extents that neither overlap nor
// touch. The zero value is the empty set. It is not safe for concurrent use.
type Set struct {
	m     btree.Map[int64, int64] // start -> end
	bytes int64
}

// Add adds an extent. An empty extent adds nothing.
func (s *Set) Add(e Extent) {
	if e.Length <= 0 {
		return
	}
	start, end := e.Offset, e.End()
	s.touching(start, end, func(a, b int64) {
		start, end = min(start, a), max(end, b)
	})
	s.m.Set(start, end)
	s.bytes += end - start
}

// touching takes every extent out that overlaps or touches [start, end), and
// gives it to f.
func (s *Set) touching(start, end int64, f func(a, b int64)) {
	var gone []int64
	s.m.Descend(start, func(a, b int64) bool {
		if b >= start {
			gone = append(gone, a)
		}
		return false
	})
	s.m.Ascend(start, func(a, _ int64) bool {
		if a > end {
			return false
		}
		if len(gone) == 0 || gone[len(gone)-1] != a {
			gone = append(gone, a)
		}
		return true
	})
	for _, a := range gone {
		b, _ := s.m.Delete(a)
		s.bytes -= b - a
		f(a, b)
	}
}

// Remove takes an extent out.
func (s *Set) Remove(e Extent) {
	if e.Length <= 0 {
		return
	}
	start, end := e.Offset, e.End()
	var keep []Extent
	s.touching(start, end, func(a, b int64) {
		if a < start {
			keep = append(keep, Extent{a, min(b, start) - a})
		}
		if b > end {
			keep = append(keep, Extent{max(a, end), b - max(a, end)})
		}
	})
	for _, k := range keep {
		s.m.Set(k.Offset, k.End())
		s.bytes += k.Length
	}
}

// Contains says whether the byte at off is in the set.
func (s *Set) Contains(off int64) bool { return s.Overlaps(Extent{off, 1}) }

// Overlaps says whether any byte of the extent is in the set.
func (s *Set) Overlaps(e Extent) bool {
	found := false
	for range s.within(e) {
		found = true
		break
	}
	return found
}

// Intersect returns the parts of the extent that are in the set, in order.
func (s *Set) Intersect(e Extent) []Extent {
	var out []Extent
	for x := range s.within(e) {
		out = append(out, x)
	}
	return out
}

// within yields the parts of e that are in the set.
func (s *Set) within(e Extent) iter.Seq[Extent] {
	return func(yield func(Extent) bool) {
		if e.Length <= 0 {
			return
		}
		from := e.Offset
		s.m.Descend(e.Offset, func(a, _ int64) bool { from = a; return false })
		s.m.Ascend(from, func(a, b int64) bool {
			if a >= e.End() {
				return false
			}
			a, b = max(a, e.Offset), min(b, e.End())
			return a >= b || yield(Extent{a, b - a})
		})
	}
}

// Extents yields the set's extents in order. The set must not change meanwhile.
func (s *Set) Extents() iter.Seq[Extent] {
	return func(yield func(Extent) bool) {
		s.m.Scan(func(a, b int64) bool { return yield(Extent{a, b - a}) })
	}
}

// Bytes returns how many bytes are in the set.
func (s *Set) Bytes() int64 { return s.bytes }

// Len returns how many extents the set has.
func (s *Set) Len() int { return s.m.Len() }

// Clone returns a copy, which shares nothing that either changes.
func (s *Set) Clone() *Set { return &Set{m: *s.m.Copy(), bytes: s.bytes} }

// Union adds another set.
func (s *Set) Union(o *Set) {
	for e := range o.Extents() {
		s.Add(e)
	}
}

// Subtract takes another set out.
func (s *Set) Subtract(o *Set) {
	for e := range o.Extents() {
		s.Remove(e)
	}
}
