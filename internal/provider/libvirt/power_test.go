package libvirt_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/libvirt/libvirttest"
)

// TestGuardAgainstVirsh starts a guarded domain by libvirt's own means: the hook
// refuses, also after the domain's definition was edited, and libvirt's restart
// does not start it.
func TestGuardAgainstVirsh(t *testing.T) {
	d, s := newSite(t)
	addDomain(t, d, "web", "raw")
	d.Virsh(t, "autostart", "web")
	const reason = `Holdfast: item "web" works at site <b> & co`
	if err := s.Power.Guard(t.Context(), sourceUUID, reason); err != nil {
		t.Fatal(err)
	}
	if err := s.Source.Kill(t.Context(), sourceUUID); err != nil {
		t.Fatal(err)
	}
	refused := func() {
		t.Helper()
		for _, args := range [][]string{{"start", "web"}, {"start", "--paused", "web"}} {
			if out, err := d.TryVirsh(args...); err == nil || !strings.Contains(out, "hook") {
				t.Errorf("virsh %s: %v: %s", strings.Join(args, " "), err, out)
			}
		}
		if m, err := s.Inventory.Machine(t.Context(), "web"); err != nil || m.Power != provider.PowerOff {
			t.Errorf("the guarded machine is %s, %v", m.Power, err)
		}
	}
	refused()
	if xml := d.Virsh(t, "dumpxml", "web"); !strings.Contains(xml, "keep me") || !strings.Contains(xml, "works at site") {
		t.Errorf("the metadata is not as it should be:\n%s", xml)
	}
	d.Virsh(t, "desc", "web", "--config", "edited by hand")
	refused()
	if out := d.Virsh(t, "list", "--all", "--autostart", "--name"); strings.TrimSpace(out) != "" {
		t.Errorf("libvirt would start %s with the host", out)
	}
	if err := s.Power.Guard(t.Context(), sourceUUID, "another reason"); err != nil {
		t.Fatal(err)
	}
	if err := s.Power.Unguard(t.Context(), sourceUUID); err != nil {
		t.Fatal(err)
	}
	if out := d.Virsh(t, "list", "--all", "--autostart", "--name"); strings.TrimSpace(out) != "web" {
		t.Errorf("autostart is not what it was before the guard: %q", out)
	}
	if xml := d.Virsh(t, "dumpxml", "web"); !strings.Contains(xml, "keep me") || strings.Contains(xml, "xmlns/guard") {
		t.Errorf("the metadata is not as before:\n%s", xml)
	}
	d.Virsh(t, "start", "web")
}

// TestGuardWithoutHook guards where libvirt has no hook: Holdfast's own start
// refuses all the same.
func TestGuardWithoutHook(t *testing.T) {
	d := libvirttest.Start(t)
	s := open(t, d)
	addDomain(t, d, "web", "raw")
	if err := errors.Join(s.Power.Guard(t.Context(), sourceUUID, "why"), s.Source.Kill(t.Context(), sourceUUID)); err != nil {
		t.Fatal(err)
	}
	if err := s.Power.Start(t.Context(), sourceUUID); !errors.Is(err, provider.ErrGuarded) {
		t.Errorf("start: %v", err)
	}
}

// TestGuardTransient refuses to guard a domain that libvirt would forget.
func TestGuardTransient(t *testing.T) {
	d, s := newSite(t)
	addDomain(t, d, "web", "raw")
	d.Virsh(t, "undefine", "web") // it runs on, and is transient now
	if err := s.Power.Guard(t.Context(), sourceUUID, "why"); err == nil || !strings.Contains(err.Error(), "transient") {
		t.Errorf("guard of a transient domain: %v", err)
	}
	if reason, err := s.Power.Guarded(t.Context(), sourceUUID); err != nil || reason != "" {
		t.Errorf("guarded: %q, %v", reason, err)
	}
}
