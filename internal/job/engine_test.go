package job_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/job/jobtest"
)

// sick is an error that knows its cause and what to do.
type sick struct{}

func (sick) Error() string { return "open site berlin: no answer" }
func (sick) Describe() (code, cause, hint string) {
	return "unavailable", "its host does not answer", "Look at the host"
}

func TestOutcomes(t *testing.T) {
	t.Parallel()
	failed := &job.Failure{Task: "b", Code: "unavailable", Message: "bring up: open site berlin: no answer", Cause: "its host does not answer", Hint: "Look at the host"}
	fail := func(context.Context, *job.Step) error { return fmt.Errorf("bring up: %w", sick{}) }
	const ok, bad, skip = job.Succeeded, job.Failed, job.Skipped
	tests := []struct {
		name     string
		b        job.Task
		finish   func(context.Context, *job.Step) error
		state    job.State
		tasks    []job.State
		failure  *job.Failure
		warnings string
	}{
		{name: "success", b: task("b", nothing), state: ok, tasks: []job.State{ok, ok, ok}},
		{name: "failure", b: task("b", fail), state: bad, tasks: []job.State{ok, bad, skip}, failure: failed},
		{name: "failure with finish", b: task("b", fail), finish: nothing, state: bad, tasks: []job.State{ok, bad, skip}, failure: failed},
		{name: "failure, and finish fails", b: task("b", fail), finish: fail, state: bad, tasks: []job.State{ok, bad, skip}, failure: failed,
			warnings: "finish: bring up: open site berlin: no answer"},
		{name: "finish fails", b: task("b", nothing), finish: fail, state: bad, tasks: []job.State{ok, ok, ok},
			failure: &job.Failure{Task: "finish", Code: "unavailable", Message: failed.Message, Cause: failed.Cause, Hint: failed.Hint}},
		{name: "optional failure", b: job.Task{Name: "b", Title: "Shut down", Run: fail, Optional: true}, state: ok, tasks: []job.State{ok, skip, ok},
			warnings: "Shut down: bring up: open site berlin: no answer"},
		{name: "skipped", b: task("b", func(context.Context, *job.Step) error { return job.Skip("it is off") }), state: ok, tasks: []job.State{ok, skip, ok}},
		{name: "warned", b: task("b", func(_ context.Context, s *job.Step) error { s.Warn("careful"); s.Warn("careful"); return nil }),
			state: ok, tasks: []job.State{ok, ok, ok}, warnings: "careful"},
		{name: "panic", b: task("b", func(context.Context, *job.Step) error { panic("boom") }), state: bad, tasks: []job.State{ok, bad, skip},
			failure: &job.Failure{Task: "b", Code: "internal", Message: "task panicked: boom", Cause: "a fault in Holdfast: boom", Hint: "Please report it with the log of this job"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			k := job.Kind{Name: "k", Title: "Do it", Tasks: []job.Task{task("a", nothing), tt.b, task("c", nothing)}}
			if tt.finish != nil {
				k.Finish = &job.Task{Run: tt.finish}
			}
			e := engine(t, jobtest.NewStore(), job.Options{}, k)
			run(t, e)
			j := ended(t, e, submit(t, e, "k", "item", nil).ID)
			var states []job.State
			for _, rec := range j.Tasks {
				states = append(states, rec.State)
			}
			if j.State != tt.state || j.Title != "Do it" || j.StartedAt.IsZero() || j.EndedAt.IsZero() {
				t.Errorf("job %q is %s from %s to %s, want %s", j.Title, j.State, j.StartedAt, j.EndedAt, tt.state)
			}
			if diff := cmp.Diff(tt.tasks, states); diff != "" {
				t.Errorf("tasks (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.failure, j.Failure); diff != "" {
				t.Errorf("failure (-want +got):\n%s", diff)
			}
			if got := strings.Join(j.Warnings, "; "); got != tt.warnings {
				t.Errorf("warnings: got %q, want %q", got, tt.warnings)
			}
			stored, err := e.Get(t.Context(), j.ID)
			if diff := cmp.Diff(j, stored); diff != "" || err != nil {
				t.Errorf("stored (-event +stored): %v\n%s", err, diff)
			}
		})
	}
}

func TestRetry(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T) {
		var tries []time.Duration
		begun := time.Now()
		errPassing, errFinal := errors.New("passing"), errors.New("final")
		k := job.Kind{Name: "k", Tasks: []job.Task{
			{Name: "a", Run: func(_ context.Context, s *job.Step) error {
				tries = append(tries, time.Since(begun))
				if len(tries) != s.Attempt() {
					t.Errorf("attempt %d at try %d", s.Attempt(), len(tries))
				}
				if len(tries) < 5 {
					return errPassing
				}
				return nil
			}, Retry: job.Retry{Attempts: 5, Delay: time.Second, MaxDelay: 3 * time.Second}},
			{Name: "b", Run: func(context.Context, *job.Step) error { return errFinal },
				Retry: job.Retry{Attempts: 9, Delay: time.Second, If: func(err error) bool { return errors.Is(err, errPassing) }}},
		}}
		e := engine(t, jobtest.NewStore(), job.Options{}, k)
		stop := run(t, e)
		j := ended(t, e, submit(t, e, "k", "", nil).ID)
		want := []time.Duration{0, 1 * time.Second, 3 * time.Second, 6 * time.Second, 9 * time.Second}
		if diff := cmp.Diff(want, tries); diff != "" {
			t.Errorf("tries (-want +got):\n%s", diff)
		}
		if j.Tasks[0].State != job.Succeeded || j.Tasks[0].Attempts != 5 || len(j.Tasks[0].Log) != 4 || j.Tasks[0].Failure != nil {
			t.Errorf("retried task: %+v", j.Tasks[0])
		}
		if j.State != job.Failed || j.Tasks[1].Attempts != 1 {
			t.Errorf("a failure not worth another attempt: job %s after %d attempts", j.State, j.Tasks[1].Attempts)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// waiting is a task that waits for its context and notes why it ended.
func waiting(name string, begun chan<- struct{}, cause *error) job.Task {
	return task(name, func(ctx context.Context, _ *job.Step) error {
		begun <- struct{}{}
		<-ctx.Done()
		*cause = context.Cause(ctx)
		return fmt.Errorf("interrupted: %w", ctx.Err())
	})
}

func TestCancel(t *testing.T) {
	t.Parallel()
	t.Run("inside a task", func(t *testing.T) {
		t.Parallel()
		begun := make(chan struct{}, 1)
		var cause error
		var ending *job.Ending
		k := job.Kind{Name: "k", Tasks: []job.Task{task("a", nothing), waiting("b", begun, &cause), task("c", nothing)},
			Finish: &job.Task{Run: func(ctx context.Context, s *job.Step) error { ending = s.Ending(); return ctx.Err() }}}
		e := engine(t, jobtest.NewStore(), job.Options{}, k)
		run(t, e)
		id := submit(t, e, "k", "item", nil).ID
		<-begun
		if _, err := e.Cancel(t.Context(), id, "not wanted"); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Cancel(t.Context(), id, "twice"); err != nil && !errors.Is(err, job.ErrEnded) {
			t.Errorf("second cancel: %v", err)
		}
		j := ended(t, e, id)
		if j.State != job.Cancelled || j.Cancel.Reason != "not wanted" || j.Failure != nil || len(j.Warnings) != 0 {
			t.Errorf("job %s, %+v, %+v, %v", j.State, j.Cancel, j.Failure, j.Warnings)
		}
		if !errors.Is(cause, job.ErrCancelled) || ending.State != job.Cancelled {
			t.Errorf("cause %v, ending %+v", cause, ending)
		}
		if j.Tasks[0].State != job.Succeeded || j.Tasks[1].State != job.Cancelled || j.Tasks[2].State != job.Skipped {
			t.Errorf("tasks %+v", j.Tasks)
		}
		if _, err := e.Cancel(t.Context(), id, ""); !errors.Is(err, job.ErrEnded) {
			t.Errorf("cancel of an ended job: %v", err)
		}
		if _, err := e.Cancel(t.Context(), "none", ""); !errors.Is(err, job.ErrNotFound) {
			t.Errorf("cancel of nothing: %v", err)
		}
	})
	t.Run("between tasks", func(t *testing.T) {
		t.Parallel()
		var e *job.Engine
		k := job.Kind{Name: "k", Tasks: []job.Task{
			task("a", func(ctx context.Context, s *job.Step) error { // cancelled, and completes all the same
				_, err := e.Cancel(context.WithoutCancel(ctx), s.JobID(), "")
				return err
			}),
			task("b", func(context.Context, *job.Step) error { t.Error("b ran"); return nil }),
		}}
		e = engine(t, jobtest.NewStore(), job.Options{}, k)
		run(t, e)
		j := ended(t, e, submit(t, e, "k", "", nil).ID)
		if j.State != job.Cancelled || j.Tasks[0].State != job.Succeeded || j.Tasks[1].State != job.Skipped {
			t.Errorf("job %s, tasks %+v", j.State, j.Tasks)
		}
	})
	t.Run("in the last task, which completes", func(t *testing.T) {
		t.Parallel()
		var e *job.Engine
		k := job.Kind{Name: "k", Tasks: []job.Task{task("a", func(ctx context.Context, s *job.Step) error {
			_, err := e.Cancel(context.WithoutCancel(ctx), s.JobID(), "")
			return err
		})}}
		e = engine(t, jobtest.NewStore(), job.Options{}, k)
		run(t, e)
		if j := ended(t, e, submit(t, e, "k", "", nil).ID); j.State != job.Succeeded {
			t.Errorf("job %s", j.State)
		}
	})
	t.Run("before it begins", func(t *testing.T) {
		t.Parallel()
		e := engine(t, jobtest.NewStore(), job.Options{}, job.Kind{Name: "k", Tasks: []job.Task{
			task("a", func(context.Context, *job.Step) error { t.Error("a ran"); return nil })}})
		id := submit(t, e, "k", "", nil).ID
		if j, err := e.Cancel(t.Context(), id, ""); err != nil || j.State != job.Cancelling {
			t.Errorf("job %s, %v", j.State, err)
		}
		run(t, e)
		if j := ended(t, e, id); j.State != job.Cancelled {
			t.Errorf("job %s", j.State)
		}
	})
	t.Run("past the point of no return", func(t *testing.T) {
		t.Parallel()
		begun, goOn := make(chan struct{}), make(chan struct{})
		k := job.Kind{Name: "k", Tasks: []job.Task{
			{Name: "boot", NoReturn: true, Run: nothing},
			task("b", func(context.Context, *job.Step) error { close(begun); <-goOn; return nil })}}
		e := engine(t, jobtest.NewStore(), job.Options{}, k)
		j := submit(t, e, "k", "", nil)
		if !j.Cancellable() {
			t.Error("not cancellable before")
		}
		run(t, e)
		<-begun
		if _, err := e.Cancel(t.Context(), j.ID, ""); !errors.Is(err, job.ErrTooLate) {
			t.Errorf("cancel: %v", err)
		}
		if j, err := e.Get(t.Context(), j.ID); err != nil || j.Cancellable() {
			t.Errorf("cancellable after: %v", err)
		}
		close(goOn)
		if j := ended(t, e, j.ID); j.State != job.Succeeded {
			t.Errorf("job %s", j.State)
		}
	})
	t.Run("while it waits for another attempt", func(t *testing.T) {
		t.Parallel()
		within(t, func(t *testing.T) {
			e := engine(t, jobtest.NewStore(), job.Options{}, job.Kind{Name: "k", Tasks: []job.Task{
				{Name: "a", Run: func(context.Context, *job.Step) error { return errors.New("no") }, Retry: job.Retry{Attempts: 99, Delay: time.Hour, MaxDelay: time.Hour}}}})
			stop := run(t, e)
			id := submit(t, e, "k", "", nil).ID
			synctest.Wait()
			begun := time.Now()
			if _, err := e.Cancel(t.Context(), id, ""); err != nil {
				t.Fatal(err)
			}
			if j := ended(t, e, id); j.State != job.Cancelled || time.Since(begun) > time.Second {
				t.Errorf("job %s after %s", j.State, time.Since(begun))
			}
			_ = stop()
		})
	})
}

// TestStopAndResume stops an engine inside a task; the next takes it up there,
// with what it had saved, and nothing of it counts as a failure.
func TestStopAndResume(t *testing.T) {
	t.Parallel()
	s := jobtest.NewStore()
	begun := make(chan struct{}, 1)
	var cause error
	first := engine(t, s, job.Options{}, job.Kind{Name: "k", Tasks: []job.Task{task("a", nothing),
		task("b", func(ctx context.Context, s *job.Step) error {
			if err := s.SaveState(ctx, "halfway"); err != nil {
				return err
			}
			begun <- struct{}{}
			<-ctx.Done()
			cause = context.Cause(ctx)
			return cause
		})}})
	stop := run(t, first)
	id := submit(t, first, "k", "item", map[string]int{"n": 7}).ID
	<-begun
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(cause, job.ErrStopped) {
		t.Errorf("cause: %v", cause)
	}
	if j, err := s.GetJob(t.Context(), id); err != nil || j.State != job.InProgress || j.Tasks[1].State != job.InProgress || j.Tasks[1].Failure != nil {
		t.Errorf("stored: %+v, %v", j, err)
	}
	second := engine(t, s, job.Options{}, job.Kind{Name: "k", Tasks: []job.Task{
		task("a", func(context.Context, *job.Step) error { t.Error("a ran again"); return nil }),
		task("b", func(_ context.Context, s *job.Step) error {
			var saved string
			var input map[string]int
			if err := errors.Join(s.State(&saved), s.Input(&input)); err != nil {
				return err
			}
			if saved != "halfway" || input["n"] != 7 || s.Attempt() != 2 || s.JobID() != id || s.Subject() != "item" {
				t.Errorf("saved %q, input %v, attempt %d, job %s, subject %s", saved, input, s.Attempt(), s.JobID(), s.Subject())
			}
			return nil
		})}})
	run(t, second)
	if j := ended(t, second, id); j.State != job.Succeeded {
		t.Errorf("job %s: %+v", j.State, j.Failure)
	}
}

func TestSuspendAndResume(t *testing.T) {
	t.Parallel()
	s := jobtest.NewStore()
	k := job.Kind{Name: "k", Tasks: []job.Task{task("ask", func(_ context.Context, s *job.Step) error {
		var answer string
		if there, err := s.Answer(&answer); err != nil || !there {
			return errors.Join(err, job.Suspend("somebody to look at the machine"))
		}
		s.Log("the answer is " + answer)
		return nil
	}), task("b", nothing)}}
	e := engine(t, s, job.Options{}, k)
	stop := run(t, e)
	id := submit(t, e, "k", "item", nil).ID
	j := until(t, e, id, func(j job.Job) bool { return j.State == job.Suspended })
	if j.Waiting != "somebody to look at the machine" || j.Tasks[0].State != job.Suspended || !j.Cancellable() {
		t.Errorf("suspended: %+v", j)
	}
	if _, err := e.Submit(t.Context(), "k", "item", nil); !errors.Is(err, job.ErrBusy) {
		t.Errorf("the subject is not busy: %v", err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	e = engine(t, s, job.Options{}, k)
	run(t, e)
	if _, err := e.Resume(t.Context(), id, "yes"); err != nil {
		t.Fatal(err)
	}
	j = ended(t, e, id)
	if j.State != job.Succeeded || j.Waiting != "" || len(j.Tasks[0].Log) != 1 || j.Tasks[0].Log[0].Text != "the answer is yes" {
		t.Errorf("resumed: %+v", j)
	}
	if _, err := e.Resume(t.Context(), id, nil); !errors.Is(err, job.ErrEnded) {
		t.Errorf("resume of an ended job: %v", err)
	}
	id = submit(t, e, "k", "item", nil).ID
	until(t, e, id, func(j job.Job) bool { return j.State == job.Suspended })
	if _, err := e.Cancel(t.Context(), id, ""); err != nil {
		t.Fatal(err)
	}
	if j := ended(t, e, id); j.State != job.Cancelled {
		t.Errorf("cancelled while suspended: %s", j.State)
	}
}

func TestSubjects(t *testing.T) {
	t.Parallel()
	goOn := make(chan struct{})
	var running, most atomic.Int32
	k := job.Kind{Name: "k", Tasks: []job.Task{task("a", func(context.Context, *job.Step) error {
		if n := running.Add(1); n > most.Load() {
			most.Store(n)
		}
		<-goOn
		running.Add(-1)
		return nil
	})}}
	e := engine(t, jobtest.NewStore(), job.Options{MaxRunning: 2}, k)
	stop := run(t, e)
	var ids []string
	for i := range 5 {
		ids = append(ids, submit(t, e, "k", fmt.Sprint("item", i), nil).ID)
	}
	var busy *job.BusyError
	_, err := e.Submit(t.Context(), "k", "item3", nil)
	if !errors.As(err, &busy) || !errors.Is(err, job.ErrBusy) || busy.JobID != ids[3] {
		t.Errorf("second job for a subject: %v", err)
	} else if code, cause, hint := busy.Describe(); code != "conflict" || cause == "" || !strings.Contains(hint, ids[3]) {
		t.Errorf("described as %q %q %q", code, cause, hint)
	}
	until(t, e, ids[1], func(j job.Job) bool { return j.State == job.InProgress })
	close(goOn)
	for _, id := range ids {
		if j := ended(t, e, id); j.State != job.Succeeded {
			t.Errorf("job %s", j.State)
		}
	}
	if n := most.Load(); n > 2 {
		t.Errorf("%d jobs ran at the same time, want at most 2", n)
	}
	if _, err := e.Submit(t.Context(), "k", "item3", nil); err != nil {
		t.Errorf("after the end of the first: %v", err)
	}
	_ = stop()
	jobs, err := e.List(t.Context(), job.Filter{Subject: "item3"})
	if err != nil || len(jobs) != 2 {
		t.Errorf("list: %d jobs, %v", len(jobs), err)
	}
	if _, err := e.Submit(t.Context(), "other", "", nil); !errors.Is(err, job.ErrUnknownKind) {
		t.Errorf("unknown kind: %v", err)
	}
	if _, err := e.Submit(t.Context(), "k", "", make(chan int)); err == nil {
		t.Error("input that is no JSON was taken")
	}
}

// TestOtherVersion: a job whose kind or task this version does not have fails
// and says so, and its Finish runs if there is one.
func TestOtherVersion(t *testing.T) {
	t.Parallel()
	s := jobtest.NewStore()
	old := engine(t, s, job.Options{}, job.Kind{Name: "gone", Tasks: []job.Task{task("a", nothing)}},
		job.Kind{Name: "changed", Tasks: []job.Task{task("a", nothing), task("removed", nothing)}})
	ids := []string{submit(t, old, "gone", "", nil).ID, submit(t, old, "changed", "", nil).ID}
	finished := false
	e := engine(t, s, job.Options{}, job.Kind{Name: "changed", Tasks: []job.Task{task("a", nothing), task("b", nothing)},
		Finish: &job.Task{Run: func(context.Context, *job.Step) error { finished = true; return nil }}})
	run(t, e)
	for _, id := range ids {
		j := ended(t, e, id)
		if j.State != job.Failed || j.Failure.Hint == "" || !strings.Contains(j.Failure.Cause, "version") {
			t.Errorf("job %s: %+v", j.State, j.Failure)
		}
	}
	if !finished {
		t.Error("finish did not run")
	}
}

func TestRegisterRefuses(t *testing.T) {
	t.Parallel()
	good := job.Kind{Name: "k", Tasks: []job.Task{task("a", nothing)}}
	tests := map[string][]job.Kind{
		"no name":        {{Tasks: good.Tasks}},
		"no tasks":       {{Name: "k"}},
		"no run":         {{Name: "k", Tasks: []job.Task{{Name: "a"}}}},
		"no task name":   {{Name: "k", Tasks: []job.Task{task("", nothing)}}},
		"two tasks":      {{Name: "k", Tasks: []job.Task{task("a", nothing), task("a", nothing)}}},
		"two kinds":      {good, good},
		"finish, no run": {{Name: "k", Tasks: good.Tasks, Finish: &job.Task{}}},
	}
	for name, kinds := range tests {
		if err := job.New(jobtest.NewStore(), job.Options{}).Register(kinds...); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestRunTwice(t *testing.T) {
	t.Parallel()
	e := engine(t, jobtest.NewStore(), job.Options{}, job.Kind{Name: "k", Tasks: []job.Task{task("a", nothing)}})
	stop := run(t, e)
	ended(t, e, submit(t, e, "k", "", nil).ID) // it runs now
	if err := e.Run(t.Context()); err == nil {
		t.Error("a second Run at the same time was accepted")
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	stop = run(t, e)
	if j := ended(t, e, submit(t, e, "k", "", nil).ID); j.State != job.Succeeded {
		t.Errorf("job of a second Run: %s", j.State)
	}
	_ = stop()
}
