package block

import (
	"iter"
	"math"

	"github.com/tidwall/btree"
)

// Set is a set of bytes of a disk, kept as extents that neither overlap nor
// touch. The zero value is the empty set. It is made for millions of extents:
// what is done to one extent takes the logarithm of their number. It is not
// safe for concurrent use, not even for Clone with itself.
type Set struct {
	// starts has the start of each extent under its end, so that the first one
	// that can matter to an offset is found with one search.
	starts btree.Map[int64, int64]
	bytes  int64
}

// bounds returns the start and end of an extent, cut where int64 ends.
func bounds(e Extent) (start, end int64) {
	if e.Offset > 0 && e.Length > math.MaxInt64-e.Offset {
		return e.Offset, math.MaxInt64
	}
	return e.Offset, e.End()
}

// Add adds an extent. An empty extent, or one of negative length, adds nothing.
func (s *Set) Add(e Extent) {
	start, end := bounds(e)
	if end <= start {
		return
	}
	// Nearly always at most one extent is met, so no slice is made for it.
	var last int64
	var before []int64
	met := 0
	all := false // e was there already
	s.starts.Ascend(start, func(b, a int64) bool {
		if a > end {
			return false
		}
		if a <= start && end <= b {
			all = true
			return false
		}
		if met++; met > 1 {
			before = append(before, last)
		}
		last = b
		start, end = min(start, a), max(end, b)
		return true
	})
	if all {
		return
	}
	for _, b := range before {
		s.delete(b)
	}
	if met > 0 {
		s.delete(last)
	}
	s.insert(start, end)
}

func (s *Set) delete(end int64) {
	start, _ := s.starts.Delete(end)
	s.bytes -= end - start
}

func (s *Set) insert(start, end int64) {
	s.starts.Set(end, start)
	s.bytes += end - start
}

// Remove takes an extent out.
func (s *Set) Remove(e Extent) {
	start, end := bounds(e)
	if end <= start || start == math.MaxInt64 {
		return
	}
	var whole []int64 // extents that go, by their ends
	var left, right Extent
	cut := false // the last one goes in part, and right stays of it
	s.starts.Ascend(start+1, func(b, a int64) bool {
		if a >= end {
			return false
		}
		if a < start {
			left = Extent{a, start - a}
		}
		if b > end {
			right, cut = Extent{end, b - end}, true
			return false
		}
		whole = append(whole, b)
		return true
	})
	for _, b := range whole {
		s.delete(b)
	}
	if cut {
		s.delete(right.End())
		s.insert(right.Offset, right.End())
	}
	if left.Length > 0 {
		s.insert(left.Offset, left.End())
	}
}

// Contains says whether the byte at off is in the set.
func (s *Set) Contains(off int64) bool { return s.Overlaps(Extent{off, 1}) }

// Overlaps says whether any byte of the extent is in the set.
func (s *Set) Overlaps(e Extent) bool {
	for range s.Within(e) {
		return true
	}
	return false
}

// Intersect returns the parts of the extent that are in the set, in order.
func (s *Set) Intersect(e Extent) []Extent {
	var out []Extent
	for x := range s.Within(e) {
		out = append(out, x)
	}
	return out
}

// Within yields the parts of the extent that are in the set, in order. The set
// must not change meanwhile.
func (s *Set) Within(e Extent) iter.Seq[Extent] {
	return func(yield func(Extent) bool) {
		start, end := bounds(e)
		if end <= start || start == math.MaxInt64 {
			return
		}
		s.starts.Ascend(start+1, func(b, a int64) bool {
			if a >= end {
				return false
			}
			a, b = max(a, start), min(b, end)
			return yield(Extent{a, b - a})
		})
	}
}

// Extents yields the set's extents in order. The set must not change meanwhile.
func (s *Set) Extents() iter.Seq[Extent] {
	return func(yield func(Extent) bool) {
		s.starts.Scan(func(b, a int64) bool { return yield(Extent{a, b - a}) })
	}
}

// Bytes returns how many bytes are in the set.
func (s *Set) Bytes() int64 { return s.bytes }

// Len returns how many extents the set has.
func (s *Set) Len() int { return s.starts.Len() }

// Clone returns a copy, which shares nothing that either changes. It takes no
// time: what is equal is shared until one of them changes it.
func (s *Set) Clone() *Set { return &Set{starts: *s.starts.Copy(), bytes: s.bytes} }

// Union adds another set, which stays as it is.
func (s *Set) Union(o *Set) {
	if s == o {
		return
	}
	if s.Len() == 0 {
		*s = *o.Clone()
		return
	}
	for e := range o.Extents() {
		s.Add(e)
	}
}

// Subtract takes another set out, which stays as it is.
func (s *Set) Subtract(o *Set) {
	if s == o {
		*s = Set{}
		return
	}
	for e := range o.Extents() {
		s.Remove(e)
	}
}
