package orchestrator_test

import (
	"fmt"
	"testing"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
)

// TestTiers lets days pass under tiers: one point remains for each stretch of time,
// each of them can be recovered to, and a policy changed later thins what there is.
func TestTiers(t *testing.T) {
	t.Parallel()
	inBubble(t, "days", func(t *testing.T) {
		r := longRig(t)
		ctx := t.Context()
		r.write(0, 1)
		r.done(r.ProtectMachine(ctx, api.Protect{Machine: machine, Site: "primary", RecoverySite: "recovery",
			Policy: api.Policy{HistoryWindow: 4 * 3600, Tiers: []api.Tier{{Every: 6 * 3600, Until: 4 * 24 * 3600}}}}))
		r.hours(0, 60)
		time.Sleep(20 * time.Minute)
		names, reach := r.history()
		left := 0
		for h := range 54 {
			if names[fmt.Sprint("hour ", h)] {
				left++
			}
		}
		if left < 8 || left > 11 {
			t.Errorf("%d points of 54 hours are left, want one for each 6: %v", left, names)
		}
		if reach < 4*time.Hour || reach > 6*time.Hour {
			t.Errorf("any moment of %s can be recovered", reach)
		}
		for h := range 54 {
			if name := fmt.Sprint("hour ", h); names[name] && h%3 == 0 {
				r.done(r.TestFailover(ctx, machine, api.TestFailover{Option: "point", Point: name}))
				r.done(r.CleanUpTest(ctx, machine, api.CleanUpTest{}))
			}
		}
		it, err := r.GetItem(ctx, machine)
		if err != nil || len(it.Policy.Tiers) != 1 || it.Policy.HistoryWindow != 4*3600 {
			t.Fatalf("policy is %+v, %v", it.Policy, err)
		}
		p := it.Policy
		p.Tiers = []api.Tier{{Every: 24 * 3600, Until: 10 * 24 * 3600}}
		if _, err := r.ChangePolicy(ctx, machine, api.ChangePolicy{Policy: p, IfVersion: it.Version + 1}); holdfast.KindOf(err) != holdfast.KindConflict {
			t.Errorf("a change of another version: %v", err)
		}
		if it, err = r.ChangePolicy(ctx, machine, api.ChangePolicy{Policy: p, IfVersion: it.Version}); err != nil || it.Policy.Tiers[0].Every != 24*3600 {
			t.Fatalf("%+v, %v", it.Policy, err)
		}
		time.Sleep(2 * time.Hour)
		after := 0
		now, _ := r.history()
		for h := range 54 {
			if now[fmt.Sprint("hour ", h)] {
				after++
			}
		}
		if after < 2 || after > 4 {
			t.Errorf("%d points are left of 54 hours, want one for each day", after)
		}
		p.Tiers = []api.Tier{{Every: 3600, Until: 60}}
		if _, err := r.ChangePolicy(ctx, machine, api.ChangePolicy{Policy: p}); holdfast.KindOf(err) != holdfast.KindInvalid {
			t.Errorf("a tier that ends before the window: %v", err)
		}
	})
}

// TestHoldItem holds a history: neither its policy nor any operation removes anything
// of it, until it is released.
func TestHoldItem(t *testing.T) {
	t.Parallel()
	inBubble(t, "days", func(t *testing.T) {
		r := longRig(t)
		ctx := t.Context()
		r.write(0, 1)
		r.done(r.ProtectMachine(ctx, api.Protect{Machine: machine, Site: "primary", RecoverySite: "recovery", Policy: api.Policy{HistoryWindow: 2 * 3600}}))
		r.hours(0, 2)
		if _, err := r.HoldItem(ctx, machine, "eve", api.HoldItem{}); holdfast.KindOf(err) != holdfast.KindInvalid {
			t.Errorf("a hold without a reason: %v", err)
		}
		it, err := r.HoldItem(ctx, machine, "eve", api.HoldItem{Reason: "case 4711"})
		if err != nil || it.Stream.Hold == nil || it.Stream.Hold.By != "eve" {
			t.Fatalf("%+v, %v", it.Stream, err)
		}
		r.hours(2, 30)
		if names, _ := r.history(); !names["hour 0"] || !names["hour 15"] {
			t.Errorf("a held history has lost points: %v", names)
		}
		if _, err := r.DisableItem(ctx, machine, api.Disable{DeleteHistory: true}); holdfast.KindOf(err) != holdfast.KindNotAllowed {
			t.Errorf("deleting a held history: %v", err)
		}
		r.done(r.FailoverItem(ctx, machine, api.Failover{Option: "point", Point: "hour 3"}))
		r.reads(3*4096, 3)
		if _, err := r.Commit(ctx, machine, api.Commit{DeletePoints: true}); holdfast.KindOf(err) != holdfast.KindNotAllowed {
			t.Errorf("deleting points of a held history: %v", err)
		}
		commit(r)
		if _, err := r.HoldItem(ctx, machine, "eve", api.HoldItem{Release: true}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour)
		if names, _ := r.history(); names["hour 0"] || names["hour 15"] {
			t.Errorf("a history that was released is still whole: %v", names)
		}
	})
}
