package planner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/plan"
)

// standing returns the members of a run, and what became of each so far, by the
// item's id.
func standing(j job.Job, pl *plan.Plan) ([]member, map[string]outcome, error) {
	members, err := decided(j, pl)
	if err != nil {
		return nil, nil, err
	}
	out := map[string]outcome{}
	for _, t := range j.Tasks {
		if !strings.HasPrefix(t.Name, "stage-") || len(t.Saved) == 0 {
			continue
		}
		var st stageState
		if err := json.Unmarshal(t.Saved, &st); err != nil {
			return nil, nil, err
		}
		for _, o := range st.Done {
			out[o.Item] = o
		}
	}
	return members, out, nil
}

// decodeInput decodes what a job was submitted with.
func decodeInput(j job.Job, v any) error {
	if err := json.Unmarshal(j.Input, v); err != nil {
		return fmt.Errorf("decode input of job %s: %w", j.ID, err)
	}
	return nil
}

// GetRun returns a run in full, by its job.
func (p *Planner) GetRun(ctx context.Context, id string) (api.PlanRun, error) {
	j, err := p.opts.Engine.Get(ctx, id)
	if errors.Is(err, job.ErrNotFound) || err == nil && j.Kind != kindRun {
		return api.PlanRun{}, &holdfast.Error{Kind: holdfast.KindNotFound, Op: "find run", Thing: id, Cause: "there is no run of a plan of this id", Hint: "See holdfast plan show"}
	}
	if err != nil {
		return api.PlanRun{}, err
	}
	var in runInput
	if err := decodeInput(j, &in); err != nil {
		return api.PlanRun{}, err
	}
	pl, err := p.parse(in.Text)
	if err != nil {
		return api.PlanRun{}, err
	}
	shown, err := p.GetRunJob(ctx, j)
	if err != nil {
		return api.PlanRun{}, err
	}
	out := api.PlanRun{Plan: in.Name, PlanID: in.Plan, RequestedBy: in.RequestedBy, RequestedAt: in.RequestedAt, Note: in.Request.Note,
		State: string(j.State), Waiting: j.Waiting, Warnings: shown.Warnings, Error: shown.Error, Machines: []api.PlanMachine{}, Steps: []api.PlanStep{},
		PlanRunSummary: api.PlanRunSummary{Job: j.ID, Kind: string(in.Kind), Direction: string(in.Direction), Revision: in.Revision,
			StartedAt: j.StartedAt, EndedAt: j.EndedAt, Drill: in.Drill}}
	members, outcomes, err := standing(j, pl)
	if err != nil {
		return out, err
	}
	if j.State.Ended() {
		out.Outcome = verdict(j, members, outcomes)
	}
	running := p.running(ctx, in.Plan, j)
	for _, m := range members {
		out.Machines = append(out.Machines, apiMember(m, outcomes[m.ID], running[m.ID]))
	}
	for i, s := range pl.Steps(in.Kind, in.Direction) {
		if i < len(j.Tasks) {
			out.Steps = append(out.Steps, apiStep(s, j.Tasks[i]))
		}
	}
	return out, nil
}

// GetRunJob shows a run's job.
func (p *Planner) GetRunJob(ctx context.Context, j job.Job) (api.Job, error) {
	return p.opts.Items.GetJob(ctx, j.ID)
}

// running are the jobs that the run's present step has started, by item.
func (p *Planner) running(ctx context.Context, planID string, j job.Job) map[string]string {
	out := map[string]string{}
	if j.State.Ended() {
		return out
	}
	jobs, err := p.opts.Engine.List(ctx, job.Filter{Unfinished: true})
	if err != nil {
		return out
	}
	for _, c := range jobs {
		if parts := strings.Split(c.Parent, "/"); len(parts) >= 4 && parts[0] == planID && parts[1] == j.ID {
			out[parts[3]] = c.ID
		}
	}
	return out
}

func apiMember(m member, o outcome, running string) api.PlanMachine {
	out := api.PlanMachine{Item: m.Item, ID: m.ID, Group: m.Group, State: stateOf(m, o), Reason: orElse(o.Reason, m.Reason), NextStep: orElse(o.NextStep, m.NextStep),
		Point: m.Point, Site: orElse(o.Site, m.Site), Machine: orElse(o.Machine, m.Name), Job: o.Job, RPOSeconds: o.RPO, RTOSeconds: o.RTO}
	if o.Point != nil {
		out.Point = o.Point
	}
	if running != "" && out.State == "waiting" {
		out.State, out.Job = "running", running
	}
	return out
}

func apiStep(s plan.Step, t job.TaskRecord) api.PlanStep {
	out := api.PlanStep{Name: s.ID, Title: s.Title, What: s.What, Group: s.Group, State: string(t.State), Attempts: t.Attempts, StartedAt: t.StartedAt, FinishedAt: t.EndedAt}
	if t.Failure != nil {
		out.Error = t.Failure.Message
	}
	var st struct {
		Output  string    `json:"output"`
		Failed  string    `json:"failed"`
		Skipped bool      `json:"skipped"`
		Done    []outcome `json:"done"`
		asking
	}
	if s.Action != nil {
		out.What = s.Action.What()
	}
	if s.What == plan.StepResolve || len(t.Saved) == 0 || json.Unmarshal(t.Saved, &st) != nil {
		return out
	}
	out.Output, out.Error = st.Output, orElse(st.Failed, out.Error)
	failed := slices.ContainsFunc(st.Done, func(o outcome) bool { return o.State == outFailed })
	switch done := t.State == job.Succeeded; {
	case done && (st.Failed != "" || failed) && !st.Skipped:
		out.State = string(job.Failed) // the run went on
	case done && st.Skipped:
		out.State = string(job.Skipped)
	}
	if q := st.Question; q != nil && t.State == job.Suspended {
		out.Waiting, out.Answers = q.Text, q.Answers
	}
	if a := st.Answered; a != nil {
		out.Answer, out.AnsweredBy, out.Note = a.Answer, a.By, a.Note
	}
	return out
}

// verdict says how a run that has ended went.
func verdict(j job.Job, members []member, outcomes map[string]outcome) string {
	switch {
	case j.State == job.Cancelled:
		return "cancelled"
	case j.State == job.Failed:
		return "failed"
	}
	return grade(j, members, outcomes)
}

// grade says how the steps of a run went.
func grade(j job.Job, members []member, outcomes map[string]outcome) string {
	good, bad := 0, 0
	for _, m := range members {
		switch stateOf(m, outcomes[m.ID]) {
		case outSucceeded:
			good++
		case outSkipped:
		default:
			bad++
		}
	}
	if good == 0 {
		return "failed"
	}
	for _, t := range j.Tasks {
		var st struct {
			Failed  string `json:"failed"`
			Skipped bool   `json:"skipped"`
		}
		if t.Name != "resolve" && len(t.Saved) > 0 && json.Unmarshal(t.Saved, &st) == nil && st.Failed != "" {
			bad++
		}
	}
	if bad > 0 {
		return "partial"
	}
	return "succeeded"
}
