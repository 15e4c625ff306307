package orchestrator_test

import (
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/provider"
)

// TestReprotectWhilePaused asks for a reprotect at the moment at which the end of
// the hydration has the machine paused.
func TestReprotectWhilePaused(t *testing.T) {
	t.Parallel()
	inBubble(t, "bubble", func(t *testing.T) {
		r := bubbleRig(t)
		r.protect()
		failover(r)
		commit(r)
		_, m := r.active()
		r.recovery.SetPower(m.ID, provider.PowerPaused)
		j, err := r.Reprotect(t.Context(), machine, api.Reprotect{})
		time.Sleep(2 * time.Second)
		r.recovery.SetPower(m.ID, provider.PowerRunning)
		r.done(j, err)
		r.isIn("protected")
	})
}
