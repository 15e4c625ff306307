package libvirt_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/libvirt/libvirttest"
)

// inNamespace says that the test runs in a network namespace of its own.
const inNamespace = "HOLDFAST_TEST_IN_NETNS"

// TestReach pings a real guest on a bridge, and connects to its ports. Bridge and
// libvirt are in a network namespace, where the test runs itself again.
func TestReach(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a guest")
	}
	if os.Getuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	if os.Getenv(inNamespace) == "" {
		cmd := exec.Command("unshare", "--net", os.Args[0], "-test.run", "^TestReach$", "-test.v")
		cmd.Env = append(os.Environ(), inNamespace+"=1")
		out, err := cmd.CombinedOutput()
		if t.Logf("%s", out); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(out), "--- SKIP") {
			t.Skip("it was skipped there")
		}
		return
	}
	run := func(command string, args ...string) {
		t.Helper()
		if out, err := exec.Command(command, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v: %s", command, args, err, out)
		}
	}
	run("ip", "link", "set", "lo", "up")
	for n, bridge := range []string{"hfbr0", "hfbr1"} {
		run("ip", "link", "add", bridge, "type", "bridge")
		run("ip", "address", "add", fmt.Sprintf("10.77.%d.1/24", n), "dev", bridge)
		run("ip", "link", "set", bridge, "up")
	}
	d, s := newSite(t)
	id := withAgent(t, d, s)
	ctx := t.Context()
	if err := s.Probe.Ping(ctx, id); !errors.Is(err, provider.ErrNoWay) {
		t.Errorf("ping of a machine without a card: %v", err)
	}
	d.Virsh(t, "attach-interface", "live", "bridge", "hfbr0", "--model", "virtio", "--mac", "52:54:00:77:00:02", "--live")
	guestExec(t, d, "until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done; ip address flush dev eth0; ip link set eth0 up; ip address add 10.77.0.2/24 dev eth0; while true; do nc -l -p 7777 </dev/null >/dev/null; done")
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if err = s.Probe.Ping(ctx, id); err == nil {
			break
		}
		if errors.Is(err, provider.ErrNoWay) {
			t.Fatal(err)
		}
	}
	if err != nil {
		t.Fatalf("ping: %v", err)
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if err = s.Probe.Dial(ctx, id, 7777); err == nil {
			break
		}
	}
	if err != nil {
		t.Errorf("the open port: %v", err)
	}
	if err := s.Probe.Dial(ctx, id, 7778); err == nil || !strings.Contains(err.Error(), "refuses") {
		t.Errorf("a port where nobody listens: %v", err)
	}
	// Another machine with the address, elsewhere: it is not this one.
	guestExec(t, d, "ip link set eth0 down")
	run("ip", "address", "add", "10.77.0.2/32", "dev", "lo")
	run("ip", "neighbour", "flush", "all")
	if err := s.Probe.Ping(ctx, id); err == nil {
		t.Error("the host itself, which has the address too, was taken for the machine")
	}
	if err := s.Probe.Ping(ctx, "nobody"); !errors.Is(err, provider.ErrNotFound) {
		t.Errorf("ping of an unknown machine: %v", err)
	}
}

// guestExec starts a command in the guest.
func guestExec(t *testing.T, d *libvirttest.Daemon, command string) {
	t.Helper()
	b, err := json.Marshal(map[string]any{"execute": "guest-exec", "arguments": map[string]any{"path": "/bin/sh", "arg": []string{"-c", command}}})
	if err != nil {
		t.Fatal(err)
	}
	d.Virsh(t, "qemu-agent-command", "live", string(b))
}
