package planner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/plan"
	"golang.org/x/sync/errgroup"
)

// stageState is what a step with machines remembers.
type stageState struct {
	Attempt int       `json:"attempt,omitempty"` // of those that failed
	Done    []outcome `json:"done,omitempty"`
	asking
}

// outcome is what became of a member in a step.
type outcome struct {
	Item      string     `json:"item"` // id
	Job       string     `json:"job,omitempty"`
	State     string     `json:"state"` // succeeded, failed or skipped
	Reason    string     `json:"reason,omitempty"`
	NextStep  string     `json:"next_step,omitempty"`
	Site      string     `json:"site,omitempty"`
	Machine   string     `json:"machine,omitempty"`
	MachineID string     `json:"machine_id,omitempty"`
	Test      string     `json:"test,omitempty"`
	Point     *api.Point `json:"point,omitempty"`
	RPO       *float64   `json:"rpo,omitempty"`
	RTO       *float64   `json:"rto,omitempty"`
}

const (
	outSucceeded = "succeeded"
	outFailed    = "failed"
	outSkipped   = "skipped"
)

// machines does what the run does with the step's machines, so many at a time.
func (r *run) machines(ctx context.Context) error {
	var st stageState
	if err := r.State(&st); err != nil {
		return err
	}
	switch answer, err := r.answered(&st.asking); {
	case err != nil:
		return err
	case answer.Answer == answerFail:
		return errors.Join(r.SaveState(ctx, st), st.failure(r))
	case answer.Answer == answerSkip:
		return r.SaveState(ctx, st)
	case answer.Answer == answerRetry:
		st.Attempt++
		st.Done = slices.DeleteFunc(st.Done, func(o outcome) bool { return o.State == outFailed })
		if err := r.SaveState(ctx, st); err != nil {
			return err
		}
	}
	members, err := decided(r.Job(), r.plan)
	if err != nil {
		return err
	}
	done, err := r.each(ctx, members, st)
	if err != nil {
		return err
	}
	st.Done = done
	failed := st.failure(r)
	switch {
	case failed == nil:
	case r.stops():
		return r.ask(ctx, &st, &st.asking, failed.Error(), answerRetry, answerSkip, answerFail)
	default:
		r.Warn(failed.Error())
	}
	return r.SaveState(ctx, st)
}

// failure says which machines failed, nil if none has.
func (st stageState) failure(r *run) error {
	var lines []string
	for _, o := range st.Done {
		if o.State == outFailed {
			lines = append(lines, fmt.Sprintf("%s: %s", r.nameOf(o.Item), o.Reason))
		}
	}
	if len(lines) == 0 {
		return nil
	}
	return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: r.at.Title, Cause: list(lines), Hint: "See the jobs of these machines"}
}

// nameOf returns the name of a member by its item's id.
func (r *run) nameOf(id string) string {
	var members []member
	_ = saved(r.Job(), "resolve", &members) // the id will do
	for _, m := range members {
		if m.ID == id {
			return m.Item
		}
	}
	return id
}

// each does the step with all of its machines that have not been done.
func (r *run) each(ctx context.Context, members []member, st stageState) ([]outcome, error) {
	var todo []member
	for _, m := range members {
		in := slices.ContainsFunc(r.at.Machines, func(o plan.Machine) bool { return o.Item == m.Listed })
		before := slices.ContainsFunc(st.Done, func(o outcome) bool { return o.Item == m.ID })
		if in && m.Fate == memberGo && !before {
			todo = append(todo, m)
		}
	}
	done := slices.Clone(st.Done)
	var mu sync.Mutex
	wait := new(errgroup.Group)
	wait.SetLimit(r.plan.Bounded())
	var stopped error
	for _, m := range todo {
		wait.Go(func() error {
			var o outcome
			err := context.Cause(ctx)
			if err == nil {
				o, err = r.one(ctx, m, st.Attempt)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				stopped = err // all are awaited: none is left alone when the run is cancelled
				return nil
			}
			done = append(done, o)
			r.Progress(int64(len(done)-len(st.Done)), int64(len(todo)), "machines")
			return nil
		})
	}
	_ = wait.Wait() // never fails
	return done, stopped
}

// one does the step with one machine: it starts the machine's job, or finds the
// one that it had started before the server was stopped, and waits for it.
func (r *run) one(ctx context.Context, m member, attempt int) (outcome, error) {
	if r.in.Kind == plan.CleanUp {
		return r.cleanUp(ctx, m, attempt)
	}
	return r.child(ctx, m, r.key(r.at.ID, m.ID, attempt), func(ctx context.Context) (api.Job, error) { return r.begin(ctx, m) })
}

// key is what a job for a machine in a step is started for, and found again by.
func (r *run) key(step, item string, attempt int) string {
	return fmt.Sprintf("%s/%s/%s/%s/%d", r.in.Plan, r.JobID(), step, item, attempt)
}

// cleanUp removes the test machines of an item.
func (r *run) cleanUp(ctx context.Context, m member, attempt int) (outcome, error) {
	last := outcome{Item: m.ID, State: outSkipped, Reason: "it has no test machine any more"}
	for _, test := range m.Tests {
		o, err := r.child(ctx, m, r.key(r.at.ID, m.ID, attempt)+"/"+test, func(ctx context.Context) (api.Job, error) {
			return r.p.opts.Tests.CleanUpTest(ctx, m.ID, api.CleanUpTest{Test: test, Note: r.in.Request.Note})
		})
		if err != nil || o.State == outFailed {
			return o, err
		}
		last = o
	}
	return last, nil
}

// begin starts what the step does with a machine.
func (r *run) begin(ctx context.Context, m member) (api.Job, error) {
	req, ops := r.in.Request, r.p.opts.Operations
	switch {
	case r.at.What == plan.StepShutDown:
		return r.p.opts.Switches.ShutDownMachine(ctx, m.ID)
	case r.in.Kind == plan.Reprotect:
		return ops.Reprotect(ctx, m.ID, api.Reprotect{DiscardWrites: req.DiscardWrites})
	case r.in.Kind == plan.Commit:
		return ops.Commit(ctx, m.ID, api.Commit{DiscardWrites: req.DiscardWrites, DeletePoints: req.DeletePoints})
	}
	f := api.Failover{Option: api.OptionLatest, ShutdownSource: req.ShutdownSource, Planned: r.in.Kind == plan.Planned, TargetName: m.Machine.Name,
		Networks: r.plan.Mapping(plan.Unplanned), Addressing: addressing(m.Machine, r.in.Kind)}
	if m.Point != nil {
		f.Option, f.Point, f.Timeline = api.OptionPoint, m.Point.ID, m.Point.Timeline
		if f.Point == "" {
			f.Point = m.Point.Position
		}
	}
	switch {
	case r.in.Kind == plan.Test:
		return r.p.opts.Tests.TestFailover(ctx, m.ID, api.TestFailover{Option: f.Option, Point: f.Point, Timeline: f.Timeline,
			Network: m.Machine.TestNetwork, Networks: r.plan.Mapping(plan.Test), Addressing: f.Addressing, Verify: verification(m.Machine.Verify)})
	case r.in.Direction == plan.ToPrimary:
		option := orElse(req.Option, api.OptionLatest)
		return ops.Failback(ctx, m.ID, api.Failback{Option: option, Unplanned: r.in.Kind == plan.Unplanned, DiscardWrites: req.DiscardWrites})
	}
	return ops.FailoverItem(ctx, m.ID, f)
}

// addressing is how a machine's cards are addressed in a run.
func addressing(m plan.Machine, k plan.Kind) (out api.Addressing) {
	for _, n := range m.Cards(k) {
		out.By = m.Addressing
		out.NICs = append(out.NICs, api.NIC{Card: n.Card, Addresses: n.Address, Gateways: n.Gateway, DNS: n.DNS})
	}
	return out
}

func verification(v *plan.Verify) *api.BootVerification {
	if v == nil {
		return nil
	}
	return &api.BootVerification{Agent: v.Agent, Serial: v.Serial, Ping: v.Ping, TCPPort: v.TCP, Script: v.Script,
		TimeoutSeconds: int64(time.Duration(v.Timeout) / time.Second), Screenshot: v.Screenshot}
}

// child starts a job, unless it was started already, and waits for its end. The
// error is that of this run; what goes wrong with the machine is its outcome.
func (r *run) child(ctx context.Context, m member, key string, start func(context.Context) (api.Job, error)) (outcome, error) {
	o := outcome{Item: m.ID, State: outFailed}
	id, err := r.started(ctx, key)
	if err != nil {
		return o, err
	}
	if id == "" {
		j, err := r.patiently(job.WithParent(ctx, key), start)
		if err != nil {
			if ctx.Err() != nil {
				return o, context.Cause(ctx)
			}
			if id, err = r.adopt(ctx, m, err); err != nil {
				o.Reason, o.NextStep = err.Error(), holdfast.HintOf(err)
				return o, nil
			}
		} else {
			id = j.ID
		}
	}
	o.Job = id
	if err := r.await(ctx, id); err != nil {
		return o, err
	}
	j, err := r.p.opts.Items.GetJob(context.WithoutCancel(ctx), id)
	if err != nil {
		return o, err
	}
	return finished(o, j), nil
}

// switchWait is for how long a machine that was just shut down may look like one
// that is in trouble.
const switchWait = 15 * time.Second

// patiently starts a machine's job. In a planned run it asks again for a while if
// that is not allowed: the machine has just been shut down, which may not be seen
// everywhere yet.
func (r *run) patiently(ctx context.Context, start func(context.Context) (api.Job, error)) (api.Job, error) {
	for end := r.p.now().Add(switchWait); ; {
		j, err := start(ctx)
		if r.in.Kind != plan.Planned || r.at.What != plan.StepMachines || holdfast.KindOf(err) != holdfast.KindNotAllowed || !r.p.now().Before(end) {
			return j, err
		}
		t := time.NewTimer(switchEvery)
		select {
		case <-ctx.Done():
			t.Stop()
			return j, err
		case <-t.C:
		}
	}
}

// switchEvery is how often it is asked again.
const switchEvery = 500 * time.Millisecond

// started returns the job that was started under a key, "" if there is none.
func (r *run) started(ctx context.Context, key string) (string, error) {
	jobs, err := r.p.opts.Engine.List(ctx, job.Filter{Parent: key, Limit: 1})
	if err != nil || len(jobs) == 0 {
		return "", err
	}
	return jobs[0].ID, nil
}

// adopt finds the job that does to a machine what this step would have started:
// after a crash a server may have started it anew itself. Otherwise it returns
// why the step could not.
func (r *run) adopt(ctx context.Context, m member, refused error) (string, error) {
	jobs, err := r.p.opts.Engine.List(ctx, job.Filter{Subject: m.ID, Unfinished: true, Limit: 1})
	if err != nil {
		return "", err
	}
	if len(jobs) == 1 && jobs[0].Kind == operation(r.in.Kind, r.in.Direction) && r.at.What == plan.StepMachines {
		return jobs[0].ID, nil
	}
	return "", refused
}

// cancelWait is for how long a cancelled run waits for the jobs that it has
// started.
const cancelWait = 10 * time.Minute

// await waits for a job's end. If the run is cancelled, so is the job.
func (r *run) await(ctx context.Context, id string) error {
	if err := r.p.until(ctx, id); err == nil || !errors.Is(context.Cause(ctx), job.ErrCancelled) {
		return err
	}
	rest, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelWait)
	defer cancel()
	if _, err := r.p.opts.Engine.Cancel(rest, id, "the run of the plan was cancelled"); err != nil && !errors.Is(err, job.ErrEnded) && !errors.Is(err, job.ErrTooLate) {
		r.Log("job " + id + " is not cancelled: " + err.Error())
	}
	return errors.Join(context.Cause(ctx), r.p.until(rest, id))
}

// finished says what came of a machine's job.
func finished(o outcome, j api.Job) outcome {
	if res := j.Result; res != nil {
		o.Site, o.Machine, o.MachineID, o.Test, o.Point, o.RPO, o.RTO = res.Site, res.MachineName, res.MachineID, res.Test, res.Point, res.RPOSeconds, res.RTOSeconds
	}
	switch {
	case j.State == api.JobSucceeded:
		o.State = outSucceeded
	case j.Error != nil:
		o.Reason, o.NextStep = j.Error.Message, j.Error.Hint
	default:
		o.Reason = "its job was " + j.State
	}
	return o
}

// saved decodes what a task of a run has saved. It leaves v as it is if nothing
// was.
func saved(j job.Job, task string, v any) error {
	i := slices.IndexFunc(j.Tasks, func(t job.TaskRecord) bool { return t.Name == task })
	if i < 0 || len(j.Tasks[i].Saved) == 0 {
		return nil
	}
	return json.Unmarshal(j.Tasks[i].Saved, v)
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
