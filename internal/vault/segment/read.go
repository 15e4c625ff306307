package segment

import (
	"bytes"

	"github.com/zeebo/blake3"
)

// Reader decodes the parts of one segment. Safe for concurrent use.
type Reader struct {
	Header Header
	Index  *Index
	// Hash is that of header and index, by which the next segment names this one.
	Hash   [HashSize]byte
	sealer *sealer
	codec  *Codec
}

// NewReader decodes the index of a segment, from its header and its index as
// stored. It fails with ErrCorrupt or ErrNewer.
func NewReader(header, index []byte, key Key, c *Codec) (*Reader, error) {
	h, err := ParseHeader(header)
	if err != nil {
		return nil, err
	}
	s, err := newSealer(key, header[:HeaderSize])
	if err != nil {
		return nil, err
	}
	if int64(len(index)) != h.IndexLen {
		return nil, corrupt("index has %d bytes, header says %d", len(index), h.IndexLen)
	}
	z, err := s.open(indexNonce, index)
	if err != nil {
		return nil, err
	}
	plain, err := c.dec.DecodeAll(z, nil)
	if err != nil || len(plain) > maxPlainIndex {
		return nil, corrupt("index does not decompress")
	}
	x, err := decodeIndex(plain, &h)
	if err != nil {
		return nil, err
	}
	return &Reader{Header: h, Index: x, Hash: chain(header[:HeaderSize], index), sealer: s, codec: c}, nil
}

// Frame decodes a frame from its bytes as stored.
func (r *Reader) Frame(n uint32, stored []byte) ([]byte, error) {
	if n >= uint32(len(r.Index.Frames)) {
		return nil, corrupt("there is no frame %d", n)
	}
	f := r.Index.Frames[n]
	if len(stored) != int(f.Stored) {
		return nil, corrupt("frame %d has %d bytes, the index says %d", n, len(stored), f.Stored)
	}
	p, err := r.sealer.open(uint64(n), stored)
	if err != nil {
		return nil, err
	}
	if f.Zstd {
		if p, err = r.codec.dec.DecodeAll(p, make([]byte, 0, f.Raw)); err != nil {
			return nil, corrupt("frame %d does not decompress", n)
		}
	}
	if len(p) != int(f.Raw) {
		return nil, corrupt("frame %d has %d bytes, the index says %d", n, len(p), f.Raw)
	}
	return p, nil
}

// CheckSum checks a whole segment without its key: its header, its size and its
// footer. It finds damage, not malice.
func CheckSum(encoded []byte) (Header, error) {
	h, err := ParseHeader(encoded)
	if err != nil {
		return h, err
	}
	if int64(len(encoded)) != h.Size() {
		return h, corrupt("it has %d bytes, its header says %d", len(encoded), h.Size())
	}
	body, footer := encoded[:len(encoded)-FooterSize], encoded[len(encoded)-FooterSize:]
	sum := blake3.Sum256(body)
	if !bytes.Equal(footer[:HashSize], sum[:]) || string(footer[HashSize:]) != footerMagic {
		return h, corrupt("its checksum does not match")
	}
	return h, nil
}

// ChainHash returns the hash by which the next segment names this one. It checks
// nothing but the header.
func ChainHash(encoded []byte) ([HashSize]byte, error) {
	h, err := ParseHeader(encoded)
	if err == nil && int64(len(encoded)) != h.Size() {
		err = corrupt("it has %d bytes, its header says %d", len(encoded), h.Size())
	}
	if err != nil {
		return [HashSize]byte{}, err
	}
	return chain(encoded[:HeaderSize], encoded[h.IndexOff:h.IndexOff+h.IndexLen]), nil
}

// Open checks a whole segment and decodes its index.
func Open(encoded []byte, key Key, c *Codec) (*Reader, error) {
	h, err := CheckSum(encoded)
	if err != nil {
		return nil, err
	}
	return NewReader(encoded[:HeaderSize], encoded[h.IndexOff:h.IndexOff+h.IndexLen], key, c)
}

// Verify checks all of a segment: checksum, authenticity, and every block's hash.
func Verify(encoded []byte, key Key, c *Codec) (*Reader, error) {
	r, err := Open(encoded, key, c)
	if err != nil {
		return nil, err
	}
	frames := make([][]byte, len(r.Index.Frames))
	for i, f := range r.Index.Frames {
		if frames[i], err = r.Frame(uint32(i), encoded[f.Offset:f.Offset+int64(f.Stored)]); err != nil {
			return nil, err
		}
	}
	for i := range r.Index.Entries {
		e := &r.Index.Entries[i]
		if e.Kind != Data {
			continue
		}
		p, off := frames[e.Frame][e.FrameOff:][:e.Length], e.Offset
		for _, want := range e.Hashes {
			n := min(int64(len(p)), BlockSize-off%BlockSize)
			if HashBlock(p[:n]) != want {
				return nil, corrupt("a block of the write at position %s has another hash", e.Position)
			}
			p, off = p[n:], off+n
		}
	}
	return r, nil
}
