package segment

import (
	"encoding/binary"
	"math"
	"time"

	"github.com/klauspost/compress/zstd"

	holdfast "github.com/holdfast-dr/holdfast"
)

// EntryKind is what an entry of the index says.
type EntryKind uint8

// The kinds of entries.
const (
	Data EntryKind = 0
	Zero EntryKind = 1
	Hole EntryKind = 2
	Mark EntryKind = 3
)

// Entry is one write, or a part of one, a zeroing, or a mark.
type Entry struct {
	Position holdfast.Position
	Time     time.Time
	Kind     EntryKind
	Disk     uint32 // index in Index.Disks
	Offset   int64  // bytes on the disk
	Length   int64
	Frame    uint32
	FrameOff uint32
	Hashes   [][BlockHash]byte // Data: of each 4 KiB block of the disk that it touches, clipped to it
	Mark     []byte            // Mark: JSON
}

// Frame is where a frame is, and how it is stored.
type Frame struct {
	Offset int64 // in the segment
	Stored uint32
	Raw    uint32
	Zstd   bool
}

// Index is the table of contents of a segment.
type Index struct {
	Disks   []string
	Frames  []Frame
	Entries []Entry
}

// blocks returns how many blocks of the disk an extent touches.
func blocks(off, length int64) int {
	if length == 0 {
		return 0
	}
	return int((off+length-1)/BlockSize - off/BlockSize + 1)
}

// encode returns the index as it is before compression.
func (x *Index) encode(h *Header) []byte {
	b := binary.AppendUvarint(nil, uint64(len(x.Disks)))
	for _, d := range x.Disks {
		b = append(binary.AppendUvarint(b, uint64(len(d))), d...)
	}
	b = binary.AppendUvarint(b, uint64(len(x.Frames)))
	for _, f := range x.Frames {
		z := byte(0)
		if f.Zstd {
			z = 1
		}
		b = binary.AppendUvarint(b, uint64(f.Stored))
		b = append(binary.AppendUvarint(b, uint64(f.Raw)), z)
	}
	b = binary.AppendUvarint(b, uint64(len(x.Entries)))
	pos, at := h.First, h.FirstTime.UnixMicro()
	for i := range x.Entries {
		e := &x.Entries[i]
		b = binary.AppendUvarint(b, uint64(e.Position-pos))
		b = binary.AppendUvarint(b, uint64(e.Time.UnixMicro()-at))
		pos, at = e.Position, e.Time.UnixMicro()
		b = e.encode(b)
	}
	return b
}

func (e *Entry) encode(b []byte) []byte {
	b = append(b, byte(e.Kind))
	if e.Kind == Mark {
		return append(binary.AppendUvarint(b, uint64(len(e.Mark))), e.Mark...)
	}
	b = binary.AppendUvarint(b, uint64(e.Disk))
	b = binary.AppendUvarint(b, uint64(e.Offset/512))
	b = binary.AppendUvarint(b, uint64(e.Length/512))
	if e.Kind != Data {
		return b
	}
	b = binary.AppendUvarint(b, uint64(e.Frame))
	b = binary.AppendUvarint(b, uint64(e.FrameOff))
	for _, h := range e.Hashes {
		b = append(b, h[:]...)
	}
	return b
}

// reader takes an index apart; the first error sticks.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = corrupt(format, args...)
	}
	r.b = nil
}

// uvarint reads a number of at most limit, in its shortest form.
func (r *reader) uvarint(limit uint64) uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || v > limit || n > 1 && r.b[n-1] == 0 {
		r.fail("number in index is cut off, too long or above %d", limit)
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) bytes(n uint64) []byte {
	if uint64(len(r.b)) < n {
		r.fail("index ends early")
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

// minEntry is the size of the smallest entry: an empty mark at the position and
// time of the one before.
const minEntry = 4

// decodeIndex reads an index. Every count is bounded by the bytes that are there
// before anything is allocated for it.
func decodeIndex(b []byte, h *Header) (*Index, error) {
	r := &reader{b: b}
	x := &Index{}
	x.decodeDisks(r)
	x.decodeFrames(r, h)
	n := r.uvarint(MaxEntries)
	if n > uint64(len(r.b)/minEntry) {
		r.fail("index has %d entries in %d bytes", n, len(r.b))
	}
	if r.err == nil {
		x.Entries = make([]Entry, 0, n)
	}
	pos, at, last := h.First, h.FirstTime.UnixMicro(), h.LastTime.UnixMicro()
	for ; n > 0 && r.err == nil; n-- {
		// Neither sum can overflow: they end at the header's last ones.
		pos += holdfast.Position(r.uvarint(uint64(h.Last - pos)))
		at += int64(r.uvarint(uint64(last) - uint64(at)))
		if len(x.Entries) == 0 && (pos != h.First || at != h.FirstTime.UnixMicro()) {
			r.fail("first entry is not at the header's first position and time")
		}
		x.Entries = append(x.Entries, Entry{Position: pos, Time: time.UnixMicro(at)})
		x.decodeEntry(r, &x.Entries[len(x.Entries)-1])
	}
	switch empty := h.First > h.Last; {
	case r.err != nil:
	case len(r.b) > 0:
		r.fail("index has %d bytes too many", len(r.b))
	case empty != (len(x.Entries) == 0):
		r.fail("index has %d entries for positions %s to %s", len(x.Entries), h.First, h.Last)
	case !empty && (pos != h.Last || at != last):
		r.fail("last entry is not at the header's last position and time")
	}
	if r.err != nil {
		return nil, r.err
	}
	return x, nil
}

func (x *Index) decodeDisks(r *reader) {
	seen := map[string]bool{}
	for n := r.uvarint(MaxDisks); n > 0 && r.err == nil; n-- {
		id := string(r.bytes(r.uvarint(MaxDiskID)))
		if id == "" || seen[id] {
			r.fail("index has disk %q twice or without a name", id)
		}
		seen[id] = true
		x.Disks = append(x.Disks, id)
	}
}

func (x *Index) decodeFrames(r *reader, h *Header) {
	n := r.uvarint(MaxFrames)
	if r.err == nil && (n != uint64(h.Frames) || n > uint64(len(r.b))) {
		r.fail("index has %d frames, header %d", n, h.Frames)
	}
	if r.err == nil {
		x.Frames = make([]Frame, 0, n)
	}
	off, raw := int64(HeaderSize), int64(0)
	for ; n > 0 && r.err == nil; n-- {
		f := Frame{Offset: off, Stored: uint32(r.uvarint(MaxFrame + tagSize)), Raw: uint32(r.uvarint(MaxFrame))}
		f.Zstd = r.uvarint(1) == 1
		if want := f.Raw + tagSize; f.Raw == 0 || f.Stored <= tagSize || f.Stored > want || !f.Zstd && f.Stored != want {
			r.fail("frame of %d bytes is stored in %d", f.Raw, f.Stored)
		}
		off += int64(f.Stored)
		raw += int64(f.Raw)
		x.Frames = append(x.Frames, f)
	}
	if r.err == nil && (off != h.IndexOff || raw != h.RawBytes) {
		r.fail("frames of %d bytes end at %d, header says %d and %d", raw, off, h.RawBytes, h.IndexOff)
	}
}

func (x *Index) decodeEntry(r *reader, e *Entry) {
	e.Kind = EntryKind(r.uvarint(uint64(Mark)))
	if e.Kind == Mark {
		e.Mark = r.bytes(r.uvarint(MaxMark))
		return
	}
	e.Disk = uint32(r.uvarint(MaxDisks - 1))
	e.Offset = int64(r.uvarint(math.MaxInt64/512-1)) * 512
	e.Length = int64(r.uvarint(math.MaxInt64/512-1)) * 512
	if r.err == nil && (int(e.Disk) >= len(x.Disks) || e.Length == 0 || e.Offset > math.MaxInt64-e.Length) {
		r.fail("entry for %d bytes at %d of disk %d", e.Length, e.Offset, e.Disk)
	}
	if e.Kind != Data || r.err != nil {
		return
	}
	e.Frame, e.FrameOff = uint32(r.uvarint(MaxFrames-1)), uint32(r.uvarint(MaxFrame))
	if r.err == nil && (int(e.Frame) >= len(x.Frames) || e.Length > MaxFrame || int64(e.FrameOff)+e.Length > int64(x.Frames[e.Frame].Raw)) {
		r.fail("entry lies outside of frame %d", e.Frame)
		return
	}
	n := blocks(e.Offset, e.Length)
	raw := r.bytes(uint64(n) * BlockHash)
	if r.err != nil {
		return
	}
	e.Hashes = make([][BlockHash]byte, n)
	for i := range e.Hashes {
		copy(e.Hashes[i][:], raw[i*BlockHash:])
	}
}

// codec compresses and decompresses. Safe for concurrent use.
type codec struct {
	enc *zstd.Encoder
	dec *zstd.Decoder
}

// Codec compresses and decompresses segments. It is costly to make and safe for
// concurrent use: have one for a vault.
type Codec struct{ codec }

// NewCodec returns a codec.
func NewCodec() (*Codec, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, err
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(maxPlainIndex), zstd.WithDecoderConcurrency(0))
	if err != nil {
		return nil, err
	}
	return &Codec{codec{enc, dec}}, nil
}
