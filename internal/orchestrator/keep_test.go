package orchestrator_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/provider/providertest"
)

// kept returns the timelines that were made to keep something, or that have
// such a point at their end, the newest first.
func (r *rig) kept() (out []api.Timeline) {
	r.t.Helper()
	all, err := r.ListTimelines(r.t.Context(), machine)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, tl := range all.Timelines {
		if tl.Newest != nil && strings.HasPrefix(tl.Newest.Name, "kept: ") && tl.Abandoned {
			out = append(out, tl)
		}
	}
	return out
}

// oneKept returns the one timeline that was kept, in which a test machine reads
// what is wanted.
func (r *rig) oneKept(want map[int64]byte) api.Timeline {
	r.t.Helper()
	all := r.kept()
	if len(all) != 1 {
		r.t.Fatalf("kept are %+v, want one", all)
	}
	r.keptReads(all[0], want)
	return all[0]
}

func (r *rig) keptReads(tl api.Timeline, want map[int64]byte) {
	r.t.Helper()
	j := r.done(r.TestFailover(r.t.Context(), machine, api.TestFailover{Option: "latest", Timeline: tl.Timeline}))
	at := r.recovery
	if j.Result.Site == "primary" {
		at = r.primary
	}
	for off, b := range want {
		var p [1]byte
		if err := at.Disk(j.Result.MachineID, "vda").ReadAt(r.t.Context(), p[:], off); err != nil || p[0] != b {
			r.t.Errorf("the kept timeline has %d at %d, want %d; %v", p[0], off, b, err)
		}
	}
	r.done(r.CleanUpTest(r.t.Context(), machine, api.CleanUpTest{Test: j.Result.Test}))
}

// TestKeepAbandoned changes the recovery point and keeps what the machine wrote,
// goes back to that, and undoes the failover and keeps that as well.
func TestKeepAbandoned(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.write(0, 1)
	r.protect()
	failover(r)
	r.write(4096, 2)
	r.write(512<<10, 3)
	r.done(r.ChangePoint(t.Context(), machine, api.ChangePoint{Option: "latest", KeepWrites: true}))
	r.reads(0, 1)
	r.reads(4096, 0)
	all := r.kept()
	if len(all) != 1 {
		t.Fatalf("kept are %+v, want one", all)
	}
	r.done(r.ChangePoint(t.Context(), machine, api.ChangePoint{Option: "latest", Timeline: all[0].Timeline}))
	for off, want := range map[int64]byte{0: 1, 4096: 2, 512 << 10: 3} {
		r.reads(off, want)
	}
	// A machine that wrote nothing leaves nothing to keep.
	r.done(r.ChangePoint(t.Context(), machine, api.ChangePoint{Option: "latest", Timeline: 1, KeepWrites: true}))
	r.reads(4096, 0)
	if n := len(r.kept()); n != 1 {
		t.Errorf("%d timelines are kept, want 1", n)
	}
	r.write(8192, 4)
	r.done(r.UndoFailover(t.Context(), machine, api.UndoFailover{KeepWrites: true}))
	r.isIn("protected")
	r.reads(8192, 0)
	if all := r.kept(); len(all) != 2 {
		t.Errorf("kept are %+v, want two", all)
	} else {
		r.keptReads(all[0], map[int64]byte{0: 1, 4096: 0, 8192: 4})
		r.keptReads(all[1], map[int64]byte{0: 1, 4096: 2, 8192: 0})
	}
}

// scribble has a machine write to its own disk, unseen by any gateway.
func scribble(t *testing.T, at *providertest.Fake, machine string, off int64, fill byte) {
	t.Helper()
	if err := at.Disk(machine, "vda").WriteAt(t.Context(), bytes.Repeat([]byte{fill}, 4096), off); err != nil {
		t.Fatal(err)
	}
}

// TestKeepReturnedSource has a source write on after its failover: reprotect
// keeps that before it brings the source's disks up to date, once.
func TestKeepReturnedSource(t *testing.T) {
	t.Parallel()
	for _, discard := range []bool{false, true} {
		r := newRig(t)
		r.write(0, 1)
		r.protect()
		failover(r)
		scribble(t, r.primary, "m1", 4096, 7)
		r.write(8192, 2)
		commit(r)
		r.done(r.Reprotect(t.Context(), machine, api.Reprotect{DiscardWrites: discard}))
		if discard {
			if all := r.kept(); len(all) != 0 {
				t.Errorf("kept are %+v, although it was asked to discard", all)
			}
			continue
		}
		r.oneKept(map[int64]byte{0: 1, 4096: 7, 8192: 0})
		r.write(12288, 3)
		j := r.done(r.Failback(t.Context(), machine, api.Failback{Option: "latest"}))
		if *j.Result.MovedBytes != 4096 {
			t.Errorf("the failback has moved %d bytes, want 4096", *j.Result.MovedBytes)
		}
		for off, want := range map[int64]byte{0: 1, 4096: 0, 8192: 2, 12288: 3} {
			r.reads(off, want)
		}
		if n := len(r.kept()); n != 1 {
			t.Errorf("%d timelines are kept, want 1", n)
		}
	}
}

// TestKeepRemoved fails back unplanned: what the recovered machine wrote and its
// gateway did not bring is kept before the machine is removed.
func TestKeepRemoved(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.write(0, 1)
	r.protect()
	reversed(r)
	_, m := r.active()
	scribble(t, r.recovery, m.ID, 4096, 7)
	r.done(r.Failback(t.Context(), machine, api.Failback{Option: "latest", Unplanned: true}))
	r.reads(8192, 2)
	r.reads(4096, 0)
	commit(r)
	if h := r.recovery.Handles(); len(h) != 0 {
		t.Errorf("commit has left %v", h)
	}
	reprotect(r)
	r.oneKept(map[int64]byte{0: 1, 4096: 7, 8192: 2})
}
