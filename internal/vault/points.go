package vault

import (
	"fmt"
	"slices"
	"sort"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
)

// MarkKind is what a mark says.
type MarkKind string

// The kinds of marks.
const (
	// MarkPoint is a recovery point.
	MarkPoint MarkKind = "point"
	// MarkConsistent: from here on every position is crash-consistent.
	MarkConsistent MarkKind = "consistent"
	// MarkInconsistent: from here on positions are not, until MarkConsistent.
	MarkInconsistent MarkKind = "inconsistent"
	// MarkNote is for people.
	MarkNote MarkKind = "note"
)

// Consistency is what a recovered machine finds at a point.
type Consistency string

// The consistencies.
const (
	CrashConsistent      Consistency = "crash"
	FilesystemConsistent Consistency = "filesystem"
	AppConsistent        Consistency = "app"
)

// Mark is a named place in a stream.
type Mark struct {
	Kind        MarkKind    `json:"kind"`
	Name        string      `json:"name,omitempty"`
	Consistency Consistency `json:"consistency,omitempty"`
}

// placedMark is a mark and where it is.
type placedMark struct {
	Mark
	pos holdfast.Position
	at  time.Time
}

// Point is a recovery point.
type Point struct {
	ID          string // unique in the stream
	Name        string
	Position    holdfast.Position
	Time        time.Time
	Consistency Consistency
}

// Range is a stretch of a timeline in which every position is crash-consistent.
type Range struct {
	From, To         holdfast.Position
	FromTime, ToTime time.Time
}

// part is a timeline as far as a younger one has it as its past.
type part struct {
	t  *timeline
	to holdfast.Position // inclusive
}

// lineage returns a timeline and its ancestors, the oldest first. The caller
// holds mu.
func (s *Stream) lineage(tl holdfast.TimelineID) ([]part, error) {
	t, ok := s.timelines[tl]
	if !ok {
		return nil, fmt.Errorf("timeline %s: %w", tl, ErrNoPosition)
	}
	parts := []part{{t, t.tail.Position}}
	for t.desc.Parent != 0 {
		at := t.desc.ForkAt
		t = s.timelines[t.desc.Parent]
		parts = append(parts, part{t, min(at, t.tail.Position)})
	}
	slices.Reverse(parts)
	return parts, nil
}

// Points returns the recovery points of a timeline and of its past, the oldest
// first.
func (s *Stream) Points(tl holdfast.TimelineID) []Point {
	s.mu.RLock()
	defer s.mu.RUnlock()
	parts, err := s.lineage(tl)
	if err != nil {
		return nil
	}
	var out []Point
	for _, p := range parts {
		for _, m := range p.t.marks {
			if m.Kind == MarkPoint && m.pos <= p.to {
				out = append(out, Point{ID: "p" + m.pos.String(), Name: m.Name, Position: m.pos, Time: m.at, Consistency: m.Consistency})
			}
		}
	}
	return out
}

// Ranges returns where a timeline and its past are crash-consistent, the oldest
// first.
func (s *Stream) Ranges(tl holdfast.TimelineID) []Range {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.ranges(tl)
}

func (s *Stream) ranges(tl holdfast.TimelineID) []Range {
	parts, err := s.lineage(tl)
	if err != nil {
		return nil
	}
	var out []Range
	open := false
	end := func(pos holdfast.Position, at time.Time) {
		if open {
			r := &out[len(out)-1]
			r.To, r.ToTime, open = pos, at, false
		}
	}
	var last holdfast.Position
	var lastAt time.Time
	for _, p := range parts {
		for _, m := range p.t.marks {
			if m.pos > p.to {
				break
			}
			switch m.Kind {
			case MarkConsistent:
				if !open {
					out, open = append(out, Range{From: m.pos, FromTime: m.at}), true
				}
			case MarkInconsistent:
				end(m.pos, m.at)
			}
		}
		if p.to > last {
			last, lastAt = p.to, p.t.timeOf(p.to)
		}
	}
	end(last, lastAt)
	return out
}

// timeOf returns the time of a position, or of the one before it that is there.
func (t *timeline) timeOf(pos holdfast.Position) time.Time {
	if pos >= t.tail.Position {
		return t.tail.Time
	}
	i := sort.Search(len(t.segs), func(i int) bool { return t.segs[i].Header.Last >= pos })
	if i == len(t.segs) {
		return t.tail.Time
	}
	es := t.segs[i].Index.Entries
	k := sort.Search(len(es), func(k int) bool { return es[k].Position > pos })
	if k == 0 {
		return t.segs[i].Header.FirstTime
	}
	return es[k-1].Time
}

// Resolve returns the newest crash-consistent position of a timeline at or
// before a time; ErrNoPosition if there is none.
func (s *Stream) Resolve(tl holdfast.TimelineID, at time.Time) (holdfast.Position, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, r := range slices.Backward(s.ranges(tl)) {
		if r.FromTime.After(at) {
			continue
		}
		if !r.ToTime.After(at) {
			return r.To, nil
		}
		return max(r.From, min(r.To, s.lastBefore(tl, at))), nil
	}
	return 0, fmt.Errorf("timeline %s at %s: %w", tl, at.Format(time.RFC3339), ErrNoPosition)
}

// lastBefore returns the newest position at or before a time.
func (s *Stream) lastBefore(tl holdfast.TimelineID, at time.Time) holdfast.Position {
	parts, err := s.lineage(tl)
	if err != nil {
		return 0
	}
	for _, p := range slices.Backward(parts) {
		for _, l := range slices.Backward(p.t.segs) {
			es := l.Index.Entries
			k := sort.Search(len(es), func(k int) bool { return es[k].Time.After(at) || es[k].Position > p.to })
			if k > 0 {
				return es[k-1].Position
			}
		}
	}
	return 0
}

