package nbd_test

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// Numbers of the protocol, written down a second time on purpose.
const (
	optExportName = 1
	optAbort      = 2
	optList       = 3
	optStartTLS   = 5
	optInfo       = 6
	optGo         = 7
	optStructured = 8
	optListMeta   = 9
	optSetMeta    = 10

	repAck     = 1
	repServer  = 2
	repInfo    = 3
	repMeta    = 4
	repUnsup   = 1<<31 + 1
	repPolicy  = 1<<31 + 2
	repInvalid = 1<<31 + 3
	repTLSReqd = 1<<31 + 5
	repUnknown = 1<<31 + 6
	repTooBig  = 1<<31 + 9

	cmdRead   = 0
	cmdWrite  = 1
	cmdDisc   = 2
	cmdFlush  = 3
	cmdTrim   = 4
	cmdCache  = 5
	cmdZeroes = 6
	cmdStatus = 7

	fua      = 1
	noHole   = 2
	df       = 4
	reqOne   = 8
	fastZero = 16
)

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func be64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

func cat(parts ...[]byte) (all []byte) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func str(s string) []byte { return append(be32(uint32(len(s))), s...) }

func optionBytes(opt uint32, payload []byte) []byte {
	return cat([]byte("IHAVEOPT"), be32(opt), be32(uint32(len(payload))), payload)
}

func goBytes(name string, infos ...uint16) []byte {
	p := cat(str(name), be16(uint16(len(infos))))
	for _, i := range infos {
		p = append(p, be16(i)...)
	}
	return p
}

func metaBytes(name string, queries ...string) []byte {
	p := cat(str(name), be32(uint32(len(queries))))
	for _, q := range queries {
		p = append(p, str(q)...)
	}
	return p
}

func requestBytes(flags, cmd uint16, handle, off uint64, n uint32) []byte {
	return cat(be32(0x25609513), be16(flags), be16(cmd), be64(handle), be64(off), be32(n))
}

// wire speaks the protocol byte by byte.
type wire struct {
	t testing.TB
	net.Conn
}

// dialWire connects and reads the server's first words; flags are the client's.
func dialWire(t testing.TB, path string, flags uint32) *wire {
	t.Helper()
	nc, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	if err := nc.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	w := &wire{t, nc}
	if got := string(w.take(18)); got != "NBDMAGICIHAVEOPT\x00\x03" {
		t.Fatalf("server begins with %q", got)
	}
	w.send(be32(flags))
	return w
}

// openWire is dialWire, and takes an export.
func openWire(t testing.TB, path, export string, structured bool) *wire {
	t.Helper()
	w := dialWire(t, path, 3)
	if structured {
		w.send(optionBytes(optStructured, nil), optionBytes(optSetMeta, metaBytes(export, "base:allocation")))
		w.wantReply(optStructured, repAck)
		w.wantReply(optSetMeta, repMeta)
		w.wantReply(optSetMeta, repAck)
	}
	w.send(optionBytes(optGo, goBytes(export)))
	for {
		switch kind, p := w.reply(optGo); kind {
		case repAck:
			return w
		case repInfo:
		default:
			t.Fatalf("GO: reply %#x %q", kind, p)
		}
	}
}

func (w *wire) send(parts ...[]byte) {
	w.t.Helper()
	if _, err := w.Write(cat(parts...)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *wire) take(n int) []byte {
	w.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(w, b); err != nil {
		w.t.Fatalf("read %d bytes: %v", n, err)
	}
	return b
}

// reply takes a reply to an option.
func (w *wire) reply(opt uint32) (kind uint32, payload []byte) {
	w.t.Helper()
	b := w.take(20)
	if binary.BigEndian.Uint64(b) != 0x3e889045565a9 || binary.BigEndian.Uint32(b[8:]) != opt {
		w.t.Fatalf("not a reply to option %d: %x", opt, b)
	}
	return binary.BigEndian.Uint32(b[12:]), w.take(int(binary.BigEndian.Uint32(b[16:])))
}

func (w *wire) wantReply(opt, want uint32) []byte {
	w.t.Helper()
	kind, p := w.reply(opt)
	if kind != want {
		w.t.Fatalf("option %d: reply %#x %q, want %#x", opt, kind, p, want)
	}
	return p
}

// wantSimple takes a simple reply.
func (w *wire) wantSimple(code uint32, handle uint64) {
	w.t.Helper()
	b := w.take(16)
	if binary.BigEndian.Uint32(b) != 0x67446698 {
		w.t.Fatalf("not a simple reply: %x", b)
	}
	if gotCode, got := binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint64(b[8:]); gotCode != code || got != handle {
		w.t.Fatalf("got error %d for handle %d, want %d for %d", gotCode, got, code, handle)
	}
}

type piece struct {
	flags, kind uint16
	handle      uint64
	payload     []byte
}

func (w *wire) chunk() piece {
	w.t.Helper()
	b := w.take(20)
	if binary.BigEndian.Uint32(b) != 0x668e33ef {
		w.t.Fatalf("not a chunk: %x", b)
	}
	return piece{
		binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:]), binary.BigEndian.Uint64(b[8:]),
		w.take(int(binary.BigEndian.Uint32(b[16:]))),
	}
}

// wantError takes an error in either form.
func (w *wire) wantError(structured bool, code uint32, handle uint64) {
	w.t.Helper()
	if !structured {
		w.wantSimple(code, handle)
		return
	}
	c := w.chunk()
	if c.flags != 1 || c.kind != 1<<15+1 || c.handle != handle || len(c.payload) < 6 || binary.BigEndian.Uint32(c.payload) != code {
		w.t.Fatalf("got chunk %+v, want error %d for handle %d", c, code, handle)
	}
	if n := int(binary.BigEndian.Uint16(c.payload[4:])); n != len(c.payload)-6 || n == 0 {
		w.t.Errorf("message of %d bytes in %d", n, len(c.payload))
	}
}

// wantEnd expects the server to hang up without a further word.
func (w *wire) wantEnd() {
	w.t.Helper()
	b, err := io.ReadAll(w)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() || len(b) > 0 {
		w.t.Fatalf("server goes on: %q, %v", b, err)
	}
}
