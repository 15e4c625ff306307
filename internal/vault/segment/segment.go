// Package segment is the format of segments: bytes in, bytes out. A segment
// holds the writes of a stream between two positions, with an index, marks and
// checksums, compressed and encrypted. docs/format/segment.md is its
// specification. It knows no store, and only package vault uses it.
package segment

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/zeebo/blake3"

	holdfast "github.com/holdfast-dr/holdfast"
)

// Version is the version of the format. Older software refuses newer segments.
//
//	1  the first
const Version = 1

// The sizes of the format, in bytes.
const (
	HeaderSize = 176
	FooterSize = 40
	SaltSize   = 32
	KeySize    = 32
	HashSize   = 32 // of segments
	BlockSize  = 4096
	BlockHash  = 16 // of blocks
	MaxFrame   = 64 << 10
	// MaxSize bounds a segment, MaxEntries and MaxFrames its parts.
	MaxSize    = 256 << 20
	MaxIndex   = 64 << 20
	MaxEntries = 1 << 22
	MaxFrames  = 1 << 20
	MaxDisks   = 4096
	MaxDiskID  = 64
	MaxMark    = 64 << 10
	// MaxPosition bounds positions, so that one after the last can be told.
	MaxPosition = holdfast.Position(1)<<63 - 1
	tagSize     = 16
	// maxPlainIndex bounds an index before compression.
	maxPlainIndex = 256 << 20
)

const (
	magic       = "HFSEG\r\n\x1a"
	footerMagic = "HFSEGEND"
)

var (
	// ErrCorrupt says that bytes are not what was written.
	ErrCorrupt = errors.New("segment is damaged")
	// ErrNewer says that newer software wrote the segment.
	ErrNewer = errors.New("segment was written by newer software")
)

// Kind is what a segment is for.
type Kind uint16

// The kinds.
const (
	// Writes has writes and marks.
	Writes Kind = 1
	// End closes its timeline: nothing follows it.
	End Kind = 2
	// Kept stands for several segments of which only a part is kept.
	Kept Kind = 3
)

// Header is the part of a segment that can be read without a key. It is
// authenticated with everything else. Times are in microseconds.
type Header struct {
	Kind       Kind
	Generation holdfast.Generation
	Stream     holdfast.StreamID
	Timeline   holdfast.TimelineID
	Seq        uint64
	First      holdfast.Position // of its entries; in an empty segment Last+1
	Last       holdfast.Position
	FirstTime  time.Time
	LastTime   time.Time
	Prev       [HashSize]byte // Hash of the segment before, zero for the first
	Salt       [SaltSize]byte
	IndexOff   int64
	IndexLen   int64 // as stored
	Frames     uint32
	RawBytes   int64 // of data, before compression
}

func (h *Header) encode() []byte {
	b := make([]byte, HeaderSize)
	copy(b, magic)
	le := binary.LittleEndian
	le.PutUint16(b[8:], Version)
	le.PutUint16(b[10:], uint16(h.Kind))
	le.PutUint32(b[12:], uint32(h.Generation))
	copy(b[16:], h.Stream[:])
	le.PutUint32(b[32:], uint32(h.Timeline))
	le.PutUint64(b[40:], h.Seq)
	le.PutUint64(b[48:], uint64(h.First))
	le.PutUint64(b[56:], uint64(h.Last))
	le.PutUint64(b[64:], uint64(h.FirstTime.UnixMicro()))
	le.PutUint64(b[72:], uint64(h.LastTime.UnixMicro()))
	copy(b[80:], h.Prev[:])
	copy(b[112:], h.Salt[:])
	le.PutUint64(b[144:], uint64(h.IndexOff))
	le.PutUint64(b[152:], uint64(h.IndexLen))
	le.PutUint32(b[160:], h.Frames)
	le.PutUint64(b[168:], uint64(h.RawBytes))
	return b
}

// ParseHeader reads a header, which is HeaderSize bytes. It fails with
// ErrCorrupt or ErrNewer.
func ParseHeader(b []byte) (Header, error) {
	var h Header
	if len(b) < HeaderSize {
		return h, corrupt("header has %d bytes, want %d", len(b), HeaderSize)
	}
	if string(b[:8]) != magic {
		return h, corrupt("it does not begin as a segment")
	}
	le := binary.LittleEndian
	if v := le.Uint16(b[8:]); v > Version {
		return h, fmt.Errorf("%w: format %d, this software knows %d", ErrNewer, v, Version)
	} else if v != Version {
		return h, corrupt("format version %d", v)
	}
	h.Kind = Kind(le.Uint16(b[10:]))
	h.Generation = holdfast.Generation(le.Uint32(b[12:]))
	copy(h.Stream[:], b[16:])
	h.Timeline = holdfast.TimelineID(le.Uint32(b[32:]))
	h.Seq = le.Uint64(b[40:])
	h.First, h.Last = holdfast.Position(le.Uint64(b[48:])), holdfast.Position(le.Uint64(b[56:]))
	h.FirstTime, h.LastTime = time.UnixMicro(int64(le.Uint64(b[64:]))), time.UnixMicro(int64(le.Uint64(b[72:])))
	copy(h.Prev[:], b[80:])
	copy(h.Salt[:], b[112:])
	h.IndexOff, h.IndexLen = int64(le.Uint64(b[144:])), int64(le.Uint64(b[152:]))
	h.Frames, h.RawBytes = le.Uint32(b[160:]), int64(le.Uint64(b[168:]))
	return h, h.validate(b)
}

// validate checks what must hold between the fields.
func (h *Header) validate(b []byte) error {
	zero := binary.LittleEndian.Uint32(b[36:]) | binary.LittleEndian.Uint32(b[164:])
	switch {
	case h.Kind != Writes && h.Kind != End && h.Kind != Kept:
		return corrupt("unknown kind %d", h.Kind)
	case zero != 0:
		return corrupt("reserved bytes are not zero")
	case h.Seq == 0 || h.Timeline == 0 || h.Generation == 0:
		return corrupt("sequence %d, timeline %d, generation %d", h.Seq, h.Timeline, h.Generation)
	case h.First == 0 || h.Last > MaxPosition || h.First > h.Last+1 || (h.First > h.Last) != (h.Kind == End):
		return corrupt("positions %s to %s in a segment of kind %d", h.First, h.Last, h.Kind)
	case h.FirstTime.After(h.LastTime):
		return corrupt("its first time is after its last")
	case h.IndexOff < HeaderSize || h.IndexLen < tagSize || h.IndexLen > MaxIndex || h.IndexOff > MaxSize || h.Size() > MaxSize:
		return corrupt("index of %d bytes at %d", h.IndexLen, h.IndexOff)
	case h.Frames > MaxFrames || h.RawBytes < 0 || h.RawBytes > int64(h.Frames)*MaxFrame:
		return corrupt("%d frames with %d bytes", h.Frames, h.RawBytes)
	}
	return nil
}

// Size returns the size of the whole segment.
func (h *Header) Size() int64 { return h.IndexOff + h.IndexLen + FooterSize }

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...)
}

// Key is the key of a stream.
type Key [KeySize]byte

// sealer encrypts and decrypts the parts of one segment.
type sealer struct {
	aead cipher.AEAD
	ad   [32]byte
}

// indexNonce is the number under which the index is encrypted.
const indexNonce = ^uint64(0)

func newSealer(key Key, header []byte) (*sealer, error) {
	material := append(append([]byte{}, key[:]...), header[112:112+SaltSize]...)
	var k [32]byte
	blake3.DeriveKey("holdfast 2026 segment key v1", material, k[:])
	blk, err := aes.NewCipher(k[:])
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(blk)
	return &sealer{aead: aead, ad: blake3.Sum256(header)}, err
}

func nonce(n uint64) []byte {
	var b [12]byte
	binary.LittleEndian.PutUint64(b[4:], n)
	return b[:]
}

func (s *sealer) seal(dst []byte, n uint64, plain []byte) []byte {
	return s.aead.Seal(dst, nonce(n), plain, s.ad[:])
}

func (s *sealer) open(n uint64, stored []byte) ([]byte, error) {
	b, err := s.aead.Open(nil, nonce(n), stored, s.ad[:])
	if err != nil {
		return nil, corrupt("authentication failed")
	}
	return b, nil
}

// chain returns the hash by which the next segment names this one: of header and
// index as stored. They are what is read when a segment is loaded, so the chain
// is checked then; the frames hang on the index, by their keys and numbers.
func chain(header, index []byte) [HashSize]byte {
	h := blake3.New()
	_, _ = h.Write(header) // never fails
	_, _ = h.Write(index)
	return [HashSize]byte(h.Sum(nil))
}

// HashBlock returns the hash of a block, or of the part of it that an entry has.
func HashBlock(p []byte) [BlockHash]byte {
	sum := blake3.Sum256(p)
	return [BlockHash]byte(sum[:BlockHash])
}
