package vault

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault/segment"
)

// VerifyOptions say what to verify.
type VerifyOptions struct {
	Stream   *holdfast.StreamID // nil: all
	Progress func(done, total int64)
	Rate     int64 // bytes per second that are read at most; 0: no limit
}

// Report is what Verify found.
type Report struct {
	Segments int
	Bytes    int64 // read
	Damaged  []Damage
}

// Damage is an object that is not as it was written, or missing.
type Damage struct {
	Object      string
	Detail      string
	Stream      holdfast.StreamID
	Timeline    holdfast.TimelineID
	First, Last holdfast.Position // that cannot be read because of it; Last 0: all after First
	Points      []Point           // that are known and cannot be read because of it
}

// Verify reads all, recomputes all, and follows the chain of segments. What it
// finds is in the report; an error says that it could not go on. It may run while
// others write; what comes meanwhile it may not see.
func (v *Vault) Verify(ctx context.Context, o VerifyOptions) (*Report, error) {
	prefix := ""
	if o.Stream != nil {
		prefix = streamName(*o.Stream) + "/"
	}
	entries, err := v.store.List(ctx, prefix, "")
	if err != nil {
		return nil, fmt.Errorf("verify vault: %w", err)
	}
	c := &verifier{v: v, o: o, rep: &Report{}, began: time.Now()}
	streams := map[holdfast.StreamID][]objstore.Entry{}
	var order []holdfast.StreamID
	for _, e := range entries {
		c.total += e.Size
		name, inStream := strings.CutPrefix(e.Name, streamsPrefix)
		if !inStream {
			if err := c.top(ctx, e); err != nil {
				return c.rep, fmt.Errorf("verify %s: %w", e.Name, err)
			}
			continue
		}
		dir, _, _ := strings.Cut(name, "/")
		id, err := holdfast.ParseStreamID(dir)
		if err != nil || id.String() != dir {
			c.rep.Damaged = append(c.rep.Damaged, Damage{Object: e.Name, Detail: "it is not in the directory of a stream"})
			continue
		}
		if streams[id] == nil {
			order = append(order, id)
		}
		streams[id] = append(streams[id], e)
	}
	for _, id := range order {
		if err := c.stream(ctx, id, streams[id]); err != nil {
			return c.rep, fmt.Errorf("verify stream %s: %w", id, err)
		}
	}
	return c.rep, nil
}

type verifier struct {
	v           *Vault
	o           VerifyOptions
	rep         *Report
	done, total int64
	began       time.Time
}

// progress counts an object.
func (c *verifier) progress(size int64) {
	c.done += size
	if c.o.Progress != nil {
		c.o.Progress(c.done, max(c.done, c.total))
	}
}

// pace waits as long as what was read may take.
func (c *verifier) pace(ctx context.Context) error {
	if c.o.Rate <= 0 {
		return nil
	}
	due := time.Duration(float64(c.done) / float64(c.o.Rate) * float64(time.Second))
	if !pause(ctx, due-time.Since(c.began)) {
		return context.Cause(ctx)
	}
	return nil
}

// found notes damage; other errors end the verification.
func (c *verifier) found(d Damage, err error) error {
	if !isDamage(err) && !errors.Is(err, ErrWrongKey) {
		return err
	}
	var ce *CorruptError
	if errors.As(err, &ce) {
		d.Object, err = ce.Object, ce.Err
	}
	d.Detail = err.Error()
	c.rep.Damaged = append(c.rep.Damaged, d)
	return nil
}

// top checks an object that is of no stream.
func (c *verifier) top(ctx context.Context, e objstore.Entry) error {
	c.progress(e.Size)
	switch e.Name {
	case descriptorName:
		b, _, err := c.v.store.Get(ctx, e.Name)
		if err != nil {
			return err
		}
		var d descriptor
		return c.found(Damage{Object: e.Name}, c.v.secret.open(e.Name, b, &d))
	case leaseName:
		_, _, err := c.v.lease(ctx)
		return c.found(Damage{Object: e.Name}, err)
	}
	c.rep.Damaged = append(c.rep.Damaged, Damage{Object: e.Name, Detail: "it is not an object of a vault"})
	return nil
}

// unfinished says of the objects of a directory without a stream that they are
// what an interrupted CreateStream leaves.
func unfinished(id holdfast.StreamID, entries []objstore.Entry) bool {
	return len(entries) == 1 && entries[0].Name == timelineName(id, 1)
}

// beingDeleted says of the objects of a stream that DeleteStream is at it.
func beingDeleted(id holdfast.StreamID, entries []objstore.Entry) bool {
	return slices.ContainsFunc(entries, func(e objstore.Entry) bool { return e.Name == streamName(id, deletedName) })
}

func (c *verifier) stream(ctx context.Context, id holdfast.StreamID, entries []objstore.Entry) error {
	s, err := c.v.OpenStream(ctx, id)
	if errors.Is(err, ErrNoStream) {
		if unfinished(id, entries) || beingDeleted(id, entries) {
			return nil
		}
		err = damaged(streamName(id, "stream"), fmt.Errorf("%w: it is missing", ErrCorrupt))
	}
	if err != nil {
		return c.found(Damage{Object: streamName(id, "stream"), Stream: id}, err)
	}
	found, err := s.refreshTimelines(ctx)
	if err != nil {
		return err
	}
	for _, err := range found {
		if err := c.found(Damage{Stream: id}, err); err != nil {
			return err
		}
	}
	orphans := map[string]bool{}
	for _, e := range entries {
		if name, ok := orphan(s, e.Name); ok {
			if !orphans[name] {
				orphans[name] = true
				c.rep.Damaged = append(c.rep.Damaged, Damage{Object: name, Stream: id, Detail: "it is missing, but has segments"})
			}
			continue
		}
		if c.strange(s, e.Name) {
			c.rep.Damaged = append(c.rep.Damaged, Damage{Object: e.Name, Stream: id, Detail: "it is not an object of this stream"})
		}
	}
	for _, t := range s.sorted() {
		if err := c.timeline(ctx, s, t); err != nil {
			return err
		}
		if err := s.checkFork(t); err != nil {
			d := Damage{Stream: id, Timeline: t.desc.ID, First: t.desc.ForkAt}
			if err := c.found(d, err); err != nil {
				return err
			}
		}
	}
	return c.canary(ctx, s)
}

// orphan says of a segment that its timeline is not there, and how that is named.
// Timelines up to the highest were looked for already.
func orphan(s *Stream, name string) (string, bool) {
	tl, err := strconv.ParseUint(path.Base(path.Dir(name)), 16, 32)
	p, ok := placeOf(name)
	id := holdfast.TimelineID(tl)
	if err != nil || !ok || id == 0 || name != p.name(s.desc.ID, id) || s.timelines[id] != nil {
		return "", false
	}
	return timelineName(s.desc.ID, id), true
}

// strange says of an object that it is in no place that the format has.
func (c *verifier) strange(s *Stream, name string) bool {
	if name == streamName(s.desc.ID, "stream") || name == streamName(s.desc.ID, "canary") || path.Dir(name) == streamName(s.desc.ID, "timelines") {
		return false // refreshTimelines looks at the names of timelines
	}
	for id := range s.timelines {
		if p, ok := placeOf(name); ok && name == p.name(s.desc.ID, id) || name == keptName(s.desc.ID, id) {
			return false
		}
	}
	return true
}

// canary checks the canary, and that what it says to be in the vault is there:
// nothing else tells that the last segments are missing.
func (c *verifier) canary(ctx context.Context, s *Stream) error {
	name := streamName(s.desc.ID, "canary")
	k, err := s.Canary(ctx)
	if missing(err) {
		return nil
	}
	if err == nil {
		t := s.timelines[k.Timeline]
		switch {
		case t == nil || t.broken != nil: // said already
		case k.Seq > t.tail.Seq:
			// It may have come since the timeline was read.
			entries, listErr := s.listSegments(ctx, t)
			if listErr != nil {
				return listErr
			}
			if slices.ContainsFunc(entries, func(e objstore.Entry) bool { p, _ := placeOf(e.Name); return p.to >= k.Seq }) {
				return nil
			}
			name = segmentName(s.desc.ID, k.Timeline, t.tail.Seq+1)
			err = damaged(name, fmt.Errorf("%w: it is missing: the canary says that segment %d was here at %s", ErrCorrupt, k.Seq, k.Time.UTC()))
		}
	}
	return c.found(Damage{Object: name, Stream: s.desc.ID, Timeline: k.Timeline}, err)
}

// timeline reads every segment of a timeline, also behind a damaged one.
func (c *verifier) timeline(ctx context.Context, s *Stream, t *timeline) error {
	entries, err := s.listSegments(ctx, t)
	if err != nil {
		return err
	}
	chain := verifyChain{c: c, t: t, at: t.tail, known: true, first: -1}
	for len(entries) > 0 {
		seq := chain.at.Seq + 1
		e, p, ok := next(entries, seq)
		var l *loaded
		var marks []placedMark
		err := fmt.Errorf("%w, but later ones are there", errMissing)
		if ok {
			l, marks, err = c.segment(ctx, s, e)
		}
		for tries := 0; errors.Is(err, errMissing) && tries < 5; tries++ {
			// It came, or was put together with others, while the listing ran.
			was, known := e.Name, chain.known
			if e, p, entries, err = s.covering(ctx, t, seq); err != nil {
				return err
			}
			if e.Name == "" || e.Name == was {
				err = errMissing
				break
			}
			chain.known = known && p.from == seq // what it follows was read under another name
			l, marks, err = c.segment(ctx, s, e)
		}
		if e.Name == "" {
			if err := chain.found(s, segmentName(s.desc.ID, t.desc.ID, seq), damaged(segmentName(s.desc.ID, t.desc.ID, seq), err)); err != nil {
				return err
			}
			if len(entries) > 0 {
				first, _ := placeOf(entries[0].Name)
				chain.at.Seq = first.from - 1
			}
			chain.known = false
			continue
		}
		if err == nil {
			err = chain.follow(l)
		}
		if err != nil {
			if err := chain.found(s, e.Name, err); err != nil {
				return err
			}
		}
		chain.at.Seq = p.to - 1
		chain.add(l, marks)
		if l != nil {
			if err := s.keptSince(ctx, t, l); err != nil {
				return err
			}
		}
		// What it stands for waits to be removed.
		entries = behind(entries, p.to)
	}
	if err := t.keptErr; err != nil {
		if err := c.found(Damage{Stream: s.desc.ID, Timeline: t.desc.ID}, err); err != nil {
			return err
		}
	}
	if chain.first >= 0 {
		c.rep.Damaged[chain.first].Points = chain.points
	}
	return nil
}

// verifyChain follows the segments of a timeline, beyond damage, too.
type verifyChain struct {
	c      *verifier
	t      *timeline // up to the first damage
	at     Tail      // the segment before
	known  bool      // at has more than Seq
	first  int       // the first damage in the report, or -1
	points []Point   // behind it
}

// follow checks that a segment follows the one before, if that is known.
func (v *verifyChain) follow(l *loaded) error {
	if v.t.ended != nil {
		return damaged(l.name, fmt.Errorf("%w: it is behind the end of its timeline", ErrCorrupt))
	}
	if !v.known {
		return nil
	}
	before := timeline{desc: v.t.desc, tail: v.at}
	if err := before.follows(l); err != nil {
		return damaged(l.name, err)
	}
	return nil
}

// found notes damage of a segment.
func (v *verifyChain) found(s *Stream, name string, err error) error {
	if !isDamage(err) {
		return err
	}
	if v.first < 0 {
		v.first, v.t.broken = len(v.c.rep.Damaged), err
	}
	return v.c.found(Damage{Object: name, Stream: s.desc.ID, Timeline: v.t.desc.ID, First: v.t.tail.Position + 1}, err)
}

// add goes on to the next; l is nil if it cannot be read.
func (v *verifyChain) add(l *loaded, marks []placedMark) {
	v.at.Seq++
	if v.known = l != nil; !v.known {
		return
	}
	if v.first < 0 {
		v.t.append(l, marks)
		v.at = v.t.tail
		return
	}
	v.at = Tail{Seq: v.at.Seq, Position: l.Header.Last, Time: l.Header.LastTime, Hash: l.hash}
	for _, m := range marks {
		if m.Kind == MarkPoint {
			v.points = append(v.points, m.point())
		}
	}
}

// segment reads a segment as a whole and checks all of it. What could be read is
// returned also with an error.
func (c *verifier) segment(ctx context.Context, s *Stream, e objstore.Entry) (*loaded, []placedMark, error) {
	b, _, err := c.v.store.Get(ctx, e.Name)
	if err != nil {
		return nil, nil, gone(e.Name, err)
	}
	c.rep.Segments++
	c.rep.Bytes += int64(len(b))
	c.progress(e.Size)
	if err := c.pace(ctx); err != nil {
		return nil, nil, err
	}
	r, err := segment.Verify(b, s.key, c.v.codec)
	if err != nil {
		return nil, nil, damaged(e.Name, err)
	}
	l, err := newLoaded(r, e.Name, int64(len(b)))
	if err != nil {
		return nil, nil, damaged(e.Name, err)
	}
	if want := l.place().name(s.desc.ID, r.Header.Timeline); want != e.Name {
		return nil, nil, damaged(e.Name, fmt.Errorf("%w: it is segment %s", ErrCorrupt, want))
	}
	marks, err := l.marks()
	if err = errors.Join(err, s.checkEntries(l, s.disksOf(l.Header.Timeline))); err != nil {
		return nil, nil, damaged(e.Name, err)
	}
	return l, marks, nil
}
