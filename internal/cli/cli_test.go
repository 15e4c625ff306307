package cli_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/auth"
	"github.com/holdfast-dr/holdfast/internal/cli"
	"github.com/holdfast-dr/holdfast/internal/httpd"
	"github.com/holdfast-dr/holdfast/internal/httpd/httpdtest"
	"github.com/holdfast-dr/holdfast/internal/report"
)

var update = flag.Bool("update", false, "write golden files anew")

func TestMain(m *testing.M) {
	flag.Parse()
	goleak.VerifyTestMain(m)
}

// now is the clock of both sides.
var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

type worldKey struct{}

// TestScripts plays testdata/*.txtar. Each script has a server of its own, over
// TLS, with tokens, and a scripted world behind it. Commands:
//
//	run CODE ARGS…     the command line, which must end with that code
//	world NAME         change the world, see changeWorld
//	calls              print what the service was asked to change
//
// The variables STDIN, TTY (1: all streams are terminals), TICK (1: the clock
// advances a second each time it is looked at) and CANCEL (1: interrupt the
// command when a job is shown) are for run.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: "testdata", UpdateScripts: *update, RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error { return setup(t, env) },
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"run": runCommand,
			"world": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(changeWorld(ts.Value(worldKey{}).(*httpdtest.World), args[0]))
			},
			"calls": func(ts *testscript.TestScript, _ bool, _ []string) {
				for _, call := range ts.Value(worldKey{}).(*httpdtest.World).Called() {
					if name, _, _ := strings.Cut(call, " "); !strings.HasPrefix(name, "Get") && !strings.HasPrefix(name, "List") && name != "WatchJob" {
						fmt.Fprintln(ts.Stdout(), call)
					}
				}
			},
		},
	})
}

func setup(t *testing.T, env *testscript.Env) error {
	world := demoWorld()
	tokens := auth.NewTokens(new(auth.MemoryStore))
	for _, role := range []auth.Role{auth.RoleAdmin, auth.RoleOperator, auth.RoleViewer} {
		_, secret, err := tokens.Create(t.Context(), auth.CreateOptions{Name: string(role), Role: role, Now: now.AddDate(0, 0, -3)})
		if err != nil {
			return err
		}
		env.Setenv(strings.ToUpper(string(role)), secret)
	}
	authority, err := auth.OpenAuthority(auth.AuthorityOptions{Dir: filepath.Join(env.WorkDir, "state")})
	if err != nil {
		return err
	}
	server, err := httpd.New(httpd.Options{Addr: "127.0.0.1:0", TLS: authority.ServerTLS(), Service: world.Service(), Tokens: tokens,
		Version: api.ServerVersion{Version: "0.1.0", Commit: "abc1234"}, Now: func() time.Time { return now }})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	var group errgroup.Group
	group.Go(func() error { return server.Run(ctx) })
	env.Defer(func() {
		stop()
		if err := group.Wait(); err != nil {
			t.Errorf("server: %v", err)
		}
	})
	<-server.Ready()
	env.Values[worldKey{}] = world
	env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
	env.Setenv("SERVER", "https://"+server.Addr().String())
	env.Setenv("HOLDFAST_SERVER", "https://"+server.Addr().String())
	env.Setenv("HOLDFAST_TOKEN", env.Getenv("ADMIN"))
	env.Setenv("HOLDFAST_CA", filepath.Join(env.WorkDir, "state", "ca.pem"))
	env.Setenv("FINGERPRINT", authority.Fingerprint())
	return nil
}

// runCommand is the command run of scripts.
func runCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: run CODE ARGS…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stdin := strings.NewReader(ts.Getenv("STDIN") + "\n")
	var stdout, stderr bytes.Buffer
	clock := now
	env := cli.Env{
		Stdin: stdin, Stdout: &stdout, Stderr: &stderr, Getenv: ts.Getenv,
		IsTerminal: func(any) bool { return ts.Getenv("TTY") == "1" },
		Version:    api.ServerVersion{Version: "0.1.0"},
		Now: func() time.Time {
			if ts.Getenv("TICK") == "1" {
				clock = clock.Add(time.Second)
			}
			return clock
		},
		ExtraCommands: func() []*cobra.Command {
			return []*cobra.Command{
				{Use: "extra", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
					return fmt.Errorf("run extra: %w", &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "listen on", Thing: ":8443", Err: errors.New("address already in use"), Hint: "Stop the other server"})
				}},
			}
		},
	}
	if ts.Getenv("CANCEL") == "1" {
		env.Stderr = &interrupter{Writer: &stderr, cancel: cancel}
	}
	code := cli.Run(ctx, env, args[1:])
	fmt.Fprint(ts.Stdout(), stdout.String())
	fmt.Fprint(ts.Stderr(), stderr.String())
	if code != want {
		ts.Fatalf("holdfast %s: exit code %d, want %d", strings.Join(args[1:], " "), code, want)
	}
}

// interrupter cancels once a job's heading is written.
type interrupter struct {
	io.Writer
	cancel context.CancelFunc
}

func (i *interrupter) Write(p []byte) (int, error) {
	if bytes.HasPrefix(p, []byte("Job ")) {
		i.cancel()
	}
	return i.Writer.Write(p)
}

func ptr[T any](v T) *T { return &v }

// demoWorld is the world that scripts begin with.
func demoWorld() *httpdtest.World {
	w := httpdtest.New(now)
	const gib = 1 << 30
	w.Sites = []api.Site{
		{ID: "s-1", Name: "berlin", Provider: "libvirt", CanSource: true, CanTarget: true, Reachable: true, Items: 2, CreatedAt: now.AddDate(0, 0, -9)},
		{ID: "s-2", Name: "paris", Provider: "qemu", CanTarget: true, Problem: "dial unix /run/vm.sock: connection refused", Gateway: "gw.paris:9443", CreatedAt: now.AddDate(0, 0, -9)},
	}
	w.Machines = api.MachineList{Machines: []api.Machine{
		{ID: "m-1", Name: "web1", Site: "berlin", Power: "running", CPUs: 4, Memory: 8 * gib, Firmware: "uefi", Disks: []api.MachineDisk{{ID: "vda", Size: 40 * gib, Boot: true}, {ID: "vdb", Size: 200 * gib}}, Protected: true, Item: "i-1", ItemName: "web1"},
		{ID: "m-2", Name: "db\x1b[31m1", Site: "berlin", Power: "off", CPUs: 2, Memory: 512 << 20, Obstacles: []string{"It has no disks: attach one", "It is off: start it"}},
		{ID: "m-3", Name: "mail", Site: "berlin", Power: "running", CPUs: 2, Memory: 4 * gib, Disks: []api.MachineDisk{{ID: "vda", Size: 20 * gib}}},
	}}
	newest := api.Point{Timeline: 1, Position: "00000000000a1b2c", Time: now.Add(-2 * time.Second), Consistency: "crash"}
	w.Items = []api.Item{
		{
			ID: "i-1", Name: "web1", Machine: api.MachineRef{ID: "m-1", Name: "web1", Disks: w.Machines.Machines[0].Disks}, PrimarySite: "berlin", RecoverySite: "paris", ActiveSite: "berlin",
			State: "protected", Direction: "forward", Version: 12, CreatedAt: now.Add(-50 * time.Hour), Stream: api.ItemStream{ID: strings.Repeat("ab", 16), Timeline: 1, Generation: 1},
			Health: api.Health{Level: "warning", Findings: []api.Finding{{Code: "HF1003", Severity: "warning", Summary: "RPO is above the threshold", Cause: "The vault takes 3.0 MiB/s, the source writes 12 MiB/s", Advice: "Give the link more bandwidth", Since: now.Add(-4 * time.Minute)}}},
			Policy: api.Policy{RPOThreshold: 30}, Test: api.ItemTest{Last: &api.LastTest{At: now.Add(-70 * time.Hour), Passed: true, ReadySeconds: 4.1, Note: "login works", SuccessAt: now.Add(-70 * time.Hour)}},
			Replication: &api.Replication{Mode: "continuous", Disks: []api.DiskSync{{ID: "vda", Done: 40 * gib, Total: 40 * gib}}, Rate: 12 << 20, BacklogBytes: 96 << 20, RPOSeconds: ptr(47.2),
				Newest: &api.StreamMoment{Timeline: 1, Position: newest.Position, Time: newest.Time}, ReceivedBytes: 60 * gib, SentBytes: 21 * gib, StoredBytes: 20 * gib, LastReceivedAt: now.Add(-3 * time.Second)},
			Allowed: []string{"failover", "disable"}, Blocked: []api.BlockedOperation{{Operation: "commit", Reason: "the item is not failed over", NextStep: "holdfast failover web1"}},
		},
		{
			ID: "i-2", Name: "mail", Machine: api.MachineRef{ID: "m-3", Name: "mail", Disks: w.Machines.Machines[2].Disks}, PrimarySite: "berlin", RecoverySite: "paris", ActiveSite: "berlin",
			State: "initial_replication", Direction: "forward", Health: api.Health{Level: "healthy"}, Version: 2, CreatedAt: now.Add(-90 * time.Second), Stream: api.ItemStream{Timeline: 1, Generation: 1}, CurrentJob: "a-7",
			Replication: &api.Replication{Mode: "initial_sync", Disks: []api.DiskSync{{ID: "vda", Done: 7*gib + 600<<20, Total: 20 * gib}}, Rate: 105 << 20, ETASeconds: ptr(121.0)},
			Allowed:     []string{"disable"}, Blocked: []api.BlockedOperation{{Operation: "failover", Reason: "the initial copy is not finished", NextStep: "wait until the item is protected"}},
		},
		{
			ID: "i-3", Name: "shop", Machine: api.MachineRef{ID: "m-9", Name: "shop", Disks: []api.MachineDisk{{ID: "vda", Size: gib}}}, PrimarySite: "berlin", RecoverySite: "paris", ActiveSite: "paris",
			State: "commit_pending", Direction: "forward", Health: api.Health{Level: "not_applicable"}, Version: 30, CreatedAt: now.AddDate(0, 0, -40), Stream: api.ItemStream{Timeline: 2, Generation: 2},
			Recovery: &api.Recovery{Site: "paris", MachineID: "r-1", MachineName: "shop-dr", Power: "running", Point: newest, StartedAt: now.Add(-61 * time.Second), HydratedBytes: 300 << 20, TotalBytes: gib, NeedsView: true, RPOSeconds: ptr(0.43), RTOSeconds: ptr(2.1)},
		},
	}
	w.Points["i-1"] = api.Points{Item: "i-1", Newest: &newest,
		Points: []api.Point{{ID: "p-2", Name: "before-upgrade", Timeline: 1, Position: "00000000000a0000", Time: now.Add(-10 * time.Minute), Consistency: "app"}, {Timeline: 1, Position: "0000000000090000", Time: now.Add(-26 * time.Hour), Consistency: "crash"}},
		Ranges: []api.PointRange{{Timeline: 1, From: "0000000000000010", To: newest.Position, FromTime: now.Add(-49 * time.Hour), ToTime: newest.Time}}}
	w.Jobs = []api.Job{
		{ID: "a-7", Kind: "protect", ItemName: "mail", State: api.JobInProgress, CreatedAt: now.Add(-90 * time.Second), StartedAt: now.Add(-89 * time.Second), Cancellable: true,
			Tasks: []api.Task{{Name: "check", Title: "Check the machine", State: api.JobSucceeded, Attempt: 1, StartedAt: now.Add(-89 * time.Second), FinishedAt: now.Add(-88 * time.Second)},
				{Name: "start", Title: "Start replication", State: api.JobInProgress, Attempt: 2, StartedAt: now.Add(-88 * time.Second), Progress: &api.Progress{Done: 3, Total: 8, Unit: "steps"}}}},
		{ID: "a-6", Kind: "failover", ItemName: "shop", State: api.JobFailed, CreatedAt: now.Add(-time.Hour), StartedAt: now.Add(-time.Hour), FinishedAt: now.Add(-time.Hour + 3*time.Second),
			Tasks: []api.Task{{Name: "define", Title: "Define the machine", State: api.JobFailed, Log: []string{"tried shop-dr"}, Error: &api.JobError{Message: "name shop-dr is taken"}}},
			Error: &api.JobError{Task: "define", Code: "conflict", Message: "cannot define the machine", Cause: "paris has another machine named shop-dr", Hint: "Choose another name: --name"}},
	}
	w.Vault = api.Vault{ID: "v-1", Location: "/srv/vault", FormatVersion: 1, CreatedAt: now.AddDate(0, 0, -60), Bytes: 20 * gib, FreeBytes: ptr(int64(480 * gib)), Health: api.Health{Level: "healthy"},
		Streams:    []api.VaultStream{{ID: strings.Repeat("ab", 16), Name: "web1", Timelines: 1, Segments: 90210, Bytes: 20 * gib, Oldest: now.Add(-49 * time.Hour), Newest: newest.Time}},
		LastVerify: &api.VerifyReport{FinishedAt: now.Add(-30 * time.Hour), Segments: 80000, Bytes: 18 * gib},
		Copy:       &api.VaultCopy{Location: "s3://copies/dr", AsOf: now.Add(-40 * time.Second), Objects: 90300, Bytes: 20 * gib, Done: 3 << 20, Total: 12 << 20}}
	return w
}

// changeWorld makes a named change.
func changeWorld(w *httpdtest.World, name string) error {
	copying := func(done int64) api.Job {
		return api.Job{State: api.JobInProgress, StartedAt: now, Tasks: []api.Task{
			{Name: "check", Title: "Check the item", State: api.JobSucceeded, StartedAt: now, FinishedAt: now.Add(200 * time.Millisecond)},
			{Name: "stop", Title: "Stop the source", State: api.TaskSkipped},
			{Name: "drain", Title: "Take in what has arrived", State: api.JobInProgress, StartedAt: now, Progress: &api.Progress{Done: done << 20, Total: 400 << 20, Unit: "bytes", Rate: 100 << 20, ETASeconds: ptr(float64(400-done) / 100)}},
		}}
	}
	done := copying(400)
	done.State, done.FinishedAt = api.JobSucceeded, now.Add(4300*time.Millisecond)
	done.Tasks[2].State, done.Tasks[2].FinishedAt = api.JobSucceeded, now.Add(4*time.Second)
	done.Result = &api.JobResult{RPOSeconds: ptr(0.43), RTOSeconds: ptr(4.3), Site: "paris", MachineName: "web1-dr", Point: &api.Point{Timeline: 1, Position: "00000000000a1b2c", Time: now.Add(-430 * time.Millisecond), Consistency: "crash"}}
	failed := copying(200)
	failed.State, failed.FinishedAt = api.JobFailed, now.Add(9*time.Second)
	failed.Tasks[2].State = api.JobFailed
	failed.Error = &api.JobError{Task: "drain", Code: "unavailable", Message: "vault does not answer", Cause: "no space left on device", Hint: "Make room in /srv/vault, then repeat"}
	damaged := done
	damaged.Tasks = nil
	damaged.Result = &api.JobResult{Verify: &api.VerifyReport{FinishedAt: now, Segments: 90210, Bytes: 20 << 30, Healed: []string{"streams/abab/00000001/0000000000000003.seg"}, Damaged: []api.DamagedObject{
		{Object: "streams/abab/00000001/0000000000000007.seg", Detail: "checksum of frame 3 differs", Timeline: 1, First: "0000000000000100", Last: "00000000000001ff", Points: []string{"before-upgrade"}}}}}
	part := done
	part.Warnings = []string{"the source did not shut down within 60 s and was left running"}
	script := func(jobs ...api.Job) func() { return func() { w.Script = jobs } }
	changes := map[string]func(){
		"empty": func() {
			w.Sites, w.Items, w.Jobs, w.Machines, w.Points = nil, nil, nil, api.MachineList{}, map[string]api.Points{"i-9": {}}
		},
		"ailing": func() {
			w.Health = api.ServerHealth{Status: "degraded", Components: []api.ComponentHealth{{Name: "vault copy", Status: "down", Detail: "no such bucket", Advice: "Check the store"}}}
		},
		"well":      func() { w.Health = api.ServerHealth{Status: "ok"} },
		"no-points": func() { w.Points = map[string]api.Points{} },
		"good-job":  script(copying(0), copying(100), copying(200), copying(300), copying(399), done),
		"bad-job":   script(copying(0), failed),
		"part-job":  script(copying(0), part),
		"endless":   script(copying(0)),
		"damage":    script(copying(0), damaged),
		"clean": func() {
			d := done
			d.Tasks, d.Result = nil, &api.JobResult{Verify: &api.VerifyReport{Segments: 90210, Bytes: 20 << 30}}
			w.Script = []api.Job{d}
		},
		"site-down": func() {
			w.Machines.Unreachable = []api.SiteProblem{{Site: "paris", Cause: "connection refused", Hint: "Start its libvirtd"}}
		},
		"refuse": func() {
			w.Fail["FailoverItem"] = &holdfast.Error{Kind: holdfast.KindNotAllowed, Op: "fail over item", Thing: "mail", Cause: "the initial copy is not finished", Hint: "Wait until the item is protected: holdfast item show mail"}
			w.Fail["RemoveSite"] = &holdfast.Error{Kind: holdfast.KindConflict, Op: "remove site", Thing: "berlin", Cause: "2 items need it", Hint: "Disable them first: holdfast item list"}
		},
		"accept": func() { clear(w.Fail) },
		"broken": func() { w.Fail["ListItems"] = errors.New("secret detail") },
	}
	maps.Copy(changes, lifeChanges(w, done))
	change, ok := changes[name]
	if !ok {
		return fmt.Errorf("no change %q", name)
	}
	w.Change(change)
	return nil
}

// lifeChanges are the named changes for an item's life after it was protected.
// done is a job that went well.
func lifeChanges(w *httpdtest.World, done api.Job) map[string]func() {
	old := api.Point{ID: "p-2", Name: "before-upgrade", Timeline: 1, Position: "00000000000a0000", Time: now.Add(-10 * time.Minute), Consistency: "app"}
	test := func(name, state string, age time.Duration) api.Test {
		return api.Test{Name: name, Handle: "test-" + name, State: state, Site: "paris", StartedAt: now.Add(-age)}
	}
	outcome := func(r api.JobResult) func() {
		return func() {
			d := done
			d.Tasks, d.Result = nil, &r
			w.Script = []api.Job{d}
		}
	}
	return map[string]func(){
		"plan":         func() { w.Planning = shopPlan() },
		"plan-blocked": func() { w.Checked.OK = false },
		"untested":     func() { w.Items[0].Test.Last = nil },
		"failed-test":  func() { w.Items[0].Test.Last.Passed, w.Items[0].Test.Last.At = false, now.Add(-time.Hour) },
		"everything-may": func() {
			w.Items[0].Allowed = []string{"failover", "planned_failover", "failback", "change_point", "disable", "test_failover"}
		},
		"tests": func() {
			good, bad := test("web1-test-1a2b", "running", time.Hour), test("try\x1b[31m", "failed", 72*time.Hour)
			good.Network, good.Point, good.ReadySeconds, good.Verified = "lab", &old, ptr(6.2), "passed"
			bad.Verified = "failed: its guest agent did not answer in time"
			w.Items[0].Test.State, w.Items[0].Test.Open = "failed", []api.Test{good, bad}
		},
		"check": func() {
			w.Check = api.OperationCheck{Allowed: true, Point: &old, Warning: "this point is 10m0s older than the newest recoverable position", Site: "paris", MachineName: "web1-dr", RPOSeconds: ptr(600.0),
				ExpectedRTOSeconds: ptr(2.5), Basis: "the last 3 of kind test_failover", Steps: []string{"Check the item", "Fence the source", "Start the machine"},
				Findings: []api.Finding{{Severity: "warning", Summary: "the site has 1 GiB of memory left", Advice: "Stop another machine there"}}}
		},
		"check-fails": func() {
			w.Check = api.OperationCheck{Reason: "name web1 is taken at site paris", NextStep: "Choose another name: --name", Steps: []string{"Check the item"},
				Findings: []api.Finding{{Severity: "critical", Summary: "name web1 is taken at site paris", Advice: "Choose another name: --name"}}}
		},
		"mute":       func() { w.Fail["CheckOperation"] = &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "open vault"} },
		"proved-job": outcome(api.JobResult{RPOSeconds: ptr(0.0), RTOSeconds: ptr(9.0), Site: "berlin", MachineName: "web1", Proved: true, MovedBytes: ptr(int64(52 << 20))}),
		"tested-job": outcome(api.JobResult{RTOSeconds: ptr(6.2), Site: "paris", MachineName: "web1-test-1a2b", Test: "test-1", Point: &old}),
		"nobody-home": func() {
			w.Fail["Screenshot"] = &holdfast.Error{Kind: holdfast.KindNotFound, Op: "find picture of job", Thing: "a-6", Cause: "none was kept", Hint: "Ask for one with test-failover start --screenshot"}
		},
	}
}

// shopPlan is a plan with a run that asks something.
func shopPlan() httpdtest.Planning {
	p := shopPlanning()
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	met := true
	r := report.Report{MadeAt: now, Server: "paris", Run: p.Run, Objectives: report.Objectives{RTO: ptr(2.0), Met: &met}, Plan: report.Plan{Name: "shop", Revision: 3, Text: "name: shop\n", Digest: report.DigestOf("name: shop\n")}}
	p.Key = report.EncodePublic(key.Public().(ed25519.PublicKey))
	p.Envelope, _ = report.Sign(context.Background(), r, key)
	return p
}

func shopPlanning() httpdtest.Planning {
	run := api.PlanRunSummary{Job: "j-0", Kind: "test", Direction: api.ToRecovery, Revision: 3, StartedAt: now.Add(-time.Hour - time.Minute), EndedAt: now.Add(-time.Hour), Outcome: "succeeded"}
	waiting := api.PlanMachine{Item: "web1", Group: "front", State: "waiting", Site: "paris"}
	done := waiting
	done.State, done.RTOSeconds = "succeeded", ptr(2.0)
	return httpdtest.Planning{
		Plan: api.Plan{ID: "plan-1", Name: "shop", Text: "name: shop\n", Revision: 3, Machines: 3, AppliedAt: now.Add(-time.Hour), AppliedBy: "admin", Runs: []api.PlanRunSummary{run},
			Groups:   []api.PlanGroup{{Name: "data", Stage: 1, Machines: []string{"db1", "db9"}}, {Name: "front", Stage: 2, Machines: []string{"web1"}, Actions: []string{"after: script dns"}}},
			Findings: []api.Finding{{Code: "HF1701", Severity: "critical", Summary: "plan shop names item db9, which there is not"}}},
		Texts:   []api.PlanText{{Revision: 3, AppliedAt: now.Add(-time.Hour), Text: "name: shop\n"}},
		Checked: api.PlanCheck{Plan: "shop", Revision: 3, Kind: "unplanned", Direction: api.ToRecovery, OK: true, Machines: []api.PlanMachine{waiting}, Steps: []api.PlanStep{{Title: "Bring up data"}}},
		Changes: api.PlanChanges{Plan: "shop", From: 3, Revision: 4, Changes: []string{"at_once: 4 becomes 5"}},
		Run: api.PlanRun{PlanRunSummary: run, Plan: "shop", RequestedAt: now, State: "suspended", Machines: []api.PlanMachine{done}, Steps: []api.PlanStep{
			{Title: "script dns", State: "succeeded", Output: "said\nmore", StartedAt: now, FinishedAt: now.Add(2 * time.Second)},
			{Title: "manual look", State: "suspended", Waiting: "Look at the sky", Answers: []string{"done", "fail"}}}},
	}
}

// Every command has a script, and the help names every exit code.
func TestEveryCommandHasScripts(t *testing.T) {
	t.Parallel()
	var scripts strings.Builder
	names, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(names) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		scripts.Write(data)
	}
	files, err := filepath.Glob("*_*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range append(files, "login", "version", "protect", "failover", "test-failover start", "test-failover clean-up", "test-failover list",
		"failback", "change-point", "commit", "undo-failover", "reprotect", "resync", "cancel", "point create") {
		command = strings.ReplaceAll(strings.TrimSuffix(command, ".go"), "_", " ")
		if strings.HasSuffix(command, "test") {
			continue
		}
		if !strings.Contains(scripts.String(), "run 0 "+command) {
			t.Errorf("no script runs %q with success", command)
		}
		if !strings.Contains(scripts.String(), "--json "+command) {
			t.Errorf("no script runs %q with --json", command)
		}
	}
	for _, code := range []string{"0", "1", "2", "3", "10", "11", "12", "130"} {
		if !strings.Contains(scripts.String(), "run "+code+" ") {
			t.Errorf("no script ends with code %s", code)
		}
	}
}
