package block

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxSpans bounds how many spans one call of FileDisk.Map finds.
const maxSpans = 64

// FileDisk is a raw image in a file, or a block device: an Image and a Sink. It
// is safe for concurrent use on extents that do not overlap.
type FileDisk struct {
	f     *os.File
	size  int64
	write bool
	// plain does without fallocate, as where it is missing; for tests.
	plain bool
}

var (
	_ Image = (*FileDisk)(nil)
	_ Sink  = (*FileDisk)(nil)
)

// OpenFileDisk opens a raw image or block device; with write for writing, too.
// A block device that is mounted, or otherwise in use by the system, cannot be
// opened for writing: that fails with EBUSY. The size is what it is now.
func OpenFileDisk(name string, write bool) (*FileDisk, error) {
	st, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	device := st.Mode()&(os.ModeDevice|os.ModeCharDevice) == os.ModeDevice
	if !device && !st.Mode().IsRegular() {
		return nil, fmt.Errorf("disk %s is neither a file nor a block device", name)
	}
	flag := os.O_RDONLY
	if write {
		flag = os.O_RDWR
	}
	if write && device {
		flag |= unix.O_EXCL
	}
	f, err := os.OpenFile(name, flag, 0)
	if errors.Is(err, unix.EBUSY) {
		err = fmt.Errorf("%w: it is mounted or in use; unmount it first", err)
	}
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd) // Stat does not know a device's size
	if err == nil && size%SectorSize != 0 {
		err = fmt.Errorf("disk %s has %d bytes, which is not a multiple of %d", name, size, SectorSize)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &FileDisk{f: f, size: size, write: write}, nil
}

// CreateFileDisk makes a raw image of the size in bytes that reads as zeroes and
// takes no space yet, in place of a file that may be there. Its mode is 0600.
func CreateFileDisk(name string, size int64) (*FileDisk, error) {
	if size < 0 || size%SectorSize != 0 {
		return nil, fmt.Errorf("disk %s of %d bytes: want a multiple of %d", name, size, SectorSize)
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(size); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &FileDisk{f: f, size: size, write: true}, nil
}

// Size returns the size in bytes.
func (d *FileDisk) Size() int64 { return d.size }

// check refuses what cannot be done to the disk.
func (d *FileDisk) check(ctx context.Context, off, n int64, write bool) error {
	if write && !d.write {
		return fmt.Errorf("disk %s is open for reading only: %w", d.f.Name(), unix.EBADF)
	}
	if err := check(ctx, off, n, d.size); err != nil {
		return fmt.Errorf("disk %s: %w", d.f.Name(), err)
	}
	return nil
}

// control does something with the file's descriptor. While f runs it is not
// closed, and f is called again when a signal interrupted it.
func (d *FileDisk) control(f func(fd int) error) error {
	raw, err := d.f.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) {
		for {
			if err = f(int(fd)); !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}); cerr != nil {
		return fmt.Errorf("disk %s: %w", d.f.Name(), cerr)
	}
	return err
}

// ReadAt fills p from off.
func (d *FileDisk) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := d.check(ctx, off, int64(len(p)), false); err != nil {
		return err
	}
	n, err := d.f.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("disk %s ends at %d and had %d bytes when it was opened: %w", d.f.Name(), off+int64(n), d.size, io.ErrUnexpectedEOF)
	}
	return err
}

// Map reports data and holes as the file system knows them; where it knows
// nothing, as on a block device, all is data.
func (d *FileDisk) Map(ctx context.Context, e Extent) ([]Span, error) {
	if err := d.check(ctx, e.Offset, e.Length, false); err != nil {
		return nil, err
	}
	var spans []Span
	err := d.control(func(fd int) error {
		spans = spans[:0]
		for off := e.Offset; off < e.End() && len(spans) < maxSpans; {
			sp, err := mapOne(fd, off, e.End())
			if err != nil {
				return err
			}
			spans = appendSpan(spans, sp)
			off = sp.End()
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("map disk %s: %w", d.f.Name(), err)
	}
	return spans, nil
}

// mapOne finds the span at off, which ends at end at the latest.
func mapOne(fd int, off, end int64) (Span, error) {
	data, err := unix.Seek(fd, off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // nothing but a hole until the end of the file
		return Span{Extent{off, end - off}, true, true}, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP): // not known here
		return Span{Extent: Extent{off, end - off}}, nil
	case err != nil:
		return Span{}, err
	case data > off:
		return Span{Extent{off, min(data, end) - off}, true, true}, nil
	}
	hole, err := unix.Seek(fd, off, unix.SEEK_HOLE)
	if err != nil {
		return Span{}, err
	}
	if hole <= off { // punched this moment: calling it data is never wrong
		hole = end
	}
	return Span{Extent: Extent{off, min(hole, end) - off}}, nil
}

// WriteAt writes p at off.
func (d *FileDisk) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := d.check(ctx, off, int64(len(p)), true); err != nil {
		return err
	}
	_, err := d.f.WriteAt(p, off)
	return err
}

// Zero makes the extent read as zeroes, without writing them where the file
// system or device can do without. Only with punch space is freed.
func (d *FileDisk) Zero(ctx context.Context, e Extent, punch bool) error {
	if err := d.check(ctx, e.Offset, e.Length, true); err != nil || e.Length == 0 {
		return err
	}
	modes := []uint32{unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE}
	if punch {
		modes = []uint32{unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, modes[0]}
	}
	if d.plain {
		modes = nil
	}
	for _, mode := range modes {
		err := d.control(func(fd int) error { return unix.Fallocate(fd, mode, e.Offset, e.Length) })
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.ENODEV), errors.Is(err, unix.EINVAL):
			// Not there, or not at this alignment.
		default:
			return fmt.Errorf("zero %d bytes at %d of disk %s: %w", e.Length, e.Offset, d.f.Name(), err)
		}
	}
	return d.writeZeroes(ctx, e)
}

func (d *FileDisk) writeZeroes(ctx context.Context, e Extent) error {
	zeroes := make([]byte, min(e.Length, 1<<20))
	for e.Length > 0 {
		n := min(e.Length, int64(len(zeroes)))
		if err := d.WriteAt(ctx, zeroes[:n], e.Offset); err != nil {
			return err
		}
		e = Extent{e.Offset + n, e.Length - n}
	}
	return nil
}

// Flush makes what was written durable; not the name of a new file.
func (d *FileDisk) Flush(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	return d.f.Sync()
}

// Close closes the file, without flushing.
func (d *FileDisk) Close() error { return d.f.Close() }
