package systest

import (
	"context"
	le "encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/systest/guest"
	"github.com/holdfast-dr/holdfast/internal/systest/lab"
	"github.com/holdfast-dr/holdfast/internal/vault"

	holdfast "github.com/holdfast-dr/holdfast"
)

// moments is how many random moments are looked at.
const moments = 200

// TestGroupIsOneMoment runs three guests of which each writes a number to its disk
// and only then tells it to the next, over a network. At 200 random moments of the
// past none may have a higher number than the one before it. Meanwhile the ingest
// process is killed, and a machine joins the group while it replicates.
func TestGroupIsOneMoment(t *testing.T) {
	ports := []int{freeTCP(t), freeTCP(t)}
	w := newWorld(t, worldOptions{second: 2 << 20, cmdline: "nowriter exec=chain:-next:eth0,10.9.1.1/24,10.9.1.2",
		extra: nic("n0", fmt.Sprintf("listen=127.0.0.1:%d", ports[0]))})
	w.chained("mq", "nowriter exec=chain:-prev:eth0,10.9.1.2/24:-next:eth1,10.9.2.1/24,10.9.2.2",
		append(nic("n0", fmt.Sprintf("connect=127.0.0.1:%d", ports[0])), nic("n1", fmt.Sprintf("listen=127.0.0.1:%d", ports[1]))...))
	w.chained("web", "nowriter exec=chain:-prev:eth0,10.9.2.2/24", nic("n0", fmt.Sprintf("connect=127.0.0.1:%d", ports[1])))
	names := []string{machine, "mq", "web"}
	w.waitSerial(w.SerialPath(w.Primary, machine), `CHAIN \d+`)
	for _, name := range names {
		w.cli("protect", name, "--site", "primary", "--to", "recovery")
	}
	w.cli("group", "add", "town", names[0], names[1])
	file := filepath.Join(w.Dir, "town.yaml")
	w.must(os.WriteFile(file, []byte("name: town\ngroups: [{name: all, machines: [shop, mq, web]}]\n"), 0o600))
	w.cli("plan", "apply", file)
	began := time.Now()
	time.Sleep(8 * time.Second)
	w.cli("group", "add", "town", names[2]) // while it replicates
	pid, err := w.IngestPID()
	w.must(err)
	w.must(syscall.Kill(pid, syscall.SIGKILL))
	time.Sleep(4 * time.Second)
	w.cli("group", "point", "town", "--name", "noon")
	w.eventually("the group has a common moment after the kill", func() bool {
		var g api.Group
		w.must(w.JSON(w.t.Context(), &g, "group", "show", "town"))
		return g.Newest != nil && g.Newest.After(began.Add(14*time.Second)) && len(g.Points) == 1
	})
	time.Sleep(3 * time.Second)
	t.Log(w.cli("group", "show", "town"))

	streams := map[string]*vault.Stream{}
	for _, name := range names {
		var it api.Item
		w.must(w.JSON(t.Context(), &it, "item", "show", name))
		s, err := lab.OpenStream(t.Context(), w.Vault, filepath.Join(w.State, "vault.key"), it.Stream.ID)
		w.must(err)
		streams[it.ID] = s
	}
	span := time.Since(began)
	seen := map[uint64]bool{}
	var late, same, ahead int
	for range moments {
		at := began.Add(300*time.Millisecond + rand.N(span)).UTC()
		var check api.PlanCheck
		if err := w.JSON(t.Context(), &check, "plan", "check", "town", "--as", "unplanned", "--time", at.Format(time.RFC3339Nano)); err != nil {
			t.Fatalf("at %s: %v", at, err)
		}
		var numbers []uint64
		for _, m := range check.Machines {
			if m.Point == nil || m.Point.Time.After(at) {
				t.Fatalf("at %s machine %s has point %+v: %s", at, m.Item, m.Point, m.Reason)
			}
			numbers = append(numbers, w.numberAt(streams[m.ID], *m.Point))
		}
		if numbers[1] > numbers[0] || numbers[2] > numbers[1] {
			t.Errorf("at %s the guests have %v: one is ahead of who told it; points %+v", at, numbers, check.Machines)
		}
		if numbers[0] == numbers[2] {
			same++
		}
		if before := w.pointAt(at.Add(-200 * time.Millisecond)); numbers[1] > w.numberAt(streams[before.ID], *before.Point) {
			ahead++ // of what the first guest had a moment before: this test can fail
		}
		if at.Sub(check.Machines[0].Point.Time) > time.Second {
			late++
		}
		seen[numbers[0]] = true
	}
	t.Logf("%d moments of %s: %d different numbers, in %d all guests had the same, %d were more than 1 s earlier than asked for", moments, span.Round(time.Second), len(seen), same, late)
	if len(seen) < moments/2 || ahead < moments/2 {
		t.Errorf("the guests counted too slowly for this to show anything: %d numbers, %d ahead of a moment before", len(seen), ahead)
	}
	w.losesSite(names)
	run := w.runs("unplanned")
	var numbers []uint64
	for _, m := range run.Machines {
		numbers = append(numbers, w.numberAt(streams[m.ID], *m.Point))
	}
	t.Logf("after the loss of the site the guests have %v", numbers)
	if numbers[0] == 0 || numbers[1] > numbers[0] || numbers[2] > numbers[1] {
		t.Errorf("after the loss of the site the guests have %v: one is ahead of who told it", numbers)
	}
	w.checkVault()
}

// losesSite kills the gateway and the guests, in any order and as quickly as that
// goes.
func (w *world) losesSite(names []string) {
	w.t.Helper()
	pids, err := w.GatewayPIDs()
	w.must(err)
	kills := []func(){func() {
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // the ingest process ends with the other
		}
	}}
	for _, name := range names {
		kills = append(kills, func() { w.must(w.KillMachine(name)) })
	}
	rand.Shuffle(len(kills), func(i, j int) { kills[i], kills[j] = kills[j], kills[i] })
	for _, kill := range kills {
		kill()
	}
}

func nic(id, socket string) []string {
	return []string{"-netdev", "socket,id=" + id + "," + socket, "-device", "virtio-net-pci,romfile=,netdev=" + id}
}

func freeTCP(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// chained builds and starts a guest with a second disk.
func (w *world) chained(name, cmdline string, extra []string) {
	w.t.Helper()
	disk, second := filepath.Join(w.Primary, name+".qcow2"), filepath.Join(w.Primary, name+".raw")
	w.must(guest.Build(w.t.Context(), guest.Options{Path: disk, SizeMB: 256, Format: "qcow2", Cmdline: cmdline}))
	w.must(os.WriteFile(second, nil, 0o644))
	w.must(os.Truncate(second, 2<<20))
	w.must(w.AddMachine(lab.Machine{Name: name, Disk: disk, Format: "qcow2", Second: second, Extra: extra}))
	w.must(w.StartMachine(w.t.Context(), name))
}

// pointAt returns what the plan would bring its first machine to at a time.
func (w *world) pointAt(at time.Time) api.PlanMachine {
	w.t.Helper()
	var check api.PlanCheck
	w.must(w.JSON(w.t.Context(), &check, "plan", "check", "town", "--as", "unplanned", "--time", at.Format(time.RFC3339Nano)))
	if check.Machines[0].Point == nil {
		w.t.Fatalf("at %s: %+v", at, check)
	}
	return check.Machines[0]
}

// numberAt reads the number that a guest has on its disk at a point.
func (w *world) numberAt(s *vault.Stream, p api.Point) uint64 {
	w.t.Helper()
	ctx := context.Background()
	w.must(s.Refresh(ctx))
	pos, err := holdfast.ParsePosition(p.Position)
	w.must(err)
	v, err := s.View(ctx, holdfast.TimelineID(p.Timeline), pos)
	w.must(err)
	d, err := v.Disk("vdb")
	w.must(err)
	var b [8]byte
	w.must(d.ReadAt(ctx, b[:], 0))
	return le.LittleEndian.Uint64(b[:])
}
