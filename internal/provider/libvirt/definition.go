package libvirt

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/beevik/etree"

	"github.com/holdfast-dr/holdfast/internal/provider"
)

// metadataSpace names our own element in a domain's metadata.
const metadataSpace = "https://holdfast-dr.github.io/xmlns/recovery"

// fits says why a machine cannot be made a domain here.
func fits(m provider.Machine) error {
	var c config
	if err := json.Unmarshal(m.Config, &c); err != nil || c.XML == "" {
		return fmt.Errorf("machine %s was described by another provider than libvirt, and cannot be recovered here yet", m.Name)
	}
	return nil
}

// definition makes the domain of a recovery from the source's: what is not named
// here stays as it was, also what this software does not know.
func (s *site) definition(r *recovery) (string, error) {
	if err := fits(r.Recovered.Machine); err != nil {
		return "", err
	}
	var c config
	if err := json.Unmarshal(r.Recovered.Machine.Config, &c); err != nil {
		return "", err
	}
	doc, err := parseXML(c.XML)
	if err != nil {
		return "", err
	}
	root := doc.Root()
	root.RemoveAttr("id")
	setText(root, "name", r.Recovered.Name)
	setText(root, "uuid", r.UUID)
	for _, e := range root.SelectElements("seclabel") {
		root.RemoveChild(e) // labels of the source's host
	}
	setMetadata(root, r.Recovered.Handle)
	devices := root.SelectElement("devices")
	if devices == nil {
		return "", fmt.Errorf("machine %s has no devices", r.Recovered.Machine.Name)
	}
	if err := s.setDisks(r, devices); err != nil {
		return "", err
	}
	setNetworks(r, devices)
	s.addSeed(r, root, devices)
	s.setConsoles(r, devices)
	return doc.WriteToString()
}

func setText(root *etree.Element, tag, text string) {
	e := root.SelectElement(tag)
	if e == nil {
		e = root.CreateElement(tag)
	}
	e.SetText(text)
}

func setMetadata(root *etree.Element, handle string) {
	meta := root.SelectElement("metadata")
	if meta == nil {
		meta = root.CreateElement("metadata")
	}
	for _, e := range meta.ChildElements() {
		if space := e.NamespaceURI(); space == metadataSpace || space == guardSpace {
			meta.RemoveChild(e) // of another machine
		}
	}
	e := meta.CreateElement("holdfast:recovery")
	e.CreateAttr("xmlns:holdfast", metadataSpace)
	e.CreateAttr("handle", handle)
}

// setDisks gives each recovered disk its overlay, empties drives, and leaves out
// disks that were not replicated.
func (s *site) setDisks(r *recovery, devices *etree.Element) error {
	sources := map[string]provider.DiskSource{}
	for _, d := range r.Recovered.Disks {
		sources[d.DiskID] = d
	}
	for _, e := range devices.SelectElements("disk") {
		dev := attr(e, "target", "dev")
		src, ok := sources[dev]
		switch device := e.SelectAttrValue("device", "disk"); {
		case ok:
			s.setDisk(r, e, src)
			delete(sources, dev)
		case device == "cdrom" || device == "floppy":
			removeAll(e, "source", "backingStore")
		default:
			devices.RemoveChild(e)
		}
	}
	for _, dev := range slices.Sorted(maps.Keys(sources)) {
		// It was added at another site, whose definition this is not.
		bus, ok := buses[dev[:min(2, len(dev))]]
		if !ok {
			return fmt.Errorf("the source's definition has no disk %s, and its name does not tell its bus", dev)
		}
		e := devices.CreateElement("disk")
		e.CreateAttr("device", "disk")
		target := e.CreateElement("target")
		target.CreateAttr("dev", dev)
		target.CreateAttr("bus", bus)
		s.setDisk(r, e, sources[dev])
	}
	return nil
}

// addSeed adds the drive that cloud-init reads.
func (s *site) addSeed(r *recovery, root, devices *etree.Element) {
	if r.Recovered.Seed == nil {
		return
	}
	bus, prefix := "ide", "hd"
	if t := root.FindElement("os/type"); t != nil && !strings.Contains(t.SelectAttrValue("machine", ""), "i440fx") && t.SelectAttrValue("machine", "pc") != "pc" {
		bus, prefix = "sata", "sd"
	}
	dev, letters := "", "abcdefghijklmnopqrstuvwxyz"
	if bus == "ide" {
		letters = "abcd" // more there cannot be
	}
	for _, letter := range letters {
		taken := slices.ContainsFunc(devices.SelectElements("disk"), func(e *etree.Element) bool { return attr(e, "target", "dev") == prefix+string(letter) })
		if !taken {
			dev = prefix + string(letter)
		}
	}
	e := devices.CreateElement("disk")
	e.CreateAttr("type", "file")
	e.CreateAttr("device", "cdrom")
	driver := e.CreateElement("driver")
	driver.CreateAttr("name", "qemu")
	driver.CreateAttr("type", "raw")
	e.CreateElement("source").CreateAttr("file", s.seed(r))
	target := e.CreateElement("target")
	target.CreateAttr("dev", dev)
	target.CreateAttr("bus", bus)
	e.CreateElement("readonly")
}

// buses are those of disks by the beginning of their names.
var buses = map[string]string{"vd": "virtio", "sd": "scsi", "hd": "ide"}

func (s *site) setDisk(r *recovery, e *etree.Element, src provider.DiskSource) {
	removeAll(e, "source", "backingStore", "mirror", "alias", "encryption", "auth")
	e.CreateAttr("type", "file")
	driver := e.SelectElement("driver")
	if driver == nil {
		driver = e.CreateElement("driver")
	}
	driver.CreateAttr("name", "qemu")
	driver.CreateAttr("type", "qcow2")
	// A view that is away for a while must stop the guest, not fail its disk.
	driver.CreateAttr("error_policy", "stop")
	driver.CreateAttr("rerror_policy", "stop")
	e.CreateElement("source").CreateAttr("file", s.overlay(r, src.DiskID))
	backing := e.CreateElement("backingStore")
	backing.CreateAttr("type", "network")
	backing.CreateElement("format").CreateAttr("type", "raw")
	nbd := backing.CreateElement("source")
	nbd.CreateAttr("protocol", "nbd")
	nbd.CreateAttr("name", src.Export)
	host := nbd.CreateElement("host")
	host.CreateAttr("transport", "unix")
	host.CreateAttr("socket", src.Socket)
	nbd.CreateElement("reconnect").CreateAttr("delay", "600")
	backing.CreateElement("backingStore")
}

// setNetworks replaces networks, and unplugs the cards of an isolated machine.
func setNetworks(r *recovery, devices *etree.Element) {
	for _, e := range devices.SelectElements("interface") {
		removeAll(e, "target", "alias")
		source := ""
		if s := e.SelectElement("source"); s != nil {
			source = s.SelectAttrValue("network", s.SelectAttrValue("bridge", ""))
		}
		name, connected := r.Recovered.NetworkOf(source)
		if name != source && name != "" {
			e.CreateAttr("type", "network")
			removeAll(e, "source")
			e.CreateElement("source").CreateAttr("network", name)
		}
		if !connected {
			removeAll(e, "link")
			e.CreateElement("link").CreateAttr("state", "down")
		}
	}
}

// setConsoles moves logs of serial consoles into the recovery's directory, and
// drops sockets of the source's host.
func (s *site) setConsoles(r *recovery, devices *etree.Element) {
	for _, tag := range []string{"serial", "console", "channel"} {
		for _, e := range devices.SelectElements(tag) {
			switch e.SelectAttrValue("type", "") {
			case "file":
				removeAll(e, "source")
				e.CreateElement("source").CreateAttr("path", filepath.Join(s.dir(r.Recovered.Handle), "serial.log"))
			case "unix":
				removeAll(e, "source")
			}
		}
	}
}

func removeAll(e *etree.Element, tags ...string) {
	for _, tag := range tags {
		for _, c := range e.SelectElements(tag) {
			e.RemoveChild(c)
		}
	}
}

// diskOf returns the disk with a target device.
func diskOf(doc *etree.Document, dev string) *etree.Element {
	for _, e := range doc.Root().FindElements("devices/disk") {
		if attr(e, "target", "dev") == dev {
			return e
		}
	}
	return nil
}
