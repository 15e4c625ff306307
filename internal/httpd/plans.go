package httpd

import (
	"context"
	"strconv"
	"strings"

	"github.com/holdfast-dr/holdfast/api"
)

// PlanPath names a plan in a path. The framework wants it exported where it is
// embedded.
type PlanPath struct {
	Plan string `path:"plan" maxLength:"128" pattern:"^[A-Za-z0-9][A-Za-z0-9._-]*$" doc:"A plan's id or name"`
}

// planAnswer is a plan with its revision as an ETag.
type planAnswer struct {
	ETag string `header:"ETag" doc:"The plan's revision"`
	Body api.Plan
}

func planRoutes(b *builder) {
	svc := b.server.opts.Service
	handle(b, "list-plans", func(ctx context.Context, _ *none) (*answer[api.PlanList], error) {
		return reply(svc.Plans.ListPlans(ctx))
	})
	handle(b, "get-plan", func(ctx context.Context, in *PlanPath) (*planAnswer, error) {
		p, err := svc.Plans.GetPlan(ctx, in.Plan)
		if err != nil {
			return nil, err
		}
		return &planAnswer{ETag: etag(p.Revision), Body: p}, nil
	})
	handle(b, "list-plan-texts", func(ctx context.Context, in *PlanPath) (*answer[api.PlanTexts], error) {
		return reply(svc.Plans.PlanTexts(ctx, in.Plan))
	})
	handle(b, "remove-plan", func(ctx context.Context, in *PlanPath) (*none, error) {
		return new(none), svc.Plans.RemovePlan(ctx, in.Plan)
	})
	type applyInput struct {
		IfMatch string `header:"If-Match" doc:"An ETag: refuse if the plan has changed since"`
		Body    api.ApplyPlan
	}
	handle(b, "apply-plan", func(ctx context.Context, in *applyInput) (*answer[api.PlanChanges], error) {
		if in.IfMatch != "" {
			revision, err := revisionOf(in.IfMatch)
			if err != nil {
				return nil, err
			}
			in.Body.IfRevision = &revision
		}
		return reply(svc.Plans.ApplyPlan(ctx, requestOf(ctx).token.Name, in.Body))
	})
	type diffInput struct{ Body api.ApplyPlan }
	handle(b, "diff-plan", func(ctx context.Context, in *diffInput) (*answer[api.PlanChanges], error) {
		in.Body.DryRun = true
		return reply(svc.Plans.ApplyPlan(ctx, "", in.Body))
	})
	type runInput struct {
		PlanPath
		Body api.RunPlan
	}
	handle(b, "run-plan", func(ctx context.Context, in *runInput) (*accepted, error) {
		return accept(svc.Runs.RunPlan(ctx, in.Plan, requestOf(ctx).token.Name, in.Body))
	})
	handle(b, "drill-plan", func(ctx context.Context, in *PlanPath) (*accepted, error) {
		return accept(svc.Runs.DrillPlan(ctx, in.Plan, requestOf(ctx).token.Name))
	})
	handle(b, "get-report", func(ctx context.Context, in *jobPath) (*rawAnswer, error) {
		envelope, err := svc.Reports.Report(ctx, in.Job)
		return raw("application/json", envelope, err)
	})
	handle(b, "get-report-key", func(ctx context.Context, _ *none) (*rawAnswer, error) {
		key, err := svc.Reports.ReportKey(ctx)
		return raw("application/x-pem-file", key, err)
	})
	handle(b, "check-plan", func(ctx context.Context, in *runInput) (*answer[api.PlanCheck], error) {
		return reply(svc.Runs.CheckPlan(ctx, in.Plan, in.Body))
	})
	handle(b, "get-plan-run", func(ctx context.Context, in *jobPath) (*answer[api.PlanRun], error) {
		return reply(svc.Runs.GetRun(ctx, in.Job))
	})
	type answerInput struct {
		Job  string `path:"job" maxLength:"128" pattern:"^[A-Za-z0-9][A-Za-z0-9._-]*$" doc:"A job's id"`
		Body api.Answer
	}
	handle(b, "answer-job", func(ctx context.Context, in *answerInput) (*accepted, error) {
		return accept(svc.Runs.AnswerJob(ctx, in.Job, requestOf(ctx).token.Name, in.Body))
	})
}

// raw answers with bytes that a browser is to do nothing with.
func raw(contentType string, body []byte, err error) (*rawAnswer, error) {
	if err != nil {
		return nil, err
	}
	return &rawAnswer{ContentType: contentType, Body: body, Policy: "default-src 'none'"}, nil
}

// revisionOf reads a plan's ETag.
func revisionOf(tag string) (int64, error) {
	n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(tag, `"v`), `"`), 10, 64)
	if err != nil || etag(n) != tag {
		return 0, &api.Problem{Code: api.CodeInvalid, Detail: "the header If-Match is no ETag of a plan", Hint: `Give one as get-plan answers it, like "v3"`}
	}
	return n, nil
}
