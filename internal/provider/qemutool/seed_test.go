package qemutool_test

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/qemutool"
)

func TestWriteSeed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "seed.iso")
	seed := provider.Seed{Instance: "rec-1", Host: "web1", NICs: []holdfast.NIC{
		{Card: "52:54:00:12:34:56", Addresses: []string{"10.8.0.12/24", "fd00::12/64"}, Gateways: []string{"10.8.0.1", "fd00::1"}, DNS: []string{"10.8.0.2"}},
		{Card: "52:54:00:12:34:57", Addresses: []string{holdfast.DHCP}},
	}}
	for range 2 { // the second time over the first
		if err := qemutool.WriteSeed(path, seed); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("besides the image it leaves %v, %v", left, err)
	}
	if out, err := exec.Command("blkid", "-p", "-s", "LABEL", "-s", "TYPE", "-o", "value", path).Output(); err == nil && string(out) != "config-2\niso9660\n" {
		t.Errorf("blkid says %q", out)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	iso, err := iso9660.Read(file.New(f, true), 0, 0, 2048)
	if err != nil {
		t.Fatal(err)
	}
	read := func(name string) string {
		r, err := iso.OpenFile(name, os.O_RDONLY)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if meta := read("openstack/latest/meta_data.json"); !strings.Contains(meta, `"uuid":"rec-1"`) {
		t.Errorf("meta_data.json is %q", meta)
	}
	if user := read("openstack/latest/user_data"); !strings.HasPrefix(user, "#cloud-config\n") || !strings.Contains(user, "ssh_deletekeys: false") || !strings.Contains(user, "preserve_hostname: true") {
		t.Errorf("user_data is %q: keys and name of the guest would not be left alone", user)
	}
	const want = `{"links":[{"id":"link0","type":"phy","ethernet_mac_address":"52:54:00:12:34:56"},{"id":"link1","type":"phy","ethernet_mac_address":"52:54:00:12:34:57"}],` +
		`"networks":[{"id":"network0","link":"link0","type":"ipv4","ip_address":"10.8.0.12","netmask":"255.255.255.0","routes":[{"network":"0.0.0.0","netmask":"0.0.0.0","gateway":"10.8.0.1"}]},` +
		`{"id":"network1","link":"link0","type":"ipv6","ip_address":"fd00::12","netmask":"ffff:ffff:ffff:ffff::","routes":[{"network":"::","netmask":"::","gateway":"fd00::1"}]},` +
		`{"id":"network2","link":"link1","type":"ipv4_dhcp"}],"services":[{"type":"dns","address":"10.8.0.2"}]}`
	if got := read("openstack/latest/network_data.json"); got != want {
		t.Errorf("network_data.json is %s\nwant %s", got, want)
	}
	if dir := os.Getenv("HOLDFAST_KEEP_SEED"); dir != "" { // to be looked at with cloud-init's own tools
		b, _ := os.ReadFile(path)
		_ = os.WriteFile(filepath.Join(dir, "seed.iso"), b, 0o600)
	}
}
