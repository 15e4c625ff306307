package systest

import (
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/provider/qemu"
	"github.com/holdfast-dr/holdfast/internal/systest/lab"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// granule is what the mirror in QEMU keeps account of, in bytes.
const granule = 64 << 10

// TestGatewayKilled kills the gateway with SIGKILL under load: replication must
// resume by itself, send no more than what changed, and end with the vault
// equal to the source.
func TestGatewayKilled(t *testing.T) {
	w := newWorld(t, worldOptions{})
	w.protect()
	time.Sleep(2 * time.Second) // load
	before := w.item()
	pids, err := w.GatewayPIDs()
	w.must(err)
	if len(pids) != 2 {
		t.Fatalf("gateway has processes %v, want parent and child", pids)
	}
	for _, pid := range pids {
		w.must(syscall.Kill(pid, syscall.SIGKILL))
	}
	acked := w.acknowledged()
	w.eventually("the guest writes on while the gateway is away", func() bool { return w.acknowledged() > acked+5 })
	w.eventually("replication is continuous again", func() bool {
		r := w.item().Replication
		return r != nil && r.Mode == "continuous" && r.RPOSeconds != nil && *r.RPOSeconds < 2
	})
	w.pause()
	after := w.drained()
	changed := w.changed(before, after)
	sent := after.Replication.SentBytes
	t.Logf("changed since the last segment before the kill: %d bytes in %d extents; stored after it: %d bytes", changed.Bytes(), changed.Len(), sent)
	if limit := changed.Bytes() + int64(changed.Len())*granule + 64<<10; sent > limit {
		t.Errorf("after the restart %d bytes went to the vault; what changed, with its granularity, is %d", sent, limit)
	}
	w.equalToSource(after)
	w.checkVault()
}

// pause stops the guest, with nothing in flight, through a monitor of the test's own.
func (w *world) pause() {
	w.t.Helper()
	mon, err := qemu.Dial(w.t.Context(), w.extra)
	w.must(err)
	defer mon.Close()
	w.must(mon.Execute(w.t.Context(), "stop", nil, nil))
}

// drained waits until the vault has everything that the source has written.
func (w *world) drained() api.Item {
	w.t.Helper()
	var it api.Item
	began := time.Now()
	w.eventually("the vault has everything", func() bool {
		it = w.item()
		r := it.Replication
		return time.Since(began) > 2*time.Second && r != nil && r.BacklogBytes == 0 && r.RPOSeconds != nil && *r.RPOSeconds < 1.5
	})
	return it
}

// stream opens the item's stream without the server's help.
func (w *world) stream(it api.Item) *vault.Stream {
	w.t.Helper()
	store, err := objstore.Open(w.t.Context(), objstore.Location(w.vaultDir), objstore.Options{Credentials: w.credentials})
	w.must(err)
	s, err := lab.OpenStreamIn(w.t.Context(), store, filepath.Join(w.State, "vault.key"), it.Stream.ID)
	w.must(err)
	return s
}

// view opens the newest position that an item had when it was shown.
func (w *world) view(it api.Item) *vault.View {
	w.t.Helper()
	pos, err := holdfast.ParsePosition(it.Replication.Newest.Position)
	w.must(err)
	v, err := w.stream(it).View(w.t.Context(), holdfast.TimelineID(it.Replication.Newest.Timeline), pos)
	w.must(err)
	return v
}

// changed returns where two moments of the disk differ.
func (w *world) changed(a, b api.Item) *block.Set {
	w.t.Helper()
	set, err := w.view(a).Diff(w.t.Context(), w.view(b), "vda")
	w.must(err)
	return set
}

// equalToSource compares the newest view with the source's disk, byte by byte.
// The guest must be paused.
func (w *world) equalToSource(it api.Item) {
	w.t.Helper()
	raw := filepath.Join(w.Dir, "view.raw")
	w.must(lab.ExportView(w.t.Context(), w.view(it), "vda", raw))
	out, err := exec.Command("qemu-img", "compare", "-U", "-f", "raw", "-F", w.format, raw, w.disk).CombinedOutput()
	if err != nil {
		w.t.Fatalf("view and source differ: %v\n%s", err, out)
	}
}

// TestFrozenGateway stops the ingest process with SIGSTOP: the supervisor must
// cut it off within its bound, and the guest must go on.
func TestFrozenGateway(t *testing.T) {
	w := newWorld(t, worldOptions{serverFlags: []string{"--bound", "1s"}})
	w.protect()
	pid, err := w.IngestPID()
	w.must(err)
	w.must(syscall.Kill(pid, syscall.SIGSTOP))
	frozen := time.Now()
	acked := w.acknowledged()
	w.eventually("the guest writes on", func() bool { return w.acknowledged() > acked+3 })
	if stalled := time.Since(frozen); stalled > 6*time.Second {
		t.Errorf("the guest was held up for %s by a frozen gateway with a bound of 1 s", stalled)
	} else {
		t.Logf("the guest wrote on %s after the gateway froze (bound 1 s)", stalled.Round(time.Millisecond))
	}
	w.eventually("replication is continuous again", func() bool {
		r := w.item().Replication
		return r != nil && r.Mode == "continuous" && r.RPOSeconds != nil && *r.RPOSeconds < 2
	})
	w.pause()
	w.equalToSource(w.drained())
	w.checkVault()
}

// TestServerKilledInFailover kills the server with SIGKILL at many moments of a
// failover: it must complete after a restart, with one recovered machine.
func TestServerKilledInFailover(t *testing.T) {
	for _, wait := range []time.Duration{0, 60, 150, 300, 700} {
		wait *= time.Millisecond
		t.Run(wait.String(), func(t *testing.T) { serverKilledAfter(t, wait) })
	}
}

func serverKilledAfter(t *testing.T, wait time.Duration) {
	w := newWorld(t, worldOptions{})
	w.protect()
	w.must(w.KillMachine(machine))
	acked := w.acknowledged()
	var j api.Job
	w.must(w.JSON(t.Context(), &j, "failover", machine, "--no-wait"))
	time.Sleep(wait)
	w.must(w.KillServer())
	w.must(w.StartServer(t.Context()))
	w.eventually("the failover has ended", func() bool {
		w.must(w.JSON(t.Context(), &j, "job", "show", j.ID))
		return j.Ended()
	})
	if j.State != api.JobSucceeded {
		t.Fatalf("the failover ended %s: %+v", j.State, j.Error)
	}
	serial, err := w.RecoveredSerial()
	w.must(err)
	m := w.waitSerial(serial, `VERIFY .*last=(\d+)`)
	if got := atoi(t, m[1]); got < acked {
		t.Errorf("recovered up to record %d, acknowledged %d", got, acked)
	}
	n, err := w.RecoveredProcesses()
	w.must(err)
	if n != 1 {
		t.Errorf("%d recovered machines run, want 1", n)
	}
	w.checkVault()
}

// TestSizeDoesNotMatter measures the time from the failover's request to the
// guest's first instruction with a small and with a huge disk.
func TestSizeDoesNotMatter(t *testing.T) {
	var times []time.Duration
	for _, gb := range []int{1, 200} {
		w := newWorld(t, worldOptions{sparseGB: gb})
		w.protect()
		w.must(w.KillMachine(machine))
		began := time.Now()
		w.cli("failover", machine)
		it := w.item()
		serial, err := w.RecoveredSerial()
		w.must(err)
		w.waitSerial(serial, `GUEST-UP`)
		up := time.Since(began)
		t.Logf("%4d GiB: request to running %.2f s, to the guest's init %.2f s", gb, *it.Recovery.RTOSeconds, up.Seconds())
		times = append(times, time.Duration(*it.Recovery.RTOSeconds*float64(time.Second)))
		w.must(w.StopServer())
		w.must(w.StopAll())
	}
	if times[1] > 3*times[0]+2*time.Second {
		t.Errorf("a disk of 200 GiB takes %s to fail over, one of 1 GiB %s", times[1], times[0])
	}
}

// TestFileSystemOfEveryMoment takes random positions of one recorded stream: at
// each the file system must be clean after journal replay, and the records a
// gapless prefix.
func TestFileSystemOfEveryMoment(t *testing.T) {
	w := newWorld(t, worldOptions{})
	w.protect()
	time.Sleep(8 * time.Second)
	w.must(w.KillMachine(machine))
	acked := w.acknowledged()
	it := w.item()
	s := w.stream(it)
	tl := holdfast.TimelineID(it.Stream.Timeline)
	p := newPrefixes(t, s, tl, filepath.Join(w.Dir, "prefix.raw"))
	var last int64
	for i, pos := range p.random(200) {
		rep := p.check(t.Context(), pos)
		if !rep.Clean || rep.Gaps > 0 || rep.Bad > 0 {
			t.Fatalf("position %s (%d of 200): clean %t, gaps %d, bad %d: %s", pos, i, rep.Clean, rep.Gaps, rep.Bad, rep.Detail)
		}
		if int64(rep.Last) < last {
			t.Fatalf("position %s has records up to %d, an earlier one up to %d", pos, rep.Last, last)
		}
		last = int64(rep.Last)
	}
	t.Logf("200 positions of %d checked; records up to %d, %d were acknowledged", p.count(), last, acked)
	w.checkVault()
}

func atoi(t *testing.T, s string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
