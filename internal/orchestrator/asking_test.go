package orchestrator_test

import (
	"net/http"
	"slices"
	"testing"

	"github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/auth"
)

// routed are the operations that can be asked for.
func routed() []holdfast.Operation {
	return slices.DeleteFunc(holdfast.Operations(), func(op holdfast.Operation) bool {
		path, _ := request(op)
		return path == ""
	})
}

// TestAvailableOperationsHaveRoutes keeps what this version has, and what can be
// asked for, one.
func TestAvailableOperationsHaveRoutes(t *testing.T) {
	t.Parallel()
	for _, op := range holdfast.Operations() {
		if path, _ := request(op); (path != "") != op.Available() {
			t.Errorf("%s is at %q; available: %v", op, path, op.Available())
		}
	}
}

// TestUnprotected asks for every operation on a machine that is not protected
// yet, and no longer: there is no item.
func TestUnprotected(t *testing.T) {
	t.Parallel()
	inBubble(t, "asked", func(t *testing.T) {
		s := newRest(t)
		s.write(0, 1)
		nothing := func() {
			t.Helper()
			for _, op := range routed() {
				path, body := request(op)
				var p api.Problem
				if op == holdfast.OpEnable {
					continue
				}
				if code := s.post(path, body, &p); code != http.StatusNotFound || p.Code != api.CodeNotFound || p.Detail == "" || wrongHint(p.Hint) != "" {
					t.Errorf("%s: answer %d, %+v; want 404 with a hint", op, code, p)
				}
				if code := s.post(itemPath+"/check", api.CheckOperation{Operation: string(op)}, &p); code != http.StatusNotFound {
					t.Errorf("dry run of %s: answer %d, %+v", op, code, p)
				}
			}
		}
		nothing()
		for range 2 {
			path, body := request(holdfast.OpEnable)
			var j api.Job
			if code := s.post(path, body, &j); code != http.StatusAccepted {
				t.Fatalf("enable: answer %d", code)
			}
			s.done(j, nil)
			s.isIn("protected")
			s.done(s.disable())
			nothing()
		}
	})
}

// TestWhoAsks has somebody ask who may not, or not so: nothing comes of it.
func TestWhoAsks(t *testing.T) {
	t.Parallel()
	for name, bring := range map[string]func(*rest){
		"protected":      func(s *rest) { s.done(s.test()) },
		"commit_pending": func(s *rest) { failover(s.rig) },
		"committed":      func(s *rest) { failover(s.rig); commit(s.rig) },
	} {
		inBubble(t, name, func(t *testing.T) {
			s := newRest(t)
			s.write(0, 1)
			s.protect()
			bring(s)
			s.idle()
			before, jobs := s.item(), s.jobs()
			for _, op := range routed() {
				path, body := request(op)
				var p api.Problem
				if code := s.postAs(auth.RoleViewer, path, body, &p); code != http.StatusForbidden || p.Code != api.CodeForbidden || p.Cause == "" || p.Hint == "" {
					t.Errorf("%s as a viewer: answer %d, %+v", op, code, p)
				}
				if code := s.postAs("", path, body, &p); code != http.StatusUnauthorized {
					t.Errorf("%s as a stranger: answer %d, %+v", op, code, p)
				}
				for _, bad := range []any{[]string{}, map[string]any{"verison": 1}, "x"} {
					if code := s.post(path, bad, &p); code != http.StatusUnprocessableEntity || p.Code != api.CodeInvalid || p.Cause == "" {
						t.Errorf("%s with %v: answer %d, %+v", op, bad, code, p)
					}
				}
				if code := s.post(path, nil, &p); code != http.StatusUnprocessableEntity && code != http.StatusBadRequest {
					t.Errorf("%s with null: answer %d, %+v", op, code, p)
				}
			}
			after := s.item()
			if after.Version != before.Version || after.State != before.State || s.jobs() != jobs {
				t.Errorf("the item has changed: %+v, before %+v", after, before)
			}
		})
	}
}

// TestNoSuchPoint asks for a recovery point and for a timeline that are not
// there: it is refused at once, nothing is recorded, and a dry run says the same.
func TestNoSuchPoint(t *testing.T) {
	t.Parallel()
	for _, w := range ways() {
		inBubble(t, string(w.Direction), func(t *testing.T) {
			s := newRest(t)
			s.write(0, 1)
			s.protect()
			w.protected(s)
			no := func(op holdfast.Operation, path string, body any) {
				t.Helper()
				var c api.OperationCheck
				if code := s.post(itemPath+"/check", api.CheckOperation{Operation: string(op), Option: "point", Point: "nix"}, &c); code != http.StatusOK || c.Allowed || c.Reason == "" || wrongHint(c.NextStep) != "" {
					t.Errorf("dry run of %s: answer %d, %+v", op, code, c)
				}
				before, jobs := s.item(), s.jobs()
				var p api.Problem
				if code := s.post(itemPath+path, body, &p); code != http.StatusNotFound || p.Code != api.CodeNotFound || p.Cause == "" || wrongHint(p.Hint) != "" {
					t.Errorf("%s: answer %d, %+v", op, code, p)
				}
				if after := s.item(); after.Version != before.Version || after.State != before.State || s.jobs() != jobs {
					t.Errorf("%s has changed the item: %+v, before %+v", op, after, before)
				}
			}
			no(holdfast.OpFailover, "/failover", api.Failover{Option: "point", Point: "nix"})
			no(holdfast.OpFailover, "/failover", api.Failover{Option: "latest", Timeline: 99})
			no(holdfast.OpTestFailover, "/test-failover", api.TestFailover{Option: "point", Point: "nix"})
			s.done(w.leave(s))
			s.idle()
			no(holdfast.OpChangePoint, "/change-point", api.ChangePoint{Option: "point", Point: "nix"})
			no(holdfast.OpChangePoint, "/change-point", api.ChangePoint{Option: "latest", Timeline: 99})
			s.reads(0, 1)
			s.done(s.commit())
		})
	}
}

// TestAskedBeforeTheJobBegins asks for everything that the item allows while the
// job of another operation is recorded and has not begun, which is so for a
// moment: it is refused, and the item is as it was.
func TestAskedBeforeTheJobBegins(t *testing.T) {
	t.Parallel()
	inBubble(t, "asked", func(t *testing.T) {
		s := newRest(t)
		s.write(0, 1)
		s.protect()
		wait, release := s.hold(true, works(holdfast.StateProtected))
		j, err := s.resync()
		if err != nil {
			t.Fatal(err)
		}
		wait()
		for _, op := range []holdfast.Operation{holdfast.OpFailover, holdfast.OpPlannedFailover, holdfast.OpResync, holdfast.OpDisable} {
			path, body := request(op)
			var p api.Problem
			if code := s.post(path, body, &p); code != http.StatusConflict || p.Code != api.CodeNotAllowed || p.Cause == "" || wrongHint(p.Hint) != "" {
				t.Errorf("%s: answer %d, %+v", op, code, p)
			}
			s.isIn("protected")
		}
		release()
		s.done(j, nil)
		failover(s.rig)
		s.reads(0, 1)
	})
}
