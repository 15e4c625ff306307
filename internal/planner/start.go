package planner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/plan"
)

// runInput is what a run was started for: with the text as it was then, so that
// a plan that is changed meanwhile changes no run.
type runInput struct {
	Title       string         `json:"title"`
	Plan        string         `json:"plan"` // id
	Name        string         `json:"name"`
	Revision    int64          `json:"revision"`
	Text        string         `json:"text"`
	Kind        plan.Kind      `json:"kind"`
	Direction   plan.Direction `json:"direction"`
	Request     api.RunPlan    `json:"request"`
	RequestedBy string         `json:"requested_by,omitempty"`
	RequestedAt time.Time      `json:"requested_at"`
	Drill       bool           `json:"drill,omitempty"`
}

// RunPlan starts the job of a run. By is who asks.
func (p *Planner) RunPlan(ctx context.Context, idOrName, by string, req api.RunPlan) (api.Job, error) {
	in, _, err := p.prepare(ctx, idOrName, req)
	if err != nil {
		return api.Job{}, err
	}
	in.RequestedBy = by
	return p.submit(ctx, in)
}

func (p *Planner) submit(ctx context.Context, in runInput) (api.Job, error) {
	j, err := p.opts.Engine.Submit(ctx, kindRun, subject(in.Plan, in.Kind), in)
	var busy *job.BusyError
	if errors.As(err, &busy) {
		return api.Job{}, &holdfast.Error{Kind: holdfast.KindNotAllowed, Op: "run plan", Thing: in.Name, Cause: "it runs already, as job " + busy.JobID, Err: err,
			Hint: "Wait for that run to end, answer what it asks, or cancel it"}
	}
	if err != nil {
		return api.Job{}, fmt.Errorf("run plan %s: %w", in.Name, err)
	}
	return p.opts.Items.GetJob(ctx, j.ID)
}

// prepare checks a request for a run and completes it.
func (p *Planner) prepare(ctx context.Context, idOrName string, req api.RunPlan) (runInput, *plan.Plan, error) {
	rec, err := p.opts.Store.Plan(ctx, idOrName)
	if err != nil {
		return runInput{}, nil, err
	}
	refuse := func(kind holdfast.Kind, cause, hint string) (runInput, *plan.Plan, error) {
		return runInput{}, nil, &holdfast.Error{Kind: kind, Op: "run plan", Thing: rec.Name, Cause: cause, Hint: hint}
	}
	if req.IfRevision != 0 && req.IfRevision != rec.Revision {
		return refuse(holdfast.KindConflict, fmt.Sprintf("it has revision %d now, and the run was asked for of revision %d", rec.Revision, req.IfRevision),
			"Look at the plan again, and ask anew if you still want that")
	}
	pl, err := p.parse(rec.Text)
	if err != nil {
		return runInput{}, nil, invalidText(err)
	}
	in := runInput{Plan: rec.ID, Name: rec.Name, Revision: rec.Revision, Text: rec.Text, Kind: plan.Kind(req.Kind), Direction: plan.Direction(req.Direction),
		Request: req, RequestedAt: p.now()}
	if !slices.Contains(plan.Kinds(), in.Kind) {
		return refuse(holdfast.KindInvalid, fmt.Sprintf("%q is no kind of run", req.Kind), fmt.Sprintf("Want one of %v", plan.Kinds()))
	}
	if cause := badOption(in); cause != "" {
		return refuse(holdfast.KindInvalid, cause, "Choose another option, or leave it out for the latest")
	}
	items, err := p.opts.Items.ListItems(ctx)
	if err != nil {
		return runInput{}, nil, err
	}
	if in.Direction == "" {
		if in.Direction, err = direction(rec.Name, in.Kind, pl, items); err != nil {
			return runInput{}, nil, err
		}
	}
	if in.Direction == plan.ToPrimary && in.Kind.Moves() && !slices.Contains([]string{"", api.OptionLatest, api.OptionLatestApp}, req.Option) {
		return refuse(holdfast.KindInvalid, "on the way home the recovery point is latest or latest_app", "Choose one of these, or leave the option out")
	}
	in.Title = runTitle(in)
	return in, pl, nil
}

func runTitle(in runInput) string {
	title := map[plan.Kind]string{plan.Test: "Test", plan.Planned: "Planned failover of", plan.Unplanned: "Unplanned failover of",
		plan.Reprotect: "Reprotect", plan.Commit: "Commit", plan.CleanUp: "Clean up tests of"}[in.Kind]
	if in.Kind.Moves() && in.Direction == plan.ToPrimary {
		title = map[plan.Kind]string{plan.Planned: "Failback of", plan.Unplanned: "Unplanned failback of"}[in.Kind]
	}
	return title + " plan " + in.Name
}

// badOption says what is wrong with the choice of recovery points; empty: nothing.
func badOption(in runInput) string {
	req := in.Request
	switch {
	case (req.Option == api.OptionTime) == req.Time.IsZero():
		return "option time and a time belong together"
	case in.Kind == plan.Planned && req.Option != "" && req.Option != api.OptionLatest:
		return "a planned run loses nothing, so it goes with no other recovery points than the latest"
	case req.Option != "" && !in.Kind.Moves() && in.Kind != plan.Test:
		return "a run of kind " + string(in.Kind) + " chooses no recovery points"
	}
	return ""
}

// direction finds which way the plan's machines go, if they agree.
func direction(name string, k plan.Kind, pl *plan.Plan, items []api.Item) (plan.Direction, error) {
	var at [2][]string // the primary's, the recovery's
	for _, m := range pl.Machines() {
		it, ok := find(items, m.Item)
		if !ok {
			continue
		}
		if (k == plan.Reprotect || k == plan.Commit) && !slices.Contains(it.Allowed, operation(k, plan.ToRecovery)) {
			continue // nothing is to be done with it, whatever the direction
		}
		if it.ActiveSite == it.RecoverySite {
			at[1] = append(at[1], it.Name)
		} else {
			at[0] = append(at[0], it.Name)
		}
	}
	after := k == plan.Reprotect || k == plan.Commit // they follow a move that is over
	switch {
	case len(at[0]) > 0 && len(at[1]) > 0 && k != plan.CleanUp:
		return "", &holdfast.Error{Kind: holdfast.KindInvalid, Op: "run plan", Thing: name,
			Cause: fmt.Sprintf("its machines are on both sides: %s at the primary, %s at the recovery site", list(at[0]), list(at[1])),
			Hint:  "Give the direction: " + string(plan.ToRecovery) + " or " + string(plan.ToPrimary)}
	case (len(at[1]) > 0) == after:
		return plan.ToRecovery, nil
	default:
		return plan.ToPrimary, nil
	}
}

// operation returns the item's operation that a run does, in the server's words.
func operation(k plan.Kind, d plan.Direction) string {
	switch {
	case k == plan.Test:
		return "test_failover"
	case k == plan.Reprotect:
		return "reprotect"
	case k == plan.Commit:
		return "commit"
	case k == plan.CleanUp:
		return "clean_up"
	case k == plan.Unplanned:
		return "failover"
	case d == plan.ToPrimary:
		return "failback"
	default:
		return "planned_failover"
	}
}
