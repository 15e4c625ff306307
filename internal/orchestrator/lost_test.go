package orchestrator_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/providertest"
)

// TestLatest takes, with the newest point, what the gateway has received and the
// vault has not yet; with the newest that is processed it does not wait for that.
func TestLatest(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]api.Failover{
		"latest": {Option: "latest"}, "latest, shutting down": {Option: "latest", ShutdownSource: true}, "processed": {Option: "latest_processed"},
	} {
		inBubble(t, name, func(t *testing.T) {
			r := newRig(t)
			r.write(0, 1)
			r.protect()
			r.gw.mu.Lock()
			r.gw.lag = true
			r.gw.mu.Unlock()
			r.write(4096, 2)
			r.done(r.FailoverItem(t.Context(), machine, o))
			r.reads(0, 1)
			if o.Option == "latest" {
				r.reads(4096, 2)
			} else {
				r.reads(4096, 0)
			}
		})
	}
}

// TestMachineGone takes the recovered machine away behind everyone's back: that is
// a finding, and changing the point makes it anew.
func TestMachineGone(t *testing.T) {
	t.Parallel()
	inBubble(t, "gone", func(t *testing.T) {
		r := newRig(t)
		r.write(0, 1)
		r.protect()
		failover(r)
		_, m := r.active()
		r.recovery.RemoveMachine(m.ID)
		found := func() bool {
			return slices.ContainsFunc(r.item().Health.Findings, func(f api.Finding) bool { return f.Code == "HF1504" && f.Advice != "" })
		}
		r.eventually("it is a finding", found)
		r.done(r.ChangePoint(t.Context(), machine, api.ChangePoint{Option: "latest"}))
		r.reads(0, 1)
		if found() {
			t.Error("the finding stays")
		}
	})
}

// TestGuardRefused has a site that refuses to guard the source: it is switched off
// all the same, at once and whenever somebody starts it.
func TestGuardRefused(t *testing.T) {
	t.Parallel()
	inBubble(t, "refused", func(t *testing.T) {
		r := newRig(t)
		r.write(0, 1)
		r.protect()
		r.primary.Script(providertest.Fault{Method: "Guard", Err: errors.New("it has no definition")})
		j := r.done(r.FailoverItem(t.Context(), machine, api.Failover{Option: "latest"}))
		if len(j.Warnings) == 0 {
			t.Error("that the source is not guarded is no warning")
		}
		if at, _ := r.active(); at != r.recovery {
			t.Error("the machine does not run at the recovery site")
		}
		if live := r.world.Live("m1"); len(live) != 1 {
			t.Errorf("live are %v", live)
		}
		r.idle()
		commit(r)
		r.primary.SetPower("m1", provider.PowerOff)
	})
}

// TestChangeFailedAndSourceBack has a change of point fail, and then somebody start
// the source: it is switched off, and is off when the point is changed again.
func TestChangeFailedAndSourceBack(t *testing.T) {
	t.Parallel()
	inBubble(t, "back", func(t *testing.T) {
		r := newRig(t)
		r.write(0, 1)
		r.protect()
		failover(r)
		r.recovery.Script(providertest.Fault{Method: "Define", Err: errors.New("no memory left")})
		if j := r.ended(r.ChangePoint(t.Context(), machine, api.ChangePoint{Option: "latest"})); j.State != "failed" {
			t.Fatalf("the change of point: %s", j.State)
		}
		r.recovery.ClearScript()
		r.isIn("changing_point_failed")
		r.primary.SetPower("m1", provider.PowerRunning) // behind everyone's back
		r.eventually("the source is switched off", func() bool {
			r.item()
			m, err := r.primary.Site().Inventory.Machine(t.Context(), "m1")
			return err == nil && m.Power == provider.PowerOff
		})
		r.done(r.ChangePoint(t.Context(), machine, api.ChangePoint{Option: "latest"}))
		r.reads(0, 1)
	})
}

// TestLostSiteHangs loses the primary site so that nothing there ever answers: the
// recovered machine runs within ten seconds of the request.
func TestLostSiteHangs(t *testing.T) {
	t.Parallel()
	for _, o := range []string{"latest", "latest_processed"} {
		inBubble(t, o, func(t *testing.T) {
			r := newRig(t)
			r.write(0, 1)
			r.protect()
			r.gw.mu.Lock()
			r.gw.hang = true
			r.gw.mu.Unlock()
			for _, method := range []string{"Machine", "Machines", "Guard", "Guarded", "Kill", "OpenDisk"} {
				r.primary.Script(providertest.Fault{Method: method, Delay: time.Hour})
			}
			r.primary.SetPower("m1", provider.PowerOff)
			began := time.Now()
			j := r.done(r.FailoverItem(t.Context(), machine, api.Failover{Option: o}))
			took := time.Since(began)
			t.Logf("running after %s; the job says %.1f s", took, *j.Result.RTOSeconds)
			if took > 10*time.Second || *j.Result.RTOSeconds > 10 {
				t.Errorf("the recovered machine ran after %s, the job says %.1f s", took, *j.Result.RTOSeconds)
			}
			r.reads(0, 1)
			r.primary.ClearScript()
			r.gw.mu.Lock()
			r.gw.hang = false
			r.gw.mu.Unlock()
		})
	}
}

// TestDoesNotFit has a recovery site that cannot run the machine: that is found
// before it is protected, and, should it become so, before a source is fenced off.
func TestDoesNotFit(t *testing.T) {
	t.Parallel()
	inBubble(t, "fit", func(t *testing.T) {
		r := newRig(t)
		r.write(0, 1)
		no := func(provider.Machine) error { return errors.New("it is of another kind") }
		r.recovery.SetFits(no)
		j := r.ended(r.ProtectMachine(t.Context(), api.Protect{Machine: machine, Site: "primary", RecoverySite: "recovery"}))
		if j.State != "failed" || j.Error.Task != "check" || j.Error.Hint == "" {
			t.Errorf("protect: %s, %+v", j.State, j.Error)
		}
		r.recovery.SetFits(nil)
		r.protect()
		r.recovery.SetFits(no)
		for _, op := range []string{"failover", "planned_failover", "test_failover"} {
			c, err := r.CheckOperation(t.Context(), machine, api.CheckOperation{Operation: op, Option: "latest"})
			if err != nil || c.Allowed || !strings.Contains(c.Reason, "another kind") || c.NextStep == "" {
				t.Errorf("dry run of %s: %+v, %v", op, c, err)
			}
		}
		if j = r.ended(r.FailoverItem(t.Context(), machine, api.Failover{Option: "latest"})); j.State != "failed" || j.Error.Task != "check" {
			t.Errorf("failover: %s, %+v", j.State, j.Error)
		}
		r.isIn("protected")
		r.recovery.SetFits(nil)
		if c, err := r.CheckOperation(t.Context(), machine, api.CheckOperation{Operation: "test_failover", Option: "latest", Network: "nowhere"}); err != nil || c.Allowed || c.NextStep == "" {
			t.Errorf("dry run of a test in a network that is not there: %+v, %v", c, err)
		}
		failover(r)
		r.reads(0, 1)
	})
}
