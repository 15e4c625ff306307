package orchestrator

import (
	"context"
	"errors"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/job"
)

// An item and the job on it are two records, and the server may die between
// them. So a job names itself in its item with its first task and clears that
// when it ends, and at a start the items are found that wait for a job which
// will never come.

// settleItems puts such items right, or starts their job.
func (c *Orchestrator) settleItems(ctx context.Context) error {
	items, err := c.opts.Store.Items(ctx)
	if err != nil {
		return err
	}
	for _, it := range items {
		if err := c.settleItem(ctx, it); err != nil && ctx.Err() == nil {
			c.log.Error("item is not put right", "item", it.Name, "state", it.State, "job", it.CurrentJob, "error", err)
		}
	}
	return nil
}

func (c *Orchestrator) settleItem(ctx context.Context, it holdfast.Item) error {
	if err := c.settleTests(ctx, it); err != nil {
		return err
	}
	unfinished, err := c.engine.List(ctx, job.Filter{Subject: it.ID, Unfinished: true, Limit: 1})
	if err != nil || len(unfinished) > 0 {
		return err
	}
	if it.CurrentJob != "" {
		if it, err = c.updateItem(ctx, it.ID, func(i holdfast.Item) (holdfast.Item, error) {
			i.CurrentJob = ""
			return i, nil
		}); err != nil {
			return err
		}
	}
	switch it.State {
	case holdfast.StateEnabling:
		_, err = c.engine.Submit(ctx, kindProtect, it.ID, itemInput{Item: it.ID})
	case holdfast.StateDisabling:
		_, err = c.engine.Submit(ctx, kindDisable, it.ID, disableInput{Item: it.ID})
	case holdfast.StateFailingOver:
		err = c.giveUpFailover(ctx, it)
	case holdfast.StateCommitting:
		_, err = c.engine.Submit(ctx, string(holdfast.OpCommit), it.ID, itemInput{Item: it.ID})
	case holdfast.StateReprotecting:
		_, err = c.engine.Submit(ctx, string(holdfast.OpReprotect), it.ID, itemInput{Item: it.ID})
	case holdfast.StateUndoingFailover:
		_, err = c.engine.Submit(ctx, string(holdfast.OpUndoFailover), it.ID, itemInput{Item: it.ID})
	case holdfast.StateChangingPoint:
		_, err = c.updateItem(ctx, it.ID, func(i holdfast.Item) (holdfast.Item, error) {
			if i.State != holdfast.StateChangingPoint || i.CurrentJob != "" {
				return i, nil
			}
			return i.After(holdfast.OutcomeFailed)
		})
	}
	return err
}

// settleTests puts test failovers right whose job was never recorded.
func (c *Orchestrator) settleTests(ctx context.Context, it holdfast.Item) error {
	for _, t := range it.Tests {
		if t.State != holdfast.TestStarting {
			continue
		}
		unfinished, err := c.engine.List(ctx, job.Filter{Subject: testSubject(t.Handle), Unfinished: true, Limit: 1})
		if err != nil {
			return err
		}
		if len(unfinished) > 0 {
			continue
		}
		if err := c.changeTest(ctx, it.ID, t.Handle, func(t *holdfast.Test) { t.State = holdfast.TestFailed }); err != nil {
			return err
		}
	}
	return nil
}

// giveUpFailover leads an item out of a failover whose job was never recorded:
// back to being protected, unless its source is fenced off already.
func (c *Orchestrator) giveUpFailover(ctx context.Context, it holdfast.Item) error {
	s, err := c.stream(ctx, it.Stream)
	if err != nil {
		return err
	}
	if err := refresh(ctx, s); err != nil {
		return err
	}
	outcome := holdfast.OutcomeCancelled
	for _, tl := range s.Timelines() {
		if tl.ID == it.Timeline && tl.Ended {
			outcome = holdfast.OutcomeFailed
		}
	}
	_, err = c.updateItem(ctx, it.ID, func(i holdfast.Item) (holdfast.Item, error) {
		if i.State != holdfast.StateFailingOver || i.CurrentJob != "" {
			return i, nil
		}
		return i.After(outcome)
	})
	if errors.Is(err, &holdfast.Error{Kind: holdfast.KindNotFound}) {
		return nil
	}
	return err
}
