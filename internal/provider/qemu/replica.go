package qemu

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/qemutool"
)

// OpenDisk opens a disk with all that lies under it, its view too if it still
// needs one, through qemu-nbd, which ends with the connection and with this
// process.
func (s *site) OpenDisk(ctx context.Context, machineID, diskID string) (out provider.ReplicaDisk, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d, err := s.find(machineID)
	if err != nil {
		return nil, err
	}
	d, lock, err := d.lockPower(ctx)
	if err != nil {
		return nil, fmt.Errorf("open disk %s of machine %s: %w", diskID, d.Name, err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	disk, err := d.replica(diskID)
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("disk %s of machine %s", diskID, d.Name)
	r, err := qemutool.Open(ctx, qemutool.Image{Name: name, Format: disk.Format, Path: disk.Path})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return r, nil
}

// ResizeDisk resizes an image with qemu-img. One that still needs its view has
// the view's size.
func (s *site) ResizeDisk(ctx context.Context, machineID, diskID string, size int64) (err error) {
	d, err := s.find(machineID)
	if err != nil {
		return err
	}
	d, lock, err := d.lockPower(ctx)
	if err != nil {
		return fmt.Errorf("resize disk %s of machine %s: %w", diskID, d.Name, err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	disk, err := d.replica(diskID)
	if err != nil {
		return err
	}
	name := fmt.Sprintf("disk %s of machine %s", diskID, d.Name)
	if disk.View != nil {
		return fmt.Errorf("resize %s: it still needs its view", name)
	}
	return qemutool.Resize(ctx, qemutool.Image{Name: name, Format: disk.Format, Path: disk.Path}, size)
}

// replica returns a disk if it can be opened.
func (d Definition) replica(diskID string) (DiskDef, error) {
	for _, disk := range d.Disks {
		if disk.ID != diskID {
			continue
		}
		switch pid, err := d.pid(); {
		case err != nil:
			return disk, err
		case pid != 0:
			return disk, fmt.Errorf("open disk %s of machine %s: %w", diskID, d.Name, provider.ErrRunning)
		case disk.ReadOnly:
			return disk, fmt.Errorf("open disk %s of machine %s: it is read-only", diskID, d.Name)
		}
		return disk, nil
	}
	return DiskDef{}, fmt.Errorf("disk %s of machine %s: %w", diskID, d.Name, provider.ErrNotFound)
}
