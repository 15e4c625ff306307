package orchestrator

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

const (
	// keptPoint begins the name of the point at the end of what was kept.
	keptPoint = "kept: "
	// keepSegment is about how much data goes into one segment, and keepChunk how much is read of a disk at a time, in bytes.
	keepSegment = 16 << 20
	keepChunk   = 1 << 20
)

// keeping is what shall be kept of a machine that is off, before its disks are
// overwritten or removed: what they have and the vault has not becomes a timeline
// of the item's stream. It can be repeated after an interruption.
type keeping struct {
	step *job.Step
	item holdfast.Item
	at   string                  // the machine's site
	base holdfast.StreamPosition // what its disks began as, or are nearest to
	onto holdfast.TimelineID     // an empty timeline that forks there; 0: one is made
	// reason names the timeline that is made, and finds it again.
	reason string
}

// keepWrites keeps a machine's writes as a timeline of its own. It returns the position that
// the machine's disks are equal to, and how many bytes differed from the base.
func (c *Orchestrator) keepWrites(ctx context.Context, k keeping) (equal holdfast.StreamPosition, kept int64, err error) {
	s, err := c.stream(ctx, k.item.Stream)
	if err != nil {
		return equal, 0, vaultError("open stream", k.item.Name, err)
	}
	if err := refresh(ctx, s); err != nil {
		return equal, 0, vaultError("read stream", k.item.Name, err)
	}
	machine := k.item.CopyAt(k.at)
	b := &keeper{keeping: k, s: s, now: c.now, tl: k.onto, name: keptPoint + machine.Name}
	if end, done := b.begun(); done {
		return end, 0, b.end(ctx)
	}
	view, err := s.View(ctx, b.base.Timeline, b.base.Position)
	if err != nil {
		return equal, 0, vaultError("open recovery point", b.base.Position.String(), err)
	}
	err = c.withSite(ctx, k.at, func(site holdfast.Site, p *provider.Site) error {
		if view, err = b.sized(ctx, p, machine, view); err != nil {
			return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "look at the disks of machine " + machine.Name + " at site", Thing: site.Name, Err: err}
		}
		for _, d := range view.Disks() {
			if err := b.disk(ctx, p.Replica, machine.MachineID, d.ID, view); err != nil {
				return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "keep what is on disk " + d.ID + " of machine " + machine.Name + " at site", Thing: site.Name, Err: err}
			}
		}
		return b.close(ctx)
	})
	if err != nil {
		return equal, b.kept, err
	}
	if b.kept > 0 {
		k.step.Log(fmt.Sprintf("%d bytes that machine %s had written were kept as a timeline of its own: timeline %s", b.kept, machine.Name, b.tl))
	}
	return b.base, b.kept, nil
}

// keeper writes what is kept.
type keeper struct {
	keeping
	s    *vault.Stream
	now  func() time.Time
	tl   holdfast.TimelineID
	name string // of the point at its end
	w    *vault.Writer
	kept int64
	// disks are the machine's if they have other sizes than those of the base.
	disks []vault.Disk
}

// sized returns the base with the disks that the machine has. If they are others,
// they begin a timeline.
func (b *keeper) sized(ctx context.Context, p *provider.Site, machine holdfast.Copy, view *vault.View) (*vault.View, error) {
	m, err := p.Inventory.Machine(ctx, machine.MachineID)
	if err != nil {
		return nil, err
	}
	var disks []vault.Disk
	for _, d := range m.Disks {
		disk, err := p.Replica.OpenDisk(ctx, machine.MachineID, d.ID)
		if err != nil {
			return nil, err
		}
		disks = append(disks, vault.Disk{ID: d.ID, Size: disk.Size()})
		if err := disk.Close(); err != nil {
			return nil, err
		}
	}
	if len(disks) == 0 || holdfast.SameDisks(domainDisks(disks), domainDisks(view.Disks())) {
		return view, nil
	}
	if b.onto != 0 { // that one has the other sizes
		b.onto, b.tl, b.reason = 0, 0, "keep "+b.step.JobID()+" "+machine.Name
		if _, done := b.begun(); done || b.tl != 0 && b.base.Timeline == b.tl {
			return b.s.View(ctx, b.base.Timeline, b.base.Position)
		}
	}
	b.disks = disks
	if err := b.open(ctx); err != nil {
		return nil, err
	}
	return b.s.Base(ctx, b.tl, b.base.Position)
}

// begun looks for what an interrupted attempt has written. done says that it was
// all; otherwise the base is where it stopped.
func (b *keeper) begun() (end holdfast.StreamPosition, done bool) {
	for _, tl := range b.s.Timelines() {
		if tl.ID != b.tl && (b.tl != 0 || tl.Reason != b.reason) {
			continue
		}
		b.tl = tl.ID
		if tl.Tail.Position <= tl.ForkAt {
			return end, false
		}
		b.base = holdfast.StreamPosition{Timeline: tl.ID, Position: tl.Tail.Position}
		ps := b.s.Points(tl.ID)
		last := len(ps) - 1
		return b.base, last >= 0 && ps[last].Position == tl.Tail.Position && ps[last].Name == b.name
	}
	return end, false
}

// disk adds where a disk differs from the view.
func (b *keeper) disk(ctx context.Context, replica provider.Replica, machine, id string, view *vault.View) (err error) {
	disk, err := replica.OpenDisk(ctx, machine, id)
	if err != nil {
		return err
	}
	defer func() { _ = disk.Close() }()
	set, err := view.Differs(ctx, id, disk, func(done, total int64) { b.step.Progress(done, total, "bytes") })
	if err != nil || set.Bytes() == 0 {
		return err
	}
	if err := b.open(ctx); err != nil {
		return err
	}
	b.kept += set.Bytes()
	for e := range set.Extents() {
		for off := e.Offset; off < e.End(); off += keepChunk {
			if err := b.copy(ctx, disk, id, block.Extent{Offset: off, Length: min(keepChunk, e.End()-off)}); err != nil {
				return err
			}
		}
	}
	return nil
}

// open makes the timeline if there is none, and says in it that what follows is
// not consistent before its end.
func (b *keeper) open(ctx context.Context) (err error) {
	if b.w != nil {
		return nil
	}
	generation := b.generation()
	if b.tl == 0 {
		b.tl, err = b.s.Fork(ctx, vault.ForkOptions{From: b.base.Timeline, At: b.base.Position, Generation: generation, Reason: b.reason, Now: b.now(), Disks: b.disks})
		if err != nil {
			return vaultError("fork stream", b.item.Name, err)
		}
	}
	if b.w, err = b.s.Writer(ctx, vault.WriterOptions{Timeline: b.tl, Generation: generation}); err != nil {
		return vaultError("write to stream", b.item.Name, err)
	}
	_, err = b.w.Mark(vault.Mark{Kind: vault.MarkInconsistent}, b.now())
	return err
}

func (b *keeper) copy(ctx context.Context, disk block.Image, id string, e block.Extent) error {
	p := make([]byte, e.Length)
	if err := disk.ReadAt(ctx, p, e.Offset); err != nil {
		return err
	}
	if _, err := b.w.Write(id, e.Offset, p, b.now()); err != nil {
		return err
	}
	if n, _ := b.w.Pending(); n < keepSegment {
		return nil
	}
	return b.store(ctx)
}

// store brings to the vault what was added.
func (b *keeper) store(ctx context.Context) error {
	for more := true; more; {
		sealed, err := b.w.Seal(b.now())
		if err != nil || sealed == nil {
			return err
		}
		if err := b.w.Commit(ctx, sealed); err != nil {
			return vaultError("write to stream", b.item.Name, err)
		}
		more = sealed.More
	}
	return nil
}

// close ends what was kept with a point.
func (b *keeper) close(ctx context.Context) error {
	if b.w == nil && b.base.Timeline == b.tl {
		// All of its data was there, but not its end.
		if err := b.open(ctx); err != nil {
			return err
		}
	}
	if b.w == nil {
		return nil
	}
	_, err := b.w.Mark(vault.Mark{Kind: vault.MarkConsistent}, b.now())
	if err == nil {
		_, err = b.w.Mark(vault.Mark{Kind: vault.MarkPoint, Name: b.name, Consistency: vault.CrashConsistent}, b.now())
	}
	if err == nil {
		err = b.store(ctx)
	}
	if err != nil {
		return err
	}
	b.base = holdfast.StreamPosition{Timeline: b.tl, Position: b.w.Tail().Position}
	return b.end(ctx)
}

// end closes the timeline if it was made for this; another is closed by whoever
// made it.
func (b *keeper) end(ctx context.Context) error {
	if b.onto == 0 {
		_, err := b.s.End(ctx, b.tl, vault.EndOptions{Generation: b.generation() + 1, Reason: b.reason, Now: b.now()})
		return vaultError("close timeline", b.item.Name, err)
	}
	return vaultError("read stream", b.item.Name, refresh(ctx, b.s))
}

// generation is that of the writers of now: who keeps fences nobody off.
func (b *keeper) generation() holdfast.Generation {
	newest := b.item.Generation
	for _, tl := range b.s.Timelines() {
		newest = max(newest, tl.Generation)
	}
	return newest
}

// keepLeftBehind keeps what the machine at a site, which is not the one that
// works, wrote after the item had left it, unless that is in the vault.
func (c *Orchestrator) keepLeftBehind(ctx context.Context, step *job.Step, it holdfast.Item, at string) error {
	left := it.CopyAt(at)
	if left.MachineID == "" || left.Equal != nil {
		return job.Skip("the vault has all that is on the disks of the machine there")
	}
	ready := false
	err := c.withSite(ctx, at, func(site holdfast.Site, s *provider.Site) (err error) {
		if _, ready, err = c.leftMachine(ctx, it, at, s); err != nil || !ready {
			return err
		}
		if err := c.switchOff(ctx, s, it, at); err != nil {
			return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "switch off machine " + left.Name + " at site", Thing: site.Name, Err: err}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if !ready {
		return job.Skip("there is no machine whose disks could be looked at")
	}
	base, err := c.leftAt(ctx, it)
	if err != nil {
		return err
	}
	equal, _, err := c.keepWrites(ctx, keeping{step: step, item: it, at: at, base: base, reason: "keep " + step.JobID() + " " + left.Name})
	if err != nil {
		return err
	}
	return c.setEqual(ctx, it.ID, at, &equal)
}

// leftAt returns the end of the timeline that the item's last failover left.
func (c *Orchestrator) leftAt(ctx context.Context, it holdfast.Item) (holdfast.StreamPosition, error) {
	s, err := c.stream(ctx, it.Stream)
	if err != nil {
		return holdfast.StreamPosition{}, vaultError("open stream", it.Name, err)
	}
	if err := refresh(ctx, s); err != nil {
		return holdfast.StreamPosition{}, vaultError("read stream", it.Name, err)
	}
	old := past(it).Timeline
	for _, tl := range s.Timelines() {
		if tl.ID == old {
			return holdfast.StreamPosition{Timeline: old, Position: tl.Tail.Position}, nil
		}
	}
	return holdfast.StreamPosition{}, vaultError("read stream", it.Name, fmt.Errorf("timeline %s: %w", old, vault.ErrNoPosition))
}

// keepAbandoned keeps what the recovered machine wrote since its failover, in
// the timeline that was made for it. The machine is switched off.
func (c *Orchestrator) keepAbandoned(ctx context.Context, step *job.Step, it holdfast.Item, at string) error {
	up := it.CopyAt(at)
	if up.MachineID == "" || it.RecoveryPoint == nil || it.Timeline == it.RecoveryPoint.Timeline {
		return job.Skip("there is no recovered machine")
	}
	if up.Handle != "" {
		if err := c.stopHydration(ctx, up.Handle); err != nil {
			return err
		}
		if err := c.serveView(ctx, it, up.Handle, *it.RecoveryPoint); err != nil {
			return err
		}
	}
	err := c.withSite(ctx, at, func(site holdfast.Site, s *provider.Site) error {
		if s.Replica == nil {
			return &holdfast.Error{Kind: holdfast.KindInvalid, Op: "keep the writes of machine", Thing: up.Name,
				Cause: "the provider of site " + site.Name + " cannot read disks of machines that are off", Hint: "Ask again without keeping them"}
		}
		return c.killIfRunning(ctx, s, up)
	})
	if err != nil {
		return err
	}
	_, _, err = c.keepWrites(ctx, keeping{step: step, item: it, at: at, onto: it.Timeline,
		base: holdfast.StreamPosition{Timeline: it.RecoveryPoint.Timeline, Position: it.RecoveryPoint.Position}})
	return err
}

// ListTimelines returns the timelines of an item's stream: what came to pass, and
// what was given up, the newest first.
func (c *Orchestrator) ListTimelines(ctx context.Context, idOrName string) (api.Timelines, error) {
	it, err := c.opts.Store.Item(ctx, idOrName)
	if err != nil {
		return api.Timelines{}, err
	}
	s, err := c.stream(ctx, it.Stream)
	if err != nil {
		return api.Timelines{}, vaultError("open stream", it.Name, err)
	}
	if err := refresh(ctx, s); err != nil {
		return api.Timelines{}, vaultError("read stream", it.Name, err)
	}
	all := s.Timelines()
	line := lineOf(all, it.Timeline)
	out := api.Timelines{Item: it.Name, Timelines: []api.Timeline{}}
	for _, tl := range all {
		b := api.Timeline{Timeline: uint32(tl.ID), Parent: uint32(tl.Parent), Origin: tl.Reason, Current: tl.ID == it.Timeline,
			Ended: tl.Ended, Until: tl.Tail.Time, Damaged: tl.Damaged != nil}
		if tl.Parent != 0 {
			b.ForkAt = tl.ForkAt.String()
		}
		upTo, past := line[tl.ID]
		b.Abandoned = !past || upTo < tl.Tail.Position
		if ps := s.Points(tl.ID); len(ps) > 0 && ps[len(ps)-1].Position > tl.ForkAt {
			last := ps[len(ps)-1]
			p := apiPoint(holdfast.RecoveryPoint{ID: last.ID, Name: last.Name, Timeline: tl.ID, Position: last.Position, Time: last.Time, Consistency: holdfast.Consistency(last.Consistency)})
			b.Newest = &p
		}
		out.Timelines = append(out.Timelines, b)
	}
	slices.SortFunc(out.Timelines, func(a, b api.Timeline) int { return cmp.Compare(b.Timeline, a.Timeline) })
	return out, nil
}

// lineOf returns how far each timeline belongs to the past of another.
func lineOf(all []vault.Timeline, of holdfast.TimelineID) map[holdfast.TimelineID]holdfast.Position {
	line := map[holdfast.TimelineID]holdfast.Position{}
	for id, to := of, holdfast.Position(1<<64-1); id != 0; {
		line[id] = to
		i := slices.IndexFunc(all, func(t vault.Timeline) bool { return t.ID == id })
		if i < 0 {
			break
		}
		id, to = all[i].Parent, min(to, all[i].ForkAt)
	}
	return line
}
