// Package scrub is the differential scrub: it compares disks of running machines,
// piece by piece, with what the vault has of them, so that a change that never
// arrived is found and not only what was damaged after it had. It knows neither
// gateway nor vault: a Watch is told what is written and compares, where the vault is;
// a Runner reads the disks, where the machine is, and drives it.
package scrub

import (
	"bytes"
	"context"
	"fmt"
	"sync"

	"github.com/zeebo/blake3"

	"github.com/holdfast-dr/holdfast/internal/block"
)

const (
	// BlockSize is what is compared at once, in bytes.
	BlockSize = 4096
	// SumSize is how long a block's sum is, in bytes.
	SumSize = 16
	// AtOnce is how much is read of a disk and compared with one request, in bytes.
	AtOnce = 4 << 20
)

// Sum is what a block is compared by: the first bytes of its BLAKE3 hash.
type Sum [SumSize]byte

// SumOf returns a block's sum.
func SumOf(p []byte) Sum {
	h := blake3.Sum256(p)
	return Sum(h[:SumSize])
}

// Sums returns the sums of the blocks that p has, the last of which may be short.
func Sums(p []byte) []byte {
	out := make([]byte, 0, (len(p)+BlockSize-1)/BlockSize*SumSize)
	for len(p) > 0 {
		n := min(len(p), BlockSize)
		s := SumOf(p[:n])
		out, p = append(out, s[:]...), p[n:]
	}
	return out
}

// zeroSum is the sum of a whole block of zeroes.
var zeroSum = SumOf(make([]byte, BlockSize))

// Kept is a disk as the vault has it at one position.
type Kept interface {
	block.Image
	// BlockHash returns the sum of block n if it is known without reading it.
	BlockHash(n int64) (Sum, bool)
}

// Watch compares one disk with what the vault has of it at a position, and leaves
// out what was written since the Watch was made: that must be before the position is
// chosen. Safe for concurrent use.
type Watch struct {
	mu      sync.Mutex
	written block.Set
}

// Wrote says that the source has written an extent.
func (w *Watch) Wrote(e block.Extent) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.written.Add(e)
}

// touched says whether any of a block was written.
func (w *Watch) touched(e block.Extent) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.written.Overlaps(e)
}

// Result is what comparing a piece has shown.
type Result struct {
	Differ  []Difference `json:"differ,omitempty"`
	Skipped int64        `json:"skipped"` // bytes that were written meanwhile
}

// Difference is one block that is not as the vault has it.
type Difference struct {
	Offset int64 `json:"offset"`
	Source Sum   `json:"source"`
	Kept   Sum   `json:"kept"`
}

// Compare compares the sums of a piece's blocks, which begins at a multiple of
// BlockSize. Blocks whose sum the vault's index has not are read from it.
func (w *Watch) Compare(ctx context.Context, kept Kept, off int64, sums []byte) (r Result, err error) {
	if off < 0 || off%BlockSize != 0 || len(sums)%SumSize != 0 || len(sums) > AtOnce/BlockSize*SumSize {
		return r, fmt.Errorf("compare %d bytes of sums at %d: not whole blocks", len(sums), off)
	}
	for ; len(sums) > 0; off, sums = off+BlockSize, sums[SumSize:] {
		e := block.Extent{Offset: off, Length: min(BlockSize, kept.Size()-off)}
		if e.Length <= 0 {
			return r, fmt.Errorf("compare a block at %d of a disk of %d bytes", off, kept.Size())
		}
		if w.touched(e) {
			r.Skipped += e.Length
			continue
		}
		has, err := sumOf(ctx, kept, e)
		if err != nil {
			return r, err
		}
		if bytes.Equal(has[:], sums[:SumSize]) {
			continue
		}
		if w.touched(e) {
			r.Skipped += e.Length
			continue
		}
		r.Differ = append(r.Differ, Difference{Offset: off, Source: Sum(sums[:SumSize]), Kept: has})
	}
	return r, nil
}

// sumOf returns the sum of what the vault has in a block.
func sumOf(ctx context.Context, kept Kept, e block.Extent) (Sum, error) {
	if s, ok := kept.BlockHash(e.Offset / BlockSize); ok && e.Length == BlockSize {
		return s, nil
	}
	spans, err := kept.Map(ctx, e)
	if err != nil {
		return Sum{}, err
	}
	if len(spans) == 1 && spans[0].Zero && e.Length == BlockSize {
		return zeroSum, nil
	}
	p := make([]byte, e.Length)
	if err := kept.ReadAt(ctx, p, e.Offset); err != nil {
		return Sum{}, err
	}
	return SumOf(p), nil
}
