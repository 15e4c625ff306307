package orchestrator

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// defaultJobs is how many jobs are listed if nobody says.
const defaultJobs = 100

// ListJobs returns jobs, newest first.
func (c *Orchestrator) ListJobs(ctx context.Context, q api.JobQuery) ([]api.Job, error) {
	f := job.Filter{Limit: q.Limit, Unfinished: q.State == "active"}
	if q.State != "active" {
		f.State = job.State(q.State)
	}
	if f.Limit <= 0 {
		f.Limit = defaultJobs
	}
	if q.Item != "" {
		it, err := c.opts.Store.Item(ctx, q.Item)
		if err != nil {
			return nil, err
		}
		f.Subject = it.ID
	}
	jobs, err := c.engine.List(ctx, f)
	if err != nil {
		return nil, err
	}
	out := make([]api.Job, len(jobs))
	for i, j := range jobs {
		out[i] = c.apiJob(ctx, j)
	}
	return out, nil
}

// GetJob returns one job.
func (c *Orchestrator) GetJob(ctx context.Context, id string) (api.Job, error) {
	j, err := c.engine.Get(ctx, id)
	if err != nil {
		return api.Job{}, jobError("find job", id, err)
	}
	return c.apiJob(ctx, j), nil
}

// CancelJob asks a job to stop.
func (c *Orchestrator) CancelJob(ctx context.Context, id string) (api.Job, error) {
	j, err := c.engine.Cancel(ctx, id, "asked for by a user")
	if err != nil {
		return api.Job{}, jobError("cancel job", id, err)
	}
	return c.apiJob(ctx, j), nil
}

// WatchJob calls each with the job as it stands and after changes, until it has
// ended.
func (c *Orchestrator) WatchJob(ctx context.Context, id string, each func(api.Job) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, err := c.engine.Watch(ctx, id)
	if err != nil {
		return jobError("watch job", id, err)
	}
	for e := range events {
		j := c.apiJob(ctx, e.Job)
		if err := each(j); err != nil {
			return err
		}
		if j.Ended() {
			return nil
		}
	}
	return ctx.Err()
}

// jobError says, in the domain's words, what an error of the engine means.
func jobError(op, id string, err error) error {
	e := &holdfast.Error{Kind: holdfast.KindInternal, Op: op, Thing: id, Err: err}
	switch {
	case errors.Is(err, job.ErrNotFound):
		e.Kind, e.Hint = holdfast.KindNotFound, "See holdfast job list"
	case errors.Is(err, job.ErrEnded):
		e.Kind, e.Hint = holdfast.KindNotAllowed, "It has ended: there is nothing to cancel"
	case errors.Is(err, job.ErrTooLate):
		e.Kind, e.Hint = holdfast.KindNotAllowed, "Let it end; what it did can be undone afterwards"
	}
	return e
}

// apiJob shows a job.
func (c *Orchestrator) apiJob(ctx context.Context, j job.Job) api.Job {
	out := api.Job{
		ID: j.ID, Kind: j.Kind, Title: j.Title, State: string(j.State), Tasks: []api.Task{}, Warnings: append([]string{}, j.Warnings...),
		Waiting: j.Waiting, Cancellable: j.Cancellable(), CreatedAt: j.CreatedAt, StartedAt: j.StartedAt, FinishedAt: j.EndedAt, Error: apiFailure(j.Failure),
	}
	var in struct {
		Item  string `json:"item"`
		Title string `json:"title"` // of a job on something else
	}
	if err := json.Unmarshal(j.Input, &in); err == nil && in.Title != "" {
		out.Title = in.Title
	} else if err == nil && in.Item != "" {
		out.Item = in.Item
		if it, err := c.opts.Store.Item(ctx, in.Item); err == nil {
			out.ItemName = it.Name
			out.Title = j.Title + ": " + it.Name
		}
	}
	for _, t := range j.Tasks {
		out.Tasks = append(out.Tasks, apiTask(t))
	}
	if t := j.CurrentTask(); t != nil && !j.State.Ended() {
		out.Progress = apiProgress(t.Progress)
	}
	out.Result = apiResult(j.Result)
	return out
}

func apiTask(t job.TaskRecord) api.Task {
	out := api.Task{
		Name: t.Name, Title: t.Title, State: string(t.State), Attempt: t.Attempts, Progress: apiProgress(t.Progress),
		Error: apiFailure(t.Failure), StartedAt: t.StartedAt, FinishedAt: t.EndedAt,
	}
	for _, l := range t.Log {
		out.Log = append(out.Log, l.Text)
	}
	return out
}

func apiProgress(p *job.Progress) *api.Progress {
	if p == nil {
		return nil
	}
	out := &api.Progress{Done: p.Done, Total: p.Total, Unit: p.Unit, Rate: p.Rate}
	if p.ETA >= 0 {
		s := p.ETA.Seconds()
		out.ETASeconds = &s
	}
	return out
}

func apiFailure(f *job.Failure) *api.JobError {
	if f == nil {
		return nil
	}
	return &api.JobError{Task: f.Task, Code: f.Code, Message: f.Message, Cause: f.Cause, Hint: f.Hint}
}

func apiResult(raw json.RawMessage) *api.JobResult {
	var r jobResult
	if len(raw) == 0 || json.Unmarshal(raw, &r) != nil {
		return nil
	}
	out := &api.JobResult{
		Item: r.Item, RPOSeconds: r.RPO, RTOSeconds: r.RTO, MachineID: r.MachineID, MachineName: r.MachineName, Site: r.Site, Verify: r.Verify, Proved: r.Proved, MovedBytes: r.Moved, Test: r.Test,
	}
	if r.Point != nil {
		p := apiPoint(*r.Point)
		out.Point = &p
	}
	return out
}

// apiVerify shows what a verification found.
func apiVerify(rep *vault.Report, now time.Time) api.VerifyReport {
	out := api.VerifyReport{FinishedAt: now, Segments: int64(rep.Segments), Bytes: rep.Bytes, Damaged: []api.DamagedObject{}}
	for _, d := range rep.Damaged {
		o := api.DamagedObject{Object: d.Object, Detail: d.Detail, Timeline: uint32(d.Timeline), First: d.First.String(), Last: d.Last.String()}
		for _, p := range d.Points {
			o.Points = append(o.Points, p.ID)
		}
		out.Damaged = append(out.Damaged, o)
	}
	return out
}
