package qemu_test

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
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/qemu"
)

// servers returns the processes of qemu-nbd that have an image of the bench open.
func (b *bench) servers() (pids []int) {
	b.t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	b.must(err)
	for _, path := range all {
		cmdline, err := os.ReadFile(path)
		if err == nil && strings.HasPrefix(string(cmdline), "qemu-nbd") && strings.Contains(string(cmdline), b.dir+"/") {
			var pid int
			_, err := fmt.Sscanf(path, "/proc/%d/", &pid)
			b.must(err)
			pids = append(pids, pid)
		}
	}
	return pids
}

func (b *bench) openDisk(machine string) provider.ReplicaDisk {
	b.t.Helper()
	d, err := b.site.Replica.OpenDisk(b.t.Context(), machine, "vda")
	b.must(err)
	return d
}

// TestReplicaFormats opens disks of all kinds that a site's own machine has.
func TestReplicaFormats(t *testing.T) {
	t.Parallel()
	const size = 8 * mib
	for _, tt := range []struct {
		name, format string
		make         func(b *bench, path string)
	}{
		{"raw", "raw", func(b *bench, path string) { b.run("qemu-img", "create", "-q", "-f", "raw", path, "8M") }},
		{"qcow2", "qcow2", func(b *bench, path string) { b.run("qemu-img", "create", "-q", "-f", "qcow2", path, "8M") }},
		{"backing", "qcow2", func(b *bench, path string) {
			base := filepath.Join(b.dir, "base,1.raw")
			b.run("qemu-img", "create", "-q", "-f", "raw", base, "8M")
			b.run("qemu-io", "-f", "raw", "-c", "write -P 0x51 0 8M", base)
			b.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, path)
		}},
		{"backing, old format", "qcow2", func(b *bench, path string) {
			base := filepath.Join(b.dir, "base.qcow2")
			b.run("qemu-img", "create", "-q", "-f", "qcow2", base, "8M")
			b.run("qemu-io", "-f", "qcow2", "-c", "write -P 0x51 0 8M", base)
			b.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", "-F", "qcow2", "-b", base, path)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			def := b.define("own01", func(d *qemu.Definition) { d.Disks[0].Format = tt.format })
			tt.make(b, def.Disks[0].Path)
			ctx := t.Context()
			want := make([]byte, size)
			d := b.openDisk(def.ID)
			b.must(d.ReadAt(ctx, want, 0))
			if strings.HasPrefix(tt.name, "backing") != (want[0] == 0x51) {
				t.Errorf("the disk begins with %#x", want[0])
			}
			piece := bytes.Repeat([]byte{0x77}, 4096)
			b.must(errors.Join(d.WriteAt(ctx, piece, mib+512), d.Zero(ctx, block.Extent{Offset: 2 * mib, Length: mib}, true), d.Flush(ctx)))
			copy(want[mib+512:], piece)
			clear(want[2*mib : 3*mib])
			pids := b.servers()
			if len(pids) != 1 {
				t.Fatalf("%d servers, want 1", len(pids))
			}
			b.must(syscall.Kill(pids[0], syscall.SIGKILL)) // what was flushed stays
			if err := d.ReadAt(ctx, piece, 0); err == nil {
				t.Error("a disk whose server was killed can be read")
			}
			if err := d.Close(); err == nil {
				t.Error("Close does not say that the server was killed")
			}
			d = b.openDisk(def.ID)
			got := make([]byte, size)
			b.must(d.ReadAt(ctx, got, 0))
			if !bytes.Equal(got, want) {
				t.Error("the disk has not what was flushed")
			}
			spans, err := d.Map(ctx, block.Extent{Offset: 2 * mib, Length: mib})
			if err != nil || tt.name != "backing, old format" && (!spans[0].Zero || spans[0].Length != mib) {
				t.Errorf("Map of what was zeroed: %+v, %v", spans, err)
			}
			b.must(d.Close())
			if pids := b.servers(); len(pids) != 0 {
				t.Errorf("servers %v are left after Close", pids)
			}
			b.must(b.site.Power.Start(ctx, def.ID))
		})
	}
}

// TestReplicaEndsWithItsProcess kills a process that has a disk open.
func TestReplicaEndsWithItsProcess(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	def := b.define("own01", nil)
	b.run("qemu-img", "create", "-q", "-f", "qcow2", def.Disks[0].Path, "8M")
	child := exec.Command(os.Args[0], "-test.run=^TestHoldsADisk$")
	child.Env = append(os.Environ(), "HOLDFAST_TEST_SITE="+b.dir)
	b.must(child.Start())
	eventually(t, "the disk is open", func() bool {
		_, err := b.site.Replica.OpenDisk(t.Context(), def.ID, "no-such-disk") // waits for the other's opening
		return len(b.servers()) == 1 && errors.Is(err, provider.ErrNotFound)
	})
	if err := b.site.Power.Start(t.Context(), def.ID); err == nil {
		t.Error("the machine started while another process has its disk open")
	}
	b.must(child.Process.Kill())
	_ = child.Wait() // says that it was killed
	eventually(t, "the disk's server ends", func() bool { return len(b.servers()) == 0 })
	b.must(b.site.Power.Start(t.Context(), def.ID))
}

// TestHoldsADisk is the process that TestReplicaEndsWithItsProcess kills.
func TestHoldsADisk(t *testing.T) {
	dir := os.Getenv("HOLDFAST_TEST_SITE")
	if dir == "" {
		t.Skip("only run by another test")
	}
	s, err := qemu.Open(t.Context(), json.RawMessage(fmt.Sprintf(`{"directory":%q}`, dir)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Replica.OpenDisk(t.Context(), "own01", "vda"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Minute) // until killed
}

// TestGuardAgainstStart guards a machine at the moment in which it is started:
// it then runs, and can be seen to, or never will.
func TestGuardAgainstStart(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	def := b.define("own01", nil)
	b.run("qemu-img", "create", "-q", "-f", "qcow2", def.Disks[0].Path, "8M")
	for n := range 6 {
		started := make(chan error, 1)
		go func() { started <- b.site.Power.Start(t.Context(), def.ID) }()
		time.Sleep(time.Duration(n) * 10 * time.Millisecond) // to meet the start at different points
		b.must(b.site.Power.Guard(t.Context(), def.ID, "elsewhere"))
		before := b.power(def.ID)
		err := <-started
		if after := b.power(def.ID); after != before || (err == nil) != (after == provider.PowerRunning) {
			t.Errorf("round %d: the machine was %s after Guard, then %s; Start: %v", n, before, after, err)
		}
		if err != nil && !errors.Is(err, provider.ErrGuarded) {
			t.Errorf("round %d: Start: %v", n, err)
		}
		b.must(b.site.Source.Kill(t.Context(), def.ID))
		b.must(b.site.Power.Unguard(t.Context(), def.ID))
	}
}

// TestRemoveAgainstOthers removes a machine while it is started, guarded and
// opened: nothing of it is left.
func TestRemoveAgainstOthers(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.serveView(16 * mib)
	for n := range 4 {
		id, err := b.site.Target.Define(t.Context(), b.recovered("h", "mm", 16*mib))
		b.must(err)
		var removed atomic.Bool
		var others sync.WaitGroup
		for _, f := range []func() error{
			func() error { return qemu.StartMachine(t.Context(), b.dir, "mm") },
			func() error { return b.site.Power.Guard(t.Context(), id, "elsewhere") },
			func() error { return b.site.Power.Unguard(t.Context(), id) },
			func() error { _, err := b.site.Replica.OpenDisk(t.Context(), id, "vda"); return err },
		} {
			others.Go(func() {
				for !removed.Load() {
					_ = f() // whether before or after does not matter
				}
			})
		}
		time.Sleep(time.Duration(n) * 15 * time.Millisecond) // to meet them at different points
		b.must(b.site.Target.Remove(t.Context(), "h"))
		removed.Store(true)
		others.Wait()
		left, err := filepath.Glob(filepath.Join(b.dir, "recovered", "*"))
		b.must(err)
		guards, err := filepath.Glob(filepath.Join(b.dir, "mm.*"))
		b.must(err)
		if left = append(left, guards...); len(left) != 0 || b.processes() != 0 {
			t.Fatalf("round %d: left are %v and %d processes", n, left, b.processes())
		}
	}
}

// TestGuardFile checks that whatever is in the file, it is a guard, for
// StartMachine and for a machine that is paused as well.
func TestGuardFile(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.serveView(16 * mib)
	id, err := b.site.Target.Define(t.Context(), b.recovered("h", "mm", 16*mib))
	b.must(err)
	path := filepath.Join(b.dir, "mm.guard")
	b.must(b.site.Power.Guard(t.Context(), id, "works at b"))
	if raw, err := os.ReadFile(path); err != nil || string(raw) != "works at b\n" {
		t.Errorf("guard's file: %q, %v", raw, err)
	}
	for _, content := range []string{"", "\n\n", "\x00\xff", "by hand"} {
		b.must(os.WriteFile(path, []byte(content), 0o644))
		if err := qemu.StartMachine(t.Context(), b.dir, "mm"); !errors.Is(err, provider.ErrGuarded) {
			t.Errorf("StartMachine with a guard of %q: %v", content, err)
		}
		if reason, err := b.site.Power.Guarded(t.Context(), id); reason == "" || err != nil {
			t.Errorf("Guarded with a guard of %q: %q, %v", content, reason, err)
		}
	}
	b.must(os.Remove(path))
	b.must(os.Mkdir(path, 0o755)) // cannot be read
	if err := b.site.Power.Start(t.Context(), id); err == nil {
		t.Error("a machine started whose guard cannot be read")
	}
	b.must(os.Remove(path))

	b.must(b.site.Target.Start(t.Context(), "h"))
	mon, err := b.site.Source.Monitor(t.Context(), id)
	b.must(err)
	b.must(mon.Execute(t.Context(), "stop", nil, nil))
	b.must(b.site.Power.Guard(t.Context(), id, "works at b"))
	if err := b.site.Power.Start(t.Context(), id); !errors.Is(err, provider.ErrGuarded) || b.power(id) != provider.PowerPaused {
		t.Errorf("Start of a guarded machine that is paused: %v, now %s", err, b.power(id))
	}
}

// TestIsolatedDefinition checks that no network of a wish gets an isolated
// machine out.
func TestIsolatedDefinition(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	want := b.recovered("h", "mm", 16*mib)
	want.Isolated, want.Network = true, "user"
	want.Machine.NICs = append(want.Machine.NICs, provider.NIC{ID: "net9", Network: "user"})
	want.Machine.Config = json.RawMessage(`{"machine":"q35","accel":"tcg","extra":["-nic","user"]}`)
	id, err := b.site.Target.Define(t.Context(), want)
	b.must(err)
	m, err := b.site.Inventory.Machine(t.Context(), id)
	b.must(err)
	var d qemu.Definition
	b.must(json.Unmarshal(m.Config, &d))
	if len(d.NICs) != 2 || d.NICs[0].Network != "restricted" || d.NICs[1].Network != "restricted" || len(d.Extra) != 0 {
		t.Errorf("interfaces %+v, extra %q", d.NICs, d.Extra)
	}
}

func TestScreenshotWithoutDisplay(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	def := b.define("own01", nil)
	b.run("qemu-img", "create", "-q", "-f", "qcow2", def.Disks[0].Path, "8M")
	b.must(b.site.Power.Start(t.Context(), def.ID))
	_, err := b.site.Console.Screenshot(t.Context(), def.ID)
	if err == nil || !strings.Contains(err.Error(), `"display": true`) {
		t.Errorf("Screenshot: %v, want advice", err)
	}
	left, err := filepath.Glob(filepath.Join(b.dir, ".screen-*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.site.Console.Screenshot(gone, def.ID); !errors.Is(err, context.Canceled) {
		t.Errorf("Screenshot with a cancelled context: %v", err)
	}
}
