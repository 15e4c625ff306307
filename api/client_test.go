package api_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/holdfast-dr/holdfast/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// client returns a client of a server that answers with handler.
func client(t *testing.T, handler http.HandlerFunc) *api.Client {
	t.Helper()
	server := httptest.NewServer(handler)
	c, err := api.NewClient(api.ClientOptions{BaseURL: server.URL, Token: "hf_x", Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		server.Close()
	})
	return c
}

func TestClientOptions(t *testing.T) {
	t.Parallel()
	for _, opts := range []api.ClientOptions{{}, {BaseURL: "dr:8443"}, {BaseURL: "ftp://x"}, {BaseURL: "https://"}, {BaseURL: "https://x", CA: []byte("no PEM")}} {
		if _, err := api.NewClient(opts); !errors.Is(err, api.ErrOptions) {
			t.Errorf("NewClient(%+v) = %v, want ErrOptions", opts, err)
		}
	}
}

// What is not a Holdfast server's answer is not taken for one.
func TestAnswersOfOthers(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		handler http.HandlerFunc
		status  int // 0: not a problem
	}{
		{"proxy", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "<html>bad gateway", http.StatusBadGateway)
		}, 502},
		{"redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }, 302},
		{"problem without code", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(404)
			fmt.Fprint(w, `{"status":404}`)
		}, 404},
		{"page", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>hello") }, 0},
		{"cut", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, `{"items":[`)
		}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := client(t, tt.handler).Items(t.Context())
			var p *api.Problem
			if err == nil || errors.As(err, &p) != (tt.status != 0) {
				t.Fatalf("Items: %v", err)
			}
			if p != nil && (p.Status != tt.status || p.Code != api.CodeUnavailable) {
				t.Errorf("problem %+v, want status %d, unavailable", p, tt.status)
			}
		})
	}
}

// The token goes to the server alone, and names stay in their place.
func TestNamesStayInTheirPlace(t *testing.T) {
	t.Parallel()
	var path atomic.Value
	c := client(t, func(w http.ResponseWriter, r *http.Request) {
		path.Store(r.URL.EscapedPath())
		w.WriteHeader(404)
	})
	for _, name := range []string{"..", ".", "", "../sites", "a/b", "a?b", "a#b", "%2e%2e", "ä ö"} {
		_, _ = c.Item(t.Context(), name)
		got := path.Load().(string)
		if rest, ok := strings.CutPrefix(got, "/v1/items/"); !ok || rest == "" || rest == "." || rest == ".." || strings.Contains(rest, "/") {
			t.Errorf("item %q is asked for at %q", name, got)
		}
	}
}

func TestWatchJobGoesOnAfterBreaks(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	c := client(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		switch calls.Add(1) {
		case 1:
			fmt.Fprint(w, ": hello\nretry: 1\n\nevent: job\ndata: {\"id\":\"j\",\ndata: \"state\":\"in_progress\"}\n\n")
		case 2: // breaks within an event, which therefore does not count
			fmt.Fprint(w, "event: job\ndata: {\"id\":\"j\",\"state\":\"failed\"}\n")
		case 3:
			w.Header().Set("Content-Type", "text/plain")
			w.WriteHeader(http.StatusBadGateway)
		default:
			fmt.Fprint(w, "data: {\"id\":\"j\",\"state\":\"succeeded\"}\n\ndata: {\"state\":\"never read\"}\n\n")
		}
	})
	var states []string
	job, err := c.WatchJob(t.Context(), "j", func(j api.Job) error { states = append(states, j.State); return nil })
	if err != nil || job.State != api.JobSucceeded || strings.Join(states, " ") != "in_progress succeeded" {
		t.Errorf("WatchJob = %+v, %v after %v", job, err, states)
	}
}

func TestWatchJobEndsWithItsContext(t *testing.T) {
	t.Parallel()
	c := client(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "data: {\"state\":\"in_progress\"}\n\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := c.WatchJob(ctx, "j", func(api.Job) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("WatchJob: %v, want context.Canceled", err)
	}
	mine := errors.New("mine")
	if _, err := c.WatchJob(t.Context(), "j", func(api.Job) error { return mine }); !errors.Is(err, mine) {
		t.Errorf("WatchJob: %v, want the callback's error", err)
	}
}
