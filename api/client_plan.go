package api

import (
	"context"
	"net/http"
	"net/url"
)

// Plans returns all recovery plans without their texts, sorted by name.
func (c *Client) Plans(ctx context.Context) (out PlanList, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/plans", nil, &out)
}

// Plan returns one plan, with its text.
func (c *Client) Plan(ctx context.Context, plan string) (out Plan, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/plans/"+url.PathEscape(plan), nil, &out)
}

// PlanTexts returns the revisions of a plan's text, newest first.
func (c *Client) PlanTexts(ctx context.Context, plan string) (out PlanTexts, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/plans/"+url.PathEscape(plan)+"/texts", nil, &out)
}

// ApplyPlan gives the plan that the text names that text.
func (c *Client) ApplyPlan(ctx context.Context, apply ApplyPlan) (out PlanChanges, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/plans", apply, &out)
}

// DiffPlan says how a text differs from the plan that it names.
func (c *Client) DiffPlan(ctx context.Context, apply ApplyPlan) (out PlanChanges, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/plan-diff", apply, &out)
}

// RemovePlan removes a plan that does not run.
func (c *Client) RemovePlan(ctx context.Context, plan string) error {
	return c.call(ctx, http.MethodDelete, "/v1/plans/"+url.PathEscape(plan), nil, nil)
}

// RunPlan starts a run.
func (c *Client) RunPlan(ctx context.Context, plan string, run RunPlan) (out Job, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/plans/"+url.PathEscape(plan)+"/run", run, &out)
}

// CheckPlan says what a run would do.
func (c *Client) CheckPlan(ctx context.Context, plan string, run RunPlan) (out PlanCheck, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/plans/"+url.PathEscape(plan)+"/check", run, &out)
}

// PlanRun returns a run in full, by its job.
func (c *Client) PlanRun(ctx context.Context, job string) (out PlanRun, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/plan-runs/"+url.PathEscape(job), nil, &out)
}

// DrillPlan starts a drill of a plan.
func (c *Client) DrillPlan(ctx context.Context, plan string) (out Job, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/plans/"+url.PathEscape(plan)+"/drill", nil, &out)
}

// Report returns the signed report of a run, as it is kept and passed on.
func (c *Client) Report(ctx context.Context, job string) (out []byte, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/plan-runs/"+url.PathEscape(job)+"/report", nil, &out)
}

// ReportKey returns the public key that reports are signed with, as PEM.
func (c *Client) ReportKey(ctx context.Context) (out []byte, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/report-key", nil, &out)
}

// AnswerJob answers what a suspended job asks.
func (c *Client) AnswerJob(ctx context.Context, job string, answer Answer) (out Job, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/jobs/"+url.PathEscape(job)+"/answer", answer, &out)
}
