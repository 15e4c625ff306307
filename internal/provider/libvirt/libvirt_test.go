package libvirt_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/libvirt"
	"github.com/holdfast-dr/holdfast/internal/provider/libvirt/libvirttest"
	"github.com/holdfast-dr/holdfast/internal/systest/guest"
)

const domainXML = `<domain type='%[5]s'>
  <name>%[1]s</name>
  <uuid>%[2]s</uuid>
  <metadata><own:note xmlns:own="urn:example:own">keep me</own:note></metadata>
  <memory unit='MiB'>256</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <features><acpi/></features>
  <on_crash>restart</on_crash>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='%[4]s'/>
      <source file='%[3]s'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
    <controller type='sata' index='0'/>
    <serial type='file'><source path='%[3]s.serial'/><target port='0'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <video><model type='vga'/></video>
  </devices>
</domain>`

const sourceUUID = "0b5d6c0e-3f8a-4f3e-9a53-0123456789ab"

// newSite starts a libvirt and opens it as a site.
func newSite(t *testing.T) (*libvirttest.Daemon, *provider.Site) {
	t.Helper()
	d := libvirttest.Start(t, libvirt.Hook)
	return d, open(t, d)
}

func open(t *testing.T, d *libvirttest.Daemon) *provider.Site {
	t.Helper()
	settings, err := json.Marshal(libvirt.Settings{URI: d.URI(), Storage: filepath.Join(d.Dir, "storage")})
	if err != nil {
		t.Fatal(err)
	}
	s, err := libvirt.Open(t.Context(), settings)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// addDomain makes and starts a domain with one disk, in the given directory.
func addDomain(t *testing.T, d *libvirttest.Daemon, name, format string) string {
	t.Helper()
	disk := filepath.Join(d.Dir, name+"."+format)
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", format, disk, "16M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	define(t, d, name, sourceUUID, disk, format)
	return disk
}

// domainType is how domains are run here.
func domainType() string {
	if guest.Accel() == "kvm" {
		return "kvm"
	}
	return "qemu"
}

// define makes and starts a domain of a disk.
func define(t *testing.T, d *libvirttest.Daemon, name, uuid, disk, format string) {
	t.Helper()
	file := filepath.Join(d.Dir, name+".xml")
	if err := os.WriteFile(file, fmt.Appendf(nil, domainXML, name, uuid, disk, format, domainType()), 0o644); err != nil {
		t.Fatal(err)
	}
	d.Virsh(t, "define", file)
	d.Virsh(t, "start", name)
}

func TestInventoryAndMonitor(t *testing.T) {
	d, s := newSite(t)
	disk := addDomain(t, d, "web", "qcow2")
	m, err := s.Inventory.Machine(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	if m.ID != sourceUUID || m.Power != provider.PowerRunning || m.Memory != 256<<20 || len(m.Obstacles) > 0 {
		t.Errorf("machine is %+v", m)
	}
	if len(m.Disks) != 1 || m.Disks[0].ID != "vda" || m.Disks[0].Size != 16<<20 || m.Disks[0].Path != disk || m.Disks[0].Format != "qcow2" {
		t.Errorf("disks are %+v", m.Disks)
	}
	if _, err := s.Inventory.Machine(t.Context(), "nobody"); !errors.Is(err, provider.ErrNotFound) {
		t.Errorf("unknown machine: %v", err)
	}
	mon, err := s.Source.Monitor(t.Context(), m.ID)
	if err != nil {
		t.Fatal(err)
	}
	var v struct{ Qemu struct{ Major int } }
	if err := mon.Execute(t.Context(), "query-version", nil, &v); err != nil || v.Qemu.Major < 7 {
		t.Errorf("query-version: %+v, %v", v, err)
	}
	var me *provider.MonitorError
	if err := mon.Execute(t.Context(), "blockdev-del", map[string]any{"node-name": "none"}, nil); !errors.As(err, &me) {
		t.Errorf("a refused command: %v, want a MonitorError", err)
	}
	if err := s.Source.Kill(t.Context(), m.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Source.Monitor(t.Context(), m.ID); !errors.Is(err, provider.ErrNotRunning) {
		t.Errorf("monitor of a machine that is off: %v", err)
	}
}

// serveView serves an image over NBD, as a view is served.
func serveView(t *testing.T, dir string) provider.DiskSource {
	t.Helper()
	raw, sock := filepath.Join(dir, "view.raw"), filepath.Join(dir, "view.sock")
	data := []byte(strings.Repeat("what the vault has. ", 100_000))
	if err := os.WriteFile(raw, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(raw, 16<<20); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("qemu-nbd", "-r", "-t", "-e", "8", "-f", "raw", "-k", sock, "-x", "view", raw)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for range 100 {
		if _, err := os.Stat(sock); err == nil {
			break
		}
		if err := exec.Command("sleep", "0.05").Run(); err != nil {
			t.Fatal(err)
		}
	}
	return provider.DiskSource{DiskID: "vda", Size: 16 << 20, Socket: sock, Export: "view"}
}

func TestRecoverHydrateRemove(t *testing.T) {
	from, src := newSite(t)
	addDomain(t, from, "web", "qcow2")
	m, err := src.Inventory.Machine(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	to, site := newSite(t)
	r := provider.Recovered{Handle: "rec-1", Name: "web", Machine: m, Disks: []provider.DiskSource{serveView(t, to.Dir)}}
	target := site.Target
	id, err := target.Define(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := target.Define(t.Context(), r); err != nil || again != id {
		t.Fatalf("define again: %q, %v; want %q", again, err, id)
	}
	other := r
	other.Handle = "rec-2"
	if _, err := target.Define(t.Context(), other); !errors.Is(err, provider.ErrNameTaken) {
		t.Errorf("another recovery of that name: %v, want ErrNameTaken", err)
	}
	if xml := to.Virsh(t, "dumpxml", "web"); !strings.Contains(xml, "keep me") || !strings.Contains(xml, "<on_crash>restart") {
		t.Errorf("the definition has lost what it does not know:\n%s", xml)
	}
	for range 2 {
		if err := target.Start(t.Context(), r.Handle); err != nil {
			t.Fatal(err)
		}
	}
	st, err := target.Status(t.Context(), r.Handle)
	if err != nil || st.Power != provider.PowerRunning || !st.NeedsView || st.MachineID != id {
		t.Fatalf("status is %+v, %v", st, err)
	}
	if err := target.Hydrate(t.Context(), r.Handle, nil); err != nil {
		t.Fatal(err)
	}
	if err := target.Hydrate(t.Context(), r.Handle, nil); err != nil {
		t.Fatalf("hydrate again: %v", err)
	}
	if st, err = target.Status(t.Context(), r.Handle); err != nil || st.NeedsView || st.Hydrated != st.Total {
		t.Fatalf("status after hydration is %+v, %v", st, err)
	}
	local := filepath.Join(to.Dir, "storage", "rec-1", "vda.qcow2")
	if out, err := exec.Command("qemu-img", "compare", "-U", "-f", "qcow2", "-F", "raw", local, filepath.Join(to.Dir, "view.raw")).CombinedOutput(); err != nil {
		t.Errorf("the hydrated disk differs from the view: %v: %s", err, out)
	}
	for range 2 {
		if err := target.Remove(t.Context(), r.Handle); err != nil {
			t.Fatal(err)
		}
	}
	if out := to.Virsh(t, "list", "--all", "--name"); strings.TrimSpace(out) != "" {
		t.Errorf("domains are left: %s", out)
	}
	if _, err := os.Stat(filepath.Join(to.Dir, "storage", "rec-1")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the storage is not empty: %v", err)
	}
}
