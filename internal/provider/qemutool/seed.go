package qemutool

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/provider"
)

// seedLabel is what cloud-init looks for.
const seedLabel = "config-2"

// WriteSeed writes the image of a drive from which cloud-init takes the network's
// configuration, durably, in the place of what is at the path. What cloud-init
// does besides for what it takes for a new machine, it is told to leave alone:
// keys, users and the name of the guest are those that it has.
func WriteSeed(path string, s provider.Seed) (err error) {
	files, err := seedFiles(s)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write drive for cloud-init: %w", err)
		}
	}()
	work, err := os.MkdirTemp(filepath.Dir(path), ".seed-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	tree, image := filepath.Join(work, "tree"), filepath.Join(work, "image")
	for name, b := range files {
		name = filepath.Join(tree, filepath.FromSlash(name))
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, b, 0o600)); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(image, os.O_CREATE|os.O_RDWR|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	iso, err := iso9660.Create(file.New(f, false), 0, 0, 2048, tree)
	if err != nil {
		return err
	}
	if err := iso.Finalize(iso9660.FinalizeOptions{RockRidge: true, Joliet: true, VolumeIdentifier: seedLabel}); err != nil {
		return err
	}
	return errors.Join(f.Sync(), os.Rename(image, path))
}

// seedFiles are the files of a configuration drive as OpenStack has it, by their
// paths. It names cards by their MAC addresses alone, so the guest keeps its names
// of them; cloudbase-init reads it, too.
func seedFiles(s provider.Seed) (map[string][]byte, error) {
	meta, err := json.Marshal(map[string]any{"uuid": s.Instance, "hostname": s.Host, "name": s.Host})
	if err != nil {
		return nil, err
	}
	network, err := json.Marshal(seedNetwork(s.NICs))
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		"openstack/latest/meta_data.json":    meta,
		"openstack/latest/network_data.json": network,
		"openstack/latest/user_data":         []byte("#cloud-config\npreserve_hostname: true\nssh_deletekeys: false\ndisable_root: false\n"),
	}, nil
}

// networkConfig is OpenStack's network_data.json.
type networkConfig struct {
	Links    []networkLink    `json:"links"`
	Networks []networkNetwork `json:"networks"`
	Services []networkService `json:"services"`
}

type networkLink struct {
	ID   string `json:"id"`
	Type string `json:"type"`
	MAC  string `json:"ethernet_mac_address"`
}

type networkNetwork struct {
	ID      string         `json:"id"`
	Link    string         `json:"link"`
	Type    string         `json:"type"`
	Address string         `json:"ip_address,omitempty"`
	Netmask string         `json:"netmask,omitempty"`
	Routes  []networkRoute `json:"routes,omitempty"`
}

type networkRoute struct {
	Network string `json:"network"`
	Netmask string `json:"netmask"`
	Gateway string `json:"gateway"`
}

type networkService struct {
	Type    string `json:"type"`
	Address string `json:"address"`
}

func seedNetwork(nics []holdfast.NIC) networkConfig {
	d := networkConfig{Links: []networkLink{}, Networks: []networkNetwork{}, Services: []networkService{}}
	for i, n := range nics {
		link := fmt.Sprintf("link%d", i)
		d.Links = append(d.Links, networkLink{ID: link, Type: "phy", MAC: n.Card})
		add := func(o networkNetwork) {
			o.ID, o.Link = fmt.Sprintf("network%d", len(d.Networks)), link
			d.Networks = append(d.Networks, o)
		}
		if slices.Contains(n.Addresses, holdfast.DHCP) {
			add(networkNetwork{Type: "ipv4_dhcp"})
		}
		gateways := slices.Clone(n.Gateways)
		for _, a := range n.Addresses {
			p, err := netip.ParsePrefix(a)
			if err != nil {
				continue
			}
			o := networkNetwork{Type: "ipv6", Address: p.Addr().String(), Netmask: mask(p)}
			anywhere := "::"
			if p.Addr().Is4() {
				o.Type, anywhere = "ipv4", "0.0.0.0"
			}
			gateways = slices.DeleteFunc(gateways, func(g string) bool { // of its family, with the first address
				via, err := netip.ParseAddr(g)
				if err == nil && via.Is4() == p.Addr().Is4() {
					o.Routes = append(o.Routes, networkRoute{anywhere, anywhere, g})
				}
				return len(o.Routes) > 0 && o.Routes[len(o.Routes)-1].Gateway == g
			})
			add(o)
		}
		for _, s := range n.DNS {
			d.Services = append(d.Services, networkService{"dns", s})
		}
	}
	return d
}

// mask returns the mask of a prefix as an address.
func mask(p netip.Prefix) string {
	m := net.CIDRMask(p.Bits(), p.Addr().BitLen())
	addr, _ := netip.AddrFromSlice(m) // has 4 or 16 bytes
	return addr.String()
}
