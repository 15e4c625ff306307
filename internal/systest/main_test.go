package systest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/systest/guest"
	"github.com/holdfast-dr/holdfast/internal/systest/lab"
)

// binary is the program under test, built once.
var binary string

func TestMain(m *testing.M) {
	if os.Getenv("HOLDFAST_SYSTEST") != "1" {
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "hf-bin-")
	if err == nil {
		binary = filepath.Join(dir, "holdfast")
		var out []byte
		if out, err = exec.Command("go", "build", "-o", binary, "../../cmd/holdfast").CombinedOutput(); err != nil {
			err = fmt.Errorf("build holdfast: %w\n%s", err, out)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

const machine = "shop"

// world is a lab with one protected or protectable guest.
type world struct {
	*lab.Lab
	t           *testing.T
	disk        string
	format      string
	extra       string            // a monitor socket of the test's own
	vaultDir    string            // the vault, as the test sees it
	credentials map[string]string // of the vault's object store
}

// worldOptions say what a test needs.
type worldOptions struct {
	format      string // default qcow2
	sizeMB      int    // default 256
	sparseGB    int    // grow the disk to so much, unused
	serverFlags []string
	second      int64  // bytes of a second, raw disk
	vaultSize   string // the vault is a file system of so much, which only the server and its gateway see; needs root
	vault       string // in an object store, whose credentials are:
	credentials map[string]string
	cmdline     string   // of the guest's kernel
	postgres    bool     // the guest's load is PostgreSQL
	extra       []string // more arguments of the guest's QEMU
}

func needsSystem(t *testing.T) {
	t.Helper()
	if binary == "" {
		t.Skip("HOLDFAST_SYSTEST is not 1: whole-system tests take minutes; make test runs them")
	}
}

// newWorld builds a guest, starts it, and starts the server.
func newWorld(t *testing.T, o worldOptions) *world {
	t.Helper()
	needsSystem(t)
	if err := guest.Supported(); err != nil {
		t.Skip(err)
	}
	if o.format == "" {
		o.format = "qcow2"
	}
	if o.sizeMB == 0 {
		o.sizeMB = 256
	}
	dir, err := os.MkdirTemp("", "hf-")
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	lo := lab.Options{Dir: dir, Binary: binary, Log: &syncWriter{w: &log}, ServerFlags: o.serverFlags}
	if o.vaultSize != "" {
		lo.ServerPrefix = []string{"unshare", "--mount", "sh", "-ec",
			"mount -t tmpfs -o size=" + o.vaultSize + " tmpfs " + filepath.Join(dir, "vault") + "; exec \"$@\"", "sh"}
	}
	l, err := lab.New(lo)
	if err != nil {
		t.Fatal(err)
	}
	if o.vault != "" {
		l.Vault = o.vault
		file := filepath.Join(dir, "credentials")
		var text strings.Builder
		for k, v := range o.credentials {
			fmt.Fprintf(&text, "%s=%s\n", k, v)
		}
		if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		l.ServerFlags = append(l.ServerFlags, "--vault-credentials", file)
	}
	w := &world{Lab: l, credentials: o.credentials, t: t, format: o.format, disk: filepath.Join(l.Primary, machine+"."+o.format), extra: filepath.Join(l.Primary, "test.qmp")}
	t.Cleanup(func() { w.close(&log) })
	ctx := t.Context()
	opts := guest.Options{Path: w.disk, SizeMB: o.sizeMB, Format: o.format, Cmdline: o.cmdline, Postgres: o.postgres}
	if err := guest.Build(ctx, opts); errors.Is(err, guest.ErrUnsupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	if o.sparseGB > 0 {
		w.must(exec.Command("qemu-img", "resize", "-q", "-f", o.format, w.disk, fmt.Sprintf("%dG", o.sparseGB)).Run())
	}
	m := lab.Machine{Name: machine, Disk: w.disk, Format: o.format, TestMonitor: w.extra, Extra: o.extra}
	if o.second > 0 {
		m.Second = filepath.Join(l.Primary, "second.raw")
		w.must(os.WriteFile(m.Second, nil, 0o644))
		w.must(os.Truncate(m.Second, o.second))
	}
	w.must(l.AddMachine(m))
	w.must(l.StartMachine(ctx, machine))
	w.must(l.StartServer(ctx))
	w.must(l.AddSites(ctx))
	w.waitSerial(l.SerialPath(l.Primary, machine), `GUEST-READY`)
	if w.vaultDir = l.Vault; o.vaultSize != "" {
		w.vaultDir = fmt.Sprintf("/proc/%d/root%s", l.ServerPID(), l.Vault)
	}
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// close ends everything, and shows the logs of a test that failed.
func (w *world) close(log *bytes.Buffer) {
	if err := w.StopServer(); err != nil {
		w.t.Error(err)
	}
	if err := w.StopAll(); err != nil {
		w.t.Error(err)
	}
	if w.t.Failed() {
		gw, _ := os.ReadFile(filepath.Join(w.State, "gateway", "gateway.log"))
		w.t.Logf("server log:\n%s\ngateway log:\n%s\nleft for a look: %s", lastBytes(log.Bytes()), lastBytes(gw), w.Dir)
		return
	}
	if err := os.RemoveAll(w.Dir); err != nil {
		w.t.Error(err)
	}
}

func lastBytes(b []byte) []byte { return b[max(0, len(b)-6000):] }

// waitSerial waits until a console shows an expression.
func (w *world) waitSerial(serial, expr string) []string {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 2*time.Minute)
	defer cancel()
	m, err := lab.WaitSerial(ctx, serial, regexp.MustCompile(expr))
	w.must(err)
	return m
}

// cli runs a command, which must succeed.
func (w *world) cli(args ...string) string {
	w.t.Helper()
	out, err := w.CLI(w.t.Context(), args...)
	w.must(err)
	return string(out)
}

// item returns the item as the server shows it.
func (w *world) item() api.Item {
	w.t.Helper()
	var it api.Item
	w.must(w.JSON(w.t.Context(), &it, "item", "show", machine))
	return it
}

func (w *world) protect() {
	w.t.Helper()
	w.cli("protect", machine, "--site", "primary", "--to", "recovery")
	if it := w.item(); it.State != "protected" {
		w.t.Fatalf("after protect the item is %s, want protected", it.State)
	}
}

// eventually waits until f is true.
func (w *world) eventually(what string, f func() bool) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 3*time.Minute)
	defer cancel()
	w.must(lab.Poll(ctx, what, func() (bool, error) { return f(), nil }))
}

// acknowledged returns the last record that the guest has said to be safe.
func (w *world) acknowledged() int64 {
	w.t.Helper()
	n, err := lab.Acknowledged(w.SerialPath(w.Primary, machine))
	w.must(err)
	return n
}

// checkVault reads the whole vault, as every test of a store ends.
func (w *world) checkVault() {
	w.t.Helper()
	w.cli("vault", "verify")
}
