package qemu_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/qemu"
)

const mib = 1 << 20

// needQEMU skips the test where QEMU is not installed.
func needQEMU(t *testing.T) {
	t.Helper()
	for _, name := range []string{"qemu-system-x86_64", "qemu-img", "qemu-nbd"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%s is not installed", name)
		}
	}
}

// bench is a site in a short directory, with a view to recover from.
type bench struct {
	t    *testing.T
	dir  string
	site *provider.Site
	view string // raw file behind the view
	sock string
	nbd  *exec.Cmd
}

func newBench(t *testing.T) *bench {
	t.Helper()
	needQEMU(t)
	dir, err := os.MkdirTemp("", "hf") // sockets need short paths
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, dir: dir, view: filepath.Join(dir, "view.raw"), sock: filepath.Join(dir, "view.sock")}
	t.Cleanup(func() {
		b.killAll()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	settings, err := json.Marshal(qemu.Settings{Directory: dir})
	if err != nil {
		t.Fatal(err)
	}
	if b.site, err = qemu.Open(t.Context(), settings); err != nil {
		t.Fatal(err)
	}
	return b
}

// killAll ends every QEMU whose pid file is in the bench's directory.
func (b *bench) killAll() {
	b.stopView()
	_ = filepath.WalkDir(b.dir, func(path string, _ os.DirEntry, _ error) error {
		if base := filepath.Base(path); base == "pid" || strings.HasSuffix(base, ".pid") {
			if pid := readPID(path); pid > 1 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		return nil
	})
}

func readPID(path string) int {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return 0
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !strings.Contains(string(cmdline), path) {
		return 0
	}
	return pid
}

func (b *bench) run(name string, args ...string) string {
	b.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		b.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// serveView serves a view of size bytes whose first half is pattern 0x51.
func (b *bench) serveView(size int64) {
	b.t.Helper()
	if _, err := os.Stat(b.view); err != nil {
		b.run("qemu-img", "create", "-q", "-f", "raw", b.view, strconv.FormatInt(size, 10))
		b.run("qemu-io", "-f", "raw", "-c", fmt.Sprintf("write -P 0x51 0 %d", size/2), b.view)
	}
	_ = os.Remove(b.sock)
	b.nbd = exec.Command("qemu-nbd", "-r", "-t", "-e", "8", "-f", "raw", "-x", "vda", "-k", b.sock, b.view)
	if err := b.nbd.Start(); err != nil {
		b.t.Fatal(err)
	}
	eventually(b.t, "the view is served", func() bool { _, err := os.Stat(b.sock); return err == nil })
}

func (b *bench) stopView() {
	if b.nbd == nil {
		return
	}
	_ = b.nbd.Process.Kill()
	_ = b.nbd.Wait()
	b.nbd = nil
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(90 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within 90 s: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (b *bench) recovered(handle, name string, size int64) provider.Recovered {
	return provider.Recovered{
		Handle: handle, Name: name,
		Machine: provider.Machine{CPUs: 1, Memory: 64 * mib, NICs: []provider.NIC{{ID: "net0", MAC: "52:54:00:01:02:03", Network: "lan"}}, Config: json.RawMessage(`{"machine":"q35","accel":"tcg"}`)},
		Disks:   []provider.DiskSource{{DiskID: "vda", Size: size, Socket: b.sock, Export: "vda"}},
	}
}

// guest does I/O as the machine's disk would. QEMU does not tell whether it
// went well; contents are checked afterwards.
func (b *bench) guest(machine, command string) {
	b.t.Helper()
	mon, err := b.site.Source.Monitor(b.t.Context(), machine)
	if err != nil {
		b.t.Fatal(err)
	}
	defer mon.Close()
	err = mon.Execute(b.t.Context(), "human-monitor-command", map[string]any{
		"command-line": fmt.Sprintf("qemu-io -d /machine/peripheral/vda/virtio-backend %q", command),
	}, nil)
	if err != nil {
		b.t.Fatalf("guest %s: %v", command, err)
	}
}

// contains checks the first disk of a machine that is off: offset in MiB to the
// pattern of 64 KiB there.
func (b *bench) contains(machine string, want map[int]byte) {
	b.t.Helper()
	m, err := b.site.Inventory.Machine(b.t.Context(), machine)
	b.must(err)
	for at, pattern := range want {
		out := b.run("qemu-io", "-r", "-f", "qcow2", "-c", fmt.Sprintf("read -P %d %dM 64k", pattern, at), m.Disks[0].Path)
		if strings.Contains(out, "verification failed") || !strings.Contains(out, "read 65536/65536") {
			b.t.Errorf("%s at %d MiB: want pattern %#x: %s", m.Disks[0].Path, at, pattern, out)
		}
	}
}

func (b *bench) power(machine string) provider.PowerState {
	b.t.Helper()
	m, err := b.site.Inventory.Machine(b.t.Context(), machine)
	if err != nil {
		b.t.Fatal(err)
	}
	return m.Power
}

func (b *bench) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func TestRecoverHydrateRestart(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const size = 64 * mib
	b.serveView(size)
	ctx, target := t.Context(), b.site.Target

	want := b.recovered("h1", "web", size)
	id, err := target.Define(ctx, want)
	b.must(err)
	again, err := target.Define(ctx, want)
	if err != nil || again != id {
		t.Fatalf("Define again: got %q, %v, want %q", again, err, id)
	}
	_, err = target.Define(ctx, b.recovered("h2", "web", size))
	if !errors.Is(err, provider.ErrNameTaken) {
		t.Fatalf("Define with the name of another: got %v, want ErrNameTaken", err)
	}
	if st, err := target.Status(ctx, "h1"); err != nil || st.Power != provider.PowerOff || !st.NeedsView {
		t.Fatalf("status before start: %+v, %v", st, err)
	}

	b.must(target.Start(ctx, "h1"))
	pid := readPID(filepath.Join(b.dir, "recovered/h1/pid"))
	b.must(target.Start(ctx, "h1"))
	if now := readPID(filepath.Join(b.dir, "recovered/h1/pid")); now != pid || pid == 0 {
		t.Fatalf("second start: process %d, before %d", now, pid)
	}
	b.guest("web", "write -P 0x77 1M 64k")
	b.must(qemu.StopMachine(ctx, b.dir, "web"))
	b.contains("web", map[int]byte{0: 0x51, 1: 0x77, 2: 0x51, 40: 0})
	b.must(target.Start(ctx, "h1"))
	b.guest("web", "write -P 0x77 3M 64k")

	var last, total int64
	var stopped time.Time
	qemu.InterruptHydrate(b.site, func(step string) error {
		switch step {
		case "stopped":
			stopped = time.Now()
		case "changed":
			t.Logf("the machine stood still for %v", time.Since(stopped).Round(time.Millisecond))
		}
		return nil
	})
	b.must(target.Hydrate(ctx, "h1", func(d, n int64) { last, total = d, n }))
	if last != total || total == 0 {
		t.Errorf("progress ended at %d of %d", last, total)
	}
	b.stopView()
	b.guest("web", "write -P 0x78 2M 64k")
	b.guest("web", "flush")
	st, err := target.Status(ctx, "h1")
	if err != nil || st.NeedsView || st.Power != provider.PowerRunning || st.Hydrated != st.Total || st.MachineID != id {
		t.Fatalf("status after hydrate: %+v, %v", st, err)
	}
	if _, err := os.Stat(filepath.Join(b.dir, "recovered/h1/vda.overlay.qcow2")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the overlay is still there: %v", err)
	}
	b.must(target.Hydrate(ctx, "h1", nil))

	b.must(b.site.Source.Kill(ctx, id))
	if p := b.power(id); p != provider.PowerOff {
		t.Fatalf("after kill: %s", p)
	}
	b.contains("web", map[int]byte{0: 0x51, 1: 0x77, 2: 0x78, 3: 0x77, 4: 0x51, 40: 0})
	b.must(target.Start(ctx, "h1"))
	b.must(target.Hydrate(ctx, "h1", nil))

	b.must(target.Remove(ctx, "h1"))
	b.must(target.Remove(ctx, "h1"))
	if _, err := target.Status(ctx, "h1"); !errors.Is(err, provider.ErrNotFound) {
		t.Errorf("status after remove: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(b.dir, "recovered", "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestHydrateInterrupted ends Hydrate after each step of the change-over, with
// QEMU surviving or killed, and repeats it.
func TestHydrateInterrupted(t *testing.T) {
	t.Parallel()
	died := errors.New("died")
	for _, step := range []string{"copying", "announced", "stopped", "recorded", "changed"} {
		for _, killed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/killed=%v", step, killed), func(t *testing.T) {
				t.Parallel()
				b := newBench(t)
				const size = 16 * mib
				b.serveView(size)
				target := b.site.Target
				_, err := target.Define(t.Context(), b.recovered("h", "m", size))
				b.must(err)
				b.must(target.Start(t.Context(), "h"))
				b.guest("m", "write -P 0x77 1M 64k")
				b.guest("m", "flush")

				ctx, cancel := context.WithCancel(t.Context())
				qemu.InterruptHydrate(b.site, func(at string) error {
					if at == step {
						return died
					}
					return nil
				})
				progress := func(int64, int64) {
					if step == "copying" {
						cancel()
					}
				}
				err = target.Hydrate(ctx, "h", progress)
				if !errors.Is(err, died) && !errors.Is(err, context.Canceled) {
					t.Fatalf("Hydrate: got %v, want to be interrupted", err)
				}
				cancel()
				qemu.InterruptHydrate(b.site, nil)
				if killed {
					b.must(b.site.Source.Kill(t.Context(), "m"))
				}
				b.must(target.Start(t.Context(), "h"))
				if p := b.power("m"); p != provider.PowerRunning {
					t.Fatalf("after start: %s", p)
				}
				b.guest("m", "write -P 0x79 2M 64k")
				b.must(target.Hydrate(t.Context(), "h", nil))
				b.stopView()
				b.guest("m", "write -P 0x7a 3M 64k")
				st, err := target.Status(t.Context(), "h")
				if err != nil || st.NeedsView || st.Power != provider.PowerRunning {
					t.Fatalf("status: %+v, %v", st, err)
				}
				b.must(qemu.StopMachine(t.Context(), b.dir, "m"))
				b.contains("m", map[int]byte{0: 0x51, 1: 0x77, 2: 0x79, 3: 0x7a, 4: 0x51, 12: 0})
			})
		}
	}
}

// TestViewGone checks that a machine's read waits for a view that went away.
func TestViewGone(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const size = 16 * mib
	b.serveView(size)
	_, err := b.site.Target.Define(t.Context(), b.recovered("h", "m", size))
	b.must(err)
	b.must(b.site.Target.Start(t.Context(), "h"))
	b.stopView()
	back := make(chan struct{})
	go func() {
		defer close(back)
		time.Sleep(300 * time.Millisecond) // the read below is to find nobody
		b.serveView(size)
	}()
	b.guest("m", "read 5M 64k") // returns when the read has
	select {
	case <-back:
	default:
		t.Error("the read did not wait for the view")
		<-back
	}
}

// TestConcurrentCalls checks that many starts make one process, and that Remove
// ends a hydration.
func TestConcurrentCalls(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const size = 16 * mib
	b.serveView(size)
	_, err := b.site.Target.Define(t.Context(), b.recovered("h", "m", size))
	b.must(err)
	errs := make(chan error, 4)
	for range cap(errs) {
		go func() {
			errs <- errors.Join(b.site.Target.Start(t.Context(), "h"), qemu.StartMachine(t.Context(), b.dir, "m"))
		}()
	}
	for range cap(errs) {
		b.must(<-errs)
	}
	if n := b.processes(); n != 1 {
		t.Errorf("%d processes of QEMU, want 1", n)
	}
	var once sync.Once
	copying := make(chan struct{})
	go func() {
		errs <- b.site.Target.Hydrate(t.Context(), "h", func(int64, int64) { once.Do(func() { close(copying) }) })
	}()
	<-copying
	b.must(b.site.Target.Remove(t.Context(), "h"))
	if err := <-errs; err == nil {
		t.Log("the hydration was faster") // 16 MiB are soon copied
	}
	if n := b.processes(); n != 0 {
		t.Errorf("%d processes of QEMU after Remove, want none", n)
	}
	if _, err := os.Stat(filepath.Join(b.dir, "recovered", "h")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
}

// processes counts the processes of QEMU that belong to the bench.
func (b *bench) processes() int {
	b.t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	b.must(err)
	n := 0
	for _, path := range all {
		cmdline, err := os.ReadFile(path)
		if err == nil && strings.HasPrefix(string(cmdline), "qemu-system") && strings.Contains(string(cmdline), b.dir+"/") {
			n++
		}
	}
	return n
}
