package httpdtest

import (
	"context"

	"github.com/holdfast-dr/holdfast/api"
)

// itemJob notes a call on an item and starts a job.
func (w *World) itemJob(call, kind, item string, with any) (api.Job, error) {
	if err := w.call(call, item, with); err != nil {
		return api.Job{}, err
	}
	found, err := pick(w, &w.Items, "item", item, func(i api.Item) bool { return i.ID == item || i.Name == item })
	if err != nil {
		return api.Job{}, err
	}
	return w.startJob(kind, found.Name), nil
}

// TestFailover implements httpd.Tests.
func (w *World) TestFailover(_ context.Context, item string, v api.TestFailover) (api.Job, error) {
	return w.itemJob("TestFailover", "test_failover", item, v)
}

// CleanUpTest implements httpd.Tests.
func (w *World) CleanUpTest(_ context.Context, item string, v api.CleanUpTest) (api.Job, error) {
	return w.itemJob("CleanUpTest", "clean_up", item, v)
}

// Failback implements httpd.Failovers.
func (w *World) Failback(_ context.Context, item string, v api.Failback) (api.Job, error) {
	return w.itemJob("Failback", "failback", item, v)
}

// ChangePoint implements httpd.Failovers.
func (w *World) ChangePoint(_ context.Context, item string, v api.ChangePoint) (api.Job, error) {
	return w.itemJob("ChangePoint", "change_point", item, v)
}

// Commit implements httpd.Failovers.
func (w *World) Commit(_ context.Context, item string, v api.Commit) (api.Job, error) {
	return w.itemJob("Commit", "commit", item, v)
}

// UndoFailover implements httpd.Failovers.
func (w *World) UndoFailover(_ context.Context, item string, v api.UndoFailover) (api.Job, error) {
	return w.itemJob("UndoFailover", "undo_failover", item, v)
}

// Reprotect implements httpd.Replications.
func (w *World) Reprotect(_ context.Context, item string, v api.Reprotect) (api.Job, error) {
	return w.itemJob("Reprotect", "reprotect", item, v)
}

// Resync implements httpd.Replications.
func (w *World) Resync(_ context.Context, item string, v api.Resync) (api.Job, error) {
	return w.itemJob("Resync", "resync", item, v)
}

// Pause implements httpd.Replications.
func (w *World) Pause(_ context.Context, item string, v api.Pause) (api.Job, error) {
	return w.itemJob("Pause", "pause", item, v)
}

// Resume implements httpd.Replications.
func (w *World) Resume(_ context.Context, item string, v api.Resume) (api.Job, error) {
	return w.itemJob("Resume", "pause", item, v)
}

// CompareItem implements httpd.Comparisons.
func (w *World) CompareItem(_ context.Context, item string, v api.CompareItem) (api.Job, error) {
	return w.itemJob("CompareItem", "compare", item, v)
}

// PinPoint implements httpd.Points.
func (w *World) PinPoint(_ context.Context, item string, v api.PinPoint) (api.Point, error) {
	if _, err := w.itemJob("PinPoint", "point", item, v); err != nil {
		return api.Point{}, err
	}
	return api.Point{ID: v.Point, Name: v.Point, Pinned: !v.Unpin}, nil
}

// ChangePolicy implements httpd.Policies.
func (w *World) ChangePolicy(ctx context.Context, item string, v api.ChangePolicy) (api.Item, error) {
	if _, err := w.itemJob("ChangePolicy", "policy", item, v); err != nil {
		return api.Item{}, err
	}
	it, err := w.GetItem(ctx, item)
	it.Policy = v.Policy
	return it, err
}

// HoldItem implements httpd.Policies.
func (w *World) HoldItem(ctx context.Context, item, by string, v api.HoldItem) (api.Item, error) {
	if _, err := w.itemJob("HoldItem", "hold", item, v); err != nil {
		return api.Item{}, err
	}
	it, err := w.GetItem(ctx, item)
	if !v.Release {
		it.Stream.Hold = &api.Hold{Reason: v.Reason, By: by}
	}
	return it, err
}

// MakePoint implements httpd.Points.
func (w *World) MakePoint(_ context.Context, item string, v api.MakePoint) (api.Job, error) {
	return w.itemJob("MakePoint", "point", item, v)
}

// CancelItem implements httpd.Replications.
func (w *World) CancelItem(_ context.Context, item string, v api.CancelItem) (api.Job, error) {
	return w.itemJob("CancelItem", "failover", item, v)
}

// CheckOperation implements httpd.Failovers.
func (w *World) CheckOperation(_ context.Context, item string, check api.CheckOperation) (api.OperationCheck, error) {
	if err := w.call("CheckOperation", item, check); err != nil {
		return api.OperationCheck{}, err
	}
	_, err := pick(w, &w.Items, "item", item, func(i api.Item) bool { return i.ID == item || i.Name == item })
	out := w.Check
	out.Operation = check.Operation
	return out, err
}

// Screenshot implements httpd.Tests.
func (w *World) Screenshot(_ context.Context, job string) ([]byte, error) {
	if err := w.call("Screenshot", job); err != nil {
		return nil, err
	}
	_, err := pick(w, &w.Jobs, "job", job, func(j api.Job) bool { return j.ID == job })
	return []byte("\x89PNG\r\n\x1a\n"), err
}
