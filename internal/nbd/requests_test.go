package nbd_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/internal/nbd"
)

func TestRefusedRequests(t *testing.T) {
	t.Parallel()
	const size = 1<<20 + 4096
	big := bytes.Repeat([]byte{1}, 300<<10)
	tests := []struct {
		name   string
		export string
		req    []byte
		data   []byte
		simple uint32 // error number without structured replies
		struc  uint32 // with them
	}{
		{"read of nothing", "rw", requestBytes(0, cmdRead, 1, 0, 0), nil, 22, 22},
		{"read beyond the end", "rw", requestBytes(0, cmdRead, 1, size-511, 512), nil, 22, 22},
		{"read far beyond the end", "rw", requestBytes(0, cmdRead, 1, 1<<64-1, 512), nil, 22, 22},
		{"read that wraps", "rw", requestBytes(0, cmdRead, 1, 1<<64-512, 512), nil, 22, 22},
		{"read too large", "rw", requestBytes(0, cmdRead, 1, 0, 200<<10+1), nil, 22, 22},
		{"read too large in one piece", "rw", requestBytes(df, cmdRead, 1, 0, 200<<10+1), nil, 22, 75},
		{"read of 4 GiB", "rw", requestBytes(0, cmdRead, 1, 0, 1<<32-1), nil, 22, 22},
		{"read with NO_HOLE", "rw", requestBytes(noHole, cmdRead, 1, 0, 512), nil, 22, 22},
		{"read with an unknown flag", "rw", requestBytes(1<<15, cmdRead, 1, 0, 512), nil, 22, 22},
		{"write beyond the end", "rw", requestBytes(0, cmdWrite, 1, size-511, 512), big[:512], 28, 28},
		{"write too large", "rw", requestBytes(0, cmdWrite, 1, 0, 200<<10+1), big[:200<<10+1], 22, 22},
		{"write far too large", "rw", requestBytes(0, cmdWrite, 1, 0, 300<<10), big, 22, 22},
		{"write of nothing", "rw", requestBytes(0, cmdWrite, 1, 0, 0), nil, 22, 22},
		{"write with DF", "rw", requestBytes(df, cmdWrite, 1, 0, 512), big[:512], 22, 22},
		{"write to read-only", "ro", requestBytes(0, cmdWrite, 1, 0, 512), big[:512], 1, 1},
		{"trim of read-only", "ro", requestBytes(0, cmdTrim, 1, 0, 512), nil, 1, 1},
		{"zeroes to read-only", "ro", requestBytes(0, cmdZeroes, 1, 0, 512), nil, 1, 1},
		{"zeroes beyond the end", "rw", requestBytes(0, cmdZeroes, 1, 512, size), nil, 28, 28},
		{"zeroes of nothing", "rw", requestBytes(0, cmdZeroes, 1, 512, 0), nil, 22, 22},
		{"fast zeroes that were not offered", "rw", requestBytes(fastZero, cmdZeroes, 1, 0, 512), nil, 22, 22},
		{"trim beyond the end", "rw", requestBytes(0, cmdTrim, 1, 512, size), nil, 22, 22},
		{"trim with NO_HOLE", "rw", requestBytes(noHole, cmdTrim, 1, 0, 512), nil, 22, 22},
		{"flush with a range", "rw", requestBytes(0, cmdFlush, 1, 0, 512), nil, 22, 22},
		{"flush with a flag", "rw", requestBytes(df, cmdFlush, 1, 0, 0), nil, 22, 22},
		{"status beyond the end", "rw", requestBytes(0, cmdStatus, 1, 512, size), nil, 22, 22},
		{"status of nothing", "rw", requestBytes(0, cmdStatus, 1, 512, 0), nil, 22, 22},
		{"status with NO_HOLE", "rw", requestBytes(noHole, cmdStatus, 1, 0, 512), nil, 22, 22},
		{"cache", "rw", requestBytes(0, cmdCache, 1, 0, 512), nil, 22, 22},
		{"resize", "rw", requestBytes(0, 8, 1, 0, 512), nil, 22, 22},
		{"unknown command", "rw", requestBytes(0, 0xffff, 1, 0, 512), nil, 22, 22},
		{"misaligned offset of a read", "4k", requestBytes(0, cmdRead, 1, 512, 4096), nil, 22, 22},
		{"misaligned length of a read", "4k", requestBytes(0, cmdRead, 1, 4096, 512), nil, 22, 22},
		{"misaligned write", "4k", requestBytes(0, cmdWrite, 1, 512, 512), big[:512], 22, 22},
		{"misaligned trim", "4k", requestBytes(0, cmdTrim, 1, 512, 4096), nil, 22, 22},
		{"misaligned zeroes", "4k", requestBytes(0, cmdZeroes, 1, 0, 512), nil, 22, 22},
		{"misaligned status", "4k", requestBytes(0, cmdStatus, 1, 0, 512), nil, 22, 22},
	}
	for _, structured := range []bool{false, true} {
		d := newDisk(size)
		s, path := serve(t, nbd.ServerOptions{}, &nbd.Export{Name: "rw", Backend: d, MaxBlock: 200 << 10},
			&nbd.Export{Name: "ro", Backend: d, ReadOnly: true}, &nbd.Export{Name: "4k", Backend: d, MinBlock: 4096})
		for _, tt := range tests {
			name, want := tt.name+", simple", tt.simple
			if structured {
				name, want = tt.name+", structured", tt.struc
			}
			t.Run(name, func(t *testing.T) {
				w := openWire(t, path, tt.export, structured)
				w.send(tt.req, tt.data)
				w.wantError(structured, want, 1)
				// The payload was skipped, and the connection goes on.
				w.send(requestBytes(df, cmdFlush, 1, 0, 0), requestBytes(fua, cmdFlush, 2, 0, 0))
				w.wantError(structured, 22, 1)
				w.wantSimple(0, 2)
			})
		}
		for _, call := range d.log() {
			if call != "flush 0+0" {
				t.Errorf("the backend was called: %s", call)
			}
		}
		if st := s.ExportStats("ro"); st.Errors != 6 || st.Requests != 9 {
			t.Errorf("stats: %+v", st)
		}
	}
}

func TestReadChunks(t *testing.T) {
	t.Parallel()
	d := newDisk(1 << 20)
	_, path := serve(t, nbd.ServerOptions{}, &nbd.Export{Backend: d}, &nbd.Export{Name: "plain", Backend: plain{d}})
	c := dial(t, path, nbd.DialOptions{})
	data := bytes.Repeat([]byte{7}, 4096)
	if err := c.WriteAt(t.Context(), data, 8192); err != nil {
		t.Fatal(err)
	}
	at := func(off uint64, p []byte) []byte { return cat(be64(off), p) }
	tests := []struct {
		name, export string
		flags        uint16
		off          uint64
		n            uint32
		want         []piece
	}{
		{"hole, data, hole", "", 0, 0, 16384, []piece{
			{0, 2, 9, at(0, be32(8192))}, {0, 1, 9, at(8192, data)}, {1, 2, 9, at(12288, be32(4096))},
		}},
		{"odd range", "", 0, 8191, 2, []piece{{0, 2, 9, at(8191, be32(1))}, {1, 1, 9, at(8192, data[:1])}}},
		{"hole", "", 0, 4096, 4096, []piece{{1, 2, 9, at(4096, be32(4096))}}},
		{"in one piece", "", df, 4096, 8192, []piece{{1, 1, 9, at(4096, cat(make([]byte, 4096), data))}}},
		{"backend without map", "plain", 0, 4096, 8192, []piece{{1, 1, 9, at(4096, cat(make([]byte, 4096), data))}}},
	}
	for _, tt := range tests {
		w := openWire(t, path, tt.export, true)
		w.send(requestBytes(tt.flags, cmdRead, 9, tt.off, tt.n))
		var got []piece
		for len(got) == 0 || got[len(got)-1].flags == 0 {
			got = append(got, w.chunk())
		}
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(piece{})); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
}

// TestReadManyHoles: a read of very many holes has an answer of bounded
// pieces, and right.
func TestReadManyHoles(t *testing.T) {
	t.Parallel()
	d := newDisk(4 << 20)
	_, path := serve(t, nbd.ServerOptions{}, &nbd.Export{Backend: d})
	c := dial(t, path, nbd.DialOptions{})
	for off := int64(0); off < d.Size(); off += 2 * grain {
		if err := c.WriteAt(t.Context(), []byte{byte(off >> 13), 1}, off); err != nil {
			t.Fatal(err)
		}
	}
	p := bytes.Repeat([]byte{0xff}, 4<<20)
	if err := c.ReadAt(t.Context(), p, 0); err != nil || !bytes.Equal(p, d.content()) {
		t.Errorf("read: %v", err)
	}
	w := openWire(t, path, "", true)
	w.send(requestBytes(0, cmdRead, 1, 0, 4<<20))
	n := 1
	for w.chunk().flags == 0 {
		n++
	}
	if n > 64 {
		t.Errorf("%d chunks", n)
	}
}

func TestBlockStatus(t *testing.T) {
	t.Parallel()
	d := newDisk(64 << 10)
	_, path := serve(t, nbd.ServerOptions{}, &nbd.Export{Backend: d}, &nbd.Export{Name: "plain", Backend: plain{d}})
	w := openWire(t, path, "", true)
	w.send(requestBytes(0, cmdWrite, 1, 8192, 4096), make([]byte, 4096), requestBytes(noHole, cmdZeroes, 2, 16384, 4096))
	w.wantSimple(0, 1)
	w.wantSimple(0, 2)
	pl := openWire(t, path, "plain", true)
	tests := []struct {
		name  string
		w     *wire
		flags uint16
		off   uint64
		n     uint32
		want  []uint32
	}{
		{"all", w, 0, 0, 65536, []uint32{8192, 3, 4096, 0, 4096, 3, 4096, 2, 45056, 3}},
		{"one", w, reqOne, 4096, 61440, []uint32{4096, 3}},
		{"one, data", w, reqOne, 8192, 8192, []uint32{4096, 0}},
		{"odd", w, 0, 8191, 4098, []uint32{1, 3, 4096, 0, 1, 3}},
		{"unknown", pl, 0, 4096, 8192, []uint32{8192, 0}},
	}
	for _, tt := range tests {
		tt.w.send(requestBytes(tt.flags, cmdStatus, 5, tt.off, tt.n))
		c := tt.w.chunk()
		if c.flags != 1 || c.kind != 5 || c.handle != 5 || binary.BigEndian.Uint32(c.payload) != 1 {
			t.Errorf("%s: chunk %+v", tt.name, c)
			continue
		}
		var got []uint32
		for p := c.payload[4:]; len(p) >= 4; p = p[4:] {
			got = append(got, binary.BigEndian.Uint32(p))
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
}

// TestCommands checks how commands and flags reach the backend.
func TestCommands(t *testing.T) {
	t.Parallel()
	d := newDisk(8 << 30 >> 10)
	_, path := serve(t, nbd.ServerOptions{}, &nbd.Export{Backend: plain{d}, FastZero: true})
	w := openWire(t, path, "", false)
	data := make([]byte, 512)
	w.send(
		requestBytes(0, cmdWrite, 1, 512, 512), data,
		requestBytes(fua, cmdWrite, 2, 1024, 512), data,
		requestBytes(0, cmdTrim, 3, 0, 4096),
		requestBytes(fua, cmdTrim, 4, 0, 4096),
		requestBytes(0, cmdZeroes, 5, 4096, 4096),
		requestBytes(noHole|fua, cmdZeroes, 6, 4096, 4096),
		requestBytes(fastZero, cmdZeroes, 7, 0, uint32(d.Size())),
		requestBytes(0, cmdFlush, 8, 0, 0),
	)
	for h := range uint64(8) {
		w.wantSimple(0, h+1)
	}
	want := []string{
		"write 512+512", "write-fua 1024+512", "punch 0+4096", "punch-fua 0+4096", "punch 4096+4096",
		"zero-fua 4096+4096", "punch 0+8388608", "flush 0+0",
	}
	if diff := cmp.Diff(want, d.log()); diff != "" {
		t.Error(diff)
	}
	w.send(requestBytes(0, cmdRead, 9, 512, 512), requestBytes(0, cmdDisc, 10, 0, 0))
	w.wantSimple(0, 9)
	w.take(512)
	w.wantEnd()
}

func TestTransmissionEnds(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		send []byte
	}{
		{"bad magic", bytes.Repeat([]byte{0x25}, 28)},
		{"header cut off", requestBytes(0, cmdWrite, 1, 0, 512)[:20]},
		{"payload missing", requestBytes(0, cmdWrite, 1, 0, 512)},
		{"payload cut off", cat(requestBytes(0, cmdWrite, 1, 0, 512), make([]byte, 511))},
		{"large payload cut off", cat(requestBytes(0, cmdWrite, 1, 0, 512<<10), make([]byte, 400<<10))},
		{"payload of 4 GiB announced", cat(requestBytes(0, cmdWrite, 1, 0, 1<<32-1), make([]byte, 4096))},
		{"reply as a request", cat(be32(0x67446698), make([]byte, 24))},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := newDisk(1 << 20)
			ended := make(chan error, 1)
			hooks := nbd.Hooks{OnDisconnect: func(_ *nbd.Conn, cause error) { ended <- cause }}
			_, path := serve(t, nbd.ServerOptions{Hooks: hooks}, &nbd.Export{Backend: d})
			w := openWire(t, path, "", false)
			w.send(tt.send)
			if err := w.Conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			w.wantEnd()
			if cause := <-ended; cause == nil || cause == io.EOF {
				t.Errorf("cause %v", cause)
			}
			if calls := d.log(); len(calls) > 0 {
				t.Errorf("the backend was called: %q", calls)
			}
		})
	}
}
