package orchestrator

import (
	"context"
	"errors"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/gateway"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/provider"
)

// hydrateKind copies, while a recovered machine runs, what it still reads from
// the vault. It is started by itself.
func (c *Orchestrator) hydrateKind() job.Kind {
	return job.Kind{
		Name: kindHydrate, Title: "Make the recovered machine independent of the vault",
		Tasks: []job.Task{
			{Name: "hydrate", Title: "Copy what is still read from the vault", Run: c.withItem(c.hydrate),
				Retry: job.Retry{Attempts: 5, Delay: 2 * time.Second}},
			{Name: "detach", Title: "Stop serving the view", Run: c.withItem(func(_ context.Context, _ *job.Step, it holdfast.Item) error {
				return c.dropView(it, it.CopyAt(it.ActiveSite()).Handle)
			})},
		},
	}
}

func (c *Orchestrator) hydrate(ctx context.Context, step *job.Step, it holdfast.Item) error {
	handle := it.CopyAt(it.ActiveSite()).Handle
	if handle == "" {
		return job.Skip("the item has no recovered machine any more")
	}
	return c.withSite(ctx, it.ActiveSite(), func(site holdfast.Site, s *provider.Site) error {
		err := s.Target.Hydrate(ctx, handle, func(done, total int64) { step.Progress(done, total, "bytes") })
		if err != nil && ctx.Err() == nil {
			return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "hydrate machine at site", Thing: site.Name, Err: err,
				Hint: "The machine goes on reading from the vault meanwhile; keep the server up"}
		}
		return err
	})
}

// disableInput is what disabling was asked for.
type disableInput struct {
	Item          string `json:"item"`
	DeleteHistory bool   `json:"delete_history,omitempty"`
}

// DisableItem starts the job that ends the protection of an item. Its history
// stays in the vault.
func (c *Orchestrator) DisableItem(ctx context.Context, idOrName string, req api.Disable) (api.Job, error) {
	if err := c.awaitSettled(ctx); err != nil {
		return api.Job{}, err
	}
	it, err := c.opts.Store.Item(ctx, idOrName)
	if err != nil {
		return api.Job{}, err
	}
	if err := c.checkVersion(it, req.IfVersion); err != nil {
		return api.Job{}, err
	}
	if err := it.CheckHold("delete history of item"); req.DeleteHistory && err != nil {
		return api.Job{}, err
	}
	status, before := c.observe(ctx, it).status, it.State
	it.Status = status
	if err := c.mayBegin(ctx, it, holdfast.OpDisable); err != nil {
		return api.Job{}, err
	}
	if it, err = c.updateItem(ctx, it.ID, func(i holdfast.Item) (holdfast.Item, error) {
		i.Status, before = status, i.State
		return i.Apply(holdfast.OpDisable)
	}); err != nil {
		return api.Job{}, err
	}
	return c.submit(ctx, it, submission{kindDisable, holdfast.OpDisable, before, disableInput{Item: it.ID, DeleteHistory: req.DeleteHistory}})
}

func (c *Orchestrator) disableKind() job.Kind {
	return job.Kind{
		Name: kindDisable, Title: "Disable protection",
		Tasks: []job.Task{
			{Name: "withdraw", Title: "Have the gateway stop and leave the machine as it was", Run: bound(c.withItem(c.disableWithdraw)),
				NoReturn: true, Retry: job.Retry{Attempts: 3, Delay: time.Second}},
			{Name: "delete", Title: "Delete its history", Run: c.withItem(c.disableDelete), NoReturn: true, Retry: job.Retry{Attempts: 3, Delay: time.Second}},
		},
		Finish: &job.Task{Name: "finish", Title: "Remove the item", Run: c.disableFinish},
	}
}

func (c *Orchestrator) disableWithdraw(ctx context.Context, step *job.Step, it holdfast.Item) error {
	g, site, err := c.gatewayOf(ctx, it)
	if err == nil {
		err = g.Withdraw(ctx, it.ID)
	}
	if left := it.CopyAt(it.TargetSite()); left.MachineID != "" && it.Handle != "" {
		c.mu.Lock()
		seen := c.guards[it.ID]
		c.mu.Unlock()
		if seen.at.IsZero() || seen.notGuarded != "" {
			step.Warn("machine " + left.Name + ", which a failover has left behind, was not reached at its site: it may run there, and from now on nobody looks after it")
		} else {
			step.Log("machine " + left.Name + ", which a failover has left behind, stays off and guarded at its site: what it has is outdated")
		}
	}
	if err == nil || errors.Is(err, gateway.ErrUnknownOrder) {
		return nil
	}
	if it.RecoveryPoint != nil {
		step.Warn("the gateway of site " + site.Name + " could not be reached; it is fenced off already: " + err.Error())
		return nil
	}
	return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "withdraw order from gateway of site", Thing: site.Name, Err: err,
		Hint: "Start the gateway there, then disable protection again"}
}

func (c *Orchestrator) disableFinish(ctx context.Context, step *job.Step) error {
	var in disableInput
	if err := decodeInput(step, &in); err != nil {
		return err
	}
	outcome := holdfast.OutcomeFailed
	if step.Ending().State == job.Succeeded {
		outcome = holdfast.OutcomeSucceeded
	}
	it, err := c.updateItem(ctx, in.Item, func(i holdfast.Item) (holdfast.Item, error) {
		i.CurrentJob = ""
		if i.State != holdfast.StateDisabling {
			return i, nil
		}
		return i.After(outcome)
	})
	if errors.Is(err, &holdfast.Error{Kind: holdfast.KindNotFound}) {
		return nil
	}
	if err != nil || it.State != holdfast.StateUnprotected {
		return err
	}
	return c.opts.Store.DeleteItem(ctx, it.ID)
}
