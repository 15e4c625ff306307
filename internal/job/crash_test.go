package job_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/job/jobtest"
)

// live runs engines on a store, one after the other, each until the hook kills
// it or the job has ended; it returns the number of hook calls of the last one.
// crashes are the calls at which the first ones die.
func live(t *testing.T, s *jobtest.Store, w *world, draw func() string, crashes ...int) (job.Job, int) {
	t.Helper()
	submitted := ""
	for life := 0; ; life++ {
		calls := 0
		hook := func(string, job.Job) error { calls++; return nil }
		if life < len(crashes) {
			die := crashAt(crashes[life])
			hook = func(when string, j job.Job) error { calls++; return die(when, j) }
		}
		e := engine(t, s, job.Options{Hook: hook}, w.fiveTasks(draw))
		if submitted == "" {
			// A crash while submitting: the caller never learned an id, and tries again.
			if j, err := e.Submit(t.Context(), "five", "item", nil); err == nil {
				submitted = j.ID
			} else if all, listErr := s.ListJobs(t.Context(), job.Filter{}); listErr == nil && len(all) == 1 {
				submitted = all[0].ID
			}
			if submitted == "" {
				continue
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		died := make(chan error, 1)
		go func() {
			defer cancel()
			died <- e.Run(ctx)
		}()
		events, err := e.Watch(ctx, submitted)
		if err != nil {
			t.Fatalf("life %d: %v", life, err)
		}
		for range events {
		}
		cancel()
		if err := <-died; err != nil && !errors.Is(err, errCrash) {
			t.Fatalf("life %d: %v", life, err)
		}
		j, err := s.GetJob(t.Context(), submitted)
		if err != nil {
			t.Fatal(err)
		}
		if j.State.Ended() {
			return j, calls
		}
		if life > len(crashes)+2 {
			t.Fatalf("the job does not come to an end: %+v", j)
		}
	}
}

// check compares the world with what a run without crashes leaves.
func check(t *testing.T, what string, j job.Job, w *world, crashes int) {
	t.Helper()
	if j.State != job.Succeeded || w.outcome != job.Succeeded {
		t.Errorf("%s: job is %s, finish saw %s: %+v", what, j.State, w.outcome, j.Failure)
	}
	if len(w.made) != 5 {
		t.Errorf("%s: %d things were made: %v", what, len(w.made), w.made)
	}
	var result []string
	if err := json.Unmarshal(j.Result, &result); err != nil || len(result) != 5 {
		t.Errorf("%s: result %s: %v", what, j.Result, err)
	}
	for i, thing := range result {
		if by := w.made[thing]; by != fmt.Sprint("t", i+1) {
			t.Errorf("%s: %s of the result was made by %q", what, thing, by)
		}
	}
	again := 0
	for i, rec := range j.Tasks {
		if rec.State != job.Succeeded || rec.StartedAt.IsZero() || rec.EndedAt.IsZero() {
			t.Errorf("%s: task %s is %s from %s to %s", what, rec.Name, rec.State, rec.StartedAt, rec.EndedAt)
		}
		runs := w.runs[fmt.Sprint("t", i+1)]
		if runs == 0 || rec.Attempts < runs {
			t.Errorf("%s: task %s ran %d times and records %d", what, rec.Name, runs, rec.Attempts)
		}
		again += runs - 1
	}
	if again += w.runs["finish"] - 1; again > crashes {
		t.Errorf("%s: %d runs too many after %d crashes: %v", what, again, crashes, w.runs)
	}
}

// TestCrashAtEveryRecord kills the engine before and after each record that a
// job makes, and lets a new one go on.
func TestCrashAtEveryRecord(t *testing.T) {
	t.Parallel()
	w := newWorld()
	j, total := live(t, jobtest.NewStore(), w, counter())
	check(t, "without a crash", j, w, 0)
	if total < 2*(1+5*4) {
		t.Fatalf("only %d points to crash at", total)
	}
	for n := 1; n <= total; n++ {
		w := newWorld()
		j, _ := live(t, jobtest.NewStore(), w, counter(), n)
		check(t, fmt.Sprintf("crash at %d", n), j, w, 1)
	}
}

// TestCrashAgain kills it several times, at random records.
func TestCrashAgain(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(3, 4))
	for range 100 {
		crashes := []int{rng.IntN(50) + 1, rng.IntN(50) + 1, rng.IntN(20) + 1, rng.IntN(5) + 1}
		w := newWorld()
		j, _ := live(t, jobtest.NewStore(), w, counter(), crashes...)
		check(t, fmt.Sprintf("crashes at %v", crashes), j, w, len(crashes))
	}
}

// TestCrashWhileCancelling: a wish to cancel that was recorded is never forgotten.
func TestCrashWhileCancelling(t *testing.T) {
	t.Parallel()
	for n := 1; n < 30; n++ {
		s := jobtest.NewStore()
		var outcomes []job.State
		kind := func(begun chan<- struct{}) job.Kind {
			return job.Kind{Name: "k", Finish: &job.Task{Run: func(_ context.Context, s *job.Step) error {
				outcomes = append(outcomes, s.Ending().State)
				return nil
			}}, Tasks: []job.Task{
				task("a", nothing),
				task("b", func(ctx context.Context, _ *job.Step) error {
					close(begun)
					<-ctx.Done()
					return context.Cause(ctx)
				}),
				task("c", func(context.Context, *job.Step) error { t.Error("a task after the cancelled one ran"); return nil }),
			}}
		}
		begun := make(chan struct{})
		e := engine(t, s, job.Options{}, kind(begun))
		stop := run(t, e)
		j := submit(t, e, "k", "item", nil)
		<-begun
		if err := stop(); err != nil { // before the crash, an orderly stop
			t.Fatal(err)
		}
		begun = make(chan struct{})
		e = engine(t, s, job.Options{Hook: crashAt(n)}, kind(begun))
		done := make(chan error, 1)
		go func() { done <- e.Run(t.Context()) }()
		var cancelErr error
		select {
		case <-begun:
			_, cancelErr = e.Cancel(t.Context(), j.ID, "test")
		case err := <-done:
			done <- err
			cancelErr = err
		}
		if cancelErr == nil {
			if ev, err := e.Watch(t.Context(), j.ID); err == nil {
				select {
				case <-drained(ev):
				case err := <-done:
					done <- err
				}
			}
		}
		e2 := engine(t, s, job.Options{}, kind(make(chan struct{})))
		stored, err := s.GetJob(t.Context(), j.ID)
		if err != nil {
			t.Fatal(err)
		}
		if stored.State.Ended() { // no crash came
			if stored.State != job.Cancelled {
				t.Errorf("n %d: ended as %s", n, stored.State)
			}
			return
		}
		<-done
		if cancelErr == nil && stored.Cancel == nil {
			t.Fatalf("n %d: cancel was acknowledged and is not recorded", n)
		}
		if stored.Cancel == nil {
			if _, err := e2.Cancel(t.Context(), j.ID, "again"); err != nil {
				t.Fatal(err)
			}
		}
		stop = run(t, e2)
		if got := ended(t, e2, j.ID); got.State != job.Cancelled {
			t.Errorf("n %d: ended as %s", n, got.State)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
	t.Error("no n without a crash")
}

func drained[T any](ch <-chan T) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range ch {
		}
	}()
	return done
}
