package orchestrator_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/providertest"
)

// grouped is a planRig with a group of the first two machines.
func grouped(t *testing.T) *rig {
	t.Helper()
	r := planRig(t)
	r.apply(shopPlan)
	if g, err := r.ChangeGroup(t.Context(), "town", api.ChangeGroup{Add: three[:2]}); err != nil || !slices.Equal(g.Items, []string{machine, "web"}) {
		t.Fatalf("group is %+v, %v", g, err)
	}
	return r
}

func (r *rig) groupPoint(name string, app bool) api.Job {
	r.t.Helper()
	return r.ended(r.MakeGroupPoint(r.t.Context(), "town", api.MakePoint{Name: name, AppConsistent: app}))
}

func (r *rig) group() api.Group {
	r.t.Helper()
	g, err := r.GetGroup(r.t.Context(), "town")
	if err != nil {
		r.t.Fatal(err)
	}
	return g
}

// TestGroupMembers has items join and leave.
func TestGroupMembers(t *testing.T) {
	t.Parallel()
	r := grouped(t)
	for _, c := range []struct {
		group   string
		change  api.ChangeGroup
		refused string
	}{
		{"village", api.ChangeGroup{Add: []string{"web"}}, "it is in group town"},
		{"town", api.ChangeGroup{Remove: []string{"mail"}}, "it is not in group town"},
		{"town", api.ChangeGroup{Add: []string{"nobody"}}, "nobody"},
		{"town", api.ChangeGroup{Add: []string{"mail"}, Remove: []string{"web"}}, ""},
	} {
		g, err := r.ChangeGroup(t.Context(), c.group, c.change)
		if (err == nil) != (c.refused == "") || err != nil && !strings.Contains(err.Error(), c.refused) {
			t.Errorf("%+v: %+v, %v; want %q", c.change, g, err, c.refused)
		}
	}
	if g := r.group(); !slices.Equal(g.Items, []string{"mail", machine}) {
		t.Errorf("group is %+v", g)
	}
	if g, err := r.ChangeGroup(t.Context(), "town", api.ChangeGroup{Remove: []string{"mail", machine}}); err != nil || len(g.Items) != 0 {
		t.Errorf("group is %+v, %v", g, err)
	}
	if _, err := r.GetGroup(t.Context(), "town"); holdfast.KindOf(err) != holdfast.KindNotFound {
		t.Errorf("a group without items: %v", err)
	}
	var many []string
	for n := range holdfast.MaxGroup + 1 {
		name := fmt.Sprintf("many%d", n)
		m := providertest.FakeMachine(name, name)
		m.Disks = []provider.Disk{{ID: "vda", Size: 64 << 10, Format: "raw", Boot: true}}
		r.primary.AddMachine(m)
		r.done(r.ProtectMachine(t.Context(), api.Protect{Machine: name, Site: "primary", RecoverySite: "recovery"}))
		many = append(many, name)
	}
	if _, err := r.ChangeGroup(t.Context(), "town", api.ChangeGroup{Add: many}); err == nil {
		t.Error("a group took more than it may have")
	}
	if _, err := r.ChangeGroup(t.Context(), "town", api.ChangeGroup{Add: many[1:]}); err != nil {
		t.Error(err)
	}
}

// TestGroupPoints makes points that all have, and has plans use them.
func TestGroupPoints(t *testing.T) {
	t.Parallel()
	r := grouped(t)
	if _, err := r.plans.CheckPlan(t.Context(), "shop", api.RunPlan{Kind: "test", Option: "latest_multi_vm_app"}); err != nil {
		t.Fatal(err)
	}
	check, err := r.plans.CheckPlan(t.Context(), "shop", api.RunPlan{Kind: "test", Option: "latest_multi_vm_app"})
	if err != nil || check.OK || !strings.Contains(check.Machines[0].Reason, "no application-consistent recovery point in common") {
		t.Errorf("without such a point: %+v, %v", check, err)
	}
	for _, m := range []string{"m1", "m2", "m3"} {
		r.primary.SetAgent(m, 1)
	}
	if j := r.groupPoint("quiet", true); j.State != "succeeded" || len(j.Warnings) > 0 {
		t.Fatalf("job is %+v", j)
	}
	r.primary.SetAgent("m2", -1)
	if j := r.groupPoint("loud", true); j.State != "succeeded" || len(j.Warnings) != 1 || !strings.Contains(j.Warnings[0], "freeze web") {
		t.Errorf("with a guest that cannot be frozen: %+v", j)
	}
	for _, m := range []string{"m1", "m2"} {
		if frozen, _ := r.primary.Frozen(m); frozen {
			t.Errorf("machine %s is still frozen", m)
		}
	}
	g := r.group()
	if len(g.Points) != 2 || g.Points[0].Consistency != "crash" || g.Points[1].Consistency != "app" || g.Newest == nil {
		t.Fatalf("group is %+v", g)
	}
	r.done(r.MakePoint(t.Context(), "mail", api.MakePoint{Name: "own", AppConsistent: true}))
	run := r.succeeds(api.RunPlan{Kind: "unplanned", Option: "latest_multi_vm_app"})
	for i, m := range run.Machines {
		if m.Point.Consistency != "app" || (i < 2) != (m.Point.Name == "quiet") {
			t.Errorf("machine %s has point %+v", m.Item, m.Point)
		}
	}
}

// TestGroupSchedule has application-consistent points made by themselves, of the
// whole group, and says of its items what stood in the way.
func TestGroupSchedule(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := providertest.FakeMachine("m2", "web")
	m.Disks = []provider.Disk{{ID: "vda", Size: 64 << 10, Format: "raw", Boot: true}}
	r.primary.AddMachine(m)
	r.primary.SetAgent("m1", 1)
	r.primary.SetAgent("m2", 1)
	for _, name := range three[:2] {
		r.done(r.ProtectMachine(t.Context(), api.Protect{Machine: name, Site: "primary", RecoverySite: "recovery", Policy: api.Policy{AppPointInterval: 3600}}))
	}
	own := func() int {
		p, err := r.ListPoints(t.Context(), machine)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, x := range p.Points {
			if x.Consistency == "app" {
				n++
			}
		}
		return n
	}
	r.eventually("each has a point of its own", func() bool { return own() == 1 })
	if _, err := r.ChangeGroup(t.Context(), "town", api.ChangeGroup{Add: three[:2]}); err != nil {
		t.Fatal(err)
	}
	r.eventually("the group has one", func() bool { g := r.group(); return len(g.Points) == 1 && g.Points[0].Consistency == "app" })
	time.Sleep(50 * time.Millisecond)
	if n := len(r.group().Points); n != 1 || own() != 2 {
		t.Errorf("there are %d points of the group, %d of the first member", n, own())
	}
	r.primary.SetAgent("m2", 0)
	r.groupPoint("loud", true)
	r.eventually("the item says so", func() bool {
		return slices.ContainsFunc(r.item().Health.Findings, func(f api.Finding) bool { return f.Code == "HF1601" && strings.Contains(f.Cause, "freeze web") })
	})
}

// TestGroupLatest brings a group to its newest common moment, and falls back to
// each machine's own only if asked.
func TestGroupLatest(t *testing.T) {
	t.Parallel()
	r := grouped(t)
	check, err := r.plans.CheckPlan(t.Context(), "shop", api.RunPlan{Kind: "unplanned"})
	if err != nil || check.OK || !strings.Contains(check.Machines[0].Reason, "known that nothing of it was missed") {
		t.Fatalf("before anything is confirmed: %+v, %v", check, err)
	}
	if check, err = r.plans.CheckPlan(t.Context(), "shop", api.RunPlan{Kind: "unplanned", PerMachine: true}); err != nil || !check.OK {
		t.Fatalf("per machine: %+v, %v", check, err)
	}
	began := time.Now()
	run := r.succeeds(api.RunPlan{Kind: "unplanned"}) // which makes the moment
	a, b := run.Machines[0].Point.Time, run.Machines[1].Point.Time
	if a.Before(began) || b.Sub(a).Abs() > time.Second {
		t.Errorf("points are of %s and %s, the run began %s", a, b, began)
	}
	if _, err := r.plans.CheckPlan(t.Context(), "shop", api.RunPlan{Kind: "test", Option: "latest_multi_vm", Direction: api.ToRecovery}); err == nil {
		t.Error("an option for groups was taken though no machine of a group takes part")
	}
}

// TestGroupAtSeveralGateways has a group whose items replicate through two
// gateways: it has points in common while both held theirs, and no other moments.
func TestGroupAtSeveralGateways(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	if _, err := r.AddSite(ctx, api.AddSite{Name: "annex", Provider: "primary", Gateway: "unix:/annex"}); err != nil {
		t.Fatal(err)
	}
	m := providertest.FakeMachine("m2", "web")
	m.Disks = []provider.Disk{{ID: "vda", Size: 64 << 10, Format: "raw", Boot: true}}
	r.primary.AddMachine(m)
	r.done(r.ProtectMachine(ctx, api.Protect{Machine: machine, Site: "primary", RecoverySite: "recovery"}))
	r.done(r.ProtectMachine(ctx, api.Protect{Machine: "web", Site: "annex", RecoverySite: "recovery"}))
	set := func(f func(g *fakeGateway)) {
		r.gw.mu.Lock()
		defer r.gw.mu.Unlock()
		f(r.gw)
	}
	set(func(g *fakeGateway) { g.forgetful = "unix:/annex" })
	if _, err := r.ChangeGroup(ctx, "town", api.ChangeGroup{Add: three[:2]}); err != nil {
		t.Fatal(err)
	}
	if j := r.groupPoint("half", false); j.State != "failed" || !strings.Contains(j.Error.Message, "gateway unix:/annex: the hold is over") {
		t.Errorf("where one gateway did not hold: %+v", j.Error)
	}
	if g := r.group(); len(g.Points) != 0 || g.Newest != nil || !strings.Contains(g.Problem, "gateways") {
		t.Errorf("a point of which only one item has a half is one of the group: %+v", g)
	}
	set(func(g *fakeGateway) { g.forgetful = "none" })
	if j := r.groupPoint("whole", false); j.State != "succeeded" {
		t.Fatalf("job is %+v", j.Error)
	}
	g := r.group()
	whole := slices.IndexFunc(g.Points, func(p api.GroupPoint) bool { return p.Name == "whole" }) // others come by the clock
	if whole < 0 || g.Newest == nil || g.Newest.Before(g.Points[whole].Time) {
		t.Fatalf("group is %+v", g)
	}
	set(func(f *fakeGateway) {
		if len(f.holds) != 0 {
			t.Errorf("held still: %v", f.holds)
		}
	})
	r.script("note", note)
	r.apply("name: both\ngroups:\n  - name: a\n    machines: [shop, web]\n")
	out, err := r.plans.RunPlan(ctx, "both", "tester", api.RunPlan{Kind: "unplanned"})
	r.done(out, err)
	run, err := r.plans.GetRun(ctx, out.ID)
	if err != nil || run.Outcome != "succeeded" {
		t.Fatalf("run is %+v, %v", run, err)
	}
	first, second := run.Machines[0].Point, run.Machines[1].Point
	if first == nil || second == nil || first.Time.Before(g.Points[whole].Time) || first.ID == "" {
		t.Errorf("the run took %+v and %+v: not a point that both were held for", first, second)
	}
}

// TestGroupBarrierSchedule has points of a group at several gateways made by
// themselves.
func TestGroupBarrierSchedule(t *testing.T) {
	inBubble(t, "schedule", func(t *testing.T) {
		r := newRigAt(t, time.Second)
		ctx := t.Context()
		if _, err := r.AddSite(ctx, api.AddSite{Name: "annex", Provider: "primary", Gateway: "unix:/annex"}); err != nil {
			t.Fatal(err)
		}
		m := providertest.FakeMachine("m2", "web")
		m.Disks = []provider.Disk{{ID: "vda", Size: 64 << 10, Format: "raw", Boot: true}}
		r.primary.AddMachine(m)
		r.done(r.ProtectMachine(ctx, api.Protect{Machine: machine, Site: "primary", RecoverySite: "recovery"}))
		r.done(r.ProtectMachine(ctx, api.Protect{Machine: "web", Site: "annex", RecoverySite: "recovery"}))
		if _, err := r.ChangeGroup(ctx, "town", api.ChangeGroup{Add: three[:2]}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		if n := len(r.group().Points); n < 9 || n > 12 {
			t.Errorf("in 10 minutes %d points were made, want one a minute", n)
		}
		r.gw.mu.Lock()
		r.gw.forgetful = "unix:/annex"
		r.gw.mu.Unlock()
		time.Sleep(2 * time.Minute)
		if g := r.group(); !strings.Contains(g.Problem, "the hold is over") {
			t.Errorf("nobody is told why there are no more points: %+v", g.Problem)
		}
	})
}
