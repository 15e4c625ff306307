package job_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/job/jobtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMemoryStore(t *testing.T) {
	t.Parallel()
	jobtest.TestStore(t, func(*testing.T) job.Store { return jobtest.NewStore() })
}

// engine returns an engine with kinds registered.
func engine(t *testing.T, s job.Store, o job.Options, kinds ...job.Kind) *job.Engine {
	t.Helper()
	e := job.New(s, o)
	if err := e.Register(kinds...); err != nil {
		t.Fatal(err)
	}
	return e
}

// run runs the engine until the returned function is called, which gives Run's
// error.
func run(t *testing.T, e *job.Engine) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { _ = stop() })
	return stop
}

func submit(t *testing.T, e *job.Engine, kind, subject string, input any) job.Job {
	t.Helper()
	j, err := e.Submit(t.Context(), kind, subject, input)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// ended waits for a job's end.
func ended(t *testing.T, e *job.Engine, id string) job.Job {
	t.Helper()
	return until(t, e, id, func(j job.Job) bool { return j.State.Ended() })
}

// until waits until the job is as wanted.
func until(t *testing.T, e *job.Engine, id string, want func(job.Job) bool) job.Job {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	events, err := e.Watch(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	var last job.Job
	for ev := range events {
		last = ev.Job
		if want(last) {
			return last
		}
	}
	t.Fatalf("job %s ended as %s: %+v", id, last.State, last.Failure)
	return last
}

func task(name string, f func(ctx context.Context, s *job.Step) error) job.Task {
	return job.Task{Name: name, Title: "Task " + name, Run: f}
}

func nothing(context.Context, *job.Step) error { return nil }

// world is what tasks have effects on: it outlives engines, and remembers what
// was done to it.
type world struct {
	mu      sync.Mutex
	made    map[string]string // name → by which task
	runs    map[string]int
	outcome job.State
}

func newWorld() *world { return &world{made: map[string]string{}, runs: map[string]int{}} }

func (w *world) run(task string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.runs[task]++
}

// make makes a thing of that name; making it again is no error.
func (w *world) make(name, task string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.made[name] = task
}

// fiveTasks is a job in which each task draws a random-looking name, saves it
// as its intent, makes a thing of that name, and tells the next in shared state.
// If any intent were lost or used before it was saved, there would be a thing
// too many.
func (w *world) fiveTasks(draw func() string) job.Kind {
	k := job.Kind{Name: "five", Title: "Five tasks", Finish: &job.Task{Run: func(_ context.Context, s *job.Step) error {
		w.run("finish")
		w.mu.Lock()
		defer w.mu.Unlock()
		w.outcome = s.Ending().State
		return nil
	}}}
	for i := range 5 {
		name := fmt.Sprint("t", i+1)
		k.Tasks = append(k.Tasks, task(name, func(ctx context.Context, s *job.Step) error {
			w.run(name)
			var thing string
			if err := s.State(&thing); err != nil {
				return err
			}
			if thing == "" {
				thing = draw()
				if err := s.SaveState(ctx, thing); err != nil {
					return err
				}
			}
			w.make(thing, name)
			var all []string
			if err := s.JobState(&all); err != nil {
				return err
			}
			if !slices.Contains(all, thing) {
				all = append(all, thing)
			}
			if err := s.SaveJobState(ctx, all); err != nil {
				return err
			}
			if i == 4 {
				return s.SetResult(ctx, all)
			}
			return nil
		}))
	}
	return k
}

// counter returns a function that draws a new name at each call.
func counter() func() string {
	n := 0
	var mu sync.Mutex
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		n++
		return fmt.Sprint("thing", n)
	}
}

var errCrash = errors.New("crash")

// crashAt returns a hook that kills the engine at the n-th call, counted from 1.
func crashAt(n int) func(string, job.Job) error {
	return func(string, job.Job) error {
		n--
		if n == 0 {
			return errCrash
		}
		return nil
	}
}

// within runs a test in a bubble of simulated time.
func within(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}
