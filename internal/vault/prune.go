package vault

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
	"time"

	"github.com/tidwall/btree"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault/segment"
)

// PruneOptions say what is kept of a timeline.
type PruneOptions struct {
	Timeline holdfast.TimelineID
	// Upto is until where only Keep is kept; every position after it is.
	Upto holdfast.Position
	// Keep are positions up to Upto. Those of which others are forks are kept
	// besides, and those that were not kept before are not kept again.
	Keep []holdfast.Position
	// Waste is how much of a segment may be kept by nobody before it is written
	// anew, as a part of one. Default 0.1.
	Waste float64
	// Target is about how much data one segment of what is kept has, in bytes.
	// Smaller ones than a quarter of it are put together. Default 64 MiB, at most 128 MiB.
	Target int64
	// Progress is told how much is looked at, in bytes as stored. May be nil.
	Progress func(done, total int64)
	// Narrowed is called once it is recorded what is kept: from then on nothing
	// else is refused than before. May be nil.
	Narrowed func()
}

// PruneReport says what Prune has done.
type PruneReport struct {
	Kept      int   // positions up to Upto
	Removed   int   // objects
	Written   int   // objects
	Freed     int64 // bytes as stored, of what was removed
	Rewritten int64 // bytes as stored, of what was written
}

const (
	defaultTarget = 64 << 20
	maxTarget     = 128 << 20
	// keptMany is how many small segments are put together although all of them is
	// kept.
	keptMany = 16
	// recent is how much of the target a segment has at most that is put together with
	// others although every position of it is kept, as a divisor: what was is then
	// large enough to be left alone, so that hardly anything is written anew twice.
	recent = 16
)

// Prune frees what no position needs any more that is kept. It first says,
// durably, what is kept, then writes anew of segments what is, and removes them at
// last. Small segments it puts together also where all is kept: how long a stream
// takes to open depends on how many there are. It may be interrupted at any moment,
// and repeated; views of positions that are kept go on meanwhile, also those of other
// processes, as do writers. Only one may prune a stream at a time. The last segment of
// a timeline stays whole.
func (s *Stream) Prune(ctx context.Context, o PruneOptions) (rep PruneReport, err error) {
	if o.Waste <= 0 {
		o.Waste = 0.1
	}
	if o.Target <= 0 {
		o.Target = defaultTarget
	}
	o.Target = min(o.Target, maxTarget)
	p := &pruner{s: s, o: o, rep: &rep}
	if err := p.prune(ctx); err != nil {
		return rep, fmt.Errorf("prune timeline %s of stream %s: %w", o.Timeline, s.desc.ID, err)
	}
	return rep, nil
}

// pruner is one run of Prune.
type pruner struct {
	s    *Stream
	o    PruneOptions
	rep  *PruneReport
	t    *timeline
	kept keptDocument
	segs []*loaded // that may be written anew: not the last
	// live is what is kept of an entry up to Upto; of those after it all is.
	live map[*segment.Entry][]block.Extent
}

func (p *pruner) prune(ctx context.Context) error {
	if err := p.s.Refresh(ctx); err != nil {
		return err // nothing is removed of what is damaged
	}
	if err := p.sweep(ctx); err != nil {
		return err
	}
	err := p.narrow(ctx)
	if p.o.Narrowed != nil {
		p.o.Narrowed()
	}
	if err != nil {
		return err
	}
	p.choose()
	if p.kept.Epoch != p.t.pruned {
		if err := p.findLive(ctx); err != nil {
			return err
		}
	}
	for _, run := range p.runs() {
		err := p.replace(ctx, run)
		if errors.Is(err, objstore.ErrExists) {
			// An earlier attempt had written it after all. The next run goes on from there.
			return p.s.reload(ctx)
		}
		if err != nil {
			return err
		}
	}
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	p.t.pruned = p.kept.Epoch
	return nil
}

// sweep removes what an interrupted run has left: what others stand for.
func (p *pruner) sweep(ctx context.Context) error {
	s := p.s
	s.mu.RLock()
	p.t = s.timelines[p.o.Timeline]
	s.mu.RUnlock()
	if p.t == nil {
		return ErrNoPosition
	}
	in := map[string]bool{}
	for _, l := range p.t.segs {
		in[l.name] = true
	}
	entries, err := s.v.store.List(ctx, streamName(s.desc.ID, p.o.Timeline.String())+"/", "")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if q, ok := placeOf(e.Name); ok && q.to <= p.t.tail.Seq && !in[e.Name] {
			if err := p.remove(ctx, e.Name, e.Size); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *pruner) remove(ctx context.Context, name string, size int64) error {
	if err := p.s.v.store.Delete(ctx, name); err != nil && !errors.Is(err, objstore.ErrNotFound) {
		return err
	}
	p.rep.Removed++
	p.rep.Freed += size
	return nil
}

// narrow records what is kept from now on, before anything is removed.
func (p *pruner) narrow(ctx context.Context) error {
	s := p.s
	s.forking.Lock()
	defer s.forking.Unlock()
	if err := s.Refresh(ctx); err != nil {
		return err
	}
	old, etag, err := s.loadKept(ctx, p.o.Timeline)
	if err != nil {
		return err
	}
	next := old
	s.mu.RLock()
	next.Upto = max(old.Upto, min(p.o.Upto, p.t.tail.Position))
	next.UptoTime = p.t.timeOf(next.Upto)
	if next.Upto == old.Upto {
		next.UptoTime = old.UptoTime
	}
	times := map[holdfast.Position]time.Time{}
	for _, k := range old.Positions {
		times[k.Position] = k.Time
	}
	keep := append(slices.Clone(p.o.Keep), s.forksOf(p.o.Timeline)...)
	slices.Sort(keep)
	next.Positions = nil
	for _, pos := range slices.Compact(keep) {
		if pos <= p.t.desc.ForkAt || pos > next.Upto || !old.has(pos) {
			continue
		}
		at, ok := times[pos]
		if !ok {
			at = p.t.timeOf(pos)
		}
		next.Positions = append(next.Positions, KeptPosition{pos, stamp(at)})
	}
	s.mu.RUnlock()
	p.rep.Kept = len(next.Positions)
	if next.Upto == old.Upto && slices.Equal(next.Positions, old.Positions) && (old.Epoch > 0 || len(p.t.segs) <= keptMany) {
		p.kept = old
		return nil
	}
	next.Epoch++
	if err := s.putKept(ctx, next, etag); err != nil {
		return err
	}
	p.kept = next
	s.mu.Lock()
	defer s.mu.Unlock()
	p.t.kept = next
	return nil
}

// forksOf returns the positions of a timeline at which others go on. The caller
// holds mu.
func (s *Stream) forksOf(tl holdfast.TimelineID) []holdfast.Position {
	var out []holdfast.Position
	for id := range s.timelines {
		if id == tl {
			continue
		}
		parts, _ := s.lineage(id)
		for _, part := range parts {
			if part.t.desc.ID == tl {
				out = append(out, part.to)
			}
		}
	}
	return out
}

// livePiece is a range of a disk that an entry was the last to write, or to zero.
type livePiece struct {
	end   int64
	entry *segment.Entry
}

// findLive finds of each entry what a position needs that is kept: one of those
// before Upto, or any after it.
func (p *pruner) findLive(ctx context.Context) error {
	p.live = map[*segment.Entry][]block.Extent{}
	p.s.mu.RLock()
	all := p.t.segs
	p.s.mu.RUnlock()
	maps := map[string]*btree.Map[int64, livePiece]{}
	for _, l := range all {
		if err := ctx.Err(); err != nil {
			return err
		}
		for i := range l.Index.Entries {
			e := &l.Index.Entries[i]
			if e.Kind == segment.Mark {
				continue
			}
			id := l.Index.Disks[e.Disk]
			if maps[id] == nil {
				maps[id] = &btree.Map[int64, livePiece]{}
			}
			p.lay(maps[id], e)
		}
	}
	last := holdfast.Position(math.MaxUint64) // an open timeline goes on with what is there
	if p.t.ended != nil {
		last = p.t.tail.Position
	}
	for _, m := range maps {
		m.Scan(func(at int64, x livePiece) bool {
			p.keep(x.entry, at, x.end, last)
			return true
		})
	}
	return nil
}

// choose finds the segments that may be written anew: all but the last, and only
// those after Upto if the others were looked at already under what is kept now.
func (p *pruner) choose() {
	p.s.mu.RLock()
	defer p.s.mu.RUnlock()
	p.segs = p.t.segs[:max(0, len(p.t.segs)-1)]
	if p.kept.Epoch == p.t.pruned {
		first := sort.Search(len(p.segs), func(i int) bool { return p.segs[i].Header.First > p.kept.Upto })
		p.segs = p.segs[first:]
	}
}

// parts returns what is kept of an entry.
func (p *pruner) parts(e *segment.Entry) []block.Extent {
	if e.Position > p.kept.Upto {
		return []block.Extent{{Offset: e.Offset, Length: e.Length}}
	}
	return p.live[e]
}

// lay puts an entry over what was there.
func (p *pruner) lay(m *btree.Map[int64, livePiece], e *segment.Entry) {
	start, end := e.Offset, e.Offset+e.Length
	from := start
	m.Descend(start, func(at int64, _ livePiece) bool { from = at; return false })
	var over []int64
	m.Ascend(from, func(at int64, x livePiece) bool {
		if at < end && x.end > start {
			over = append(over, at)
		}
		return at < end
	})
	for _, at := range over {
		x, _ := m.Delete(at)
		p.keep(x.entry, max(at, start), min(x.end, end), e.Position-1)
		if at < start {
			m.Set(at, livePiece{start, x.entry})
		}
		if x.end > end {
			m.Set(end, livePiece{x.end, x.entry})
		}
	}
	m.Set(start, livePiece{end, e})
}

// keep keeps a part of an entry that can be seen until a position, if any position
// until then is kept.
func (p *pruner) keep(e *segment.Entry, start, end int64, until holdfast.Position) {
	kept := p.kept.Positions
	if e.Position > p.kept.Upto {
		return // all of it is kept: see parts
	}
	i := sort.Search(len(kept), func(i int) bool { return kept[i].Position >= e.Position })
	if until > p.kept.Upto || i < len(kept) && kept[i].Position <= until {
		p.live[e] = append(p.live[e], block.Extent{Offset: start, Length: end - start})
	}
}

// pruned is a segment with how much of its data is kept.
type pruned struct {
	*loaded
	live int64
}

// runs returns the segments that are written anew, each run as one.
func (p *pruner) runs() [][]pruned {
	var out [][]pruned
	var run []pruned
	var live, raw int64
	flush := func() {
		if float64(raw-live) <= p.o.Waste*float64(raw) {
			run = grown(run)
		}
		if len(run) > 0 {
			out = append(out, run)
		}
		run, live, raw = nil, 0, 0
	}
	for _, l := range p.segs {
		x := pruned{l, p.liveBytes(l)}
		dead := float64(l.Header.RawBytes-x.live) > p.o.Waste*float64(l.Header.RawBytes)
		small := p.o.Target / 4
		if l.Header.First > p.kept.Upto {
			small = p.o.Target / recent
		}
		if l.Header.Kind == segment.End || !dead && x.live >= small {
			flush()
			continue
		}
		if live+x.live > p.o.Target {
			flush()
		}
		run, live, raw = append(run, x), live+x.live, raw+l.Header.RawBytes
	}
	flush()
	return out
}

// liveBytes returns how much of a segment's data is kept.
func (p *pruner) liveBytes(l *loaded) (n int64) {
	if l.Header.First > p.kept.Upto {
		return l.Header.RawBytes
	}
	for i := range l.Index.Entries {
		if e := &l.Index.Entries[i]; e.Kind == segment.Data {
			for _, r := range p.parts(e) {
				n += r.Length
			}
		}
	}
	return n
}

// grown returns what is worth to be put together of a run of which all is kept, or
// nearly: no segment that is larger than all that has come behind it, so that none
// is written anew again and again, and nothing if few are left.
func grown(run []pruned) []pruned {
	var size int64
	for _, x := range run {
		size += x.size
	}
	for len(run) >= keptMany && run[0].size > size-run[0].size {
		size -= run[0].size
		run = run[1:]
	}
	if len(run) < keptMany {
		return nil
	}
	return run
}

// replace writes what is kept of a run as one segment, and removes the run.
func (p *pruner) replace(ctx context.Context, run []pruned) error {
	s, first, last := p.s, run[0], run[len(run)-1]
	b := segment.NewBuilder()
	mark, err := json.Marshal(keptMark{Kind: keptKind, From: first.from, Epoch: p.kept.Epoch, Upto: p.kept.Upto, Hash: hex.EncodeToString(last.hash[:])})
	if err != nil {
		return err
	}
	b.Mark(first.Header.First, first.Header.FirstTime, mark)
	h := segment.Header{Kind: segment.Kept, Stream: s.desc.ID, Timeline: p.o.Timeline, Seq: last.Header.Seq, Prev: first.Header.Prev}
	var size int64
	for _, x := range run {
		h.Generation = max(h.Generation, x.Header.Generation)
		if err := p.add(ctx, b, x.loaded); err != nil {
			return err
		}
		if size += x.size; p.o.Progress != nil {
			p.o.Progress(size, size)
		}
	}
	end, err := json.Marshal(Mark{Kind: MarkNote, Name: "until here only a part is kept"})
	if err != nil {
		return err
	}
	b.Mark(last.Header.Last, last.Header.LastTime, end)
	encoded, _, err := b.Finish(h, s.key, s.v.codec)
	if err != nil {
		return err
	}
	r, err := segment.Verify(encoded, s.key, s.v.codec)
	if err != nil {
		return fmt.Errorf("what was written anew is damaged already: %w", err)
	}
	l, err := newLoaded(r, "", int64(len(encoded)))
	if err != nil {
		return err
	}
	l.name = l.place().name(s.desc.ID, p.o.Timeline)
	if err := s.v.store.PutIfAbsent(ctx, l.name, encoded); err != nil {
		return err
	}
	p.rep.Written++
	p.rep.Rewritten += l.size
	if err := p.swap(run, l); err != nil {
		return err
	}
	for _, x := range run {
		if err := p.remove(ctx, x.name, x.size); err != nil {
			return err
		}
	}
	return nil
}

// add adds what is kept of a segment.
func (p *pruner) add(ctx context.Context, b *segment.Builder, l *loaded) error {
	for i := range l.Index.Entries {
		e := &l.Index.Entries[i]
		if e.Kind == segment.Mark {
			if m, ok := p.keepMark(l, i); ok {
				b.Mark(e.Position, e.Time, m)
			}
			continue
		}
		parts := p.parts(e)
		slices.SortFunc(parts, func(x, y block.Extent) int { return cmp.Compare(x.Offset, y.Offset) })
		for _, part := range joined(parts) {
			if e.Kind != segment.Data {
				b.Zero(e.Position, e.Time, l.Index.Disks[e.Disk], part, e.Kind == segment.Hole)
				continue
			}
			frame, err := p.s.frame(ctx, l, e.Frame)
			if err != nil {
				return err
			}
			at := int64(e.FrameOff) + part.Offset - e.Offset
			b.Write(e.Position, e.Time, l.Index.Disks[e.Disk], part.Offset, frame[at:at+part.Length])
		}
	}
	return nil
}

// joined joins neighbours.
func joined(parts []block.Extent) []block.Extent {
	var out []block.Extent
	for _, x := range parts {
		if n := len(out); n > 0 && out[n-1].End() == x.Offset {
			out[n-1].Length += x.Length
			continue
		}
		out = append(out, x)
	}
	return out
}

// keepMark says whether a mark is kept: where consistency begins and ends, and
// points that are.
func (p *pruner) keepMark(l *loaded, i int) ([]byte, bool) {
	e := &l.Index.Entries[i]
	if i == 0 && l.Header.Kind == segment.Kept {
		return nil, false
	}
	var m Mark
	if err := json.Unmarshal(e.Mark, &m); err != nil {
		return nil, false
	}
	switch m.Kind {
	case MarkConsistent, MarkInconsistent:
		return e.Mark, true
	case MarkPoint:
		return e.Mark, p.kept.has(e.Position)
	}
	return nil, false
}

// swap puts a segment into the place of those for which it stands.
func (p *pruner) swap(run []pruned, l *loaded) error {
	marks, err := l.marks()
	if err != nil {
		return err
	}
	s := p.s
	s.mu.Lock()
	defer s.mu.Unlock()
	at := slices.Index(p.t.segs, run[0].loaded)
	if at < 0 || at+len(run) > len(p.t.segs) || p.t.segs[at+len(run)-1] != run[len(run)-1].loaded {
		return errors.New("somebody else prunes it")
	}
	p.t.segs = slices.Concat(p.t.segs[:at], []*loaded{l}, p.t.segs[at+len(run):])
	for _, x := range run {
		p.t.bytes -= x.size
	}
	p.t.bytes += l.size
	p.t.marks = slices.DeleteFunc(slices.Clone(p.t.marks), func(m placedMark) bool {
		return run[0].Header.First <= m.pos && m.pos <= l.Header.Last
	})
	p.t.marks = append(p.t.marks, marks...)
	slices.SortStableFunc(p.t.marks, func(a, b placedMark) int { return cmp.Compare(a.pos, b.pos) })
	s.layouts.reset()
	return nil
}
