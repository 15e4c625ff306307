package orchestrator_test

import (
	"testing"

	"github.com/holdfast-dr/holdfast/api"
)

// TestCompareItem compares an item's disks by a job, and
// refuses where nothing is replicated.
func TestCompareItem(t *testing.T) {
	t.Parallel()
	inBubble(t, "compare", func(t *testing.T) {
		r := newRig(t)
		r.write(0, 1)
		r.protect()
		r.done(r.CompareItem(t.Context(), machine, api.CompareItem{}))
		if c := r.item().Replication.Comparison; c == nil || c.Rounds != 1 {
			t.Errorf("the comparison is %+v", c)
		}
		if _, err := r.CompareItem(t.Context(), "nobody", api.CompareItem{}); err == nil {
			t.Error("disks of nobody can be compared")
		}
		failover(r)
		if _, err := r.CompareItem(t.Context(), machine, api.CompareItem{}); err == nil {
			t.Error("disks of what does not replicate can be compared")
		}
	})
}
