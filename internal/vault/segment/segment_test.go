package segment_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/vault/segment"
)

var add = flag.Bool("add", false, "write golden files that are missing; those that are there never change")

// start is the time of the first entry.
var start = time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)

var testKey = segment.Key([]byte("0123456789abcdef0123456789ABCDEF"))

func codec(t testing.TB) *segment.Codec {
	t.Helper()
	c, err := segment.NewCodec()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// header is that of a test segment, with a salt that is not random.
func header(kind segment.Kind) segment.Header {
	h := segment.Header{Kind: kind, Generation: 1, Timeline: 1, Seq: 1}
	copy(h.Stream[:], "stream-of-a-test")
	copy(h.Salt[:], "salt that is the same every time")
	return h
}

// pattern is data that compresses, or with a seed data that does not.
func pattern(n int, seed uint64) []byte {
	p := make([]byte, n)
	if seed == 0 {
		for i := range p {
			p[i] = "the quick brown fox\n"[i%20]
		}
		return p
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

// sample is a segment with a name.
type sample struct {
	name    string
	encoded []byte
}

// samples are segments of each kind with entries of each kind.
func samples(t testing.TB) []sample {
	t.Helper()
	c := codec(t)
	var out []sample
	finish := func(name string, b *segment.Builder, h segment.Header) segment.Header {
		encoded, h, err := b.Finish(h, testKey, c)
		if err != nil {
			t.Fatalf("finish %s: %v", name, err)
		}
		out = append(out, sample{name, encoded})
		return h
	}
	b := segment.NewBuilder()
	b.Write(1, start, "vda", 0, pattern(4096, 0))
	b.Write(2, start.Add(time.Millisecond), "vda", 512, pattern(8192, 1))
	b.Write(3, start.Add(time.Millisecond), "vdb", 1<<40, pattern(512, 0))
	b.Zero(4, start.Add(time.Second), "vda", block.Extent{Offset: 4096, Length: 1 << 30}, false)
	b.Zero(5, start.Add(time.Second), "vdb", block.Extent{Length: 512}, true)
	b.Mark(6, start.Add(time.Hour), []byte(`{"kind":"point","name":"before"}`))
	b.Write(7, start.Add(time.Hour), "vda", 1<<20, pattern(100<<10, 2))
	finish("writes", b, header(segment.Writes))

	b = segment.NewBuilder()
	b.Mark(1, start, []byte(`{"kind":"note"}`))
	finish("mark", b, header(segment.Writes))

	h := header(segment.End)
	h.Generation, h.Seq, h.Last, h.FirstTime, h.LastTime = 2, 8, 7, start, start
	copy(h.Prev[:], "a hash of the segment before this")
	finish("end", segment.NewBuilder(), h)
	return out
}

// TestGolden opens segments that were written once and never change: each
// release must read what any earlier one has written.
func TestGolden(t *testing.T) {
	t.Parallel()
	for _, s := range samples(t) {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join("testdata", fmt.Sprintf("v%d-%s.seg", segment.Version, s.name))
			if _, err := os.Stat(file); *add && errors.Is(err, os.ErrNotExist) {
				if err := os.WriteFile(file, s.encoded, 0o644); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file+".txt", []byte(describe(t, s.encoded)), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			golden, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(file + ".txt")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), describe(t, golden)); diff != "" {
				t.Errorf("the golden file reads otherwise (-want +got):\n%s", diff)
			}
			// What compresses may be compressed otherwise by another version of the
			// library, so what is written today is compared as it reads.
			if diff := cmp.Diff(describe(t, golden), describe(t, s.encoded)); diff != "" {
				t.Errorf("written today it reads otherwise (-golden +today):\n%s", diff)
			}
		})
	}
}

// describe says in words all that a segment has, but for what depends on how it
// was compressed.
func describe(t *testing.T, encoded []byte) string {
	t.Helper()
	r, err := segment.Verify(encoded, testKey, codec(t))
	if err != nil {
		t.Fatal(err)
	}
	h := r.Header
	var b bytes.Buffer
	fmt.Fprintf(&b, "kind %d generation %d stream %s timeline %s seq %d\n", h.Kind, h.Generation, h.Stream, h.Timeline, h.Seq)
	fmt.Fprintf(&b, "positions %s to %s\n", h.First, h.Last)
	fmt.Fprintf(&b, "times %s to %s\n", h.FirstTime.UTC().Format(time.RFC3339Nano), h.LastTime.UTC().Format(time.RFC3339Nano))
	fmt.Fprintf(&b, "prev %x\nsalt %x\nframes %d raw %d\n", h.Prev, h.Salt, h.Frames, h.RawBytes)
	for i, f := range r.Index.Frames {
		p, err := r.Frame(uint32(i), encoded[f.Offset:f.Offset+int64(f.Stored)])
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "frame %d raw %d zstd %v content %x\n", i, f.Raw, f.Zstd, segment.HashBlock(p))
	}
	for _, e := range r.Index.Entries {
		fmt.Fprintf(&b, "entry %s %s kind %d", e.Position, e.Time.UTC().Format(time.RFC3339Nano), e.Kind)
		if e.Kind == segment.Mark {
			fmt.Fprintf(&b, " %s\n", e.Mark)
			continue
		}
		fmt.Fprintf(&b, " %s %d+%d", r.Index.Disks[e.Disk], e.Offset, e.Length)
		if e.Kind == segment.Data {
			fmt.Fprintf(&b, " frame %d at %d", e.Frame, e.FrameOff)
		}
		for _, sum := range e.Hashes {
			b.WriteString(" " + hex.EncodeToString(sum[:4]))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// TestDamage flips every byte, in several ways, and cuts at every length: all of
// it is noticed, also without the key, and none of it is data.
func TestDamage(t *testing.T) {
	t.Parallel()
	c := codec(t)
	for _, s := range samples(t) {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			step := max(1, len(s.encoded)/4000)
			for at := 0; at < len(s.encoded); at++ {
				if at > segment.HeaderSize && at < len(s.encoded)-1024 && at%step != 0 {
					continue
				}
				for _, x := range []byte{1, 0x80, 0xff} {
					bad := bytes.Clone(s.encoded)
					bad[at] ^= x
					if _, err := segment.CheckSum(bad); !isDamage(err) {
						t.Fatalf("byte %d changed by %#x: CheckSum says %v", at, x, err)
					}
					if _, err := segment.Verify(bad, testKey, c); !isDamage(err) {
						t.Fatalf("byte %d changed by %#x: Verify says %v", at, x, err)
					}
				}
				if _, err := segment.Verify(s.encoded[:at], testKey, c); !isDamage(err) {
					t.Fatalf("cut to %d bytes: Verify says %v", at, err)
				}
			}
			if _, err := segment.Verify(append(bytes.Clone(s.encoded), 0), testKey, c); !isDamage(err) {
				t.Errorf("a byte too many: Verify says %v", err)
			}
			other := testKey
			other[31] ^= 1
			if _, err := segment.Open(s.encoded, other, c); !isDamage(err) {
				t.Errorf("another key: Open says %v", err)
			}
		})
	}
}

func isDamage(err error) bool {
	return errors.Is(err, segment.ErrCorrupt) || errors.Is(err, segment.ErrNewer)
}

// TestPartsDamaged changes the parts that are read without the checksum: header,
// index and single frames.
func TestPartsDamaged(t *testing.T) {
	t.Parallel()
	c := codec(t)
	enc := samples(t)[0].encoded
	h, err := segment.ParseHeader(enc)
	if err != nil {
		t.Fatal(err)
	}
	head, index := enc[:segment.HeaderSize], enc[h.IndexOff:h.IndexOff+h.IndexLen]
	r, err := segment.NewReader(head, index, testKey, c)
	if err != nil {
		t.Fatal(err)
	}
	for at := range head {
		bad := bytes.Clone(head)
		bad[at] ^= 0x10
		if _, err := segment.NewReader(bad, index, testKey, c); !isDamage(err) {
			t.Errorf("byte %d of the header changed: %v", at, err)
		}
	}
	for at := range index {
		bad := bytes.Clone(index)
		bad[at] ^= 0x10
		if _, err := segment.NewReader(head, bad, testKey, c); !isDamage(err) {
			t.Errorf("byte %d of the index changed: %v", at, err)
		}
	}
	for i, f := range r.Index.Frames {
		stored := enc[f.Offset : f.Offset+int64(f.Stored)]
		for _, at := range []int{0, len(stored) / 2, len(stored) - 1} {
			bad := bytes.Clone(stored)
			bad[at] ^= 0x10
			if _, err := r.Frame(uint32(i), bad); !isDamage(err) {
				t.Errorf("byte %d of frame %d changed: %v", at, i, err)
			}
		}
		for j := range r.Index.Frames {
			if _, err := r.Frame(uint32(j), stored); i != j && !isDamage(err) {
				t.Errorf("frame %d in the place of %d: %v", i, j, err)
			}
		}
	}
	if _, err := r.Frame(uint32(len(r.Index.Frames)), nil); !isDamage(err) {
		t.Errorf("a frame that is not there: %v", err)
	}
}

// TestNewer refuses a segment of the next version of the format by its name.
func TestNewer(t *testing.T) {
	t.Parallel()
	enc := bytes.Clone(samples(t)[0].encoded)
	enc[8]++
	if _, err := segment.Open(enc, testKey, codec(t)); !errors.Is(err, segment.ErrNewer) {
		t.Errorf("Open = %v, want ErrNewer", err)
	}
}

// TestSizes writes every length around the limits of frames and blocks, and
// reads it back.
func TestSizes(t *testing.T) {
	t.Parallel()
	c := codec(t)
	for _, seed := range []uint64{0, 7} {
		b := segment.NewBuilder()
		type write struct {
			off int64
			p   []byte
		}
		var writes []write
		for _, n := range []int{512, 4096 - 512, 4096, 4096 + 512, segment.MaxFrame - 512, segment.MaxFrame, segment.MaxFrame + 512, 3*segment.MaxFrame + 512} {
			for _, off := range []int64{0, 512, 4096, 4096 - 512} {
				w := write{off, pattern(n, seed)}
				writes = append(writes, w)
				b.Write(holdfast.Position(len(writes)), start, "d", off, w.p)
			}
		}
		enc, _, err := b.Finish(header(segment.Writes), testKey, c)
		if err != nil {
			t.Fatal(err)
		}
		r, err := segment.Verify(enc, testKey, c)
		if err != nil {
			t.Fatal(err)
		}
		got := make([][]byte, len(writes))
		for _, e := range r.Index.Entries {
			f := r.Index.Frames[e.Frame]
			p, err := r.Frame(e.Frame, enc[f.Offset:f.Offset+int64(f.Stored)])
			if err != nil {
				t.Fatal(err)
			}
			i := int(e.Position) - 1
			if want := writes[i].off + int64(len(got[i])); e.Offset != want {
				t.Fatalf("a part of write %d is at %d, want %d", i, e.Offset, want)
			}
			got[i] = append(got[i], p[e.FrameOff:][:e.Length]...)
		}
		for i, w := range writes {
			if !bytes.Equal(got[i], w.p) {
				t.Errorf("write %d of %d bytes at %d reads otherwise", i, len(w.p), w.off)
			}
		}
	}
}
