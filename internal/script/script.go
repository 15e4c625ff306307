// Package script runs programs that a host's owner has put into a directory for it,
// on that host: the server's, or a gateway's. Nothing else is run, they see nothing
// of the environment, and secrets are read where they run.
package script

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// MaxOutput is how much of what a script says is kept, in bytes.
	MaxOutput = 16 << 10
	// maxSecret is how long a secret may be, in bytes.
	maxSecret = 64 << 10
)

// Secret says where a secret is read.
type Secret struct {
	File string `json:"file,omitempty"` // below the directory of secrets, or
	Env  string `json:"env,omitempty"`  // a variable of the environment
}

// Call is a program to be run.
type Call struct {
	Path    string            `json:"path"` // below the directory of scripts
	Args    []string          `json:"args,omitempty"`
	Env     map[string]string `json:"env,omitempty"`
	Secrets map[string]Secret `json:"secrets,omitempty"` // more environment
	Input   []byte            `json:"input,omitempty"`   // standard input
}

// Host is where scripts run. Its methods are safe for concurrent use.
type Host struct {
	Scripts string // directory; empty: none are run
	Secrets string // directory; empty: there are none
	// Getenv returns a variable of the environment, for secrets; nil: there are none.
	Getenv func(string) string
}

// Run runs a script and returns what it said, standard error included, secrets taken
// out. It fails if the script ends with anything but 0. When ctx ends, the script is
// killed with all that it has started.
func (h Host) Run(ctx context.Context, c Call) (output string, err error) {
	name, err := h.find(c.Path)
	if err != nil {
		return "", err
	}
	secrets, err := h.Read(c.Secrets)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, name, c.Args...)
	cmd.Dir = h.Scripts
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	for _, env := range []map[string]string{c.Env, secrets} {
		for k, v := range env {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	cmd.Stdin = bytes.NewReader(c.Input)
	var out bounded
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	return Redact(out.kept.String(), secrets), err
}

// Check says what is wrong with a script before it is run: whether it is there, can
// be run, and finds its secrets. It runs nothing.
func (h Host) Check(c Call) error {
	_, err := h.find(c.Path)
	_, serr := h.Read(c.Secrets)
	return errors.Join(err, serr)
}

func (h Host) find(name string) (string, error) {
	if h.Scripts == "" {
		return "", errors.New("no scripts are run here")
	}
	if name == "" || path.IsAbs(name) || path.Clean(name) != name || strings.HasPrefix(name, "..") {
		return "", fmt.Errorf("script %q: want a path below the directory of scripts, without ..", name)
	}
	file := filepath.Join(h.Scripts, filepath.FromSlash(name))
	st, err := os.Stat(file)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", fmt.Errorf("there is no script %s in %s", name, h.Scripts)
	case err != nil:
		return "", err
	case !st.Mode().IsRegular() || st.Mode()&0o111 == 0:
		return "", fmt.Errorf("%s is no program: make it executable", file)
	}
	return file, nil
}

// Read reads secrets.
func (h Host) Read(from map[string]Secret) (map[string]string, error) {
	out := map[string]string{}
	for name, s := range from {
		if s.Env != "" {
			if h.Getenv != nil {
				out[name] = h.Getenv(s.Env)
			}
			if out[name] == "" {
				return nil, fmt.Errorf("secret %s: the environment has no variable %s", name, s.Env)
			}
			continue
		}
		if h.Secrets == "" {
			return nil, fmt.Errorf("secret %s: there is no directory of secrets", name)
		}
		f, err := os.OpenInRoot(h.Secrets, filepath.FromSlash(s.File))
		if err != nil {
			return nil, fmt.Errorf("secret %s: %w", name, err)
		}
		b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
		if err = errors.Join(err, f.Close()); err == nil && len(b) > maxSecret {
			err = fmt.Errorf("it has more than %d bytes", maxSecret)
		}
		if err != nil {
			return nil, fmt.Errorf("secret %s: %w", name, err)
		}
		out[name] = strings.TrimRight(string(b), "\r\n")
	}
	return out, nil
}

// Redact takes secrets out of a text.
func Redact(text string, secrets map[string]string) string {
	for name, v := range secrets {
		if len(v) >= 4 {
			text = strings.ReplaceAll(text, v, "<"+name+">")
		}
	}
	return text
}

// bounded keeps the beginning of what is written to it. It has no other methods,
// which would be used in the place of Write.
type bounded struct{ kept bytes.Buffer }

// Write implements io.Writer.
func (b *bounded) Write(p []byte) (int, error) {
	if room := MaxOutput + 1 - b.kept.Len(); room > 0 {
		b.kept.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}
