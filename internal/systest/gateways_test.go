package systest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/systest/lab"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// TestGroupAtTwoGateways runs two guests, of which the first writes a number to its
// disk and only then tells it to the second, which does the same, and which replicate
// through different gateways. In no point of their group may the second have the
// higher number; a moment of the one compared with one of the other shows that it
// could. Holding both costs their guests next to nothing.
func TestGroupAtTwoGateways(t *testing.T) {
	port := freeTCP(t)
	w := newWorld(t, worldOptions{second: 2 << 20, cmdline: "nowriter exec=chain:-next:eth0,10.9.1.1/24,10.9.1.2",
		extra: nic("n0", fmt.Sprintf("listen=127.0.0.1:%d", port))})
	w.chained("mq", "nowriter exec=chain:-prev:eth0,10.9.1.2/24", nic("n0", fmt.Sprintf("connect=127.0.0.1:%d", port)))
	w.waitSerial(w.SerialPath(w.Primary, machine), `CHAIN \d+`)
	dir := filepath.Join(w.Dir, "gw2")
	second := exec.Command(w.Binary, "gateway", "--dir", dir)
	second.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	w.must(second.Start())
	t.Cleanup(func() {
		_ = second.Process.Signal(syscall.SIGTERM) // it may be gone
		_ = second.Wait()
	})
	w.cli("site", "add", "annex", "--provider", "qemu", "--set", "directory="+w.Primary, "--gateway", "unix:"+filepath.Join(dir, "gateway.sock"))
	w.cli("protect", machine, "--site", "primary", "--to", "recovery", "--point-interval", "1s")
	w.cli("protect", "mq", "--site", "annex", "--to", "recovery")
	names := []string{machine, "mq"}
	w.cli("group", "add", "town", names[0], names[1])
	var g api.Group
	w.eventually("the group has points", func() bool {
		w.must(w.JSON(t.Context(), &g, "group", "show", "town"))
		return len(g.Points) >= 25
	})
	w.cli("group", "point", "town", "--name", "noon")
	w.eventually("the point is one of the group", func() bool {
		w.must(w.JSON(t.Context(), &g, "group", "show", "town"))
		return g.Newest != nil && slices.ContainsFunc(g.Points, func(p api.GroupPoint) bool { return p.Name == "noon" })
	})
	t.Log(w.cli("group", "show", "town"))

	numbers := map[string]map[string]uint64{} // by point of the group and item
	streams := map[string]*vault.Stream{}
	for _, name := range names {
		var it api.Item
		w.must(w.JSON(t.Context(), &it, "item", "show", name))
		s, err := lab.OpenStream(t.Context(), w.Vault, filepath.Join(w.State, "vault.key"), it.Stream.ID)
		w.must(err)
		streams[name] = s
		w.must(s.Refresh(t.Context()))
		for _, p := range s.Points(1) {
			if p.Group == "" {
				continue
			}
			if numbers[p.Group] == nil {
				numbers[p.Group] = map[string]uint64{}
			}
			numbers[p.Group][name] = w.numberAt(s, api.Point{Timeline: 1, Position: p.Position.String()})
		}
	}
	looked, same, ahead := 0, 0, 0
	last := uint64(0)
	for i := len(g.Points) - 1; i >= 0; i-- {
		n, m := numbers[g.Points[i].ID][names[0]], numbers[g.Points[i].ID][names[1]]
		if looked++; m > n {
			t.Errorf("at %s the first guest has %d, and the second, which it told, %d", g.Points[i].Time, n, m)
		}
		if n == m {
			same++
		}
		if last > 0 && m > last {
			ahead++ // of the first guest a second before
		}
		last = n
	}
	t.Logf("%d points at two gateways, in %d both guests had the same number, in %d the second was ahead of the first one point before", looked, same, ahead)
	if looked < 25 || ahead < looked/2 {
		t.Errorf("this shows nothing: %d points, %d ahead of the one before", looked, ahead)
	}
	began := time.Now()
	w.losesSite(names)
	file := filepath.Join(w.Dir, "town.yaml")
	w.must(os.WriteFile(file, []byte("name: town\ngroups: [{name: all, machines: [shop, mq]}]\n"), 0o600))
	w.cli("plan", "apply", file)
	run := w.runs("unplanned")
	var at []uint64
	for _, m := range run.Machines {
		if m.Point == nil || m.Point.Time.After(began) {
			t.Fatalf("machine %s was brought to %+v", m.Item, m.Point)
		}
		at = append(at, w.numberAt(streams[m.Item], *m.Point))
	}
	t.Logf("after the loss of the site the guests have %v", at)
	if at[0] == 0 || at[1] > at[0] {
		t.Errorf("after the loss of the site the guests have %v", at)
	}
	w.checkVault()
}
