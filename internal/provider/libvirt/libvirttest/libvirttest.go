// Package libvirttest starts a libvirt of a test's own: a libvirtd in a mount
// namespace with empty state, so that several live on one machine and the
// user's own is not touched. Only tests import it.
package libvirttest

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Daemon is a running libvirtd.
type Daemon struct {
	Dir    string // the test's: socket, images
	Socket string
	cmd    *exec.Cmd
	log    bytes.Buffer
	exited chan struct{}
}

// script gives libvirtd state directories of its own and becomes it.
const script = `set -e
for d in /run/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt /etc/libvirt; do
	mkdir -p $d
	mount -t tmpfs -o mode=0755 holdfast-test $d
done
mkdir -p /var/lib/libvirt/qemu /var/lib/libvirt/images
cp "$1/qemu.conf" /etc/libvirt/qemu.conf
mkdir -p /etc/libvirt/hooks/qemu.d
if [ -e "$1/hook" ]; then install -m 755 "$1/hook" /etc/libvirt/hooks/qemu.d/holdfast; fi
exec libvirtd -f "$1/libvirtd.conf" -p "$1/libvirtd.pid"
`

const libvirtdConf = `unix_sock_dir = "%s"
auth_unix_rw = "none"
auth_unix_ro = "none"
listen_tls = 0
listen_tcp = 0
log_level = 3
log_outputs = "3:stderr"
`

// stdio_handler file does without virtlogd; the rest does without cgroups and
// security labels, which a container or a small virtual machine may lack.
const qemuConf = `user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
`

// Start starts a libvirtd and stops it, with its domains, when the test ends.
// The text of a hook for domains, if there is one, is installed. It skips the
// test where there is no libvirtd or no root.
func Start(t testing.TB, hook ...string) *Daemon {
	t.Helper()
	if _, err := exec.LookPath("libvirtd"); err != nil {
		t.Skip("libvirtd is not installed (Debian: libvirt-daemon-system)")
	}
	if os.Getuid() != 0 {
		t.Skip("a libvirtd of the test's own needs root")
	}
	dir, err := os.MkdirTemp("", "hf-lv-") // short: libvirt puts sockets below it
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{Dir: dir, Socket: filepath.Join(dir, "libvirt-sock"), exited: make(chan struct{})}
	t.Cleanup(func() { d.stop(t) })
	files := map[string]string{"libvirtd.conf": fmt.Sprintf(libvirtdConf, dir), "qemu.conf": qemuConf}
	for _, text := range hook {
		files["hook"] = text
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d.run(t)
	return d
}

func (d *Daemon) run(t testing.TB) {
	t.Helper()
	d.cmd = exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", d.Dir)
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = d.cmd.Wait()
		close(d.exited)
	}()
	for range 200 {
		if conn, err := net.Dial("unix", d.Socket); err == nil {
			_ = conn.Close()
			return
		}
		select {
		case <-d.exited:
			t.Skipf("libvirtd cannot run here: %s", d.log.String())
		case <-time.After(50 * time.Millisecond):
		}
	}
	t.Fatalf("libvirtd does not come up:\n%s", d.log.String())
}

// URI returns the URI for a site's settings.
func (d *Daemon) URI() string { return "qemu+unix:///system?socket=" + d.Socket }

// stop kills libvirtd and the QEMUs whose files are in its directory.
func (d *Daemon) stop(t testing.TB) {
	_ = d.cmd.Process.Kill()
	<-d.exited
	for range 50 {
		pids := d.QEMUs()
		if len(pids) == 0 {
			break
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if t.Failed() {
		t.Logf("libvirtd said:\n%s", d.log.String())
	}
	if err := os.RemoveAll(d.Dir); err != nil {
		t.Error(err)
	}
}

// QEMUs returns the QEMU processes of its domains.
func (d *Daemon) QEMUs() []int {
	var pids []int
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range dirs {
		b, err := os.ReadFile(filepath.Join(p, "cmdline"))
		if err != nil || !bytes.Contains(b, []byte(d.Dir+"/")) || !strings.Contains(string(b[:min(len(b), 64)]), "qemu-system") {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(p)); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Virsh runs virsh against the daemon.
func (d *Daemon) Virsh(t testing.TB, args ...string) string {
	t.Helper()
	out, err := d.TryVirsh(args...)
	if err != nil {
		t.Fatalf("virsh %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// TryVirsh runs virsh, which may fail.
func (d *Daemon) TryVirsh(args ...string) (string, error) {
	out, err := exec.Command("virsh", append([]string{"-q", "-c", d.URI()}, args...)...).CombinedOutput()
	return string(out), err
}
