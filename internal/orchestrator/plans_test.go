package orchestrator_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/providertest"
)

// three are the machines of the plans here; the first is the rig's own.
var three = []string{machine, "web", "mail"}

const shopPlan = `# comments stay
name: shop
description: The shop
groups:
  - name: data
    before:
      - name: first
        runs: [test, planned, unplanned, reprotect, commit, clean_up]
        script: {path: note, args: [before-data]}
    machines: [shop]
    after:
      - name: second
        script: {path: note, args: [after-data]}
  - name: front
    machines:
      - item: web
      - {item: mail, name: mail-dr}
    after:
      - name: third
        directions: [primary_to_recovery]
        script: {path: note, args: [after-front], env: {WHAT: world}}
clean_up:
  after:
    - name: last
      script: {path: note, args: [cleaned]}
`

// note is a script that says in a file that it ran, and keeps what it was told.
const note = `#!/bin/sh
cat > told-$1.json
echo $1 >> log
echo "said $1 $WHAT"
`

// planRig is a rig with three protected machines, and the scripts of the plans.
func planRig(t *testing.T) *rig {
	t.Helper()
	r := newRig(t)
	for i, name := range three[1:] {
		m := providertest.FakeMachine(fmt.Sprintf("m%d", i+2), name)
		m.Disks = []provider.Disk{{ID: "vda", Size: 64 << 10, Format: "raw", Boot: true}}
		r.primary.AddMachine(m)
	}
	for _, name := range three {
		r.done(r.ProtectMachine(t.Context(), api.Protect{Machine: name, Site: "primary", RecoverySite: "recovery"}))
	}
	r.script("note", note)
	return r
}

func (r *rig) script(name, text string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.scripts, name), []byte(text), 0o755); err != nil {
		r.t.Fatal(err)
	}
}

// log are the lines that the scripts have written, which it forgets.
func (r *rig) log() []string {
	r.t.Helper()
	name := filepath.Join(r.scripts, "log")
	b, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = os.Remove(name)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return strings.Fields(string(b))
}

func (r *rig) apply(text string) {
	r.t.Helper()
	if _, err := r.plans.ApplyPlan(r.t.Context(), "tester", api.ApplyPlan{Text: text}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) runPlan(req api.RunPlan) api.PlanRun {
	r.t.Helper()
	j := r.ended(r.plans.RunPlan(r.t.Context(), "shop", "tester", req))
	run, err := r.plans.GetRun(r.t.Context(), j.ID)
	if err != nil {
		r.t.Fatal(err)
	}
	return run
}

// succeeds runs a plan, of which nothing may fail.
func (r *rig) succeeds(req api.RunPlan) api.PlanRun {
	r.t.Helper()
	run := r.runPlan(req)
	if run.Outcome != "succeeded" {
		r.t.Fatalf("run %s is %s: %+v", req.Kind, run.Outcome, run)
	}
	return run
}

// worksAt looks where the three machines work.
func (r *rig) worksAt(site string) {
	r.t.Helper()
	for _, name := range three {
		it, err := r.GetItem(r.t.Context(), name)
		if err != nil || it.ActiveSite != site {
			r.t.Errorf("item %s works at %s, want %s, %v", name, it.ActiveSite, site, err)
		}
	}
}

func (r *rig) saw(want ...string) {
	r.t.Helper()
	if got := r.log(); !slices.Equal(got, want) {
		r.t.Errorf("the scripts that ran are %v, want %v", got, want)
	}
}

// TestPlanLife leads a plan out and home again, with a test before.
func TestPlanLife(t *testing.T) {
	t.Parallel()
	r := planRig(t)
	r.apply(shopPlan)
	check, err := r.plans.CheckPlan(t.Context(), "shop", api.RunPlan{Kind: "test"})
	if err != nil || !check.OK || len(check.Machines) != 3 {
		t.Fatalf("check: %+v, %v", check, err)
	}
	run := r.succeeds(api.RunPlan{Kind: "test", Note: "why not"})
	r.saw("before-data", "after-data", "after-front")
	if run.RequestedBy != "tester" || run.Note != "why not" || run.Steps[len(run.Steps)-1].Output != "said after-front world" {
		t.Errorf("run is %+v", run)
	}
	for _, m := range run.Machines {
		if m.State != "succeeded" || m.Point == nil || m.RTOSeconds == nil || m.Job == "" || m.Machine == m.Item {
			t.Errorf("machine is %+v", m)
		}
	}
	r.worksAt("primary")
	r.succeeds(api.RunPlan{Kind: "clean_up", Note: "all well"})
	r.saw("before-data", "cleaned")
	if n := len(r.recovery.Handles()); n != 0 {
		t.Errorf("%d test machines are left", n)
	}
	for range 2 {
		r.succeeds(api.RunPlan{Kind: "unplanned"})
		r.worksAt("recovery")
		r.saw("before-data", "after-data", "after-front")
		if again := r.runPlan(api.RunPlan{Kind: "unplanned", Direction: api.ToRecovery}); again.Outcome != "failed" || again.Machines == nil && again.Error == nil {
			t.Errorf("a second run is %+v", again)
		}
		r.succeeds(api.RunPlan{Kind: "commit"})
		r.saw("before-data")
		r.succeeds(api.RunPlan{Kind: "reprotect"})
		r.saw("before-data")
		home := r.succeeds(api.RunPlan{Kind: "planned"})
		if home.Direction != api.ToPrimary {
			t.Errorf("home is %s", home.Direction)
		}
		r.worksAt("primary")
		r.saw("before-data", "after-data")
		r.succeeds(api.RunPlan{Kind: "commit"})
		r.succeeds(api.RunPlan{Kind: "reprotect"})
		r.log()
	}
	p, err := r.plans.GetPlan(t.Context(), "shop")
	if err != nil || len(p.Runs) != 6 || p.Text != shopPlan {
		t.Errorf("plan is %+v, %v", p, err)
	}
}

// TestPlanContext looks at what a script is told.
func TestPlanContext(t *testing.T) {
	t.Parallel()
	r := planRig(t)
	r.apply(shopPlan)
	r.succeeds(api.RunPlan{Kind: "unplanned"})
	for action, want := range map[string][2]string{"before-data": {"", "waiting"}, "after-data": {machine, "succeeded"}, "after-front": {"mail-dr", "succeeded"}} {
		b, err := os.ReadFile(filepath.Join(r.scripts, "told-"+action+".json"))
		if err != nil {
			t.Fatal(err)
		}
		var told struct {
			RecoveryPlanName, FailoverType, FailoverDirection, GroupId string
			VmMap                                                      map[string]struct{ RoleName, ResourceGroupName, RecoveryPointId, SubscriptionId string }
			Holdfast                                                   struct {
				Machines []struct{ Item, State, Machine, Point string }
			}
		}
		if err := json.Unmarshal(b, &told); err != nil {
			t.Fatal(err)
		}
		if told.RecoveryPlanName != "shop" || told.FailoverType != "Unplanned" || told.FailoverDirection != "PrimaryToSecondary" || len(told.Holdfast.Machines) != 3 {
			t.Errorf("%s was told %s", action, b)
		}
		names := ""
		for _, m := range told.VmMap {
			names += m.RoleName + " "
		}
		if !strings.Contains(names, want[0]) {
			t.Errorf("%s was told of machines %q, want %q", action, names, want[0])
		}
	}
}

// TestPlanKilledAtEveryRecord kills the server before and after everything that
// it records during a run, and starts another: the run ends, every machine is
// brought through once, and no script has run twice.
func TestPlanKilledAtEveryRecord(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"unplanned", "planned", "test"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			for n := int64(1); ; n++ {
				if !planKilledAt(t, kind, n) {
					t.Logf("%d moments", n-1)
					return
				}
			}
		})
	}
}

func planKilledAt(t *testing.T, kind string, n int64) (reached bool) {
	t.Helper()
	ok := t.Run(fmt.Sprint(n), func(t *testing.T) {
		r := planRig(t)
		r.apply(shopPlan)
		r.kill()
		var count atomic.Int64
		died := make(chan struct{})
		r.start(func(string, job.Job) error {
			if count.Add(1) == n {
				close(died)
			}
			if count.Load() >= n {
				return errKilled
			}
			return nil
		})
		j, err := r.plans.RunPlan(t.Context(), "shop", "tester", api.RunPlan{Kind: kind})
		if reached = errors.Is(err, errKilled); err == nil {
			reached = r.endsOrDies(j.ID, died)
		}
		r.kill()
		r.start(nil)
		runs, err := r.ListJobs(t.Context(), api.JobQuery{Limit: 500})
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(runs, func(j api.Job) bool { return j.Kind == "plan_run" })
		if i < 0 {
			return // it was never recorded: whoever asked was told that it failed
		}
		r.eventually("the run ends", func() bool {
			j, err = r.GetJob(t.Context(), runs[i].ID)
			if err == nil && j.State == api.JobSuspended {
				if _, err := r.plans.AnswerJob(t.Context(), j.ID, "tester", api.Answer{Answer: "done"}); err != nil {
					t.Fatal(err)
				}
			}
			return err == nil && j.Ended()
		})
		run, err := r.plans.GetRun(t.Context(), j.ID)
		if err != nil || len(run.Machines) != 3 {
			t.Fatalf("run is %+v, %v", run, err)
		}
		for _, m := range run.Machines {
			// A server that dies here has the time to take the test back; a real one has not.
			if m.State != "succeeded" && !strings.Contains(m.Reason, "the test was taken away") {
				t.Errorf("machine %s is %s: %s", m.Item, m.State, m.Reason)
			}
		}
		seen := map[string]int{}
		for _, line := range r.log() {
			if seen[line]++; seen[line] > 1 {
				t.Errorf("script %s has run twice: %+v", line, run)
			}
		}
		if len(seen) < 3 && run.Outcome == "succeeded" && len(run.Steps) > 0 && !answered(run) {
			t.Errorf("scripts %v have run, and the run says %+v", seen, run)
		}
		if kind != "test" {
			r.worksAt("recovery")
		}
	})
	return ok && reached
}

func answered(r api.PlanRun) bool {
	return slices.ContainsFunc(r.Steps, func(s api.PlanStep) bool { return s.Answer != "" })
}

// waits waits until a run asks something.
func (r *rig) waits(id string) api.PlanStep {
	r.t.Helper()
	var step api.PlanStep
	r.eventually("the run asks", func() bool {
		run, err := r.plans.GetRun(r.t.Context(), id)
		if err != nil {
			r.t.Fatal(err)
		}
		for _, s := range run.Steps {
			if s.Waiting != "" {
				step = s
				return true
			}
		}
		return false
	})
	return step
}

func (r *rig) answer(id, answer string) {
	r.t.Helper()
	if _, err := r.plans.AnswerJob(r.t.Context(), id, "tester", api.Answer{Answer: answer, Note: "so"}); err != nil {
		r.t.Fatal(err)
	}
}

// TestPlanManual has a person do a step, with a restart of the server between.
func TestPlanManual(t *testing.T) {
	t.Parallel()
	r := planRig(t)
	r.apply("name: shop\ngroups:\n  - name: a\n    machines: [shop]\n    before:\n      - {name: look, manual: {instructions: Look at the sky}}\n")
	j, err := r.plans.RunPlan(t.Context(), "shop", "tester", api.RunPlan{Kind: "unplanned"})
	if err != nil {
		t.Fatal(err)
	}
	if s := r.waits(j.ID); s.Waiting != "Look at the sky" || !slices.Equal(s.Answers, []string{"done", "fail", "skip"}) {
		t.Errorf("it asks %+v", s)
	}
	if _, err := r.plans.AnswerJob(t.Context(), j.ID, "tester", api.Answer{Answer: "retry"}); err == nil {
		t.Error("an answer was taken that was not asked for")
	}
	r.kill()
	r.start(nil)
	r.waits(j.ID)
	r.answer(j.ID, "done")
	r.done(r.GetJob(t.Context(), j.ID))
	run, err := r.plans.GetRun(t.Context(), j.ID)
	if err != nil || run.Steps[1].Answer != "done" || run.Steps[1].AnsweredBy != "tester" || run.Steps[1].Note != "so" {
		t.Errorf("run is %+v, %v", run, err)
	}
	if _, err := r.plans.AnswerJob(t.Context(), j.ID, "tester", api.Answer{Answer: "done"}); err == nil {
		t.Error("a run that has ended was answered")
	}
}

// TestPlanFails looks what stops a run, and what does not.
func TestPlanFails(t *testing.T) {
	t.Parallel()
	failing := strings.Replace(shopPlan, "path: note, args: [after-data]", "path: fail", 1)
	t.Run("unplanned goes on", func(t *testing.T) {
		r := planRig(t)
		r.script("fail", "#!/bin/sh\necho no\nexit 3\n")
		r.apply(failing)
		run := r.runPlan(api.RunPlan{Kind: "unplanned"})
		if run.Outcome != "partial" || run.Steps[3].State != "failed" || run.Steps[3].Output != "no" {
			t.Errorf("run is %+v", run)
		}
		r.worksAt("recovery")
	})
	t.Run("planned asks", func(t *testing.T) {
		r := planRig(t)
		r.script("fail", "#!/bin/sh\nexit 3\n")
		r.apply(failing)
		j, err := r.plans.RunPlan(t.Context(), "shop", "tester", api.RunPlan{Kind: "planned"})
		if err != nil {
			t.Fatal(err)
		}
		r.waits(j.ID)
		r.script("fail", note)
		r.answer(j.ID, "retry")
		r.done(r.GetJob(t.Context(), j.ID))
		r.worksAt("recovery")
	})
	t.Run("planned is given up", func(t *testing.T) {
		r := planRig(t)
		r.script("fail", "#!/bin/sh\nexit 3\n")
		r.apply(failing)
		j, err := r.plans.RunPlan(t.Context(), "shop", "tester", api.RunPlan{Kind: "planned"})
		if err != nil {
			t.Fatal(err)
		}
		r.waits(j.ID)
		if _, err := r.CancelJob(t.Context(), j.ID); err != nil {
			t.Fatal(err)
		}
		if j := r.ended(r.GetJob(t.Context(), j.ID)); j.State != "cancelled" {
			t.Errorf("it is %s", j.State)
		}
		for _, id := range []string{"m2", "m3"} { // shut down, and not brought over
			m, err := r.primary.Site().Inventory.Machine(t.Context(), id)
			if err != nil || m.Power != provider.PowerRunning {
				t.Errorf("machine %s is %s, %v", id, m.Power, err)
			}
		}
		if it := r.item(); it.ActiveSite != "recovery" {
			t.Errorf("the shop works at %s", it.ActiveSite)
		}
	})
	t.Run("too slow", func(t *testing.T) {
		r := planRig(t)
		r.script("fail", "#!/bin/sh\nsleep 100 & wait\n")
		r.apply(strings.Replace(failing, "      - name: second\n", "      - name: second\n        timeout: 200ms\n", 1))
		run := r.runPlan(api.RunPlan{Kind: "test"})
		if run.Outcome != "partial" || !strings.Contains(run.Steps[3].Error, "longer than 200ms") {
			t.Errorf("run is %+v", run)
		}
	})
}

// TestPlanMachineFails has one machine fail: the others do not wait for it.
func TestPlanMachineFails(t *testing.T) {
	t.Parallel()
	r := planRig(t)
	r.apply(shopPlan)
	taken := providertest.FakeMachine("x1", "web")
	r.recovery.AddMachine(taken) // the name is taken
	run := r.runPlan(api.RunPlan{Kind: "unplanned"})
	if run.Outcome != "partial" || run.Machines[1].State != "failed" || !strings.Contains(run.Machines[1].Reason, "web") {
		t.Errorf("run is %+v", run)
	}
	if run.Machines[0].State != "succeeded" || run.Machines[2].State != "succeeded" {
		t.Errorf("machines are %+v", run.Machines)
	}
	if _, err := r.plans.RunPlan(t.Context(), "shop", "tester", api.RunPlan{Kind: "unplanned"}); err == nil || !strings.Contains(err.Error(), "both sides") {
		t.Errorf("without a direction: %v", err)
	}
	r.recovery.RemoveMachine("x1")
	it, err := r.GetItem(t.Context(), "web")
	if err != nil || it.State != "protected" {
		t.Logf("web is %s, %v", it.State, err)
	}
	again := r.runPlan(api.RunPlan{Kind: "unplanned", Direction: api.ToRecovery})
	if again.Machines[0].State != "skipped" || again.Machines[1].State != "succeeded" {
		t.Errorf("again: %+v", again.Machines)
	}
	r.worksAt("recovery")
}

// TestPlanTime brings machines to one time, whichever point that is for each.
func TestPlanTime(t *testing.T) {
	t.Parallel()
	r := planRig(t)
	r.apply(shopPlan)
	for _, name := range three {
		r.done(r.MakePoint(t.Context(), name, api.MakePoint{Name: "before"}))
	}
	at := r.now()
	time.Sleep(20 * time.Millisecond)
	r.write(0, 7)
	for _, name := range three {
		r.done(r.MakePoint(t.Context(), name, api.MakePoint{Name: "later"}))
	}
	run := r.succeeds(api.RunPlan{Kind: "unplanned", Option: "time", Time: at})
	for _, m := range run.Machines {
		if m.Point.Time.After(at) {
			t.Errorf("machine %s is at %s, after %s", m.Item, m.Point.Time, at)
		}
	}
	r.reads(0, 0)
}

// TestPlanWebhook calls a server, with a secret that nobody reads afterwards.
func TestPlanWebhook(t *testing.T) {
	t.Parallel()
	r := planRig(t)
	var token, kind atomic.Value
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.Method == http.MethodGet {
			return
		}
		token.Store(q.Header.Get("Authorization"))
		var told struct{ FailoverType string }
		_ = json.NewDecoder(q.Body).Decode(&told)
		kind.Store(told.FailoverType)
		fmt.Fprint(w, "thank you for "+q.Header.Get("Authorization"))
	}))
	defer srv.Close()
	if err := os.WriteFile(filepath.Join(r.scripts, "token"), []byte("hush-hush\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.apply("name: shop\ngroups:\n  - name: a\n    machines: [shop]\n    before:\n      - {name: call, webhook: {url: " + srv.URL + ", secrets: {Authorization: {file: token}}}}\n      - {name: up, wait: {http: " + srv.URL + "}}\n")
	check, err := r.plans.CheckPlan(t.Context(), "shop", api.RunPlan{Kind: "test"})
	if err != nil || !check.OK || token.Load() != nil {
		t.Fatalf("check: %+v, %v", check, err)
	}
	run := r.succeeds(api.RunPlan{Kind: "test"})
	if token.Load() != "hush-hush" || kind.Load() != "Test" || run.Steps[1].Output != "200 OK\nthank you for <Authorization>" {
		t.Errorf("it was told %v, %v; the run says %q", token.Load(), kind.Load(), run.Steps[1].Output)
	}
	srv.Close()
	if check, err := r.plans.CheckPlan(t.Context(), "shop", api.RunPlan{Kind: "test"}); err != nil || check.OK {
		t.Errorf("check without that server: %+v, %v", check, err)
	}
}

// TestPlanApply looks at revisions.
func TestPlanApply(t *testing.T) {
	t.Parallel()
	r := planRig(t)
	zero, one := int64(0), int64(1)
	for _, c := range []struct {
		text     string
		if_      *int64
		revision int64
		refused  string
	}{
		{shopPlan, &one, 0, "revision 0"},
		{shopPlan, &zero, 1, ""},
		{shopPlan, nil, 1, ""}, // the same text
		{shopPlan + "at_once: 3\n", &zero, 0, "revision 1 now"},
		{shopPlan + "at_once: 3\n", &one, 2, ""},
		{"name: shop\n", nil, 0, "groups"},
	} {
		out, err := r.plans.ApplyPlan(t.Context(), "tester", api.ApplyPlan{Text: c.text, IfRevision: c.if_})
		if (err == nil) != (c.refused == "") || err != nil && !strings.Contains(err.Error(), c.refused) || err == nil && out.Revision != c.revision {
			t.Errorf("apply: %+v, %v; want revision %d, %q", out, err, c.revision, c.refused)
		}
	}
	texts, err := r.plans.PlanTexts(t.Context(), "shop")
	if err != nil || len(texts.Texts) != 2 || texts.Texts[1].Text != shopPlan {
		t.Errorf("texts are %+v, %v", texts, err)
	}
	if err := r.plans.RemovePlan(t.Context(), "shop"); err != nil {
		t.Error(err)
	}
	if all, err := r.plans.ListPlans(t.Context()); err != nil || len(all.Plans) != 0 || len(all.Unplanned) != 3 {
		t.Errorf("plans are %+v, %v", all, err)
	}
}
