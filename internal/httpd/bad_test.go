package httpd_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/auth"
)

func TestBadRequests(t *testing.T) {
	t.Parallel()
	const failover = "/v1/items/web1/failover"
	tests := []struct {
		name, method, path, body string
		header                   []string
		status                   int
		code, cause              string
	}{
		{name: "malformed", method: "POST", path: failover, body: `{"option":`, status: 400, code: "invalid", cause: "unexpected end"},
		{name: "not an object", method: "POST", path: failover, body: `[1]`, status: 422, code: "invalid", cause: "object"},
		{name: "no body", method: "POST", path: failover, body: "", status: 400, code: "invalid", cause: "body is required"},
		{name: "second value", method: "POST", path: failover, body: `{"option":"latest","shutdown_source":false} {}`, status: 400, code: "invalid"},
		{name: "unknown field", method: "POST", path: failover, body: `{"option":"latest","shutdown_source":true,"shutdwon":1}`, status: 422, code: "invalid", cause: "shutdwon"},
		{name: "unknown option", method: "POST", path: failover, body: `{"option":"newest","shutdown_source":true}`, status: 422, code: "invalid", cause: "option"},
		{name: "missing field", method: "POST", path: "/v1/items", body: `{"machine":"m","site":"a"}`, status: 422, code: "invalid", cause: "recovery_site"},
		{name: "wrong type", method: "POST", path: "/v1/items", body: `{"machine":1,"site":"a","recovery_site":"b"}`, status: 422, code: "invalid", cause: "machine"},
		{name: "negative threshold", method: "POST", path: "/v1/items", body: `{"machine":"m","site":"a","recovery_site":"b","policy":{"rpo_threshold_seconds":-1}}`, status: 422, code: "invalid", cause: "rpo_threshold_seconds"},
		{name: "point without one", method: "POST", path: failover, body: `{"option":"point","shutdown_source":false}`, status: 422, code: "invalid", cause: "needs a point"},
		{name: "point with latest", method: "POST", path: failover, body: `{"option":"latest","point":"x","shutdown_source":false}`, status: 422, code: "invalid", cause: "option point"},
		{name: "time without one", method: "POST", path: failover, body: `{"option":"time","shutdown_source":false}`, status: 422, code: "invalid", cause: "needs a time"},
		{name: "bad time", method: "POST", path: failover, body: `{"option":"time","time":"yesterday","shutdown_source":false}`, status: 422, code: "invalid", cause: "time"},
		{name: "settings are no object", method: "POST", path: "/v1/sites", body: `{"name":"x","provider":"qemu","settings":[1]}`, status: 422, code: "invalid"},
		{name: "deep nesting", method: "POST", path: "/v1/sites", body: `{"name":"x","provider":"qemu","settings":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `}`, status: 400, code: "invalid"},
		{name: "too large", method: "POST", path: "/v1/sites", body: `{"name":"` + strings.Repeat("a", 70<<10) + `"}`, status: 413, code: "invalid"},
		{name: "form", method: "POST", path: failover, body: "option=latest", header: []string{"Content-Type", "application/x-www-form-urlencoded"}, status: 415, code: "invalid"},
		{name: "text", method: "POST", path: failover, body: `{"option":"latest"}`, header: []string{"Content-Type", "text/plain"}, status: 415, code: "invalid"},
		{name: "unknown query", method: "GET", path: "/v1/jobs?stat=active", status: 422, code: "invalid", cause: "stat"},
		{name: "bad query", method: "GET", path: "/v1/jobs?limit=many", status: 422, code: "invalid", cause: "limit"},
		{name: "huge query", method: "GET", path: "/v1/jobs?limit=1000000", status: 422, code: "invalid", cause: "limit"},
		{name: "traversal", method: "GET", path: "/v1/items/..%2f..%2fetc%2fpasswd", status: 422, code: "invalid", cause: "item"},
		{name: "hidden", method: "GET", path: "/v1/items/.hidden", status: 422, code: "invalid", cause: "item"},
		{name: "NUL", method: "GET", path: "/v1/items/a%00b", status: 422, code: "invalid", cause: "item"},
		{name: "long id", method: "GET", path: "/v1/items/" + strings.Repeat("a", 200), status: 422, code: "invalid", cause: "item"},
		{name: "bad If-Match", method: "POST", path: failover, body: `{"option":"latest","shutdown_source":false}`, header: []string{"If-Match", "seven"}, status: 422, code: "invalid"},
		{name: "stale If-Match", method: "POST", path: failover, body: `{"option":"latest","shutdown_source":false}`, header: []string{"If-Match", `"v6"`}, status: 412, code: "conflict", cause: "7"},
		{name: "bad Last-Event-ID", method: "GET", path: "/v1/events", header: []string{"Last-Event-ID", "abc"}, status: 422, code: "invalid"},
		{name: "huge Last-Event-ID", method: "GET", path: "/v1/events", header: []string{"Last-Event-ID", "99999999999999999999"}, status: 422, code: "invalid"},
		{name: "no such path", method: "GET", path: "/v2/items", status: 404, code: "not_found"},
		{name: "wrong method", method: "DELETE", path: "/v1/items", status: 405, code: "invalid"},
		{name: "no such item", method: "GET", path: "/v1/items/web9", status: 404, code: "not_found", cause: "no such item"},
		{name: "no such job", method: "GET", path: "/v1/jobs/j-9/events", status: 404, code: "not_found"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			var body any
			if tt.body != "" || tt.method == "POST" {
				body = tt.body
			}
			w := b.do(auth.RoleAdmin, tt.method, tt.path, body, tt.header...)
			p := problem(t, w, tt.status, tt.code)
			if !strings.Contains(p.Cause, tt.cause) {
				t.Errorf("cause %q, want it to contain %q", p.Cause, tt.cause)
			}
			for _, call := range b.world.Called() {
				if name, _, _ := strings.Cut(call, " "); !strings.HasPrefix(name, "Get") {
					t.Errorf("the service was called: %s", call)
				}
			}
		})
	}
}

// A name that leads out of its place never reaches another route.
func TestTraversalRedirectsNowhereUseful(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for _, path := range []string{"/v1/items/../tokens", "/v1/items//../sites", "/v1/./items"} {
		w := b.do(auth.RoleAdmin, "GET", path, nil)
		if w.Code < 300 || w.Code >= 500 {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	if calls := b.world.Called(); len(calls) > 0 {
		t.Errorf("the service was called: %v", calls)
	}
}

func TestErrorsOfTheService(t *testing.T) {
	t.Parallel()
	tests := []struct {
		err                  error
		status               int
		code                 string
		detail, cause, never string
	}{
		{&holdfast.Error{Kind: holdfast.KindNotAllowed, Op: "fail over item", Thing: "web1", Cause: "the initial copy is not finished", Hint: "Wait"}, 409, "not_allowed", "cannot fail over item web1", "the initial copy is not finished", ""},
		{fmt.Errorf("outer: %w", &holdfast.Error{Kind: holdfast.KindConflict, Op: "fail over item", Thing: "web1", Cause: "job j-1 runs"}), 409, "conflict", "cannot fail over item web1", "job j-1 runs", ""},
		{&holdfast.Error{Kind: holdfast.KindUnavailable, Op: "open vault", Err: errors.New("no space left on device")}, 503, "unavailable", "cannot open vault", "no space left on device", ""},
		{&holdfast.Error{Kind: holdfast.KindCorrupt, Op: "read segment", Thing: "7", Cause: "hash differs"}, 500, "corrupt", "cannot read segment 7", "hash differs", ""},
		{&holdfast.Error{Kind: holdfast.KindInvalid, Op: "protect", Thing: "m"}, 422, "invalid", "cannot protect m", "", ""},
		{&api.Problem{Code: api.CodeNotFound, Detail: "gone"}, 404, "not_found", "gone", "", ""},
		{errors.New("open /var/lib/secret: permission denied"), 500, "internal", "does not know", "", "secret"},
		{context.DeadlineExceeded, 503, "unavailable", "too long", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.err.Error(), func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.world.Fail["FailoverItem"] = tt.err
			w := b.do(auth.RoleOperator, "POST", "/v1/items/web1/failover", api.Failover{Option: "latest"})
			p := problem(t, w, tt.status, tt.code)
			if !strings.Contains(p.Detail, tt.detail) || p.Cause != tt.cause {
				t.Errorf("detail %q cause %q, want %q %q", p.Detail, p.Cause, tt.detail, tt.cause)
			}
			if tt.never != "" && strings.Contains(w.Body.String(), tt.never) {
				t.Errorf("answer tells %q: %s", tt.never, w.Body)
			}
		})
	}
}

func TestPanicIsAProblem(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.world.Fail = nil
	b.world.Points = nil
	b.world.Items = []api.Item{{ID: "i-1", Name: "web1", Version: 1}}
	b.world.Fail = map[string]error{"GetVault": panicking{}}
	p := problem(t, b.do(auth.RoleViewer, "GET", "/v1/vault", nil), 500, api.CodeInternal)
	if p.Hint == "" {
		t.Error("no hint")
	}
}

// panicking is an error that panics when it is looked at.
type panicking struct{}

func (panicking) Error() string { panic("boom") }
func (panicking) Unwrap() error { panic("boom") }
func (panicking) Is(error) bool { panic("boom") }
func (panicking) As(any) bool   { panic("boom") }

func TestETag(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	w := b.do(auth.RoleViewer, "GET", "/v1/items/web1", nil)
	tag := w.Header().Get("ETag")
	if tag != `"v7"` {
		t.Fatalf("ETag %q, want \"v7\"", tag)
	}
	if w := b.do(auth.RoleViewer, "GET", "/v1/items/web1", nil, "If-None-Match", tag); w.Code != http.StatusNotModified || w.Body.Len() > 0 {
		t.Errorf("If-None-Match: %d %s, want 304 and nothing", w.Code, w.Body)
	}
	b.world.Called()
	w = b.do(auth.RoleOperator, "POST", "/v1/items/web1/failover", api.Failover{Option: "latest"}, "If-Match", tag)
	if w.Code != http.StatusAccepted || w.Header().Get("Location") != "/v1/jobs/j-2" {
		t.Errorf("If-Match: %d %v %s", w.Code, w.Header(), w.Body)
	}
	if calls := strings.Join(b.world.Called(), "\n"); !strings.Contains(calls, "IfVersion:7") {
		t.Errorf("the version is not passed on: %s", calls)
	}
}

func TestListsAreNeverNull(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for _, path := range []string{"/v1/sites", "/v1/machines", "/v1/items", "/v1/items/web1", "/v1/items/web1/points", "/v1/jobs", "/v1/jobs/j-0", "/v1/vault"} {
		if w := b.do(auth.RoleViewer, "GET", path, nil); w.Code != 200 || strings.Contains(w.Body.String(), "null") {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	if b.world.Items[0].Allowed != nil {
		t.Error("answering changed what the service holds")
	}
}

func TestHealthTellsStrangersLittle(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	if w := b.do("", "GET", "/v1/health", nil); strings.Contains(w.Body.String(), "components") || !strings.Contains(w.Body.String(), `"ok"`) {
		t.Errorf("without a token: %s", w.Body)
	}
	if w := b.do(auth.RoleViewer, "GET", "/v1/health", nil); !strings.Contains(w.Body.String(), "components") {
		t.Errorf("with a token: %s", w.Body)
	}
}

func TestDocsPageLoadsNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	w := b.do("", "GET", "/v1/docs", nil)
	page := w.Body.String()
	for _, unwanted := range []string{"<script", "http://", "https://", "src=", "@import"} {
		if strings.Contains(page, unwanted) {
			t.Errorf("the page contains %s", unwanted)
		}
	}
	for _, p := range permissions() {
		if _, path, _ := strings.Cut(p.op, " "); !strings.Contains(page, path) {
			t.Errorf("the page lacks %s", path)
		}
	}
	if got := w.Header().Get("Content-Security-Policy"); !strings.Contains(got, "default-src 'none'") {
		t.Errorf("policy %q", got)
	}
}
