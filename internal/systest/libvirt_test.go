package systest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/provider/libvirt"
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
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <video><model type='vga'/></video>
  </devices>
</domain>`

// TestMainJobOnLibvirt plays the main job with domains of two libvirts: protect
// a running domain, kill its QEMU, recover it at the other, hydrate it. Then it
// goes home: commit, reprotect, failback to the original disks, and round again.
func TestMainJobOnLibvirt(t *testing.T) {
	if binary == "" {
		t.Skip("HOLDFAST_SYSTEST is not 1: whole-system tests take minutes; make test runs them")
	}
	if err := guest.Supported(); err != nil {
		t.Skip(err)
	}
	from, to := libvirttest.Start(t, libvirt.Hook), libvirttest.Start(t, libvirt.Hook)
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
	w.testedOnLibvirt(to)
	w.cli("point", "create", machine, "--app-consistent")
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
	if out, err := from.TryVirsh("start", machine); err == nil || !strings.Contains(out, "guarded") && !strings.Contains(out, "hook") {
		t.Errorf("the source can be started beside its copy: %v: %s", err, out)
	}
	w.homeOnLibvirt(from, recovered[0], serial)
	w.checkVault()
}

// testedOnLibvirt runs a test failover whose guest agent must answer, with a
// picture, and cleans up.
func (w *world) testedOnLibvirt(to *libvirttest.Daemon) {
	w.t.Helper()
	var job api.Job
	w.must(w.JSON(w.t.Context(), &job, "test-failover", "start", machine, "--agent", "--serial", "GUEST-READY", "--screenshot"))
	name := job.Result.MachineName
	if xml := to.Virsh(w.t, "dumpxml", name); name == machine || strings.Contains(xml, "<interface") && !strings.Contains(xml, "<link state='down'") {
		w.t.Errorf("the test machine %s is not apart from the world:\n%s", name, xml)
	}
	png := filepath.Join(to.Dir, "console.png")
	w.cli("job", "screenshot", job.ID, "--output", png)
	if b, err := os.ReadFile(png); err != nil || !bytes.HasPrefix(b, []byte("\x89PNG")) {
		w.t.Errorf("the picture: %d bytes, %v", len(b), err)
	}
	w.cli("test-failover", "clean-up", machine)
	if out := to.Virsh(w.t, "list", "--all", "--name"); strings.TrimSpace(out) != "" {
		w.t.Errorf("clean-up has left %s", out)
	}
}

// homeOnLibvirt brings the recovered domain home to the original one, which must
// have all that was written meanwhile.
func (w *world) homeOnLibvirt(from *libvirttest.Daemon, recovered, home string) {
	w.t.Helper()
	w.cli("commit", machine)
	w.cli("reprotect", machine)
	there := w.ackedIn(recovered)
	w.eventually("the recovered guest writes on", func() bool { return w.ackedIn(recovered) > there+5 })
	there = w.ackedIn(recovered)
	var job api.Job
	w.must(w.JSON(w.t.Context(), &job, "failback", machine))
	if r := job.Result; r == nil || !r.Proved || r.MovedBytes == nil {
		w.t.Fatalf("the failback: %+v", job)
	} else {
		w.t.Logf("failback: %d bytes written at home, RPO %v s, RTO %.1f s", *r.MovedBytes, *r.RPOSeconds, *r.RTOSeconds)
	}
	w.verifiesSince(home, there)
	if state := strings.TrimSpace(from.Virsh(w.t, "domstate", machine)); state != "running" {
		w.t.Errorf("the original domain is %s", state)
	}
	w.cli("commit", machine)
	w.cli("reprotect", machine)
	if it := w.item(); it.State != "protected" || it.Direction != "forward" {
		w.t.Fatalf("after the second reprotect the item is %s, %s", it.State, it.Direction)
	}
	w.cli("failover", machine, "--planned")
	w.cli("undo-failover", machine)
	w.eventually("the item is protected again", func() bool { return w.item().State == "protected" })
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
