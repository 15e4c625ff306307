package capture_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/internal/capture"
	"github.com/holdfast-dr/holdfast/internal/provider"
)

// scripted is a monitor that answers from a table; what is not in it hangs.
type scripted map[string]string

func (s scripted) Execute(ctx context.Context, command string, _, result any) error {
	answer, ok := s[command]
	if !ok {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return json.Unmarshal([]byte(answer), result)
}

func (scripted) Close() error { return nil }

// nobody is an ingest that is not there.
type nobody struct{}

var errAway = errors.New("ingest is away")

func (nobody) Endpoint(string) (socket, export string)      { return "/nowhere", "x" }
func (nobody) Synced(context.Context, string, uint64) error { return errAway }
func (nobody) Cut(context.Context, string) error            { return errAway }
func (nobody) Connection(context.Context, string) (capture.Connection, error) {
	return capture.Connection{}, errAway
}
func (nobody) Confirm(context.Context, time.Time, map[string]uint64) error { return errAway }

// TestMonitors runs a mirror against monitors that do not do what they should.
func TestMonitors(t *testing.T) {
	t.Parallel()
	version := `{"qemu":{"major":7,"minor":2,"micro":22}}`
	for _, c := range []struct {
		name    string
		open    error
		mon     scripted
		mode    capture.Mode
		off     bool
		problem string
	}{
		{name: "machine is off", open: provider.ErrNotRunning, mode: capture.ModePaused, off: true, problem: "does not run"},
		{name: "monitor is not reached", open: errors.New("no route"), mode: capture.ModeDisconnected, problem: "no route"},
		{name: "too old", mon: scripted{"query-version": `{"qemu":{"major":6,"minor":2,"micro":0}}`}, mode: capture.ModePaused, problem: "QEMU 6.2.0"},
		{name: "hangs at once", mon: scripted{}, mode: capture.ModeStalled, problem: "deadline"},
		{name: "hangs later", mon: scripted{"query-version": version, "query-block": `[]`}, mode: capture.ModeStalled},
		{
			name: "no such disk",
			mon:  scripted{"query-version": version, "query-block": `[]`, "query-named-block-nodes": `[]`, "query-block-jobs": `[]`},
			mode: capture.ModePaused, problem: "no such disk",
		},
		{
			name: "ingest is away",
			mon: scripted{
				"query-version": version, "query-named-block-nodes": `[]`, "query-block-jobs": `[]`,
				"query-block": `[{"device":"vda","inserted":{"node-name":"n","file":"/f","image":{"virtual-size":512}}}]`,
			},
			mode: capture.ModeDisconnected, problem: "ingest is away",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				m := capture.NewMirror(capture.MirrorOptions{
					Open:    func(context.Context) (provider.Monitor, error) { return c.mon, c.open },
					Machine: func(context.Context) (provider.Machine, error) { return provider.Machine{}, nil },
					Disks:   []capture.Disk{{ID: "vda", Size: 512}}, Prefix: "p", Ingest: nobody{},
				})
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- m.Run(ctx) }()
				time.Sleep(time.Minute) // of the bubble's clock
				s := m.State()
				if s.Mode() != c.mode || s.SourceOff != c.off || !strings.Contains(s.Problem, c.problem) {
					t.Errorf("got mode %s, off %v, problem %q; want %s, %v, %q", s.Mode(), s.SourceOff, s.Problem, c.mode, c.off, c.problem)
				}
				cancel()
				if err := <-done; err != nil {
					t.Errorf("Run: %v", err)
				}
			})
		})
	}
}
