package providertest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/nbd"
	"github.com/holdfast-dr/holdfast/internal/provider"
)

type (
	fakeReplica struct{ f *Fake }

	// fakeDisk is a disk of a machine. The lock of the Fake guards all but mem.
	fakeDisk struct {
		machineID, diskID string
		mem               *block.MemDisk
		read              bool      // its view was
		opening           *openDisk // nil: it is not open
	}

	// openDisk is one opening of a disk.
	openDisk struct {
		f    *Fake
		disk *fakeDisk
	}
)

var (
	_ provider.Replica     = fakeReplica{}
	_ provider.ReplicaDisk = (*openDisk)(nil)
)

// ViewFunc opens the view that a recovered machine's disk comes from.
type ViewFunc func(ctx context.Context, s provider.DiskSource) (block.Image, error)

// DialView opens a view over NBD.
func DialView(ctx context.Context, s provider.DiskSource) (block.Image, error) {
	network, addr := "unix", s.Socket
	if addr == "" {
		network, addr = "tcp", s.Addr
	}
	return nbd.Dial(ctx, network, addr, nbd.DialOptions{Export: s.Export})
}

// SetViews makes a recovered machine's disks have the content of their views
// once it is first started, as read by open, for instance DialView. Without it
// they are zero.
func (f *Fake) SetViews(open ViewFunc) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.views = open
}

// Disk returns a machine's disk for a test to read and write, as the guest or
// anybody else could, without a call in the log; nil if there is none.
func (f *Fake) Disk(machineID, diskID string) *block.MemDisk {
	f.mu.Lock()
	defer f.mu.Unlock()
	if d := f.disks[diskKey(machineID, diskID)]; d != nil {
		return d.mem
	}
	return nil
}

func diskKey(machineID, diskID string) string { return machineID + "/" + diskID }

// makeDisks makes the disks that a machine does not have yet.
func (f *Fake) makeDisks(m provider.Machine) {
	for _, d := range m.Disks {
		key := diskKey(m.ID, d.ID)
		if have := f.disks[key]; have != nil && have.mem.Size() == d.Size {
			continue
		}
		mem, err := block.NewMemDisk(d.Size)
		if err != nil {
			continue // a machine with an impossible disk, for tests of the inventory
		}
		f.disks[key] = &fakeDisk{machineID: m.ID, diskID: d.ID, mem: mem}
	}
}

// openDisk returns the id of a disk of the machine that is open, or "".
func (f *Fake) openDisk(machineID string) string {
	for _, d := range f.disks {
		if d.machineID == machineID && d.opening != nil {
			return d.diskID
		}
	}
	return ""
}

// readViews fills the disks of a recovered machine from their views, once.
func (f *Fake) readViews(ctx context.Context, r *FakeRecovered) error {
	for _, s := range r.Recovered.Disks {
		d := f.disks[diskKey(r.MachineID, s.DiskID)]
		if d == nil || d.read || f.views == nil {
			continue
		}
		img, err := f.views(ctx, s)
		if err != nil {
			return fmt.Errorf("view of disk %s: %w", s.DiskID, err)
		}
		_, err = block.Copy(ctx, d.mem, img, block.CopyOptions{SkipZero: true})
		if err := errors.Join(err, img.Close()); err != nil {
			return fmt.Errorf("view of disk %s: %w", s.DiskID, err)
		}
		d.read = true
	}
	return nil
}

func (r fakeReplica) OpenDisk(ctx context.Context, machineID, diskID string) (out provider.ReplicaDisk, err error) {
	err = r.f.call(ctx, "OpenDisk", diskKey(machineID, diskID), func() error {
		i, err := r.f.find(machineID)
		if err != nil {
			return err
		}
		m := r.f.machines[i]
		d := r.f.disks[diskKey(m.ID, diskID)]
		switch {
		case d == nil:
			return fmt.Errorf("disk %s of machine %s: %w", diskID, m.Name, provider.ErrNotFound)
		case m.Power != provider.PowerOff:
			return fmt.Errorf("open disk %s of machine %s: %w", diskID, m.Name, provider.ErrRunning)
		case d.opening != nil:
			return fmt.Errorf("open disk %s of machine %s: it is open already", diskID, m.Name)
		}
		if rec := r.f.recoveredAs(m.ID); rec != nil && rec.Hydrated < rec.Total {
			if err := r.f.readViews(ctx, rec); err != nil {
				return fmt.Errorf("open disk %s of machine %s: it still needs its view: %w", diskID, m.Name, err)
			}
		}
		d.opening = &openDisk{f: r.f, disk: d}
		out = d.opening
		return nil
	})
	return out, err
}

func (r fakeReplica) ResizeDisk(ctx context.Context, machineID, diskID string, size int64) error {
	return r.f.call(ctx, "ResizeDisk", diskKey(machineID, diskID), func() error {
		i, err := r.f.find(machineID)
		if err != nil {
			return err
		}
		m := r.f.machines[i]
		d := r.f.disks[diskKey(m.ID, diskID)]
		switch {
		case d == nil:
			return fmt.Errorf("disk %s of machine %s: %w", diskID, m.Name, provider.ErrNotFound)
		case m.Power != provider.PowerOff:
			return fmt.Errorf("resize disk %s of machine %s: %w", diskID, m.Name, provider.ErrRunning)
		case d.opening != nil:
			return fmt.Errorf("resize disk %s of machine %s: it is open", diskID, m.Name)
		}
		return r.f.resize(i, diskID, size)
	})
}

// resize gives a disk another size and keeps what fits.
func (f *Fake) resize(machine int, diskID string, size int64) error {
	m := &f.machines[machine]
	at := slices.IndexFunc(m.Disks, func(d provider.Disk) bool { return d.ID == diskID })
	mem, err := block.NewMemDisk(size)
	if at < 0 || err != nil {
		return fmt.Errorf("resize disk %s of machine %s to %d bytes: %w", diskID, m.Name, size, err)
	}
	d := f.disks[diskKey(m.ID, diskID)]
	p := make([]byte, min(size, d.mem.Size()))
	if err := errors.Join(d.mem.ReadAt(context.Background(), p, 0), mem.WriteAt(context.Background(), p, 0)); err != nil {
		return err
	}
	m.Disks = slices.Clone(m.Disks)
	m.Disks[at].Size, d.mem = size, mem
	return nil
}

// GrowDisk gives a disk another size as its owner would, also while its machine
// runs, without a call in the log.
func (f *Fake) GrowDisk(machineID, diskID string, size int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, err := f.find(machineID)
	if err != nil {
		return err
	}
	return f.resize(i, diskID, size)
}

func (f *Fake) recoveredAs(machineID string) *FakeRecovered {
	for _, r := range f.recovered {
		if r.MachineID == machineID {
			return r
		}
	}
	return nil
}

// call logs an operation and runs it, if the disk is still open.
func (o *openDisk) call(ctx context.Context, method string, do func() error) error {
	return o.f.call(ctx, method, diskKey(o.disk.machineID, o.disk.diskID), func() error {
		if o.disk.opening != o {
			return fmt.Errorf("disk %s of machine %s: %w", o.disk.diskID, o.disk.machineID, fs.ErrClosed)
		}
		return do()
	})
}

func (o *openDisk) Size() int64 { return o.disk.mem.Size() }

func (o *openDisk) ReadAt(ctx context.Context, p []byte, off int64) error {
	return o.call(ctx, "ReadDisk", func() error { return o.disk.mem.ReadAt(ctx, p, off) })
}

func (o *openDisk) Map(ctx context.Context, e block.Extent) (out []block.Span, err error) {
	err = o.call(ctx, "MapDisk", func() error {
		var err error
		out, err = o.disk.mem.Map(ctx, e)
		return err
	})
	return out, err
}

func (o *openDisk) WriteAt(ctx context.Context, p []byte, off int64) error {
	return o.call(ctx, "WriteDisk", func() error { return o.disk.mem.WriteAt(ctx, p, off) })
}

func (o *openDisk) Zero(ctx context.Context, e block.Extent, punch bool) error {
	return o.call(ctx, "ZeroDisk", func() error { return o.disk.mem.Zero(ctx, e, punch) })
}

func (o *openDisk) Flush(ctx context.Context) error {
	return o.call(ctx, "FlushDisk", func() error { return nil })
}

// Close closes the disk also while the site cannot be reached; a second call,
// and one after the host was lost, does nothing.
func (o *openDisk) Close() error {
	fault, index := o.f.begin("CloseDisk", diskKey(o.disk.machineID, o.disk.diskID))
	if fault.Do != nil {
		fault.Do()
	}
	o.f.mu.Lock()
	defer o.f.mu.Unlock()
	if o.disk.opening == o {
		o.disk.opening = nil
	}
	o.f.calls[index].Err = fault.Err
	return fault.Err
}
