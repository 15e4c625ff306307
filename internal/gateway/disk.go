package gateway

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/zeebo/blake3"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/gateway/journal"
	"github.com/holdfast-dr/holdfast/internal/nbd"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// blockSize is the size of the blocks whose hashes the vault's index keeps.
const blockSize = 4096

// disk is the ingest of one disk: the backend of its NBD export. The stream's
// mu guards every field.
type disk struct {
	s     *stream
	index uint16
	id    string
	size  int64

	epoch  uint64 // raised at every connect and disconnect
	conn   uint64 // the connection that may write; 0: none
	cut    func(error)
	synced bool
	ever   bool // was in sync at some time
	lastIO time.Time

	// While the disk is not in sync, blocks that the vault has already are not
	// stored again: base is the disk as the vault has it at baseAt, changed what
	// was written since. It is opened while nothing is connected, and nothing
	// may connect before ready, so that no source waits for it.
	base    *baseImage
	baseAt  holdfast.Position
	ready   bool
	changed block.Set

	compared *comparison // with the vault, while it is written; nil: not
}

// baseImage is what the vault has of a disk.
type baseImage struct {
	view  *vault.View
	image block.Image
}

func newDisk(s *stream, index uint16, d vault.Disk) *disk {
	return &disk{s: s, index: index, id: d.ID, size: d.Size}
}

// connected begins an epoch: a source has connected. Only one may be connected
// at a time; it is not in sync until the mirror's owner says so.
func (d *disk) connected(conn uint64, cut func(error)) error {
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	if err := d.s.refuse(); err != nil {
		return err
	}
	if d.conn != 0 {
		return fmt.Errorf("disk %q has a source connected already", d.id)
	}
	if !d.ready {
		return fmt.Errorf("disk %q: %w", d.id, errNotReady)
	}
	d.epoch++
	d.conn, d.cut, d.synced = conn, cut, false
	return d.s.setConsistent(false, "disk "+d.id+" connected")
}

// disconnected ends the epoch of a connection.
func (d *disk) disconnected(conn uint64) {
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	if d.conn != conn {
		return
	}
	d.end("disconnected")
}

// end ends the epoch: what the source writes from now on is missed. The caller
// holds the stream's mu.
func (d *disk) end(how string) {
	if err := d.s.setConsistent(false, "disk "+d.id+" "+how); err != nil {
		d.s.log.Error("stream is not marked inconsistent", "disk", d.id, "error", err)
	}
	d.epoch++
	d.conn, d.cut = 0, nil
	d.unready()
}

// unready asks for the disk's base to be opened anew; the caller holds mu.
func (d *disk) unready() {
	d.synced, d.ready, d.base = false, false, nil
	d.changed = block.Set{}
	d.baseAt = d.s.opts.Writer.Next() - 1
	wake(d.s.rebase)
	wake(d.s.kick)
}

// drop cuts the connection, if there is one; the caller holds the stream's mu.
func (d *disk) drop(why error) {
	if d.conn == 0 {
		return
	}
	cut := d.cut
	d.end("cut off: " + why.Error())
	if cut != nil {
		cut(why)
	}
}

// inSync ends the comparing with the vault; the caller holds the stream's mu.
func (d *disk) inSync() {
	d.synced, d.ever, d.base = true, true, nil
	d.changed = block.Set{}
}

// Size returns the disk's size in bytes.
func (d *disk) Size() int64 { return d.size }

// ReadAt refuses: an ingest export is only written.
func (d *disk) ReadAt(context.Context, []byte, int64) error {
	return fmt.Errorf("disk %q: an ingest export cannot be read", d.id)
}

// WriteAt takes a write: once it returns nil, the write survives the death of
// this process. It returns nbd.ErrDrop if the write cannot be taken.
func (d *disk) WriteAt(ctx context.Context, p []byte, off int64, _ bool) error {
	d.s.mu.Lock()
	synced := d.synced
	d.s.mu.Unlock()
	d.s.throttle(ctx, int64(len(p)), synced)
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	if err := d.mayWrite(ctx); err != nil {
		return asDrop(err)
	}
	d.s.counts.Received += int64(len(p))
	if d.synced {
		return d.write(p, off)
	}
	return d.writeNew(ctx, p, off)
}

// mayWrite checks that the connection is the one of now; the caller holds mu.
func (d *disk) mayWrite(ctx context.Context) error {
	d.s.bound()
	if err := d.s.refuse(); err != nil {
		d.s.dropAll(err)
		return err
	}
	if conn := nbd.ConnID(ctx); d.conn == 0 || conn != d.conn {
		return fmt.Errorf("disk %q: %w", d.id, ErrStaleEpoch)
	}
	d.lastIO = d.s.opts.Now()
	return nil
}

func (d *disk) write(p []byte, off int64) error {
	d.wrote(off, int64(len(p)))
	_, err := d.s.accept(journal.Record{Kind: journal.Write, Disk: d.index, Offset: off, Length: int64(len(p)), Payload: p})
	if err != nil {
		d.s.log.Error("write cannot be kept, the source is cut off", "disk", d.id, "error", err)
		d.s.dropAll(err)
		return asDrop(err)
	}
	return nil
}

// writeNew stores those blocks of a write that the vault does not have yet.
func (d *disk) writeNew(ctx context.Context, p []byte, off int64) error {
	start := 0 // of the run of new blocks
	for at := 0; at < len(p); {
		n := min(len(p)-at, int(blockSize-(off+int64(at))%blockSize))
		if !d.known(ctx, p[at:at+n], off+int64(at)) {
			at += n
			continue
		}
		if err := d.writeRun(p[start:at], off+int64(start)); err != nil {
			return err
		}
		d.s.counts.Skipped += int64(n)
		at += n
		start = at
	}
	return d.writeRun(p[start:], off+int64(start))
}

func (d *disk) writeRun(p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	d.changed.Add(block.Extent{Offset: off, Length: int64(len(p))})
	if allZero(p) {
		return d.zero(block.Extent{Offset: off, Length: int64(len(p))}, false)
	}
	return d.write(p, off)
}

// known says whether the vault has exactly these bytes there already. p lies
// within one block.
func (d *disk) known(ctx context.Context, p []byte, off int64) bool {
	if d.base == nil || d.changed.Overlaps(block.Extent{Offset: off, Length: int64(len(p))}) {
		return false
	}
	spans, err := d.base.image.Map(ctx, block.Extent{Offset: off, Length: int64(len(p))})
	if err == nil && len(spans) == 1 && spans[0].Zero {
		return allZero(p)
	}
	if len(p) != blockSize {
		return false
	}
	want, ok := d.base.view.BlockHash(d.id, off/blockSize)
	if !ok {
		return false
	}
	sum := blake3.Sum256(p)
	return bytes.Equal(sum[:len(want)], want[:])
}

// Zero takes a request to write zeroes.
func (d *disk) Zero(ctx context.Context, off, n int64, punch, _ bool) error {
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	if err := d.mayWrite(ctx); err != nil {
		return asDrop(err)
	}
	e := block.Extent{Offset: off, Length: n}
	if d.synced {
		return d.zero(e, punch)
	}
	return d.zeroNew(ctx, e, punch)
}

// zeroNew zeroes what does not read as zero in the vault.
func (d *disk) zeroNew(ctx context.Context, e block.Extent, punch bool) error {
	if d.base == nil || d.changed.Overlaps(e) {
		d.changed.Add(e)
		return d.zero(e, punch)
	}
	for e.Length > 0 {
		spans, err := d.base.image.Map(ctx, e)
		if err != nil || len(spans) == 0 {
			return asDrop(fmt.Errorf("map disk %q of the vault: %w", d.id, err))
		}
		for _, sp := range spans {
			if !sp.Zero {
				d.changed.Add(sp.Extent)
				if err := d.zero(sp.Extent, punch); err != nil {
					return err
				}
			}
			e = block.Extent{Offset: sp.End(), Length: e.End() - sp.End()}
		}
	}
	return nil
}

func (d *disk) zero(e block.Extent, punch bool) error {
	d.wrote(e.Offset, e.Length)
	kind := journal.Zero
	if punch {
		kind = journal.Hole
	}
	_, err := d.s.accept(journal.Record{Kind: kind, Disk: d.index, Offset: e.Offset, Length: e.Length})
	if err != nil {
		d.s.dropAll(err)
		return asDrop(err)
	}
	return nil
}

// Flush has nothing to do: what was acknowledged is kept already.
func (d *disk) Flush(context.Context) error { return nil }

var _ nbd.Backend = (*disk)(nil)

// allZero says whether p has only zero bytes.
func allZero(p []byte) bool {
	for len(p) >= len(zeroes) {
		if !bytes.Equal(p[:len(zeroes)], zeroes[:]) {
			return false
		}
		p = p[len(zeroes):]
	}
	return bytes.Equal(p, zeroes[:len(p)])
}

var zeroes [blockSize]byte
