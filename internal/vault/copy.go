package vault

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault/segment"
)

// ErrCopyInUse says that a server has worked with what was to be a copy.
var ErrCopyInUse = errors.New("a server has worked with it: it is a vault of its own now")

// copyParallel is how many streams are copied at a time.
const copyParallel = 4

// CopyReport is what a pass of a Copier did.
type CopyReport struct {
	Objects, Removed int
	Bytes            int64
	// Damaged are objects that were not copied, because they are damaged.
	Damaged []string
	// HasObjects and HasBytes are what the copy has now.
	HasObjects, HasBytes int64
}

// Copier makes and keeps a copy of a vault in another store. What was copied is a
// vault like the first: the same keys open it, and all of it is readable at any
// time, up to where the copy is. Not safe for concurrent use.
type Copier struct {
	v  *Vault
	to objstore.Store
	// known says that the copy is there, and must not be begun anew.
	known bool
	// have are the objects of the copy with their sizes; nil: not listed yet.
	have map[string]int64
}

// NewCopier returns what copies the vault to a store, which is empty or has a copy;
// known says that it has one.
func (v *Vault) NewCopier(to objstore.Store, known bool) *Copier {
	return &Copier{v: v, to: to, known: known}
}

// Pass brings the copy up to date: what is missing is copied, streams side by side,
// each in the order in which it was written; what has changed is replaced; segments
// for which another stands are removed last. Nothing else is ever removed from a
// copy: what vanishes from the vault stays there. It is durable when Pass returns.
// progress, which may be nil, is told bytes. It fails with ErrCopyInUse or ErrExists
// if the other store has a vault that is not a copy of this one, and with
// objstore.ErrGone if it had a copy and has none.
func (c *Copier) Pass(ctx context.Context, progress func(done, total int64)) (CopyReport, error) {
	p := &copyPass{Copier: c, progress: progress}
	if err := p.prepare(ctx); err != nil {
		c.have = nil
		return p.rep, fmt.Errorf("copy vault: %w", err)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(copyParallel)
	for dir, names := range p.streams {
		g.Go(func() error { return p.stream(gctx, dir, names) })
	}
	c.known = true
	err := g.Wait()
	if err != nil {
		c.have = nil // what was written last is not known
		return p.rep, fmt.Errorf("copy vault: %w", err)
	}
	p.rep.HasObjects = int64(len(c.have))
	for _, size := range c.have {
		p.rep.HasBytes += size
	}
	return p.rep, nil
}

// copyPass is one pass.
type copyPass struct {
	*Copier
	sources  map[string]int64
	streams  map[string][]string // the names of each, sorted
	extra    map[string][]string // what only the copy has, of each
	progress func(done, total int64)

	// mu guards what follows, and have.
	mu          sync.Mutex
	rep         CopyReport
	done, total int64
}

func (p *copyPass) prepare(ctx context.Context) error {
	if p.have == nil {
		entries, err := p.to.List(ctx, "", "")
		if err != nil {
			return err
		}
		p.have = map[string]int64{}
		for _, e := range entries {
			p.have[e.Name] = e.Size
		}
	}
	if err := p.sameVault(ctx); err != nil {
		return err
	}
	if a, ok := p.to.(objstore.Anchorer); ok {
		a.Anchor(descriptorName, p.v.isOurs)
	}
	entries, err := p.v.store.List(ctx, streamsPrefix, "")
	if err != nil {
		return err
	}
	p.sources, p.streams, p.extra = map[string]int64{}, map[string][]string{}, map[string][]string{}
	for _, e := range entries {
		dir, ok := streamOf(e.Name)
		if !ok {
			continue
		}
		p.sources[e.Name] = e.Size
		p.streams[dir] = append(p.streams[dir], e.Name)
		if _, there := p.have[e.Name]; !there {
			p.total += e.Size
		}
	}
	for name := range p.have {
		if dir, ok := streamOf(name); ok && !has(p.sources, name) {
			p.extra[dir] = append(p.extra[dir], name)
		}
	}
	return nil
}

// streamOf returns the stream that an object is of, as its name has it.
func streamOf(name string) (string, bool) {
	rest, ok := strings.CutPrefix(name, streamsPrefix)
	dir, _, inside := strings.Cut(rest, "/")
	return dir, ok && inside
}

func has(m map[string]int64, name string) bool {
	_, there := m[name]
	return there
}

// sameVault sees to it that the copy is one of this vault.
func (p *copyPass) sameVault(ctx context.Context) error {
	if _, used := p.have[leaseName]; used {
		return ErrCopyInUse
	}
	own, _, err := p.v.store.Get(ctx, descriptorName)
	if err != nil {
		return err
	}
	if !p.v.isOurs(own) {
		return objstore.ErrGone
	}
	whole := p.v.checkObject(descriptorName, own) == nil
	if !whole {
		p.rep.Damaged = append(p.rep.Damaged, descriptorName)
	}
	if _, there := p.have[descriptorName]; !there {
		if p.known {
			return fmt.Errorf("%w: the other store has no vault any more", objstore.ErrGone)
		}
		if !whole {
			return damaged(descriptorName, ErrCorrupt)
		}
		if len(p.have) > 0 {
			return errors.New("the other store is not empty, and has no vault")
		}
		return p.put(ctx, descriptorName, own, false)
	}
	b, _, err := p.to.Get(ctx, descriptorName)
	if err == nil && !p.v.isOurs(b) {
		err = fmt.Errorf("%w, and it is another one", ErrExists)
	}
	if err == nil && whole && !bytes.Equal(own, b) {
		err = p.put(ctx, descriptorName, own, true)
	}
	return err
}

// The stages in which the objects of a stream are copied: what others need comes
// first, timeline after timeline.
const (
	stageStream = iota
	stageKept
	stageTimeline
	stageSegment
	stageCanary
)

// stage returns the timeline that an object belongs to, as its name has it, and its
// stage. What belongs to none comes before or after all of them.
func stage(name string) (timeline string, at int) {
	base := path.Base(name)
	switch dir := path.Base(path.Dir(name)); {
	case base == "stream":
		return "", stageStream
	case dir == "timelines":
		return base, stageTimeline
	case dir == "kept":
		return base, stageKept
	case base == "canary" || base == deletedName:
		return "~", stageCanary
	default:
		return dir, stageSegment
	}
}

func byStage(a, b string) int {
	ta, sa := stage(a)
	tb, sb := stage(b)
	return cmp.Or(strings.Compare(ta, tb), sa-sb, strings.Compare(a, b))
}

func (p *copyPass) stream(ctx context.Context, dir string, names []string) error {
	err := p.streamOnce(ctx, dir, names, false)
	for tries := 1; errors.Is(err, errOvertaken) && tries <= relists; tries++ {
		if names, err = p.list(ctx, dir); err == nil {
			err = p.streamOnce(ctx, dir, names, tries == relists)
		}
	}
	return err
}

// relists is how often a stream is listed again in a pass, if it changes under it.
const relists = 5

// gap returns a segment that a listing lacks, or "".
func gap(names []string) string {
	places := map[string][]place{}
	for _, name := range names {
		if at, ok := placeOf(name); ok {
			places[path.Dir(name)] = append(places[path.Dir(name)], at)
		}
	}
	for dir, all := range places {
		slices.SortFunc(all, func(a, b place) int { return cmp.Compare(a.from, b.from) })
		reach := uint64(0)
		for _, at := range all {
			if at.from > reach+1 {
				return fmt.Sprintf("%s/%016x.seg", dir, reach+1)
			}
			reach = max(reach, at.to)
		}
	}
	return ""
}

// list lists a stream again.
func (p *copyPass) list(ctx context.Context, dir string) (names []string, err error) {
	entries, err := p.v.store.List(ctx, streamsPrefix+dir+"/", "")
	p.note(func() {
		for _, e := range entries {
			names = append(names, e.Name)
			p.sources[e.Name] = e.Size
		}
	})
	return names, err
}

// streamOnce copies a stream as it was listed. It fails with errOvertaken if a segment
// has gone since, because another stands for it: what comes behind must wait for that.
// The last time it takes what the listing lacks for lost.
func (p *copyPass) streamOnce(ctx context.Context, dir string, names []string, last bool) error {
	names, err := p.settled(ctx, names)
	// One that is being deleted stays in the copy.
	if err != nil || slices.Contains(names, streamsPrefix+dir+"/"+deletedName) {
		return err
	}
	if lost := gap(names); lost != "" {
		if !last {
			return errOvertaken
		}
		p.note(func() { p.rep.Damaged = append(p.rep.Damaged, lost) })
	}
	slices.SortFunc(names, byStage)
	stuck, some := map[string]bool{}, false // timelines behind whose damage nothing is copied
	for _, name := range names {
		tl, at := stage(name)
		size, there := p.had(name)
		changes := at != stageTimeline && at != stageSegment
		if there && !changes && size == p.size(name) {
			continue
		}
		if stuck[tl] || some && at == stageTimeline {
			stuck[tl] = true // it may need what is missing
			continue
		}
		b, _, err := p.v.store.Get(ctx, name)
		if missing(err) {
			return errOvertaken
		}
		if err != nil {
			return err
		}
		if err := p.v.checkObject(name, b); err != nil {
			p.note(func() { p.rep.Damaged = append(p.rep.Damaged, name) })
			stuck[tl], some = true, true
			continue
		}
		if there && changes {
			if old, _, err := p.to.Get(ctx, name); err == nil && bytes.Equal(old, b) {
				continue
			}
		}
		if err := p.put(ctx, name, b, changes || there); err != nil {
			return err
		}
	}
	return p.removeReplaced(ctx, names, p.extra[dir])
}

// settled lists a stream again if it has timelines that the copy has not: what a new
// one needs of others may have been written while they were listed.
func (p *copyPass) settled(ctx context.Context, names []string) ([]string, error) {
	fresh := func(name string) bool {
		_, at := stage(name)
		_, there := p.had(name)
		return at == stageTimeline && !there
	}
	if !slices.ContainsFunc(names, fresh) {
		return names, nil
	}
	dir := strings.Join(strings.SplitN(names[0], "/", 3)[:2], "/")
	entries, err := p.v.store.List(ctx, dir+"/", "")
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, n := range names {
		known[n] = true
	}
	var out []string
	late := map[string]bool{} // timelines that came in between wait for the next pass
	for _, e := range entries {
		if tl, at := stage(e.Name); at == stageTimeline && !known[e.Name] {
			late[tl] = true
		}
	}
	p.note(func() {
		for _, e := range entries {
			if tl, _ := stage(e.Name); !late[tl] {
				out = append(out, e.Name)
				p.sources[e.Name] = e.Size
			}
		}
	})
	return out, nil
}

// checkObject says whether an object is as it was written, as far as it tells by
// itself.
func (v *Vault) checkObject(name string, b []byte) error {
	if strings.HasSuffix(name, ".seg") {
		_, err := segment.CheckSum(b)
		return err
	}
	var any map[string]any
	return v.secret.open(name, b, &any)
}

// removeReplaced removes from the copy segments for which another one stands, there
// and in the vault.
func (p *copyPass) removeReplaced(ctx context.Context, names, extra []string) error {
	byDir := map[string][]place{}
	for _, name := range names {
		if _, there := p.had(name); there {
			if at, ok := placeOf(name); ok {
				byDir[path.Dir(name)] = append(byDir[path.Dir(name)], at)
			}
		}
	}
	for _, name := range extra {
		at, ok := placeOf(name)
		if !ok || !slices.ContainsFunc(byDir[path.Dir(name)], func(o place) bool {
			return o.from <= at.from && o.to >= at.to && o.epoch > at.epoch
		}) {
			continue
		}
		if err := p.to.Delete(ctx, name); err != nil {
			return err
		}
		p.note(func() {
			delete(p.have, name)
			p.rep.Removed++
		})
	}
	return nil
}

func (p *copyPass) note(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

func (p *copyPass) had(name string) (size int64, there bool) {
	p.note(func() { size, there = p.have[name] })
	return size, there
}

// size returns how long an object of the vault is.
func (p *copyPass) size(name string) (size int64) {
	p.note(func() { size = p.sources[name] })
	return size
}

// put writes an object of the copy.
func (p *copyPass) put(ctx context.Context, name string, b []byte, replace bool) error {
	var err error
	if replace {
		err = p.to.Put(ctx, name, b)
	} else if err = p.to.PutIfAbsent(ctx, name, b); errors.Is(err, objstore.ErrExists) {
		err = p.to.Put(ctx, name, b) // from a pass that was interrupted
	}
	if err != nil {
		return err
	}
	p.note(func() {
		p.have[name] = int64(len(b))
		p.rep.Objects++
		p.rep.Bytes += int64(len(b))
		if p.done += int64(len(b)); p.progress != nil {
			p.progress(p.done, max(p.total, p.done))
		}
	})
	return nil
}

// VerifyAndHeal is Verify, and puts what is damaged back from a copy of the vault
// where that is whole: what lies behind damage is found when that is healed, so it
// goes on until nothing more can be healed. The report has the damage that is left;
// healed are the objects that were put back, durable when it returns.
func (v *Vault) VerifyAndHeal(ctx context.Context, from objstore.Store, o VerifyOptions) (rep *Report, healed []string, err error) {
	rep, err = v.Verify(ctx, o)
	for err == nil && len(rep.Damaged) > 0 {
		var put []string
		put, err = v.Heal(ctx, from, rep.Damaged)
		put = slices.DeleteFunc(put, func(name string) bool { return slices.Contains(healed, name) }) // the store does not keep it
		if healed = append(healed, put...); len(put) == 0 {
			break
		}
		if err == nil {
			err = v.verifyAgain(ctx, rep, put, o)
		}
	}
	return rep, healed, err
}

// verifyAgain verifies the streams of which a report names damage, and puts right
// what the report says of them.
func (v *Vault) verifyAgain(ctx context.Context, rep *Report, healed []string, o VerifyOptions) error {
	var left []Damage
	again := map[holdfast.StreamID]bool{}
	for _, d := range rep.Damaged {
		if d.Stream == (holdfast.StreamID{}) && !slices.Contains(healed, d.Object) {
			left = append(left, d)
		}
		again[d.Stream] = true
	}
	delete(again, holdfast.StreamID{})
	for id := range again {
		o.Stream = &id
		r, err := v.Verify(ctx, o)
		if err != nil {
			return err
		}
		left = append(left, r.Damaged...)
	}
	rep.Damaged = left
	return nil
}

// PutDescriptor writes the vault's descriptor to a store that has what is left of the
// vault or of a copy of it, and lacks a whole one: a vault cannot be opened without.
// It fails with ErrExists if the store has that of another vault, and with
// ErrNotVault if it has nothing of this one.
func (v *Vault) PutDescriptor(ctx context.Context, to objstore.Store) error {
	b, _, err := to.Get(ctx, descriptorName)
	if err == nil && !v.isOurs(b) {
		return ErrExists
	}
	if err != nil && !missing(err) {
		return err
	}
	ids, err := v.Streams(ctx)
	if err != nil {
		return err
	}
	theirs := 0
	for _, id := range ids {
		name := streamName(id, "stream")
		if b, _, err := to.Get(ctx, name); err == nil && v.checkObject(name, b) == nil {
			theirs++
		}
	}
	if theirs == 0 {
		return ErrNotVault
	}
	own, err := v.secret.document(descriptorName, v.desc)
	if err != nil {
		return err
	}
	return to.Put(ctx, descriptorName, own)
}

// Heal puts objects that Verify has found damaged or missing back from a copy, if
// they are whole there. It returns those that it put back.
func (v *Vault) Heal(ctx context.Context, from objstore.Store, damaged []Damage) (healed []string, err error) {
	for _, d := range damaged {
		b, _, err := from.Get(ctx, d.Object)
		if missing(err) {
			continue
		}
		if err != nil {
			return healed, fmt.Errorf("heal object %s: %w", d.Object, err)
		}
		if err := v.checkObject(d.Object, b); err != nil {
			continue // it is damaged there, too, or of another vault
		}
		if old, _, err := v.store.Get(ctx, d.Object); err == nil && bytes.Equal(old, b) {
			continue // what is wrong with it is wrong in the copy as well
		}
		if err := v.store.Put(ctx, d.Object, b); err != nil {
			return healed, fmt.Errorf("heal object %s: %w", d.Object, err)
		}
		healed = append(healed, d.Object)
	}
	return healed, nil
}
