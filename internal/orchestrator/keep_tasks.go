package orchestrator

import (
	"context"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/job"
)

// The tasks that keep what a machine wrote, before an operation takes it away.

// changeKeep keeps what the machine wrote that the change of point replaces.
func (c *Orchestrator) changeKeep(ctx context.Context, r *failoverRun) error {
	if !r.in.Keep {
		return job.Skip("it was not asked for")
	}
	if err := r.begin(ctx); err != nil {
		return err
	}
	return c.keepAbandoned(ctx, r.Step, r.item, r.in.To)
}

// begin records that the machine that runs is being replaced.
func (r *failoverRun) begin(ctx context.Context) error {
	r.st.Begun = true
	return r.SaveJobState(ctx, r.st)
}

// failoverKeep keeps what the machine has on its disks that the failover will
// bring to another state.
func (c *Orchestrator) failoverKeep(ctx context.Context, r *failoverRun) error {
	switch {
	case !r.st.Reuse:
		return job.Skip("no machine there is used again")
	case r.in.Discard:
		return job.Skip("it was asked to discard that")
	}
	return hintDiscard(ctx, c.keepLeftBehind(ctx, r.Step, r.item, r.in.To), r.item, "failback")
}

// commitKeep keeps, after a failback, what the machine that is about to be
// removed wrote after the item had left it.
func (c *Orchestrator) commitKeep(ctx context.Context, step *job.Step, it holdfast.Item) error {
	if it.CopyAt(it.TargetSite()).Handle == "" {
		return job.Skip("the machine at the other site stays")
	}
	return c.keepUnlessDiscarded(ctx, step, it, "commit")
}

// keepUnlessDiscarded keeps what the machine at the target site has and the
// vault has not, unless that was said to be of no use.
func (c *Orchestrator) keepUnlessDiscarded(ctx context.Context, step *job.Step, it holdfast.Item, command string) error {
	var in itemInput
	if err := decodeInput(step, &in); err != nil {
		return err
	}
	if in.Discard {
		return job.Skip("it was asked to discard that")
	}
	err := c.keepLeftBehind(ctx, step, it, it.TargetSite())
	return hintDiscard(ctx, err, it, command)
}

// hintDiscard adds to an error how to go on without keeping anything.
func hintDiscard(ctx context.Context, err error, it holdfast.Item, command string) error {
	if err == nil || job.IsSkip(err) || ctx.Err() != nil {
		return err
	}
	return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "keep what was written beside item", Thing: it.Name, Err: err,
		Hint: "Mend that and ask again; or give it up with holdfast " + command + " --discard-writes"}
}

// reprotectKeep keeps what the machine that was left behind wrote after the
// failover, before its disks are brought up to date.
func (c *Orchestrator) reprotectKeep(ctx context.Context, step *job.Step, it holdfast.Item) error {
	return c.keepUnlessDiscarded(ctx, step, it, "reprotect")
}

// undoKeep keeps, if that was asked for, what the recovered machine wrote.
func (c *Orchestrator) undoKeep(ctx context.Context, step *job.Step, it holdfast.Item, st *undoState) error {
	var in itemInput
	if err := decodeInput(step, &in); err != nil {
		return err
	}
	if !in.Keep {
		return job.Skip("it was not asked for")
	}
	return c.keepAbandoned(ctx, step, it, st.To)
}
