package vault

import (
	"fmt"
	"math"
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
	// Confirmed, of a MarkInconsistent, is until when the source is known to have
	// missed nothing, which may be a moment before the mark. Zero: not known.
	Confirmed time.Time `json:"confirmed,omitzero"`
	// Group, of a MarkPoint, is the same for points of several streams that are one
	// moment.
	Group string `json:"group,omitempty"`
}

// placedMark is a mark and where it is.
type placedMark struct {
	Mark
	pos holdfast.Position
	at  time.Time
}

// point returns a mark of kind MarkPoint as a recovery point.
func (m placedMark) point() Point {
	return Point{ID: "p" + m.pos.String(), Name: m.Name, Position: m.pos, Time: m.at, Consistency: m.Consistency, Group: m.Group}
}

// Point is a recovery point.
type Point struct {
	ID          string // unique in a timeline and its past
	Name        string
	Position    holdfast.Position
	Time        time.Time
	Consistency Consistency
	Group       string // see Mark
}

// Range is a stretch of a timeline in which every position is crash-consistent.
type Range struct {
	From, To         holdfast.Position
	FromTime, ToTime time.Time
	// Confirmed is until when, within the range, the source is known to have missed
	// nothing: up to then the range can be seen beside those of other streams of the
	// same gateway. Zero: not known, or only the canary knows, if Open.
	Confirmed time.Time
	Open      bool // the range goes on, as far as the vault knows
}

// part is a timeline as far as a younger one has it as its past.
type part struct {
	t  *timeline
	to holdfast.Position // inclusive
}

// lineage returns a timeline and its ancestors, the oldest first, as far as they
// can be read without a gap. If that is not all, broken says why. The caller
// holds mu.
func (s *Stream) lineage(tl holdfast.TimelineID) (parts []part, broken error) {
	if tl == 0 {
		return nil, fmt.Errorf("timeline %s: %w", tl, ErrNoPosition)
	}
	to := holdfast.Position(math.MaxUint64)
	for id := tl; id != 0; {
		t, ok := s.timelines[id]
		switch {
		case !ok && id > s.highest:
			return nil, fmt.Errorf("timeline %s: %w", tl, ErrNoPosition)
		case !ok:
			return nil, damaged(timelineName(s.desc.ID, id), fmt.Errorf("%w: it cannot be read", ErrCorrupt))
		case id == tl:
			to = t.tail.Position
		}
		parts = append(parts, part{t, to})
		// A fork may lie before its parent's own beginning.
		id, to = t.desc.Parent, min(to, t.desc.ForkAt)
	}
	slices.Reverse(parts)
	for i, p := range parts {
		if p.to > p.t.tail.Position {
			parts[i].to = p.t.tail.Position
			return parts[:i+1], s.whyShort(parts[i:])
		}
	}
	return parts, parts[len(parts)-1].t.broken
}

// whyShort returns why the first of parts cannot be read up to where the second
// forks.
func (s *Stream) whyShort(parts []part) error {
	if parts[0].t.broken != nil {
		return parts[0].t.broken
	}
	return s.checkFork(parts[1].t)
}

// partOf returns the part that has a position.
func partOf(parts []part, pos holdfast.Position) part {
	for _, p := range slices.Backward(parts) {
		if pos > p.t.desc.ForkAt {
			return p
		}
	}
	return parts[0]
}

// Points returns the recovery points of a timeline and of its past, the oldest
// first; only those that can be read, if there is damage.
func (s *Stream) Points(tl holdfast.TimelineID) []Point {
	s.mu.RLock()
	defer s.mu.RUnlock()
	parts, _ := s.lineage(tl) // what cannot be read has no points and ranges
	var out []Point
	for _, p := range parts {
		for _, m := range p.t.marks {
			if m.Kind == MarkPoint && m.pos <= p.to && p.t.kept.has(m.pos) {
				out = append(out, m.point())
			}
		}
	}
	return out
}

// Ranges returns where a timeline and its past are crash-consistent, the oldest
// first; only as far as they can be read, if there is damage.
func (s *Stream) Ranges(tl holdfast.TimelineID) []Range {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.ranges(tl)
}

func (s *Stream) ranges(tl holdfast.TimelineID) []Range {
	parts, _ := s.lineage(tl) // what cannot be read has no points and ranges
	return s.thin(parts, s.stretches(parts))
}

// stretches are the ranges as if all were kept.
func (s *Stream) stretches(parts []part) []Range {
	var out []Range
	open := false
	end := func(pos holdfast.Position, at, confirmed time.Time) {
		if open {
			r := &out[len(out)-1]
			r.To, r.ToTime, r.Confirmed, open = pos, at, confirmed, false
		}
	}
	var last holdfast.Position
	var lastAt, before time.Time // before: confirmed of what was open where the timeline forks
	var disks []Disk
	for i, p := range parts {
		if before = p.t.desc.Confirmed; i > 0 && parts[i-1].t.tail.Position > p.t.desc.ForkAt {
			before = earlier(before, lastAt) // it went back: what came after is not its past
		}
		// Nobody has noted a consistent moment with other disks yet.
		if now := s.disksOf(p.t.desc.ID); disks == nil || !slices.Equal(disks, now) {
			end(last, lastAt, before)
			disks = now
		}
		for _, m := range p.t.marks {
			if m.pos > p.to {
				break
			}
			switch m.Kind {
			case MarkConsistent:
				if !open {
					out, open = append(out, Range{From: m.pos, FromTime: m.at}), true
					before = time.Time{}
				}
			case MarkInconsistent:
				if m.Confirmed.Before(before) {
					m.Confirmed = before
				}
				end(m.pos, m.at, m.Confirmed)
			}
		}
		if p.to > last {
			last, lastAt = p.to, p.t.timeOf(p.to)
		}
	}
	if open {
		end(last, lastAt, before)
		out[len(out)-1].Open = true
	}
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

// TimeOf returns the time of a position of a timeline or of its past.
func (s *Stream) TimeOf(tl holdfast.TimelineID, pos holdfast.Position) (time.Time, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	parts, _ := s.lineage(tl)
	if len(parts) == 0 {
		return time.Time{}, false
	}
	return partOf(parts, pos).t.timeOf(pos), true
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

// LastBefore returns the newest position of a timeline's own at or before a time;
// the one at which it begins if there is none.
func (s *Stream) LastBefore(tl holdfast.TimelineID, at time.Time) holdfast.Position {
	s.mu.RLock()
	defer s.mu.RUnlock()
	t := s.timelines[tl]
	if t == nil {
		return 0
	}
	for _, l := range slices.Backward(t.segs) {
		es := l.Index.Entries
		if k := sort.Search(len(es), func(k int) bool { return es[k].Time.After(at) }); k > 0 {
			return es[k-1].Position
		}
	}
	return t.desc.ForkAt
}

// lastBefore returns the newest position at or before a time.
func (s *Stream) lastBefore(tl holdfast.TimelineID, at time.Time) holdfast.Position {
	parts, _ := s.lineage(tl)
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
