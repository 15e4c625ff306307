package orchestrator_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/api"
)

// history returns the names of the points that an item can be recovered to, and
// how long ago the oldest of its continuous history is.
func (r *rig) history() (names map[string]bool, reach time.Duration) {
	r.t.Helper()
	all, err := r.ListPoints(r.t.Context(), machine)
	if err != nil {
		r.t.Fatal(err)
	}
	names = map[string]bool{}
	for _, p := range all.Points {
		names[p.Name] = true
	}
	for _, x := range all.Ranges {
		if x.From != x.To {
			reach = max(reach, r.now().Sub(x.FromTime))
		}
	}
	return names, reach
}

// hours lets time pass, with a write and a named point each hour.
func (r *rig) hours(from, to int) {
	r.t.Helper()
	for h := from; h < to; h++ {
		r.write(int64(h%8)*4096, byte(h))
		r.done(r.MakePoint(r.t.Context(), machine, api.MakePoint{Name: fmt.Sprintf("hour %d", h)}))
		time.Sleep(time.Hour)
	}
}

// longRig is one for tests in which days pass.
func longRig(t *testing.T) *rig {
	t.Helper()
	return newRigAt(t, time.Minute)
}

// TestRetention lets days pass: what is older than the policy's window goes, and
// its space, but for what is pinned; the newest stays whatever its age, while
// nothing new comes.
func TestRetention(t *testing.T) {
	t.Parallel()
	inBubble(t, "days", func(t *testing.T) {
		r := longRig(t)
		r.write(0, 1)
		r.done(r.ProtectMachine(t.Context(), api.Protect{Machine: machine, Site: "primary", RecoverySite: "recovery", Policy: api.Policy{HistoryWindow: 4 * 3600}}))
		r.hours(0, 3)
		if p, err := r.PinPoint(t.Context(), machine, api.PinPoint{Point: "hour 1"}); err != nil || !p.Pinned {
			t.Fatal(p, err)
		}
		r.hours(3, 30)
		time.Sleep(20 * time.Minute)
		names, reach := r.history()
		for _, gone := range []string{"in sync", "hour 0", "hour 2", "hour 20"} {
			if names[gone] {
				t.Errorf("point %q is still there after a day", gone)
			}
		}
		for _, kept := range []string{"hour 1", "hour 27", "hour 29"} {
			if !names[kept] {
				t.Errorf("point %q is gone", kept)
			}
		}
		if reach < 4*time.Hour || reach > 6*time.Hour {
			t.Errorf("any moment of the last %s can be recovered, want the last 4 hours", reach)
		}
		r.done(r.TestFailover(t.Context(), machine, api.TestFailover{Option: "point", Point: "hour 1"}))
		if _, err := r.PinPoint(t.Context(), machine, api.PinPoint{Point: "hour 1", Unpin: true}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if names, _ = r.history(); !names["hour 1"] {
			t.Error("the point of a test that runs is gone")
		}
		r.done(r.CleanUpTest(t.Context(), machine, api.CleanUpTest{}))
		time.Sleep(time.Hour)
		if names, _ = r.history(); names["hour 1"] {
			t.Error("a point that nobody needs is still there")
		}
		time.Sleep(48 * time.Hour)
		if names, _ = r.history(); !names["hour 29"] {
			t.Error("the newest point is gone, and no other came")
		}
		r.done(r.FailoverItem(t.Context(), machine, api.Failover{Option: "point", Point: "hour 28"}))
		r.reads(28%8*4096, 28)
		r.reads(29%8*4096, 21)
		time.Sleep(48 * time.Hour)
		r.done(r.ChangePoint(t.Context(), machine, api.ChangePoint{Option: "point", Point: "hour 29"}))
		r.reads(29%8*4096, 29)
		r.idle()
		commit(r)
		scribble(t, r.primary, "m1", 256<<10, 9)
		if j := r.done(r.Reprotect(t.Context(), machine, api.Reprotect{})); len(j.Warnings) > 0 {
			t.Errorf("reprotect warns: %v", j.Warnings)
		}
		if len(r.kept()) != 1 {
			t.Error("what was written at home days ago was not kept")
		}
		r.hours(30, 48)
		r.write(0, 48)
		r.done(r.Failback(t.Context(), machine, api.Failback{Option: "latest"}))
		r.reads(47%8*4096, 47)
	})
}

// TestDeletePoints deletes, with a commit, what was before the failover, but for
// what is pinned.
func TestDeletePoints(t *testing.T) {
	t.Parallel()
	inBubble(t, "commit", func(t *testing.T) {
		r := newRig(t)
		r.write(0, 1)
		r.protect()
		for n := range 6 {
			r.write(int64(n)*4096, byte(10+n))
			r.point(fmt.Sprint("p", n))
		}
		if _, err := r.PinPoint(t.Context(), machine, api.PinPoint{Point: "p2"}); err != nil {
			t.Fatal(err)
		}
		r.done(r.FailoverItem(t.Context(), machine, api.Failover{Option: "point", Point: "p4"}))
		r.idle()
		r.done(r.Commit(t.Context(), machine, api.Commit{DeletePoints: true}))
		reprotect(r)
		r.write(8192, 99)
		names, _ := r.history()
		if names["p0"] || names["p1"] || names["p3"] || names["p5"] || !names["p2"] {
			t.Errorf("after the commit there are points %v, want p2 of those before", names)
		}
		r.reads(4*4096, 14)
		r.reads(5*4096, 0)
		r.done(r.TestFailover(t.Context(), machine, api.TestFailover{Option: "point", Point: "p2"}))
		r.done(r.CleanUpTest(t.Context(), machine, api.CleanUpTest{}))
		r.done(r.Failback(t.Context(), machine, api.Failback{Option: "latest"}))
		r.reads(4*4096, 14)
		r.reads(8192, 99)
		commit(r)
	})
}

// TestDeleteHistory ends protection and deletes what the vault has.
func TestDeleteHistory(t *testing.T) {
	t.Parallel()
	inBubble(t, "disable", func(t *testing.T) {
		r := newRig(t)
		r.write(0, 1)
		r.protect()
		r.done(r.DisableItem(t.Context(), machine, api.Disable{DeleteHistory: true}))
		if ids, err := r.vault.Streams(t.Context()); err != nil || len(ids) > 0 {
			t.Errorf("streams are %v, %v", ids, err)
		}
		r.protect()
		failover(r)
		r.reads(0, 1)
	})
}
