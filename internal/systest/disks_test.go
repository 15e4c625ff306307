package systest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/provider/qemu"
	"github.com/holdfast-dr/holdfast/internal/systest/lab"
)

// TestDisksTakenOver grows the disk of a protected machine while it runs, in a
// pause, and while it is off, and gives it a second one: each is taken over, only
// what differs is sent, and recovery points keep the disks that they had.
func TestDisksTakenOver(t *testing.T) {
	w := newWorld(t, worldOptions{})
	w.protect()
	w.writesOn("while it is protected")
	w.cli("point", "create", machine, "--name", "small")
	small := w.sizes()["vda"]

	if err := w.resize(small + 64<<20); err == nil {
		t.Log("this QEMU resizes disks that are mirrored")
	} else {
		t.Logf("without a pause: %v", err)
		w.cli("item", "pause", machine, "--for", "10m")
		if f := w.finding("HF1305"); f == nil || w.item().Replication.Mode != "paused" {
			t.Errorf("a pause is no finding: %+v", w.item())
		}
		w.must(w.resize(small + 64<<20))
		w.writesOn("while replication is paused")
		w.cli("item", "resume", machine)
	}
	sent := w.takenOver("grown while it runs", map[string]int64{"vda": small + 64<<20})
	if sent > 24<<20 {
		t.Errorf("%d bytes went to the vault for a disk that had only grown", sent)
	}

	w.must(qemu.StopMachine(t.Context(), w.Primary, machine))
	w.must(exec.Command("qemu-img", "resize", "-q", "-f", w.format, w.disk, "+64M").Run())
	w.must(w.StartMachine(t.Context(), machine))
	w.takenOver("grown while it was off", map[string]int64{"vda": small + 128<<20})

	second := filepath.Join(w.Primary, "second.raw")
	content := bytes.Repeat([]byte("a second disk "), 1<<20/14)
	w.must(os.WriteFile(second, append(content, make([]byte, 8<<20-len(content))...), 0o644))
	w.must(qemu.StopMachine(t.Context(), w.Primary, machine))
	w.must(w.AddMachine(lab.Machine{Name: machine, Disk: w.disk, Format: w.format, TestMonitor: w.extra, Second: second}))
	w.must(w.StartMachine(t.Context(), machine))
	both := map[string]int64{"vda": small + 128<<20, "vdb": 8 << 20}
	w.takenOver("given a second disk", both)
	w.pause()
	it := w.drained()
	w.equalToSource(it)
	raw := filepath.Join(w.Dir, "second.view")
	w.must(lab.ExportView(t.Context(), w.view(it), "vdb", raw))
	if got, err := os.ReadFile(raw); err != nil || !bytes.HasPrefix(got, content) {
		t.Errorf("the vault has not what is on the second disk (%d bytes, %v)", len(got), err)
	}

	acked := w.acknowledged()
	w.must(w.KillMachine(machine))
	w.result("failover", machine)
	w.verifiesSince(w.newestRecovered(), acked)
	w.hasDisks(both)
	w.cli("change-point", machine, "--point", w.named("small"))
	w.verifiesSince(w.newestRecovered(), 1)
	w.hasDisks(map[string]int64{"vda": small})
	w.cli("change-point", machine)
	w.verifiesSince(w.newestRecovered(), acked)
	w.hasDisks(both)
	w.forgets()
	w.checkVault()
}

// forgets commits the failover and deletes the points from before: the machine
// runs on, and goes on to be protected.
func (w *world) forgets() {
	w.t.Helper()
	var before, after api.Vault
	w.must(w.JSON(w.t.Context(), &before, "vault", "show"))
	w.cli("point", "pin", machine, w.named("small"))
	w.cli("commit", machine, "--delete-points")
	w.must(w.JSON(w.t.Context(), &after, "vault", "show"))
	var points api.Points
	w.must(w.JSON(w.t.Context(), &points, "point", "list", machine))
	w.t.Logf("the vault had %d bytes in %d segments, and has %d in %d; %d points are left", before.Bytes, before.Streams[0].Segments, after.Bytes, after.Streams[0].Segments, len(points.Points))
	if after.Streams[0].Segments >= before.Streams[0].Segments || len(points.Points) > 2 {
		w.t.Errorf("little was deleted: %+v, points %+v", after.Streams[0], points.Points)
	}
	serial := w.newestRecovered()
	acked := w.ackedIn(serial)
	w.eventually("the recovered guest writes on", func() bool { return w.ackedIn(serial) > acked+3 })
	w.cli("reprotect", machine)
	w.cli("test-failover", "start", machine, "--point", w.named("small"), "--serial", "GUEST-READY")
	w.cli("test-failover", "clean-up", machine)
}

// resize has QEMU give the first disk another size, as virsh blockresize does.
func (w *world) resize(size int64) error {
	w.t.Helper()
	mon, err := qemu.Dial(w.t.Context(), w.extra)
	w.must(err)
	defer mon.Close()
	return mon.Execute(w.t.Context(), "block_resize", map[string]any{"node-name": "hf-vda", "size": size}, nil)
}

// sizes are the disks that are replicated.
func (w *world) sizes() map[string]int64 {
	w.t.Helper()
	out := map[string]int64{}
	for _, d := range w.item().Machine.Disks {
		out[d.ID] = d.Size
	}
	return out
}

func (w *world) hasDisks(want map[string]int64) {
	w.t.Helper()
	got := w.sizes()
	for id, size := range want {
		if got[id] != size || len(got) != len(want) {
			w.t.Fatalf("the item has disks %v, want %v", got, want)
		}
	}
}

// takenOver waits until the disks are replicated that the machine has now, and
// returns how much that sent.
func (w *world) takenOver(what string, disks map[string]int64) int64 {
	w.t.Helper()
	began := time.Now()
	w.eventually("the disks are taken over: "+what, func() bool {
		got := w.sizes()
		for id, size := range disks {
			if got[id] != size {
				return false
			}
		}
		return len(got) == len(disks)
	})
	took := time.Since(began)
	w.goesOn()
	var it api.Item
	w.eventually("nothing is amiss", func() bool {
		it = w.item()
		return w.finding("HF1303") == nil && w.finding("HF1304") == nil && w.finding("HF1305") == nil
	})
	w.t.Logf("%s: taken over after %.1f s, in sync after %.1f s; %d bytes received, %d stored", what, took.Seconds(), time.Since(began).Seconds(), it.Replication.ReceivedBytes, it.Replication.SentBytes)
	w.writesOn("with the disks of now")
	return it.Replication.SentBytes
}

// named returns the id of a recovery point.
func (w *world) named(name string) string {
	w.t.Helper()
	var points api.Points
	w.must(w.JSON(w.t.Context(), &points, "point", "list", machine))
	for _, p := range points.Points {
		if p.Name == name {
			return p.ID
		}
	}
	w.t.Fatalf("there is no point %s", name)
	return ""
}
