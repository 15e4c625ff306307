package nbd_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/nbd"
)

// script is a connection whose peer says what was written down before: the
// first part at once, the second when told to, and then hangs up.
type script struct {
	mu       sync.Mutex
	wake     *sync.Cond
	parts    [][]byte
	held     int // parts that may not be read yet
	requests int
	closed   bool
}

func newScript(parts ...[]byte) *script {
	s := &script{parts: parts, held: len(parts) - 1}
	s.wake = sync.NewCond(&s.mu)
	return s
}

func (s *script) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.closed:
			return 0, net.ErrClosed
		case len(s.parts) == 0:
			return 0, io.EOF
		case len(s.parts) <= s.held:
			s.wake.Wait()
		case len(s.parts[0]) == 0:
			s.parts = s.parts[1:]
		default:
			n := copy(p, s.parts[0])
			s.parts[0] = s.parts[0][n:]
			return n, nil
		}
	}
}

func (s *script) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, net.ErrClosed
	}
	if bytes.HasPrefix(p, be32(0x25609513)) {
		s.requests++
		s.wake.Broadcast()
	}
	return len(p), nil
}

// begin runs f beside, and returns when it has sent a request, or has ended.
func (s *script) begin(all *sync.WaitGroup, f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ended, had := false, s.requests
	all.Go(func() {
		f()
		s.mu.Lock()
		ended = true
		s.wake.Broadcast()
		s.mu.Unlock()
	})
	for !ended && s.requests == had {
		s.wake.Wait()
	}
}

// release lets all parts be read.
func (s *script) release() {
	s.mu.Lock()
	s.held = 0
	s.wake.Broadcast()
	s.mu.Unlock()
}

func (s *script) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.wake.Broadcast()
	return nil
}

func (s *script) LocalAddr() net.Addr              { return nil }
func (s *script) RemoteAddr() net.Addr             { return nil }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// FuzzServer throws bytes at a server, from the client's first on. The disk
// panics if it is called out of its range, and the server must end by itself.
func FuzzServer(f *testing.F) {
	hello := be32(3)
	begin := cat(hello, optionBytes(optStructured, nil), optionBytes(optSetMeta, metaBytes("x", "base:allocation")), optionBytes(optGo, goBytes("x", 1, 2, 3)))
	f.Add(cat(begin, requestBytes(0, cmdWrite, 1, 0, 512), make([]byte, 512), requestBytes(0, cmdRead, 2, 0, 8192), requestBytes(reqOne, cmdStatus, 3, 0, 8192),
		requestBytes(noHole, cmdZeroes, 4, 0, 8192), requestBytes(fua, cmdTrim, 5, 0, 8192), requestBytes(0, cmdFlush, 6, 0, 0), requestBytes(0, cmdDisc, 7, 0, 0)))
	f.Add(cat(begin, requestBytes(0, cmdWrite, 1, 0, 512), make([]byte, 200)))
	f.Add(cat(begin, requestBytes(df, cmdRead, 1, 1<<63, 1<<31), requestBytes(0, cmdWrite, 1, 1<<20, 4096), make([]byte, 4096)))
	f.Add(cat(hello, optionBytes(optExportName, []byte("x")), requestBytes(0, cmdRead, 1, 65535, 1)))
	f.Add(cat(hello, optionBytes(optList, nil), optionBytes(optListMeta, metaBytes("x")), optionBytes(optStartTLS, nil), optionBytes(optAbort, nil)))
	f.Add(cat(hello, optionBytes(optGo, goBytes("nope")), optionBytes(optInfo, be32(1<<31)), optionBytes(77, make([]byte, 300))))
	f.Add(cat(be32(0), []byte("IHAVEOPT"), be32(optGo), be32(1<<32-1)))
	f.Fuzz(func(t *testing.T, sent []byte) {
		d := newDisk(64 << 10)
		var mu sync.Mutex
		d.before = func(_ context.Context, op string, off, n int64) error {
			if off < 0 || n < 0 || n == 0 && op != "flush" || off+n > d.Size() {
				t.Errorf("%s %d+%d", op, off, n)
			}
			if op != "read" && op != "map" && !mu.TryLock() {
				t.Errorf("%s beside another call", op)
			} else if op != "read" && op != "map" {
				defer mu.Unlock()
			}
			return nil
		}
		s := nbd.NewServer(nbd.ServerOptions{MaxRequest: 32 << 10})
		s.SetExports(&nbd.Export{Name: "x", Backend: d})
		_ = s.ServeConn(t.Context(), newScript(sent))
		if st := s.ExportStats("x"); st.Unanswered != 0 || st.Connections != 0 {
			t.Errorf("after the end: %+v", st)
		}
	})
}

// granting is a server's side of a handshake that ends well.
func granting() []byte {
	reply := func(opt, kind uint32, p []byte) []byte {
		return cat(be64(0x3e889045565a9), be32(opt), be32(kind), be32(uint32(len(p))), p)
	}
	return cat([]byte("NBDMAGICIHAVEOPT\x00\x03"), reply(optStructured, repAck, nil),
		reply(optSetMeta, repMeta, cat(be32(1), []byte("base:allocation"))), reply(optSetMeta, repAck, nil),
		reply(optGo, repInfo, cat(be16(0), be64(64<<10), be16(1|4|8|32|64|128))),
		reply(optGo, repInfo, cat(be16(1), []byte("name"))), reply(optGo, repInfo, cat(be16(2), []byte("description"))),
		reply(optGo, repInfo, cat(be16(3), be32(512), be32(4096), be32(32<<10))), reply(optGo, repAck, nil))
}

func chunkBytes(flags, kind uint16, handle uint64, p []byte) []byte {
	return cat(be32(0x668e33ef), be16(flags), be16(kind), be64(handle), be32(uint32(len(p))), p)
}

// FuzzClient has a server answer a handshake, and then a read and a block
// status, with any bytes. A read that succeeds must have filled the whole
// buffer.
func FuzzClient(f *testing.F) {
	data := bytes.Repeat([]byte{1}, 4096)
	simple := func(code uint32, handle uint64) []byte { return cat(be32(0x67446698), be32(code), be64(handle)) }
	good := cat(chunkBytes(0, 1, 1, cat(be64(0), data)), chunkBytes(0, 2, 1, cat(be64(4096), be32(2048))), chunkBytes(1, 1, 1, cat(be64(6144), data[:2048])))
	status := chunkBytes(1, 5, 2, cat(be32(1), be32(4096), be32(0), be32(61440), be32(3)))
	f.Add(granting(), cat(good, status))
	f.Add(granting(), cat(chunkBytes(0, 1, 1, cat(be64(4096), data)), status, chunkBytes(1, 1, 1, cat(be64(0), data))))
	f.Add(granting(), cat(chunkBytes(0, 1, 1, cat(be64(4096), data)), chunkBytes(1, 1, 1, cat(be64(4096), data))))
	f.Add(granting(), cat(chunkBytes(1, 1<<15+1, 1, cat(be32(5), be16(3), []byte("bad"))), chunkBytes(1, 1<<15+2, 2, cat(be32(5), be16(0), be64(0)))))
	f.Add(granting(), cat(chunkBytes(1, 1, 1, cat(be64(1<<63), data)), chunkBytes(1, 0, 2, nil)))
	f.Add(granting(), cat(simple(22, 2), simple(5, 1)))
	f.Add(cat([]byte("NBDMAGICIHAVEOPT\x00\x03"), be64(0x3e889045565a9), be32(optStructured), be32(repUnsup), be32(0),
		be64(0x3e889045565a9), be32(optGo), be32(repUnsup), be32(0), be64(64<<10), be16(1)), cat(simple(0, 1), data, data))
	f.Add(cat([]byte("NBDMAGIC"), be64(0x420281861253), be64(4096)), []byte{})
	f.Fuzz(func(t *testing.T, handshake, answers []byte) {
		ctx := t.Context()
		c, err := nbd.NewClient(ctx, newScript(handshake), nbd.DialOptions{})
		if err != nil {
			return
		}
		_ = c.Close()
		// The handshake is whole, so that nobody waits for the rest of it.
		peer := newScript(handshake, answers)
		if c, err = nbd.NewClient(ctx, peer, nbd.DialOptions{}); err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		p := bytes.Repeat([]byte{0xee}, 8192)
		peer.begin(&all, func() {
			err := c.ReadAt(ctx, p, 0)
			if left := bytes.Count(p, []byte{0xee}); err == nil && left > bytes.Count(answers, []byte{0xee}) {
				t.Errorf("read has left %d bytes as they were", left)
			}
		})
		peer.begin(&all, func() {
			e := block.Extent{Length: c.Size()}
			spans, err := c.Map(ctx, e)
			at := int64(0)
			for _, sp := range spans {
				if sp.Offset != at || sp.Length <= 0 && e.Length > 0 || sp.Hole && !sp.Zero {
					t.Errorf("spans %v", spans)
				}
				at = sp.End()
			}
			if err == nil && at > e.Length {
				t.Errorf("spans %v reach beyond %d", spans, e.Length)
			}
		})
		peer.release()
		all.Wait()
		_ = c.Close()
	})
}

// TestFuzzSeedSucceeds makes sure that the fuzzing of the client begins with
// something that works.
func TestFuzzSeedSucceeds(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte{1}, 4096)
	peer := newScript(granting(), chunkBytes(1, 1, 1, cat(be64(0), data)))
	c, err := nbd.NewClient(t.Context(), peer, nbd.DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	peer.begin(&all, func() {
		p := make([]byte, 4096)
		if err := c.ReadAt(t.Context(), p, 0); err != nil || !bytes.Equal(p, data) {
			t.Error(err)
		}
	})
	peer.release()
	all.Wait()
	_ = c.Close()
}
