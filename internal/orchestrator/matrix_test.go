package orchestrator_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/auth"
	"github.com/holdfast-dr/holdfast/internal/httpd"
	"github.com/holdfast-dr/holdfast/internal/provider/providertest"
	"github.com/holdfast-dr/holdfast/internal/store"
)

// rest is a rig behind the real interface.
type rest struct {
	*rig
	handler http.Handler
	token   string
}

func newRest(t *testing.T) *rest {
	t.Helper()
	s := &rest{rig: newRig(t)}
	s.serve()
	return s
}

// serve puts the interface before the server of the moment.
func (s *rest) serve() {
	s.t.Helper()
	tokens := auth.NewTokens(new(auth.MemoryStore))
	var err error
	if _, s.token, err = tokens.Create(s.t.Context(), auth.CreateOptions{Name: "operator", Role: auth.RoleOperator, Now: time.Now()}); err != nil {
		s.t.Fatal(err)
	}
	o := s.Orchestrator
	server, err := httpd.New(httpd.Options{Addr: "127.0.0.1:0", Tokens: tokens, Version: api.ServerVersion{Version: "test"},
		Service: httpd.Service{Sites: o, Machines: o, Items: o, Points: o, Jobs: o, Vault: o, Health: o, Tests: o, Failovers: o, Replications: o,
			Events: httpd.NewEventLog(100, time.Now())}})
	if err != nil {
		s.t.Fatal(err)
	}
	s.handler = server.Handler()
}

func (s *rest) post(path string, body, into any) int {
	s.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		s.t.Fatal(err)
	}
	r := httptest.NewRequestWithContext(s.t.Context(), http.MethodPost, path, bytes.NewReader(b))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+s.token)
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, r)
	if err := json.Unmarshal(w.Body.Bytes(), into); err != nil {
		s.t.Fatalf("POST %s: %d: %s", path, w.Code, w.Body)
	}
	return w.Code
}

// request returns what asks for an operation.
func request(op holdfast.Operation) (path string, body any) {
	const item = "/v1/items/" + machine
	switch op {
	case holdfast.OpEnable:
		return "/v1/items", api.Protect{Machine: machine, Site: "primary", RecoverySite: "recovery"}
	case holdfast.OpTestFailover:
		return item + "/test-failover", api.TestFailover{Option: "latest"}
	case holdfast.OpCleanUp:
		return item + "/clean-up", api.CleanUpTest{}
	case holdfast.OpFailover:
		return item + "/failover", api.Failover{Option: "latest"}
	case holdfast.OpPlannedFailover:
		return item + "/failover", api.Failover{Option: "latest", Planned: true}
	case holdfast.OpFailback:
		return item + "/failback", api.Failback{Option: "latest"}
	case holdfast.OpChangePoint:
		return item + "/change-point", api.ChangePoint{Option: "latest"}
	case holdfast.OpCommit:
		return item + "/commit", api.Commit{}
	case holdfast.OpUndoFailover:
		return item + "/undo-failover", api.UndoFailover{}
	case holdfast.OpReprotect:
		return item + "/reprotect", api.Reprotect{}
	case holdfast.OpResync:
		return item + "/resync", api.Resync{Disks: []string{}}
	case holdfast.OpCancel:
		return item + "/cancel", api.CancelItem{}
	case holdfast.OpDisable:
		return item + "/disable", api.Disable{}
	}
	return "", nil
}

// force records that the item is in a state, as if its jobs had brought it there.
func (s *rest) force(state holdfast.State, d holdfast.Direction) {
	s.t.Helper()
	s.kill()
	db, err := store.Open(s.t.Context(), s.db)
	if err != nil {
		s.t.Fatal(err)
	}
	it, err := db.Item(s.t.Context(), machine)
	if err == nil {
		it.State, it.Direction = state, d
		_, err = db.UpdateItem(s.t.Context(), it)
	}
	if err := errors.Join(err, db.Close()); err != nil {
		s.t.Fatal(err)
	}
}

// TestEveryStateEveryOperation asks, through the interface, for every operation
// in every state and both directions. What the item does not list as allowed is
// refused with 409, why, and what to do first, and changes nothing; a dry run
// says the same.
func TestEveryStateEveryOperation(t *testing.T) {
	t.Parallel()
	// A state that is left by itself is looked at in the item alone: the server
	// goes on with it at once.
	for _, state := range holdfast.States() {
		for _, d := range []holdfast.Direction{holdfast.Forward, holdfast.Reverse} {
			it := holdfast.Item{State: state, Direction: d}
			for _, op := range holdfast.Operations() {
				var e *holdfast.Error
				if err := it.Check(op); err != nil && (!errors.As(err, &e) || e.Cause == "" || e.Hint == "") {
					t.Errorf("%s in state %s, %s: %v: it lacks why, or what to do", op, state, d, err)
				}
			}
			if slices.Contains(passing, state) || state == holdfast.StateUnprotected {
				continue
			}
			t.Run(fmt.Sprintf("%s %s", state, d), func(t *testing.T) {
				t.Parallel()
				s := newRest(t)
				s.write(0, 1)
				s.protect()
				// Where it would be the machine that was left behind, it would be found.
				if err := s.primary.Site().Source.Kill(t.Context(), "m1"); err != nil {
					t.Fatal(err)
				}
				s.force(state, d)
				s.start(nil)
				s.serve()
				s.refusesAll(state, d)
				s.force(holdfast.StateProtected, holdfast.Forward) // for the look at the end
				s.start(nil)
			})
		}
	}
}

// passing are the states that the server leaves by itself when it finds nobody
// at work on them.
var passing = []holdfast.State{holdfast.StateEnabling, holdfast.StateDisabling, holdfast.StateFailingOver, holdfast.StateCommitting,
	holdfast.StateReprotecting, holdfast.StateUndoingFailover, holdfast.StateChangingPoint, holdfast.StateInitialReplication, holdfast.StateReplicationBroken}

// refusesAll asks for what the item does not allow.
func (s *rest) refusesAll(state holdfast.State, d holdfast.Direction) {
	s.t.Helper()
	before := s.item()
	if before.State != string(state) || before.Direction != string(d) {
		s.t.Fatalf("the item is %s, %s", before.State, before.Direction)
	}
	refused := 0
	for _, op := range holdfast.Operations() {
		path, body := request(op)
		if path == "" || slices.Contains(before.Allowed, string(op)) {
			continue
		}
		refused++
		i := slices.IndexFunc(before.Blocked, func(b api.BlockedOperation) bool { return b.Operation == string(op) })
		if i < 0 {
			s.t.Errorf("%s is neither allowed nor blocked", op)
			continue
		}
		why := before.Blocked[i]
		var p api.Problem
		if code := s.post(path, body, &p); code != http.StatusConflict || p.Cause == "" || p.Hint == "" {
			s.t.Errorf("%s: answer %d, %+v; want 409 with cause and hint", op, code, p)
		}
		if op != holdfast.OpEnable && (p.Cause != why.Reason || p.Hint != why.NextStep) {
			s.t.Errorf("%s is refused because %q, next %q; the item says %q, next %q", op, p.Cause, p.Hint, why.Reason, why.NextStep)
		}
		var c api.OperationCheck
		if code := s.post("/v1/items/"+machine+"/check", api.CheckOperation{Operation: string(op)}, &c); code != http.StatusOK || c.Allowed || c.Reason != why.Reason {
			s.t.Errorf("dry run of %s: answer %d, %+v", op, code, c)
		}
	}
	if refused == 0 {
		s.t.Error("nothing was refused")
	}
	after := s.item()
	if !reflect.DeepEqual(after.Allowed, before.Allowed) || after.State != before.State || after.Version != before.Version {
		s.t.Errorf("refusals have changed the item: %+v, before %+v", after, before)
	}
}

// TestEveryAllowedOperation brings an item into each state in which it can stay,
// by real operations, and asks for each operation that it lists as allowed,
// first as a dry run, which changes nothing: its job must succeed.
func TestEveryAllowedOperation(t *testing.T) {
	t.Parallel()
	latest := api.Failover{Option: "latest"}
	failing := func(f *providertest.Fake, method string) func() {
		f.Script(providertest.Fault{Method: method, Err: errors.New("no memory left")})
		return f.ClearScript
	}
	states := map[string]func(*rest){
		"protected":            func(*rest) {},
		"protected and tested": func(s *rest) { s.done(s.TestFailover(s.t.Context(), machine, api.TestFailover{Option: "latest"})) },
		"protected, reverse":   func(s *rest) { reversed(s.rig) },
		"commit_pending":       func(s *rest) { failover(s.rig) },
		"committed":            func(s *rest) { failover(s.rig); commit(s.rig) },
		"commit_pending, failback": func(s *rest) {
			reversed(s.rig)
			s.done(s.Failback(s.t.Context(), machine, api.Failback{Option: "latest"}))
		},
		"committed, failback": func(s *rest) {
			reversed(s.rig)
			s.done(s.Failback(s.t.Context(), machine, api.Failback{Option: "latest"}))
			commit(s.rig)
		},
		"failover_failed": func(s *rest) {
			defer failing(s.recovery, "Define")()
			s.ended(s.FailoverItem(s.t.Context(), machine, latest))
		},
		"changing_point_failed": func(s *rest) {
			failover(s.rig)
			defer failing(s.recovery, "Define")()
			s.ended(s.ChangePoint(s.t.Context(), machine, api.ChangePoint{Option: "latest"}))
		},
		"commit_failed": func(s *rest) {
			reversed(s.rig)
			s.done(s.Failback(s.t.Context(), machine, api.Failback{Option: "latest"}))
			defer failing(s.recovery, "Remove")()
			s.ended(s.Commit(s.t.Context(), machine, api.Commit{}))
		},
		"reprotect_failed": func(s *rest) {
			failover(s.rig)
			commit(s.rig)
			defer failing(s.recovery, "Machine")()
			s.ended(s.Reprotect(s.t.Context(), machine, api.Reprotect{}))
		},
		"disabling_failed": func(s *rest) {
			s.gw.mu.Lock()
			s.gw.down = errors.New("no route to host")
			s.gw.mu.Unlock()
			s.ended(s.DisableItem(s.t.Context(), machine, api.Disable{}))
			s.gw.mu.Lock()
			s.gw.down = nil
			s.gw.mu.Unlock()
		},
	}
	for name, bring := range states {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for n := 0; allowedIn(t, name, bring, n); n++ {
			}
		})
	}
}

// allowedIn asks for the n-th operation that is allowed in a state, and says
// whether there is one.
func allowedIn(t *testing.T, name string, bring func(*rest), n int) (more bool) {
	inBubble(t, fmt.Sprint(n), func(t *testing.T) {
		s := newRest(t)
		s.write(0, 1)
		s.protect()
		bring(s)
		s.idle()
		before := s.item()
		if state, _, _ := strings.Cut(strings.ReplaceAll(name, " and tested", ""), ","); before.State != state {
			t.Fatalf("the item is %s", before.State)
		}
		if more = n < len(before.Allowed); !more {
			return
		}
		op := holdfast.Operation(before.Allowed[n])
		var c api.OperationCheck
		if code := s.post("/v1/items/"+machine+"/check", api.CheckOperation{Operation: string(op)}, &c); code != http.StatusOK || !c.Allowed {
			t.Errorf("dry run of %s: answer %d, %+v", op, code, c)
		}
		if after := s.item(); after.State != before.State || after.Version != before.Version {
			t.Errorf("the dry run of %s has changed the item: %+v", op, after)
		}
		path, body := request(op)
		var j api.Job
		if code := s.post(path, body, &j); code != http.StatusAccepted {
			t.Fatalf("%s: answer %d, %+v", op, code, j)
		}
		s.done(j, nil)
		s.idle()
	})
	return more
}
