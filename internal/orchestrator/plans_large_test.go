package orchestrator_test

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/providertest"
)

// TestPlanOfManyMachines brings 500 machines over in ten groups: in under a
// minute, which is our own overhead, for these sites take no time.
func TestPlanOfManyMachines(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	const groups, each = 10, 50
	r := newRigAt(t, 500*time.Millisecond)
	text := "name: shop\nat_once: 32\ngroups:\n"
	for g := range groups {
		text += fmt.Sprintf("  - name: g%d\n    machines:\n", g)
		for n := range each {
			name := fmt.Sprintf("m%d-%d", g, n)
			m := providertest.FakeMachine(name, name)
			m.Disks = []provider.Disk{{ID: "vda", Size: 64 << 10, Format: "raw", Boot: true}}
			r.primary.AddMachine(m)
			if _, err := r.ProtectMachine(t.Context(), api.Protect{Machine: name, Site: "primary", RecoverySite: "recovery"}); err != nil {
				t.Fatal(err)
			}
			text += "      - " + name + "\n"
		}
	}
	r.eventually("all are protected", func() bool {
		items, err := r.ListItems(t.Context())
		return err == nil && len(items) == groups*each && !slices.ContainsFunc(items, func(i api.Item) bool { return i.State != "protected" })
	})
	r.apply(text)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	began := time.Now()
	run := r.succeeds(api.RunPlan{Kind: "unplanned"})
	took := time.Since(began)
	runtime.GC()
	runtime.ReadMemStats(&after)
	t.Logf("%d machines in %s, %d KiB of memory more afterwards", len(run.Machines), took.Round(time.Millisecond), (int64(after.HeapInuse)-int64(before.HeapInuse))>>10)
	if took > time.Minute {
		t.Errorf("it took %s", took)
	}
}

// TestPlanNetworks looks where the cards of machines are connected.
func TestPlanNetworks(t *testing.T) {
	t.Parallel()
	r := planRig(t)
	r.recovery.SetNetworks("default", "dr", "bubble")
	r.apply(shopPlan + "networks:\n  - {from: default, to: dr, test: bubble}\n  - {from: other, to: default}\n")
	connected := func(want string, isolated bool) {
		t.Helper()
		all := r.recovery.Handles()
		for _, h := range all {
			made, _ := r.recovery.Recovered(h)
			got := made.Recovered
			if to, ok := got.NetworkOf("default"); !ok || to != want || got.Isolated != isolated {
				t.Errorf("machine %s is connected to %s, want %s: %+v", got.Name, to, want, got)
			}
		}
		if len(all) != 3 {
			t.Errorf("%d machines", len(all))
		}
	}
	r.succeeds(api.RunPlan{Kind: "test"})
	connected("bubble", true)
	r.succeeds(api.RunPlan{Kind: "clean_up"})
	r.succeeds(api.RunPlan{Kind: "unplanned"})
	connected("dr", false)
	r.done(r.ChangePoint(t.Context(), machine, api.ChangePoint{Option: "latest"}))
	connected("dr", false)

	b := planRig(t)
	b.apply(shopPlan + "networks: [{from: default, to: nowhere, test: nowhere}]\n")
	for _, kind := range []string{"test", "planned", "unplanned"} {
		if check, err := b.plans.CheckPlan(t.Context(), "shop", api.RunPlan{Kind: kind}); err != nil || check.OK || !strings.Contains(check.Machines[0].Reason, "nowhere") {
			t.Errorf("%s with a network that is not there: %+v, %v", kind, check, err)
		}
	}
	if run := b.runPlan(api.RunPlan{Kind: "unplanned"}); run.Outcome != "failed" {
		t.Errorf("run is %+v", run)
	}
	b.worksAt("primary")
}
