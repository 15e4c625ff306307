package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/holdfast-dr/holdfast/internal/provider"
)

// hydratePoll is how often a block copy is looked at.
const hydratePoll = 200 * time.Millisecond

// Hydrate has libvirt copy each disk to a local file while the domain runs, and
// move the domain to it. A copy that was begun earlier is taken up.
func (s *site) Hydrate(ctx context.Context, handle string, progress func(done, total int64)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r, err := s.load(handle)
	if err != nil {
		return err
	}
	d, err := s.domain(r.UUID)
	if err != nil {
		return err
	}
	var done, total int64
	for _, disk := range r.Recovered.Disks {
		total += disk.Size
	}
	for _, disk := range r.Recovered.Disks {
		err := s.hydrateDisk(ctx, r, d, disk, func(part float64) {
			if progress != nil {
				progress(done+int64(part*float64(disk.Size)), total)
			}
		})
		if err != nil {
			return fmt.Errorf("hydrate disk %s of machine %s: %w", disk.DiskID, d.Name, err)
		}
		done += disk.Size
	}
	if progress != nil {
		progress(total, total)
	}
	return nil
}

func (s *site) hydrateDisk(ctx context.Context, r *recovery, d golibvirt.Domain, disk provider.DiskSource, progress func(part float64)) error {
	for {
		local, err := s.isLocal(r, d, disk.DiskID)
		if err != nil {
			return err
		}
		if local {
			return s.dropOverlay(r, disk.DiskID)
		}
		if p, err := s.power(d); err != nil || p == provider.PowerOff {
			return errors.Join(err, provider.ErrNotRunning)
		}
		if err := s.hydrateStep(r, d, disk, progress); err != nil {
			return err
		}
		if !sleep(ctx, hydratePoll) {
			return context.Cause(ctx)
		}
	}
}

// hydrateStep does what comes next: begin the copy, wait, or move over.
func (s *site) hydrateStep(r *recovery, d golibvirt.Domain, disk provider.DiskSource, progress func(float64)) error {
	found, kind, _, cur, end, err := s.l.DomainGetBlockJobInfo(d, disk.DiskID, 0)
	if err != nil {
		return err
	}
	switch {
	case found == 0:
		return s.beginCopy(r, d, disk)
	case golibvirt.DomainBlockJobType(kind) != golibvirt.DomainBlockJobTypeCopy:
		return fmt.Errorf("libvirt has another block job on it; wait for its end")
	case end > 0 && cur == end:
		err := s.l.DomainBlockJobAbort(d, disk.DiskID, golibvirt.DomainBlockJobAbortPivot)
		var le golibvirt.Error
		if errors.As(err, &le) && le.Code == uint32(golibvirt.ErrBlockCopyActive) {
			return nil // not ready quite yet
		}
		return err
	case end > 0:
		progress(float64(cur) / float64(end))
	}
	return nil
}

func (s *site) beginCopy(r *recovery, d golibvirt.Domain, disk provider.DiskSource) error {
	target := s.hydrated(r, disk.DiskID)
	// Left by a copy that ended early, as when the host was switched off.
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	xml := fmt.Sprintf(`<disk type='file'><driver type='qcow2'/><source file='%s'/></disk>`, target)
	return s.l.DomainBlockCopy(d, disk.DiskID, xml, nil, golibvirt.DomainBlockCopyTransientJob|golibvirt.DomainBlockCopySynchronousWrites)
}

func (s *site) dropOverlay(r *recovery, disk string) error {
	if err := os.Remove(s.overlay(r, disk)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
