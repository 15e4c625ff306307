package orchestrator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// failoverPrepare makes the machine ready to be started: one that is there
// already is brought to the recovery point, another is made over a view.
func (c *Orchestrator) failoverPrepare(ctx context.Context, r *failoverRun) error {
	if err := c.confirm(ctx); err != nil {
		return err
	}
	if !r.st.Reuse {
		return c.failoverDefine(ctx, r)
	}
	at := holdfast.StreamPosition{Timeline: r.st.Point.Timeline, Position: r.st.Point.Position}
	n, err := c.bring(ctx, r.Step, r.item, r.in.To, at)
	if err != nil {
		return err
	}
	r.st.Moved += n
	r.st.MachineID = r.item.CopyAt(r.in.To).MachineID
	return nil
}

// failoverDefine serves the view and has the provider prepare the machine.
func (c *Orchestrator) failoverDefine(ctx context.Context, r *failoverRun) error {
	if err := c.serveView(ctx, r.item, r.in.Handle, r.st.Point); err != nil {
		return err
	}
	rec, err := c.recovered(ctx, r.item, r.in.Handle, r.in.TargetName, r.st.Point)
	if err != nil {
		return err
	}
	given, err := addressingOf(r.item, r.in.Addressing)
	if err != nil {
		return err
	}
	rec.Networks, rec.Seed = r.in.Networks, seed(given, r.in.Handle, r.in.TargetName)
	return c.withSite(ctx, r.in.To, func(site holdfast.Site, s *provider.Site) error {
		id, err := s.Target.Define(ctx, rec)
		if errors.Is(err, provider.ErrNameTaken) {
			return nameTaken(site, rec.Name, err)
		}
		if err != nil {
			return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "prepare machine at site", Thing: site.Name, Err: err}
		}
		r.st.MachineID = id
		return nil
	})
}

// recovered says what machine a target shall make: the item's, with the disks
// that it had then.
func (c *Orchestrator) recovered(ctx context.Context, it holdfast.Item, handle, name string, p holdfast.RecoveryPoint) (provider.Recovered, error) {
	rec := provider.Recovered{Handle: handle, Name: name}
	it, err := c.itemAt(ctx, it, p)
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal(it.Machine, &rec.Machine); err != nil {
		return rec, fmt.Errorf("decode description of machine %s: %w", it.MachineName, err)
	}
	for _, d := range it.Disks {
		rec.Disks = append(rec.Disks, provider.DiskSource{
			DiskID: d.ID, Size: d.Size, Socket: c.opts.Views.Socket(), Export: exportName(handle, d.ID),
		})
	}
	return rec, nil
}

// failoverStart starts the machine. From here on it is the live copy.
func (c *Orchestrator) failoverStart(ctx context.Context, r *failoverRun) error {
	if err := c.confirm(ctx); err != nil {
		return err
	}
	if !r.st.Reuse {
		if err := c.serveView(ctx, r.item, r.in.Handle, r.st.Point); err != nil {
			return err
		}
	}
	err := c.withSite(ctx, r.in.To, func(site holdfast.Site, s *provider.Site) error {
		if err := c.startMachine(ctx, r, s); err != nil {
			return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "start machine at site", Thing: site.Name, Err: err}
		}
		return nil
	})
	if err == nil && r.st.StartedAt.IsZero() {
		r.st.StartedAt = c.now()
	}
	return err
}

func (c *Orchestrator) startMachine(ctx context.Context, r *failoverRun, s *provider.Site) error {
	if !r.st.Reuse {
		return s.Target.Start(ctx, r.in.Handle)
	}
	unlock, err := c.lockPower(ctx, r.item.ID)
	if err != nil {
		return err
	}
	defer unlock()
	// What its disks are equal to is not known any more from here on.
	if err := c.forgetEqual(ctx, r.item.ID, r.in.To); err != nil {
		return err
	}
	if err := s.Power.Unguard(ctx, r.st.MachineID); err != nil {
		return err
	}
	return s.Power.Start(ctx, r.st.MachineID)
}

// confirm fails if another server may work with the vault.
func (c *Orchestrator) confirm(ctx context.Context) error {
	if c.opts.Confirm == nil {
		return nil
	}
	if err := c.opts.Confirm(ctx); err != nil {
		return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "confirm that this is the only server of the vault", Err: err,
			Hint: "Check that the vault can be written, and that no other server works with it"}
	}
	return nil
}

// forgetEqual notes that the disks of the machine at a site are not known to be
// equal to anything.
func (c *Orchestrator) forgetEqual(ctx context.Context, item, site string) error {
	return c.setEqual(ctx, item, site, nil)
}

func (c *Orchestrator) setEqual(ctx context.Context, item, site string, at *holdfast.StreamPosition) error {
	_, err := c.updateItem(ctx, item, func(i holdfast.Item) (holdfast.Item, error) {
		left := i.CopyAt(site)
		left.Equal = at
		return i.WithCopy(site, left), nil
	})
	return err
}

// bring makes the disks of the machine at a site, which is off, equal to a
// position of the item's stream, and returns how many bytes it wrote. Only what
// differs is read from the vault.
func (c *Orchestrator) bring(ctx context.Context, step *job.Step, it holdfast.Item, at string, pos holdfast.StreamPosition) (moved int64, err error) {
	left := it.CopyAt(at)
	if left.Equal != nil && *left.Equal == pos {
		return 0, nil
	}
	s, view, err := c.openView(ctx, it, pos)
	if err != nil {
		return 0, err
	}
	var base *vault.View
	if left.Equal != nil {
		if base, err = s.View(ctx, left.Equal.Timeline, left.Equal.Position); err != nil {
			step.Log("what the disks were equal to is not in the vault any more; they are compared: " + err.Error())
			base = nil
		}
	}
	err = c.withSite(ctx, at, func(site holdfast.Site, p *provider.Site) error {
		if err := c.switchOff(ctx, p, it, at); err != nil {
			return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "switch off machine " + left.Name + " at site", Thing: site.Name, Err: err}
		}
		if err := c.forgetEqual(ctx, it.ID, at); err != nil {
			return err
		}
		b := bringing{step: step, replica: p.Replica, machine: left.MachineID, base: base, view: view}
		for _, d := range view.Disks() {
			n, err := b.disk(ctx, d)
			if err != nil {
				return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "bring disk " + d.ID + " of machine " + left.Name + " up to date at site", Thing: site.Name, Err: err}
			}
			moved += n
		}
		return nil
	})
	if err != nil {
		return moved, err
	}
	return moved, c.setEqual(ctx, it.ID, at, &pos)
}

// bringing is how the disks of a machine that is off are made equal to a view.
type bringing struct {
	step    *job.Step
	replica provider.Replica
	machine string
	base    *vault.View // what the disks are equal to now; nil: they are compared
	view    *vault.View
}

// open opens a disk of the machine, with the size that the view's has.
func (b bringing) open(ctx context.Context, d vault.Disk) (provider.ReplicaDisk, error) {
	disk, err := b.replica.OpenDisk(ctx, b.machine, d.ID)
	if err != nil || disk.Size() == d.Size {
		return disk, err
	}
	b.step.Log(fmt.Sprintf("disk %s: its size is changed from %d to %d bytes", d.ID, disk.Size(), d.Size))
	if err := disk.Close(); err != nil {
		return nil, err
	}
	if err := b.replica.ResizeDisk(ctx, b.machine, d.ID, d.Size); err != nil {
		return nil, err
	}
	return b.replica.OpenDisk(ctx, b.machine, d.ID)
}

// disk makes one disk equal to the view and returns how many bytes it wrote.
func (b bringing) disk(ctx context.Context, d vault.Disk) (int64, error) {
	id := d.ID
	disk, err := b.open(ctx, d)
	if err != nil {
		return 0, err
	}
	defer func() { _ = disk.Close() }()
	set, err := b.differing(ctx, disk, id)
	if err != nil {
		return 0, err
	}
	image, err := b.view.Disk(id)
	if err != nil {
		return 0, err
	}
	b.step.Log(fmt.Sprintf("disk %s: %d bytes differ", id, set.Bytes()))
	_, err = block.Copy(ctx, disk, image, block.CopyOptions{Extents: set, Progress: func(p block.Progress) { b.step.Progress(p.Done, p.Total, "bytes") }})
	if err != nil {
		return 0, err
	}
	return set.Bytes(), disk.Flush(ctx)
}

// differing returns where the disk differs from the view.
func (b bringing) differing(ctx context.Context, disk block.Image, id string) (*block.Set, error) {
	if was, err := diskOf(b.base, id); err == nil && was.Size() == disk.Size() {
		return b.base.Diff(ctx, b.view, id)
	}
	return b.view.Differs(ctx, id, disk, func(done, total int64) { b.step.Progress(done, total, "bytes") })
}

// diskOf returns a disk of a view that may be nil.
func diskOf(v *vault.View, id string) (block.Image, error) {
	if v == nil {
		return nil, vault.ErrNoPosition
	}
	return v.Disk(id)
}

// compare returns how many bytes of the disk differ from the view.
func (b bringing) compare(ctx context.Context, id string) (int64, error) {
	disk, err := b.replica.OpenDisk(ctx, b.machine, id)
	if err != nil {
		return 0, err
	}
	defer func() { _ = disk.Close() }()
	set, err := b.differing(ctx, disk, id)
	if err != nil {
		return 0, err
	}
	return set.Bytes(), nil
}

// compare returns how many bytes of a machine's disks differ from a position.
// The machine must be off.
func (c *Orchestrator) compare(ctx context.Context, r *failoverRun, s *provider.Site, m holdfast.Copy, at holdfast.StreamPosition) (int64, error) {
	_, view, err := c.openView(ctx, r.item, at)
	if err != nil {
		return 0, err
	}
	b := bringing{step: r.Step, replica: s.Replica, machine: m.MachineID, view: view}
	var all int64
	for _, d := range view.Disks() {
		n, err := b.compare(ctx, d.ID)
		if err != nil {
			return all, &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "compare disk " + d.ID + " of machine", Thing: m.Name, Err: err}
		}
		all += n
	}
	return all, nil
}

// failoverFinish records what came of it.
func (c *Orchestrator) failoverFinish(ctx context.Context, step *job.Step) error {
	var in failoverInput
	if err := decodeInput(step, &in); err != nil {
		return err
	}
	var st failoverState
	if err := step.JobState(&st); err != nil {
		return err
	}
	ending := step.Ending().State
	if ending != job.Succeeded {
		c.takeBack(ctx, step, in, st)
	}
	it, err := c.updateItem(ctx, in.Item, func(i holdfast.Item) (holdfast.Item, error) {
		i.CurrentJob = ""
		if i.State != holdfast.StateFailingOver && i.State != holdfast.StateChangingPoint {
			return i, nil // the task is repeated
		}
		switch {
		case ending == job.Succeeded:
			return moved(i, in, st).After(holdfast.OutcomeSucceeded)
		case st.Generation == 0 && i.State == holdfast.StateFailingOver: // nothing was done to the stream: replication goes on
			return i.After(holdfast.OutcomeCancelled)
		case !st.Begun && i.State == holdfast.StateChangingPoint && in.Before == holdfast.StateCommitPending: // the machine runs on
			return i.After(holdfast.OutcomeCancelled)
		default:
			return i.After(holdfast.OutcomeFailed)
		}
	})
	if err != nil {
		return err
	}
	if ending != job.Succeeded {
		return nil
	}
	// The server may have been away since the machine was started from it.
	if !st.Reuse {
		if err := c.serveView(ctx, it, in.Handle, st.Point); err != nil {
			c.log.Error("view is not served", "item", it.Name, "error", err)
		}
	}
	return step.SetResult(ctx, c.failoverResult(ctx, it, in, st))
}

// moved returns the item with its machine at the other side.
func moved(i holdfast.Item, in failoverInput, st failoverState) holdfast.Item {
	up := i.CopyAt(in.To)
	if !st.Reuse {
		up = holdfast.Copy{MachineID: st.MachineID, Name: in.TargetName, Handle: in.Handle}
	}
	up.Equal = nil
	i = i.WithCopy(in.To, up)
	if in.Operation != holdfast.OpChangePoint {
		left := i.CopyAt(in.From)
		if left.Equal = nil; st.Proved {
			left.Equal = &holdfast.StreamPosition{Timeline: st.Point.Timeline, Position: st.Point.Position}
		}
		i = i.WithCopy(in.From, left)
	}
	i.RecoveryPoint, i.Timeline, i.Generation = &st.Point, st.Timeline, st.Generation
	i.PausedUntil = time.Time{}
	if len(in.Addressing.NICs) > 0 || st.Restored {
		i.Addressing = in.Addressing
	}
	if st.Disks == nil { // a job of an earlier version
		return i
	}
	return i.WithDisks(st.Disks)
}

// takeBack undoes, as far as it can, what an attempt that did not succeed has
// left behind: a machine that may run beside another, and a source that is off.
func (c *Orchestrator) takeBack(ctx context.Context, step *job.Step, in failoverInput, st failoverState) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownWait)
	defer cancel()
	it, err := c.opts.Store.Item(ctx, in.Item)
	if err != nil {
		return
	}
	if st.MachineID != "" && !st.Reuse {
		err := c.withSite(ctx, in.To, func(_ holdfast.Site, s *provider.Site) error { return s.Target.Remove(ctx, in.Handle) })
		if err = errors.Join(err, c.dropView(it, in.Handle)); err != nil {
			step.Warn("the machine that was being made could not be removed: " + err.Error())
		}
	}
	if st.Off && st.Generation == 0 {
		err := c.withSite(ctx, in.From, func(_ holdfast.Site, s *provider.Site) error {
			if s.Power == nil {
				return errors.New("the provider cannot start machines")
			}
			if err := c.confirm(ctx); err != nil {
				return err
			}
			unlock, err := c.lockPower(ctx, it.ID)
			if err != nil {
				return err
			}
			defer unlock()
			return s.Power.Start(ctx, it.CopyAt(in.From).MachineID)
		})
		if err != nil {
			step.Warn("the source was shut down and could not be started again: " + err.Error())
		}
	}
}

func (c *Orchestrator) failoverResult(ctx context.Context, it holdfast.Item, in failoverInput, st failoverState) jobResult {
	rto := max(0, st.StartedAt.Sub(in.RequestedAt)).Seconds()
	res := jobResult{Item: it.ID, RTO: &rto, Point: &st.Point, MachineID: st.MachineID, MachineName: it.CopyAt(in.To).Name, Proved: st.Proved}
	if st.Reuse {
		res.Moved = &st.Moved
	}
	// Everything written until AsOf is in the timeline. Its newest point is as
	// good as that; an older one is as old as it is. A source that was compared
	// and is equal has lost nothing.
	reached := st.Point.Time
	if st.Newest && st.AsOf.After(reached) {
		reached = st.AsOf
	}
	rpo := max(0, in.RequestedAt.Sub(reached)).Seconds()
	if st.Proved {
		rpo = 0
	}
	res.RPO = &rpo
	if site, err := c.opts.Store.Site(ctx, in.To); err == nil {
		res.Site = site.Name
	}
	return res
}
