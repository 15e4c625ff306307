package block

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// FileDisk is a raw image in a file, or a block device: an Image and a Sink.
type FileDisk struct {
	f    *os.File
	size int64
}

var (
	_ Image = (*FileDisk)(nil)
	_ Sink  = (*FileDisk)(nil)
)

// OpenFileDisk opens a raw image or block device; with write for writing, too.
func OpenFileDisk(name string, write bool) (*FileDisk, error) {
	flag := os.O_RDONLY
	if write {
		flag = os.O_RDWR
	}
	f, err := os.OpenFile(name, flag, 0)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil && size%SectorSize != 0 {
		err = fmt.Errorf("disk %s has %d bytes, which is not a multiple of %d", name, size, SectorSize)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &FileDisk{f, size}, nil
}

// CreateFileDisk makes a raw image of the size that reads as zeroes, in place of
// a file that may be there.
func CreateFileDisk(name string, size int64) (*FileDisk, error) {
	if size < 0 || size%SectorSize != 0 {
		return nil, fmt.Errorf("disk %s of %d bytes: want a multiple of %d", name, size, SectorSize)
	}
	f, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(size); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &FileDisk{f, size}, nil
}

// Size returns the size in bytes.
func (d *FileDisk) Size() int64 { return d.size }

// ReadAt fills p from off.
func (d *FileDisk) ReadAt(_ context.Context, p []byte, off int64) error {
	if err := checkRange(off, int64(len(p)), d.size); err != nil {
		return err
	}
	_, err := d.f.ReadAt(p, off)
	return err
}

// Map reports data and holes as the file system knows them.
func (d *FileDisk) Map(_ context.Context, e Extent) ([]Span, error) {
	if err := checkRange(e.Offset, e.Length, d.size); err != nil {
		return nil, err
	}
	fd := int(d.f.Fd())
	data, err := unix.Seek(fd, e.Offset, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return []Span{{e, true, true}}, nil
	}
	if err != nil { // the file system cannot tell: everything is data
		return []Span{{Extent: e}}, nil
	}
	if data > e.Offset {
		return []Span{{Extent{e.Offset, min(data, e.End()) - e.Offset}, true, true}}, nil
	}
	hole, err := unix.Seek(fd, e.Offset, unix.SEEK_HOLE)
	if err != nil {
		hole = e.End()
	}
	return []Span{{Extent: Extent{e.Offset, min(hole, e.End()) - e.Offset}}}, nil
}

// WriteAt writes p at off.
func (d *FileDisk) WriteAt(_ context.Context, p []byte, off int64) error {
	if err := checkRange(off, int64(len(p)), d.size); err != nil {
		return err
	}
	_, err := d.f.WriteAt(p, off)
	return err
}

// Zero makes the extent read as zeroes, without writing them where the file
// system can do without.
func (d *FileDisk) Zero(ctx context.Context, e Extent, punch bool) error {
	if err := checkRange(e.Offset, e.Length, d.size); err != nil {
		return err
	}
	mode := uint32(unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE)
	if punch {
		mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	}
	err := unix.Fallocate(int(d.f.Fd()), mode, e.Offset, e.Length)
	if err == nil || !(errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL)) {
		return err
	}
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

// Flush makes what was written durable.
func (d *FileDisk) Flush(context.Context) error { return d.f.Sync() }

// Close closes the file, without flushing.
func (d *FileDisk) Close() error { return d.f.Close() }

// checkRange refuses what lies outside of a disk.
func checkRange(off, n, size int64) error {
	if off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("%d bytes at %d are outside of a disk of %d bytes", n, off, size)
	}
	return nil
}
