package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/gateway"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// Failback starts the job that brings the item's machine home.
func (c *Orchestrator) Failback(ctx context.Context, idOrName string, req api.Failback) (api.Job, error) {
	in := failoverInput{Operation: holdfast.OpFailback, Shutdown: true, Request: pointRequest(req.Option, "", 0, time.Time{}), Discard: req.DiscardWrites}
	if req.Unplanned {
		in.Operation, in.Shutdown = holdfast.OpFailover, false
		it, err := c.opts.Store.Item(ctx, idOrName)
		if err != nil {
			return api.Job{}, err
		}
		if it.Direction != holdfast.Reverse {
			it.Status = c.lastObserved(it.ID).status
			return api.Job{}, it.Check(holdfast.OpFailback) // says why not
		}
	}
	return c.startFailover(ctx, idOrName, req.IfVersion, in)
}

// ChangePoint starts the job that rebuilds the recovered machine from another
// recovery point.
func (c *Orchestrator) ChangePoint(ctx context.Context, idOrName string, req api.ChangePoint) (api.Job, error) {
	return c.startFailover(ctx, idOrName, req.IfVersion, failoverInput{Operation: holdfast.OpChangePoint, Keep: req.KeepWrites,
		Request: pointRequest(req.Option, req.Point, req.Timeline, req.Time)})
}

// changeRemove takes away the machine that the change of point replaces. One
// that was there before Holdfast is switched off, and brought to the other point.
func (c *Orchestrator) changeRemove(ctx context.Context, r *failoverRun) error {
	if err := r.begin(ctx); err != nil {
		return err
	}
	up := r.item.CopyAt(r.in.To)
	if up.Handle == "" {
		r.st.Reuse = true
		return c.withSite(ctx, r.in.To, func(_ holdfast.Site, s *provider.Site) error {
			if s.Power == nil || s.Replica == nil {
				return &holdfast.Error{Kind: holdfast.KindInvalid, Op: "change recovery point of", Thing: r.item.Name,
					Cause: "the site's provider cannot bring disks of a machine to another point"}
			}
			return c.switchOff(ctx, s, r.item, r.in.To)
		})
	}
	return c.removeRecovered(ctx, r.item, r.in.To, up.Handle)
}

// removeRecovered removes a machine that a recovery has made, whatever is going
// on with it.
func (c *Orchestrator) removeRecovered(ctx context.Context, it holdfast.Item, at, handle string) error {
	if err := c.stopHydration(ctx, handle); err != nil {
		return err
	}
	return c.withSite(ctx, at, func(site holdfast.Site, s *provider.Site) error {
		err := s.Target.Remove(ctx, handle)
		if err != nil && !errors.Is(err, provider.ErrNotFound) {
			return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "remove recovered machine at site", Thing: site.Name, Err: err}
		}
		return c.dropView(it, handle)
	})
}

// stopHydration cancels the hydration of a recovered machine and waits for its
// end.
func (c *Orchestrator) stopHydration(ctx context.Context, handle string) error {
	for {
		jobs, err := c.engine.List(ctx, job.Filter{Subject: "hydrate/" + handle, Unfinished: true, Limit: 1})
		if err != nil || len(jobs) == 0 {
			return err
		}
		if _, err := c.engine.Cancel(ctx, jobs[0].ID, "the recovered machine is taken away"); err != nil && !errors.Is(err, job.ErrEnded) {
			return err
		}
		if !sleep(ctx, 50*time.Millisecond) {
			return context.Cause(ctx)
		}
	}
}

// start applies an operation to an item and starts its job.
func (c *Orchestrator) start(ctx context.Context, idOrName string, ifVersion int64, op holdfast.Operation, in itemInput) (api.Job, error) {
	if err := c.awaitSettled(ctx); err != nil {
		return api.Job{}, err
	}
	it, err := c.opts.Store.Item(ctx, idOrName)
	if err != nil {
		return api.Job{}, err
	}
	if err := c.checkVersion(it, ifVersion); err != nil {
		return api.Job{}, err
	}
	status, before := c.observe(ctx, it).status, it.State
	it.Status = status
	if err := c.mayBegin(ctx, it, op); err != nil {
		return api.Job{}, err
	}
	if it, err = c.updateItem(ctx, it.ID, func(i holdfast.Item) (holdfast.Item, error) {
		i.Status, before = status, i.State
		return i.Apply(op)
	}); err != nil {
		return api.Job{}, err
	}
	in.Item = it.ID
	return c.submit(ctx, it, submission{string(op), op, before, in})
}

// Commit starts the job that makes a failover final.
func (c *Orchestrator) Commit(ctx context.Context, idOrName string, req api.Commit) (api.Job, error) {
	if err := c.mayDelete(ctx, idOrName, req.DeletePoints); err != nil {
		return api.Job{}, err
	}
	return c.start(ctx, idOrName, req.IfVersion, holdfast.OpCommit, itemInput{Discard: req.DiscardWrites, DeletePoints: req.DeletePoints})
}

func (c *Orchestrator) commitKind() job.Kind {
	return job.Kind{
		Name: string(holdfast.OpCommit), Title: "Commit",
		Tasks: []job.Task{
			{Name: "keep", Title: "Keep what that machine wrote and the vault has not", Run: c.withItem(c.commitKeep)},
			{Name: "remove", Title: "Remove the machine that is no longer needed", Run: c.withItem(c.commitRemove), NoReturn: true,
				Retry: job.Retry{Attempts: 3, Delay: time.Second}},
			{Name: "delete", Title: "Delete the recovery points from before", Run: c.withItem(c.commitDelete), NoReturn: true, Optional: true,
				Retry: job.Retry{Attempts: 3, Delay: time.Second}},
		},
		Finish: c.outcome(holdfast.StateCommitting, nil),
	}
}

// commitRemove removes, after a failback, the machine that was recovered. What
// was there before Holdfast stays, switched off and guarded.
func (c *Orchestrator) commitRemove(ctx context.Context, _ *job.Step, it holdfast.Item) error {
	left := it.CopyAt(it.TargetSite())
	if left.Handle == "" {
		return job.Skip("the machine at the other site was there before")
	}
	if err := c.removeRecovered(ctx, it, it.TargetSite(), left.Handle); err != nil {
		return err
	}
	_, err := c.updateItem(ctx, it.ID, func(i holdfast.Item) (holdfast.Item, error) {
		return i.WithCopy(i.TargetSite(), holdfast.Copy{Name: left.Name}), nil
	})
	return err
}

// outcome records how a job ended with an item that is in the state that the
// job belongs to.
func (c *Orchestrator) outcome(during holdfast.State, done func(holdfast.Item) holdfast.Item) *job.Task {
	return &job.Task{Name: "finish", Title: "Record the outcome", Run: func(ctx context.Context, step *job.Step) error {
		var in itemInput
		if err := decodeInput(step, &in); err != nil {
			return err
		}
		ending := step.Ending().State
		it, err := c.updateItem(ctx, in.Item, func(i holdfast.Item) (holdfast.Item, error) {
			i.CurrentJob = ""
			if i.State != during {
				return i, nil // the task is repeated
			}
			switch ending {
			case job.Succeeded:
				if done != nil {
					i = done(i)
				}
				return i.After(holdfast.OutcomeSucceeded)
			case job.Cancelled:
				if next, err := i.After(holdfast.OutcomeCancelled); err == nil {
					return next, nil
				}
			}
			return i.After(holdfast.OutcomeFailed)
		})
		if errors.Is(err, &holdfast.Error{Kind: holdfast.KindNotFound}) {
			return nil
		}
		return errors.Join(err, step.SetResult(ctx, jobResult{Item: it.ID}))
	}}
}

// UndoFailover starts the job that gives a failover up: the machine works again
// where it was before.
func (c *Orchestrator) UndoFailover(ctx context.Context, idOrName string, req api.UndoFailover) (api.Job, error) {
	return c.start(ctx, idOrName, req.IfVersion, holdfast.OpUndoFailover, itemInput{Keep: req.KeepWrites})
}

// undoState is what the tasks of an undo hand on to each other.
type undoState struct {
	From       string              `json:"from"` // site where the machine shall work again
	To         string              `json:"to"`   // site that it was failed over to
	Generation holdfast.Generation `json:"generation,omitempty"`
	Timeline   holdfast.TimelineID `json:"timeline,omitempty"`
}

func (c *Orchestrator) undoKind() job.Kind {
	retry := job.Retry{Attempts: 3, Delay: time.Second}
	return job.Kind{
		Name: string(holdfast.OpUndoFailover), Title: "Undo the failover",
		Tasks: []job.Task{
			{Name: "check", Title: "Check the site where the machine was", Run: bound(c.undoTask(c.undoCheck))},
			{Name: "keep", Title: "Keep what the recovered machine wrote", Run: c.undoTask(c.undoKeep), NoReturn: true},
			{Name: "remove", Title: "Take the recovered machine away", Run: c.undoTask(c.undoRemove), NoReturn: true, Retry: retry},
			{Name: "fork", Title: "Go on with the history before the failover", Run: bound(c.undoTask(c.undoFork)), Retry: retry},
			{Name: "start", Title: "Start the machine", Run: bound(c.undoTask(c.undoStart)), Retry: retry},
			{Name: "replicate", Title: "Have the gateway replicate", Run: bound(c.undoTask(c.undoReplicate)), Retry: retry},
		},
		Finish: &job.Task{Name: "finish", Title: "Record the outcome", Run: c.undoFinish},
	}
}

func (c *Orchestrator) undoTask(f func(context.Context, *job.Step, holdfast.Item, *undoState) error) func(context.Context, *job.Step) error {
	return c.withItem(func(ctx context.Context, step *job.Step, it holdfast.Item) error {
		var st undoState
		if err := step.JobState(&st); err != nil {
			return err
		}
		if err := f(ctx, step, it, &st); err != nil {
			return err
		}
		return step.SaveJobState(ctx, st)
	})
}

func (c *Orchestrator) undoCheck(ctx context.Context, _ *job.Step, it holdfast.Item, st *undoState) error {
	st.From, st.To = it.TargetSite(), it.ActiveSite()
	left := it.CopyAt(st.From)
	return c.withSite(ctx, st.From, func(site holdfast.Site, s *provider.Site) error {
		if s.Power == nil || s.Inventory == nil {
			return &holdfast.Error{Kind: holdfast.KindInvalid, Op: "undo failover of", Thing: it.Name, Cause: "the provider of site " + site.Name + " cannot start machines"}
		}
		if _, err := s.Inventory.Machine(ctx, left.MachineID); err != nil {
			return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "look at machine " + left.Name + " at site", Thing: site.Name, Err: err,
				Hint: "If that machine is lost, commit the failover instead"}
		}
		return nil
	})
}

func (c *Orchestrator) undoRemove(ctx context.Context, _ *job.Step, it holdfast.Item, st *undoState) error {
	up := it.CopyAt(st.To)
	switch {
	case up.MachineID == "" && up.Handle == "":
		return nil // it was never made
	case up.Handle != "":
		return c.removeRecovered(ctx, it, st.To, up.Handle)
	}
	return c.withSite(ctx, st.To, func(_ holdfast.Site, s *provider.Site) error { return c.switchOff(ctx, s, it, st.To) })
}

// undoFork opens a timeline where the one before the failover ends.
func (c *Orchestrator) undoFork(ctx context.Context, step *job.Step, it holdfast.Item, st *undoState) error {
	s, err := c.stream(ctx, it.Stream)
	if err != nil {
		return vaultError("open stream", it.Name, err)
	}
	if err := refresh(ctx, s); err != nil {
		return vaultError("read stream", it.Name, err)
	}
	old := past(it).Timeline
	var tail holdfast.Position
	for _, tl := range s.Timelines() {
		if st.Generation == 0 {
			st.Generation = it.Generation
		}
		st.Generation = max(st.Generation, tl.Generation+1)
		if tl.ID == old {
			tail = tl.Tail.Position
		}
	}
	reason := "undo " + step.JobID()
	for _, tl := range s.Timelines() {
		if tl.Reason == reason {
			st.Timeline, st.Generation = tl.ID, tl.Generation
			return nil
		}
	}
	if it.Timeline != old { // the failover's own, which nobody writes to
		if _, err := s.End(ctx, it.Timeline, vault.EndOptions{Generation: st.Generation, Reason: reason, Now: c.now()}); err != nil {
			return vaultError("close timeline", it.Name, err)
		}
	}
	st.Timeline, err = s.Fork(ctx, vault.ForkOptions{From: old, At: tail, Generation: st.Generation, Reason: reason, Now: c.now(), Disks: s.Disks(old)})
	return vaultError("fork stream", it.Name, err)
}

func (c *Orchestrator) undoStart(ctx context.Context, _ *job.Step, it holdfast.Item, st *undoState) error {
	if err := c.confirm(ctx); err != nil {
		return err
	}
	left := it.CopyAt(st.From)
	return c.withSite(ctx, st.From, func(site holdfast.Site, s *provider.Site) error {
		unlock, err := c.lockPower(ctx, it.ID)
		if err != nil {
			return err
		}
		defer unlock()
		if err = s.Power.Unguard(ctx, left.MachineID); err == nil {
			err = s.Power.Start(ctx, left.MachineID)
		}
		if err != nil {
			return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "start machine " + left.Name + " at site", Thing: site.Name, Err: err}
		}
		return nil
	})
}

func (c *Orchestrator) undoReplicate(ctx context.Context, _ *job.Step, it holdfast.Item, st *undoState) error {
	s, err := c.stream(ctx, it.Stream)
	if err != nil {
		return vaultError("open stream", it.Name, err)
	}
	it.Timeline, it.Generation = st.Timeline, st.Generation
	return c.giveOrder(ctx, it.WithDisks(domainDisks(s.Disks(st.Timeline))), st.From)
}

func (c *Orchestrator) undoFinish(ctx context.Context, step *job.Step) error {
	var st undoState
	if err := step.JobState(&st); err != nil {
		return err
	}
	var disks []holdfast.Disk
	if step.Ending().State == job.Succeeded {
		it, s, err := c.itemStream(ctx, step)
		if errors.Is(err, &holdfast.Error{Kind: holdfast.KindNotFound}) {
			return nil
		}
		if err != nil {
			return vaultError("open stream", it.Name, err)
		}
		disks = domainDisks(s.Disks(st.Timeline))
	}
	return c.outcome(holdfast.StateUndoingFailover, func(i holdfast.Item) holdfast.Item {
		up := i.CopyAt(st.To)
		if up.Equal = nil; up.Handle != "" {
			up = holdfast.Copy{Name: up.Name}
		}
		i = i.WithCopy(st.To, up)
		i.Timeline, i.Generation, i.RecoveryPoint, i.Addressing = st.Timeline, st.Generation, nil, holdfast.Addressing{}
		return i.WithDisks(disks)
	}).Run(ctx, step)
}

// Reprotect starts the job that replicates the item the other way round.
func (c *Orchestrator) Reprotect(ctx context.Context, idOrName string, req api.Reprotect) (api.Job, error) {
	return c.start(ctx, idOrName, req.IfVersion, holdfast.OpReprotect, itemInput{Discard: req.DiscardWrites})
}

func (c *Orchestrator) reprotectKind() job.Kind {
	retry := job.Retry{Attempts: 3, Delay: time.Second}
	return job.Kind{
		Name: string(holdfast.OpReprotect), Title: "Reprotect",
		Tasks: []job.Task{
			{Name: "check", Title: "Check machine, sites and gateway", Run: bound(c.withItem(c.reprotectCheck))},
			{Name: "hydrate", Title: "Wait until the machine no longer reads from the vault", Run: c.withItem(c.reprotectHydrate)},
			{Name: "guard", Title: "Keep the machine that was left behind from running", Run: c.withItem(c.reprotectGuard), Optional: true},
			{Name: "replicate", Title: "Have the gateway replicate", Run: bound(c.withItem(c.reprotectOrder)), Retry: retry},
			{Name: "sync", Title: "Bring over what changed", Run: c.withItem(c.protectSync)},
			{Name: "keep", Title: "Keep what that machine wrote and the vault has not", Run: c.withItem(c.reprotectKeep), Optional: true},
			{Name: "warm", Title: "Bring the machine that was left behind up to date", Run: c.withItem(c.reprotectWarm), Optional: true},
		},
		Finish: c.outcome(holdfast.StateReprotecting, nil),
	}
}

func (c *Orchestrator) reprotectCheck(ctx context.Context, _ *job.Step, it holdfast.Item) error {
	up := it.CopyAt(it.ActiveSite())
	if it.State != holdfast.StateReprotecting {
		return nil // the job is taken up again, and the order is given
	}
	err := c.withSite(ctx, it.ActiveSite(), func(site holdfast.Site, s *provider.Site) error {
		if s.Source == nil || s.Inventory == nil {
			return &holdfast.Error{Kind: holdfast.KindInvalid, Op: "reprotect", Thing: it.Name, Cause: "machines of site " + site.Name + " cannot be replicated"}
		}
		m, err := notPaused(ctx, s.Inventory, up.MachineID)
		if err != nil {
			return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "look at machine " + up.Name + " at site", Thing: site.Name, Err: err,
				Hint: "The machine that the item was failed over to must be there; if it was removed, disable protection"}
		}
		if m.Power != provider.PowerRunning {
			return &holdfast.Error{Kind: holdfast.KindNotAllowed, Op: "reprotect", Thing: it.Name, Cause: "machine " + m.Name + " is " + string(m.Power),
				Hint: "Start it, then reprotect"}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return c.reachGateway(ctx, it)
}

// pausedWait is for how long a machine may be paused before that counts: a
// hydration pauses it for a moment where it ends.
const pausedWait = 10 * time.Second

// notPaused returns a machine once it is not paused, or has been for too long.
func notPaused(ctx context.Context, inv provider.Inventory, id string) (provider.Machine, error) {
	for end := time.Now().Add(pausedWait); ; {
		m, err := inv.Machine(ctx, id)
		if err != nil || m.Power != provider.PowerPaused || time.Now().After(end) || !sleep(ctx, 200*time.Millisecond) {
			return m, err
		}
	}
}

// reprotectHydrate waits for the hydration: two block jobs on one disk would be
// in each other's way.
func (c *Orchestrator) reprotectHydrate(ctx context.Context, step *job.Step, it holdfast.Item) error {
	for {
		if it.CopyAt(it.ActiveSite()).Handle == "" {
			return job.Skip("the machine was there before and has all of its data")
		}
		st, err := c.targetStatus(ctx, it)
		if err != nil {
			return err
		}
		if !st.NeedsView {
			return nil
		}
		step.Progress(st.Hydrated, st.Total, "bytes")
		if !sleep(ctx, 200*time.Millisecond) {
			return context.Cause(ctx)
		}
	}
}

func (c *Orchestrator) reprotectGuard(ctx context.Context, _ *job.Step, it holdfast.Item) error {
	ctx, cancel := context.WithTimeout(ctx, guardWait)
	defer cancel()
	return c.guard(ctx, it, it.TargetSite(), it.ActiveSite())
}

// reprotectOrder gives the order to the gateway beside the machine, and takes it
// back from the one that had it before.
func (c *Orchestrator) reprotectOrder(ctx context.Context, step *job.Step, it holdfast.Item) error {
	if it.State != holdfast.StateReprotecting {
		return nil // the task is repeated
	}
	it, err := c.adoptDisks(ctx, step, it)
	if err != nil {
		return err
	}
	if err := c.giveOrder(ctx, it, it.ActiveSite()); err != nil {
		return err
	}
	old, err := c.opts.Store.Site(ctx, it.TargetSite())
	if err != nil {
		return err
	}
	site, err := c.opts.Store.Site(ctx, it.ActiveSite())
	if err != nil {
		return err
	}
	if old.Gateway != site.Gateway {
		ctx, cancel := context.WithTimeout(ctx, guardWait)
		defer cancel()
		g, err := c.gatewayAt(old.Gateway)
		if err == nil {
			err = g.Withdraw(ctx, it.ID)
		}
		if err != nil && !errors.Is(err, gateway.ErrUnknownOrder) {
			step.Warn("the gateway of site " + old.Name + " still has its order, which is fenced off: " + err.Error())
		}
	}
	_, err = c.updateItem(ctx, it.ID, func(i holdfast.Item) (holdfast.Item, error) {
		if i.State != holdfast.StateReprotecting {
			return i, nil
		}
		return i.After(holdfast.OutcomeSucceeded)
	})
	return err
}

// reprotectWarm brings the disks of the machine that was left behind to the
// newest recovery point, so that a failback has little left to do.
func (c *Orchestrator) reprotectWarm(ctx context.Context, step *job.Step, it holdfast.Item) error {
	to := it.TargetSite()
	ready := false
	err := c.withSite(ctx, to, func(_ holdfast.Site, s *provider.Site) (err error) {
		ready, err = c.reusable(ctx, it, to, s)
		return err
	})
	if err != nil {
		return err
	}
	if !ready {
		return job.Skip("there is no machine whose disks could be brought up to date; a failback makes it anew")
	}
	var in itemInput
	if err := decodeInput(step, &in); err != nil {
		return err
	}
	if it.CopyAt(to).Equal == nil && !in.Discard {
		return job.Skip("what is on its disks was not kept yet")
	}
	h, err := c.history(ctx, it)
	if err != nil {
		return err
	}
	newest, ok := h.Newest()
	if !ok {
		return nil
	}
	n, err := c.bring(ctx, step, it, to, holdfast.StreamPosition{Timeline: newest.Timeline, Position: newest.Position})
	if err == nil {
		step.Log(fmt.Sprintf("%d bytes were brought over", n))
	}
	return err
}

// Resync starts the job that compares source and vault and sends what differs.
func (c *Orchestrator) Resync(ctx context.Context, idOrName string, req api.Resync) (api.Job, error) {
	if len(req.Disks) > 0 {
		return api.Job{}, &holdfast.Error{Kind: holdfast.KindInvalid, Op: "resynchronise", Thing: idOrName,
			Cause: "this version compares all disks of an item", Hint: "Ask without naming disks"}
	}
	return c.start(ctx, idOrName, 0, holdfast.OpResync, itemInput{})
}

func (c *Orchestrator) resyncKind() job.Kind {
	retry := job.Retry{Attempts: 3, Delay: time.Second}
	return job.Kind{
		Name: string(holdfast.OpResync), Title: "Resynchronise",
		Tasks: []job.Task{
			{Name: "withdraw", Title: "Have the gateway forget what it believes to be equal", Run: bound(c.withItem(c.resyncWithdraw)), Retry: retry},
			{Name: "replicate", Title: "Have the gateway replicate", Run: bound(c.withItem(c.protectOrder)), Retry: retry},
			{Name: "sync", Title: "Compare and bring over what differs", Run: c.withItem(c.protectSync)},
		},
		Finish: &job.Task{Name: "finish", Title: "Record the outcome", Run: c.resyncFinish},
	}
}

func (c *Orchestrator) resyncWithdraw(ctx context.Context, _ *job.Step, it holdfast.Item) error {
	g, site, err := c.gatewayOf(ctx, it)
	if err != nil {
		return err
	}
	if err := g.Withdraw(ctx, it.ID); err != nil && !errors.Is(err, gateway.ErrUnknownOrder) {
		return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "reach gateway of site", Thing: site.Name, Err: err}
	}
	return nil
}

// resyncFinish makes sure that the gateway has its order, whatever became of the
// job.
func (c *Orchestrator) resyncFinish(ctx context.Context, step *job.Step) error {
	var in itemInput
	if err := decodeInput(step, &in); err != nil {
		return err
	}
	it, err := c.updateItem(ctx, in.Item, func(i holdfast.Item) (holdfast.Item, error) {
		i.CurrentJob = ""
		return i, nil
	})
	if err != nil {
		return err
	}
	if err := c.giveOrder(ctx, it, it.ActiveSite()); err != nil {
		return err
	}
	return step.SetResult(ctx, jobResult{Item: it.ID})
}

// CancelItem cancels the job that works on an item.
func (c *Orchestrator) CancelItem(ctx context.Context, idOrName string, _ api.CancelItem) (api.Job, error) {
	it, err := c.opts.Store.Item(ctx, idOrName)
	if err != nil {
		return api.Job{}, err
	}
	it.Status.TooLate = c.tooLate(ctx, it)
	if err := it.Check(holdfast.OpCancel); err != nil {
		return api.Job{}, err
	}
	return c.CancelJob(ctx, it.CurrentJob)
}
