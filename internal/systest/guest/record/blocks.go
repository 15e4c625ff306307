package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// The strict write test: each thread owns a ring of blocks on a raw disk and
// writes its numbers 1, 2, 3 … round it, each only after the one before has
// completed. Every block also carries what its writer knew of all the other
// threads: the number that each had completed when the write was issued. On a
// disk as it was at any one moment, therefore, a thread's newest numbers are
// all there, and no block knows of a write that is missing.
const (
	// BlockSize is the size of one numbered block in bytes.
	BlockSize = 4096
	// MaxThreads bounds how many threads a test has.
	MaxThreads = 24
	// Ring is how many blocks each thread owns.
	Ring = 64

	blockHeader = 8 + 4 + 4 + 8
	blockBody   = blockHeader + 8*MaxThreads
)

var blockMagic = [8]byte{'H', 'F', 'B', 'L', 'K', '0', '1', '\n'}

// SequenceBytes is how many bytes at the start of a disk a test needs.
func SequenceBytes(threads int) int64 { return int64(threads) * Ring * BlockSize }

// Block is one numbered block.
type Block struct {
	Thread  int
	Threads int
	Number  uint64
	// Known has, for each thread, the last number it had completed when this
	// block was issued.
	Known [MaxThreads]uint64
}

// Offset returns where the block belongs on the disk.
func (b Block) Offset() int64 {
	return (int64(b.Thread)*Ring + int64(b.Number%Ring)) * BlockSize
}

// Put fills p, which is BlockSize long, with the block.
func (b Block) Put(p []byte) {
	clear(p[:BlockSize])
	copy(p, blockMagic[:])
	binary.LittleEndian.PutUint32(p[8:], uint32(b.Thread))
	binary.LittleEndian.PutUint32(p[12:], uint32(b.Threads))
	binary.LittleEndian.PutUint64(p[16:], b.Number)
	for i, k := range b.Known {
		binary.LittleEndian.PutUint64(p[blockHeader+8*i:], k)
	}
	for i := blockBody; i < BlockSize-4; i++ {
		p[i] = byte(b.Number) ^ byte(i)
	}
	binary.LittleEndian.PutUint32(p[BlockSize-4:], crc32.Checksum(p[:BlockSize-4], castagnoli))
}

// ParseBlock reads a block of BlockSize bytes. The error is ErrBad.
func ParseBlock(p []byte) (Block, error) {
	var b Block
	if len(p) != BlockSize || [8]byte(p[:8]) != blockMagic ||
		binary.LittleEndian.Uint32(p[BlockSize-4:]) != crc32.Checksum(p[:BlockSize-4], castagnoli) {
		return b, ErrBad
	}
	thread, threads := binary.LittleEndian.Uint32(p[8:]), binary.LittleEndian.Uint32(p[12:])
	if threads == 0 || threads > MaxThreads || thread >= threads {
		return b, ErrBad
	}
	b.Thread, b.Threads = int(thread), int(threads)
	b.Number = binary.LittleEndian.Uint64(p[16:])
	for i := range b.Known {
		b.Known[i] = binary.LittleEndian.Uint64(p[blockHeader+8*i:])
	}
	return b, nil
}

// Sequence is what CheckBlocks found.
type Sequence struct {
	Last [MaxThreads]uint64 // each thread's newest number on the disk
	// Violations says, one sentence each and at most 20, why the disk cannot
	// have been so at one moment.
	Violations []string
}

// Consistent says whether the disk can have been so at one moment.
func (s Sequence) Consistent() bool { return len(s.Violations) == 0 }

// CheckBlocks judges the first SequenceBytes(threads) of a disk on which the
// strict write test ran with that many threads, over zeroes at first. An error
// is one of reading only.
func CheckBlocks(r io.ReaderAt, threads int) (Sequence, error) {
	var s Sequence
	if threads < 1 || threads > MaxThreads {
		return s, fmt.Errorf("check blocks: %d threads, want 1 to %d", threads, MaxThreads)
	}
	complain := func(format string, args ...any) {
		if len(s.Violations) < 20 {
			s.Violations = append(s.Violations, fmt.Sprintf(format, args...))
		}
	}
	var found []Block
	buf := make([]byte, BlockSize)
	for slot := range threads * Ring {
		n, err := r.ReadAt(buf, int64(slot)*BlockSize)
		if n < BlockSize && err != nil && !errors.Is(err, io.EOF) {
			return s, fmt.Errorf("check blocks: slot %d: %w", slot, err)
		}
		if allZero(buf[:n]) {
			continue
		}
		b, err := ParseBlock(buf[:n])
		if err != nil || b.Offset() != int64(slot)*BlockSize {
			complain("slot %d holds no block that belongs there", slot)
			continue
		}
		found = append(found, b)
		s.Last[b.Thread] = max(s.Last[b.Thread], b.Number)
	}
	have := make(map[[2]uint64]bool, len(found))
	for _, b := range found {
		have[[2]uint64{uint64(b.Thread), b.Number}] = true
	}
	for t := range threads {
		first := uint64(1)
		if s.Last[t] > Ring {
			first = s.Last[t] - Ring + 1
		}
		for n := first; n < s.Last[t]; n++ {
			if !have[[2]uint64{uint64(t), n}] {
				complain("thread %d is at %d but %d is missing", t, s.Last[t], n)
			}
		}
	}
	for _, b := range found {
		for t, k := range b.Known {
			if k > s.Last[t] {
				complain("block %d of thread %d knows of %d of thread %d, which is at %d", b.Number, b.Thread, k, t, s.Last[t])
			}
		}
	}
	return s, nil
}

func allZero(p []byte) bool {
	for _, c := range p {
		if c != 0 {
			return false
		}
	}
	return true
}
