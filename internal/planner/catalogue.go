package planner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/plan"
)

// ListPlans returns all plans without their texts, and the items in none.
func (p *Planner) ListPlans(ctx context.Context) (api.PlanList, error) {
	out := api.PlanList{Plans: []api.Plan{}, Unplanned: []string{}}
	plans, err := p.opts.Store.Plans(ctx)
	if err != nil {
		return out, err
	}
	items, err := p.opts.Items.ListItems(ctx)
	if err != nil {
		return out, err
	}
	covered := map[string]bool{}
	for _, rec := range plans {
		shown, pl, err := p.show(ctx, rec, items)
		if err != nil {
			return out, err
		}
		shown.Text = ""
		out.Plans = append(out.Plans, shown)
		for _, m := range pl.Machines() {
			covered[m.Item] = true
		}
	}
	for _, it := range items {
		if !covered[it.Name] && !covered[it.ID] {
			out.Unplanned = append(out.Unplanned, it.Name)
		}
	}
	return out, nil
}

// GetPlan returns one plan.
func (p *Planner) GetPlan(ctx context.Context, idOrName string) (api.Plan, error) {
	rec, err := p.opts.Store.Plan(ctx, idOrName)
	if err != nil {
		return api.Plan{}, err
	}
	items, err := p.opts.Items.ListItems(ctx)
	if err != nil {
		return api.Plan{}, err
	}
	shown, _, err := p.show(ctx, rec, items)
	return shown, err
}

func (p *Planner) show(ctx context.Context, rec holdfast.RecoveryPlan, items []api.Item) (api.Plan, *plan.Plan, error) {
	pl, err := p.parse(rec.Text)
	if err != nil {
		return api.Plan{}, nil, &holdfast.Error{Kind: holdfast.KindInternal, Op: "read plan", Thing: rec.Name, Err: err,
			Hint: "It was applied by another version of Holdfast; apply its text again"}
	}
	out := api.Plan{ID: rec.ID, Name: rec.Name, Description: pl.Description, Text: rec.Text, Revision: rec.Revision, Digest: plan.Digest(rec.Text),
		AppliedAt: rec.AppliedAt, AppliedBy: rec.AppliedBy, Machines: len(pl.Machines()), Groups: []api.PlanGroup{}, Runs: []api.PlanRunSummary{}, Findings: []api.Finding{}}
	stage := map[string]int{}
	for n, groups := range pl.Stages() {
		for _, g := range groups {
			stage[g.Name] = n + 1
		}
	}
	for _, g := range pl.Groups {
		shown := api.PlanGroup{Name: g.Name, Stage: stage[g.Name], Machines: []string{}, Actions: []string{}}
		for _, m := range g.Machines {
			shown.Machines = append(shown.Machines, m.Item)
		}
		for _, a := range g.Before {
			shown.Actions = append(shown.Actions, "before: "+a.What()+" "+a.Name)
		}
		for _, a := range g.After {
			shown.Actions = append(shown.Actions, "after: "+a.What()+" "+a.Name)
		}
		out.Groups = append(out.Groups, shown)
	}
	for _, r := range rec.Runs {
		out.Runs = append(out.Runs, summary(r))
	}
	for _, lost := range missing(pl, items) {
		out.Findings = append(out.Findings, api.Finding{Code: string(holdfast.CodePlanItemGone), Severity: string(holdfast.SeverityCritical), Summary: "plan " + rec.Name + " names item " + lost + ", which there is not",
			Advice: "Protect that machine again, or take it out of the plan"})
	}
	if pl.Drill != nil {
		out.Drill = &api.PlanDrill{EverySeconds: time.Duration(pl.Drill.Every).Seconds(), NextAt: nextDrill(rec, pl.Drill)}
	}
	for _, r := range rec.Runs {
		if r.Drill && r.Kind == string(plan.Test) && r.Outcome != "succeeded" {
			out.Findings = append(out.Findings, api.Finding{Code: string(holdfast.CodeDrillFailed), Severity: string(holdfast.SeverityWarning), Summary: "the last drill of plan " + rec.Name + " is " + r.Outcome, Since: r.EndedAt,
				Advice: "See holdfast plan result " + r.Job + ", put right what failed, and repeat it: holdfast plan drill " + rec.Name})
		}
	}
	jobs, err := p.opts.Engine.List(ctx, job.Filter{Subject: subject(rec.ID, plan.Planned), Unfinished: true, Limit: 1})
	if err == nil && len(jobs) == 0 {
		jobs, err = p.opts.Engine.List(ctx, job.Filter{Subject: subject(rec.ID, plan.Test), Unfinished: true, Limit: 1})
	}
	if len(jobs) > 0 {
		out.CurrentJob = jobs[0].ID
	}
	return out, pl, err
}

func summary(r holdfast.PlanRun) api.PlanRunSummary {
	return api.PlanRunSummary{Job: r.Job, Kind: r.Kind, Direction: r.Direction, Revision: r.Revision, StartedAt: r.StartedAt, EndedAt: r.EndedAt, Outcome: r.Outcome, Drill: r.Drill}
}

// missing are the items that a plan names and there are not.
func missing(pl *plan.Plan, items []api.Item) []string {
	var out []string
	for _, m := range pl.Machines() {
		if _, ok := find(items, m.Item); !ok {
			out = append(out, m.Item)
		}
	}
	return out
}

// find returns the item of that id or name.
func find(items []api.Item, idOrName string) (api.Item, bool) {
	for _, by := range []func(api.Item) string{func(i api.Item) string { return i.ID }, func(i api.Item) string { return i.Name }} {
		if i := slices.IndexFunc(items, func(i api.Item) bool { return by(i) == idOrName }); i >= 0 {
			return items[i], true
		}
	}
	return api.Item{}, false
}

// ApplyPlan gives the plan that the text names that text, as a whole or not at
// all, and says how it differs from the one before. By is who asks.
func (p *Planner) ApplyPlan(ctx context.Context, by string, req api.ApplyPlan) (api.PlanChanges, error) {
	pl, err := p.parse(req.Text)
	if err != nil {
		return api.PlanChanges{}, invalidText(err)
	}
	out := api.PlanChanges{Plan: pl.Name, Changes: []string{}, Warnings: []string{}}
	if err := p.warnOf(ctx, pl, &out); err != nil {
		return out, err
	}
	for {
		again, err := p.apply(ctx, by, req, pl, &out)
		if !again || ctx.Err() != nil {
			return out, err
		}
	}
}

func invalidText(err error) error {
	e := &holdfast.Error{Kind: holdfast.KindInvalid, Op: "read plan", Err: err, Hint: "See docs/plans.md for what a plan may have"}
	var wrong *plan.Error
	if errors.As(err, &wrong) && len(wrong.Problems) > 1 {
		e.Err, e.Cause = nil, fmt.Sprintf("%d things are wrong with it", len(wrong.Problems))
		for _, x := range wrong.Problems {
			e.Cause += "\n  " + x.String()
		}
	}
	return e
}

// warnOf says what the plan names and there is not, and who else brings up the
// same machines.
func (p *Planner) warnOf(ctx context.Context, pl *plan.Plan, out *api.PlanChanges) error {
	items, err := p.opts.Items.ListItems(ctx)
	if err != nil {
		return err
	}
	for _, lost := range missing(pl, items) {
		out.Warnings = append(out.Warnings, "there is no item "+lost)
	}
	return nil
}

// apply tries once; again says that somebody else was quicker and nothing was
// said against that.
func (p *Planner) apply(ctx context.Context, by string, req api.ApplyPlan, pl *plan.Plan, out *api.PlanChanges) (again bool, err error) {
	rec, err := p.opts.Store.Plan(ctx, pl.Name)
	found := err == nil && rec.Name == pl.Name
	if err != nil && !errors.Is(err, &holdfast.Error{Kind: holdfast.KindNotFound}) {
		return false, err
	}
	if !found {
		rec = holdfast.RecoveryPlan{}
	}
	if want := req.IfRevision; want != nil && *want != rec.Revision {
		return false, &holdfast.Error{Kind: holdfast.KindConflict, Op: "apply plan", Thing: pl.Name,
			Cause: fmt.Sprintf("it has revision %d now, and the text was made from revision %d", rec.Revision, *want),
			Hint:  "See what the other changed with holdfast plan diff, take it into your text, and apply that"}
	}
	var old *plan.Plan
	if found {
		if old, err = p.parse(rec.Text); err != nil {
			old = nil // of another version of Holdfast: all of it is new
		}
	}
	out.Created, out.From, out.Revision, out.Changes = !found, rec.Revision, rec.Revision, []string{}
	for _, c := range plan.Diff(old, pl) {
		out.Changes = append(out.Changes, c.String())
	}
	if req.DryRun || found && rec.Text == req.Text {
		return false, nil
	}
	now := p.now()
	rec.Name, rec.Text, rec.AppliedAt, rec.AppliedBy, rec.UpdatedAt = pl.Name, req.Text, now, by, now
	rec.Revision++
	if found {
		rec, err = p.opts.Store.UpdatePlan(ctx, rec)
	} else {
		rec.ID, rec.CreatedAt = newID("plan"), now
		rec, err = p.opts.Store.CreatePlan(ctx, rec)
	}
	if errors.Is(err, &holdfast.Error{Kind: holdfast.KindConflict}) && req.IfRevision == nil {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	out.Applied, out.Revision = true, rec.Revision
	p.opts.Publish(api.Event{Type: api.EventPlanChanged, Message: fmt.Sprintf("plan %s has revision %d", rec.Name, rec.Revision)})
	return false, nil
}

// RemovePlan removes a plan that does not run. Its runs stay among the jobs.
func (p *Planner) RemovePlan(ctx context.Context, idOrName string) error {
	rec, err := p.opts.Store.Plan(ctx, idOrName)
	if err != nil {
		return err
	}
	for _, k := range []plan.Kind{plan.Planned, plan.Test} {
		jobs, err := p.opts.Engine.List(ctx, job.Filter{Subject: subject(rec.ID, k), Unfinished: true, Limit: 1})
		if err != nil {
			return err
		}
		if len(jobs) > 0 {
			return &holdfast.Error{Kind: holdfast.KindNotAllowed, Op: "remove plan", Thing: rec.Name, Cause: "it runs, as job " + jobs[0].ID,
				Hint: "Wait for the run to end, or cancel it"}
		}
	}
	return p.opts.Store.DeletePlan(ctx, rec.ID)
}

// PlanTexts returns the revisions of a plan's text.
func (p *Planner) PlanTexts(ctx context.Context, idOrName string) (api.PlanTexts, error) {
	out := api.PlanTexts{Texts: []api.PlanText{}}
	rec, err := p.opts.Store.Plan(ctx, idOrName)
	if err != nil {
		return out, err
	}
	texts, err := p.opts.Store.PlanTexts(ctx, rec.ID)
	for _, t := range texts {
		out.Texts = append(out.Texts, api.PlanText{Revision: t.Revision, AppliedAt: t.AppliedAt, Text: t.Text})
	}
	return out, err
}

// subject is what a run works on: one real run and one test of a plan at a time,
// so that no test keeps a failover waiting.
func subject(planID string, k plan.Kind) string {
	if k == plan.Test || k == plan.CleanUp {
		return "plan-test/" + planID
	}
	return "plan/" + planID
}

// list writes names for a sentence.
func list(names []string) string {
	const most = 8
	if len(names) > most {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
	}
	return strings.Join(names, ", ")
}
