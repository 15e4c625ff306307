package orchestrator_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/job"
)

// operation is one that can be interrupted, with what leads to it and what must
// hold after it.
type operation struct {
	name  string
	setup func(*rig)
	start func(*rig) (api.Job, error)
	state string // after it; empty: the item is gone
	check func(*rig)
}

func failover(r *rig) {
	r.done(r.FailoverItem(r.t.Context(), machine, api.Failover{Option: "latest"}))
	r.eventually("the recovered machine needs no view", func() bool { return !r.item().Recovery.NeedsView })
}

func commit(r *rig)    { r.done(r.Commit(r.t.Context(), machine, api.Commit{})) }
func reprotect(r *rig) { r.done(r.Reprotect(r.t.Context(), machine, api.Reprotect{})) }

// reversed has the item work at the recovery site and replicate back.
func reversed(r *rig) {
	failover(r)
	commit(r)
	reprotect(r)
	r.write(8192, 2)
}

func operations() []operation {
	nothing := func(*rig) {}
	reads := func(r *rig) { r.reads(0, 1) }
	both := func(r *rig) { r.reads(0, 1); r.reads(8192, 2) }
	return []operation{
		{"failover", nothing, func(r *rig) (api.Job, error) {
			return r.FailoverItem(r.t.Context(), machine, api.Failover{Option: "latest"})
		}, "commit_pending", reads},
		{"planned failover", nothing, func(r *rig) (api.Job, error) {
			return r.FailoverItem(r.t.Context(), machine, api.Failover{Option: "latest", Planned: true})
		}, "commit_pending", reads},
		{"change point", failover, func(r *rig) (api.Job, error) {
			return r.ChangePoint(r.t.Context(), machine, api.ChangePoint{Option: "latest_processed"})
		}, "commit_pending", nothing},
		{"change point, keeping", func(r *rig) { failover(r); r.write(16384, 9) }, func(r *rig) (api.Job, error) {
			return r.ChangePoint(r.t.Context(), machine, api.ChangePoint{Option: "latest", KeepWrites: true})
		}, "commit_pending", func(r *rig) {
			r.reads(0, 1)
			r.reads(16384, 0)
			if n := len(r.kept()); n != 1 {
				r.t.Errorf("%d timelines are kept, want 1", n)
			}
		}},
		{"undo", failover, func(r *rig) (api.Job, error) {
			return r.UndoFailover(r.t.Context(), machine, api.UndoFailover{})
		}, "protected", reads},
		{"commit", failover, func(r *rig) (api.Job, error) { return r.Commit(r.t.Context(), machine, api.Commit{}) }, "committed", reads},
		{"commit, deleting points", func(r *rig) { r.point("old"); r.write(4096, 3); failover(r) }, func(r *rig) (api.Job, error) {
			return r.Commit(r.t.Context(), machine, api.Commit{DeletePoints: true})
		}, "committed", func(r *rig) {
			r.reads(0, 1)
			// A server that dies before the job is recorded commits, and deletes nothing:
			// whoever asked was told that it failed.
			jobs, err := r.ListJobs(r.t.Context(), api.JobQuery{})
			if err != nil {
				r.t.Fatal(err)
			}
			asked := slices.ContainsFunc(jobs, func(j api.Job) bool { return j.Kind == "commit" && j.Tasks[2].State == "succeeded" })
			if s, err := r.vault.OpenStream(context.Background(), r.onlyStream()); err != nil || s.Refresh(context.Background()) != nil || asked && len(s.Points(1)) > 1 {
				r.t.Errorf("points are left of before, %v", err)
			}
			reprotect(r)
			r.reads(4096, 3)
		}},
		{"disable, deleting history", nothing, func(r *rig) (api.Job, error) {
			return r.DisableItem(r.t.Context(), machine, api.Disable{DeleteHistory: true})
		}, "", nothing},
		{"reprotect", func(r *rig) { failover(r); commit(r) }, func(r *rig) (api.Job, error) {
			return r.Reprotect(r.t.Context(), machine, api.Reprotect{})
		}, "protected", reads},
		{"reprotect, keeping", func(r *rig) { failover(r); scribble(r.t, r.primary, "m1", 16384, 9); commit(r) }, func(r *rig) (api.Job, error) {
			return r.Reprotect(r.t.Context(), machine, api.Reprotect{})
		}, "protected", func(r *rig) {
			if len(r.kept()) == 0 { // it was cancelled before that; then the failback does it
				r.done(r.Failback(r.t.Context(), machine, api.Failback{Option: "latest"}))
				commit(r)
				reprotect(r)
			}
			r.oneKept(map[int64]byte{0: 1, 16384: 9})
		}},
		{"failback", reversed, func(r *rig) (api.Job, error) {
			return r.Failback(r.t.Context(), machine, api.Failback{Option: "latest"})
		}, "commit_pending", both},
		{"unplanned failback", reversed, func(r *rig) (api.Job, error) {
			return r.Failback(r.t.Context(), machine, api.Failback{Option: "latest", Unplanned: true})
		}, "commit_pending", both},
		{"commit of a failback", func(r *rig) {
			reversed(r)
			r.done(r.Failback(r.t.Context(), machine, api.Failback{Option: "latest"}))
		}, func(r *rig) (api.Job, error) { return r.Commit(r.t.Context(), machine, api.Commit{}) }, "committed", both},
		{"test failover", nothing, func(r *rig) (api.Job, error) {
			return r.TestFailover(r.t.Context(), machine, api.TestFailover{Option: "latest"})
		}, "protected", func(r *rig) {
			if it := r.item(); len(it.Test.Open) != 1 || it.Test.State != "running" || len(r.recovery.Handles()) != 1 {
				r.t.Errorf("tests are %+v, recovered machines %v", it.Test, r.recovery.Handles())
			}
		}},
		{"clean-up", func(r *rig) { r.done(r.TestFailover(r.t.Context(), machine, api.TestFailover{Option: "latest"})) }, func(r *rig) (api.Job, error) {
			return r.CleanUpTest(r.t.Context(), machine, api.CleanUpTest{})
		}, "protected", func(r *rig) {
			if it := r.item(); len(it.Test.Open) != 0 || it.Test.Last == nil || len(r.recovery.Handles()) != 0 {
				r.t.Errorf("tests are %+v, recovered machines %v", it.Test, r.recovery.Handles())
			}
		}},
		{"resync", nothing, func(r *rig) (api.Job, error) { return r.Resync(r.t.Context(), machine, api.Resync{}) }, "protected", reads},
		{"take over disks", nothing, func(r *rig) (api.Job, error) { return r.growing(2 * diskSize) }, "protected", func(r *rig) {
			r.hasDisks(map[string]int64{"vda": 2 * diskSize, "vdb": 64 << 10})
			r.write(diskSize+4096, 7)
			failover(r)
			r.reads(0, 1)
			r.reads(diskSize+4096, 7)
		}},
		{"disable", nothing, func(r *rig) (api.Job, error) { return r.DisableItem(r.t.Context(), machine, api.Disable{}) }, "", nothing},
	}
}

// TestKilledAtEveryRecord kills the server before and after everything that it
// records, in every operation, and starts another: it must end as if nothing had
// happened, with one live machine and one timeline for each generation.
func TestKilledAtEveryRecord(t *testing.T) {
	t.Parallel()
	for _, op := range operations() {
		t.Run(op.name, func(t *testing.T) {
			t.Parallel()
			for n := int64(1); ; n++ {
				if !killedAt(t, op, n) {
					t.Logf("%d moments", n-1)
					return
				}
			}
		})
	}
}

// killedAt says whether the operation has a n-th moment.
func killedAt(t *testing.T, op operation, n int64) (reached bool) {
	t.Helper()
	ok := inBubble(t, fmt.Sprint(n), func(t *testing.T) {
		r := newRig(t)
		r.write(0, 1)
		r.protect()
		op.setup(r)
		r.kill()
		var count atomic.Int64
		died := make(chan struct{})
		r.start(func(string, job.Job) error {
			if count.Add(1) == n {
				close(died)
			}
			if count.Load() >= n {
				return errKilled
			}
			return nil
		})
		j, err := op.start(r)
		if err == nil {
			reached = r.endsOrDies(j.ID, died)
		} else {
			reached = errors.Is(err, errKilled)
		}
		r.kill()
		r.start(nil)
		r.settled(op)
	})
	return ok && reached
}

// endsOrDies waits until a job has ended or the server is dead, and says which.
func (r *rig) endsOrDies(id string, died <-chan struct{}) (dead bool) {
	for {
		select {
		case <-died:
			return true
		case <-time.After(2 * time.Millisecond):
		}
		if j, err := r.GetJob(r.t.Context(), id); err == nil && j.Ended() {
			return false
		}
	}
}

// settled waits until nothing is going on, and looks at what came of an
// operation. One that was never recorded is asked for again.
func (r *rig) settled(op operation) {
	r.t.Helper()
	if op.name == "take over disks" { // nobody asks for that
		r.eventually("the disks are taken over", func() bool { return sizeOf(r.item(), "vda") == 2*diskSize })
	}
	r.idle()
	it, err := r.GetItem(r.t.Context(), machine)
	if op.state == "" {
		if err == nil {
			r.done(op.start(r))
		}
		return
	}
	if err != nil {
		r.t.Fatal(err)
	}
	jobs, err := r.ListJobs(r.t.Context(), api.JobQuery{Limit: 1})
	if err != nil {
		r.t.Fatal(err)
	}
	lost := op.name == "test failover" && len(it.Test.Open) == 0 // whoever asked was told that it failed
	if it.State != op.state || !kinds[op.name][jobs[0].Kind] || lost {
		// The server died before the job was recorded.
		for _, test := range it.Test.Open {
			if test.State == "failed" {
				r.done(r.CleanUpTest(r.t.Context(), machine, api.CleanUpTest{}))
			}
		}
		r.done(op.start(r))
		r.idle()
	}
	r.isIn(op.state)
	if it := r.item(); it.CurrentJob != "" {
		r.t.Errorf("job %s is still named", it.CurrentJob)
	}
	op.check(r)
	r.oneForkEach()
}

// kinds are the kinds of jobs that an operation leads to.
var kinds = map[string]map[string]bool{
	"failover": {"failover": true, "hydrate": true}, "planned failover": {"planned_failover": true, "hydrate": true},
	"change point": {"change_point": true, "hydrate": true}, "change point, keeping": {"change_point": true, "hydrate": true}, "reprotect, keeping": {"reprotect": true}, "undo": {"undo_failover": true}, "commit": {"commit": true, "hydrate": true},
	"reprotect": {"reprotect": true}, "failback": {"failback": true}, "unplanned failback": {"failover": true}, "commit of a failback": {"commit": true}, "commit, deleting points": {"commit": true, "hydrate": true},
	"test failover": {"test_failover": true}, "clean-up": {"clean_up": true}, "resync": {"resync": true},
	"take over disks": {"update_disks": true},
}

// idle waits until no job is under way, and the item waits for none.
func (r *rig) idle() {
	r.t.Helper()
	r.eventually("all jobs end", func() bool {
		jobs, err := r.ListJobs(r.t.Context(), api.JobQuery{State: "active"})
		if err != nil || len(jobs) > 0 {
			return false
		}
		it, err := r.GetItem(r.t.Context(), machine)
		if err != nil {
			return true
		}
		passing := []string{"enabling", "disabling", "failing_over", "committing", "changing_point", "reprotecting", "undoing_failover", "initial_replication"}
		return !slices.Contains(passing, it.State) && it.CurrentJob == "" && it.Test.State != "starting" && it.Test.State != "cleaning_up"
	})
}

// onlyStream returns the stream that there is.
func (r *rig) onlyStream() holdfast.StreamID {
	r.t.Helper()
	ids, err := r.vault.Streams(context.Background())
	if err != nil || len(ids) != 1 {
		r.t.Fatalf("streams are %v, %v", ids, err)
	}
	return ids[0]
}

// oneForkEach looks whether any generation has two timelines, but for what was
// kept.
func (r *rig) oneForkEach() {
	r.t.Helper()
	s, err := r.vault.OpenStream(context.Background(), r.onlyStream())
	if err != nil {
		r.t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, tl := range s.Timelines() {
		if strings.HasPrefix(tl.Reason, "keep ") {
			continue // fences nobody off
		}
		key := fmt.Sprint(tl.Generation)
		if seen[key] {
			r.t.Errorf("generation %d has two timelines", tl.Generation)
		}
		seen[key] = true
	}
}
