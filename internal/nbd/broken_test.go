package nbd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/nbd"
)

func optReplyBytes(opt, kind uint32, p []byte) []byte {
	return cat(be64(0x3e889045565a9), be32(opt), be32(kind), be32(uint32(len(p))), p)
}

// TestClientHandshakeRefused: a server that does not keep to the protocol is
// found out.
func TestClientHandshakeRefused(t *testing.T) {
	t.Parallel()
	hello := []byte("NBDMAGICIHAVEOPT\x00\x03")
	plain := cat(hello, optReplyBytes(optStructured, repUnsup, nil))
	info := func(p []byte) []byte {
		return cat(plain, optReplyBytes(optGo, repInfo, p), optReplyBytes(optGo, repAck, nil))
	}
	export := cat(be16(0), be64(4096), be16(1))
	tests := []struct {
		name string
		said []byte
		want error
	}{
		{"another protocol", []byte("SSH-2.0-OpenSSH_9.2p1\r\n"), nbd.ErrProtocol},
		{"oldstyle", cat([]byte("NBDMAGIC"), be64(0x420281861253), make([]byte, 144)), errors.ErrUnsupported},
		{"unknown style", cat([]byte("NBDMAGICNEWSTYLE"), make([]byte, 144)), nbd.ErrProtocol},
		{"not fixed", []byte("NBDMAGICIHAVEOPT\x00\x02"), errors.ErrUnsupported},
		{"silent", hello, io.EOF},
		{"cut off", cat(plain, []byte{0}), io.ErrUnexpectedEOF},
		{"reply to another option", cat(hello, optReplyBytes(optList, repAck, nil)), nbd.ErrProtocol},
		{"reply of 4 GiB", cat(hello, be64(0x3e889045565a9), be32(optStructured), be32(repUnsup), be32(1<<32-1)), nbd.ErrProtocol},
		{"reply without magic", cat(hello, make([]byte, 20)), nbd.ErrProtocol},
		{"replies before the only one", cat(hello, optReplyBytes(optStructured, repInfo, export)), nbd.ErrProtocol},
		{"context that was not asked for", cat(hello, optReplyBytes(optStructured, repAck, nil), optReplyBytes(optSetMeta, repMeta, cat(be32(1), []byte("a:b")))), nbd.ErrProtocol},
		{"no size", cat(plain, optReplyBytes(optGo, repAck, nil)), nbd.ErrProtocol},
		{"size beyond all", info(cat(be16(0), be64(1<<63), be16(1))), nbd.ErrProtocol},
		{"size in too few bytes", info(export[:11]), nbd.ErrProtocol},
		{"info of nothing", info(nil), nbd.ErrProtocol},
		{"blocks of 0", info(cat(be16(3), be32(0), be32(4096), be32(1<<20))), nbd.ErrProtocol},
		{"blocks of 3", info(cat(be16(3), be32(3), be32(4096), be32(1<<20))), nbd.ErrProtocol},
		{"largest below smallest", info(cat(be16(3), be32(4096), be32(4096), be32(512))), nbd.ErrProtocol},
		{"block sizes in too few bytes", info(cat(be16(3), be32(512))), nbd.ErrProtocol},
		{"endless replies", cat(plain, bytes.Repeat(optReplyBytes(optGo, repInfo, export), 20000)), nbd.ErrProtocol},
		{"unknown export", cat(plain, optReplyBytes(optGo, repUnknown, []byte("never heard of it"))), nbd.ErrUnknownExport},
		{"unknown export, no GO", cat(plain, optReplyBytes(optGo, repUnsup, nil)), nbd.ErrUnknownExport},
		{"TLS required", cat(hello, optReplyBytes(optStructured, repTLSReqd, nil)), nbd.ErrTLSRequired},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, err := nbd.NewClient(t.Context(), newScript(tt.said), nbd.DialOptions{})
			if err == nil {
				_ = c.Close()
			}
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// TestClientWithoutGo: the way of servers from before GO.
func TestClientWithoutGo(t *testing.T) {
	t.Parallel()
	said := cat([]byte("NBDMAGICIHAVEOPT\x00\x01"), optReplyBytes(optStructured, repUnsup, nil), optReplyBytes(optGo, repUnsup, nil),
		be64(8192), be16(1|2), make([]byte, 124))
	c, err := nbd.NewClient(t.Context(), newScript(said), nbd.DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if c.Size() != 8192 || c.Flags() != nbd.FlagHasFlags|nbd.FlagReadOnly || c.HasMap() || c.Structured() {
		t.Errorf("%d bytes, flags %b", c.Size(), c.Flags())
	}
	_ = c.Close()
}

// TestClientAnswersRefused: what is no answer to a read of 4096 bytes breaks
// the connection, and every request after it.
func TestClientAnswersRefused(t *testing.T) {
	t.Parallel()
	data := make([]byte, 4096)
	tests := []struct {
		name string
		said []byte
	}{
		{"zeroes", make([]byte, 16)},
		{"simple reply", cat(be32(0x67446698), be32(0), be64(1), data)},
		{"answer to nothing", chunkBytes(1, 1, 2, cat(be64(0), data))},
		{"done without data", chunkBytes(1, 0, 1, nil)},
		{"in part", chunkBytes(1, 1, 1, cat(be64(0), data[:4095]))},
		{"twice and with a gap", cat(chunkBytes(0, 1, 1, cat(be64(0), data[:2048])), chunkBytes(1, 1, 1, cat(be64(0), data[:2048])))},
		{"before the read", chunkBytes(1, 1, 1, cat(be64(1<<64-1), data))},
		{"after the read", chunkBytes(1, 1, 1, cat(be64(1), data))},
		{"larger than the read", chunkBytes(1, 1, 1, cat(be64(0), data, data))},
		{"hole after the read", chunkBytes(1, 2, 1, cat(be64(0), be32(4097)))},
		{"hole of nothing", chunkBytes(1, 2, 1, cat(be64(0), be32(0)))},
		{"hole with a tail", chunkBytes(1, 2, 1, cat(be64(0), be32(4096), be32(0)))},
		{"block status", chunkBytes(1, 5, 1, cat(be32(1), be32(4096), be32(0)))},
		{"unknown chunk", chunkBytes(1, 99, 1, nil)},
		{"none that is not the last", chunkBytes(0, 0, 1, nil)},
		{"error of 0", chunkBytes(1, 1<<15+1, 1, cat(be32(0), be16(0)))},
		{"error with half a message", chunkBytes(1, 1<<15+1, 1, cat(be32(5), be16(9), []byte("half")))},
		{"error of 4 GiB", cat(be32(0x668e33ef), be16(1), be16(1<<15+1), be64(1), be32(1<<32-1))},
		{"hangs up", nil},
		{"hangs up in the data", chunkBytes(1, 1, 1, cat(be64(0), data))[:100]},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			peer := newScript(granting(), tt.said)
			c, err := nbd.NewClient(t.Context(), peer, nbd.DialOptions{})
			if err != nil {
				t.Fatal(err)
			}
			var all sync.WaitGroup
			peer.begin(&all, func() {
				err := c.ReadAt(t.Context(), make([]byte, 4096), 0)
				if cut := strings.HasPrefix(tt.name, "hangs up"); err == nil || errors.Is(err, nbd.ErrProtocol) == cut {
					t.Errorf("read: %v", err)
				}
			})
			peer.release()
			all.Wait()
			if err := c.Flush(t.Context()); err == nil || c.Err() == nil {
				t.Error("the connection goes on")
			}
			_ = c.Close()
		})
	}
}

// TestClientForgetsCancelled: a request whose context ends is given up at once,
// and its late answer does no harm.
func TestClientForgetsCancelled(t *testing.T) {
	t.Parallel()
	d := newDisk(1 << 20)
	entered, free := make(chan struct{}), make(chan struct{})
	d.before = func(_ context.Context, op string, off, _ int64) error {
		if op == "read" && off == 4096 {
			close(entered)
			<-free
		}
		return nil
	}
	_, path := serve(t, nbd.ServerOptions{}, &nbd.Export{Backend: plain{d}})
	c := dial(t, path, nbd.DialOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-entered
		cancel()
	}()
	p := bytes.Repeat([]byte{9}, 4096)
	if err := c.ReadAt(ctx, p, 4096); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled read: %v", err)
	}
	if err := c.ReadAt(ctx, p, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("read with an ended context: %v", err)
	}
	close(free)
	q := make([]byte, 512)
	for range 10 {
		if err := c.ReadAt(t.Context(), q, 0); err != nil {
			t.Fatal(err)
		}
	}
	if bytes.Count(p, []byte{9}) != len(p) {
		t.Error("the late answer was written to a buffer that was given back")
	}
}

// skipHello reads what the client says of options, up to the end of its GO.
func skipHello(r io.Reader) {
	_, _ = io.CopyN(io.Discard, r, 4)
	for kind := uint32(0); kind != optGo; {
		head := make([]byte, 16)
		if _, err := io.ReadFull(r, head); err != nil {
			return
		}
		kind = binary.BigEndian.Uint32(head[8:])
		_, _ = io.CopyN(io.Discard, r, int64(binary.BigEndian.Uint32(head[12:])))
	}
}

// skipRequest reads what the client says, up to the end of its first request.
func skipRequest(r io.Reader) {
	skipHello(r)
	_, _ = io.CopyN(io.Discard, r, 28)
}

// TestClientCancelledInTheMiddle: if a message is cut in two by a context, the
// connection is broken, and nothing hangs.
func TestClientCancelledInTheMiddle(t *testing.T) {
	t.Parallel()
	near, far := net.Pipe()
	defer func() { _ = far.Close() }()
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { _, _ = far.Write(granting()) })
	all.Go(func() { skipHello(far) })
	c, err := nbd.NewClient(t.Context(), near, nbd.DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	// Nobody reads the request.
	if err := c.WriteAt(ctx, make([]byte, 4096), 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("write: %v", err)
	}
	if c.Err() == nil {
		t.Error("the connection is taken for whole")
	}
	_ = c.Close()
}

func TestClientCancelledInTheAnswer(t *testing.T) {
	t.Parallel()
	near, far := net.Pipe()
	defer func() { _ = far.Close() }()
	var all sync.WaitGroup
	defer all.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	all.Go(func() { _, _ = far.Write(granting()) })
	all.Go(func() {
		skipRequest(far)
		_, _ = far.Write(cat(chunkBytes(1, 1, 1, cat(be64(0), make([]byte, 4096)))[:2000]))
		cancel()
	})
	c, err := nbd.NewClient(t.Context(), near, nbd.DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.ReadAt(ctx, make([]byte, 4096), 0); err == nil {
		t.Error("half a read")
	}
	_ = c.Close()
}

// TestClientServerDies: everything under way fails, and everything after.
func TestClientServerDies(t *testing.T) {
	t.Parallel()
	d := newDisk(1 << 20)
	s, path := serve(t, nbd.ServerOptions{}, &nbd.Export{Backend: plain{d}})
	var entered sync.WaitGroup
	entered.Add(3)
	d.before = func(ctx context.Context, _ string, _, _ int64) error {
		entered.Done()
		<-ctx.Done()
		return ctx.Err()
	}
	c := dial(t, path, nbd.DialOptions{})
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			if err := c.ReadAt(t.Context(), make([]byte, 512), 0); err == nil {
				t.Error("read from a dead server")
			} else if errors.As(err, new(*nbd.RemoteError)) {
				t.Errorf("the server answered: %v", err)
			}
		})
	}
	entered.Wait()
	s.DropExport("", errors.New("dead"))
	all.Wait()
	if c.Err() == nil || c.Flush(t.Context()) == nil {
		t.Error("the connection is taken for whole")
	}
}

func TestClientMisuse(t *testing.T) {
	t.Parallel()
	d := newDisk(8192)
	_, path := serve(t, nbd.ServerOptions{}, &nbd.Export{Backend: d}, &nbd.Export{Name: "ro", Backend: d, ReadOnly: true})
	c := dial(t, path, nbd.DialOptions{})
	p := make([]byte, 512)
	for name, err := range map[string]error{
		"read":  c.ReadAt(t.Context(), p, 8192-511),
		"below": c.ReadAt(t.Context(), p, -1),
		"write": c.WriteAt(t.Context(), p, 1<<62),
		"zero":  c.Zero(t.Context(), block.Extent{Offset: 4096, Length: 8192}, true),
		"trim":  c.Trim(t.Context(), block.Extent{Offset: 4096, Length: -1}),
	} {
		if !errors.Is(err, nbd.EINVAL) {
			t.Errorf("%s beyond the disk: %v", name, err)
		}
	}
	if _, err := c.Map(t.Context(), block.Extent{Offset: 8192, Length: 512}); !errors.Is(err, nbd.EINVAL) {
		t.Errorf("map beyond the disk: %v", err)
	}
	if calls := d.log(); len(calls) > 0 {
		t.Errorf("the server was asked: %q", calls)
	}
	ro := dial(t, path, nbd.DialOptions{Export: "ro"})
	if err := ro.Trim(t.Context(), block.Extent{Length: 512}); !errors.Is(err, nbd.ErrNotSupported) {
		t.Errorf("trim of a read-only export: %v", err)
	}
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := c.ReadAt(t.Context(), p, 0); !errors.Is(err, nbd.ErrClosed) {
		t.Errorf("after close: %v", err)
	}
	if c, err := nbd.Dial(t.Context(), "unix", path+"x", nbd.DialOptions{}); err == nil {
		_ = c.Close()
		t.Error("connected to nothing")
	}
}

// TestDialTimeout: a server that accepts and says nothing does not hold Dial
// for longer than its context.
func TestDialTimeout(t *testing.T) {
	t.Parallel()
	near, far := net.Pipe()
	defer func() { _ = far.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := nbd.NewClient(ctx, near, nbd.DialOptions{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silent server: %v", err)
	}
}
