package orchestrator

import (
	"context"
	"slices"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/job"
)

// publish tells who follows what happened.
func (c *Orchestrator) publish(e api.Event) {
	if c.opts.Publish == nil {
		return
	}
	e.Time = c.now()
	c.opts.Publish(e)
}

// publishHealth tells which findings of an item have come and gone.
func (c *Orchestrator) publishHealth(it holdfast.Item, old, now holdfast.Status) {
	has := func(list []holdfast.Finding, code holdfast.Code) bool {
		return slices.ContainsFunc(list, func(f holdfast.Finding) bool { return f.Code == code })
	}
	for _, f := range now.Findings {
		if !has(old.Findings, f.Code) {
			c.publish(api.Event{Type: api.EventHealthChanged, Item: it.ID, Severity: string(f.Severity), Message: it.Name + ": " + f.Summary})
		}
	}
	for _, f := range old.Findings {
		if !has(now.Findings, f.Code) {
			c.publish(api.Event{Type: api.EventHealthChanged, Item: it.ID, Message: it.Name + ": no longer: " + f.Summary})
		}
	}
}

// forwardEvents tells of jobs.
func (c *Orchestrator) forwardEvents(ctx context.Context) error {
	for e := range c.engine.Subscribe(ctx) {
		if e.Type != job.EventJob {
			continue
		}
		out := api.Event{Type: api.EventJobChanged, Job: e.Job.ID, Message: e.Job.Title + ": " + string(e.Job.State)}
		if e.Job.State == job.Failed {
			out.Severity = string(holdfast.SeverityCritical)
		}
		c.publish(out)
	}
	return nil
}
