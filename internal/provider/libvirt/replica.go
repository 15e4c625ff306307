package libvirt

import (
	"context"
	"fmt"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/qemutool"
)

// OpenDisk opens a disk of a domain that is off, through qemu-nbd, whose lock on
// the image keeps libvirt from starting the domain.
func (s *site) OpenDisk(ctx context.Context, machineID, diskID string) (provider.ReplicaDisk, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d, err := s.domain(machineID)
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("disk %s of machine %s", diskID, d.Name)
	doc, err := s.xml(d, golibvirt.DomainXMLInactive)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	e := diskOf(doc, diskID)
	if e == nil {
		return nil, fmt.Errorf("%s: %w", name, provider.ErrNotFound)
	}
	img := qemutool.Image{Name: name, Format: attr(e, "driver", "type"), Path: attr(e, "source", "file")}
	if img.Path == "" {
		img.Path = attr(e, "source", "dev")
	}
	if img.Path == "" || e.SelectElement("readonly") != nil {
		return nil, fmt.Errorf("open %s: it is no file or block device of the host that can be written", name)
	}
	if p, err := s.power(d); err != nil || p != provider.PowerOff {
		if err == nil {
			err = provider.ErrRunning
		}
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	disk, err := qemutool.Open(ctx, img)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return disk, nil
}
