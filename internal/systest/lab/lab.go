// Package lab sets up what whole-system tests and the demonstration need: two
// sites on this machine, a server with its gateway and vault, a real guest, and
// the command line to work with them. Only tests and the demonstration import it.
package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/internal/provider/qemu"
	"github.com/holdfast-dr/holdfast/internal/systest/guest"
)

// Options say where a lab lives.
type Options struct {
	Dir    string // everything is made below it; short, because of unix sockets
	Binary string // the holdfast program
	Log    io.Writer
	// ServerFlags are added to `holdfast server`.
	ServerFlags []string
	// ServerPrefix is a command that runs the server, by exec, if not empty.
	ServerPrefix []string
}

// Lab is two sites and a server. It is not safe for concurrent use, but for
// CLI and Serial.
type Lab struct {
	Options
	Primary  string // directory of the primary site
	Recovery string // directory of the recovery site
	State    string // the server's state directory
	Vault    string
	addr     string
	token    string
	server   *exec.Cmd
	exited   chan struct{}
}

// New makes the directories of a lab. It starts nothing.
func New(o Options) (*Lab, error) {
	l := &Lab{
		Options: o, Primary: filepath.Join(o.Dir, "primary"), Recovery: filepath.Join(o.Dir, "recovery"),
		State: filepath.Join(o.Dir, "state"), Vault: filepath.Join(o.Dir, "vault"),
	}
	for _, d := range []string{l.Primary, l.Recovery, l.Vault} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	l.addr = fmt.Sprintf("127.0.0.1:%d", port)
	return l, nil
}

func freePort() (int, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port, nil
}

var tokenLine = regexp.MustCompile(`hf_[A-Za-z0-9]+`)

// StartServer starts `holdfast server` and returns when it serves.
func (l *Lab) StartServer(ctx context.Context) error {
	args := append([]string{"server", "--state", l.State, "--vault", l.Vault, "--listen", l.addr}, l.ServerFlags...)
	command := append(append(slices.Clone(l.ServerPrefix), l.Binary), args...)
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stderr = l.Log
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	l.server, l.exited = cmd, make(chan struct{})
	tokens := make(chan string, 1)
	go func() { // ends with the server
		for sc := bufio.NewScanner(out); sc.Scan(); {
			fmt.Fprintln(l.Log, sc.Text())
			if t := tokenLine.FindString(sc.Text()); t != "" {
				select {
				case tokens <- t:
				default:
				}
			}
		}
		_ = cmd.Wait()
		close(l.exited)
	}()
	return l.waitServer(ctx, tokens)
}

func (l *Lab) waitServer(ctx context.Context, tokens <-chan string) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	for {
		select {
		case t := <-tokens:
			l.token = t
		case <-l.exited:
			return errors.New("the server ended at its start; see its log")
		case <-ctx.Done():
			return errors.New("the server did not come up within a minute; see its log")
		case <-time.After(50 * time.Millisecond):
		}
		if l.token == "" {
			continue
		}
		if _, err := l.CLI(ctx, "site", "list", "--json"); err == nil {
			return nil
		}
	}
}

// ServerPID returns the process of the server that was started last.
func (l *Lab) ServerPID() int { return l.server.Process.Pid }

// KillServer kills the server with SIGKILL and waits until it is gone.
func (l *Lab) KillServer() error { return l.signalServer(syscall.SIGKILL) }

// StopServer asks the server to end and waits.
func (l *Lab) StopServer() error { return l.signalServer(syscall.SIGTERM) }

func (l *Lab) signalServer(sig syscall.Signal) error {
	if l.server == nil {
		return nil
	}
	_ = l.server.Process.Signal(sig) // it may be gone already
	select {
	case <-l.exited:
		l.server = nil
		return nil
	case <-time.After(30 * time.Second):
		return errors.New("the server did not end within 30 s")
	}
}

// Env returns the environment with which the command line finds the server.
func (l *Lab) Env() []string {
	return append(os.Environ(), "HOLDFAST_SERVER=https://"+l.addr, "HOLDFAST_TOKEN="+l.token,
		"HOLDFAST_CA="+filepath.Join(l.State, "tls", "ca.pem"), "NO_COLOR=1")
}

// CLI runs a command of holdfast and returns its standard output. A failure has
// its standard error.
func (l *Lab) CLI(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, l.Binary, args...)
	cmd.Env = l.Env()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("holdfast %s: %w\n%s%s", strings.Join(args, " "), err, out, stderr.Bytes())
	}
	return out, nil
}

// Show runs a command with its output and progress going to w.
func (l *Lab) Show(ctx context.Context, w io.Writer, args ...string) error {
	fmt.Fprintf(w, "\n$ holdfast %s\n", strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, l.Binary, args...)
	cmd.Env = l.Env()
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("holdfast %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// JSON runs a command with --json and decodes its output.
func (l *Lab) JSON(ctx context.Context, v any, args ...string) error {
	out, err := l.CLI(ctx, append(args, "--json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, v); err != nil {
		return fmt.Errorf("holdfast %s: %w in %q", strings.Join(args, " "), err, out)
	}
	return nil
}

// AddSites adds the two sites.
func (l *Lab) AddSites(ctx context.Context) error {
	for name, dir := range map[string]string{"primary": l.Primary, "recovery": l.Recovery} {
		if _, err := l.CLI(ctx, "site", "add", name, "--provider", "qemu", "--set", "directory="+dir); err != nil {
			return err
		}
	}
	return nil
}

// Machine describes a guest of the primary site.
type Machine struct {
	Name   string
	Disk   string // path of its image
	Format string // raw or qcow2
	Memory int64  // bytes; 256 MiB if 0
	// Second is the path of a raw image that is the machine's second disk, vdb.
	Second string
	// TestMonitor is a further monitor socket, for a test's own use.
	TestMonitor string
	// Extra are more arguments of its QEMU.
	Extra []string
	// Agent is the socket of the machine's guest agent; empty: none.
	Agent string
	// MAC is the address of the machine's network card on the network "user"; empty:
	// it has none.
	MAC string
}

// AddMachine writes a machine's description into the primary site.
func (l *Lab) AddMachine(m Machine) error {
	if m.Memory == 0 {
		m.Memory = 256 << 20
	}
	disks := []map[string]any{{"id": "vda", "path": m.Disk, "format": m.Format}}
	if m.Second != "" {
		disks = append(disks, map[string]any{"id": "vdb", "path": m.Second, "format": "raw"})
	}
	def := map[string]any{
		"name": m.Name, "id": "11111111-2222-4333-8444-" + fmt.Sprintf("%012x", hash(m.Name)), "cpus": 1, "memory": m.Memory, "accel": guest.Accel(),
		"disks":  disks,
		"nics":   []map[string]any{},
		"serial": l.SerialPath(l.Primary, m.Name), "qmp": filepath.Join(l.Primary, m.Name+".qmp"), "pidfile": filepath.Join(l.Primary, m.Name+".pid"),
	}
	if m.Agent != "" {
		def["agent"] = m.Agent
	}
	if m.TestMonitor != "" {
		m.Extra = append(m.Extra, "-qmp", "unix:"+m.TestMonitor+",server=on,wait=off")
	}
	if m.MAC != "" {
		def["nics"] = []map[string]string{{"id": "net0", "mac": m.MAC, "network": "user"}}
	}
	if len(m.Extra) > 0 {
		def["extra"] = m.Extra
	}
	b, err := json.MarshalIndent(def, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(l.Primary, m.Name+".json"), b, 0o644)
}

// hash is FNV-1a, cut to 48 bits.
func hash(s string) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range []byte(s) {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h & (1<<48 - 1)
}

// SerialPath returns where a machine's serial console is logged.
func (l *Lab) SerialPath(site, name string) string { return filepath.Join(site, name+".serial") }

// StartMachine starts a machine of the primary site.
func (l *Lab) StartMachine(ctx context.Context, name string) error {
	return qemu.StartMachine(ctx, l.Primary, name)
}

// KillMachine kills a machine's QEMU with SIGKILL, as when its host is lost.
func (l *Lab) KillMachine(name string) error {
	b, err := os.ReadFile(filepath.Join(l.Primary, name+".pid"))
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return fmt.Errorf("pid file of %s says %q", name, b)
	}
	return syscall.Kill(pid, syscall.SIGKILL)
}

var ackLine = regexp.MustCompile(`ACK (\d+)`)

// Acknowledged returns the highest record number that a guest has said, on its
// console, to be safe on its disk; 0 if none.
func Acknowledged(serial string) (int64, error) {
	b, err := os.ReadFile(serial)
	if err != nil {
		return 0, err
	}
	if i := bytes.LastIndexByte(b, '\n'); i >= 0 {
		b = b[:i+1] // a line that is cut off may show too small a number
	}
	var last int64
	for _, m := range ackLine.FindAllSubmatch(b, -1) {
		n, err := strconv.ParseInt(string(m[1]), 10, 64)
		if err != nil {
			return 0, err
		}
		last = max(last, n)
	}
	return last, nil
}

// WaitSerial waits until a console shows what the expression matches, and
// returns the submatches of the first match.
func WaitSerial(ctx context.Context, serial string, re *regexp.Regexp) ([]string, error) {
	for {
		b, err := os.ReadFile(serial)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		if m := re.FindStringSubmatch(string(b)); m != nil {
			return m, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("console %s shows no %q; it ends with:\n%s", serial, re, tail(b, 1500))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

// Poll calls f every 100 ms until it returns true, an error, or ctx ends.
func Poll(ctx context.Context, what string, f func() (bool, error)) error {
	for {
		ok, err := f()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w", what, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}
