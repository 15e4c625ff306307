package planner

import (
	"context"
	"strings"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/plan"
	"github.com/holdfast-dr/holdfast/internal/report"
)

// Evidence is what reports need besides the runs.
type Evidence struct {
	// Sign signs a report; nil: this server makes none.
	Sign func(context.Context, report.Report) ([]byte, error)
	// Picture returns the picture of a console that was kept with a job; an error if
	// there is none.
	Picture  func(jobID string) ([]byte, error)
	Server   string // its name, for people
	Versions map[string]string
	// PublicKey is the key that signs, as PEM.
	PublicKey []byte
}

// ReportKey returns the public key that reports are signed with, as PEM.
func (p *Planner) ReportKey(context.Context) ([]byte, error) { return p.opts.Evidence.PublicKey, nil }

// Report returns the signed report of a run that has ended.
func (p *Planner) Report(ctx context.Context, id string) ([]byte, error) {
	run, err := p.GetRun(ctx, id)
	if err != nil {
		return nil, err
	}
	if p.opts.Evidence.Sign == nil || run.EndedAt.IsZero() {
		return nil, &holdfast.Error{Kind: holdfast.KindNotAllowed, Op: "report run", Thing: id, Cause: "it has not ended", Hint: "Wait for its end: holdfast job watch " + id}
	}
	j, err := p.opts.Engine.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	var in runInput
	if err := decodeInput(j, &in); err != nil {
		return nil, err
	}
	pl, err := p.parse(in.Text)
	if err != nil {
		return nil, err
	}
	r := report.Report{MadeAt: p.now().UTC(), Server: p.opts.Evidence.Server, Versions: p.opts.Evidence.Versions, Run: run,
		Plan:       report.Plan{Name: in.Name, Revision: in.Revision, Digest: plan.Digest(in.Text), Text: in.Text},
		Objectives: objectives(pl, run), Evidence: []report.Evidence{}}
	for _, m := range run.Machines {
		if m.Job != "" {
			r.Evidence = append(r.Evidence, p.evidence(ctx, m))
		}
	}
	if r.CleanUp, err = p.cleanedBy(ctx, j); err != nil {
		return nil, err
	}
	return p.opts.Evidence.Sign(ctx, r)
}

// evidence is what was seen of a machine.
func (p *Planner) evidence(ctx context.Context, m api.PlanMachine) report.Evidence {
	e := report.Evidence{Item: m.Item, Job: m.Job, Tasks: []report.Task{}}
	j, err := p.opts.Items.GetJob(ctx, m.Job)
	if err != nil {
		return e // the run itself says what became of the machine
	}
	for _, t := range j.Tasks {
		shown := report.Task{Title: t.Title, State: t.State, Log: t.Log}
		if !t.StartedAt.IsZero() && !t.FinishedAt.IsZero() {
			shown.Seconds = t.FinishedAt.Sub(t.StartedAt).Seconds()
		}
		if t.Error != nil {
			shown.Error = t.Error.Message
		}
		e.Tasks = append(e.Tasks, shown)
	}
	if p.opts.Evidence.Picture != nil {
		if png, err := p.opts.Evidence.Picture(m.Job); err == nil {
			e.Shot = report.NewPicture(png)
		}
	}
	return e
}

// cleanedBy returns the clean-up of a drill's test, nil if there is none.
func (p *Planner) cleanedBy(ctx context.Context, j job.Job) (*api.PlanRun, error) {
	drill, ok := strings.CutSuffix(j.Parent, "/"+string(plan.Test))
	if !ok || !strings.HasPrefix(drill, "drill/") {
		return nil, nil
	}
	jobs, err := p.opts.Engine.List(ctx, job.Filter{Parent: drill + "/" + string(plan.CleanUp), Limit: 1})
	if err != nil || len(jobs) == 0 {
		return nil, err
	}
	run, err := p.GetRun(ctx, jobs[0].ID)
	return &run, err
}

// objectives measures a run against what its plan wants.
func objectives(pl *plan.Plan, run api.PlanRun) report.Objectives {
	var o report.Objectives
	for _, m := range run.Machines {
		if m.RPOSeconds != nil && (o.RPO == nil || *m.RPOSeconds > *o.RPO) {
			o.RPO = m.RPOSeconds
		}
	}
	for _, s := range run.Steps {
		if s.What == plan.StepMachines && !s.FinishedAt.IsZero() && s.State == string(job.Succeeded) {
			took := s.FinishedAt.Sub(run.RequestedAt).Seconds()
			o.RTO = &took
		}
	}
	met := run.Outcome == "succeeded"
	goal := func(d plan.Duration, is *float64) *float64 {
		if d == 0 {
			return nil
		}
		s := time.Duration(d).Seconds()
		met = met && is != nil && *is <= s
		return &s
	}
	o.RPOGoal, o.RTOGoal = goal(pl.Objectives.RPO, o.RPO), goal(pl.Objectives.RTO, o.RTO)
	if o.RPOGoal != nil || o.RTOGoal != nil {
		o.Met = &met
	}
	return o
}
