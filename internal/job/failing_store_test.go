package job_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/job/jobtest"
)

var errDisk = errors.New("no space left on device")

// TestStoreFails lets records fail at random, before or after they were taken:
// the job comes to the same end.
func TestStoreFails(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		for _, taken := range []bool{false, true} {
			within(t, func(t *testing.T) {
				s := jobtest.NewStore()
				var mu sync.Mutex
				rng := rand.New(rand.NewPCG(seed, 0))
				fail := func(op string) error {
					mu.Lock()
					defer mu.Unlock()
					if op == "update" && rng.IntN(3) == 0 {
						return errDisk
					}
					return nil
				}
				if taken {
					s.FailAfter = fail
				} else {
					s.Fail = fail
				}
				w := newWorld()
				e := engine(t, s, job.Options{}, w.fiveTasks(counter()))
				stop := run(t, e)
				j := ended(t, e, submit(t, e, "five", "item", nil).ID)
				check(t, "failing store", j, w, 100)
				if err := stop(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestNothingBeginsUnrecorded: while the store takes nothing, no task begins,
// and it goes on by itself when the store works again.
func TestNothingBeginsUnrecorded(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T) {
		s := jobtest.NewStore()
		var full atomic.Bool
		var ran atomic.Int32
		s.Fail = func(op string) error {
			if full.Load() && op == "update" {
				return errDisk
			}
			return nil
		}
		e := engine(t, s, job.Options{}, job.Kind{Name: "k", Tasks: []job.Task{
			task("a", func(context.Context, *job.Step) error { ran.Add(1); return nil })}})
		full.Store(true)
		stop := run(t, e)
		id := submit(t, e, "k", "", nil).ID
		time.Sleep(10 * time.Minute)
		if n := ran.Load(); n != 0 {
			t.Errorf("the task ran %d times", n)
		}
		if _, err := e.Cancel(t.Context(), id, ""); !errors.Is(err, job.ErrNotRecorded) || !errors.Is(err, errDisk) {
			t.Errorf("cancel: %v", err)
		}
		full.Store(false)
		begun := time.Now()
		if j := ended(t, e, id); j.State != job.Succeeded || ran.Load() != 1 || time.Since(begun) > 31*time.Second {
			t.Errorf("job %s after %s, ran %d times", j.State, time.Since(begun), ran.Load())
		}
		_ = stop()
	})
}

func TestSubmitNotRecorded(t *testing.T) {
	t.Parallel()
	s := jobtest.NewStore()
	s.Fail = func(op string) error {
		if op == "create" {
			return errDisk
		}
		return nil
	}
	e := engine(t, s, job.Options{NewID: func() string { return "id" }}, job.Kind{Name: "k", Tasks: []job.Task{
		task("a", func(context.Context, *job.Step) error { t.Error("it ran"); return nil })}})
	run(t, e)
	if _, err := e.Submit(t.Context(), "k", "item", nil); !errors.Is(err, job.ErrNotRecorded) {
		t.Errorf("submit: %v", err)
	}
	if _, err := e.Get(t.Context(), "id"); !errors.Is(err, job.ErrNotFound) {
		t.Errorf("get: %v", err)
	}
	if _, err := e.Watch(t.Context(), "id"); !errors.Is(err, job.ErrNotFound) {
		t.Errorf("watch: %v", err)
	}
}

func TestRunNeedsTheStore(t *testing.T) {
	t.Parallel()
	s := jobtest.NewStore()
	s.Fail = func(string) error { return errDisk }
	e := engine(t, s, job.Options{})
	if err := e.Run(t.Context()); !errors.Is(err, errDisk) {
		t.Errorf("run: %v", err)
	}
	if _, err := e.List(t.Context(), job.Filter{}); !errors.Is(err, errDisk) {
		t.Errorf("list: %v", err)
	}
}

// TestSomebodyElse: a record that another engine has changed is left to it.
func TestSomebodyElse(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T) {
		s := jobtest.NewStore()
		e := engine(t, s, job.Options{}, job.Kind{Name: "k", Tasks: []job.Task{
			task("a", func(ctx context.Context, st *job.Step) error {
				j, err := s.GetJob(ctx, st.JobID())
				if err != nil {
					return err
				}
				j.Version++
				j.Title = "theirs"
				return s.UpdateJob(ctx, j)
			}),
			task("b", func(context.Context, *job.Step) error { t.Error("b ran"); return nil }),
		}})
		stop := run(t, e)
		id := submit(t, e, "k", "", nil).ID
		synctest.Wait()
		if j, err := s.GetJob(t.Context(), id); err != nil || j.Title != "theirs" || j.Tasks[0].State != job.InProgress {
			t.Errorf("stored: %+v, %v", j, err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}
