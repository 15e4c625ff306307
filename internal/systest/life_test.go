package systest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/systest/lab"
)

// TestLifecycle takes a real guest out and home again: test failover, clean-up,
// unplanned failover at a random moment, two changes of the recovery point,
// commit, reprotect, failback, commit, reprotect. After each start the guest must
// find its records without a gap, up to what had been acknowledged by then.
func TestLifecycle(t *testing.T) {
	newWorld(t, worldOptions{}).lives(false)
}

// TestLifecyclePostgres does the same with PostgreSQL under pgbench in the
// guest, whose host is lost at the random moment: after each start the database
// recovers, amcheck finds nothing, the sums of pgbench agree, and every
// transaction acknowledged by then is there.
func TestLifecyclePostgres(t *testing.T) {
	newWorld(t, worldOptions{postgres: true, sizeMB: 704}).lives(true)
}

// lives is the whole life. With lost, the source is killed before the failover.
func (w *world) lives(lost bool) {
	t := w.t
	acks := w.watchAcks(w.SerialPath(w.Primary, machine))
	w.protect()
	w.writesOn("while it is protected")
	asked := time.Now()
	tested := w.result("test-failover", "start", machine, "--serial", "GUEST-READY", "--agent")
	w.verifiesSince(w.newestRecovered(), acks.promised(asked, tested))
	w.writesOn("during the test")
	w.cli("test-failover", "clean-up", machine, "--note", "it boots")
	if it := w.item(); it.Test.Last == nil || it.Test.Last.Note != "it boots" || it.State != "protected" {
		t.Fatalf("after clean-up: %+v", it.Test)
	}
	w.cli("failover", machine, "--dry-run")

	acked := w.failsOver(acks, lost)
	w.goesBack(acks)
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
	home := w.SerialPath(w.Primary, machine)
	w.must(os.Remove(home)) // what it said when it ran there before
	began := time.Now()
	r := w.result("failback", machine)
	if !r.Proved || r.MovedBytes == nil {
		t.Fatalf("the failback: %+v", r)
	}
	t.Logf("failback: %s, %d bytes written at home, RPO %v s, RTO %.1f s", time.Since(began).Round(time.Millisecond), *r.MovedBytes, *r.RPOSeconds, *r.RTOSeconds)
	w.verifiesSince(home, w.ackedIn(recovered)) // to the last, as nothing may be lost
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

// failsOver fails over, unplanned, at a random moment, and returns the last
// record that must be there. What the source was still acknowledged while the
// failover ran may be lost, unless the source is: then it was killed before, and
// nothing has been acknowledged that was not captured.
func (w *world) failsOver(acks *ackClock, lost bool) int64 {
	w.t.Helper()
	moment := rand.N(2 * time.Second)
	time.Sleep(moment)
	if lost {
		w.must(w.KillMachine(machine))
	}
	asked := time.Now()
	r := w.result("failover", machine)
	acked := acks.promised(asked, r)
	w.t.Logf("failover after %s: RPO %.3f s, RTO %.1f s, record %d was promised, %d acknowledged", moment.Round(time.Millisecond), *r.RPOSeconds, *r.RTOSeconds, acked, w.acknowledged())
	if lost {
		acked = w.acknowledged()
	}
	w.verifiesSince(w.newestRecovered(), acked)
	return acked
}

// goesBack changes to the oldest recovery point: what was acknowledged before it
// must be there, and what came well after it must not.
func (w *world) goesBack(acks *ackClock) {
	w.t.Helper()
	var points api.Points
	w.must(w.JSON(w.t.Context(), &points, "point", "list", machine))
	oldest := points.Points[len(points.Points)-1]
	w.cli("change-point", machine, "--point", oldest.ID)
	last := w.verifiesSince(w.newestRecovered(), acks.by(oldest.Time))
	// The console lags behind the disk, by less than this.
	const lag = 5 * time.Second
	if later := acks.by(oldest.Time.Add(lag)); last > later+1 {
		w.t.Fatalf("at the point of %s the guest found records up to %d; %s later %d was acknowledged", oldest.Time, last, lag, later)
	}
	w.t.Logf("back at %s: record %d, %d was acknowledged by then", oldest.Time.Format(time.TimeOnly), last, acks.by(oldest.Time))
}

// result runs a command that does a job, and returns what came of it.
func (w *world) result(args ...string) *api.JobResult {
	w.t.Helper()
	var job api.Job
	w.must(w.JSON(w.t.Context(), &job, args...))
	if r := job.Result; r == nil || r.Point == nil || r.RPOSeconds == nil || r.RTOSeconds == nil {
		w.t.Fatalf("holdfast %s: %+v, %+v", strings.Join(args, " "), job, r)
	}
	return job.Result
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

var verified = regexp.MustCompile(`last=(\d+) count=\d+ gaps=0 bad=0`)

// verifiesSince waits until the guest on a console says what it found, which
// must be without a gap and reach a record. It returns the last record found.
func (w *world) verifiesSince(serial string, acked int64) int64 {
	w.t.Helper()
	said := w.waitSerial(serial, `VERIFY [^\r\n]*[\r\n]`)[0]
	m := verified.FindStringSubmatch(said)
	if m == nil {
		text, _ := os.ReadFile(serial)
		w.t.Fatalf("the guest on %s found: %s, having said:\n%s", serial, strings.TrimSpace(said), lastBytes(text))
	}
	last, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil || last < acked {
		w.t.Fatalf("the guest on %s found records up to %d, %d had been acknowledged", serial, last, acked)
	}
	w.waitSerial(serial, `GUEST-READY`)
	return last
}
