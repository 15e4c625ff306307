package segment

import (
	"crypto/rand"
	"fmt"
	"runtime"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/block"
)

// Builder gathers the entries of a segment. It is not safe for concurrent use.
type Builder struct {
	index  Index
	disks  map[string]uint32
	frames [][]byte // raw, each at most MaxFrame
	raw    int64
	first  holdfast.Position
	last   holdfast.Position
	from   time.Time
	to     time.Time
}

// NewBuilder returns an empty builder.
func NewBuilder() *Builder { return &Builder{disks: map[string]uint32{}} }

// Empty says whether nothing was added.
func (b *Builder) Empty() bool { return len(b.index.Entries) == 0 }

// RawBytes returns how many bytes of data were added.
func (b *Builder) RawBytes() int64 { return b.raw }

// First returns the first position that was added, and Last the last one.
func (b *Builder) First() holdfast.Position { return b.first }

// Last returns the last position that was added.
func (b *Builder) Last() holdfast.Position { return b.last }

// Full says whether the builder has reached a limit of the format.
func (b *Builder) Full() bool {
	return len(b.index.Entries) >= MaxEntries/2 || len(b.frames) >= MaxFrames/2 || b.raw >= MaxSize/2
}

// add adds an entry; the format has microseconds.
func (b *Builder) add(e Entry) {
	e.Time = e.Time.Truncate(time.Microsecond)
	if b.Empty() {
		b.first, b.from = e.Position, e.Time
	}
	b.last, b.to = e.Position, e.Time
	b.index.Entries = append(b.index.Entries, e)
}

func (b *Builder) disk(id string) uint32 {
	n, ok := b.disks[id]
	if !ok {
		n = uint32(len(b.index.Disks))
		b.disks[id] = n
		b.index.Disks = append(b.index.Disks, id)
	}
	return n
}

// Write adds a write; data is copied. Offset and length are multiples of 512.
// Positions and times must not go back.
func (b *Builder) Write(pos holdfast.Position, at time.Time, disk string, off int64, data []byte) {
	d := b.disk(disk)
	for len(data) > 0 {
		f := len(b.frames) - 1
		// Parts of a write lie in frames of their own, so that a frame has
		// neighbours on the disk, and small writes share one.
		if f < 0 || len(b.frames[f])+min(len(data), MaxFrame) > MaxFrame {
			b.frames = append(b.frames, make([]byte, 0, MaxFrame))
			f++
		}
		n := min(len(data), MaxFrame-len(b.frames[f]))
		b.add(Entry{Position: pos, Time: at, Kind: Data, Disk: d, Offset: off, Length: int64(n), Frame: uint32(f), FrameOff: uint32(len(b.frames[f]))})
		b.frames[f] = append(b.frames[f], data[:n]...)
		b.raw += int64(n)
		data, off = data[n:], off+int64(n)
	}
}

// Zero adds a zeroing.
func (b *Builder) Zero(pos holdfast.Position, at time.Time, disk string, e block.Extent, hole bool) {
	kind := Zero
	if hole {
		kind = Hole
	}
	b.add(Entry{Position: pos, Time: at, Kind: kind, Disk: b.disk(disk), Offset: e.Offset, Length: e.Length})
}

// Mark adds a mark, as JSON.
func (b *Builder) Mark(pos holdfast.Position, at time.Time, mark []byte) {
	b.add(Entry{Position: pos, Time: at, Kind: Mark, Mark: mark})
}

// Finish encodes the segment. Of the header it takes kind, generation, stream,
// timeline, sequence number and the hash of the segment before, and of an empty
// segment also the last position and the times; the rest it fills in, the salt at random unless it is given. The builder must not be used
// afterwards.
func (b *Builder) Finish(h Header, key Key, c *Codec) ([]byte, Header, error) {
	if b.Empty() {
		h.First = h.Last + 1
	} else {
		h.First, h.Last, h.FirstTime, h.LastTime = b.first, b.last, b.from, b.to
	}
	if h.Salt == [SaltSize]byte{} {
		_, _ = rand.Read(h.Salt[:]) // never fails
	}
	stored, err := b.compress(c)
	if err != nil {
		return nil, h, err
	}
	h.Frames, h.RawBytes, h.IndexOff = uint32(len(b.frames)), b.raw, HeaderSize
	for _, f := range b.index.Frames {
		h.IndexOff += int64(f.Stored)
	}
	plain := b.index.encode(&h)
	index := c.enc.EncodeAll(plain, nil)
	h.IndexLen = int64(len(index) + tagSize)
	if h.Size() > MaxSize || h.IndexLen > MaxIndex || len(plain) > maxPlainIndex {
		return nil, h, fmt.Errorf("segment of %d bytes with an index of %d is above the limits of the format", h.Size(), h.IndexLen)
	}
	out, err := b.encrypt(&h, key, stored, index)
	return out, h, err
}

// compress compresses the frames and hashes the blocks, on all cores.
func (b *Builder) compress(c *Codec) ([][]byte, error) {
	stored := make([][]byte, len(b.frames))
	b.index.Frames = make([]Frame, len(b.frames))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	const batch = 16
	for at := 0; at < len(b.frames); at += batch {
		g.Go(func() error {
			for i := at; i < min(at+batch, len(b.frames)); i++ {
				raw := b.frames[i]
				z := c.enc.EncodeAll(raw, make([]byte, 0, len(raw)+512))
				f := Frame{Raw: uint32(len(raw)), Zstd: len(z) < len(raw)-len(raw)/16}
				if !f.Zstd {
					z = raw
				}
				f.Stored = uint32(len(z) + tagSize)
				stored[i], b.index.Frames[i] = z, f
			}
			return nil
		})
	}
	const entries = 256
	for at := 0; at < len(b.index.Entries); at += entries {
		g.Go(func() error {
			for i := at; i < min(at+entries, len(b.index.Entries)); i++ {
				b.hash(&b.index.Entries[i])
			}
			return nil
		})
	}
	return stored, g.Wait()
}

func (b *Builder) hash(e *Entry) {
	if e.Kind != Data {
		return
	}
	p := b.frames[e.Frame][e.FrameOff:][:e.Length]
	e.Hashes = make([][BlockHash]byte, 0, blocks(e.Offset, e.Length))
	for off := e.Offset; len(p) > 0; {
		n := min(int64(len(p)), BlockSize-off%BlockSize)
		e.Hashes = append(e.Hashes, HashBlock(p[:n]))
		p, off = p[n:], off+n
	}
}

// encrypt puts the segment together.
func (b *Builder) encrypt(h *Header, key Key, stored [][]byte, index []byte) ([]byte, error) {
	header := h.encode()
	s, err := newSealer(key, header)
	if err != nil {
		return nil, err
	}
	out := make([]byte, HeaderSize, h.Size())
	copy(out, header)
	for i, z := range stored {
		out = s.seal(out, uint64(i), z)
	}
	out = s.seal(out, indexNonce, index)
	sum := blake3.Sum256(out)
	return append(append(out, sum[:]...), footerMagic...), nil
}
