package httpd_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/auth"
	"github.com/holdfast-dr/holdfast/internal/httpd"
)

// run runs the bench's server for the length of the test and returns a client
// of a viewer, and what stops the server.
func (b *bench) run() (*api.Client, context.CancelFunc) {
	b.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	var group errgroup.Group
	group.Go(func() error { return b.server.Run(ctx) })
	<-b.server.Ready()
	client, err := api.NewClient(api.ClientOptions{BaseURL: "http://" + b.server.Addr().String(), Token: b.secret[auth.RoleViewer]})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		client.Close()
		stop()
		if err := group.Wait(); err != nil {
			b.t.Errorf("Run: %v", err)
		}
	})
	return client, stop
}

// lines opens a stream and returns its lines.
func (b *bench) lines(ctx context.Context, path string, header ...string) (<-chan string, func()) {
	b.t.Helper()
	r, err := http.NewRequestWithContext(ctx, "GET", "http://"+b.server.Addr().String()+path, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+b.secret[auth.RoleViewer])
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	transport := new(http.Transport)
	answer, err := transport.RoundTrip(r)
	if err != nil {
		b.t.Fatal(err)
	}
	if answer.StatusCode != 200 || answer.Header.Get("Content-Type") != "text/event-stream" {
		b.t.Fatalf("%s: %s %s", path, answer.Status, answer.Header.Get("Content-Type"))
	}
	out := make(chan string)
	done := make(chan struct{})
	go func() {
		defer close(out)
		scan := bufio.NewScanner(answer.Body)
		for scan.Scan() {
			select {
			case out <- scan.Text():
			case <-done:
				return
			}
		}
	}()
	return out, func() {
		close(done)
		_ = answer.Body.Close()
		for range out {
		}
		transport.CloseIdleConnections()
	}
}

// until reads lines up to one that begins so.
func until(t *testing.T, lines <-chan string, prefix string) string {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				t.Fatalf("the stream ended before %q", prefix)
			}
			if strings.HasPrefix(line, prefix) {
				return line
			}
		case <-deadline:
			t.Fatalf("no %q within 10 s", prefix)
		}
	}
}

func TestEventsHeartbeatAndResume(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.run()
	begin := fmt.Sprint(now.UnixMicro()) // the log's, so that it does not matter when following begins
	lines, closeStream := b.lines(t.Context(), "/v1/events?after="+begin)
	until(t, lines, ": still here")
	until(t, lines, ": still here")
	b.world.Log.Publish(api.Event{Type: api.EventItemChanged, Item: "i-1"})
	first := strings.TrimPrefix(until(t, lines, "id: "), "id: ")
	if data := until(t, lines, "data: "); !strings.Contains(data, `"item":"i-1"`) {
		t.Errorf("data %q", data)
	}
	closeStream()
	for i := range 3 { // while nobody listens
		b.world.Log.Publish(api.Event{Type: api.EventJobChanged, Job: fmt.Sprintf("j-%d", i)})
	}
	lines, closeStream = b.lines(t.Context(), "/v1/events", "Last-Event-ID", first)
	for i := range 3 {
		if data := until(t, lines, "data: "); !strings.Contains(data, fmt.Sprintf(`"job":"j-%d"`, i)) {
			t.Errorf("resumed with %q, want job j-%d", data, i)
		}
	}
	closeStream()
	for range 6 { // more than the log keeps
		b.world.Log.Publish(api.Event{Type: api.EventSiteChanged})
	}
	lines, closeStream = b.lines(t.Context(), "/v1/events", "Last-Event-ID", first)
	if data := until(t, lines, "data: "); !strings.Contains(data, `"type":"reset"`) {
		t.Errorf("too late: %q, want a reset", data)
	}
	closeStream()
}

func TestClientFollowsEventsAcrossBreaks(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	client, _ := b.run()
	// A proxy that cuts each connection after its first event.
	b.world.Log.Publish(api.Event{Type: "before"})
	proxy := cutter(t, b.server.Addr().String(), `"type":"n`)
	client, err := api.NewClient(api.ClientOptions{BaseURL: "http://" + proxy, Token: b.secret[auth.RoleViewer]})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for i := range 3 {
		b.world.Log.Publish(api.Event{Type: fmt.Sprintf("n%d", i)})
	}
	var seen []string
	stop := errors.New("enough")
	after := uint64(now.UnixMicro()) + 1 // the event before
	err = client.Events(t.Context(), after, func(e api.Event) error {
		if seen = append(seen, e.Type); len(seen) == 3 {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || strings.Join(seen, " ") != "n0 n1 n2" {
		t.Errorf("seen %v, %v; want n0 n1 n2, each once", seen, err)
	}
}

// cutter forwards connections to addr and closes each after a chunk from
// there that contains mark. It returns its address.
func cutter(t *testing.T, addr, mark string) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var group errgroup.Group
	group.Go(func() error {
		for {
			near, err := listener.Accept()
			if err != nil {
				return nil
			}
			far, err := net.Dial("tcp", addr)
			if err != nil {
				return errors.Join(err, near.Close())
			}
			group.Go(func() error {
				defer far.Close()
				buf := make([]byte, 32<<10)
				for {
					n, err := near.Read(buf)
					if err != nil {
						return nil
					}
					if _, err := far.Write(buf[:n]); err != nil {
						return nil
					}
				}
			})
			group.Go(func() error {
				defer near.Close()
				defer far.Close()
				reader := bufio.NewReader(far)
				for {
					line, err := reader.ReadString('\n')
					if err != nil {
						return nil
					}
					end := strings.Contains(line, mark)
					if end {
						line += "\r\n\r\n" // the chunk's end, so that the event is whole
					}
					if _, err := near.Write([]byte(line)); err != nil || end {
						return nil
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		if err := group.Wait(); err != nil {
			t.Error(err)
		}
	})
	return listener.Addr().String()
}

func TestWatchJobEndsWithTheJob(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	client, _ := b.run()
	b.world.Change(func() {
		b.world.Jobs = []api.Job{{ID: "j-1", State: api.JobInProgress}}
		b.world.Script = []api.Job{{State: api.JobInProgress, Progress: &api.Progress{Done: 5, Total: 10, Unit: "bytes"}}, {State: api.JobSucceeded}}
	})
	var states []string
	job, err := client.WatchJob(t.Context(), "j-1", func(j api.Job) error { states = append(states, j.State); return nil })
	if err != nil || job.State != api.JobSucceeded {
		t.Fatalf("WatchJob = %+v, %v", job, err)
	}
	if got := strings.Join(states, " "); got != "in_progress in_progress succeeded" {
		t.Errorf("states %s", got)
	}
	var p *api.Problem
	if _, err := client.WatchJob(t.Context(), "j-9", func(api.Job) error { return nil }); !errors.As(err, &p) || p.Code != api.CodeNotFound {
		t.Errorf("WatchJob of none: %v", err)
	}
}

func TestShutdownEndsStreamsAndLeavesNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	_, stop := b.run()
	b.world.Change(func() { b.world.Jobs = []api.Job{{ID: "j-1", State: api.JobInProgress}} })
	jobs, closeJobs := b.lines(t.Context(), "/v1/jobs/j-1/events")
	events, closeEvents := b.lines(t.Context(), "/v1/events")
	until(t, jobs, "data: ")
	until(t, events, ": still here")
	start := time.Now()
	stop()
	for range jobs { // ends when the server closes it
	}
	for range events {
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("streams ended after %s", took)
	}
	closeJobs()
	closeEvents()
}

func TestPortTaken(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	b := newBench(t)
	server, err := httpd.New(httpd.Options{Service: b.world.Service(), Tokens: b.tokens, Addr: listener.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	err = server.Run(t.Context())
	var known *holdfast.Error
	if !errors.As(err, &known) || known.Kind != holdfast.KindUnavailable || known.Hint == "" || known.Thing != listener.Addr().String() {
		t.Errorf("Run = %v, want an error that names the address and has a hint", err)
	}
}

func TestNewNeedsEveryRole(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	roles := reflect.TypeFor[httpd.Service]()
	for i := range roles.NumField() {
		service := b.world.Service()
		reflect.ValueOf(&service).Elem().Field(i).SetZero()
		if _, err := httpd.New(httpd.Options{Service: service, Tokens: b.tokens}); err == nil {
			t.Errorf("New without %s: no error", roles.Field(i).Name)
		}
	}
	if _, err := httpd.New(httpd.Options{Service: b.world.Service()}); err == nil {
		t.Error("New without Tokens: no error")
	}
}

func TestEventLog(t *testing.T) {
	t.Parallel()
	log := httpd.NewEventLog(2, now)
	ctx, cancel := context.WithCancel(t.Context())
	var got []string
	collect := func(stopAt int) func(api.Event) error {
		got = nil
		return func(e api.Event) error {
			if got = append(got, e.Type); len(got) == stopAt {
				return context.Canceled
			}
			return nil
		}
	}
	for _, kind := range []string{"a", "b", "c"} {
		log.Publish(api.Event{Type: kind})
	}
	base := uint64(now.UnixMicro())
	for _, tt := range []struct {
		after uint64
		want  string
	}{
		{base + 1, "b c"},         // after a, which is no longer kept
		{base + 2, "c"},           // after b
		{base, "reset b c"},       // before a
		{1, "reset b c"},          // of an earlier run
		{base + 900, "reset b c"}, // of a run whose clock was ahead
	} {
		_ = log.FollowEvents(ctx, tt.after, collect(len(strings.Fields(tt.want))))
		if strings.Join(got, " ") != tt.want {
			t.Errorf("after %d: %v, want %s", int64(tt.after-base), got, tt.want)
		}
	}
	cancel()
	if err := log.FollowEvents(ctx, 0, collect(9)); !errors.Is(err, context.Canceled) || len(got) > 0 {
		t.Errorf("from now on: %v, %v; want nothing", got, err)
	}
}
