package orchestrator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

const (
	// drainWait bounds how long a failover waits for a gateway that may be lost
	// with its site to bring over what it has received.
	drainWait = 10 * time.Second
	// shutdownWait bounds the attempt to shut the source down.
	shutdownWait = 2 * time.Minute
)

// failoverInput is what a failover was asked for.
type failoverInput struct {
	Item        string                `json:"item"`
	Request     holdfast.PointRequest `json:"request"`
	Shutdown    bool                  `json:"shutdown"`
	TargetName  string                `json:"target_name"`
	RequestedAt time.Time             `json:"requested_at"`
	Handle      string                `json:"handle"`
}

// failoverState is what its tasks hand on to each other, recorded before each
// effect.
type failoverState struct {
	Generation holdfast.Generation    `json:"generation,omitempty"`
	Last       holdfast.Position      `json:"last,omitempty"` // end of the old timeline
	AsOf       time.Time              `json:"as_of,omitzero"` // the old timeline has all that was written until then
	Point      holdfast.RecoveryPoint `json:"point,omitzero"`
	Newest     bool                   `json:"newest,omitempty"`   // Point is the newest that there was
	Timeline   holdfast.TimelineID    `json:"timeline,omitempty"` // the new one
	MachineID  string                 `json:"machine_id,omitempty"`
	StartedAt  time.Time              `json:"started_at,omitzero"`
}

// jobResult is what jobs leave for their readers.
type jobResult struct {
	Item        string                  `json:"item,omitempty"`
	RPO         *float64                `json:"rpo,omitempty"` // seconds
	RTO         *float64                `json:"rto,omitempty"` // seconds
	Point       *holdfast.RecoveryPoint `json:"point,omitempty"`
	MachineID   string                  `json:"machine_id,omitempty"`
	MachineName string                  `json:"machine_name,omitempty"`
	Site        string                  `json:"site,omitempty"`
	Verify      *api.VerifyReport       `json:"verify,omitempty"`
}

// FailoverItem starts the job that runs the item's machine at the other site.
func (c *Orchestrator) FailoverItem(ctx context.Context, idOrName string, req api.Failover) (api.Job, error) {
	point := holdfast.PointRequest{
		Option: holdfast.PointOption(req.Option), Point: req.Point, Timeline: holdfast.TimelineID(req.Timeline), Time: req.Time,
	}
	if err := point.Validate(); err != nil {
		return api.Job{}, err
	}
	it, err := c.opts.Store.Item(ctx, idOrName)
	if err != nil {
		return api.Job{}, err
	}
	if err := c.checkVersion(it, req.IfVersion); err != nil {
		return api.Job{}, err
	}
	it.Status = c.observe(ctx, it).status
	if _, err := it.Apply(holdfast.OpFailover); err != nil {
		return api.Job{}, err
	}
	in := failoverInput{Item: it.ID, Request: point, Shutdown: req.ShutdownSource, TargetName: req.TargetName,
		RequestedAt: c.now(), Handle: newID("rec")}
	if in.TargetName == "" {
		in.TargetName = it.MachineName
	}
	status := it.Status
	if it, err = c.updateItem(ctx, it.ID, func(i holdfast.Item) (holdfast.Item, error) {
		i.Status = status
		return i.Apply(holdfast.OpFailover)
	}); err != nil {
		return api.Job{}, err
	}
	return c.submit(ctx, kindFailover, it, in, holdfast.OpFailover)
}

// checkVersion refuses a change made from an older version of an item.
func (c *Orchestrator) checkVersion(it holdfast.Item, want int64) error {
	if want == 0 || want == it.Version {
		return nil
	}
	return &holdfast.Error{Kind: holdfast.KindConflict, Op: "change item", Thing: it.Name,
		Cause: fmt.Sprintf("it has version %d now, and the request was made for version %d", it.Version, want),
		Hint:  "Look at the item again, and ask anew if you still want it"}
}

func (c *Orchestrator) failoverKind() job.Kind {
	retry := job.Retry{Attempts: 3, Delay: 300 * time.Millisecond}
	return job.Kind{
		Name: kindFailover, Title: "Fail over",
		Tasks: []job.Task{
			{Name: "check", Title: "Check recovery point and site", Run: c.failoverTask(c.failoverCheck)},
			{Name: "shutdown", Title: "Shut the source down", Run: c.failoverTask(c.failoverShutdown), Optional: true},
			{Name: "drain", Title: "Bring over what was received", Run: c.failoverTask(c.failoverDrain), Optional: true},
			{Name: "fence", Title: "Fence the source off", Run: c.failoverTask(c.failoverFence), NoReturn: true, Retry: retry},
			{Name: "resolve", Title: "Choose the recovery point", Run: c.failoverTask(c.failoverResolve), Retry: retry},
			{Name: "define", Title: "Prepare the machine", Run: c.failoverTask(c.failoverDefine), Retry: retry},
			{Name: "start", Title: "Start the machine", Run: c.failoverTask(c.failoverStart), Retry: retry},
		},
		Finish: &job.Task{Name: "finish", Title: "Record the outcome", Run: c.failoverFinish},
	}
}

// failoverRun is a task's view of its failover.
type failoverRun struct {
	*job.Step
	in   failoverInput
	st   failoverState
	item holdfast.Item
}

// failoverTask gives a task its failover, and records what it changed.
func (c *Orchestrator) failoverTask(f func(context.Context, *failoverRun) error) func(context.Context, *job.Step) error {
	return func(ctx context.Context, step *job.Step) error {
		r := &failoverRun{Step: step}
		if err := decodeInput(step, &r.in); err != nil {
			return err
		}
		if err := step.JobState(&r.st); err != nil {
			return err
		}
		var err error
		if r.item, err = c.take(ctx, step, r.in.Item); err != nil {
			return err
		}
		if err := f(ctx, r); err != nil {
			return err
		}
		return step.SaveJobState(ctx, r.st)
	}
}

// failoverCheck finds what would make the failover fail after it could not be
// cancelled any more.
func (c *Orchestrator) failoverCheck(ctx context.Context, r *failoverRun) error {
	h, err := c.history(ctx, r.item)
	if err != nil {
		return err
	}
	if _, err := holdfast.ResolvePoint(r.in.Request, h); err != nil {
		return err
	}
	if err := c.checkDamage(ctx, r, h); err != nil {
		return err
	}
	return c.withSite(ctx, r.item.TargetSite(), func(rec holdfast.Site, s *provider.Site) error {
		if s.Target == nil {
			return &holdfast.Error{Kind: holdfast.KindInvalid, Op: "check recovery site", Thing: rec.Name,
				Cause: "its provider cannot run recovered machines"}
		}
		if s.Inventory == nil {
			return nil
		}
		_, err := s.Inventory.Machine(ctx, r.in.TargetName)
		if errors.Is(err, provider.ErrNotFound) {
			return nil
		}
		if err == nil {
			return c.nameTaken(r, rec, provider.ErrNameTaken)
		}
		return err
	})
}

// checkDamage refuses "the newest" where damage hides what is newer: how much
// that loses is for people to decide.
func (c *Orchestrator) checkDamage(ctx context.Context, r *failoverRun, h holdfast.History) error {
	switch r.in.Request.Option {
	case holdfast.PointChosen, holdfast.PointTime:
		return nil
	}
	s, err := c.stream(ctx, r.item.Stream)
	if err != nil {
		return vaultError("open stream", r.item.Name, err)
	}
	damage := s.Damaged()
	if damage == nil {
		return nil
	}
	e := &holdfast.Error{Kind: holdfast.KindCorrupt, Op: "choose recovery point of", Thing: r.item.Name, Err: damage,
		Cause: "damage in the vault hides the newest of its history", Hint: "Run holdfast vault verify, and restore what it names from a copy of the vault"}
	if newest, ok := h.Newest(); ok {
		e.Hint = "To go back to the last moment before the damage, fail over with --time " + newest.Time.UTC().Format(time.RFC3339Nano)
	}
	return e
}

func (c *Orchestrator) nameTaken(r *failoverRun, site holdfast.Site, err error) error {
	return &holdfast.Error{Kind: holdfast.KindConflict, Op: "fail over", Thing: r.item.Name, Err: err,
		Cause: fmt.Sprintf("site %s has a machine named %s already", site.Name, r.in.TargetName),
		Hint:  "Remove or rename that machine, or fail over with --name"}
}

// failoverShutdown asks the source to shut down. Its failure never stops a
// failover.
func (c *Orchestrator) failoverShutdown(ctx context.Context, r *failoverRun) error {
	if !r.in.Shutdown {
		return job.Skip("it was not asked for")
	}
	ctx, cancel := context.WithTimeout(ctx, shutdownWait)
	defer cancel()
	return c.withSite(ctx, r.item.ActiveSite(), func(_ holdfast.Site, s *provider.Site) error {
		err := s.Source.Shutdown(ctx, r.item.MachineID)
		if errors.Is(err, provider.ErrNotRunning) {
			return nil
		}
		return err
	})
}

// failoverDrain has the gateway make everything received a recovery point. A
// gateway that is lost with its site cannot: then the vault's end is the end.
func (c *Orchestrator) failoverDrain(ctx context.Context, r *failoverRun) error {
	if o := r.in.Request.Option; o != "" && o != holdfast.PointLatest {
		return job.Skip("the recovery point is in the vault already")
	}
	ctx, cancel := context.WithTimeout(ctx, drainWait)
	defer cancel()
	g, site, err := c.gatewayOf(ctx, r.item)
	if err != nil {
		return err
	}
	if _, err := g.Point(ctx, r.item.ID, "failover "+r.JobID()); err != nil {
		return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "drain gateway of site", Thing: site.Name, Err: err,
			Hint: "What the gateway has received and the vault has not is not in the recovered machine"}
	}
	return nil
}

// failoverFence closes the item's timeline under a new generation, so that
// nobody can write to it any more.
func (c *Orchestrator) failoverFence(ctx context.Context, r *failoverRun) error {
	s, err := c.stream(ctx, r.item.Stream)
	if err != nil {
		return vaultError("open stream", r.item.Name, err)
	}
	if err := refresh(ctx, s); err != nil {
		return vaultError("read stream", r.item.Name, err)
	}
	if r.st.Generation == 0 {
		r.st.Generation = r.item.Generation + 1
		for _, tl := range s.Timelines() {
			r.st.Generation = max(r.st.Generation, tl.Generation+1)
		}
		if canary, err := s.Canary(ctx); err == nil {
			r.st.AsOf = canary.Time
		}
		if err := r.SaveJobState(ctx, r.st); err != nil {
			return err
		}
	}
	r.st.Last, err = s.End(ctx, r.item.Timeline, vault.EndOptions{
		Generation: r.st.Generation, Reason: "failover " + r.JobID(), Now: c.now(),
	})
	return vaultError("fence off", r.item.Name, err)
}

// failoverResolve chooses the recovery point, for good, and forks the stream
// there.
func (c *Orchestrator) failoverResolve(ctx context.Context, r *failoverRun) error {
	s, err := c.stream(ctx, r.item.Stream)
	if err != nil {
		return vaultError("open stream", r.item.Name, err)
	}
	if r.st.Point.Position == 0 {
		h, err := c.history(ctx, r.item)
		if err != nil {
			return err
		}
		res, err := holdfast.ResolvePoint(r.in.Request, h)
		if err != nil {
			return err
		}
		if res.Warning != "" {
			r.Log(res.Warning)
		}
		r.st.Point = res.Point
		if newest, ok := h.Newest(); ok {
			r.st.Newest = newest.Position == res.Point.Position
		}
		if err := r.SaveJobState(ctx, r.st); err != nil {
			return err
		}
	}
	if err := refresh(ctx, s); err != nil {
		return vaultError("read stream", r.item.Name, err)
	}
	for _, tl := range s.Timelines() {
		if tl.Generation == r.st.Generation && tl.Parent == r.st.Point.Timeline && tl.ForkAt == r.st.Point.Position {
			r.st.Timeline = tl.ID // made before the server was interrupted
			return nil
		}
	}
	r.st.Timeline, err = s.Fork(ctx, vault.ForkOptions{
		From: r.st.Point.Timeline, At: r.st.Point.Position, Generation: r.st.Generation, Reason: "failover " + r.JobID(), Now: c.now(),
	})
	return vaultError("fork stream", r.item.Name, err)
}

// failoverDefine serves the view and has the provider prepare the machine.
func (c *Orchestrator) failoverDefine(ctx context.Context, r *failoverRun) error {
	if err := c.serveView(ctx, r.item, r.in.Handle, r.st.Point); err != nil {
		return err
	}
	rec, err := c.recovered(r)
	if err != nil {
		return err
	}
	return c.withSite(ctx, r.item.TargetSite(), func(site holdfast.Site, s *provider.Site) error {
		id, err := s.Target.Define(ctx, rec)
		if errors.Is(err, provider.ErrNameTaken) {
			return c.nameTaken(r, site, err)
		}
		if err != nil {
			return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "prepare machine at site", Thing: site.Name, Err: err}
		}
		r.st.MachineID = id
		return nil
	})
}

// recovered says what machine the target shall make.
func (c *Orchestrator) recovered(r *failoverRun) (provider.Recovered, error) {
	rec := provider.Recovered{Handle: r.in.Handle, Name: r.in.TargetName}
	if err := json.Unmarshal(r.item.Machine, &rec.Machine); err != nil {
		return rec, fmt.Errorf("decode description of machine %s: %w", r.item.MachineName, err)
	}
	for _, d := range r.item.Disks {
		rec.Disks = append(rec.Disks, provider.DiskSource{
			DiskID: d.ID, Size: d.Size, Socket: c.opts.Views.Socket(), Export: exportName(r.in.Handle, d.ID),
		})
	}
	return rec, nil
}

// failoverStart starts the machine. From here on it is the live copy.
func (c *Orchestrator) failoverStart(ctx context.Context, r *failoverRun) error {
	if err := c.serveView(ctx, r.item, r.in.Handle, r.st.Point); err != nil {
		return err
	}
	err := c.withSite(ctx, r.item.TargetSite(), func(site holdfast.Site, s *provider.Site) error {
		if err := s.Target.Start(ctx, r.in.Handle); err != nil {
			return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "start machine at site", Thing: site.Name, Err: err}
		}
		return nil
	})
	if err == nil && r.st.StartedAt.IsZero() {
		r.st.StartedAt = c.now()
	}
	return err
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
	it, err := c.updateItem(ctx, in.Item, func(i holdfast.Item) (holdfast.Item, error) {
		i.CurrentJob = ""
		if i.State != holdfast.StateFailingOver {
			return i, nil // the task is repeated
		}
		switch {
		case ending == job.Succeeded:
			i.RecoveryPoint, i.Handle = &st.Point, in.Handle
			i.Timeline, i.Generation = st.Timeline, st.Generation
			return i.After(holdfast.OutcomeSucceeded)
		case st.Generation == 0: // nothing was done to the stream: replication goes on
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
	if err := c.serveView(ctx, it, in.Handle, st.Point); err != nil {
		c.log.Error("view is not served", "item", it.Name, "error", err)
	}
	return step.SetResult(ctx, c.failoverResult(ctx, it, in, st))
}

func (c *Orchestrator) failoverResult(ctx context.Context, it holdfast.Item, in failoverInput, st failoverState) jobResult {
	rto := max(0, st.StartedAt.Sub(in.RequestedAt)).Seconds()
	res := jobResult{Item: it.ID, RTO: &rto, Point: &st.Point, MachineID: st.MachineID, MachineName: in.TargetName}
	// Everything written until AsOf is in the timeline. Its newest point is as
	// good as that; an older one is as old as it is.
	reached := st.Point.Time
	if st.Newest && st.AsOf.After(reached) {
		reached = st.AsOf
	}
	rpo := max(0, in.RequestedAt.Sub(reached)).Seconds()
	res.RPO = &rpo
	if site, err := c.opts.Store.Site(ctx, it.ActiveSite()); err == nil {
		res.Site = site.Name
	}
	return res
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
	for _, p := range s.Points(tl) {
		h.Points = append(h.Points, holdfast.RecoveryPoint{
			ID: p.ID, Name: p.Name, Timeline: tl, Position: p.Position, Time: p.Time, Consistency: holdfast.Consistency(p.Consistency),
		})
	}
	for _, r := range s.Ranges(tl) {
		h.Ranges = append(h.Ranges, holdfast.PointRange{Timeline: tl, From: r.From, To: r.To, FromTime: r.FromTime, ToTime: r.ToTime})
	}
	return h
}

// serveView serves the disks of a recovery point to the target.
func (c *Orchestrator) serveView(ctx context.Context, it holdfast.Item, handle string, p holdfast.RecoveryPoint) error {
	missing := slices.ContainsFunc(it.Disks, func(d holdfast.Disk) bool { return !c.opts.Views.Has(exportName(handle, d.ID)) })
	if !missing {
		return nil
	}
	s, err := c.stream(ctx, it.Stream)
	if err != nil {
		return vaultError("open stream", it.Name, err)
	}
	if err := refresh(ctx, s); err != nil {
		return vaultError("read stream", it.Name, err)
	}
	view, err := s.View(ctx, p.Timeline, p.Position)
	if err != nil {
		return vaultError("open recovery point", p.Position.String(), err)
	}
	for _, d := range it.Disks {
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
	for _, d := range it.Disks {
		errs = append(errs, c.opts.Views.Remove(exportName(handle, d.ID)))
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
		if it.Handle == "" || it.RecoveryPoint == nil {
			continue
		}
		if st, err := c.targetStatus(ctx, it); err == nil && !st.NeedsView {
			continue
		}
		if err := c.serveView(ctx, it, it.Handle, *it.RecoveryPoint); err != nil {
			c.log.Error("view is not served", "item", it.Name, "error", err)
		}
	}
	return nil
}

// targetStatus asks the site where an item was recovered how its machine fares.
func (c *Orchestrator) targetStatus(ctx context.Context, it holdfast.Item) (st provider.Status, err error) {
	err = c.withSite(ctx, it.ActiveSite(), func(_ holdfast.Site, s *provider.Site) error {
		st, err = s.Target.Status(ctx, it.Handle)
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
