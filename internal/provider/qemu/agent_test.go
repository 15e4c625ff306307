package qemu_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/qemu"
)

// scriptedAgent listens where QEMU would and behaves as told. The zero value is
// an agent without faults.
type scriptedAgent struct {
	silent   bool                             // says nothing at all
	greeting string                           // sent to every client at once
	replace  map[string]string                // command → what is sent instead of its answer
	on       func(command string) (drop bool) // called before an answer

	mu       sync.Mutex // guards the fields below
	frozen   bool
	commands []string
}

func (a *scriptedAgent) serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		a.client(c)
	}
}

func (a *scriptedAgent) client(c net.Conn) {
	defer c.Close()
	fmt.Fprint(c, a.greeting)
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		var m struct {
			Execute   string
			Arguments struct{ ID int64 }
		}
		if err := json.Unmarshal([]byte(strings.TrimPrefix(line, "\xff")), &m); err != nil || a.silent {
			continue
		}
		a.mu.Lock()
		answer := a.answer(m.Execute, m.Arguments.ID)
		a.mu.Unlock()
		if a.on != nil && a.on(m.Execute) {
			return
		}
		if _, err := fmt.Fprint(c, answer); err != nil {
			return
		}
	}
}

func (a *scriptedAgent) answer(command string, id int64) string {
	if command != "guest-sync-delimited" {
		a.commands = append(a.commands, strings.TrimPrefix(command, "guest-"))
	}
	out := `{"return": {}}` + "\n"
	switch command {
	case "guest-sync-delimited":
		out = fmt.Sprintf("\xff{\"return\": %d}\n", id)
	case "guest-fsfreeze-freeze":
		if a.frozen {
			return `{"error": {"class": "GenericError", "desc": "disabled"}}` + "\n"
		}
		a.frozen, out = true, `{"return": 3}`+"\n"
	case "guest-fsfreeze-thaw":
		a.frozen, out = false, `{"return": 3}`+"\n"
	case "guest-fsfreeze-status":
		out = `{"return": "thawed"}` + "\n"
		if a.frozen {
			out = `{"return": "frozen"}` + "\n"
		}
	}
	if r, ok := a.replace[command]; ok {
		return r
	}
	return out
}

func (a *scriptedAgent) seen() (frozen bool, commands []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.frozen, slices.Clone(a.commands)
}

// newAgentBench has a machine "mm", a process that only looks like QEMU, with an
// agent.
func newAgentBench(t *testing.T, a *scriptedAgent) *bench {
	t.Helper()
	b := &bench{t: t, dir: shortDir(t)}
	settings, err := json.Marshal(qemu.Settings{Directory: b.dir})
	b.must(err)
	b.site, err = qemu.Open(t.Context(), settings)
	b.must(err)
	d := b.define("mm", func(d *qemu.Definition) { d.Agent = filepath.Join(b.dir, "qga") })
	fake := exec.Command("sh", "-c", "read never", "unix:"+d.QMP+",")
	in, err := fake.StdinPipe()
	b.must(err)
	b.must(fake.Start())
	t.Cleanup(func() { _ = in.Close(); _ = fake.Wait() })
	eventually(t, "the process has its arguments", func() bool {
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", fake.Process.Pid))
		return err == nil && strings.Contains(string(cmdline), d.QMP)
	})
	b.must(os.WriteFile(d.PIDFile, fmt.Append(nil, fake.Process.Pid), 0o644))
	if a != nil {
		l, err := net.Listen("unix", d.Agent)
		b.must(err)
		done := make(chan struct{})
		go func() { a.serve(l); close(done) }()
		t.Cleanup(func() { _ = l.Close(); <-done })
	}
	return b
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestAgent(t *testing.T) {
	t.Parallel()
	a := &scriptedAgent{greeting: "half a lin\xffe\n{\"return\": 7}\n\xff{\"return\": 12}\n"}
	b := newAgentBench(t, a)
	ctx := t.Context()
	b.must(b.site.Agent.Ping(ctx, "mm"))
	b.must(b.site.Agent.Thaw(ctx, "mm"))
	n, err := b.site.Agent.Freeze(ctx, "mm")
	if n != 3 || err != nil {
		t.Errorf("Freeze: %d, %v", n, err)
	}
	if frozen, _ := a.seen(); !frozen {
		t.Error("not frozen after Freeze")
	}
	b.must(b.site.Agent.Thaw(ctx, "mm"))
	b.must(b.site.Agent.Thaw(ctx, "mm"))
	frozen, commands := a.seen()
	want := []string{"ping", "fsfreeze-thaw", "fsfreeze-status", "fsfreeze-freeze", "fsfreeze-thaw", "fsfreeze-status", "fsfreeze-thaw", "fsfreeze-status"}
	if diff := cmp.Diff(want, commands); diff != "" || frozen {
		t.Errorf("frozen: %t; commands (-want +got):\n%s", frozen, diff)
	}
}

// TestFreezeThatFails lets agents misbehave in all ways: no guest stays frozen.
func TestFreezeThatFails(t *testing.T) {
	t.Parallel()
	const freeze = "guest-fsfreeze-freeze"
	for _, tt := range []struct {
		name  string
		agent *scriptedAgent
		want  string // in the error
	}{
		{"refuses", &scriptedAgent{replace: map[string]string{freeze: "{\"error\": {\"class\": \"GenericError\", \"desc\": \"hook says no\"}}\n"}}, "hook says no"},
		{"never answers", &scriptedAgent{replace: map[string]string{freeze: ""}}, "deadline"},
		{"half an answer", &scriptedAgent{replace: map[string]string{freeze: `{"ret`}}, "deadline"},
		{"no JSON", &scriptedAgent{replace: map[string]string{freeze: "yes\n"}}, "invalid character"},
		{"a list", &scriptedAgent{replace: map[string]string{freeze: "[1]\n"}}, "cannot unmarshal"},
		{"an empty object", &scriptedAgent{replace: map[string]string{freeze: "{}\n"}}, "neither"},
		{"a result of another kind", &scriptedAgent{replace: map[string]string{freeze: `{"return": "many"}` + "\n"}}, "cannot unmarshal"},
		{"an endless line", &scriptedAgent{replace: map[string]string{freeze: strings.Repeat("x", 2<<20)}}, "more than"},
		{"hangs up", &scriptedAgent{on: func(c string) bool { return c == freeze }}, "EOF"},
		{"frozen already", &scriptedAgent{frozen: true}, "disabled"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := newAgentBench(t, tt.agent)
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			n, err := b.site.Agent.Freeze(ctx, "mm")
			if n != 0 || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Freeze: %d, %v, want an error with %q", n, err, tt.want)
			}
			if errors.Is(err, provider.ErrNoAgent) {
				t.Errorf("%v: there is an agent", err)
			}
			if frozen, commands := tt.agent.seen(); frozen || !slices.Contains(commands, "fsfreeze-thaw") {
				t.Errorf("frozen: %t after %v", frozen, commands)
			}
		})
	}
}

func TestNoAgent(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		agent *scriptedAgent
	}{
		{"nobody listens", nil},
		{"silent", &scriptedAgent{silent: true}},
		{"talks of something else", &scriptedAgent{replace: map[string]string{"guest-sync-delimited": "\xff{\"return\": 1}\n"}}},
		{"floods", &scriptedAgent{greeting: strings.Repeat("spam\n", 1<<18)}},
		{"hangs up", &scriptedAgent{on: func(string) bool { return true }}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := newAgentBench(t, tt.agent)
			for name, call := range agentCalls(b.site.Agent) {
				ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
				start := time.Now()
				err := call(ctx, "mm")
				cancel()
				if !errors.Is(err, provider.ErrNoAgent) && name != "Thaw" || err == nil {
					t.Errorf("%s: %v, want ErrNoAgent", name, err)
				}
				if took := time.Since(start); took > 5*time.Second {
					t.Errorf("%s took %v", name, took)
				}
			}
			if tt.agent == nil {
				return
			}
			if _, commands := tt.agent.seen(); slices.Contains(commands, "fsfreeze-freeze") {
				t.Errorf("an agent that did not answer was told to freeze: %v", commands)
			}
		})
	}
}

func agentCalls(a provider.Agent) map[string]func(context.Context, string) error {
	return map[string]func(context.Context, string) error{
		"Ping":   a.Ping,
		"Freeze": func(ctx context.Context, id string) error { _, err := a.Freeze(ctx, id); return err },
		"Thaw":   a.Thaw,
	}
}

// TestAgentOneAtATime has many clients; the agent serves one connection at a
// time, as QEMU does.
func TestAgentOneAtATime(t *testing.T) {
	t.Parallel()
	b := newAgentBench(t, &scriptedAgent{})
	errs := make(chan error)
	for range 8 {
		go func() { errs <- b.site.Agent.Ping(t.Context(), "mm") }()
	}
	for range 8 {
		b.must(<-errs)
	}
}

// TestFreezeAndThawFail checks that a guest which may be frozen is called so.
func TestFreezeAndThawFail(t *testing.T) {
	t.Parallel()
	fails := `{"error": {"class": "GenericError", "desc": "hook has failed"}}` + "\n"
	for _, tt := range []struct {
		name    string
		replace map[string]string
		frozen  bool
	}{
		{"hooks", map[string]string{"guest-fsfreeze-freeze": fails, "guest-fsfreeze-thaw": fails}, false},
		{"still frozen", map[string]string{"guest-fsfreeze-freeze": fails, "guest-fsfreeze-status": `{"return": "frozen"}` + "\n"}, true},
		{"no status", map[string]string{"guest-fsfreeze-freeze": fails, "guest-fsfreeze-status": fails}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := newAgentBench(t, &scriptedAgent{replace: tt.replace})
			if _, err := b.site.Agent.Freeze(t.Context(), "mm"); err == nil || errors.Is(err, provider.ErrFrozen) != tt.frozen {
				t.Errorf("Freeze: %v, want ErrFrozen: %t", err, tt.frozen)
			}
		})
	}
}

// TestThawSaysWhatIsWrong checks that a thaw which did not work is an error.
func TestThawSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	for name, a := range map[string]*scriptedAgent{
		"still frozen": {replace: map[string]string{"guest-fsfreeze-status": `{"return": "frozen"}` + "\n"}},
		"a hook fails": {replace: map[string]string{"guest-fsfreeze-thaw": `{"error": {"class": "GenericError", "desc": "hook has failed"}}` + "\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newAgentBench(t, a)
			if err := b.site.Agent.Thaw(t.Context(), "mm"); err == nil {
				t.Error("no error")
			}
		})
	}
}
