package orchestrator

import (
	"context"
	"errors"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/provider"
)

// The kinds of jobs that switch the machine of an item that replicates.
const (
	kindShutDown = "shut_down"
	kindPowerOn  = "power_on"
)

// ShutDownMachine starts the job that shuts an item's machine down cleanly, as a
// recovery plan does before it fails its machines over as planned. It stays off
// until somebody starts it; PowerOnMachine does.
func (c *Orchestrator) ShutDownMachine(ctx context.Context, idOrName string) (api.Job, error) {
	return c.startSwitching(ctx, idOrName, kindShutDown)
}

// PowerOnMachine starts the job that starts an item's machine where it works.
func (c *Orchestrator) PowerOnMachine(ctx context.Context, idOrName string) (api.Job, error) {
	return c.startSwitching(ctx, idOrName, kindPowerOn)
}

func (c *Orchestrator) startSwitching(ctx context.Context, idOrName, kind string) (api.Job, error) {
	if err := c.awaitSettled(ctx); err != nil {
		return api.Job{}, err
	}
	it, err := c.opts.Store.Item(ctx, idOrName)
	if err != nil {
		return api.Job{}, err
	}
	if it.State != holdfast.StateProtected {
		return api.Job{}, &holdfast.Error{Kind: holdfast.KindNotAllowed, Op: "switch machine of item", Thing: it.Name, Cause: "it is " + string(it.State),
			Hint: "Only the machine of a protected item is switched so"}
	}
	j, err := c.engine.Submit(ctx, kind, it.ID, itemInput{Item: it.ID})
	if errors.Is(err, job.ErrBusy) {
		return api.Job{}, busy(it, holdfast.Operation(kind), err)
	}
	if err != nil {
		return api.Job{}, err
	}
	return c.apiJob(ctx, j), nil
}

func (c *Orchestrator) switchingKinds() []job.Kind {
	finish := &job.Task{Name: "finish", Title: "Record the outcome", Run: c.switchingFinish}
	return []job.Kind{
		{Name: kindShutDown, Title: "Shut the machine down", Finish: finish, Tasks: []job.Task{
			{Name: "shutdown", Title: "Shut the machine down", Run: c.withItem(c.shutDown)},
		}},
		{Name: kindPowerOn, Title: "Start the machine", Finish: finish, Tasks: []job.Task{
			{Name: "start", Title: "Start the machine", Run: bound(c.withItem(c.powerOn)), Retry: job.Retry{Attempts: 3, Delay: time.Second}},
		}},
	}
}

// shutDown shuts the machine down where it works.
func (c *Orchestrator) shutDown(ctx context.Context, _ *job.Step, it holdfast.Item) error {
	return c.shutDownAt(ctx, it, it.ActiveSite())
}

// shutDownAt asks the guest of an item's machine at a site to shut down and waits
// until it is off.
func (c *Orchestrator) shutDownAt(ctx context.Context, it holdfast.Item, at string) error {
	ctx, cancel := context.WithTimeout(ctx, shutdownWait)
	defer cancel()
	source := it.CopyAt(at)
	return c.withSite(ctx, at, func(site holdfast.Site, s *provider.Site) error {
		err := s.Source.Shutdown(ctx, source.MachineID)
		if err == nil || errors.Is(err, provider.ErrNotRunning) {
			return nil
		}
		return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "shut down machine", Thing: source.Name, Err: err,
			Hint: "Shut it down at site " + site.Name + " by hand and ask again, or fail over unplanned"}
	})
}

func (c *Orchestrator) powerOn(ctx context.Context, _ *job.Step, it holdfast.Item) error {
	if err := c.confirm(ctx); err != nil {
		return err
	}
	here := it.CopyAt(it.ActiveSite())
	return c.withSite(ctx, it.ActiveSite(), func(site holdfast.Site, s *provider.Site) error {
		unlock, err := c.lockPower(ctx, it.ID)
		if err != nil {
			return err
		}
		defer unlock()
		if s.Power == nil {
			return &holdfast.Error{Kind: holdfast.KindInvalid, Op: "start machine " + here.Name + " at site", Thing: site.Name, Cause: "its provider cannot start machines"}
		}
		if err := s.Power.Start(ctx, here.MachineID); err != nil {
			return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "start machine " + here.Name + " at site", Thing: site.Name, Err: err}
		}
		return nil
	})
}

func (c *Orchestrator) switchingFinish(ctx context.Context, step *job.Step) error {
	var in itemInput
	if err := decodeInput(step, &in); err != nil {
		return err
	}
	it, err := c.updateItem(ctx, in.Item, func(i holdfast.Item) (holdfast.Item, error) {
		i.CurrentJob = ""
		return i, nil
	})
	if errors.Is(err, &holdfast.Error{Kind: holdfast.KindNotFound}) {
		return nil
	}
	return errors.Join(err, step.SetResult(ctx, jobResult{Item: it.ID}))
}
