package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// past returns an item as one that could still choose among all that there was
// before its failover.
func past(it holdfast.Item) holdfast.Item {
	if it.RecoveryPoint != nil {
		it.Timeline = it.RecoveryPoint.Timeline
	}
	return it
}

// openView opens a position of an item's stream.
func (c *Orchestrator) openView(ctx context.Context, it holdfast.Item, at holdfast.StreamPosition) (*vault.Stream, *vault.View, error) {
	s, err := c.stream(ctx, it.Stream)
	if err != nil {
		return nil, nil, vaultError("open stream", it.Name, err)
	}
	if err := refresh(ctx, s); err != nil {
		return nil, nil, vaultError("read stream", it.Name, err)
	}
	view, err := s.View(ctx, at.Timeline, at.Position)
	return s, view, vaultError("open recovery point", at.Position.String(), err)
}

// history returns what an item can be recovered to.
func (c *Orchestrator) history(ctx context.Context, it holdfast.Item) (holdfast.History, error) {
	s, err := c.stream(ctx, it.Stream)
	if err != nil {
		return holdfast.History{}, vaultError("open stream", it.Name, err)
	}
	if err := refresh(ctx, s); err != nil {
		return holdfast.History{}, vaultError("read stream", it.Name, err)
	}
	return historyOf(s, it.Timeline), nil
}

// historyFor returns what a request chooses from: a branch if it names one.
func (c *Orchestrator) historyFor(ctx context.Context, it holdfast.Item, req holdfast.PointRequest) (holdfast.History, error) {
	if req.Timeline != 0 {
		it.Timeline = req.Timeline
	}
	h, err := c.history(ctx, it)
	if _, ok := h.Newest(); err == nil && !ok && req.Timeline != 0 {
		err = &holdfast.Error{Kind: holdfast.KindNotFound, Op: "choose recovery point of", Thing: it.Name, Cause: fmt.Sprintf("it has no timeline %d", req.Timeline),
			Hint: "List its timelines with holdfast timeline list " + it.Name}
	}
	return h, err
}

// refresh looks for what is new in a stream. Damage is no failure: what lies
// before it stays usable.
func refresh(ctx context.Context, s *vault.Stream) error {
	if err := s.Refresh(ctx); err != nil && !errors.Is(err, vault.ErrCorrupt) {
		return err
	}
	return nil
}

// historyOf translates what the vault knows into the domain's words.
func historyOf(s *vault.Stream, tl holdfast.TimelineID) holdfast.History {
	h := holdfast.History{Timeline: tl, Lookup: func(at time.Time) (holdfast.Position, bool) {
		pos, err := s.Resolve(tl, at)
		return pos, err == nil
	}}
	h.TimeOf = func(pos holdfast.Position) (time.Time, bool) { return s.TimeOf(tl, pos) }
	for _, p := range s.Points(tl) {
		h.Points = append(h.Points, holdfast.RecoveryPoint{
			ID: p.ID, Name: p.Name, Timeline: tl, Position: p.Position, Time: p.Time, Consistency: holdfast.Consistency(p.Consistency), Group: p.Group,
		})
	}
	for _, r := range s.Ranges(tl) {
		h.Ranges = append(h.Ranges, holdfast.PointRange{Timeline: tl, From: r.From, To: r.To, FromTime: r.FromTime, ToTime: r.ToTime, Confirmed: r.Confirmed})
	}
	return h
}

// serveView serves the disks of a recovery point to the target.
func (c *Orchestrator) serveView(ctx context.Context, it holdfast.Item, handle string, p holdfast.RecoveryPoint) error {
	disks, err := c.disksAt(ctx, it, p)
	if err != nil {
		return err
	}
	missing := slices.ContainsFunc(disks, func(d holdfast.Disk) bool { return !c.opts.Views.Has(exportName(handle, d.ID)) })
	if !missing {
		return nil
	}
	_, view, err := c.openView(ctx, it, holdfast.StreamPosition{Timeline: p.Timeline, Position: p.Position})
	if err != nil {
		return err
	}
	for _, d := range disks {
		image, err := view.Disk(d.ID)
		if err != nil {
			return vaultError("open disk "+d.ID+" of recovery point", p.Position.String(), err)
		}
		if err := c.opts.Views.Add(exportName(handle, d.ID), image); err != nil {
			return err
		}
	}
	return nil
}

// dropView ends the serving of a recovery's disks.
func (c *Orchestrator) dropView(it holdfast.Item, handle string) error {
	var errs []error
	for _, s := range append(slices.Clone(it.Former), holdfast.Shape{Disks: it.Disks}) {
		for _, d := range s.Disks {
			errs = append(errs, c.opts.Views.Remove(exportName(handle, d.ID)))
		}
	}
	return errors.Join(errs...)
}

// serveViews serves again what recovered machines read from, after a restart.
func (c *Orchestrator) serveViews(ctx context.Context) error {
	items, err := c.opts.Store.Items(ctx)
	if err != nil {
		return err
	}
	for _, it := range items {
		for _, t := range it.Tests {
			if t.MachineID == "" {
				continue // its job has not come to that
			}
			if err := c.serveView(ctx, it, t.Handle, t.Point); err != nil {
				c.log.Error("view of a test is not served", "item", it.Name, "test", t.Name, "error", err)
			}
		}
		handle := it.CopyAt(it.ActiveSite()).Handle
		if handle == "" || it.RecoveryPoint == nil {
			continue
		}
		if st, err := c.targetStatus(ctx, it); err == nil && !st.NeedsView {
			continue
		}
		if err := c.serveView(ctx, it, handle, *it.RecoveryPoint); err != nil {
			c.log.Error("view is not served", "item", it.Name, "error", err)
		}
	}
	return nil
}

// targetStatus asks the site where an item was recovered how its machine fares.
func (c *Orchestrator) targetStatus(ctx context.Context, it holdfast.Item) (st provider.Status, err error) {
	err = c.withSite(ctx, it.ActiveSite(), func(_ holdfast.Site, s *provider.Site) error {
		st, err = s.Target.Status(ctx, it.CopyAt(it.ActiveSite()).Handle)
		return err
	})
	return st, err
}

// vaultError says, in the domain's words, what an error of the vault means.
func vaultError(op, thing string, err error) error {
	if err == nil {
		return nil
	}
	e := &holdfast.Error{Kind: holdfast.KindUnavailable, Op: op, Thing: thing, Err: err,
		Hint: "Check that the vault's directory is mounted, readable and not full"}
	if errors.Is(err, vault.ErrCorrupt) {
		e.Kind, e.Hint = holdfast.KindCorrupt, "Run holdfast vault verify: it names what is damaged and which points are touched"
	}
	if errors.Is(err, vault.ErrFenced) {
		e.Kind, e.Hint = holdfast.KindConflict, "Another failover has taken this item over; look at its state"
	}
	return e
}

// exportName names the export of a disk of a recovery.
func exportName(handle, disk string) string { return handle + "." + disk }
