package systest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/provider/qemu"
	"github.com/holdfast-dr/holdfast/internal/systest/guest"
)

// TestMachineRestarted switches a protected machine off and on again: that is
// shown as such, and afterwards only what changed goes to the vault, although
// QEMU has lost its account of changes.
func TestMachineRestarted(t *testing.T) {
	w := newWorld(t, worldOptions{})
	w.protect()
	time.Sleep(time.Second)
	before := w.item()
	w.must(qemu.StopMachine(t.Context(), w.Primary, machine))
	w.eventually("the machine is shown as off", func() bool {
		for _, f := range w.item().Health.Findings {
			if f.Summary != "" && f.Severity != "critical" && w.item().Replication.Mode == "paused" {
				return true
			}
		}
		return false
	})
	sentBefore := w.item().Replication.SentBytes
	acked := w.acknowledged()
	w.must(w.StartMachine(t.Context(), machine))
	w.eventually("the guest writes again", func() bool { return w.acknowledged() > acked+20 })
	w.eventually("replication is continuous again", func() bool {
		r := w.item().Replication
		return r != nil && r.Mode == "continuous" && r.RPOSeconds != nil && *r.RPOSeconds < 2
	})
	w.pause()
	after := w.drained()
	changed := w.changed(before, after)
	sent := after.Replication.SentBytes - sentBefore
	t.Logf("changed over the restart: %d bytes in %d extents; stored: %d bytes", changed.Bytes(), changed.Len(), sent)
	if limit := 2*changed.Bytes() + int64(changed.Len())*granule + 256<<10; sent > limit {
		t.Errorf("after the restart %d bytes went to the vault; what changed is %d", sent, changed.Bytes())
	}
	w.equalToSource(after)
	w.checkVault()
}

// TestKeysRotated gives the vault new keys while the server is stopped: replication
// goes on with them, the old one opens nothing, and the words of the recovery key
// alone open what is there.
func TestKeysRotated(t *testing.T) {
	w := newWorld(t, worldOptions{})
	w.protect()
	w.must(w.StopServer())
	key, fresh := filepath.Join(w.State, "vault.key"), filepath.Join(w.State, "new.key")
	said := w.cli("vault", "rotate-key", "--vault", w.Vault, "--vault-key", key, "--new-key", fresh)
	w.fails(1, []string{"key"}, "vault", "open", "--vault", w.Vault, "--vault-key", key)
	w.must(os.Rename(fresh, key))
	w.must(w.StartServer(t.Context()))
	w.goesOn()
	w.must(w.KillMachine(machine))
	acked := w.acknowledged()
	w.result("failover", machine)
	w.verifiesSince(w.newestRecovered(), acked)
	w.checkVault()

	var words []string
	for _, line := range strings.Split(said, "\n") {
		if strings.HasPrefix(line, "    ") {
			words = append(words, line)
		}
	}
	cmd := exec.CommandContext(t.Context(), w.Binary, "vault", "export", machine, "--vault", w.Vault, "--recovery-key", "--timeline", "1", "--output", filepath.Join(w.Dir, "saved.raw"))
	cmd.Stdin = strings.NewReader(strings.Join(words, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("with the recovery key %q: %v\n%s", words, err, out)
	}
	rep, err := guest.Check(t.Context(), filepath.Join(w.Dir, "saved.raw"))
	if err != nil || !rep.OK() || int64(rep.Last) < acked {
		t.Errorf("the exported disk: %+v, %v; %d was acknowledged", rep, err, acked)
	}
}
