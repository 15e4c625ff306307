package planner

import (
	"context"
	"errors"
	"strings"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/plan"
)

// finish records how the run went, after it has started again what it had shut
// down and did not bring to the other site.
func (p *Planner) finish(ctx context.Context, step *job.Step) error {
	var in runInput
	if err := step.Input(&in); err != nil {
		return err
	}
	pl, err := p.parse(in.Text)
	if err != nil {
		return err
	}
	r := &run{Step: step, p: p, in: in, plan: pl, at: plan.Step{ID: "power-on", Title: "Start again what was shut down"}}
	if err := r.startAgain(ctx); err != nil {
		return err
	}
	j := step.Job()
	members, outcomes, err := standing(j, pl)
	if err != nil {
		return err
	}
	rec := holdfast.PlanRun{Job: j.ID, Kind: string(in.Kind), Direction: string(in.Direction), Revision: in.Revision, StartedAt: j.StartedAt, EndedAt: p.now(), Drill: in.Drill}
	switch step.Ending().State {
	case job.Cancelled:
		rec.Outcome = "cancelled"
	case job.Failed:
		rec.Outcome = "failed"
	default:
		rec.Outcome = grade(j, members, outcomes)
	}
	if err := p.record(ctx, in.Plan, rec); err != nil {
		return err
	}
	p.opts.Publish(api.Event{Type: api.EventPlanChanged, Job: j.ID, Message: in.Title + ": " + rec.Outcome})
	if rec.Outcome == "failed" && step.Ending().State == job.Succeeded {
		return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: in.Title, Cause: "no machine was brought through", Hint: "See the machines of the run with holdfast plan result " + j.ID}
	}
	return nil
}

// record notes a run in its plan, which may be gone.
func (p *Planner) record(ctx context.Context, planID string, rec holdfast.PlanRun) error {
	for {
		pl, err := p.opts.Store.Plan(ctx, planID)
		if errors.Is(err, &holdfast.Error{Kind: holdfast.KindNotFound}) {
			return nil
		}
		if err != nil {
			return err
		}
		_, err = p.opts.Store.UpdatePlan(ctx, pl.WithRun(rec))
		if !errors.Is(err, &holdfast.Error{Kind: holdfast.KindConflict}) || ctx.Err() != nil {
			return err
		}
	}
}

// startAgain starts the machines that the run has shut down and not brought to
// the other site, so that a planned run that was given up leaves nothing off.
func (r *run) startAgain(ctx context.Context) error {
	if r.in.Kind != plan.Planned || r.Ending().State == job.Succeeded && len(r.Job().Warnings) == 0 {
		return nil
	}
	members, outcomes, err := standing(r.Job(), r.plan)
	if err != nil {
		return err
	}
	for _, m := range members {
		off, err := r.shutDown(ctx, m)
		if err != nil {
			return err
		}
		if !off || outcomes[m.ID].State == outSucceeded {
			continue
		}
		o, err := r.child(ctx, m, r.key(r.at.ID, m.ID, 0), func(ctx context.Context) (api.Job, error) { return r.p.opts.Switches.PowerOnMachine(ctx, m.ID) })
		switch {
		case err != nil:
			return err
		case o.State != outSucceeded:
			r.Warn(m.Item + " was shut down and is not started again: " + o.Reason)
		default:
			r.Log(m.Item + " was shut down and is started again")
		}
	}
	return nil
}

// shutDown says whether the run has begun to shut a machine down.
func (r *run) shutDown(ctx context.Context, m member) (bool, error) {
	for _, t := range r.Job().Tasks {
		if !strings.HasPrefix(t.Name, "shutdown-") {
			continue
		}
		var st stageState
		if err := saved(r.Job(), t.Name, &st); err != nil {
			return false, err
		}
		for attempt := range st.Attempt + 1 {
			id, err := r.started(ctx, r.key(t.Name, m.ID, attempt))
			if err != nil || id != "" {
				return id != "", err
			}
		}
	}
	return false, nil
}
