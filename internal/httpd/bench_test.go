package httpd_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/auth"
	"github.com/holdfast-dr/holdfast/internal/httpd"
	"github.com/holdfast-dr/holdfast/internal/httpd/httpdtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// bench is a server with a scripted world behind it and a token of each role.
type bench struct {
	t      *testing.T
	world  *httpdtest.World
	server *httpd.Server
	tokens *auth.Tokens
	secret map[auth.Role]string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, world: httpdtest.New(now), tokens: auth.NewTokens(new(auth.MemoryStore)), secret: map[auth.Role]string{}}
	for _, role := range []auth.Role{auth.RoleAdmin, auth.RoleOperator, auth.RoleViewer} {
		_, secret, err := b.tokens.Create(context.Background(), auth.CreateOptions{Name: string(role), Role: role, Now: now})
		if err != nil {
			t.Fatal(err)
		}
		b.secret[role] = secret
	}
	b.world.Sites = []api.Site{{ID: "s-1", Name: "berlin", Provider: "qemu"}}
	b.world.Items = []api.Item{{ID: "i-1", Name: "web1", Version: 7, State: "protected"}}
	b.world.Jobs = []api.Job{{ID: "j-0", Kind: "protect", State: api.JobSucceeded, ItemName: "web1"}}
	b.world.Plan = api.Plan{ID: "plan-1", Name: "shop", Revision: 3}
	var err error
	b.server, err = httpd.New(httpd.Options{Service: b.world.Service(), Tokens: b.tokens, Heartbeat: 20 * time.Millisecond,
		Addr: "127.0.0.1:0", Now: func() time.Time { return now }, Version: api.ServerVersion{Version: "0.1.0"}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// do sends a request with the token of a role; "" sends none.
func (b *bench) do(role auth.Role, method, target string, body any, header ...string) *httptest.ResponseRecorder {
	b.t.Helper()
	var reader io.Reader
	switch body := body.(type) {
	case nil:
	case string:
		reader = bytes.NewReader([]byte(body))
	default:
		data, err := json.Marshal(body)
		if err != nil {
			b.t.Fatal(err)
		}
		reader = bytes.NewReader(data)
	}
	r := httptest.NewRequest(method, target, reader)
	if reader != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if role != "" {
		r.Header.Set("Authorization", "Bearer "+b.secret[role])
	}
	for i := 0; i+1 < len(header); i += 2 {
		if r.Header.Del(header[i]); header[i+1] != "" {
			r.Header.Set(header[i], header[i+1])
		}
	}
	w := httptest.NewRecorder()
	b.server.Handler().ServeHTTP(w, r)
	return w
}

// problem decodes an answer that must be a problem with that status and code.
func problem(t *testing.T, w *httptest.ResponseRecorder, status int, code string) api.Problem {
	t.Helper()
	var p api.Problem
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
		t.Fatalf("answer %d %q is not a problem: %v", w.Code, w.Body, err)
	}
	if w.Code != status || p.Status != status || p.Code != code {
		t.Errorf("answer %d %s, want %d %s", w.Code, w.Body, status, code)
	}
	if got := w.Header().Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("content type %q, want application/problem+json", got)
	}
	if p.Detail == "" || p.Title != http.StatusText(status) || p.Instance != w.Header().Get("X-Request-Id") || p.Instance == "" {
		t.Errorf("problem lacks a part: %+v", p)
	}
	return p
}
