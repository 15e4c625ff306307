package nbd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/nbd"
)

// exchange is an option and the kinds of replies to it.
type exchange struct {
	opt     uint32
	payload []byte
	want    []uint32
}

func TestOptions(t *testing.T) {
	t.Parallel()
	_, path := serve(t, nbd.ServerOptions{}, &nbd.Export{Name: "x", Description: "a disk", Backend: newDisk(1 << 20)},
		&nbd.Export{Name: "", Backend: newDisk(1 << 20), MinBlock: 512})
	long := strings.Repeat("x", 4097)
	tests := []struct {
		name  string
		steps []exchange
		end   bool // the server hangs up then
	}{
		{name: "list", steps: []exchange{{optList, nil, []uint32{repServer, repServer, repAck}}}},
		{name: "list with payload", steps: []exchange{{optList, []byte{0}, []uint32{repInvalid}}, {optList, nil, []uint32{repServer, repServer, repAck}}}},
		{name: "abort", steps: []exchange{{optAbort, nil, []uint32{repAck}}}, end: true},
		{name: "unknown", steps: []exchange{{4, nil, []uint32{repUnsup}}, {11, nil, []uint32{repUnsup}}, {1 << 30, []byte("abc"), []uint32{repUnsup}}}},
		{name: "no TLS", steps: []exchange{{optStartTLS, nil, []uint32{repPolicy}}}},
		{name: "TLS with payload", steps: []exchange{{optStartTLS, []byte{1}, []uint32{repInvalid}}}},
		{name: "structured", steps: []exchange{{optStructured, nil, []uint32{repAck}}, {optStructured, []byte{1}, []uint32{repInvalid}}}},
		{name: "info then go", steps: []exchange{
			{optInfo, goBytes("x"), []uint32{repInfo, repAck}},
			{optInfo, goBytes("x", 0, 1, 2, 3, 77), []uint32{repInfo, repInfo, repInfo, repInfo, repAck}},
			{optInfo, goBytes(""), []uint32{repInfo, repInfo, repAck}}, // block sizes unasked
			{optInfo, goBytes("y"), []uint32{repUnknown}},
			{optGo, goBytes("y"), []uint32{repUnknown}},
			{optGo, goBytes("x", 2), []uint32{repInfo, repInfo, repAck}},
		}},
		{name: "malformed info", steps: []exchange{
			{optInfo, nil, []uint32{repInvalid}},
			{optGo, be32(0xffffffff), []uint32{repInvalid}},
			{optGo, cat(be32(3), []byte("xx")), []uint32{repInvalid}},
			{optGo, cat(str("x"), be16(2), be16(0)), []uint32{repInvalid}},
			{optGo, cat(str("x"), be16(0), be16(0)), []uint32{repInvalid}},
			{optGo, goBytes(long), []uint32{repTooBig}},
			{optGo, goBytes("x", make([]uint16, 65)...), []uint32{repTooBig}},
		}},
		{name: "too long is skipped", steps: []exchange{{optInfo, make([]byte, 1<<20), []uint32{repTooBig}}, {99, make([]byte, 65537), []uint32{repTooBig}}, {optGo, goBytes("x"), []uint32{repInfo, repAck}}}},
		{name: "contexts", steps: []exchange{
			{optListMeta, metaBytes("x"), []uint32{repMeta, repAck}},
			{optListMeta, metaBytes("x", "base:"), []uint32{repMeta, repAck}},
			{optListMeta, metaBytes("x", "qemu:dirty-bitmap:b"), []uint32{repAck}},
			{optSetMeta, metaBytes("x", "base:allocation"), []uint32{repInvalid}}, // before structured replies
			{optStructured, nil, []uint32{repAck}},
			{optSetMeta, metaBytes("x", "base:"), []uint32{repAck}},
			{optSetMeta, metaBytes("x", "qemu:allocation-depth", "base:allocation"), []uint32{repMeta, repAck}},
			{optSetMeta, metaBytes("y", "base:allocation"), []uint32{repUnknown}},
			{optListMeta, metaBytes("y"), []uint32{repUnknown}},
		}},
		{name: "malformed contexts", steps: []exchange{
			{optStructured, nil, []uint32{repAck}},
			{optSetMeta, nil, []uint32{repInvalid}},
			{optSetMeta, str("x"), []uint32{repInvalid}},
			{optSetMeta, cat(str("x"), be32(2), str("a:b")), []uint32{repInvalid}},
			{optSetMeta, cat(str("x"), be32(1), be32(1<<31)), []uint32{repInvalid}},
			{optSetMeta, cat(metaBytes("x", "a:b"), []byte{0}), []uint32{repInvalid}},
			{optSetMeta, metaBytes("x", "nonsense"), []uint32{repInvalid}},
			{optSetMeta, metaBytes("x", "a:"+long), []uint32{repInvalid}},
			{optSetMeta, cat(str("x"), be32(1<<32-1)), []uint32{repTooBig}},
			{optSetMeta, metaBytes(long, "base:allocation"), []uint32{repTooBig}},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := dialWire(t, path, 3)
			for _, s := range tt.steps {
				w.send(optionBytes(s.opt, s.payload))
				for _, kind := range s.want {
					w.wantReply(s.opt, kind)
				}
			}
			if tt.end {
				w.wantEnd()
			}
		})
	}
}

func TestExportDescribed(t *testing.T) {
	t.Parallel()
	e := &nbd.Export{Name: "x", Description: "a disk", Backend: newDisk(1 << 20), ReadOnly: true, MultiConn: true, MinBlock: 512, PreferredBlock: 64 << 10}
	_, path := serve(t, nbd.ServerOptions{}, e, &nbd.Export{Name: "fast", Backend: newDisk(512), FastZero: true})
	c := dial(t, path, nbd.DialOptions{Export: "x"})
	flags := nbd.FlagHasFlags | nbd.FlagReadOnly | nbd.FlagSendFlush | nbd.FlagSendFUA | nbd.FlagSendDF | nbd.FlagCanMultiConn
	if c.Size() != 1<<20 || c.Name() != "x" || c.Description() != "a disk" || c.Flags() != flags || !c.HasMap() {
		t.Errorf("got %d bytes, %q, %q, flags %b, map %t", c.Size(), c.Name(), c.Description(), c.Flags(), c.HasMap())
	}
	if a, b, m := c.BlockSizes(); a != 512 || b != 64<<10 || m != 32<<20 {
		t.Errorf("block sizes %d %d %d", a, b, m)
	}
	fast := dial(t, path, nbd.DialOptions{Export: "fast", SimpleReplies: true})
	flags = nbd.FlagHasFlags | nbd.FlagSendFlush | nbd.FlagSendFUA | nbd.FlagSendTrim | nbd.FlagSendWriteZeroes | nbd.FlagSendFastZero
	if fast.Flags() != flags || fast.Structured() {
		t.Errorf("flags %b", fast.Flags())
	}
}

func TestExportName(t *testing.T) {
	t.Parallel()
	_, path := serve(t, nbd.ServerOptions{}, &nbd.Export{Name: "x", Backend: newDisk(12345)})
	for flags, size := range map[uint32]int{3: 10, 1: 134, 2: 10, 0: 134} {
		w := dialWire(t, path, flags)
		w.send(optionBytes(optExportName, []byte("x")))
		if b := w.take(size); binary.BigEndian.Uint64(b) != 12345 || len(bytes.Trim(b[10:], "\x00")) > 0 {
			t.Errorf("flags %d: got %x", flags, b)
		}
		w.send(requestBytes(0, cmdWrite, 7, 0, 3), []byte("abc"), requestBytes(0, cmdRead, 8, 0, 3))
		w.wantSimple(0, 7)
		w.wantSimple(0, 8)
		if got := string(w.take(3)); got != "abc" {
			t.Errorf("read %q", got)
		}
	}
}

// TestHandshakeEnds has what cannot be refused but by hanging up.
func TestHandshakeEnds(t *testing.T) {
	t.Parallel()
	_, path := serve(t, nbd.ServerOptions{}, &nbd.Export{Name: "x", Backend: newDisk(4096)})
	tests := []struct {
		name  string
		flags uint32
		send  []byte
	}{
		{"client flags", 4, nil},
		{"option magic", 3, cat([]byte("IHAVENOT"), be32(optList), be32(0))},
		{"zeroes", 3, make([]byte, 4096)},
		{"unknown name", 3, optionBytes(optExportName, []byte("y"))},
		{"name of 4097 bytes", 3, optionBytes(optExportName, make([]byte, 4097))},
		{"name of 64 KiB and more", 3, optionBytes(optExportName, make([]byte, 65537))},
		{"option of 4 GiB", 3, cat([]byte("IHAVEOPT"), be32(optGo), be32(0xffffffff))},
		{"option of a little more than 1 MiB", 3, cat([]byte("IHAVEOPT"), be32(99), be32(1<<20+1))},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := dialWire(t, path, tt.flags)
			_, _ = w.Write(tt.send) // the server may be gone already
			w.wantEnd()
		})
	}
	t.Run("flood", func(t *testing.T) {
		t.Parallel()
		w := dialWire(t, path, 3)
		for range 255 {
			w.send(optionBytes(99, nil))
			w.wantReply(99, repUnsup)
		}
		w.send(optionBytes(99, nil))
		w.wantEnd()
	})
}

func TestHandshakeTimeout(t *testing.T) {
	t.Parallel()
	_, path := serve(t, nbd.ServerOptions{HandshakeTimeout: 50 * time.Millisecond}, &nbd.Export{Backend: newDisk(4096)})
	dialWire(t, path, 3).wantEnd()
	w := openWire(t, path, "", false)
	time.Sleep(100 * time.Millisecond) // longer than the limit, which is over
	w.send(requestBytes(0, cmdFlush, 1, 0, 0))
	w.wantSimple(0, 1)
}

func TestMaxConns(t *testing.T) {
	t.Parallel()
	s, path := serve(t, nbd.ServerOptions{MaxConns: 2}, &nbd.Export{Backend: newDisk(4096)})
	a := openWire(t, path, "", false)
	openWire(t, path, "", false)
	if _, err := nbd.Dial(t.Context(), "unix", path, nbd.DialOptions{}); err == nil {
		t.Error("a third connection was let in")
	}
	a.send(requestBytes(0, cmdDisc, 1, 0, 0))
	a.wantEnd()
	for s.ExportStats("").Connections != 1 {
		time.Sleep(time.Millisecond)
	}
	openWire(t, path, "", false)
}

// TestMetaIsForOneExport: a context holds for the export it was chosen for.
func TestMetaIsForOneExport(t *testing.T) {
	t.Parallel()
	_, path := serve(t, nbd.ServerOptions{}, &nbd.Export{Name: "x", Backend: newDisk(4096)}, &nbd.Export{Name: "y", Backend: newDisk(4096)})
	w := dialWire(t, path, 3)
	w.send(optionBytes(optStructured, nil), optionBytes(optSetMeta, metaBytes("x", "base:allocation")), optionBytes(optGo, goBytes("y")))
	w.wantReply(optStructured, repAck)
	w.wantReply(optSetMeta, repMeta)
	w.wantReply(optSetMeta, repAck)
	w.wantReply(optGo, repInfo)
	w.wantReply(optGo, repAck)
	w.send(requestBytes(0, cmdStatus, 1, 0, 4096))
	w.wantError(true, 22, 1)
}

func TestHooksAndLookup(t *testing.T) {
	t.Parallel()
	d := newDisk(4096)
	ended := make(chan error, 10)
	var seen *nbd.Conn
	o := nbd.ServerOptions{
		Lookup: func(_ context.Context, name string, _ *nbd.Conn) (*nbd.Export, error) {
			switch name {
			case "secret":
				return nil, errors.New("not for you")
			case "none":
				return nil, nil
			}
			return &nbd.Export{Name: name, Backend: d}, nil
		},
		Hooks: nbd.Hooks{
			OnConnect: func(ctx context.Context, c *nbd.Conn) error {
				if c.Export == "busy" {
					return errors.New("another source is connected")
				}
				if nbd.ConnID(ctx) != c.ID || c.ID == 0 {
					t.Errorf("connection %d in the context of %d", nbd.ConnID(ctx), c.ID)
				}
				seen = c
				return nil
			},
			OnDisconnect: func(_ *nbd.Conn, cause error) { ended <- cause },
		},
	}
	_, path := serve(t, o)
	for name, want := range map[string]string{"secret": "not for you", "busy": "another source is connected", "none": "no such export"} {
		if _, err := nbd.Dial(t.Context(), "unix", path, nbd.DialOptions{Export: name}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("export %q: %v", name, err)
		}
	}
	if _, err := nbd.List(t.Context(), "unix", path, nbd.DialOptions{}); err == nil {
		t.Error("exports are listed without a list")
	}
	d.before = func(ctx context.Context, _ string, _, _ int64) error {
		if nbd.ConnID(ctx) != seen.ID {
			t.Error("the backend is called for another connection")
		}
		return nil
	}
	c := dial(t, path, nbd.DialOptions{Export: "d"})
	if err := c.WriteAt(t.Context(), make([]byte, 512), 0); err != nil || seen.Export != "d" {
		t.Error(err, seen.Export)
	}
	_ = c.Close()
	if cause := <-ended; cause != nil {
		t.Errorf("after a goodbye the cause is %v", cause)
	}
	if len(ended) > 0 {
		t.Error("a refused connection was told to have ended")
	}
	if nbd.ConnID(t.Context()) != 0 {
		t.Error("a context of no connection has an id")
	}
}
