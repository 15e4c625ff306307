package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/auth"
	"github.com/holdfast-dr/holdfast/internal/cli"
)

// printed is what a server prints, while it runs.
type printed struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

// Write keeps p.
func (p *printed) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.buf.Write(b)
}

// after waits for a line and returns what follows the prefix in it.
func (p *printed) after(t *testing.T, prefix string) string {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		p.mu.Lock()
		text := p.buf.String()
		p.mu.Unlock()
		if _, rest, ok := strings.Cut(text, prefix); ok {
			if line, _, ok := strings.Cut(rest, "\n"); ok {
				return line
			}
		}
	}
	t.Fatalf("the server never printed %q", prefix)
	return ""
}

// startServer runs a server until the test ends.
func startServer(t *testing.T, o serverOptions) *printed {
	t.Helper()
	out := &printed{}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- runServer(ctx, o, out, newLogger(t.Output(), "warn")) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("server: %v", err)
		}
	})
	return out
}

// TestGreeting follows what a server prints at its first start as a newcomer
// would: with the token that is shown, the line after "next:" logs in; and the
// fingerprint is that of the authority.
func TestGreeting(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "hf") // short, for the socket below it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	out := startServer(t, serverOptions{state: dir, listen: "127.0.0.1:0", hosts: []string{"localhost"}, noGateway: true})

	next := out.after(t, "next: holdfast ")
	if !strings.HasPrefix(next, "login https://localhost:") {
		t.Errorf("next: holdfast %s, want the name that the certificate has", next)
	}
	env := map[string]string{"HOLDFAST_TOKEN": out.after(t, "shown this once: "), "HOME": t.TempDir()}
	var said bytes.Buffer
	run := func(args ...string) int {
		return cli.Run(t.Context(), cli.Env{
			Stdin: strings.NewReader(""), Stdout: &said, Stderr: &said, Version: version(),
			Getenv: func(name string) string { return env[name] },
		}, args)
	}
	if code := run(strings.Fields(next)...); code != cli.ExitDone {
		t.Errorf("holdfast %s: exit code %d: %s", next, code, said.String())
	}
	ca, err := auth.OpenAuthority(auth.AuthorityOptions{Dir: filepath.Join(dir, "tls")})
	if err != nil {
		t.Fatal(err)
	}
	if got := out.after(t, "fingerprint "); got != ca.Fingerprint() {
		t.Errorf("printed the fingerprint %s, want %s", got, ca.Fingerprint())
	}
}
