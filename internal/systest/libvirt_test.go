package systest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/provider/libvirt/libvirttest"
	"github.com/holdfast-dr/holdfast/internal/systest/guest"
	"github.com/holdfast-dr/holdfast/internal/systest/lab"
)

// libvirtGuest is a domain with a serial console in a file. Its parts are the
// type of the domain, its disk and its console.
const libvirtGuest = `<domain type='%s'>
  <name>` + machine + `</name>
  <memory unit='MiB'>256</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='%s'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <serial type='file'><source path='%s'/><target port='0'/></serial>
  </devices>
</domain>`

// TestMainJobOnLibvirt plays the main job with domains of two libvirts: protect
// a running domain, kill its QEMU, recover it at the other, hydrate it.
func TestMainJobOnLibvirt(t *testing.T) {
	if binary == "" {
		t.Skip("HOLDFAST_SYSTEST is not 1: whole-system tests take minutes; make test runs them")
	}
	if err := guest.Supported(); err != nil {
		t.Skip(err)
	}
	from, to := libvirttest.Start(t), libvirttest.Start(t)
	dir, err := os.MkdirTemp("", "hf-")
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	l, err := lab.New(lab.Options{Dir: dir, Binary: binary, Log: &syncWriter{w: &log}})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{Lab: l, t: t, format: "qcow2", disk: filepath.Join(from.Dir, machine+".qcow2")}
	t.Cleanup(func() { w.close(&log) })
	serial := filepath.Join(from.Dir, "serial.log")
	w.must(guest.Build(t.Context(), guest.Options{Path: w.disk, SizeMB: 256, Format: "qcow2"}))
	kind := "qemu"
	if guest.Accel() == "kvm" {
		kind = "kvm"
	}
	xml := filepath.Join(from.Dir, "guest.xml")
	w.must(os.WriteFile(xml, fmt.Appendf(nil, libvirtGuest, kind, w.disk, serial), 0o644))
	from.Virsh(t, "define", xml)
	from.Virsh(t, "start", machine)
	w.must(l.StartServer(t.Context()))
	for name, d := range map[string]*libvirttest.Daemon{"primary": from, "recovery": to} {
		w.cli("site", "add", name, "--provider", "libvirt", "--set", "uri="+d.URI(), "--set", "storage="+filepath.Join(d.Dir, "storage"))
	}
	w.waitSerial(serial, `ACK \d+`)
	w.protect()
	time.Sleep(3 * time.Second)
	if out := from.Virsh(t, "domblklist", machine); !strings.Contains(out, w.disk) {
		t.Errorf("libvirt does not see the disk any more:\n%s", out)
	}
	w.killDomain(from)
	acked, err := lab.Acknowledged(serial)
	w.must(err)
	w.cli("failover", machine)
	recovered, err := filepath.Glob(filepath.Join(to.Dir, "storage", "*", "serial.log"))
	w.must(err)
	if len(recovered) != 1 {
		t.Fatalf("recovered consoles are %v, want one", recovered)
	}
	m := w.waitSerial(recovered[0], `VERIFY .*last=(\d+) count=\d+ gaps=0 bad=0`)
	if got := atoi(t, m[1]); got < acked {
		t.Errorf("recovered up to record %d, acknowledged %d", got, acked)
	}
	w.eventually("nothing depends on the vault any more", func() bool {
		r := w.item().Recovery
		return r != nil && !r.NeedsView && r.Power == "running"
	})
	t.Logf("%d records acknowledged, %s recovered; RTO %.2f s", acked, m[1], *w.item().Recovery.RTOSeconds)
	w.checkVault()
}

// killDomain kills a domain's QEMU with SIGKILL, as when its host is lost.
func (w *world) killDomain(d *libvirttest.Daemon) {
	w.t.Helper()
	pids := d.QEMUs()
	if len(pids) != 1 {
		w.t.Fatalf("libvirt runs QEMU processes %v, want one", pids)
	}
	w.must(syscall.Kill(pids[0], syscall.SIGKILL))
}
