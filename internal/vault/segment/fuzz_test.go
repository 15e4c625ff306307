package segment_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/vault/segment"
)

// golden returns the golden segments of all versions.
func golden(f *testing.F) [][]byte {
	f.Helper()
	files, err := filepath.Glob("testdata/*.seg")
	if err != nil || len(files) == 0 {
		f.Fatalf("no golden files: %v", err)
	}
	var out [][]byte
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		out = append(out, b)
	}
	return out
}

// FuzzSegment opens anything as a segment: it is the golden one, or damaged.
func FuzzSegment(f *testing.F) {
	known := golden(f)
	for _, b := range known {
		f.Add(b)
	}
	c := codec(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := segment.ParseHeader(b)
		if err != nil && !isDamage(err) {
			t.Fatalf("ParseHeader: %v is not damage", err)
		}
		if err == nil && h.Size() > segment.MaxSize {
			t.Fatalf("a header of %d bytes passed", h.Size())
		}
		_, err = segment.Verify(b, testKey, c)
		same := false
		for _, k := range known {
			same = same || bytes.Equal(b, k)
		}
		if !same && !isDamage(err) || same && err != nil {
			t.Fatalf("Verify = %v, of a golden segment: %v", err, same)
		}
		if err == nil || int64(len(b)) < h.Size() || h.IndexOff < segment.HeaderSize || h.IndexLen < 0 {
			return
		}
		if _, err := segment.Open(b, testKey, c); err != nil && !isDamage(err) {
			t.Fatalf("Open: %v is not damage", err)
		}
	})
}

// FuzzIndex decodes any bytes as an index, as if they had been authentic: what
// passes keeps the rules, and is encoded as it was.
func FuzzIndex(f *testing.F) {
	c := codec(f)
	for _, b := range golden(f) {
		r, err := segment.Verify(b, testKey, c)
		if err != nil {
			f.Fatal(err)
		}
		h := r.Header
		if _, err := segment.DecodeIndex(segment.EncodeIndex(r.Index, &h), &h); err != nil {
			f.Fatal(err)
		}
		f.Add(segment.EncodeIndex(r.Index, &h), uint64(h.First)-1, uint64(h.Last)-1, h.FirstTime.UnixMicro(), h.LastTime.UnixMicro(), h.Frames, h.IndexOff, h.RawBytes)
	}
	f.Add(binary.AppendUvarint([]byte{0, 0}, segment.MaxEntries), uint64(1), uint64(2), int64(0), int64(1), uint32(0), int64(segment.HeaderSize), int64(0))
	f.Fuzz(func(t *testing.T, b []byte, first, last uint64, from, to int64, frames uint32, indexOff, raw int64) {
		first, last = first%uint64(segment.MaxPosition)+1, last%uint64(segment.MaxPosition)+1
		if first > last+1 || from > to {
			return // a header has no such numbers
		}
		h := segment.Header{First: holdfast.Position(first), Last: holdfast.Position(last), FirstTime: time.UnixMicro(from), LastTime: time.UnixMicro(to),
			Frames: frames, IndexOff: indexOff, RawBytes: raw}
		x, err := segment.DecodeIndex(b, &h)
		if err != nil {
			if !isDamage(err) {
				t.Fatalf("%v is not damage", err)
			}
			return
		}
		pos, at := h.First, h.FirstTime
		for _, e := range x.Entries {
			if e.Position < pos || e.Position > h.Last || e.Time.Before(at) || e.Time.After(h.LastTime) {
				t.Fatalf("entry at %s, %s in a segment of %s to %s", e.Position, e.Time, h.First, h.Last)
			}
			if e.Kind != segment.Mark && (e.Length <= 0 || e.Offset < 0 || e.Offset+e.Length < 0 || int(e.Disk) >= len(x.Disks)) {
				t.Fatalf("entry of %d bytes at %d", e.Length, e.Offset)
			}
			pos, at = e.Position, e.Time
		}
		if again := segment.EncodeIndex(x, &h); !bytes.Equal(again, b) {
			t.Fatalf("an index has two forms:\n%x\n%x", b, again)
		}
	})
}
