package systest

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/systest/lab"
)

// TestLifecycle takes a real guest out and home again: test failover, clean-up,
// unplanned failover at some moment, two changes of the recovery point, commit,
// reprotect, failback, commit, reprotect. After each start the guest must find
// its records without a gap, up to what had been acknowledged by then.
func TestLifecycle(t *testing.T) {
	newWorld(t, worldOptions{}).lives()
}

// TestLifecyclePostgres does the same with PostgreSQL under pgbench in the
// guest: after each start the database recovers, amcheck finds nothing, the sums
// of pgbench agree, and every transaction acknowledged by then is there.
func TestLifecyclePostgres(t *testing.T) {
	newWorld(t, worldOptions{postgres: true, sizeMB: 704}).lives()
}

func (w *world) lives() {
	t := w.t
	w.protect()
	w.writesOn("while it is protected")
	w.cli("test-failover", "start", machine, "--serial", "GUEST-READY", "--agent")
	w.verifiesSince(w.newestRecovered(), 0)
	w.writesOn("during the test")
	w.cli("test-failover", "clean-up", machine, "--note", "it boots")
	if it := w.item(); it.Test.Last == nil || it.Test.Last.Note != "it boots" || it.State != "protected" {
		t.Fatalf("after clean-up: %+v", it.Test)
	}
	w.cli("failover", machine, "--dry-run")

	acked := w.acknowledged()
	time.Sleep(time.Second)
	began := time.Now()
	w.cli("failover", machine)
	t.Logf("failover: %s", time.Since(began).Round(time.Millisecond))
	w.verifiesSince(w.newestRecovered(), acked)
	var points api.Points
	w.must(w.JSON(t.Context(), &points, "point", "list", machine))
	oldest := points.Points[len(points.Points)-1]
	w.cli("change-point", machine, "--point", oldest.ID)
	w.verifiesSince(w.newestRecovered(), 0)
	w.cli("change-point", machine)
	recovered := w.newestRecovered()
	w.verifiesSince(recovered, acked)
	recovered = w.keepsAndReturns(recovered, acked)
	w.cli("commit", machine)
	w.fails(11, []string{"commit"}, "change-point", machine)

	w.cli("reprotect", machine)
	if it := w.item(); it.State != "protected" || it.Direction != "reverse" {
		t.Fatalf("after reprotect the item is %s, %s", it.State, it.Direction)
	}
	there := w.ackedIn(recovered)
	w.eventually("the recovered guest writes on", func() bool { return w.ackedIn(recovered) > there+5 })
	there = w.ackedIn(recovered)
	home := w.SerialPath(w.Primary, machine)
	w.must(os.Remove(home)) // what it said when it ran there before
	var job api.Job
	began = time.Now()
	w.must(w.JSON(t.Context(), &job, "failback", machine))
	if r := job.Result; r == nil || !r.Proved || r.MovedBytes == nil {
		t.Fatalf("the failback: %+v", job)
	} else {
		t.Logf("failback: %s, %d bytes written at home, RPO %v s, RTO %.1f s", time.Since(began).Round(time.Millisecond), *r.MovedBytes, *r.RPOSeconds, *r.RTOSeconds)
	}
	w.verifiesSince(home, there)
	w.cli("commit", machine)
	w.cli("reprotect", machine)
	if it := w.item(); it.State != "protected" || it.Direction != "forward" {
		t.Fatalf("after the second reprotect the item is %s, %s", it.State, it.Direction)
	}
	w.writesOn("at home")
	w.pause()
	w.equalToSource(w.drained())
	w.checkVault()
}

// keepsAndReturns changes the recovery point, keeps what the recovered guest
// wrote, and goes back to that.
func (w *world) keepsAndReturns(recovered string, acked int64) string {
	w.t.Helper()
	w.eventually("the recovered guest writes", func() bool { return w.ackedIn(recovered) > acked+5 })
	wrote := w.ackedIn(recovered)
	w.cli("change-point", machine, "--keep-writes")
	w.verifiesSince(w.newestRecovered(), acked)
	var all api.Timelines
	w.must(w.JSON(w.t.Context(), &all, "timeline", "list", machine))
	i := slices.IndexFunc(all.Timelines, func(tl api.Timeline) bool { return tl.Abandoned && tl.Newest != nil })
	if i < 0 {
		w.t.Fatalf("nothing was kept: %+v", all)
	}
	w.cli("change-point", machine, "--timeline", fmt.Sprint(all.Timelines[i].Timeline))
	recovered = w.newestRecovered()
	w.verifiesSince(recovered, wrote)
	return recovered
}

// ackedIn returns the last record that the guest on a console has said to be
// safe.
func (w *world) ackedIn(serial string) int64 {
	w.t.Helper()
	n, err := lab.Acknowledged(serial)
	w.must(err)
	return n
}

// newestRecovered returns the console of the machine that was recovered last.
func (w *world) newestRecovered() string {
	w.t.Helper()
	serial, err := w.NewestSerial()
	w.must(err)
	return serial
}

// verifiesSince waits until the guest on a console says what it found, which
// must be without a gap and reach a record.
func (w *world) verifiesSince(serial string, acked int64) {
	w.t.Helper()
	m := w.waitSerial(serial, `VERIFY .*last=(\d+) count=\d+ gaps=0 bad=0`)
	if last, err := strconv.ParseInt(m[1], 10, 64); err != nil || last < acked {
		w.t.Fatalf("the guest on %s found records up to %d, %d had been acknowledged", serial, last, acked)
	}
	w.waitSerial(serial, `GUEST-READY`)
}
