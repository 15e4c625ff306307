package libvirt

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/beevik/etree"
	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/holdfast-dr/holdfast/internal/provider"
)

// Machines returns all domains, sorted by name.
func (s *site) Machines(ctx context.Context) ([]provider.Machine, error) {
	domains, _, err := s.l.ConnectListAllDomains(1, 0)
	if err != nil {
		return nil, fmt.Errorf("list machines: %w", err)
	}
	var out []provider.Machine
	for _, d := range domains {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		m, err := s.machine(d)
		if golibvirt.IsNotFound(err) {
			continue // gone meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b provider.Machine) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Machine returns one domain by UUID or name.
func (s *site) Machine(_ context.Context, idOrName string) (provider.Machine, error) {
	d, err := s.domain(idOrName)
	if err != nil {
		return provider.Machine{}, err
	}
	return s.machine(d)
}

// Networks returns libvirt's networks.
func (s *site) Networks(context.Context) ([]provider.Network, error) {
	nets, _, err := s.l.ConnectListAllNetworks(1, 0)
	if err != nil {
		return nil, fmt.Errorf("list networks: %w", err)
	}
	out := make([]provider.Network, len(nets))
	for i, n := range nets {
		out[i] = provider.Network{ID: formatUUID(n.UUID), Name: n.Name}
	}
	slices.SortFunc(out, func(a, b provider.Network) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// config is what a machine's Config has.
type config struct {
	XML string `json:"xml"`
}

func (s *site) machine(d golibvirt.Domain) (provider.Machine, error) {
	power, err := s.power(d)
	if err != nil {
		return provider.Machine{}, err
	}
	// The definition as it is kept, not with what the running QEMU was given.
	kept, err := s.l.DomainGetXMLDesc(d, golibvirt.DomainXMLInactive)
	if err != nil {
		return provider.Machine{}, err
	}
	live, err := s.xml(d, 0)
	if err != nil {
		return provider.Machine{}, err
	}
	raw, err := json.Marshal(config{XML: kept})
	if err != nil {
		return provider.Machine{}, err
	}
	root := live.Root()
	m := provider.Machine{
		ID: formatUUID(d.UUID), Name: d.Name, Power: power, Config: raw, Firmware: "bios",
		CPUs: atoi(text(root, "vcpu")), Memory: memory(root.SelectElement("memory")),
		Disks: []provider.Disk{}, NICs: []provider.NIC{}, Obstacles: []string{},
	}
	if root.FindElement("os/loader") != nil || root.FindElement("os[@firmware='efi']") != nil {
		m.Firmware = "uefi"
		m.Obstacles = append(m.Obstacles, "it boots by UEFI, whose variables are not replicated yet; machines that boot by BIOS can be protected")
	}
	if persistent, err := s.l.DomainIsPersistent(d); err == nil && persistent == 0 {
		m.Obstacles = append(m.Obstacles, "it is transient: it could not be kept from running beside its recovered copy; define it (virsh define), then start it from that")
	}
	if root.FindElement("devices/hostdev") != nil {
		m.Obstacles = append(m.Obstacles, "it has a device of the host passed through, which the recovery site lacks; remove it")
	}
	for i, e := range root.FindElements("devices/disk") {
		s.addDisk(d, &m, e, i == 0)
	}
	for i, e := range root.FindElements("devices/interface") {
		m.NICs = append(m.NICs, provider.NIC{ID: "net" + strconv.Itoa(i), MAC: attr(e, "mac", "address"), Network: networkOf(e), Model: attr(e, "model", "type")})
	}
	return m, nil
}

// addDisk adds a disk, or why it stands in the way. Media that are not part of
// the machine's state are passed over.
func (s *site) addDisk(d golibvirt.Domain, m *provider.Machine, e *etree.Element, first bool) {
	device := e.SelectAttrValue("device", "disk")
	if device == "cdrom" || device == "floppy" {
		return
	}
	dev := attr(e, "target", "dev")
	obstacle := func(format string, args ...any) {
		m.Obstacles = append(m.Obstacles, "disk "+dev+" "+fmt.Sprintf(format, args...))
	}
	disk := provider.Disk{ID: dev, Format: attr(e, "driver", "type"), Path: attr(e, "source", "file"), Boot: first || e.FindElement("boot[@order='1']") != nil}
	if disk.Path == "" {
		disk.Path = attr(e, "source", "dev")
	}
	switch {
	case device != "disk":
		obstacle("is a %s, which cannot be replicated", device)
	case e.SelectElement("shareable") != nil:
		obstacle("is shared between machines; replicate it through one of them")
	case e.SelectElement("readonly") != nil:
		return
	case disk.Path == "":
		obstacle("is neither a file nor a block device of the host")
	case disk.Format != "raw" && disk.Format != "qcow2":
		obstacle("has format %q; raw and qcow2 can be replicated", disk.Format)
	case e.FindElement("mirror") != nil:
		obstacle("has a block job of libvirt running; wait for its end")
	}
	if _, capacity, _, err := s.l.DomainGetBlockInfo(d, dev, 0); err == nil {
		disk.Size = int64(capacity)
	}
	m.Disks = append(m.Disks, disk)
}

// xml returns a domain's description.
func (s *site) xml(d golibvirt.Domain, flags golibvirt.DomainXMLFlags) (*etree.Document, error) {
	text, err := s.l.DomainGetXMLDesc(d, flags)
	if err != nil {
		return nil, fmt.Errorf("describe machine %s: %w", d.Name, err)
	}
	return parseXML(text)
}

func parseXML(text string) (*etree.Document, error) {
	doc := etree.NewDocument()
	if err := doc.ReadFromString(text); err != nil {
		return nil, fmt.Errorf("decode domain XML: %w", err)
	}
	if doc.Root() == nil || doc.Root().Tag != "domain" {
		return nil, fmt.Errorf("decode domain XML: it has no domain")
	}
	return doc, nil
}

func text(e *etree.Element, path string) string {
	if c := e.FindElement(path); c != nil {
		return strings.TrimSpace(c.Text())
	}
	return ""
}

// attr returns an attribute of a child.
func attr(e *etree.Element, child, name string) string {
	if c := e.SelectElement(child); c != nil {
		return c.SelectAttrValue(name, "")
	}
	return ""
}

func atoi(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0
	}
	return n
}

// memory returns the bytes of an element like <memory unit='KiB'>.
func memory(e *etree.Element) int64 {
	if e == nil {
		return 0
	}
	n := int64(atoi(strings.TrimSpace(e.Text())))
	switch e.SelectAttrValue("unit", "KiB") {
	case "b", "bytes":
		return n
	case "MiB", "M":
		return n << 20
	case "GiB", "G":
		return n << 30
	}
	return n << 10
}

func networkOf(e *etree.Element) string {
	for _, a := range []string{"network", "bridge", "dev"} {
		if v := attr(e, "source", a); v != "" {
			return v
		}
	}
	return e.SelectAttrValue("type", "")
}
