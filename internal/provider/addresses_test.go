package provider_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/provider"
)

// TestAddressScript runs what guests run, in namespaces that look like a guest,
// beside the real things that give cards their addresses there.
func TestAddressScript(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("namespaces need root")
	}
	const card = "52:54:00:12:34:56"
	set := "sh -s -- set " + card + " static 10.8.0.12/24,fd00::12/64 10.8.0.1,fd00::1 10.8.0.2"
	again := "sh -s -- set " + card + " static 10.8.0.13/24 - -"
	restore := "sh -s -- restore"
	for by, needs := range map[string]string{"nothing": "ip", "systemd-networkd": "/lib/systemd/systemd-networkd", "ifupdown": "ifup"} {
		t.Run(by, func(t *testing.T) {
			if _, err := exec.LookPath(needs); err != nil {
				t.Skip("this machine has no " + by)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			args := []string{"-n", "-m", "-p", "-f", "--kill-child", "sh", "testdata/guest.sh", by, "addresses.sh"}
			out, err := exec.CommandContext(ctx, "unshare", append(args, "true", restore, set, again, "sh -s -- set 52:54:00:00:00:99 dhcp - - -", restore, restore)...).CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			own := "192.168.7.5/24 "
			want := []struct{ rc, addresses, gateway, dns string }{
				{"0", own, "", ""}, // as it was
				{"0", own, "", ""}, // there is nothing to restore
				{"0", "10.8.0.12/24 fd00::12/64 ", "10.8.0.1", "10.8.0.2 "},
				{"0", "10.8.0.13/24 ", "", ""},
				{"1", "10.8.0.13/24 ", "", ""}, // no such card: nothing is changed
				{"0", own, "", "192.168.7.2 "},
				{"0", own, "", "192.168.7.2 "},
			}
			if by == "nothing" { // until it is restarted
				want[5].addresses, want[6].addresses = want[3].addresses, want[3].addresses
			}
			if len(lines) < len(want) {
				t.Fatalf("it said\n%s", out)
			}
			for i, w := range want {
				f := strings.Split(lines[len(lines)-len(want)+i], "|")
				if f[0] != w.rc || f[2] != w.addresses || w.gateway != "" && f[3] != w.gateway || w.dns != "" && f[4] != w.dns {
					t.Errorf("command %d: %q, want %v", i, f, w)
				}
				if left := f[5] != "0"; (i < 2 || i > 4) && left {
					t.Errorf("command %d leaves files behind: %q", i, f)
				}
				if i == 2 && by != "nothing" && f[1] != "eth0: "+by+";" {
					t.Errorf("it says %q", f[1])
				}
			}
		})
	}
}

// scriptedAgent answers like a guest agent.
type scriptedAgent struct {
	provider.Agent
	asked []map[string]any
	os    string
}

func (a *scriptedAgent) Ask(_ context.Context, _, command string, arguments, result any) error {
	args, _ := arguments.(map[string]any)
	a.asked = append(a.asked, args)
	switch command {
	case "guest-get-osinfo":
		*result.(*struct {
			ID string `json:"id"`
		}) = struct {
			ID string `json:"id"`
		}{a.os}
		return nil
	default:
		return errors.New("not here")
	}
}

func TestSetAddressesAsksTheGuest(t *testing.T) {
	a := &scriptedAgent{os: "debian"}
	_, err := provider.SetAddresses(t.Context(), a, "m", []holdfast.NIC{
		{Card: "52:54:00:12:34:56", Addresses: []string{"10.8.0.12/24"}, Gateways: []string{"10.8.0.1"}},
		{Card: "52:54:00:12:34:57", Addresses: []string{holdfast.DHCP}, DNS: []string{"10.8.0.2", "10.8.0.3"}},
	})
	if err == nil {
		t.Error("a guest that runs no commands was believed")
	}
	got := strings.Join(a.asked[1]["arg"].([]string), " ")
	if want := "-s -- set 52:54:00:12:34:56 static 10.8.0.12/24 10.8.0.1 - 52:54:00:12:34:57 dhcp - - 10.8.0.2,10.8.0.3"; got != want {
		t.Errorf("it was asked %q, want %q", got, want)
	}
	if _, err := provider.RestoreAddresses(t.Context(), &scriptedAgent{os: "mswindows"}, "m"); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Windows: %v", err)
	}
}
