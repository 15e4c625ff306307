package orchestrator_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/providertest"
)

// TestSiteLost loses the primary site with its gateway: the failover goes on,
// and the source is switched off and guarded when it comes back.
func TestSiteLost(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.write(0, 1)
	r.protect()
	r.primary.LoseHost()
	r.gw.mu.Lock()
	r.gw.down = errors.New("no route to host")
	r.gw.mu.Unlock()
	j := r.done(r.FailoverItem(t.Context(), machine, api.Failover{Option: "latest", ShutdownSource: true}))
	if len(j.Warnings) == 0 {
		t.Error("that the source could not be shut down is not a warning")
	}
	r.reads(0, 1)
	finding := func(code string) func() bool {
		return func() bool {
			for _, f := range r.item().Health.Findings {
				if f.Code == code && f.Advice != "" {
					return true
				}
			}
			return false
		}
	}
	r.eventually("that the source is not guarded is a finding", finding("HF1503"))
	// The host comes back, and with it the machine: the world sees two live copies.
	r.kill()
	r.start(nil)
	r.primary.SetDown(false)
	r.eventually("the source is guarded", func() bool { r.item(); return r.primary.Guards()["m1"] != "" })
	if err := r.primary.Site().Power.Start(t.Context(), "m1"); !errors.Is(err, provider.ErrGuarded) {
		t.Errorf("start of the guarded source: %v", err)
	}
}

// TestQueued asks for operations right after another was asked for, whose job may
// not have begun: each is done or refused, and the item waits for nothing.
func TestQueued(t *testing.T) {
	t.Parallel()
	refused := 0
	for n := range 12 {
		inBubble(t, fmt.Sprint(n), func(t *testing.T) {
			r := newRig(t)
			r.write(0, 1)
			r.protect()
			j, err := r.Resync(t.Context(), machine, api.Resync{})
			if err != nil {
				t.Fatal(err)
			}
			asked := []func() (api.Job, error){
				func() (api.Job, error) {
					return r.FailoverItem(t.Context(), machine, api.Failover{Option: "latest"})
				},
				func() (api.Job, error) { return r.DisableItem(t.Context(), machine, api.Disable{}) },
				func() (api.Job, error) { return r.Resync(t.Context(), machine, api.Resync{}) },
			}[n%3]
			second, err := asked()
			if err != nil {
				refused++
				if holdfast.KindOf(err) != holdfast.KindNotAllowed || holdfast.HintOf(err) == "" {
					t.Errorf("%v, want not allowed, and a hint", err)
				}
				r.done(j, nil)
				r.idle()
				r.isIn("protected")
				r.done(asked())
				return
			}
			r.done(second, nil)
		})
	}
	if refused == 0 {
		t.Error("nothing was refused, so nothing is tested")
	}
}

// TestGuardLate has the look at the machine that was left behind take so long
// that an undo has begun meanwhile: the machine that the undo starts runs on.
func TestGuardLate(t *testing.T) {
	t.Parallel()
	for _, back := range []func(*rig) (api.Job, error){
		func(r *rig) (api.Job, error) { return r.UndoFailover(t.Context(), machine, api.UndoFailover{}) },
		func(r *rig) (api.Job, error) {
			commit(r)
			reprotect(r)
			return r.Failback(t.Context(), machine, api.Failback{Option: "latest"})
		},
	} {
		r := newRig(t)
		r.write(0, 1)
		r.protect()
		failover(r)
		if err := r.primary.Site().Power.Unguard(t.Context(), "m1"); err != nil {
			t.Fatal(err)
		}
		r.kill()
		looks, goOn := make(chan struct{}), make(chan struct{})
		var once sync.Once
		r.primary.Script(providertest.Fault{Method: "Guarded", Do: func() {
			once.Do(func() { close(looks); <-goOn })
		}})
		r.start(nil)
		<-looks
		j, err := back(r)
		time.AfterFunc(300*time.Millisecond, func() { close(goOn) })
		r.done(j, err)
		r.eventually("the look at the machine is over", func() bool { _, err := r.GetItem(t.Context(), machine); return err == nil })
		time.Sleep(50 * time.Millisecond)
		if at, _ := r.active(); at != r.primary {
			t.Error("the machine does not run at home")
		}
		r.reads(0, 1)
		r.primary.ClearScript()
	}
}

// TestTargetFails has the target fail for good, then work: the failover fails,
// leaves nothing behind, and succeeds when it is asked for again.
func TestTargetFails(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"Define", "Start"} {
		r := newRig(t)
		r.write(0, 1)
		r.protect()
		r.recovery.Script(providertest.Fault{Method: method, Err: errors.New("no memory left")})
		j := r.ended(r.FailoverItem(t.Context(), machine, api.Failover{Option: "latest"}))
		if j.State != "failed" || !strings.Contains(j.Error.Cause+j.Error.Message, "no memory left") {
			t.Fatalf("with %s failing the job is %s: %+v", method, j.State, j.Error)
		}
		r.isIn("failover_failed")
		if h := r.recovery.Handles(); len(h) != 0 {
			t.Errorf("with %s failing %v was left behind", method, h)
		}
		r.recovery.ClearScript()
		r.done(r.FailoverItem(t.Context(), machine, api.Failover{Option: "latest"}))
		r.reads(0, 1)
		if h := r.recovery.Handles(); len(h) != 1 {
			t.Errorf("recovered machines are %v", h)
		}
	}
}

// TestUndoFailed gives up a failover that has failed.
func TestUndoFailed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.write(0, 1)
	r.protect()
	r.recovery.Script(providertest.Fault{Method: "Define", Err: errors.New("no memory left")})
	r.ended(r.FailoverItem(t.Context(), machine, api.Failover{Option: "latest"}))
	r.isIn("failover_failed")
	r.done(r.UndoFailover(t.Context(), machine, api.UndoFailover{}))
	r.isIn("protected")
	r.write(4096, 2)
	r.recovery.ClearScript()
	failover(r)
	r.reads(0, 1)
	r.reads(4096, 2)
}

// TestCancelled cancels each operation while each of its tasks runs: whatever
// could be cancelled leaves an item that goes on, and the operation succeeds
// when it is asked for again.
func TestCancelled(t *testing.T) {
	t.Parallel()
	for _, op := range operations() {
		if op.state == "" {
			continue
		}
		t.Run(op.name, func(t *testing.T) {
			t.Parallel()
			for n := 0; cancelledIn(t, op, n); n++ {
			}
		})
	}
}

// cancelledIn cancels an operation when its n-th task begins, and says whether
// there is one.
func cancelledIn(t *testing.T, op operation, n int) (reached bool) {
	t.Helper()
	inBubble(t, fmt.Sprint(n), func(t *testing.T) {
		r := newRig(t)
		r.write(0, 1)
		r.protect()
		op.setup(r)
		r.kill()
		begun, cancelled := make(chan string, 1), make(chan struct{})
		r.start(func(when string, j job.Job) error {
			if when != "after" || !kinds[op.name][j.Kind] || j.Kind == "hydrate" || len(j.Tasks) <= n || j.Tasks[n].State != job.InProgress || reached {
				return nil
			}
			reached = true
			begun <- j.ID
			return nil
		})
		j, err := op.start(r)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			defer close(cancelled)
			select {
			case id := <-begun:
				_, _ = r.CancelJob(t.Context(), id) // it may be too late
			case <-time.After(200 * time.Millisecond):
			}
		}()
		j = r.ended(j, nil)
		<-cancelled
		r.idle()
		it := r.item()
		// A reprotect that has given its order goes on without its job.
		if it.State != op.state || j.State != "succeeded" && !strings.HasPrefix(op.name, "reprotect") {
			if op.name == "test failover" && len(it.Test.Open) > 0 {
				r.done(r.CleanUpTest(t.Context(), machine, api.CleanUpTest{}))
			}
			r.done(op.start(r))
			r.idle()
		}
		r.isIn(op.state)
		op.check(r)
		r.oneForkEach()
	})
	return reached
}

// TestTwoAtOnce asks for two operations at the same time: one has it, the other
// is told why not.
func TestTwoAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.write(0, 1)
	r.protect()
	type answer struct {
		j   api.Job
		err error
	}
	answers := make(chan answer, 2)
	for range 2 {
		go func() {
			j, err := r.FailoverItem(t.Context(), machine, api.Failover{Option: "latest"})
			answers <- answer{j, err}
		}()
	}
	won := 0
	for range 2 {
		if a := <-answers; a.err == nil {
			won++
			r.done(a.j, nil)
		}
	}
	if won != 1 {
		t.Errorf("%d of two failovers began", won)
	}
	r.reads(0, 1)
	r.oneForkEach()
}

// TestAnotherServer has the lease of the vault in doubt: no machine is started.
func TestAnotherServer(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.protect()
	r.confirm = errors.New("another server may have it")
	j := r.ended(r.FailoverItem(t.Context(), machine, api.Failover{Option: "latest"}))
	if j.State != "failed" || len(r.recovery.Handles()) != 0 {
		t.Errorf("job %s, recovered machines %v", j.State, r.recovery.Handles())
	}
}

// TestPlannedNotEqual has the source differ from the vault: a planned failover
// does not happen, and the source is started again.
func TestPlannedNotEqual(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.write(0, 1)
	r.protect()
	if err := r.primary.Disk("m1", "vda").WriteAt(t.Context(), make([]byte, 512), 0); err != nil {
		t.Fatal(err)
	}
	j := r.ended(r.FailoverItem(t.Context(), machine, api.Failover{Option: "latest", Planned: true}))
	if j.State != "failed" || !strings.Contains(j.Error.Cause+j.Error.Message, "4096 bytes") {
		t.Errorf("job %s: %+v", j.State, j.Error)
	}
	r.isIn("protected")
	if at, _ := r.active(); at != r.primary {
		t.Error("the source was not started again")
	}
}

// TestAppPoint freezes the guest for a point; where that cannot be, the point is
// crash-consistent, a finding says why, and the guest is never left frozen.
func TestAppPoint(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.protect()
	app := func() int {
		points, err := r.ListPoints(t.Context(), machine)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, p := range points.Points {
			if p.Consistency == "app" {
				n++
			}
		}
		return n
	}
	if j := r.done(r.MakePoint(t.Context(), machine, api.MakePoint{AppConsistent: true})); len(j.Warnings) == 0 || app() != 0 {
		t.Errorf("without an agent: %+v, %d app-consistent points", j.Warnings, app())
	}
	r.primary.SetAgent("m1", 2)
	if j := r.done(r.MakePoint(t.Context(), machine, api.MakePoint{Name: "before upgrade", AppConsistent: true})); len(j.Warnings) != 0 || app() != 1 {
		t.Errorf("with an agent: %+v, %d app-consistent points", j.Warnings, app())
	}
	if now, times := r.primary.Frozen("m1"); now || times != 1 {
		t.Errorf("frozen now %v, %d times", now, times)
	}
	r.write(0, 9)
	r.done(r.FailoverItem(t.Context(), machine, api.Failover{Option: "latest_app"}))
	r.reads(0, 0)
}

// TestAppPointSchedule has the policy make app-consistent points.
func TestAppPointSchedule(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.primary.SetAgent("m1", 1)
	r.done(r.ProtectMachine(t.Context(), api.Protect{Machine: machine, Site: "primary", RecoverySite: "recovery", Policy: api.Policy{AppPointInterval: 60}}))
	if it := r.item(); it.Policy.AppPointInterval != 60 {
		t.Errorf("policy is %+v", it.Policy)
	}
	r.eventually("an app-consistent point is made", func() bool { _, times := r.primary.Frozen("m1"); return times == 1 })
	if now, _ := r.primary.Frozen("m1"); now {
		r.eventually("the guest is thawed", func() bool { now, _ := r.primary.Frozen("m1"); return !now })
	}
}

// TestGone fails back although the original machine is gone: it is made anew.
func TestGone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.write(0, 1)
	r.protect()
	failover(r)
	r.primary.RemoveMachine("m1")
	commit(r)
	reprotect(r)
	r.write(8192, 2)
	r.done(r.Failback(t.Context(), machine, api.Failback{Option: "latest"}))
	r.reads(0, 1)
	r.reads(8192, 2)
	r.eventually("the machine needs no view", func() bool { return !r.item().Recovery.NeedsView })
	commit(r)
	reprotect(r)
	r.write(12288, 3)
	failover(r)
	r.reads(12288, 3)
}

// TestDryRun asks what operations would do: nothing is changed by that.
func TestDryRun(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.protect()
	before := r.item()
	out, err := r.CheckOperation(t.Context(), machine, api.CheckOperation{Operation: "failover"})
	if err != nil || !out.Allowed || out.Point == nil || out.Site != "recovery" || len(out.Steps) == 0 {
		t.Errorf("failover: %+v, %v", out, err)
	}
	out, err = r.CheckOperation(t.Context(), machine, api.CheckOperation{Operation: "commit"})
	if err != nil || out.Allowed || out.Reason == "" || out.NextStep == "" {
		t.Errorf("commit: %+v, %v", out, err)
	}
	out, err = r.CheckOperation(t.Context(), machine, api.CheckOperation{Operation: "failover", Option: "point", Point: "nix"})
	if err != nil || out.Allowed || len(out.Findings) == 0 {
		t.Errorf("failover to no point: %+v, %v", out, err)
	}
	r.recovery.SetDown(true)
	out, err = r.CheckOperation(t.Context(), machine, api.CheckOperation{Operation: "failover"})
	if err != nil || out.Allowed || !strings.Contains(out.Reason, "unreachable") {
		t.Errorf("failover to a site that is away: %+v, %v", out, err)
	}
	r.recovery.SetDown(false)
	if after := r.item(); after.Version != before.Version {
		t.Errorf("version %d, was %d", after.Version, before.Version)
	}
	if _, err := r.CheckOperation(t.Context(), machine, api.CheckOperation{Operation: "explode"}); err == nil {
		t.Error("there is no such operation")
	}
}

// TestVerification looks whether a test machine has booted, and refuses scripts
// from elsewhere before anything is begun.
func TestVerification(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.protect()
	for _, v := range []api.BootVerification{{Script: "/bin/true"}, {Script: "../x"}, {Serial: "("}} {
		if _, err := r.TestFailover(t.Context(), machine, api.TestFailover{Option: "latest", Verify: &v}); err == nil {
			t.Errorf("%+v was taken", v)
		}
	}
	if it := r.item(); len(it.Test.Open) != 0 {
		t.Errorf("tests are %+v", it.Test)
	}
	script := filepath.Join(r.scripts, "look")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nenv | sort\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	j := r.done(r.TestFailover(t.Context(), machine, api.TestFailover{Option: "latest", Name: "t1", Verify: &api.BootVerification{Script: "look", Screenshot: true}}))
	said := strings.Join(j.Tasks[len(j.Tasks)-1].Log, "\n")
	if !strings.Contains(said, "HOLDFAST_TEST_NAME=t1") || strings.Contains(said, "HOME=") {
		t.Errorf("the script says %q", said)
	}
	if png, err := r.Screenshot(t.Context(), j.ID); err != nil || !strings.HasPrefix(string(png), "\x89PNG") {
		t.Errorf("picture: %q, %v", png, err)
	}
	if it := r.item(); it.Test.Open[0].Verified != "passed" {
		t.Errorf("test is %+v", it.Test.Open)
	}
	r.done(r.CleanUpTest(t.Context(), machine, api.CleanUpTest{}))
	j = r.ended(r.TestFailover(t.Context(), machine, api.TestFailover{Option: "latest", Verify: &api.BootVerification{Agent: true, TimeoutSeconds: 1}}))
	if it := r.item(); j.State != "failed" || it.Test.State != "failed" || it.State != "protected" {
		t.Errorf("without an agent the job is %s, the item %+v", j.State, it)
	}
	r.done(r.CleanUpTest(t.Context(), machine, api.CleanUpTest{Note: "no agent"}))
}

// TestVerificationLooks looks for all signs of life in their order, again until
// they are there, and gives up at once where there is no way.
func TestVerificationLooks(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.protect()
	refused := errors.New("connection refused")
	r.recovery.Script(providertest.Fault{Method: "Dial", Call: 1, Err: refused}, providertest.Fault{Method: "NetworkPing", Call: 1, Err: refused})
	all := api.BootVerification{Serial: "login: $", Ping: true, TCPPort: 22, TimeoutSeconds: 60}
	j := r.done(r.TestFailover(t.Context(), machine, api.TestFailover{Option: "latest", Verify: &all}))
	log := strings.Join(j.Tasks[len(j.Tasks)-1].Log, "\n")
	for _, want := range []string{"there is text like login", "there is an answer to a ping", "there is a connection to port 22"} {
		at := strings.Index(log, want)
		if at < 0 {
			t.Fatalf("the log lacks %q, or has it too early: %s", want, log)
		}
		log = log[at:]
	}
	r.done(r.CleanUpTest(t.Context(), machine, api.CleanUpTest{}))
	r.recovery.Script(providertest.Fault{Method: "Said", Err: provider.ErrNoWay})
	began := time.Now()
	j = r.ended(r.TestFailover(t.Context(), machine, api.TestFailover{Option: "latest", Verify: &all}))
	if j.State != "failed" || !strings.Contains(j.Error.Cause+j.Error.Message, provider.ErrNoWay.Error()) || time.Since(began) > 30*time.Second {
		t.Errorf("without a console the job is %s after %s: %+v", j.State, time.Since(began), j.Error)
	}
	r.done(r.CleanUpTest(t.Context(), machine, api.CleanUpTest{}))
}

// TestOrderLost has the gateway lose its state: it gets its order again, and an
// order that was taken back stays so.
func TestOrderLost(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.write(0, 1)
	r.protect()
	r.gw.mu.Lock()
	clear(r.gw.orders)
	r.gw.mu.Unlock()
	has := func() bool {
		r.gw.mu.Lock()
		defer r.gw.mu.Unlock()
		return len(r.gw.orders) == 1
	}
	r.eventually("the gateway has its order again", has)
	r.write(4096, 2)
	failover(r)
	r.reads(4096, 2)
	r.done(r.DisableItem(t.Context(), machine, api.Disable{}))
	time.Sleep(50 * time.Millisecond) // many observations
	if has() {
		t.Error("the gateway got an order for an item that is gone")
	}
}
