package vault

import (
	"bytes"
	"context"
	"fmt"

	"github.com/zeebo/blake3"

	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/vault/segment"
)

// differChunk is how much of a copy is looked at at a time, in bytes.
const differChunk = 1 << 20

// Differs returns where a copy of a disk differs from the view, in blocks of
// 4 KiB. It reads what the copy has of data, and of the vault only blocks whose
// hash is not in the index. The copy must not change meanwhile, and must have
// the size of the view's disk. progress, which may be nil, is told how far it is.
func (v *View) Differs(ctx context.Context, disk string, replica block.Image, progress func(done, total int64)) (*block.Set, error) {
	d, ok := v.disks[disk]
	if !ok {
		return nil, fmt.Errorf("stream %s has no disk %q", v.s.desc.ID, disk)
	}
	size := d.Size()
	if replica.Size() != size {
		return nil, fmt.Errorf("compare disk %q: the copy has %d bytes, the view %d", disk, replica.Size(), size)
	}
	c := &comparison{d: d, replica: replica, out: &block.Set{}}
	for off := int64(0); off < size; off += differChunk {
		e := block.Extent{Offset: off, Length: min(differChunk, size-off)}
		if err := c.chunk(ctx, e); err != nil {
			return nil, fmt.Errorf("compare disk %q at %d: %w", disk, off, err)
		}
		if progress != nil {
			progress(e.End(), size)
		}
	}
	return c.out, nil
}

// comparison is one run of Differs.
type comparison struct {
	d       *diskView
	replica block.Image
	out     *block.Set
	mine    [differChunk]byte
}

func (c *comparison) chunk(ctx context.Context, e block.Extent) error {
	blank, err := allZero(ctx, c.replica, e)
	if err != nil {
		return err
	}
	wanted, err := allZero(ctx, c.d, e)
	if err != nil || blank && wanted {
		return err
	}
	mine := c.mine[:e.Length]
	if blank {
		clear(mine)
	} else if err := c.replica.ReadAt(ctx, mine, e.Offset); err != nil {
		return err
	}
	for at := int64(0); at < e.Length; {
		n := min(segment.BlockSize, e.Length-at)
		same, err := c.same(ctx, mine[at:at+n], e.Offset+at)
		if err != nil {
			return err
		}
		if !same {
			c.out.Add(block.Extent{Offset: e.Offset + at, Length: n})
		}
		at += n
	}
	return nil
}

// same compares one block, or what there is of it at the end of the disk.
func (c *comparison) same(ctx context.Context, mine []byte, off int64) (bool, error) {
	if len(mine) == segment.BlockSize {
		if want, ok := c.d.view.BlockHash(c.d.disk.ID, off/segment.BlockSize); ok {
			sum := blake3.Sum256(mine)
			return bytes.Equal(sum[:len(want)], want[:]), nil
		}
	}
	var theirs [segment.BlockSize]byte
	if err := c.d.ReadAt(ctx, theirs[:len(mine)], off); err != nil {
		return false, err
	}
	return bytes.Equal(mine, theirs[:len(mine)]), nil
}

// allZero says whether an image is known, without reading, to have only zeroes
// in an extent.
func allZero(ctx context.Context, img block.Image, e block.Extent) (bool, error) {
	for e.Length > 0 {
		spans, err := img.Map(ctx, e)
		if err != nil {
			return false, err
		}
		for _, s := range spans {
			if !s.Zero {
				return false, nil
			}
			e = block.Extent{Offset: s.End(), Length: e.End() - s.End()}
		}
		if len(spans) == 0 {
			return false, nil
		}
	}
	return true, nil
}
