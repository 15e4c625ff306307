package httpd_test

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/auth"
)

// operations are the routes that start a job on an item, with a body that each
// takes.
var operations = []struct {
	path, body string
	versioned  bool // whether the body has if_version
}{
	{"test-failover", `{"option":"latest"}`, true},
	{"clean-up", `{}`, false},
	{"failover", `{"option":"latest","shutdown_source":false}`, true},
	{"failback", `{"option":"latest"}`, true},
	{"change-point", `{"option":"latest"}`, true},
	{"commit", `{}`, true},
	{"undo-failover", `{}`, true},
	{"reprotect", `{}`, true},
	{"resync", `{}`, false},
	{"points", `{}`, false},
	{"cancel", `{}`, false},
	{"disable", `{}`, true},
}

// changed returns those calls of the service that were not just looking.
func changed(calls []string) []string {
	var out []string
	for _, call := range calls {
		if !strings.HasPrefix(call, "Get") {
			out = append(out, call)
		}
	}
	return out
}

// What no operation takes reaches the service with none of them.
func TestNoOperationTakesABadRequest(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, body  string
		contentType string
		status      int
	}{
		{name: "no body", status: 400},
		{name: "malformed", body: `{"`, status: 400},
		{name: "not an object", body: `[]`, status: 422},
		{name: "unknown field", body: `{"verison":1}`, status: 422},
		{name: "too large", body: `{"note":"` + strings.Repeat("a", 70<<10) + `"}`, status: 413},
		{name: "not JSON", body: `{}`, contentType: "text/plain", status: 415},
	}
	b := newBench(t)
	for _, op := range operations {
		for _, tt := range tests {
			contentType := "application/json"
			if tt.contentType != "" {
				contentType = tt.contentType
			}
			w := b.do(auth.RoleAdmin, "POST", "/v1/items/web1/"+op.path, tt.body, "Content-Type", contentType)
			problem(t, w, tt.status, api.CodeInvalid)
			if calls := changed(b.world.Called()); t.Failed() || len(calls) > 0 {
				t.Fatalf("%s, %s: answer %d %s, calls %v", op.path, tt.name, w.Code, w.Body, calls)
			}
		}
	}
}

func TestBadOperations(t *testing.T) {
	t.Parallel()
	tests := []struct{ path, body, cause string }{
		{"test-failover", `{}`, "option"},
		{"test-failover", `{"option":"newest"}`, "option"},
		{"test-failover", `{"option":"point"}`, "needs a point"},
		{"test-failover", `{"option":"latest","time":"2026-11-23T12:00:00Z"}`, "option time"},
		{"failover", `{"option":"latest","shutdown_source":true,"planned":true,"timeline":2}`, "timeline"},
		{"test-failover", `{"option":"latest","name":"../x"}`, "name"},
		{"test-failover", `{"option":"latest","verify":{"agnet":true}}`, "agnet"},
		{"test-failover", `{"option":"latest","verify":{"tcp_port":65536}}`, "tcp_port"},
		{"test-failover", `{"option":"latest","verify":{"timeout_seconds":-1}}`, "timeout_seconds"},
		{"clean-up", `{"note":"` + strings.Repeat("a", 5000) + `"}`, "note"},
		{"failover", `{"option":"latest_processed","planned":true,"shutdown_source":false}`, "loses nothing"},
		{"failover", `{"option":"time","time":"2026-11-23T11:00:00Z","planned":true,"shutdown_source":false}`, "loses nothing"},
		{"failback", `{"option":"latest_processed"}`, "option"},
		{"failback", `{"option":"time"}`, "option"},
		{"failback", `{"option":"latest","point":"p"}`, "point"},
		{"change-point", `{"option":"point"}`, "needs a point"},
		{"change-point", `{"option":"time"}`, "needs a time"},
		{"commit", `{"delete_points":"yes"}`, "delete_points"},
		{"commit", `{"if_version":-1}`, "if_version"},
		{"resync", `{"disks":"vda"}`, "disks"},
		{"points", `{"name":"` + strings.Repeat("a", 65) + `"}`, "name"},
		{"cancel", `{"job":"j-1"}`, "job"},
		{"check", `{}`, "operation"},
		{"check", `{"operation":"failover","option":"newest"}`, "option"},
		{"check", `{"operation":"failover","option":"point"}`, "needs a point"},
		{"check", `{"operation":"failover","point":"p"}`, "option point"},
		{"check", `{"operation":"planned_failover","option":"latest_app"}`, "loses nothing"},
	}
	b := newBench(t)
	for _, tt := range tests {
		p := problem(t, b.do(auth.RoleAdmin, "POST", "/v1/items/web1/"+tt.path, tt.body), 422, api.CodeInvalid)
		calls := changed(b.world.Called())
		if !strings.Contains(p.Cause, tt.cause) || len(calls) > 0 {
			t.Errorf("%s %.60s: cause %q, want it to contain %q; calls %v, want none", tt.path, tt.body, p.Cause, tt.cause, calls)
		}
	}
}

// If-Match holds for every operation; where the body can say it too, the service
// is told, so that it looks again at one with its change.
func TestOperationsOnAVersion(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for _, op := range operations {
		path := "/v1/items/web1/" + op.path
		problem(t, b.do(auth.RoleOperator, "POST", path, op.body, "If-Match", `"v6"`), http.StatusPreconditionFailed, api.CodeConflict)
		if calls := changed(b.world.Called()); len(calls) > 0 {
			t.Errorf("%s with an old version: the service was called: %v", op.path, calls)
		}
		w := b.do(auth.RoleOperator, "POST", path, op.body, "If-Match", `"v7"`)
		calls := changed(b.world.Called())
		if w.Code != http.StatusAccepted || w.Header().Get("Location") == "" || len(calls) != 1 {
			t.Fatalf("%s: answer %d %s, Location %q, calls %v", op.path, w.Code, w.Body, w.Header().Get("Location"), calls)
		}
		if told := strings.Contains(calls[0], "IfVersion:7"); told != op.versioned {
			t.Errorf("call %q: version told: %v, want %v", calls[0], told, op.versioned)
		}
	}
}

// A planned failover from the newest point is what it is for, and a check need
// not say a point at all.
func TestGoodOperations(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for path, body := range map[string]string{
		"failover": `{"option":"latest","planned":true,"shutdown_source":false}`,
		"failback": `{"option":"latest_app","unplanned":true}`,
		"points":   `{"app_consistent":true}`,
	} {
		if w := b.do(auth.RoleOperator, "POST", "/v1/items/web1/"+path, body); w.Code != http.StatusAccepted {
			t.Errorf("%s %s: %d %s", path, body, w.Code, w.Body)
		}
	}
	for _, body := range []string{`{"operation":"planned_failover"}`, `{"operation":"planned_failover","option":"latest"}`, `{"operation":"failover","option":"point","point":"p","timeline":2}`} {
		w := b.do(auth.RoleViewer, "POST", "/v1/items/web1/check", body)
		if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"steps":[]`) || !strings.Contains(w.Body.String(), `"findings":[]`) {
			t.Errorf("check %s: %d %s", body, w.Code, w.Body)
		}
	}
}

// What the service refuses is told as it says it, for every operation.
func TestRefusedOperations(t *testing.T) {
	t.Parallel()
	calls := map[string]string{"test-failover": "TestFailover", "clean-up": "CleanUpTest", "failover": "FailoverItem", "failback": "Failback",
		"change-point": "ChangePoint", "commit": "Commit", "undo-failover": "UndoFailover", "reprotect": "Reprotect", "resync": "Resync",
		"points": "MakePoint", "cancel": "CancelItem", "disable": "DisableItem"}
	b := newBench(t)
	for _, op := range operations {
		b.world.Fail[calls[op.path]] = fmt.Errorf("outer: %w", &holdfast.Error{Kind: holdfast.KindNotAllowed, Op: op.path, Thing: "web1", Cause: "not now", Hint: "Wait"})
		if p := problem(t, b.do(auth.RoleOperator, "POST", "/v1/items/web1/"+op.path, op.body), 409, api.CodeNotAllowed); p.Cause != "not now" || p.Hint != "Wait" {
			t.Errorf("%s: %+v", op.path, p)
		}
		clear(b.world.Fail)
		problem(t, b.do(auth.RoleOperator, "POST", "/v1/items/web9/"+op.path, op.body), 404, api.CodeNotFound)
	}
}

func TestScreenshot(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	w := b.do(auth.RoleViewer, "GET", "/v1/jobs/j-0/screenshot", nil)
	if w.Code != 200 || w.Header().Get("Content-Type") != "image/png" || !bytes.HasPrefix(w.Body.Bytes(), []byte("\x89PNG")) {
		t.Errorf("answer %d %q %q, want a PNG", w.Code, w.Header().Get("Content-Type"), w.Body)
	}
	problem(t, b.do(auth.RoleViewer, "GET", "/v1/jobs/j-9/screenshot", nil), 404, api.CodeNotFound)
	b.world.Called()
	for _, id := range []string{"..%2fca", ".hidden", "a%00b"} {
		problem(t, b.do(auth.RoleViewer, "GET", "/v1/jobs/"+id+"/screenshot", nil), 422, api.CodeInvalid)
	}
	if calls := b.world.Called(); len(calls) > 0 {
		t.Errorf("the service was called: %v", calls)
	}
}
