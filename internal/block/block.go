// Package block has the vocabulary of the data path: extents and sets of them,
// Image (a disk at one moment, to be read), Sink (a disk to be written), and
// the one copy loop between them. It knows no protocol and no vault, and
// imports nothing of this module.
package block

import "context"

// SectorSize is the granularity of every extent, in bytes.
const SectorSize = 512

// Extent is a range of bytes of a disk. Offset and Length are multiples of
// SectorSize unless a function says otherwise.
type Extent struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// End returns the first byte after the extent.
func (e Extent) End() int64 { return e.Offset + e.Length }

// Span is an extent of which it is known whether it reads as zeroes.
type Span struct {
	Extent
	// Zero says that every byte reads as zero. Hole says more: nothing is
	// allocated there; it implies Zero.
	Zero bool `json:"zero"`
	Hole bool `json:"hole"`
}

// Image is a disk at one moment, readable at random. Implementations are safe
// for concurrent use.
type Image interface {
	// Size returns the size in bytes, a multiple of SectorSize.
	Size() int64
	// ReadAt fills p from off or returns an error. Any alignment is allowed.
	// Reading beyond Size is an error. p is not kept.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// Map reports spans that cover the extent from its start, in order and
	// without gaps; it may stop early, but never before the first span, and
	// never reaches beyond the extent.
	Map(ctx context.Context, e Extent) ([]Span, error)
	// Close frees what the image holds. It must not be in use.
	Close() error
}

// Sink is a disk that is written. Implementations are safe for concurrent use
// on extents that do not overlap.
type Sink interface {
	// Size returns the size in bytes.
	Size() int64
	// WriteAt writes p at off. p may be used again when it returns. The write
	// is durable after the next Flush.
	WriteAt(ctx context.Context, p []byte, off int64) error
	// Zero makes the extent read as zeroes; with punch it may free the space.
	Zero(ctx context.Context, e Extent, punch bool) error
	// Flush returns when all that was written before is durable.
	Flush(ctx context.Context) error
	// Close frees what the sink holds, without flushing.
	Close() error
}
