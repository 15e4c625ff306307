package httpdtest

import (
	"context"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/httpd"
)

var (
	_ httpd.Plans = (*World)(nil)
	_ httpd.Runs  = (*World)(nil)
)

// Planning is what a world knows of recovery plans: one plan, and the answers of
// CheckPlan, ApplyPlan and GetRun.
type Planning struct {
	Plan    api.Plan
	Texts   []api.PlanText
	Checked api.PlanCheck
	Changes api.PlanChanges
	Run     api.PlanRun
	// Envelope is the report of any run, Key the public key of reports.
	Envelope, Key []byte
}

func (w *World) plan(name string) (api.Plan, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := w.Plan; p.Name != "" && (p.Name == name || p.ID == name) {
		return p, nil
	}
	return api.Plan{}, notFound("plan", name)
}

// ListPlans implements httpd.Plans.
func (w *World) ListPlans(context.Context) (api.PlanList, error) {
	err := w.call("ListPlans")
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.Plan.Name == "" {
		return api.PlanList{Unplanned: []string{"web1"}}, err
	}
	return api.PlanList{Plans: []api.Plan{w.Plan}}, err
}

// GetPlan implements httpd.Plans.
func (w *World) GetPlan(_ context.Context, plan string) (api.Plan, error) {
	if err := w.call("GetPlan", plan); err != nil {
		return api.Plan{}, err
	}
	return w.plan(plan)
}

// ApplyPlan implements httpd.Plans.
func (w *World) ApplyPlan(_ context.Context, by string, apply api.ApplyPlan) (api.PlanChanges, error) {
	name := "ApplyPlan"
	if apply.DryRun {
		name = "DiffPlan"
	}
	revision := any("any")
	if apply.IfRevision != nil {
		revision = *apply.IfRevision
	}
	err := w.call(name, by, revision, len(apply.Text))
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.Changes
	out.Applied = !apply.DryRun
	return out, err
}

// RemovePlan implements httpd.Plans.
func (w *World) RemovePlan(_ context.Context, plan string) error {
	if err := w.call("RemovePlan", plan); err != nil {
		return err
	}
	_, err := w.plan(plan)
	return err
}

// PlanTexts implements httpd.Plans.
func (w *World) PlanTexts(_ context.Context, plan string) (api.PlanTexts, error) {
	if err := w.call("PlanTexts", plan); err != nil {
		return api.PlanTexts{}, err
	}
	_, err := w.plan(plan)
	return api.PlanTexts{Texts: w.Texts}, err
}

// RunPlan implements httpd.Runs.
func (w *World) RunPlan(_ context.Context, plan, by string, run api.RunPlan) (api.Job, error) {
	if err := w.call("RunPlan", plan, by, run); err != nil {
		return api.Job{}, err
	}
	if _, err := w.plan(plan); err != nil {
		return api.Job{}, err
	}
	return w.startJob("plan_run", ""), nil
}

// CheckPlan implements httpd.Runs.
func (w *World) CheckPlan(_ context.Context, plan string, run api.RunPlan) (api.PlanCheck, error) {
	if err := w.call("CheckPlan", plan, run); err != nil {
		return api.PlanCheck{}, err
	}
	_, err := w.plan(plan)
	return w.Checked, err
}

// GetRun implements httpd.Runs.
func (w *World) GetRun(_ context.Context, job string) (api.PlanRun, error) {
	err := w.call("GetRun", job)
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.Run, err
}

// DrillPlan implements httpd.Runs.
func (w *World) DrillPlan(_ context.Context, plan, by string) (api.Job, error) {
	if err := w.call("DrillPlan", plan, by); err != nil {
		return api.Job{}, err
	}
	if _, err := w.plan(plan); err != nil {
		return api.Job{}, err
	}
	return w.startJob("plan_drill", ""), nil
}

// Report implements httpd.Reports.
func (w *World) Report(_ context.Context, job string) ([]byte, error) {
	return w.Envelope, w.call("Report", job)
}

// ReportKey implements httpd.Reports.
func (w *World) ReportKey(context.Context) ([]byte, error) { return w.Key, w.call("ReportKey") }

// AnswerJob implements httpd.Runs.
func (w *World) AnswerJob(_ context.Context, job, by string, answer api.Answer) (api.Job, error) {
	if err := w.call("AnswerJob", job, by, answer); err != nil {
		return api.Job{}, err
	}
	return pick(w, &w.Jobs, "job", job, func(j api.Job) bool { return j.ID == job })
}
