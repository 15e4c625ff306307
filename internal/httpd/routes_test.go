package httpd_test

import (
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/auth"
)

// request is a valid request to each operation, and who may make it. It is
// written by hand, apart from the server's own table, on purpose.
type permission struct {
	op     string
	least  auth.Role // "": anyone
	path   string
	body   any
	status int
}

func permissions() []permission {
	const ok, made, taken = 200, 201, 202
	return []permission{
		{"GET /v1/health", "", "/v1/health", nil, ok},
		{"GET /v1/docs", "", "/v1/docs", nil, ok},
		{"GET /v1/version", auth.RoleViewer, "/v1/version", nil, ok},
		{"GET /v1/openapi.json", auth.RoleViewer, "/v1/openapi.json", nil, ok},
		{"GET /v1/events", auth.RoleViewer, "", nil, ok}, // never ends: see TestEvents
		{"GET /v1/sites", auth.RoleViewer, "/v1/sites", nil, ok},
		{"GET /v1/sites/{site}", auth.RoleViewer, "/v1/sites/berlin", nil, ok},
		{"POST /v1/sites", auth.RoleAdmin, "/v1/sites", api.AddSite{Name: "paris", Provider: "qemu"}, made},
		{"DELETE /v1/sites/{site}", auth.RoleAdmin, "/v1/sites/berlin", nil, 204},
		{"GET /v1/machines", auth.RoleViewer, "/v1/machines?site=berlin", nil, ok},
		{"GET /v1/items", auth.RoleViewer, "/v1/items", nil, ok},
		{"GET /v1/items/{item}", auth.RoleViewer, "/v1/items/web1", nil, ok},
		{"POST /v1/items", auth.RoleOperator, "/v1/items", api.Protect{Machine: "m", Site: "a", RecoverySite: "b"}, taken},
		{"GET /v1/items/{item}/points", auth.RoleViewer, "/v1/items/web1/points", nil, ok},
		{"GET /v1/items/{item}/timelines", auth.RoleViewer, "/v1/items/web1/timelines", nil, ok},
		{"POST /v1/items/{item}/failover", auth.RoleOperator, "/v1/items/web1/failover", api.Failover{Option: "latest"}, taken},
		{"POST /v1/items/{item}/disable", auth.RoleOperator, "/v1/items/web1/disable", api.Disable{}, taken},
		{"POST /v1/items/{item}/test-failover", auth.RoleOperator, "/v1/items/web1/test-failover", api.TestFailover{Option: "latest"}, taken},
		{"POST /v1/items/{item}/clean-up", auth.RoleOperator, "/v1/items/web1/clean-up", api.CleanUpTest{Note: "well"}, taken},
		{"POST /v1/items/{item}/failback", auth.RoleOperator, "/v1/items/web1/failback", api.Failback{Option: "latest"}, taken},
		{"POST /v1/items/{item}/change-point", auth.RoleOperator, "/v1/items/web1/change-point", api.ChangePoint{Option: "latest"}, taken},
		{"POST /v1/items/{item}/commit", auth.RoleOperator, "/v1/items/web1/commit", api.Commit{}, taken},
		{"POST /v1/items/{item}/undo-failover", auth.RoleOperator, "/v1/items/web1/undo-failover", api.UndoFailover{}, taken},
		{"POST /v1/items/{item}/reprotect", auth.RoleOperator, "/v1/items/web1/reprotect", api.Reprotect{}, taken},
		{"POST /v1/items/{item}/resync", auth.RoleOperator, "/v1/items/web1/resync", api.Resync{}, taken},
		{"POST /v1/items/{item}/points", auth.RoleOperator, "/v1/items/web1/points", api.MakePoint{Name: "p"}, taken},
		{"POST /v1/items/{item}/policy", auth.RoleOperator, "/v1/items/web1/policy", api.ChangePolicy{}, ok},
		{"POST /v1/items/{item}/hold", auth.RoleAdmin, "/v1/items/web1/hold", api.HoldItem{Reason: "r"}, ok},
		{"POST /v1/items/{item}/pin", auth.RoleOperator, "/v1/items/web1/pin", api.PinPoint{Point: "p"}, ok},
		{"POST /v1/items/{item}/pause", auth.RoleOperator, "/v1/items/web1/pause", api.Pause{Duration: 600}, taken},
		{"POST /v1/items/{item}/resume", auth.RoleOperator, "/v1/items/web1/resume", api.Resume{}, taken},
		{"POST /v1/items/{item}/compare", auth.RoleOperator, "/v1/items/web1/compare", api.CompareItem{}, taken},
		{"POST /v1/items/{item}/cancel", auth.RoleOperator, "/v1/items/web1/cancel", api.CancelItem{}, taken},
		{"POST /v1/items/{item}/check", auth.RoleViewer, "/v1/items/web1/check", api.CheckOperation{Operation: "commit"}, ok},
		{"GET /v1/jobs", auth.RoleViewer, "/v1/jobs?state=active", nil, ok},
		{"GET /v1/jobs/{job}", auth.RoleViewer, "/v1/jobs/j-0", nil, ok},
		{"GET /v1/jobs/{job}/events", auth.RoleViewer, "/v1/jobs/j-0/events", nil, ok},
		{"GET /v1/jobs/{job}/screenshot", auth.RoleViewer, "/v1/jobs/j-0/screenshot", nil, ok},
		{"POST /v1/jobs/{job}/cancel", auth.RoleOperator, "/v1/jobs/j-run/cancel", nil, taken},
		{"POST /v1/jobs/{job}/answer", auth.RoleOperator, "/v1/jobs/j-run/answer", api.Answer{Answer: "done"}, taken},
		{"GET /v1/plans", auth.RoleViewer, "/v1/plans", nil, ok},
		{"GET /v1/plans/{plan}", auth.RoleViewer, "/v1/plans/shop", nil, ok},
		{"GET /v1/plans/{plan}/texts", auth.RoleViewer, "/v1/plans/shop/texts", nil, ok},
		{"POST /v1/plans", auth.RoleAdmin, "/v1/plans", api.ApplyPlan{Text: "name: shop"}, ok},
		{"POST /v1/plan-diff", auth.RoleViewer, "/v1/plan-diff", api.ApplyPlan{Text: "name: shop"}, ok},
		{"DELETE /v1/plans/{plan}", auth.RoleAdmin, "/v1/plans/shop", nil, 204},
		{"POST /v1/plans/{plan}/run", auth.RoleOperator, "/v1/plans/shop/run", api.RunPlan{Kind: "test"}, taken},
		{"POST /v1/plans/{plan}/check", auth.RoleViewer, "/v1/plans/shop/check", api.RunPlan{Kind: "test"}, ok},
		{"POST /v1/plans/{plan}/drill", auth.RoleOperator, "/v1/plans/shop/drill", nil, taken},
		{"GET /v1/plan-runs/{job}/report", auth.RoleViewer, "/v1/plan-runs/j-0/report", nil, ok},
		{"GET /v1/report-key", auth.RoleViewer, "/v1/report-key", nil, ok},
		{"GET /v1/plan-runs/{job}", auth.RoleViewer, "/v1/plan-runs/j-0", nil, ok},
		{"GET /v1/groups", auth.RoleViewer, "/v1/groups", nil, ok},
		{"GET /v1/groups/{group}", auth.RoleViewer, "/v1/groups/town", nil, ok},
		{"POST /v1/groups/{group}", auth.RoleOperator, "/v1/groups/town", api.ChangeGroup{Add: []string{"web1"}}, ok},
		{"POST /v1/groups/{group}/points", auth.RoleOperator, "/v1/groups/town/points", api.MakePoint{Name: "p"}, taken},
		{"GET /v1/vault", auth.RoleViewer, "/v1/vault", nil, ok},
		{"POST /v1/vault/verify", auth.RoleOperator, "/v1/vault/verify", api.VerifyVault{}, taken},
		{"GET /v1/tokens", auth.RoleAdmin, "/v1/tokens", nil, ok},
		{"POST /v1/tokens", auth.RoleAdmin, "/v1/tokens", api.CreateToken{Name: "x", Role: "viewer"}, made},
		{"DELETE /v1/tokens/{token}", auth.RoleAdmin, "/v1/tokens/viewer", nil, 204},
	}
}

func TestEveryRouteTimesEveryRole(t *testing.T) {
	t.Parallel()
	for _, p := range permissions() {
		if p.path == "" {
			continue
		}
		method, _, _ := strings.Cut(p.op, " ")
		for _, role := range []auth.Role{"", auth.RoleViewer, auth.RoleOperator, auth.RoleAdmin} {
			b := newBench(t)
			b.world.Jobs = append(b.world.Jobs, api.Job{ID: "j-run", State: api.JobInProgress})
			w := b.do(role, method, p.path, p.body)
			switch {
			case p.least == "" || role.Allows(p.least):
				if w.Code != p.status {
					t.Errorf("%s as %q: %d %s, want %d", p.op, role, w.Code, w.Body, p.status)
				}
			case role == "":
				problem(t, w, http.StatusUnauthorized, api.CodeUnauthorized)
				if w.Header().Get("WWW-Authenticate") == "" {
					t.Errorf("%s: no WWW-Authenticate", p.op)
				}
			default:
				if got := problem(t, w, http.StatusForbidden, api.CodeForbidden); !strings.Contains(got.Cause, string(p.least)) {
					t.Errorf("%s as %s: cause %q does not name the role that is needed", p.op, role, got.Cause)
				}
			}
			if w.Code == http.StatusUnauthorized || w.Code == http.StatusForbidden {
				if calls := b.world.Called(); len(calls) > 0 {
					t.Errorf("%s as %q: refused, but the service was called: %v", p.op, role, calls)
				}
			}
		}
	}
}

// The list above must be complete, or it would prove nothing.
func TestPermissionsNameEveryRoute(t *testing.T) {
	t.Parallel()
	var doc struct {
		Paths map[string]map[string]struct {
			Role string `json:"x-role"`
		}
	}
	if err := json.Unmarshal(newBench(t).server.OpenAPI(), &doc); err != nil {
		t.Fatal(err)
	}
	served := map[string]string{}
	for path, methods := range doc.Paths {
		for method, op := range methods {
			served[strings.ToUpper(method)+" "+path] = op.Role
		}
	}
	for _, p := range permissions() {
		want := string(p.least)
		if want == "" {
			want = "anyone"
		}
		if got, ok := served[p.op]; !ok || got != want {
			t.Errorf("%s is served to %q (%v), want %q", p.op, got, ok, want)
		}
		delete(served, p.op)
	}
	if len(served) > 0 {
		t.Errorf("routes without a test of their permission: %v", served)
	}
	guide, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range permissions() {
		if !strings.Contains(string(guide), "`"+p.op+"`") {
			t.Errorf("docs/api.md does not name %s", p.op)
		}
	}
}

func TestTokensThatAreNone(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for _, header := range []string{"Bearer", "Bearer ", "Bearer hf_wrong", "Basic " + b.secret[auth.RoleAdmin], b.secret[auth.RoleAdmin], "Bearer " + b.secret[auth.RoleAdmin] + "x", "Bearer \x00"} {
		problem(t, b.do("", "GET", "/v1/items", nil, "Authorization", header), 401, api.CodeUnauthorized)
	}
	if w := b.do("", "GET", "/v1/items", nil, "Authorization", "bearer  "+b.secret[auth.RoleViewer]); w.Code != 200 {
		t.Errorf("scheme in lower case: %d %s", w.Code, w.Body)
	}
	if w := b.do("", "GET", "/v1/health", nil, "Authorization", "Bearer nonsense"); w.Code != 200 {
		t.Errorf("health with a bad token: %d", w.Code)
	}
	if calls := b.world.Called(); len(calls) != 1 {
		t.Errorf("calls %v, want the one that was allowed", calls)
	}
}
