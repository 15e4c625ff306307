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

// kindDrill is the job of a drill: a test of a plan, for a time, and its clean-up,
// without anybody there.
const kindDrill = "plan_drill"

// drillInput is what a drill was started for.
type drillInput struct {
	Title  string        `json:"title"`
	Plan   string        `json:"plan"` // id
	Name   string        `json:"name"`
	Option string        `json:"option,omitempty"`
	Keep   time.Duration `json:"keep,omitempty"`
	By     string        `json:"by,omitempty"`
}

// drillState is what its tasks remember.
type drillState struct {
	Run   string    `json:"run,omitempty"` // job of the test
	Until time.Time `json:"until,omitzero"`
}

// Run starts the drills that are due, until ctx ends.
func (p *Planner) Run(ctx context.Context) error {
	tick := time.NewTicker(drillLook)
	defer tick.Stop()
	for {
		if err := p.startDue(ctx); err != nil && ctx.Err() == nil {
			p.log.Error("drills are not looked after", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// drillLook is how often it is looked whether a drill is due.
const drillLook = 30 * time.Second

func (p *Planner) startDue(ctx context.Context) error {
	plans, err := p.opts.Store.Plans(ctx)
	if err != nil {
		return err
	}
	var wrong []error
	for _, rec := range plans {
		pl, err := p.parse(rec.Text)
		if err != nil || pl.Drill == nil || p.now().Before(nextDrill(rec, pl.Drill)) {
			continue
		}
		_, err = p.submitDrill(ctx, rec, pl.Drill, "schedule")
		if !errors.Is(err, job.ErrBusy) {
			wrong = append(wrong, err)
		}
	}
	return errors.Join(wrong...)
}

// nextDrill returns when a drill is due: so long after the last, or after the plan
// was applied.
func nextDrill(rec holdfast.RecoveryPlan, d *plan.Drill) time.Time {
	last := rec.AppliedAt
	for _, r := range rec.Runs {
		if r.Drill && r.Kind == string(plan.Test) {
			last = r.StartedAt
		}
	}
	return last.Add(time.Duration(d.Every))
}

// DrillPlan starts a drill of a plan now. By is who asks.
func (p *Planner) DrillPlan(ctx context.Context, idOrName, by string) (api.Job, error) {
	rec, err := p.opts.Store.Plan(ctx, idOrName)
	if err != nil {
		return api.Job{}, err
	}
	pl, err := p.parse(rec.Text)
	if err != nil {
		return api.Job{}, invalidText(err)
	}
	d := pl.Drill
	if d == nil {
		d = &plan.Drill{}
	}
	j, err := p.submitDrill(ctx, rec, d, by)
	if errors.Is(err, job.ErrBusy) {
		return api.Job{}, &holdfast.Error{Kind: holdfast.KindNotAllowed, Op: "drill plan", Thing: rec.Name, Cause: "a drill of it runs already", Err: err, Hint: "Wait for it to end, or cancel it"}
	}
	if err != nil {
		return api.Job{}, err
	}
	return p.opts.Items.GetJob(ctx, j.ID)
}

func (p *Planner) submitDrill(ctx context.Context, rec holdfast.RecoveryPlan, d *plan.Drill, by string) (job.Job, error) {
	return p.opts.Engine.Submit(ctx, kindDrill, "plan-drill/"+rec.ID, drillInput{Title: "Drill of plan " + rec.Name, Plan: rec.ID, Name: rec.Name,
		Option: d.Option, Keep: time.Duration(d.Keep), By: by})
}

func (p *Planner) drillKind() job.Kind {
	return job.Kind{
		Name: kindDrill, Title: "Drill of a recovery plan", Waits: true,
		Tasks: []job.Task{
			{Name: "test", Title: "Run the plan as a test", Run: p.drillTest},
			{Name: "keep", Title: "Leave the test machines for a time", Run: p.drillKeep},
		},
		Finish: &job.Task{Name: "finish", Title: "Remove the test machines", Run: p.drillFinish},
	}
}

// drillTest runs the plan as a test and waits for its end.
func (p *Planner) drillTest(ctx context.Context, step *job.Step) error {
	var in drillInput
	if err := step.Input(&in); err != nil {
		return err
	}
	id, err := p.drillRun(ctx, step, in, api.RunPlan{Kind: string(plan.Test), Option: in.Option, Note: "drill"})
	if err != nil {
		return err
	}
	if err := step.SaveJobState(ctx, drillState{Run: id}); err != nil {
		return err
	}
	return p.awaitRun(ctx, id)
}

// drillRun starts a run of the drill, or finds the one that it had started.
func (p *Planner) drillRun(ctx context.Context, step *job.Step, in drillInput, req api.RunPlan) (string, error) {
	key := "drill/" + step.JobID() + "/" + req.Kind
	jobs, err := p.opts.Engine.List(ctx, job.Filter{Parent: key, Limit: 1})
	if err != nil {
		return "", err
	}
	if len(jobs) > 0 {
		return jobs[0].ID, nil
	}
	run, _, err := p.prepare(ctx, in.Plan, req)
	if err != nil {
		return "", err
	}
	run.RequestedBy, run.Drill = in.By, true
	j, err := p.submit(job.WithParent(ctx, key), run)
	return j.ID, err
}

// awaitRun waits for a run's end; if the drill is cancelled, so is the run.
func (p *Planner) awaitRun(ctx context.Context, id string) error {
	if err := p.until(ctx, id); err == nil || !errors.Is(context.Cause(ctx), job.ErrCancelled) {
		return err
	}
	rest, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelWait)
	defer cancel()
	if _, err := p.opts.Engine.Cancel(rest, id, "the drill was cancelled"); err != nil && !errors.Is(err, job.ErrEnded) {
		return errors.Join(context.Cause(ctx), err)
	}
	return errors.Join(context.Cause(ctx), p.until(rest, id))
}

// until waits for a job's end.
func (p *Planner) until(ctx context.Context, id string) error {
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	events, err := p.opts.Engine.Watch(watching, id)
	if err != nil {
		return err
	}
	for e := range events {
		if e.Job.State.Ended() {
			return nil
		}
	}
	return context.Cause(ctx)
}

func (p *Planner) drillKeep(ctx context.Context, step *job.Step) error {
	var in drillInput
	var st drillState
	if err := errors.Join(step.Input(&in), step.JobState(&st)); err != nil {
		return err
	}
	if in.Keep <= 0 {
		return job.Skip("the plan says nothing of that")
	}
	if st.Until.IsZero() {
		st.Until = p.now().Add(in.Keep)
		if err := step.SaveJobState(ctx, st); err != nil {
			return err
		}
	}
	t := time.NewTimer(st.Until.Sub(p.now()))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// drillFinish removes the test machines whatever became of the drill, and says how
// it went.
func (p *Planner) drillFinish(ctx context.Context, step *job.Step) error {
	var in drillInput
	var st drillState
	if err := errors.Join(step.Input(&in), step.JobState(&st)); err != nil {
		return err
	}
	items, err := p.opts.Items.ListItems(ctx)
	if err != nil {
		return err
	}
	open := slices.ContainsFunc(items, func(it api.Item) bool { return len(p.testsOf(ctx, in.Plan, it)) > 0 })
	id := ""
	if open {
		if id, err = p.drillRun(ctx, step, in, api.RunPlan{Kind: string(plan.CleanUp), Note: "drill"}); err == nil {
			err = p.until(ctx, id)
		}
		if err != nil {
			return fmt.Errorf("test machines of plan %s are left: %w", in.Name, err)
		}
	}
	if st.Run == "" || step.Ending().State != job.Succeeded {
		return nil
	}
	for _, of := range []string{st.Run, id} {
		if of == "" {
			continue
		}
		run, err := p.GetRun(ctx, of)
		if err != nil {
			return err
		}
		if run.Outcome != "succeeded" {
			return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "drill plan", Thing: in.Name, Cause: "its " + run.Kind + " is " + run.Outcome,
				Hint: "See holdfast plan result " + of}
		}
	}
	return nil
}
