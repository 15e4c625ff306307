package script_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/script"
)

// host is a host with scripts and secrets.
func host(t *testing.T, scripts map[string]string) script.Host {
	t.Helper()
	h := script.Host{Scripts: t.TempDir(), Secrets: t.TempDir(), Getenv: func(name string) string { return map[string]string{"KEY": "from-environment"}[name] }}
	for name, text := range scripts {
		if err := os.WriteFile(filepath.Join(h.Scripts, name), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(h.Secrets, "token"), []byte("from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return h
}

func TestRun(t *testing.T) {
	t.Setenv("OF_THE_SERVER", "seen")
	h := host(t, map[string]string{
		"tell":  `echo "$1 $A $OF_THE_SERVER $S $T"; cat; echo aside >&2`,
		"fails": "echo so; exit 3",
		"loud":  "yes | head -c 100000",
	})
	out, err := h.Run(t.Context(), script.Call{Path: "tell", Args: []string{"one"}, Env: map[string]string{"A": "two"}, Input: []byte("three\n"),
		Secrets: map[string]script.Secret{"S": {File: "token"}, "T": {Env: "KEY"}}})
	if err != nil || out != "one two  <S> <T>\nthree\naside\n" {
		t.Errorf("it said %q, %v", out, err)
	}
	if out, err := h.Run(t.Context(), script.Call{Path: "fails"}); err == nil || out != "so\n" || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("one that fails said %q, %v", out, err)
	}
	if out, err := h.Run(t.Context(), script.Call{Path: "loud"}); err != nil || len(out) > script.MaxOutput+1 {
		t.Errorf("a loud one said %d bytes, %v", len(out), err)
	}
}

// TestRunKills ends a script with all that it has started.
func TestRunKills(t *testing.T) {
	dir := t.TempDir()
	h := host(t, map[string]string{"long": fmt.Sprintf("(sleep 1; touch %s/late) & sleep 60", dir)})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := h.Run(ctx, script.Call{Path: "long"}); err == nil || time.Since(began) > 20*time.Second {
		t.Errorf("it ran for %s, %v", time.Since(began), err)
	}
	time.Sleep(1500 * time.Millisecond)
	if _, err := os.Stat(filepath.Join(dir, "late")); err == nil {
		t.Error("what it had started went on")
	}
}

func TestCheck(t *testing.T) {
	h := host(t, map[string]string{"fine": "true"})
	if err := os.WriteFile(filepath.Join(h.Scripts, "text"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		h    script.Host
		call script.Call
		want string
	}{
		{h, script.Call{Path: "fine", Secrets: map[string]script.Secret{"S": {File: "token"}}}, ""},
		{h, script.Call{Path: "none"}, "there is no script none"},
		{h, script.Call{Path: "text"}, "make it executable"},
		{h, script.Call{Path: "../fine"}, "without .."},
		{h, script.Call{Path: "/bin/sh"}, "without .."},
		{h, script.Call{}, "want a path"},
		{h, script.Call{Path: "fine", Secrets: map[string]script.Secret{"S": {File: "../x"}}}, "secret S"},
		{h, script.Call{Path: "fine", Secrets: map[string]script.Secret{"S": {Env: "NONE"}}}, "no variable NONE"},
		{script.Host{}, script.Call{Path: "fine"}, "no scripts are run here"},
		{script.Host{Scripts: h.Scripts}, script.Call{Path: "fine", Secrets: map[string]script.Secret{"S": {File: "token"}}}, "no directory of secrets"},
	} {
		err := tt.h.Check(tt.call)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%+v: %v, want %q", tt.call, err, tt.want)
		}
		if _, rerr := tt.h.Run(t.Context(), tt.call); (rerr == nil) != (tt.want == "") {
			t.Errorf("%+v was checked with %v and run with %v", tt.call, err, rerr)
		}
	}
}
