package orchestrator_test

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/api"
)

// TestPlanGuest runs commands in guests: in the test machine of a test, in the
// machine that counts otherwise.
func TestPlanGuest(t *testing.T) {
	t.Parallel()
	r := planRig(t)
	text := "name: shop\ngroups:\n  - name: a\n    machines: [shop]\n    after:\n      - {name: run, guest: {item: shop, command: [/bin/tell, me]}}\n      - {name: up, wait: {agent: shop}, timeout: 2s}\n"
	r.apply(text)
	asked := map[string]map[string]any{}
	exit, polls := 0, 0
	r.recovery.SetCommands(func(machine, command string, args map[string]any) (any, error) {
		asked[command] = args
		asked["on"] = map[string]any{"machine": machine}
		switch command {
		case "guest-exec":
			return map[string]any{"pid": 7}, nil
		case "guest-exec-status":
			if polls++; polls%2 == 1 {
				return map[string]any{"exited": false}, nil
			}
			return map[string]any{"exited": true, "exitcode": exit, "out-data": []byte("told\n"), "err-data": []byte("all")}, nil
		}
		if command == "guest-network-get-interfaces" {
			return []map[string]any{{"name": "eth0", "ip-addresses": []map[string]any{{"ip-address": "10.8.0.12", "prefix": 24}, {"ip-address": "fe80::1", "prefix": 64}, {"ip-address": "nonsense"}}}}, nil
		}
		return nil, errors.New("unknown command")
	})
	run := r.runPlan(api.RunPlan{Kind: "test"})
	if run.Outcome != "partial" || !strings.Contains(run.Steps[2].Error, "no guest agent") {
		t.Errorf("without an agent: %+v", run.Steps)
	}
	r.succeeds(api.RunPlan{Kind: "clean_up"})
	agents := func(kind string) api.PlanRun {
		t.Helper()
		j, err := r.plans.RunPlan(t.Context(), "shop", "tester", api.RunPlan{Kind: kind, Direction: api.ToRecovery})
		if err != nil {
			t.Fatal(err)
		}
		r.eventually("the run ends, with agents in all machines", func() bool {
			all, _ := r.recovery.Site().Inventory.Machines(t.Context())
			for _, m := range all {
				r.recovery.SetAgent(m.ID, 1)
			}
			j, err = r.GetJob(t.Context(), j.ID)
			return err == nil && j.Ended()
		})
		out, err := r.plans.GetRun(t.Context(), j.ID)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	r.apply(strings.Replace(text, "    after:\n", "    after:\n      - {name: first, wait: {agent: shop}, timeout: 20s}\n", 1))
	run = agents("test")
	if run.Outcome != "succeeded" || run.Steps[3].Output != "told\nall" {
		t.Errorf("test: %+v", run.Steps)
	}
	input, err := base64.StdEncoding.DecodeString(asked["guest-exec"]["input-data"].(string))
	if err != nil || !strings.Contains(string(input), `"FailoverType": "Test"`) || !strings.Contains(string(input), `"10.8.0.12"`) || asked["guest-exec"]["path"] != "/bin/tell" {
		t.Errorf("the guest was asked %v, told %s, %v", asked, input, err)
	}
	exit = 3
	if run = agents("unplanned"); run.Outcome != "partial" || !strings.Contains(run.Steps[3].Error, "/bin/tell ended with 3") {
		t.Errorf("a command that fails: %+v", run.Steps)
	}
	if m := r.item().Recovery.MachineID; asked["on"]["machine"] != m {
		t.Errorf("the guest that was asked is %v, want %s", asked["on"], m)
	}
}
