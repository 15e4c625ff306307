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
	img, err := s.image(ctx, machineID, diskID)
	if err != nil {
		return nil, err
	}
	disk, err := qemutool.Open(ctx, img)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", img.Name, err)
	}
	return disk, nil
}

// ResizeDisk resizes an image with qemu-img, which fails where somebody has it open.
func (s *site) ResizeDisk(ctx context.Context, machineID, diskID string, size int64) error {
	img, err := s.image(ctx, machineID, diskID)
	if err != nil {
		return err
	}
	return qemutool.Resize(ctx, img, size)
}

// image returns where a disk of a domain that is off is.
func (s *site) image(ctx context.Context, machineID, diskID string) (img qemutool.Image, err error) {
	if err := ctx.Err(); err != nil {
		return img, err
	}
	d, err := s.domain(machineID)
	if err != nil {
		return img, err
	}
	name := fmt.Sprintf("disk %s of machine %s", diskID, d.Name)
	doc, err := s.xml(d, golibvirt.DomainXMLInactive)
	if err != nil {
		return img, fmt.Errorf("open %s: %w", name, err)
	}
	e := diskOf(doc, diskID)
	if e == nil {
		return img, fmt.Errorf("%s: %w", name, provider.ErrNotFound)
	}
	img = qemutool.Image{Name: name, Format: attr(e, "driver", "type"), Path: attr(e, "source", "file")}
	if img.Path == "" {
		img.Path = attr(e, "source", "dev")
	}
	if img.Path == "" || e.SelectElement("readonly") != nil {
		return img, fmt.Errorf("open %s: it is no file or block device of the host that can be written", name)
	}
	p, err := s.power(d)
	if err == nil && p != provider.PowerOff {
		err = provider.ErrRunning
	}
	if err != nil {
		return img, fmt.Errorf("open %s: %w", name, err)
	}
	return img, nil
}
