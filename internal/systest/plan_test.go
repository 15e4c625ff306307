package systest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/systest/guest"
	"github.com/holdfast-dr/holdfast/internal/systest/lab"
)

// planText has a group for each of three guests, and actions of all kinds.
const planText = `name: town
groups:
  - name: data
    before:
      - {name: note, runs: [test, planned, unplanned, reprotect, commit, clean_up], script: {path: note, args: [data]}}
    machines: [{item: shop, verify: {serial: GUEST-READY, timeout: 2m, screenshot: true}}]
    after:
      - {name: hook, webhook: {url: "%[1]s/hook", secrets: {Authorization: {file: token}}}}
  - name: queue
    machines: [{item: mq, verify: {serial: GUEST-READY, timeout: 2m}}]
    after:
      - {name: up, wait: {http: "%[1]s/up"}}
  - name: front
    machines:
      - item: web
        nics: [{card: user, address: 10.0.2.40/24, gateway: 10.0.2.2, test: {address: [10.0.2.41/24], dns: 10.0.2.3}}]
        verify: {serial: GUEST-READY, timeout: 2m}
    after:
      - {name: tested, runs: [test], on_failure: stop, guest: {item: web, command: [/bin/sh, -c, "ip addr show eth0 | grep 10.0.2.41/24 && grep 10.0.2.3 /etc/resolv.conf"]}}
      - {name: given, runs: [unplanned], guest: {item: web, command: [/bin/sh, -c, "ip addr show eth0 | grep 10.0.2.40/24 && ip route | grep 'via 10.0.2.2'"]}}
      - {name: own, runs: [planned], directions: [recovery_to_primary], guest: {item: web, command: [/bin/sh, -c, "! ip addr show eth0 | grep 10.0.2.4"]}}
      - {name: inside, runs: [test], guest: {item: web, command: [/bin/busybox, grep, FailoverType]}}
      - {name: alive, runs: [test], wait: {agent: web}}
      - {name: beside, runs: [test], on_failure: stop, script: {path: beside, site: primary, secrets: {TOKEN: {file: token}}}}
      - {name: look, runs: [unplanned], manual: {instructions: Look at the town}}
clean_up:
  after:
    - {name: swept, script: {path: note, args: [swept]}}
`

// TestPlan runs a plan of three guests in three groups: as a test and its
// clean-up, as an unplanned failover after the loss of two of them, commit,
// reprotect, and home again. In the end each guest has what it had acknowledged.
func TestPlan(t *testing.T) {
	w := newWorld(t, worldOptions{})
	names := []string{machine, "mq", "web"}
	for _, name := range names[1:] {
		w.addGuest(name, map[string]string{"web": "52:54:00:00:00:07"}[name])
	}
	for _, name := range names {
		w.waitSerial(w.SerialPath(w.Primary, name), `GUEST-READY`)
		w.cli("protect", name, "--site", "primary", "--to", "recovery")
	}
	hooks := w.townPlan()

	w.runs("test")
	if n := w.recoveredCount(); n != 3 {
		t.Fatalf("%d test machines run", n)
	}
	w.said("data")
	if run := w.lastRun("test"); run.Outcome != "succeeded" || hooks() != "Test hush" || run.Steps[len(run.Steps)-3].Output != `  "FailoverType": "Test",` {
		t.Fatalf("the test: %+v; the hook was told %q", run, hooks())
	}
	w.reportOf(w.lastRun("test").Job)
	w.runs("clean-up", "--note", "they boot")
	w.said("data swept")
	if n := w.recoveredCount(); n != 0 {
		t.Fatalf("%d test machines are left", n)
	}

	for _, name := range names[:2] {
		w.must(w.KillMachine(name))
	}
	acked := map[string]int64{}
	for _, name := range names[:2] { // nothing is acknowledged any more
		n, err := lab.Acknowledged(w.SerialPath(w.Primary, name))
		w.must(err)
		acked[name] = n
	}
	began := time.Now()
	w.runs("unplanned")
	run := w.lastRun("unplanned")
	if i := slices.IndexFunc(run.Steps, func(s api.PlanStep) bool { return s.Answer == "done" }); run.Outcome != "succeeded" || i < 0 || hooks() != "Unplanned hush" {
		t.Fatalf("the failover: %+v; the hook was told %q", run, hooks())
	}
	t.Logf("unplanned failover of three machines with a manual step: %s", time.Since(began).Round(time.Millisecond))
	for _, m := range run.Machines {
		t.Logf("%s: RPO %.3f s, RTO %.2f s", m.Item, *m.RPOSeconds, *m.RTOSeconds)
	}
	w.runs("commit")
	w.runs("reprotect")
	w.recoveredReady(3) // a guest that boots does not heed its power button
	for _, name := range names {
		w.must(os.Remove(w.SerialPath(w.Primary, name))) // what they said when they ran there before
	}
	w.runs("failback")
	for _, name := range names {
		w.verifiesSince(w.SerialPath(w.Primary, name), acked[name])
	}
	w.runs("commit")
	w.runs("reprotect")
	t.Log(w.cli("plan", "show", "town"))
	w.checkVault()
}

// addGuest builds and starts one more guest.
func (w *world) addGuest(name, mac string) {
	w.t.Helper()
	disk := filepath.Join(w.Primary, name+".qcow2")
	w.must(guest.Build(w.t.Context(), guest.Options{Path: disk, SizeMB: 256, Format: "qcow2"}))
	m := lab.Machine{Name: name, Disk: disk, Format: "qcow2", MAC: mac}
	if mac != "" {
		m.Agent = filepath.Join(w.Primary, name+".qga")
	}
	w.must(w.AddMachine(m))
	w.must(w.StartMachine(w.t.Context(), name))
}

// townPlan applies the plan, with its script, its secret and the server of its
// hook, and returns what says which kind of run and which token the hook was told
// last.
func (w *world) townPlan() func() string {
	w.t.Helper()
	var mu sync.Mutex
	told := ""
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
		var c struct{ FailoverType string }
		if q.URL.Path == "/hook" && json.NewDecoder(q.Body).Decode(&c) == nil {
			mu.Lock()
			defer mu.Unlock()
			told = c.FailoverType + " " + q.Header.Get("Authorization")
		}
	}))
	w.t.Cleanup(srv.Close)
	for name, text := range map[string]string{"scripts/note": "#!/bin/sh\ncat >/dev/null\necho $1 >> log\n", "secrets/token": "hush\n",
		"gateway/scripts/beside": "#!/bin/sh\ntest \"$TOKEN\" = there && grep -q RecoveryPlanName\n", "gateway/secrets/token": "there\n"} {
		path := filepath.Join(w.State, name)
		w.must(os.MkdirAll(filepath.Dir(path), 0o700))
		w.must(os.WriteFile(path, []byte(text), 0o700))
	}
	file := filepath.Join(w.Dir, "town.yaml")
	w.must(os.WriteFile(file, fmt.Appendf(nil, planText, srv.URL), 0o600))
	w.cli("plan", "apply", file)
	w.t.Log(w.cli("plan", "check", "town"))
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		return told
	}
}

// runs runs the plan, and answers what it asks.
func (w *world) runs(kind string, more ...string) api.PlanRun {
	w.t.Helper()
	var job api.Job
	w.must(w.JSON(w.t.Context(), &job, append([]string{"plan", "run", "town", "--as", kind, "--yes", "--no-wait"}, more...)...))
	w.eventually("the "+kind+" ends", func() bool {
		w.must(w.JSON(w.t.Context(), &job, "job", "show", job.ID))
		if job.State == api.JobSuspended {
			if job.Waiting != "Look at the town" {
				w.t.Fatalf("the %s asks %q", kind, job.Waiting)
			}
			w.cli("job", "answer", job.ID, "done", "--note", "it is there")
		}
		return job.Ended()
	})
	out := w.cli("plan", "result", job.ID)
	if job.State != api.JobSucceeded || len(job.Warnings) > 0 {
		w.t.Fatalf("the %s is %s: %v\n%s", kind, job.State, job.Warnings, out)
	}
	w.t.Log(out)
	var run api.PlanRun
	w.must(w.JSON(w.t.Context(), &run, "plan", "result", job.ID))
	return run
}

// reportOf has the run reported, verifies that, and makes a page of it.
func (w *world) reportOf(job string) {
	w.t.Helper()
	at := func(name string) string { return filepath.Join(w.Dir, name) }
	w.cli("report", "key", "-o", at("key.pem"))
	w.cli("report", "get", job, "-o", at("report.json"))
	w.t.Log(w.cli("report", "verify", at("report.json"), "--key", at("key.pem")))
	w.cli("report", "page", at("report.json"), "--key", at("key.pem"), "-o", at("report.html"))
	page, err := os.ReadFile(at("report.html"))
	w.must(err)
	if !strings.Contains(string(page), "data:image/png;base64,") || !strings.Contains(string(page), "GUEST-READY") {
		w.t.Fatalf("the page lacks the picture of a console, or what it said, in %d bytes", len(page))
	}
	if keep := os.Getenv("HOLDFAST_KEEP"); keep != "" {
		w.must(os.WriteFile(filepath.Join(keep, "report.html"), page, 0o644))
	}
}

// recoveredReady waits until so many recovered guests are ready.
func (w *world) recoveredReady(n int) {
	w.t.Helper()
	w.eventually("the recovered guests are ready", func() bool {
		names, err := filepath.Glob(filepath.Join(w.Recovery, "recovered", "*", "serial.log"))
		w.must(err)
		ready := 0
		for _, name := range names {
			if b, err := os.ReadFile(name); err == nil && strings.Contains(string(b), "GUEST-READY") {
				ready++
			}
		}
		return ready == n
	})
}

// lastRun returns the last run of a kind.
func (w *world) lastRun(kind string) api.PlanRun {
	w.t.Helper()
	var p api.Plan
	w.must(w.JSON(w.t.Context(), &p, "plan", "show", "town"))
	i := slices.IndexFunc(p.Runs, func(r api.PlanRunSummary) bool { return r.Kind == kind })
	if i < 0 {
		w.t.Fatalf("no run of kind %s", kind)
	}
	var run api.PlanRun
	w.must(w.JSON(w.t.Context(), &run, "plan", "result", p.Runs[i].Job))
	return run
}

// said looks at what the scripts have noted, and forgets it.
func (w *world) said(want string) {
	w.t.Helper()
	name := filepath.Join(w.State, "scripts", "log")
	b, err := os.ReadFile(name)
	w.must(err)
	w.must(os.Remove(name))
	if got := strings.Join(strings.Fields(string(b)), " "); got != want {
		w.t.Fatalf("the scripts noted %q, want %q", got, want)
	}
}

func (w *world) recoveredCount() int {
	w.t.Helper()
	n, err := w.RecoveredProcesses()
	w.must(err)
	return n
}
