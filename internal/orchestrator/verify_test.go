package orchestrator_test

import (
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/orchestrator"
)

// TestScrub has the vault verified in the background: damage is a finding of the
// machine whose data it is and of the vault, also after a restart, until it is gone.
func TestScrub(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.kill()
	r.scrub = orchestrator.Scrub{Every: 30 * time.Millisecond, Rate: 64 << 20}
	r.start(nil)
	r.protect()
	found := func(f []api.Finding) bool {
		for _, f := range f {
			if f.Code == "HF1203" && strings.Contains(f.Cause, ".seg") {
				return true
			}
		}
		return false
	}
	state := func() (damaged bool, verified bool) {
		v, err := r.GetVault(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		inItem := found(r.item().Health.Findings)
		if inVault := found(v.Health.Findings); inVault != (v.Health.Level == api.HealthCritical) {
			t.Errorf("the vault is %s with %+v", v.Health.Level, v.Health.Findings)
		} else if inVault != inItem {
			return false, false // one of them will follow
		}
		return inItem, v.LastVerify != nil && v.LastVerify.Segments > 0
	}
	r.eventually("the vault is verified", func() bool { bad, ok := state(); return ok && !bad })
	entries, err := r.store.List(t.Context(), "streams/", "")
	if err != nil {
		t.Fatal(err)
	}
	var name string
	for _, e := range entries {
		if strings.HasSuffix(e.Name, ".seg") {
			name = e.Name
		}
	}
	whole, _, err := r.store.Get(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	bad := append([]byte(nil), whole...)
	bad[len(bad)/2] ^= 4
	put := func(b []byte) {
		t.Helper()
		if err := r.store.Put(t.Context(), name, b); err != nil {
			t.Fatal(err)
		}
	}
	put(bad)
	r.eventually("damage is a finding", func() bool { bad, _ := state(); return bad })
	r.kill()
	r.scrub.Every = time.Hour
	r.start(nil)
	r.eventually("it is known after a restart", func() bool { bad, _ := state(); return bad })
	put(whole)
	r.done(r.VerifyVault(t.Context(), api.VerifyVault{Stream: r.item().Stream.ID}))
	r.eventually("it is gone", func() bool { bad, ok := state(); return ok && !bad })
}
