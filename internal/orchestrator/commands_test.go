package orchestrator_test

import (
	"bytes"
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/auth"
	"github.com/holdfast-dr/holdfast/internal/cli"
)

// command returns the command line that asks for an operation; none: there is
// no such command.
func command(op holdfast.Operation) string {
	return map[holdfast.Operation]string{
		holdfast.OpEnable:          "protect " + machine + " --site primary --to recovery",
		holdfast.OpTestFailover:    "test-failover start " + machine,
		holdfast.OpCleanUp:         "test-failover clean-up " + machine,
		holdfast.OpFailover:        "failover " + machine,
		holdfast.OpPlannedFailover: "failover --planned " + machine,
		holdfast.OpFailback:        "failback " + machine,
		holdfast.OpChangePoint:     "change-point " + machine,
		holdfast.OpCommit:          "commit " + machine,
		holdfast.OpUndoFailover:    "undo-failover " + machine,
		holdfast.OpReprotect:       "reprotect " + machine,
		holdfast.OpResync:          "resync " + machine,
		holdfast.OpCancel:          "cancel " + machine,
		holdfast.OpDisable:         "item disable " + machine,
	}[op]
}

// shell runs command lines against a rig.
type shell struct {
	*rest
	server *httptest.Server
}

func (s *shell) run(role auth.Role, line string) (code int, stdout, stderr string) {
	s.t.Helper()
	var out, errs bytes.Buffer
	env := map[string]string{"HOLDFAST_SERVER": s.server.URL, "HOLDFAST_TOKEN": s.tokens[role], "HOME": "/nonexistent"}
	code = cli.Run(s.t.Context(), cli.Env{Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs, Getenv: func(k string) string { return env[k] }}, strings.Fields(line))
	return code, out.String(), errs.String()
}

// ends runs a command line, which must end with a code.
func (s *shell) ends(want int, role auth.Role, line string) (stdout, stderr string) {
	s.t.Helper()
	code, stdout, stderr := s.run(role, line)
	if code != want {
		s.t.Errorf("holdfast %s: code %d, want %d; it says %s%s", line, code, want, stdout, stderr)
	}
	return stdout, stderr
}

// TestEveryCommandInOneState asks on the command line for every operation on an
// item that is failed over and not committed.
func TestEveryCommandInOneState(t *testing.T) {
	t.Parallel()
	s := &shell{rest: &rest{rig: newRig(t), door: newDoor(t)}}
	s.serve()
	s.server = httptest.NewServer(s.handler)
	t.Cleanup(s.server.Close)
	s.write(0, 1)
	s.protect()
	failover(s.rig)
	s.idle()
	before, jobs := s.item(), s.jobs()
	for _, op := range holdfast.Operations() {
		line := command(op)
		if (line == "") == op.Available() {
			t.Errorf("%s has the command %q; available: %v", op, line, op.Available())
		}
		if line == "" {
			continue
		}
		yes := ""
		if op != holdfast.OpEnable { // which takes nothing away
			s.tries(op, slices.Contains(before.Allowed, string(op)))
			yes = " --yes"
		}
		s.ends(cli.ExitNotAuthorised, auth.RoleViewer, line+yes)
		s.ends(cli.ExitNotFound, auth.RoleOperator, strings.Replace(line, machine, "shops", 1)+yes)
		s.ends(cli.ExitUsage, auth.RoleOperator, line+" --no-such-flag")
		if !slices.Contains(before.Allowed, string(op)) {
			s.isTold(op, line+yes)
		}
	}
	if after := s.item(); after.Version != before.Version || s.jobs() != jobs {
		t.Errorf("the item has changed: %+v, before %+v", after, before)
	}
	for _, op := range []holdfast.Operation{holdfast.OpChangePoint, holdfast.OpUndoFailover, holdfast.OpFailover, holdfast.OpCommit, holdfast.OpDisable} {
		s.eventually("the recovered machine needs no view", func() bool { r := s.item().Recovery; return r == nil || !r.NeedsView })
		s.idle()
		s.ends(cli.ExitDone, auth.RoleOperator, command(op)+" --yes")
	}
	s.ends(cli.ExitDone, auth.RoleOperator, "item list")
	s.ends(cli.ExitNotFound, auth.RoleOperator, command(holdfast.OpCommit)+" --yes")
}

// tries asks for a dry run, as a viewer.
func (s *shell) tries(op holdfast.Operation, allowed bool) {
	s.t.Helper()
	want := cli.ExitNotAllowed
	if allowed {
		want = cli.ExitDone
	}
	out, errs := s.ends(want, auth.RoleViewer, command(op)+" --dry-run")
	if !strings.Contains(out, "Nothing is done") || allowed != (errs == "") {
		s.t.Errorf("dry run of %s says %s%s", op, out, errs)
	}
}

// isTold asks for an operation that is refused, with and without --json.
func (s *shell) isTold(op holdfast.Operation, line string) {
	s.t.Helper()
	_, errs := s.ends(cli.ExitNotAllowed, auth.RoleOperator, line)
	for _, b := range s.item().Blocked {
		if b.Operation != string(op) || op == holdfast.OpEnable {
			continue
		}
		for _, want := range []string{"cause: " + b.Reason + "\n", "hint: " + b.NextStep + "\n"} {
			if !strings.Contains(errs, want) {
				s.t.Errorf("holdfast %s says %s, want it to contain %s", line, errs, want)
			}
		}
	}
	_, errs = s.ends(cli.ExitNotAllowed, auth.RoleOperator, line+" --json")
	if !strings.Contains(errs, fmt.Sprintf("%q: %q", "code", "not_allowed")) && op != holdfast.OpEnable {
		s.t.Errorf("holdfast %s --json says %s", line, errs)
	}
}
