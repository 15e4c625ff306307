package systest

import (
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/provider/qemu"
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
