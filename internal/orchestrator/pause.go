package orchestrator

import (
	"context"
	"errors"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/gateway"
	"github.com/holdfast-dr/holdfast/internal/job"
)

const (
	// kindPause is the job that has a machine left alone for a time, or no longer.
	kindPause = "pause"
	// defaultPause is for how long if nobody says.
	defaultPause = time.Hour
)

// pauseInput is what a pause was asked for; zero ends it.
type pauseInput struct {
	Item  string    `json:"item"`
	Until time.Time `json:"until,omitzero"`
}

// Pause starts the job that has the item's machine left alone for a time, so that
// others can resize, back up or snapshot its disks. When the job has succeeded,
// nothing of Holdfast is in it. Replication goes on by itself, also if the server
// is gone by then.
func (c *Orchestrator) Pause(ctx context.Context, idOrName string, req api.Pause) (api.Job, error) {
	wait := defaultPause
	if req.Duration > 0 {
		wait = time.Duration(req.Duration) * time.Second
	}
	return c.pause(ctx, idOrName, "pause replication of", c.now().Add(wait).UTC().Round(time.Second))
}

// Resume starts the job that ends a pause.
func (c *Orchestrator) Resume(ctx context.Context, idOrName string, _ api.Resume) (api.Job, error) {
	return c.pause(ctx, idOrName, "resume replication of", time.Time{})
}

func (c *Orchestrator) pause(ctx context.Context, idOrName, op string, until time.Time) (api.Job, error) {
	if err := c.awaitSettled(ctx); err != nil {
		return api.Job{}, err
	}
	it, err := c.opts.Store.Item(ctx, idOrName)
	if err != nil {
		return api.Job{}, err
	}
	e := &holdfast.Error{Kind: holdfast.KindNotAllowed, Op: op, Thing: it.Name}
	switch {
	case !replicates(it.State) || it.State == holdfast.StateEnabling:
		e.Cause, e.Hint = "it does not replicate in state "+string(it.State), "Nothing is to be done: its machine is left alone"
		return api.Job{}, e
	case it.CurrentJob != "":
		e.Cause, e.Hint = "a job is working on the item", "Wait for job "+it.CurrentJob+" to end, or cancel it"
		return api.Job{}, e
	}
	j, err := c.engine.Submit(ctx, kindPause, "pause/"+it.ID, pauseInput{Item: it.ID, Until: until})
	if errors.Is(err, job.ErrBusy) {
		e.Kind, e.Err, e.Hint = holdfast.KindConflict, err, "Wait until that job has ended"
		return api.Job{}, e
	}
	if err != nil {
		return api.Job{}, err
	}
	return c.apiJob(ctx, j), nil
}

func (c *Orchestrator) pauseKind() job.Kind {
	return job.Kind{
		Name: kindPause, Title: "Pause or resume replication",
		Tasks: []job.Task{
			{Name: "order", Title: "Tell the gateway", Run: bound(c.pauseTask(c.pauseOrder)), Retry: job.Retry{Attempts: 3, Delay: time.Second}},
			{Name: "wait", Title: "Wait until the machine is left alone", Run: bound(c.pauseTask(c.pauseWait))},
		},
	}
}

func (c *Orchestrator) pauseTask(f func(context.Context, *job.Step, pauseInput) error) func(context.Context, *job.Step) error {
	return func(ctx context.Context, step *job.Step) error {
		var in pauseInput
		if err := decodeInput(step, &in); err != nil {
			return err
		}
		return f(ctx, step, in)
	}
}

func (c *Orchestrator) pauseOrder(ctx context.Context, _ *job.Step, in pauseInput) error {
	it, err := c.updateItem(ctx, in.Item, func(i holdfast.Item) (holdfast.Item, error) {
		if !replicates(i.State) || i.CurrentJob != "" {
			return i, &holdfast.Error{Kind: holdfast.KindNotAllowed, Op: "pause replication of", Thing: i.Name, Cause: "another job has begun to work on it",
				Hint: "Wait until that has ended, then ask again"}
		}
		i.PausedUntil = in.Until
		return i, nil
	})
	if err != nil {
		return err
	}
	return c.giveOrder(ctx, it, it.ActiveSite())
}

// pauseWait waits until the gateway says that it leaves the machine alone.
func (c *Orchestrator) pauseWait(ctx context.Context, _ *job.Step, in pauseInput) error {
	if in.Until.IsZero() || !in.Until.After(c.now()) {
		return job.Skip("replication goes on")
	}
	for {
		it, err := c.opts.Store.Item(ctx, in.Item)
		if err != nil {
			return err
		}
		g, _, err := c.gatewayOf(ctx, it)
		if err != nil {
			return err
		}
		st, err := g.Status(ctx, it.ID)
		switch {
		case err != nil:
			return err
		case st.Code == gateway.CodePaused && st.Quiet:
			return nil
		case !sleep(ctx, 200*time.Millisecond):
			return errors.Join(context.Cause(ctx), errors.New(st.Problem))
		}
	}
}
