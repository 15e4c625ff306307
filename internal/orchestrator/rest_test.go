package orchestrator_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/auth"
	"github.com/holdfast-dr/holdfast/internal/cli"
	"github.com/holdfast-dr/holdfast/internal/httpd"
	"github.com/holdfast-dr/holdfast/internal/orchestrator"
	"github.com/holdfast-dr/holdfast/internal/planner"
)

const itemPath = "/v1/items/" + machine

// rest is a rig behind the real interface.
type rest struct {
	*rig
	*door
	release func() // lets a job go on that is held; nil: none is
}

// door is the interface with tokens. Making one takes as long as a failover, so
// those of bubbles are used again, where nobody follows events: a channel of one
// bubble is none of another's.
type door struct {
	present *present
	handler http.Handler
	tokens  map[auth.Role]string
}

// present is the server of the moment.
type present struct {
	*orchestrator.Orchestrator
	*planner.Planner
}

var doors sync.Pool

// newRest is for a bubble.
func newRest(t *testing.T) *rest {
	t.Helper()
	d, ok := doors.Get().(*door)
	if !ok {
		d = newDoor(t)
	}
	t.Cleanup(func() { doors.Put(d) })
	s := &rest{rig: bubbleRig(t), door: d}
	s.serve()
	return s
}

// serve puts the interface before the server of the moment.
func (s *rest) serve() { s.present.Orchestrator, s.present.Planner = s.rig.Orchestrator, s.rig.plans }

func newDoor(t *testing.T) *door {
	t.Helper()
	tokens := auth.NewTokens(new(auth.MemoryStore))
	o := &present{}
	d := &door{present: o, tokens: map[auth.Role]string{}}
	for _, role := range []auth.Role{auth.RoleAdmin, auth.RoleOperator, auth.RoleViewer} {
		_, secret, err := tokens.Create(t.Context(), auth.CreateOptions{Name: string(role), Role: role, Now: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		d.tokens[role] = secret
	}
	server, err := httpd.New(httpd.Options{Addr: "127.0.0.1:0", Tokens: tokens, Version: api.ServerVersion{Version: "test"},
		Service: httpd.Service{Sites: o, Machines: o, Items: o, Points: o, Policies: o, Jobs: o, Vault: o, Health: o, Tests: o, Failovers: o, Replications: o, Comparisons: o, Plans: o, Runs: o, Groups: o, Reports: o,
			Events: httpd.NewEventLog(100, time.Now())}})
	if err != nil {
		t.Fatal(err)
	}
	d.handler = server.Handler()
	return d
}

// post asks as an operator, and decodes the answer.
func (s *rest) post(path string, body, into any) int {
	s.t.Helper()
	return s.postAs(auth.RoleOperator, path, body, into)
}

func (s *rest) postAs(role auth.Role, path string, body, into any) int {
	s.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		s.t.Fatal(err)
	}
	r := httptest.NewRequestWithContext(s.t.Context(), http.MethodPost, path, bytes.NewReader(b))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+s.tokens[role])
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, r)
	if err := json.Unmarshal(w.Body.Bytes(), into); err != nil {
		s.t.Fatalf("POST %s: %d: %s", path, w.Code, w.Body)
	}
	return w.Code
}

// check asks for a dry run.
func (s *rest) check(op holdfast.Operation) api.OperationCheck {
	s.t.Helper()
	var c api.OperationCheck
	if code := s.postAs(auth.RoleViewer, itemPath+"/check", api.CheckOperation{Operation: string(op)}, &c); code != http.StatusOK {
		s.t.Errorf("dry run of %s: answer %d, %+v", op, code, c)
	}
	return c
}

// request returns what asks for an operation; no path: this version has no way
// to ask for it.
func request(op holdfast.Operation) (path string, body any) {
	switch op {
	case holdfast.OpEnable:
		return "/v1/items", api.Protect{Machine: machine, Site: "primary", RecoverySite: "recovery"}
	case holdfast.OpTestFailover:
		return itemPath + "/test-failover", api.TestFailover{Option: "latest"}
	case holdfast.OpCleanUp:
		return itemPath + "/clean-up", api.CleanUpTest{}
	case holdfast.OpFailover:
		return itemPath + "/failover", api.Failover{Option: "latest"}
	case holdfast.OpPlannedFailover:
		return itemPath + "/failover", api.Failover{Option: "latest", Planned: true}
	case holdfast.OpFailback:
		return itemPath + "/failback", api.Failback{Option: "latest"}
	case holdfast.OpChangePoint:
		return itemPath + "/change-point", api.ChangePoint{Option: "latest"}
	case holdfast.OpCommit:
		return itemPath + "/commit", api.Commit{}
	case holdfast.OpUndoFailover:
		return itemPath + "/undo-failover", api.UndoFailover{}
	case holdfast.OpReprotect:
		return itemPath + "/reprotect", api.Reprotect{}
	case holdfast.OpResync:
		return itemPath + "/resync", api.Resync{Disks: []string{}}
	case holdfast.OpCancel:
		return itemPath + "/cancel", api.CancelItem{}
	case holdfast.OpDisable:
		return itemPath + "/disable", api.Disable{}
	}
	return "", nil
}

var (
	named = regexp.MustCompile(`\bholdfast((?: [a-z][a-z-]*)+)`)
	flag  = regexp.MustCompile(`--[a-z][a-z-]*`)
	usage = regexp.MustCompile(`(?m)^Usage:\n  holdfast(( [a-z][a-z-]*)+)`)
	helps sync.Map // of command lines: what their help says
)

// help returns what the command line says of a command.
func help(words string) string {
	if h, ok := helps.Load(words); ok {
		return h.(string)
	}
	extra := func() []*cobra.Command {
		run := func(*cobra.Command, []string) {}
		return []*cobra.Command{{Use: "server", Run: run}, {Use: "gateway", Run: run}}
	}
	var out bytes.Buffer
	cli.Run(context.Background(), cli.Env{Stdout: &out, Stderr: &out, Getenv: func(string) string { return "" }, ExtraCommands: extra}, append(strings.Fields(words), "--help"))
	h, _ := helps.LoadOrStore(words, out.String())
	return h.(string)
}

// wrongHint says what is wrong with what a user is told to do.
func wrongHint(hint string) string {
	if strings.TrimSpace(hint) == "" {
		return "there is none"
	}
	flags := flag.FindAllString(hint, -1)
	for _, m := range named.FindAllStringSubmatch(hint, -1) {
		h := help(m[1])
		if !usage.MatchString(h) || strings.Contains(h, "Available Commands:") {
			return "there is no command holdfast" + m[1]
		}
		for _, f := range flags {
			if !strings.Contains(h, f) {
				return "holdfast" + m[1] + " has no flag " + f
			}
		}
	}
	return ""
}

func TestWrongHint(t *testing.T) {
	t.Parallel()
	for hint, right := range map[string]bool{
		"":     false,
		"Wait": true,
		"See holdfast item show for what there is":         true,
		"See holdfast item list, or holdfast job watch":    true,
		"See holdfast item look":                           false,
		"See holdfast nothing at all":                      false,
		"See holdfast item":                                false,
		"Give it up with holdfast commit --discard-writes": true,
		"Give it up with holdfast commit --discard-rights": false,
		"Check that holdfast gateway runs there":           true,
		"Protect it first, with holdfast protect":          true,
	} {
		if got := wrongHint(hint); (got == "") != right {
			t.Errorf("of %q: %q, want right: %v", hint, got, right)
		}
	}
}
