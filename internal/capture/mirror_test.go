package capture_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/capture"
	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/qemu"
)

const (
	mib      = 1 << 20
	diskSize = 48 * mib
	// granule is what QEMU's mirror sends again for one changed byte.
	granule = 64 << 10
)

// lab is a machine without a guest, whose disks are written through QEMU's
// monitor, an ingest, and the mirror between them.
type lab struct {
	t      *testing.T
	dir    string
	site   *provider.Site
	in     *ingest
	opts   capture.MirrorOptions
	mirror *capture.Mirror
	stop   func()
}

// newLab starts the machine; its first disk has some content, its second none.
func newLab(t *testing.T, disks int) *lab {
	t.Helper()
	for _, name := range []string{"qemu-system-x86_64", "qemu-img", "qemu-io"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%s is not installed", name)
		}
	}
	dir, err := os.MkdirTemp("", "hf") // sockets need short paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l := &lab{t: t, dir: dir}
	def := qemu.Definition{
		Name: "m", ID: "00000000-0000-4000-8000-000000000001", CPUs: 1, Memory: 32 * mib, Accel: "tcg",
		QMP: l.path("qmp"), PIDFile: l.path("pid"), Extra: []string{"-S"},
	}
	var list []capture.Disk
	for i, format := range []string{"qcow2", "raw"}[:disks] {
		id := []string{"vda", "vdb"}[i]
		path := l.path(id + "." + format)
		l.run("qemu-img", "create", "-q", "-f", format, path, fmt.Sprint(diskSize))
		def.Disks = append(def.Disks, qemu.DiskDef{ID: id, Path: path, Format: format})
		list = append(list, capture.Disk{ID: id, Size: diskSize})
	}
	l.run("qemu-io", "-c", "write -P 0x11 1M 20M", l.path("vda.qcow2"))
	raw, err := json.Marshal(def)
	l.must(err)
	l.must(os.WriteFile(l.path("m.json"), raw, 0o644))
	l.site, err = qemu.Open(t.Context(), json.RawMessage(fmt.Sprintf(`{"directory":%q}`, dir)))
	l.must(err)
	l.in = newIngest(t, dir, list...)
	l.startQEMU()
	l.opts = capture.MirrorOptions{
		Open:    func(ctx context.Context) (provider.Monitor, error) { return l.site.Source.Monitor(ctx, "m") },
		Machine: func(ctx context.Context) (provider.Machine, error) { return l.site.Inventory.Machine(ctx, "m") },
		Disks:   list, Prefix: "item1", Ingest: l.in, Poll: 20 * time.Millisecond, Timeout: 2 * time.Second,
	}
	t.Cleanup(func() { l.endMirror() })
	return l
}

func (l *lab) path(name string) string { return filepath.Join(l.dir, name) }

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) run(name string, args ...string) {
	l.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		l.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

func (l *lab) startQEMU() {
	l.t.Helper()
	l.must(qemu.StartMachine(l.t.Context(), l.dir, "m"))
	l.t.Cleanup(func() { _ = l.site.Source.Kill(context.Background(), "m") })
}

func (l *lab) startMirror() {
	l.mirror = capture.NewMirror(l.opts)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.mirror.Run(ctx) }()
	l.stop = func() {
		cancel()
		if err := <-done; err != nil {
			l.t.Errorf("Run: %v", err)
		}
	}
}

func (l *lab) endMirror() {
	if l.stop != nil {
		l.stop()
		l.stop = nil
	}
}

// execute runs a monitor command beside the mirror.
func (l *lab) execute(name string, args map[string]any, result any) error {
	l.t.Helper()
	mon, err := l.site.Source.Monitor(l.t.Context(), "m")
	l.must(err)
	defer mon.Close()
	ctx, cancel := context.WithTimeout(l.t.Context(), 10*time.Second)
	defer cancel()
	return mon.Execute(ctx, name, args, result)
}

// guest does I/O as the machine's disk; write returns when it is complete,
// aio_write at once.
func (l *lab) guest(disk, command string) {
	l.t.Helper()
	l.must(l.execute("human-monitor-command", map[string]any{
		"command-line": fmt.Sprintf("qemu-io -d /machine/peripheral/%s/virtio-backend %q", disk, command),
	}, nil))
}

func (l *lab) eventually(what string, ok func() bool) {
	l.t.Helper()
	for deadline := time.Now().Add(40 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			l.t.Fatalf("not within 40 s: %s; state %+v", what, l.mirror.State())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (l *lab) awaitSync() {
	l.t.Helper()
	l.eventually("in sync", func() bool {
		for _, d := range l.opts.Disks {
			if !l.in.isSynced(d.ID) {
				return false
			}
		}
		return l.mirror.State().Mode() == capture.ModeContinuous
	})
	now := time.Now()
	l.eventually("it is confirmed that nothing was missed", func() bool { return l.in.lastConfirmed().After(now) })
}

func (l *lab) awaitMode(mode capture.Mode) {
	l.t.Helper()
	l.eventually("mode "+string(mode), func() bool { return l.mirror.State().Mode() == mode })
}

// arrived checks that a part of a disk has a pattern in the ingest.
func (l *lab) arrived(disk string, off int64, pattern byte) {
	l.t.Helper()
	if got := l.in.content(disk, off, granule); !bytes.Equal(got, bytes.Repeat([]byte{pattern}, granule)) {
		l.t.Errorf("disk %s at %d: the ingest has %#x, want %#x throughout", disk, off, got[0], pattern)
	}
}

// equal ends QEMU and compares all disks with the ingest's.
func (l *lab) equal() {
	l.t.Helper()
	l.endMirror()
	l.must(qemu.StopMachine(l.t.Context(), l.dir, "m"))
	for id, format := range map[string]string{"vda": "qcow2", "vdb": "raw"} {
		path := l.path(id + "." + format)
		if _, err := os.Stat(path); err != nil {
			continue
		}
		got := l.path(id + ".got")
		l.must(os.WriteFile(got, l.in.content(id, 0, diskSize), 0o644))
		l.run("qemu-img", "compare", "-f", format, "-F", "raw", path, got)
	}
}

func TestContinuous(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2)
	l.startMirror()
	l.awaitSync()
	for i := range 20 {
		off := int64(i) * 128 << 10
		l.guest("vda", fmt.Sprintf("write -P %d %d 64k", i+1, off))
		l.arrived("vda", off, byte(i+1)) // before the guest's write was complete
		l.guest("vdb", fmt.Sprintf("write -P %d %d 64k", i+50, off))
		l.arrived("vdb", off, byte(i+50))
	}
	l.guest("vda", "write -z 2M 64k")
	l.arrived("vda", 2*mib, 0)
	l.equal()
}

// TestIngestRestart checks that after the ingest died only what changed is sent.
func TestIngestRestart(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	l.startMirror()
	l.awaitSync()
	for round := range 3 {
		l.in.kill()
		l.guest("vda", fmt.Sprintf("write -P %d 3M 64k", round+1))
		l.guest("vda", fmt.Sprintf("write -P %d 5M 4k", round+1))
		l.eventually("the loss is seen", func() bool { return l.mirror.State().Mode() != capture.ModeContinuous })
		l.in.counted("vda")
		l.in.start()
		back := time.Now()
		l.awaitSync()
		t.Logf("in sync %v after the ingest was back", time.Since(back).Round(time.Millisecond))
		if n, _ := l.in.counted("vda"); n < granule || n > 2*granule {
			t.Errorf("round %d: %d bytes were sent again, want the 2 changed granules of %d", round, n, granule)
		}
		l.arrived("vda", 3*mib, byte(round+1))
	}
	l.in.kill() // with an idle guest
	l.eventually("the loss is seen", func() bool { return l.mirror.State().Mode() == capture.ModeDisconnected })
	l.in.counted("vda")
	l.in.start()
	l.awaitSync()
	if n, _ := l.in.counted("vda"); n != 0 {
		t.Errorf("idle guest: %d bytes were sent again, want none", n)
	}
	l.equal()
}

// TestInterruptedFirstSync checks that a first pass goes on where it was.
func TestInterruptedFirstSync(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	l.in.dieAt = 30 * mib
	l.startMirror()
	l.eventually("the pass was cut short", func() bool {
		l.in.mu.Lock()
		defer l.in.mu.Unlock()
		return l.in.disks["vda"].received > l.in.dieAt
	})
	l.in.kill()
	l.in.mu.Lock()
	l.in.dieAt = 0
	l.in.mu.Unlock()
	l.in.counted("vda")
	if l.in.isSynced("vda") {
		t.Fatal("in sync after an interrupted pass")
	}
	l.in.start()
	l.awaitSync()
	// QEMU has up to 16 MiB under way: so much of the 30 may have arrived without
	// its knowing.
	if n, _ := l.in.counted("vda"); n > diskSize-(30-16)*mib {
		t.Errorf("%d bytes were sent after the interruption, want no more than the rest of %d", n, diskSize)
	}
	l.equal()
}

// TestAdopt checks that a new controller takes up the job of an earlier one.
func TestAdopt(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2)
	l.startMirror()
	l.awaitSync()
	l.endMirror()
	l.guest("vda", "write -P 7 6M 64k")
	l.arrived("vda", 6*mib, 7) // nobody looks, and the job works
	l.in.kill()
	l.guest("vda", "write -P 8 7M 64k")
	l.in.counted("vda")
	l.in.start()
	l.startMirror()
	l.awaitSync()
	if n, _ := l.in.counted("vda"); n != granule {
		t.Errorf("%d bytes were sent again, want one granule of %d", n, granule)
	}
	l.equal()
}

func TestJobCancelledByOthers(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	l.startMirror()
	l.awaitSync()
	l.must(l.execute("block-job-cancel", map[string]any{"device": "holdfast-item1-vda", "force": true}, nil))
	l.eventually("the claim is withdrawn", func() bool { return !l.in.isSynced("vda") })
	l.guest("vda", "write -P 9 8M 64k")
	l.awaitSync()
	l.guest("vda", "write -P 10 9M 64k")
	l.arrived("vda", 8*mib, 9)
	l.arrived("vda", 9*mib, 10)
	l.equal()
}

func TestQEMUKilled(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	l.startMirror()
	l.awaitSync()
	l.must(l.site.Source.Kill(t.Context(), "m"))
	l.eventually("the machine is seen to be off", func() bool { return l.mirror.State().SourceOff })
	if l.in.isSynced("vda") {
		t.Error("still in sync without a source")
	}
	l.run("qemu-io", "-c", "write -P 0x33 10M 64k", l.path("vda.qcow2"))
	l.startQEMU()
	l.awaitSync()
	l.arrived("vda", 10*mib, 0x33)
	l.equal()
}

// TestFrozenIngest checks that an ingest that does not answer blocks neither
// the monitor nor the controller, and that all goes on when it is cut off.
func TestFrozenIngest(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	l.startMirror()
	l.awaitSync()
	l.in.freeze()
	l.guest("vda", "aio_write -P 5 11M 64k")
	for range 20 {
		if err := l.execute("query-status", nil, nil); err != nil {
			t.Fatalf("the monitor is blocked: %v", err)
		}
		time.Sleep(20 * time.Millisecond) // several polls
	}
	l.must(l.in.Cut(t.Context(), "vda")) // the connection; the process stays frozen
	for range 20 {
		if err := l.execute("query-status", nil, nil); err != nil {
			t.Fatalf("the monitor is blocked: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	l.in.thaw()
	l.awaitSync()
	l.arrived("vda", 11*mib, 5)
	l.equal()
}

// objects lists block jobs, nodes and bitmaps.
func (l *lab) objects() string {
	var jobs []struct{ Device string }
	var nodes []struct {
		Name    string            `json:"node-name"`
		Bitmaps []json.RawMessage `json:"dirty-bitmaps"`
	}
	l.must(l.execute("query-block-jobs", nil, &jobs))
	l.must(l.execute("query-named-block-nodes", nil, &nodes))
	return fmt.Sprint(jobs, nodes)
}

func TestDetach(t *testing.T) {
	t.Parallel()
	for _, frozen := range []bool{false, true} {
		t.Run(fmt.Sprintf("frozen=%v", frozen), func(t *testing.T) {
			t.Parallel()
			l := newLab(t, 2)
			before := l.objects()
			l.startMirror()
			l.awaitSync()
			l.endMirror()
			if frozen {
				l.in.freeze()
				l.guest("vda", "aio_write -P 5 11M 64k")
			}
			l.must(l.mirror.Detach(t.Context()))
			if after := l.objects(); after != before {
				t.Errorf("left behind: %s\nbefore: %s", after, before)
			}
			l.must(l.mirror.Detach(t.Context()))
			if l.in.isSynced("vda") {
				t.Error("still in sync after detach")
			}
			l.must(l.site.Source.Kill(t.Context(), "m"))
			if err := l.mirror.Detach(t.Context()); !errors.Is(err, provider.ErrNotRunning) {
				t.Errorf("detach of a machine that is off: got %v, want ErrNotRunning", err)
			}
		})
	}
}

func TestOtherJob(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	l.must(l.execute("blockdev-add", map[string]any{"driver": "null-co", "node-name": "sink", "size": diskSize}, nil))
	l.must(l.execute("blockdev-backup", map[string]any{"job-id": "nightly", "device": "hf-vda", "target": "sink", "sync": "full", "speed": 1}, nil))
	l.startMirror()
	l.eventually("the other job is named", func() bool {
		s := l.mirror.State()
		return s.Mode() == capture.ModePaused && strings.Contains(s.Problem, `backup "nightly"`)
	})
	l.must(l.execute("block-job-cancel", map[string]any{"device": "nightly", "force": true}, nil))
	l.awaitSync()
	l.equal()
}

func TestResized(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	l.opts.Disks[0].Size = diskSize - mib
	l.startMirror()
	l.eventually("the size is named", func() bool {
		return l.mirror.State().Mode() == capture.ModePaused && strings.Contains(l.mirror.State().Problem, "bytes now")
	})
}
