package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault/segment"
)

// Refresh loads what has come since the last one: timelines, and the indexes of
// new segments. It is cheap when nothing is new. What is damaged does not keep
// it from loading all that comes before the damage, and other timelines: an error
// that wraps ErrCorrupt or ErrNewerFormat says that the rest is loaded and can be
// used, and comes again from each Refresh until the damage is mended. After any
// other error too little may be loaded.
func (s *Stream) Refresh(ctx context.Context) error {
	s.refresh.Lock()
	defer s.refresh.Unlock()
	err := s.refreshAll(ctx)
	for tries := 0; errors.Is(err, errOvertaken) && tries < 3; tries++ {
		fresh := s.anew()
		err = fresh.refreshAll(ctx)
		s.become(fresh)
	}
	return err
}

// refreshAll is Refresh, once. The caller holds refresh.
func (s *Stream) refreshAll(ctx context.Context) error {
	found, err := s.refreshTimelines(ctx)
	if err != nil {
		return fmt.Errorf("refresh stream %s: %w", s.desc.ID, err)
	}
	for _, t := range s.sorted() {
		err := s.refreshTimeline(ctx, t)
		if err != nil && !isDamage(err) {
			return fmt.Errorf("refresh stream %s: %w", s.desc.ID, err)
		}
		s.mu.Lock()
		t.cut = err != nil
		if t.broken = err; err == nil {
			t.broken = s.checkFork(t)
		}
		s.mu.Unlock()
		found = append(found, t.broken, t.keptErr)
	}
	var damage error
	if err := errors.Join(found...); err != nil {
		damage = fmt.Errorf("refresh stream %s: %w", s.desc.ID, err)
	}
	s.mu.Lock()
	s.damage = damage
	s.mu.Unlock()
	return damage
}

// Damaged returns the damage that the last Refresh found; nil if there was none.
// Timelines says which timelines it concerns.
func (s *Stream) Damaged() error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.damage
}

// isDamage says that an error is about what is stored, and not about getting at
// it.
func isDamage(err error) bool { return errors.Is(err, ErrCorrupt) || errors.Is(err, ErrNewerFormat) }

// sorted returns the timelines, parents before their forks.
func (s *Stream) sorted() []*timeline {
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := make([]*timeline, 0, len(s.timelines))
	for _, t := range s.timelines {
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b *timeline) int { return int(int64(a.desc.ID) - int64(b.desc.ID)) })
	return all
}

// checkFork says whether the past that a timeline shares is there. Timelines are
// listed before segments, so what a fork needs of its parent is loaded. mu is held.
func (s *Stream) checkFork(t *timeline) error {
	name, to := timelineName(s.desc.ID, t.desc.ID), t.desc.ForkAt
	for id := t.desc.Parent; id != 0; {
		p := s.timelines[id]
		if p == nil {
			return damaged(name, fmt.Errorf("%w: timeline %s, of which it is a fork, cannot be read", ErrCorrupt, id))
		}
		if to > p.tail.Position {
			return damaged(name, fmt.Errorf("%w: it is a fork of timeline %s at position %s, which can be read to %s", ErrCorrupt, id, to, p.tail.Position))
		}
		id, to = p.desc.Parent, min(to, p.desc.ForkAt)
	}
	return nil
}

// refreshTimelines loads new descriptors of timelines. Damaged ones are found;
// an error ends the refresh.
func (s *Stream) refreshTimelines(ctx context.Context) (found []error, err error) {
	dir := streamName(s.desc.ID, "timelines") + "/"
	entries, err := s.v.store.List(ctx, dir, "")
	if err != nil {
		return nil, err
	}
	highest := uint64(0)
	for _, e := range entries {
		n, err := strconv.ParseUint(strings.TrimPrefix(e.Name, dir), 16, 32)
		if err != nil || e.Name != timelineName(s.desc.ID, holdfast.TimelineID(n)) || n == 0 || n > MaxTimelines {
			found = append(found, damaged(e.Name, fmt.Errorf("%w: not the name of a timeline", ErrCorrupt)))
			continue
		}
		highest = max(highest, n)
	}
	highest = max(highest, 1) // a stream has a timeline, if only a missing one
	s.mu.Lock()
	s.highest = max(s.highest, holdfast.TimelineID(highest))
	s.mu.Unlock()
	// Timelines are numbered without gaps. A name that the listing has missed,
	// because it came during it, is asked for.
	for n := uint64(1); n <= highest; n++ {
		err := s.loadTimeline(ctx, holdfast.TimelineID(n))
		if err != nil && !isDamage(err) {
			return nil, err
		}
		found = append(found, err)
	}
	return found, nil
}

// MaxTimelines bounds the timelines of a stream.
const MaxTimelines = 1 << 16

func (s *Stream) loadTimeline(ctx context.Context, id holdfast.TimelineID) error {
	s.mu.RLock()
	old := s.timelines[id]
	s.mu.RUnlock()
	if old != nil && old.keptErr == nil {
		return nil
	}
	if old != nil { // it may be mended
		return s.refreshKept(ctx, old)
	}
	name := timelineName(s.desc.ID, id)
	t := &timeline{}
	_, err := s.v.getDocument(ctx, name, &t.desc)
	if missing(err) {
		return damaged(name, fmt.Errorf("%w: it is missing", ErrCorrupt))
	}
	if err != nil {
		return err
	}
	if t.desc.ID != id || t.desc.Generation == 0 || t.desc.Parent >= id || (t.desc.Parent == 0) != (id == 1) || t.desc.Parent == 0 && t.desc.ForkAt != 0 {
		return damaged(name, fmt.Errorf("%w: not the descriptor of this timeline", ErrCorrupt))
	}
	if t.desc.Disks != nil {
		if err := checkDisks(t.desc.Disks); err != nil {
			return damaged(name, fmt.Errorf("%w: %w", ErrCorrupt, err))
		}
	}
	t.tail = Tail{Position: t.desc.ForkAt, Time: t.desc.CreatedAt}
	if err := s.refreshKept(ctx, t); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timelines[id] = t
	return nil
}

// refreshTimeline loads a timeline's new segments, up to the first damage.
func (s *Stream) refreshTimeline(ctx context.Context, t *timeline) error {
	if t.ended != nil {
		return nil
	}
	entries, err := s.listSegments(ctx, t)
	if err != nil {
		return err
	}
	for tries := 0; len(entries) > 0; {
		before := t.tail.Seq
		err := s.takeMany(ctx, t, entries)
		if t.tail.Seq > before {
			tries = 0
		}
		if errors.Is(err, errMissing) && tries < 3 {
			// A listing may miss what comes while it runs, and have what comes
			// later, or what was replaced and removed since.
			tries++
			if entries, err = s.listSegments(ctx, t); err != nil {
				return err
			}
			continue
		}
		if errors.Is(err, errMissing) {
			e, p, _, listErr := s.covering(ctx, t, t.tail.Seq+1)
			if listErr != nil {
				return listErr
			}
			if e.Name != "" && p.from <= t.tail.Seq {
				return errOvertaken
			}
		}
		if err != nil {
			return err
		}
		entries = behind(entries, t.tail.Seq)
	}
	return nil
}

// takeMany loads and appends the next segments of a timeline, as many as are loaded
// at once. What comes before the first that fails is taken.
func (s *Stream) takeMany(ctx context.Context, t *timeline, entries []objstore.Entry) error {
	chain := chainOf(entries, t.tail.Seq+1, loadAtOnce)
	if len(chain) == 0 {
		return damaged(segmentName(s.desc.ID, t.desc.ID, t.tail.Seq+1), fmt.Errorf("%w, but %s is there", errMissing, path.Base(entries[len(entries)-1].Name)))
	}
	segs, errs := s.loadMany(ctx, chain)
	for i, e := range chain {
		if t.ended != nil {
			return damaged(e.Name, fmt.Errorf("%w: it is behind the end of its timeline", ErrCorrupt))
		}
		if errs[i] != nil {
			return errs[i]
		}
		if err := s.take(t, segs[i]); err != nil {
			return damaged(e.Name, err)
		}
		if err := s.keptSince(ctx, t, segs[i]); err != nil {
			return err
		}
	}
	return nil
}

// keptSince reads again what is kept of a timeline if a segment was written under
// a later version of that.
func (s *Stream) keptSince(ctx context.Context, t *timeline, l *loaded) error {
	if l.epoch == 0 || l.epoch <= t.kept.Epoch && t.keptErr == nil {
		return nil
	}
	return s.refreshKept(ctx, t)
}

// refreshKept reads what is kept of a timeline. If that is damaged, nothing is
// known to be kept of what was pruned; what came later is untouched by that.
func (s *Stream) refreshKept(ctx context.Context, t *timeline) error {
	k, _, err := s.loadKept(ctx, t.desc.ID)
	if err != nil && !isDamage(err) {
		return err
	}
	var upto holdfast.Position
	for _, l := range t.segs {
		upto = max(upto, l.upto)
		if err == nil && l.epoch > k.Epoch {
			err = damaged(keptName(s.desc.ID, t.desc.ID), fmt.Errorf("%w: it is of epoch %d, and %s of epoch %d", ErrCorrupt, k.Epoch, path.Base(l.name), l.epoch))
		}
	}
	if err != nil {
		k = keptDocument{Format: FormatVersion, Timeline: t.desc.ID, Upto: upto}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t.kept, t.keptErr = k, err
	return nil
}

// reload reads the stream anew: what was loaded may have been replaced by others.
func (s *Stream) reload(ctx context.Context) error {
	fresh := s.anew()
	if err := fresh.Refresh(ctx); err != nil && !isDamage(err) {
		return err
	}
	s.refresh.Lock()
	defer s.refresh.Unlock()
	s.become(fresh)
	return nil
}

// anew returns the stream with nothing loaded.
func (s *Stream) anew() *Stream {
	return &Stream{v: s.v, desc: s.desc, key: s.key, cache: s.cache, timelines: map[holdfast.TimelineID]*timeline{}}
}

// become takes what another has loaded. The caller holds refresh.
func (s *Stream) become(fresh *Stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timelines, s.highest, s.damage = fresh.timelines, max(s.highest, fresh.highest), fresh.damage
	s.layouts.reset()
}

// errOvertaken says that what was loaded of a timeline was put together with what
// comes next, and has to be loaded anew.
var errOvertaken = errors.New("the timeline was pruned while it was read")

// covering finds the segment that a sequence number is in, whatever was put together
// since, and what else there is from there on.
func (s *Stream) covering(ctx context.Context, t *timeline, seq uint64) (e objstore.Entry, p place, rest []objstore.Entry, err error) {
	rest, err = s.v.store.List(ctx, streamName(s.desc.ID, t.desc.ID.String())+"/", "")
	rest = slices.DeleteFunc(rest, func(x objstore.Entry) bool {
		q, ok := placeOf(x.Name)
		if ok && q.from <= seq && q.to >= seq && (e.Name == "" || q.epoch > p.epoch) {
			e, p = x, q
		}
		return !ok || q.to < seq
	})
	return e, p, rest, err
}

// listSegments lists the segments behind what is loaded of a timeline.
func (s *Stream) listSegments(ctx context.Context, t *timeline) ([]objstore.Entry, error) {
	after := ""
	if t.tail.Seq > 0 {
		after = segmentName(s.desc.ID, t.desc.ID, t.tail.Seq)
	}
	entries, err := s.v.store.List(ctx, streamName(s.desc.ID, t.desc.ID.String())+"/", after)
	return slices.DeleteFunc(entries, func(e objstore.Entry) bool {
		p, ok := placeOf(e.Name)
		return !ok || p.to <= t.tail.Seq // Verify tells of what has no place
	}), err
}

// take appends a segment to a timeline, if it follows.
func (s *Stream) take(t *timeline, l *loaded) error {
	if err := t.follows(l); err != nil {
		return err
	}
	if err := s.checkEntries(l, s.disksOf(t.desc.ID)); err != nil {
		return err
	}
	marks, err := l.marks()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t.append(l, marks)
	return nil
}

// follows checks that a segment belongs at the end of the timeline.
func (t *timeline) follows(l *loaded) error {
	h := l.Header
	switch {
	case h.Timeline != t.desc.ID:
		return fmt.Errorf("%w: it is of timeline %s", ErrCorrupt, h.Timeline)
	case l.from != t.tail.Seq+1:
		return fmt.Errorf("%w: it has sequence number %d, its place is %d", ErrCorrupt, l.from, t.tail.Seq+1)
	case h.Prev != t.tail.Hash:
		return fmt.Errorf("%w: the segment before it is not the one that it was written after", ErrCorrupt)
	case h.First != t.tail.Position+1:
		return fmt.Errorf("%w: it begins at position %s, the one before ends at %s", ErrCorrupt, h.First, t.tail.Position)
	case h.FirstTime.Before(t.tail.Time):
		return fmt.Errorf("%w: it begins before the one before ends", ErrCorrupt)
	case h.Generation < t.desc.Generation || h.Kind == segment.End && h.Generation == t.desc.Generation:
		return fmt.Errorf("%w: it is of generation %d, its timeline of %d", ErrCorrupt, h.Generation, t.desc.Generation)
	}
	return nil
}

// checkEntries checks that a segment is of this stream, and writes only within
// the disks of its timeline.
func (s *Stream) checkEntries(l *loaded, disks []Disk) error {
	if l.Header.Stream != s.desc.ID {
		return fmt.Errorf("%w: it is of stream %s", ErrCorrupt, l.Header.Stream)
	}
	sizes := make([]int64, len(l.Index.Disks))
	for i, id := range l.Index.Disks {
		at := slices.IndexFunc(disks, func(d Disk) bool { return d.ID == id })
		if at < 0 {
			return fmt.Errorf("%w: timeline %s has no disk %q", ErrCorrupt, l.Header.Timeline, id)
		}
		sizes[i] = disks[at].Size
	}
	for i := range l.Index.Entries {
		if e := &l.Index.Entries[i]; e.Kind != segment.Mark && e.Offset > sizes[e.Disk]-e.Length {
			return fmt.Errorf("%w: the write at position %s ends beyond disk %q", ErrCorrupt, e.Position, l.Index.Disks[e.Disk])
		}
	}
	return nil
}

// marks returns the segment's marks.
func (l *loaded) marks() ([]placedMark, error) {
	var marks []placedMark
	for i := range l.Index.Entries {
		e := &l.Index.Entries[i]
		if e.Kind != segment.Mark || i == 0 && l.Header.Kind == segment.Kept {
			continue
		}
		m := placedMark{pos: e.Position, at: e.Time}
		if err := json.Unmarshal(e.Mark, &m.Mark); err != nil {
			return nil, fmt.Errorf("%w: mark at position %s: %w", ErrCorrupt, e.Position, err)
		}
		marks = append(marks, m)
	}
	return marks, nil
}

// append takes a segment that follows.
func (t *timeline) append(l *loaded, marks []placedMark) {
	t.marks = append(t.marks, marks...)
	t.segs = append(t.segs, l)
	t.bytes += l.size
	h := l.Header
	if h.Kind == segment.End {
		t.ended = &h
	}
	t.tail.Seq, t.tail.Hash = h.Seq, l.hash
	if h.Kind != segment.End {
		t.tail.Position, t.tail.Time = h.Last, h.LastTime
	}
}
