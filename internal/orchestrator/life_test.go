package orchestrator_test

import (
	"testing"

	"github.com/holdfast-dr/holdfast/api"
)

// TestLife takes an item once round: out, home, and protected again.
func TestLife(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	r.write(0, 1) // before protection
	r.protect()
	r.write(8192, 2)

	j := r.done(r.TestFailover(ctx, machine, api.TestFailover{Option: "latest"}))
	if it := r.item(); len(it.Test.Open) != 1 || it.Test.State != "running" || it.State != "protected" || j.Result.Test == "" {
		t.Fatalf("during the test the item is %+v", it)
	}
	r.write(12288, 3) // replication goes on
	r.done(r.CleanUpTest(ctx, machine, api.CleanUpTest{Note: "all well"}))
	if it := r.item(); len(it.Test.Open) != 0 || it.Test.Last == nil || !it.Test.Last.Passed || it.Test.Last.Note != "all well" {
		t.Fatalf("after clean-up the item is %+v", it.Test)
	}
	if h := r.recovery.Handles(); len(h) != 0 {
		t.Errorf("clean-up has left %v", h)
	}

	j = r.done(r.FailoverItem(ctx, machine, api.Failover{Option: "latest"}))
	r.isIn("commit_pending")
	r.reads(0, 1)
	r.reads(8192, 2)
	r.reads(12288, 3)
	if *j.Result.RPOSeconds > 60 || j.Result.Site != "recovery" {
		t.Errorf("result is %+v", j.Result)
	}
	if r.primary.Guards()["m1"] == "" {
		t.Error("the source is not guarded")
	}
	r.write(16384, 4) // lost with the change of point

	points, err := r.ListPoints(ctx, machine)
	if err != nil || len(points.Points) < 2 {
		t.Fatalf("points: %+v, %v", points, err)
	}
	first := points.Points[len(points.Points)-1]
	r.done(r.ChangePoint(ctx, machine, api.ChangePoint{Option: "point", Point: first.ID}))
	r.isIn("commit_pending")
	r.reads(8192, 0)
	r.done(r.ChangePoint(ctx, machine, api.ChangePoint{Option: "latest"}))
	r.reads(8192, 2)
	r.reads(16384, 0)
	r.eventually("the recovered machine needs no view", func() bool { return !r.item().Recovery.NeedsView })
	r.done(r.Commit(ctx, machine, api.Commit{}))
	r.isIn("committed")

	// The original has more on its disk than the vault ever had.
	if err := r.primary.Disk("m1", "vda").WriteAt(ctx, make([]byte, 4096), 8192); err != nil {
		t.Fatal(err)
	}
	r.done(r.Reprotect(ctx, machine, api.Reprotect{}))
	if it := r.item(); it.State != "protected" || it.Direction != "reverse" || it.ActiveSite != "recovery" {
		t.Fatalf("after reprotect the item is %+v", it)
	}
	if n := r.gw.sentBytes(r.item().ID); n != 0 {
		t.Errorf("reprotect sent %d bytes, although nothing was written after the failover", n)
	}
	r.write(20480, 5)

	j = r.done(r.Failback(ctx, machine, api.Failback{Option: "latest"}))
	r.isIn("commit_pending")
	if !j.Result.Proved || j.Result.MovedBytes == nil || *j.Result.MovedBytes != 4096 || *j.Result.RPOSeconds != 0 {
		t.Errorf("result of the failback is %+v", j.Result)
	}
	for off, want := range map[int64]byte{0: 1, 8192: 2, 12288: 3, 16384: 0, 20480: 5} {
		r.reads(off, want)
	}
	if at, m := r.active(); at != r.primary || m.ID != "m1" {
		t.Errorf("machine %s runs, want the original", m.ID)
	}
	r.done(r.Commit(ctx, machine, api.Commit{}))
	if h := r.recovery.Handles(); len(h) != 0 {
		t.Errorf("commit has left %v", h)
	}
	r.done(r.Reprotect(ctx, machine, api.Reprotect{}))
	if it := r.item(); it.State != "protected" || it.Direction != "forward" || it.ActiveSite != "primary" {
		t.Fatalf("after the second reprotect the item is %+v", it)
	}
	r.write(24576, 6)
	j = r.done(r.FailoverItem(ctx, machine, api.Failover{Option: "latest", Planned: true}))
	if !j.Result.Proved {
		t.Errorf("the planned failover proves nothing: %+v", j.Result)
	}
	r.reads(24576, 6)
	r.done(r.UndoFailover(ctx, machine, api.UndoFailover{}))
	r.isIn("protected")
	if at, _ := r.active(); at != r.primary {
		t.Error("after the undo the machine does not run at home")
	}
	r.write(28672, 7)
	r.done(r.DisableItem(ctx, machine, api.Disable{}))
}
