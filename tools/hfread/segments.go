package main

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"
)

const (
	headerSize = 176
	kindEnd    = 2
	kindKept   = 3
)

// segment is a decoded segment.
type segment struct {
	name        string
	raw         []byte
	kind        uint16
	seq         uint64
	first, last uint64
	previous    []byte
	chain       []byte // by which the next one names it
	aead        cipher.AEAD
	additional  []byte
	disks       []string
	frames      []frame
	entries     []entry
}

type frame struct {
	offset, stored, raw uint64
	zstd                bool
}

type entry struct {
	position     uint64
	time         int64
	kind         byte
	disk         string
	from, length int64
	frame, at    uint64
	mark         string
}

// reader reads an index.
type reader struct {
	b   []byte
	err error
}

func (r *reader) uvarint() uint64 {
	n, size := binary.Uvarint(r.b)
	if size <= 0 {
		r.err = errors.New("the index breaks off")
		r.b = nil
		return 0
	}
	r.b = r.b[size:]
	return n
}

func (r *reader) bytes(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.err = errors.New("the index breaks off")
		r.b = nil
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

var zstdReader, _ = zstd.NewReader(nil, zstd.WithDecoderMaxMemory(256<<20)) // the options are right

// decode reads header and index.
func (s *stream) decode(name string, timeline uint32) (*segment, error) {
	raw, err := os.ReadFile(filepath.Join(s.v.dir, name))
	if err != nil {
		return nil, err
	}
	g := &segment{name: name, raw: raw}
	if len(raw) < headerSize+40 || !bytes.Equal(raw[:8], []byte("HFSEG\r\n\x1a")) || string(raw[len(raw)-8:]) != "HFSEGEND" {
		return nil, fmt.Errorf("%s is no segment", name)
	}
	if sum := blake3.Sum256(raw[:len(raw)-40]); !bytes.Equal(sum[:], raw[len(raw)-40:len(raw)-8]) {
		return nil, fmt.Errorf("%s is damaged", name)
	}
	le := binary.LittleEndian
	h := raw[:headerSize]
	g.kind, g.seq, g.first, g.last, g.previous = le.Uint16(h[10:]), le.Uint64(h[40:]), le.Uint64(h[48:]), le.Uint64(h[56:]), h[80:112]
	at, length := le.Uint64(h[144:]), le.Uint64(h[152:])
	if le.Uint16(h[8:]) != 1 || hex.EncodeToString(h[16:32]) != s.doc.ID || le.Uint32(h[32:]) != timeline || at < headerSize || at+length+40 != uint64(len(raw)) {
		return nil, fmt.Errorf("%s has a wrong header", name)
	}
	index := raw[at : at+length]
	chain := blake3.Sum256(append(bytes.Clone(h), index...))
	g.chain = chain[:]
	additional := blake3.Sum256(h)
	g.additional = additional[:]
	c, err := aes.NewCipher(derive("holdfast 2026 segment key v1", append(bytes.Clone(s.key), h[112:144]...), 32))
	if err != nil {
		return nil, err
	}
	if g.aead, err = cipher.NewGCM(c); err != nil {
		return nil, err
	}
	packed, err := g.aead.Open(nil, append(make([]byte, 4), bytes.Repeat([]byte{0xff}, 8)...), index, g.additional)
	if err != nil {
		return nil, fmt.Errorf("%s: index: %w", name, err)
	}
	plain, err := zstdReader.DecodeAll(packed, nil)
	if err == nil {
		err = g.index(plain, int64(le.Uint64(h[64:])), le.Uint32(h[160:]))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: index: %w", name, err)
	}
	return g, nil
}

func (g *segment) index(plain []byte, time int64, frames uint32) error {
	r := &reader{b: plain}
	for range r.uvarint() {
		g.disks = append(g.disks, string(r.bytes(r.uvarint())))
		if r.err != nil {
			return r.err
		}
	}
	offset := uint64(headerSize)
	n := r.uvarint()
	if n != uint64(frames) {
		return errors.New("the number of frames is not that of the header")
	}
	for range n {
		f := frame{offset: offset, stored: r.uvarint(), raw: r.uvarint()}
		if b := r.bytes(1); r.err == nil {
			f.zstd = b[0] == 1
		} else {
			return r.err
		}
		offset += f.stored
		g.frames = append(g.frames, f)
	}
	position := g.first
	for range r.uvarint() {
		position += r.uvarint()
		time += int64(r.uvarint())
		e := entry{position: position, time: time}
		if b := r.bytes(1); r.err == nil {
			e.kind = b[0]
		}
		switch e.kind {
		case 0, 1, 2:
			d := r.uvarint()
			e.from, e.length = int64(r.uvarint())*512, int64(r.uvarint())*512
			if r.err != nil || d >= uint64(len(g.disks)) || e.length <= 0 || e.from < 0 {
				return errors.New("an entry is not as it must be")
			}
			if e.disk = g.disks[d]; e.kind == 0 {
				e.frame, e.at = r.uvarint(), r.uvarint()
				blocks := (e.from+e.length-1)/4096 - e.from/4096 + 1
				r.bytes(uint64(blocks) * 16)
			}
		case 3:
			e.mark = string(r.bytes(r.uvarint()))
		default:
			return fmt.Errorf("an entry of kind %d", e.kind)
		}
		if r.err != nil {
			return r.err
		}
		g.entries = append(g.entries, e)
	}
	if len(r.b) > 0 || len(g.entries) > 0 && position != g.last {
		return errors.New("it does not end where it must")
	}
	return r.err
}

// data returns what an entry wrote.
func (g *segment) data(e entry) ([]byte, error) {
	if e.frame >= uint64(len(g.frames)) {
		return nil, fmt.Errorf("%s has no frame %d", g.name, e.frame)
	}
	f := g.frames[e.frame]
	if f.offset+f.stored > uint64(len(g.raw)) {
		return nil, fmt.Errorf("%s: frame %d lies outside", g.name, e.frame)
	}
	nonce := binary.LittleEndian.AppendUint64(make([]byte, 4), e.frame)
	plain, err := g.aead.Open(nil, nonce, g.raw[f.offset:f.offset+f.stored], g.additional)
	if err == nil && f.zstd {
		plain, err = zstdReader.DecodeAll(plain, nil)
	}
	if err != nil || uint64(len(plain)) != f.raw || e.at+uint64(e.length) > f.raw {
		return nil, fmt.Errorf("%s: frame %d is damaged: %w", g.name, e.frame, err)
	}
	return plain[e.at : e.at+uint64(e.length)], nil
}

// candidate is an object's name, taken apart.
type candidate struct {
	name            string
	from, to, epoch uint64
}

// objects returns, by the sequence number at which it begins, the object that counts:
// the one that reaches furthest, of those the one of the highest epoch.
func (s *stream) objects(timeline uint32) (map[uint64]candidate, error) {
	dir := fmt.Sprintf("streams/%s/%08x", s.doc.ID, timeline)
	names, err := os.ReadDir(filepath.Join(s.v.dir, dir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	out := map[uint64]candidate{}
	for _, n := range names {
		parts := strings.Split(strings.TrimSuffix(n.Name(), ".seg"), "-")
		c := candidate{name: dir + "/" + n.Name()}
		var errs [3]error
		c.from, errs[0] = strconv.ParseUint(parts[0], 16, 64)
		if c.to = c.from; len(parts) == 3 {
			c.to, errs[1] = strconv.ParseUint(parts[1], 16, 64)
			c.epoch, errs[2] = strconv.ParseUint(parts[2], 16, 64)
		}
		best := out[c.from]
		if errors.Join(errs[:]...) == nil && len(parts) != 2 && (c.to > best.to || c.to == best.to && c.epoch > best.epoch) {
			out[c.from] = c
		}
	}
	return out, nil
}

// each decodes the segments of a timeline in order, and checks their chain.
func (s *stream) each(timeline uint32, do func(*segment) error) error {
	all, err := s.objects(timeline)
	if err != nil {
		return err
	}
	chain := make([]byte, 32)
	for seq := uint64(1); ; {
		c, found := all[seq]
		if !found {
			return nil
		}
		g, err := s.decode(c.name, timeline)
		if err != nil {
			return err
		}
		if g.seq != c.to || !bytes.Equal(g.previous, chain) {
			return fmt.Errorf("%s does not follow what is before it", c.name)
		}
		if chain = g.chain; g.kind == kindKept {
			var m struct {
				Hash string `json:"hash"`
			}
			if len(g.entries) == 0 || json.Unmarshal([]byte(g.entries[0].mark), &m) != nil {
				return fmt.Errorf("%s does not say what it stands for", c.name)
			}
			if chain, err = hex.DecodeString(m.Hash); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
		if err := do(g); err != nil || g.kind == kindEnd {
			return err
		}
		seq = c.to + 1
	}
}
