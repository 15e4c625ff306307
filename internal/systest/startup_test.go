package systest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/systest/lab"
)

// starter starts servers that should refuse to start.
type starter struct {
	t   *testing.T
	dir string
}

// refused runs a server that must end by itself with the exit code and with all
// of the words in what it says, a hint among them.
func (s *starter) refused(name string, code int, words []string, command ...string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != code {
		s.t.Errorf("%s: %v, want exit code %d\n%s", name, err, code, out)
		return
	}
	for _, w := range append(words, "\nhint: ") {
		if !strings.Contains(string(out), w) {
			s.t.Errorf("%s: it does not say %q:\n%s", name, w, out)
		}
	}
	if strings.Contains(string(out), "goroutine ") {
		s.t.Errorf("%s: it panics:\n%s", name, out)
	}
}

// server is the command line of a server.
func (s *starter) server(state, vault string, more ...string) []string {
	return append([]string{binary, "server", "--state", filepath.Join(s.dir, state), "--vault", filepath.Join(s.dir, vault),
		"--listen", "127.0.0.1:0", "--no-gateway"}, more...)
}

// mounted runs a command with a small file system on a directory, in a mount
// namespace that ends with it.
func (s *starter) mounted(dir, script string, command []string) []string {
	return append([]string{"unshare", "--user", "--map-root-user", "--mount", "sh", "-ec",
		"mount -t tmpfs -o size=64k tmpfs " + filepath.Join(s.dir, dir) + "; cd " + filepath.Join(s.dir, dir) + "; " + script + "; exec \"$@\"", "sh"}, command...)
}

func (s *starter) mkdir(name string) {
	s.t.Helper()
	if err := os.MkdirAll(filepath.Join(s.dir, name), 0o755); err != nil {
		s.t.Fatal(err)
	}
}

func (s *starter) copy(from, to string) {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, from))
	if err == nil {
		err = os.WriteFile(filepath.Join(s.dir, to), b, 0o600)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// TestServerRefusesToStart gives the server what is missing, wrong or taken:
// it must say what and what to do, leave nothing behind, and work once that is
// put right.
func TestServerRefusesToStart(t *testing.T) {
	if binary == "" {
		t.Skip("HOLDFAST_SYSTEST is not 1: whole-system tests take minutes; make test runs them")
	}
	dir, err := os.MkdirTemp("", "hf-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &starter{t: t, dir: dir}
	log := &strings.Builder{}
	l, err := lab.New(lab.Options{Dir: filepath.Join(dir, "good"), Binary: binary, Log: &syncWriter{w: log}, ServerFlags: []string{"--no-gateway"}})
	if err != nil {
		t.Fatal(err)
	}
	start := func() {
		t.Helper()
		if err := l.StartServer(t.Context()); err != nil {
			t.Fatalf("%v\n%s", err, log)
		}
	}
	start()
	defer func() { _ = l.StopServer() }()

	s.besideARunningServer(l)
	if err := l.StopServer(); err != nil {
		t.Fatal(err)
	}
	s.atTheVault()
	s.atTheKey()
	s.copy("good/state/holdfast.db", "db.good")
	if err := os.WriteFile(filepath.Join(dir, "good/state/holdfast.db"), []byte("not a database"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.refused("damaged database", 1, []string{"holdfast.db"}, s.server("good/state", "good/vault")...)
	s.copy("db.good", "good/state/holdfast.db")

	start()
	if _, err := l.CLI(t.Context(), "vault", "verify"); err != nil {
		t.Errorf("after all that: %v", err)
	}
	out, _ := exec.Command("pgrep", "-f", binary+" gateway --dir "+dir).CombinedOutput()
	if len(out) > 0 {
		t.Errorf("a server that did not start has left a gateway behind: %s", out)
	}
}

// besideARunningServer tries what another server may not share.
func (s *starter) besideARunningServer(l *lab.Lab) {
	s.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	defer ln.Close()
	command := s.server("s1", "v1")
	command = append(command[:len(command)-3], "--listen", ln.Addr().String()) // and with a gateway
	s.refused("port taken", 1, []string{ln.Addr().String(), "in use"}, command...)
	s.refused("two servers with one state", 11, []string{"another server", "process"}, s.server("good/state", "good/vault")...)
	s.mkdir("s2")
	s.copy("good/state/vault.key", "s2/vault.key")
	s.refused("two servers with one vault", 11, []string{l.Vault, "another server"}, s.server("s2", "good/vault")...)
}

// atTheVault tries vaults that cannot be worked with.
func (s *starter) atTheVault() {
	s.t.Helper()
	s.mkdir("small")
	s.refused("read-only", 1, []string{"read-only"}, s.mounted("small", "mount -o remount,ro tmpfs .", s.server("s3", "small"))...)
	s.refused("full", 1, []string{"no space left"},
		s.mounted("small", "mkdir vault; head -c 1M /dev/zero >fill 2>/dev/null || true", s.server("s4", "small/vault"))...)
	s.refused("something else there", 1, []string{"not empty"}, s.server("s5", "good/vault")...)
	if err := os.Rename(filepath.Join(s.dir, "good/vault"), filepath.Join(s.dir, "away")); err != nil {
		s.t.Fatal(err)
	}
	s.refused("vault gone", 1, []string{"good/vault", "no such file"}, s.server("good/state", "good/vault")...)
	s.mkdir("good/vault")
	s.refused("vault not mounted", 1, []string{"no vault here"}, s.server("good/state", "good/vault")...)
	for _, step := range []error{os.Remove(filepath.Join(s.dir, "good/vault")), os.Rename(filepath.Join(s.dir, "away"), filepath.Join(s.dir, "good/vault"))} {
		if step != nil {
			s.t.Fatal(step)
		}
	}
	if err := os.WriteFile(filepath.Join(s.dir, "file"), nil, 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.refused("state in a file", 1, []string{"not a directory"}, s.server("file/state", "v6")...)
}

// atTheKey tries keys that are not the vault's.
func (s *starter) atTheKey() {
	s.t.Helper()
	key := filepath.Join(s.dir, "good/state/vault.key")
	s.copy("good/state/vault.key", "key.good")
	for name, content := range map[string]string{
		"another key": "AGE-SECRET-KEY-1" + strings.Repeat("Q", 58), "no key at all": "garbage\n", "an empty file": "",
	} {
		if err := os.WriteFile(key, []byte(content), 0o600); err != nil {
			s.t.Fatal(err)
		}
		s.refused(name, 1, []string{"key"}, s.server("good/state", "good/vault")...)
	}
	if err := os.Remove(key); err != nil {
		s.t.Fatal(err)
	}
	s.refused("the key is gone", 1, []string{"no such file"}, s.server("good/state", "good/vault")...)
	if _, err := os.Stat(key); err == nil {
		s.t.Error("a new key was made for an old vault")
	}
	// A real key, of another vault.
	command := s.server("other/state", "other/vault")
	cmd := exec.Command(command[0], command[1:]...)
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	err := lab.Poll(s.t.Context(), "another server has made its key", func() (bool, error) {
		_, err := os.Stat(filepath.Join(s.dir, "other/state/vault.key"))
		return err == nil, nil
	})
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err != nil {
		s.t.Fatal(err)
	}
	s.copy("other/state/vault.key", "good/state/vault.key")
	s.refused("the key of another vault", 1, []string{"not the vault's key", fmt.Sprint(key)}, s.server("good/state", "good/vault")...)
	s.copy("key.good", "good/state/vault.key")
}
