package block_test

import (
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/holdfast-dr/holdfast/internal/block"
)

func ext(off, n int64) block.Extent { return block.Extent{Offset: off, Length: n} }

func setOf(es ...block.Extent) *block.Set {
	s := &block.Set{}
	for _, e := range es {
		s.Add(e)
	}
	return s
}

func extents(s *block.Set) []block.Extent { return slices.Collect(s.Extents()) }

// universe is how many bytes the bitmap model has.
const universe = 200

// bitmap is the model of a set: a bool for each byte.
type bitmap [universe]bool

func (b *bitmap) mark(e block.Extent, in bool) {
	for i := e.Offset; i < e.End(); i++ {
		b[i] = in
	}
}

// within returns the runs of set bytes in an extent.
func (b *bitmap) within(e block.Extent) []block.Extent {
	var out []block.Extent
	for i := e.Offset; i < e.End(); i++ {
		switch {
		case !b[i]:
		case len(out) > 0 && out[len(out)-1].End() == i:
			out[len(out)-1].Length++
		default:
			out = append(out, ext(i, 1))
		}
	}
	return out
}

// modelled is a set and what it should be.
type modelled struct {
	set   *block.Set
	model bitmap
}

func (m *modelled) check(t *rapid.T) {
	want := m.model.within(ext(0, universe))
	if diff := cmp.Diff(want, extents(m.set)); diff != "" {
		t.Fatalf("extents (-want +got):\n%s", diff)
	}
	var bytes int64
	for _, e := range want {
		bytes += e.Length
	}
	if m.set.Bytes() != bytes || m.set.Len() != len(want) {
		t.Fatalf("set has %d bytes in %d extents, want %d in %d", m.set.Bytes(), m.set.Len(), bytes, len(want))
	}
}

func TestSetAgainstBitmap(t *testing.T) {
	t.Parallel()
	extent := rapid.Custom(func(t *rapid.T) block.Extent {
		off := rapid.Int64Range(0, universe).Draw(t, "offset")
		return ext(off, rapid.Int64Range(0, universe-off).Draw(t, "length"))
	})
	rapid.Check(t, func(t *rapid.T) {
		m := &modelled{set: &block.Set{}}
		other := &modelled{set: &block.Set{}}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				e := extent.Draw(t, "extent")
				m.set.Add(e)
				m.model.mark(e, true)
			},
			"remove": func(t *rapid.T) {
				e := extent.Draw(t, "extent")
				m.set.Remove(e)
				m.model.mark(e, false)
			},
			"query": func(t *rapid.T) {
				e := extent.Draw(t, "extent")
				want := m.model.within(e)
				if diff := cmp.Diff(want, m.set.Intersect(e)); diff != "" {
					t.Fatalf("intersect %v (-want +got):\n%s", e, diff)
				}
				if got := m.set.Overlaps(e); got != (len(want) > 0) {
					t.Fatalf("overlaps %v: %v", e, got)
				}
				if got := m.set.Contains(e.Offset); got != (e.Offset < universe && m.model[e.Offset]) {
					t.Fatalf("contains %d: %v", e.Offset, got)
				}
			},
			"swap":  func(*rapid.T) { m, other = other, m },
			"clone": func(*rapid.T) { other = &modelled{m.set.Clone(), m.model} },
			"union": func(*rapid.T) {
				m.set.Union(other.set)
				for i, in := range other.model {
					m.model[i] = m.model[i] || in
				}
			},
			"subtract": func(*rapid.T) {
				m.set.Subtract(other.set)
				for i, in := range other.model {
					m.model[i] = m.model[i] && !in
				}
			},
			"": func(t *rapid.T) { // after each: what the other shares is still its own
				m.check(t)
				other.check(t)
			},
		})
	})
}

func TestSetEdges(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		do   func(s *block.Set)
		want []block.Extent
	}{
		{"touching ones are one", func(s *block.Set) { s.Add(ext(0, 10)); s.Add(ext(20, 10)); s.Add(ext(10, 10)) }, []block.Extent{ext(0, 30)}},
		{"what touches stays when its neighbour goes", func(s *block.Set) { s.Add(ext(0, 30)); s.Remove(ext(10, 10)); s.Remove(ext(10, 10)) }, []block.Extent{ext(0, 10), ext(20, 10)}},
		{"empty and negative", func(s *block.Set) {
			s.Add(ext(5, 0))
			s.Add(ext(5, -3))
			s.Add(ext(1, 2))
			s.Remove(ext(1, 0))
			s.Remove(ext(2, -1))
		}, []block.Extent{ext(1, 2)}},
		{"end of the world", func(s *block.Set) { s.Add(ext(math.MaxInt64-1, 5)); s.Add(ext(10, math.MaxInt64)) }, []block.Extent{ext(10, math.MaxInt64-10)}},
		{"remove at the end of the world", func(s *block.Set) {
			s.Add(ext(10, 20))
			s.Remove(ext(20, math.MaxInt64))
			s.Remove(ext(math.MaxInt64, 1))
		}, []block.Extent{ext(10, 10)}},
		{"union with itself", func(s *block.Set) { s.Add(ext(1, 2)); s.Union(s) }, []block.Extent{ext(1, 2)}},
		{"subtract itself", func(s *block.Set) { s.Add(ext(1, 2)); s.Subtract(s) }, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := &block.Set{}
			tt.do(s)
			if diff := cmp.Diff(tt.want, extents(s)); diff != "" {
				t.Errorf("extents (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSetStopsEarly(t *testing.T) {
	t.Parallel()
	s := setOf(ext(0, 1), ext(2, 1), ext(4, 1))
	for name, seq := range map[string]iter.Seq[block.Extent]{"extents": s.Extents(), "within": s.Within(ext(0, 9))} {
		n := 0
		for range seq {
			if n++; n == 2 {
				break
			}
		}
		if n != 2 {
			t.Errorf("%s went on after a break: %d", name, n)
		}
	}
}

// scattered returns a set of n extents of 4 KiB, with as much between them.
func scattered(n int) *block.Set {
	s := &block.Set{}
	for i := range n {
		s.Add(ext(int64(i)*8192, 4096))
	}
	return s
}

func BenchmarkSet(b *testing.B) {
	for _, n := range []int{1e3, 1e6} {
		b.Run(fmt.Sprintf("add-random/%d", n), func(b *testing.B) {
			rng := rand.New(rand.NewPCG(1, 2))
			s := scattered(n)
			for b.Loop() {
				s.Add(ext(rng.Int64N(int64(n))*8192+2048, 4096))
			}
		})
		b.Run(fmt.Sprintf("add-remove/%d", n), func(b *testing.B) {
			rng := rand.New(rand.NewPCG(1, 2))
			s := scattered(n)
			for b.Loop() {
				e := ext(rng.Int64N(int64(n))*8192+1024, 1024)
				s.Remove(e)
				s.Add(e)
			}
		})
		b.Run(fmt.Sprintf("overlaps/%d", n), func(b *testing.B) {
			rng := rand.New(rand.NewPCG(1, 2))
			s := scattered(n)
			for b.Loop() {
				s.Overlaps(ext(rng.Int64N(int64(n))*8192+4096, 4096))
			}
		})
		b.Run(fmt.Sprintf("scan/%d", n), func(b *testing.B) {
			s := scattered(n)
			for b.Loop() {
				for range s.Extents() {
				}
			}
		})
		b.Run(fmt.Sprintf("union/%d", n), func(b *testing.B) {
			s, o := scattered(n), scattered(n)
			s.Add(ext(1<<60, 512))
			for b.Loop() {
				s.Clone().Union(o)
			}
		})
	}
}
