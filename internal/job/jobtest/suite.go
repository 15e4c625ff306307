package jobtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/internal/job"
)

// TestStore runs the suite that every job.Store must pass; open returns a new
// and empty one.
func TestStore(t *testing.T, open func(t *testing.T) job.Store) {
	t.Helper()
	for name, f := range map[string]func(*testing.T, job.Store){
		"RoundTrip": testRoundTrip, "Busy": testBusy, "Versions": testVersions, "List": testList,
		"ConcurrentCreate": testConcurrentCreate, "ConcurrentUpdate": testConcurrentUpdate,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, open(t))
		})
	}
}

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.UTC)

func sample(id, subject string) job.Job {
	return job.Job{ID: id, Kind: "demo", Subject: subject, State: job.NotStarted, CreatedAt: epoch, Version: 1,
		Tasks: []job.TaskRecord{{Name: "one", State: job.NotStarted}}}
}

func testRoundTrip(t *testing.T, s job.Store) {
	ctx := t.Context()
	want := job.Job{
		ID: "j1", Kind: "failover", Title: "Fail over", Subject: "item-1", State: job.Cancelling, Version: 1,
		Input: json.RawMessage(`{"a":"\u0000é"}`), Shared: json.RawMessage(`[1]`), Result: json.RawMessage(`"r"`),
		Tasks: []job.TaskRecord{{Name: "one", Title: "One", State: job.Failed, Attempts: 3, NoReturn: true, StartedAt: epoch, EndedAt: epoch.Add(1),
			Saved: json.RawMessage(`{"handle":"h"}`), Answer: json.RawMessage(`true`),
			Progress: &job.Progress{Done: 1 << 60, Total: 1<<60 + 1, Unit: "bytes", Rate: 1.5, ETA: time.Second, At: epoch},
			Failure:  &job.Failure{Task: "one", Code: "unavailable", Message: "m", Cause: "c", Hint: "h"},
			Log:      []job.LogLine{{Time: epoch, Text: "line\nof two"}}}},
		Warnings: []string{"w"}, Failure: &job.Failure{Message: "m"}, Cancel: &job.CancelRequest{Reason: "r", At: epoch},
		Waiting: "you", Ending: &job.Ending{State: job.Cancelled, Finish: job.TaskRecord{Name: "finish", State: job.InProgress}},
		CreatedAt: epoch, StartedAt: epoch.Add(time.Second), EndedAt: epoch.Add(time.Minute),
	}
	if err := s.CreateJob(ctx, want); err != nil {
		t.Fatal(err)
	}
	got, err := s.GetJob(ctx, "j1")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("job (-want +got):\n%s", diff)
	}
	if _, err := s.GetJob(ctx, "j2"); !errors.Is(err, job.ErrNotFound) {
		t.Errorf("get of nothing: got %v", err)
	}
	if err := s.CreateJob(ctx, sample("j1", "other")); !errors.Is(err, job.ErrConflict) {
		t.Errorf("create with a taken id: got %v", err)
	}
}

func testBusy(t *testing.T, s job.Store) {
	ctx := t.Context()
	for _, id := range []string{"a", "b"} {
		if err := s.CreateJob(ctx, sample(id, "")); err != nil {
			t.Errorf("without subject: %v", err)
		}
	}
	first := sample("c", "item")
	if err := s.CreateJob(ctx, first); err != nil {
		t.Fatal(err)
	}
	if err := s.CreateJob(ctx, sample("d", "item")); !errors.Is(err, job.ErrBusy) {
		t.Errorf("second for the same subject: got %v", err)
	}
	if _, err := s.GetJob(ctx, "d"); !errors.Is(err, job.ErrNotFound) {
		t.Errorf("the refused one is there: %v", err)
	}
	for _, state := range []job.State{job.InProgress, job.Suspended, job.Cancelling} {
		first.Version++
		first.State = state
		if err := s.UpdateJob(ctx, first); err != nil {
			t.Fatal(err)
		}
		if err := s.CreateJob(ctx, sample("d", "item")); !errors.Is(err, job.ErrBusy) {
			t.Errorf("second while the first is %s: got %v", state, err)
		}
	}
	first.Version++
	first.State = job.Succeeded
	if err := s.UpdateJob(ctx, first); err != nil {
		t.Fatal(err)
	}
	if err := s.CreateJob(ctx, sample("d", "item")); err != nil {
		t.Errorf("after the first has ended: %v", err)
	}
}

func testVersions(t *testing.T, s job.Store) {
	ctx := t.Context()
	j := sample("j", "item")
	if err := s.UpdateJob(ctx, j); !errors.Is(err, job.ErrNotFound) {
		t.Errorf("update of nothing: got %v", err)
	}
	if err := s.CreateJob(ctx, j); err != nil {
		t.Fatal(err)
	}
	for _, version := range []int64{0, 1, 3} {
		j.Version = version
		if err := s.UpdateJob(ctx, j); !errors.Is(err, job.ErrConflict) {
			t.Errorf("update to version %d over 1: got %v", version, err)
		}
	}
	j.Version, j.Title = 2, "changed"
	if err := s.UpdateJob(ctx, j); err != nil {
		t.Fatal(err)
	}
	if got, err := s.GetJob(ctx, "j"); err != nil || got.Version != 2 || got.Title != "changed" {
		t.Errorf("got version %d title %q, %v", got.Version, got.Title, err)
	}
}

func testList(t *testing.T, s job.Store) {
	ctx := t.Context()
	if jobs, err := s.ListJobs(ctx, job.Filter{}); err != nil || len(jobs) != 0 {
		t.Errorf("empty store: %d jobs, %v", len(jobs), err)
	}
	for i := range 10 {
		j := sample(fmt.Sprintf("j%d", i), fmt.Sprintf("item%d", i))
		j.CreatedAt = epoch.Add(time.Duration(i/2) * time.Nanosecond)
		if i%3 == 0 {
			j.State = job.Succeeded
			j.Subject = "done"
		}
		if i%2 == 0 {
			j.Kind = "even"
		}
		if err := s.CreateJob(ctx, j); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		filter job.Filter
		want   string
	}{
		{job.Filter{}, "j9 j8 j7 j6 j5 j4 j3 j2 j1 j0"},
		{job.Filter{Limit: 3}, "j9 j8 j7"},
		{job.Filter{Unfinished: true}, "j8 j7 j5 j4 j2 j1"},
		{job.Filter{State: job.Succeeded}, "j9 j6 j3 j0"},
		{job.Filter{Kind: "even"}, "j8 j6 j4 j2 j0"},
		{job.Filter{Subject: "done", Kind: "even"}, "j6 j0"},
		{job.Filter{Subject: "done", Unfinished: true}, ""},
		{job.Filter{Unfinished: true, Limit: 2}, "j8 j7"},
	}
	for _, tt := range tests {
		jobs, err := s.ListJobs(ctx, tt.filter)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for i, j := range jobs {
			if i > 0 {
				got += " "
			}
			got += j.ID
		}
		if got != tt.want {
			t.Errorf("%+v: got %q, want %q", tt.filter, got, tt.want)
		}
	}
}

func testConcurrentCreate(t *testing.T, s job.Store) {
	var wg sync.WaitGroup
	var taken atomic.Int32
	for i := range 8 {
		wg.Go(func() {
			err := s.CreateJob(t.Context(), sample(fmt.Sprint(i), "item"))
			if err == nil {
				taken.Add(1)
			} else if !errors.Is(err, job.ErrBusy) {
				t.Errorf("create: %v", err)
			}
		})
	}
	wg.Wait()
	if n := taken.Load(); n != 1 {
		t.Errorf("%d jobs were taken for one subject", n)
	}
}

func testConcurrentUpdate(t *testing.T, s job.Store) {
	if err := s.CreateJob(t.Context(), sample("j", "item")); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var taken atomic.Int32
	for i := range 8 {
		wg.Go(func() {
			j := sample("j", "item")
			j.Version, j.Title = 2, fmt.Sprint(i)
			err := s.UpdateJob(t.Context(), j)
			if err == nil {
				taken.Add(1)
			} else if !errors.Is(err, job.ErrConflict) {
				t.Errorf("update: %v", err)
			}
		})
	}
	wg.Wait()
	if n := taken.Load(); n != 1 {
		t.Errorf("%d updates of the same version were taken", n)
	}
}
