package libvirt_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/libvirt/libvirttest"
	"github.com/holdfast-dr/holdfast/internal/provider/providertest"
	"github.com/holdfast-dr/holdfast/internal/systest/guest"
)

// TestConformance runs what every provider must pass.
func TestConformance(t *testing.T) {
	d, s := newSite(t)
	addDomain(t, d, "web", "qcow2")
	m, err := s.Inventory.Machine(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	victims := 0
	victim := func(t *testing.T) string {
		victims++
		name, uuid := fmt.Sprintf("victim%02d", victims), fmt.Sprintf("1b5d6c0e-3f8a-4f3e-9a53-%012d", victims)
		disk := filepath.Join(d.Dir, name+".qcow2")
		if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", disk, "16M").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		define(t, d, name, uuid, disk, "qcow2")
		return uuid
	}
	providertest.Run(t, providertest.Harness{
		Open:    func(t *testing.T) *provider.Site { return open(t, d) },
		Running: "web", Machine: &m, Victim: victim, DiskSize: 16 << 20,
		WithAgent: func(t *testing.T) string { return withAgent(t, d, s) },
		Leftovers: func(t *testing.T) []string { return leftovers(t, d) },
	})
}

// withAgent starts a test guest and waits until its agent answers.
func withAgent(t *testing.T, d *libvirttest.Daemon, s *provider.Site) string {
	if testing.Short() {
		t.Skip("boots a guest")
	}
	if err := guest.Supported(); err != nil {
		t.Skip(err)
	}
	const uuid = "2b5d6c0e-3f8a-4f3e-9a53-0123456789ab"
	disk := filepath.Join(d.Dir, "live.qcow2")
	if err := guest.Build(t.Context(), guest.Options{Path: disk, SizeMB: 128, Format: guest.FormatQCOW2, Cmdline: "rate=50"}); err != nil {
		t.Fatal(err)
	}
	define(t, d, "live", uuid, disk, "qcow2")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for {
		err := s.Agent.Ping(ctx, uuid)
		if err == nil {
			return uuid
		}
		if ctx.Err() != nil {
			t.Fatalf("no agent: %v", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// leftovers are the domains and the files in the site's storage.
func leftovers(t *testing.T, d *libvirttest.Daemon) []string {
	out := strings.Fields(d.Virsh(t, "list", "--all", "--name"))
	err := filepath.WalkDir(filepath.Join(d.Dir, "storage"), func(path string, _ os.DirEntry, err error) error {
		out = append(out, path)
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
	return out
}
