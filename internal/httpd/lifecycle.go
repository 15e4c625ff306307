package httpd

import (
	"context"

	"github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
)

// itemRequest asks for something to be done with an item.
type itemRequest[B any] struct {
	ItemPath
	IfMatch string `header:"If-Match" doc:"An ETag: refuse if the item has changed since"`
	Body    B
}

// itemJob is a route that starts a job on an item. version finds the body's
// if_version; nil: it has none.
func itemJob[B any](b *builder, id string, start func(context.Context, string, B) (api.Job, error), version func(*B) *int64) {
	items := b.server.opts.Service.Items
	handle(b, id, func(ctx context.Context, in *itemRequest[B]) (*accepted, error) {
		var want int64
		at := &want
		if version != nil {
			at = version(&in.Body)
		}
		if err := unchanged(ctx, items, in.Item, in.IfMatch, at); err != nil {
			return nil, err
		}
		return accept(start(ctx, in.Item, in.Body))
	})
}

func lifecycleRoutes(b *builder) {
	svc := b.server.opts.Service
	itemJob(b, "test-failover", func(ctx context.Context, item string, t api.TestFailover) (api.Job, error) {
		err := checkFailover(api.Failover{Option: t.Option, Point: t.Point, Timeline: t.Timeline, Time: t.Time})
		if err != nil {
			return api.Job{}, err
		}
		return svc.Tests.TestFailover(ctx, item, t)
	}, func(t *api.TestFailover) *int64 { return &t.IfVersion })
	itemJob(b, "clean-up-test", svc.Tests.CleanUpTest, nil)
	itemJob(b, "failback-item", svc.Failovers.Failback, func(f *api.Failback) *int64 { return &f.IfVersion })
	itemJob(b, "change-point", func(ctx context.Context, item string, p api.ChangePoint) (api.Job, error) {
		err := checkFailover(api.Failover{Option: p.Option, Point: p.Point, Timeline: p.Timeline, Time: p.Time})
		if err != nil {
			return api.Job{}, err
		}
		return svc.Failovers.ChangePoint(ctx, item, p)
	}, func(p *api.ChangePoint) *int64 { return &p.IfVersion })
	itemJob(b, "commit-item", svc.Failovers.Commit, func(c *api.Commit) *int64 { return &c.IfVersion })
	itemJob(b, "undo-failover", svc.Failovers.UndoFailover, func(u *api.UndoFailover) *int64 { return &u.IfVersion })
	itemJob(b, "reprotect-item", svc.Replications.Reprotect, func(r *api.Reprotect) *int64 { return &r.IfVersion })
	itemJob(b, "resync-item", svc.Replications.Resync, nil)
	itemJob(b, "make-point", svc.Points.MakePoint, nil)
	itemJob(b, "pause-item", svc.Replications.Pause, nil)
	itemJob(b, "resume-item", svc.Replications.Resume, nil)
	itemJob(b, "compare-item", svc.Comparisons.CompareItem, nil)
	itemJob(b, "cancel-item", svc.Replications.CancelItem, nil)
	type pinInput struct {
		ItemPath
		Body api.PinPoint
	}
	handle(b, "pin-point", func(ctx context.Context, in *pinInput) (*answer[api.Point], error) {
		p, err := svc.Points.PinPoint(ctx, in.Item, in.Body)
		return reply(p, err)
	})
	type policyInput struct {
		ItemPath
		Body api.ChangePolicy
	}
	handle(b, "change-policy", func(ctx context.Context, in *policyInput) (*answer[api.Item], error) {
		return reply(svc.Policies.ChangePolicy(ctx, in.Item, in.Body))
	})
	type holdInput struct {
		ItemPath
		Body api.HoldItem
	}
	handle(b, "hold-item", func(ctx context.Context, in *holdInput) (*answer[api.Item], error) {
		return reply(svc.Policies.HoldItem(ctx, in.Item, requestOf(ctx).token.Name, in.Body))
	})
	type checkInput struct {
		ItemPath
		Body api.CheckOperation
	}
	handle(b, "check-operation", func(ctx context.Context, in *checkInput) (*answer[api.OperationCheck], error) {
		c := in.Body
		planned := c.Operation == string(holdfast.OpPlannedFailover)
		err := checkFailover(api.Failover{Option: orElse(c.Option, api.OptionLatest), Point: c.Point, Timeline: c.Timeline, Time: c.Time, Planned: planned})
		if err != nil {
			return nil, err
		}
		return reply(svc.Failovers.CheckOperation(ctx, in.Item, in.Body))
	})
	handle(b, "get-screenshot", func(ctx context.Context, in *jobPath) (*rawAnswer, error) {
		png, err := svc.Tests.Screenshot(ctx, in.Job)
		if err != nil {
			return nil, err
		}
		return &rawAnswer{ContentType: "image/png", Body: png, Policy: "default-src 'none'"}, nil
	})
}
