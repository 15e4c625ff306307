package nbd_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/internal/nbd"
)

// TestOrderOfArrival: writes, zeroes and flushes reach the backend one at a
// time in their order, whatever their sizes, while reads run beside them.
func TestOrderOfArrival(t *testing.T) {
	t.Parallel()
	d := newDisk(4 << 20)
	var inside atomic.Int32
	d.before = func(_ context.Context, op string, _, _ int64) error {
		if op == "read" {
			return nil
		}
		if inside.Add(1) != 1 {
			t.Error("two calls at a time")
		}
		time.Sleep(20 * time.Microsecond)
		inside.Add(-1)
		return nil
	}
	_, path := serve(t, nbd.ServerOptions{}, &nbd.Export{Backend: plain{d}})
	w := openWire(t, path, "", false)
	var sent []byte
	var want []string
	for i := range uint64(300) {
		n := []uint32{512, 4096, 70 << 10, 140 << 10}[i%4]
		switch off := i * 512; i % 7 {
		case 3:
			sent = append(sent, requestBytes(0, cmdZeroes, i, off, n)...)
			want = append(want, fmt.Sprintf("punch %d+%d", off, n))
		case 5:
			sent = append(sent, requestBytes(0, cmdFlush, i, 0, 0)...)
			want = append(want, "flush 0+0")
		default:
			sent = append(append(sent, requestBytes(0, cmdWrite, i, off, n)...), make([]byte, n)...)
			want = append(want, fmt.Sprintf("write %d+%d", off, n))
		}
	}
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { w.send(sent) })
	for i := range uint64(300) {
		w.wantSimple(0, i)
	}
	if diff := cmp.Diff(want, d.log()); diff != "" {
		t.Error(diff)
	}
}

// TestReadsBesideWrites: a read that takes its time holds up neither writes nor
// other reads.
func TestReadsBesideWrites(t *testing.T) {
	t.Parallel()
	d := newDisk(1 << 20)
	free := make(chan struct{})
	d.before = func(_ context.Context, op string, off, _ int64) error {
		if op == "read" && off == 0 {
			<-free
		}
		return nil
	}
	s, path := serve(t, nbd.ServerOptions{}, &nbd.Export{Backend: plain{d}})
	w := openWire(t, path, "", false)
	w.send(requestBytes(0, cmdRead, 1, 0, 512))
	w.send(requestBytes(0, cmdWrite, 2, 0, 512), make([]byte, 512))
	w.wantSimple(0, 2)
	w.send(requestBytes(0, cmdRead, 3, 4096, 512))
	w.wantSimple(0, 3)
	w.take(512)
	if st := s.ExportStats(""); st.Unanswered != 1 || st.OldestUnanswered <= 0 || st.Connections != 1 {
		t.Errorf("stats while a read is under way: %+v", st)
	}
	close(free)
	w.wantSimple(0, 1)
	w.take(512)
	waitIdle(t, s, "")
}

// waitIdle waits until an export has nothing unanswered.
func waitIdle(t *testing.T, s *nbd.Server, export string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); s.ExportStats(export).Unanswered > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still unanswered: %+v", s.ExportStats(export))
		}
	}
}

// TestAnswersDoNotWait: an answer is sent even if the next request, which is at
// hand already, takes for ever; and the age of that one is known.
func TestAnswersDoNotWait(t *testing.T) {
	t.Parallel()
	d := newDisk(1 << 20)
	free := make(chan struct{})
	d.before = func(_ context.Context, _ string, off, _ int64) error {
		if off == 4096 {
			<-free
		}
		return nil
	}
	s, path := serve(t, nbd.ServerOptions{}, &nbd.Export{Name: "d", Backend: d})
	w := openWire(t, path, "d", false)
	p := make([]byte, 512)
	w.send(requestBytes(0, cmdWrite, 1, 0, 512), p, requestBytes(0, cmdWrite, 2, 4096, 512), p, requestBytes(0, cmdWrite, 3, 0, 512), p)
	w.wantSimple(0, 1)
	a := s.Stats()["d"].OldestUnanswered
	time.Sleep(5 * time.Millisecond)
	if b := s.Stats()["d"].OldestUnanswered; b < a+5*time.Millisecond {
		t.Errorf("age of the oldest request: %v, then %v", a, b)
	}
	close(free)
	w.wantSimple(0, 2)
	w.wantSimple(0, 3)
	waitIdle(t, s, "d")
	if st := s.ExportStats("d"); st.Requests != 3 || st.BytesIn != 1536 || st.OldestUnanswered != 0 {
		t.Errorf("stats: %+v", st)
	}
}

// TestErrDrop: the client gets the answers to what was taken, and then the end
// of the connection; nothing after the refused request reaches the backend.
func TestErrDrop(t *testing.T) {
	t.Parallel()
	for _, structured := range []bool{false, true} {
		d := newDisk(1 << 20)
		full := errors.New("spool is full")
		d.before = func(_ context.Context, _ string, off, _ int64) error {
			if off == 1024 {
				return fmt.Errorf("%w: %w", nbd.ErrDrop, full)
			}
			return nil
		}
		ended := make(chan error, 1)
		hooks := nbd.Hooks{OnDisconnect: func(_ *nbd.Conn, cause error) { ended <- cause }}
		_, path := serve(t, nbd.ServerOptions{Hooks: hooks}, &nbd.Export{Backend: d})
		w := openWire(t, path, "", structured)
		p := make([]byte, 512)
		var sent []byte
		for i := range uint64(5) {
			sent = cat(sent, requestBytes(0, cmdWrite, i, i*512, 512), p)
		}
		w.send(sent)
		w.wantSimple(0, 0)
		w.wantSimple(0, 1)
		w.wantEnd()
		if diff := cmp.Diff([]string{"write 0+512", "write 512+512", "write 1024+512"}, d.log()); diff != "" {
			t.Error(diff)
		}
		if cause := <-ended; !errors.Is(cause, full) || !errors.Is(cause, nbd.ErrDrop) {
			t.Errorf("cause %v", cause)
		}
	}
}

// TestErrDropOfRead: a read can drop as well.
func TestErrDropOfRead(t *testing.T) {
	t.Parallel()
	d := newDisk(1 << 20)
	d.before = func(context.Context, string, int64, int64) error { return nbd.ErrDrop }
	ended := make(chan error, 1)
	hooks := nbd.Hooks{OnDisconnect: func(_ *nbd.Conn, cause error) { ended <- cause }}
	_, path := serve(t, nbd.ServerOptions{Hooks: hooks}, &nbd.Export{Backend: plain{d}})
	w := openWire(t, path, "", true)
	w.send(requestBytes(0, cmdRead, 1, 0, 512))
	w.wantEnd()
	if cause := <-ended; !errors.Is(cause, nbd.ErrDrop) {
		t.Errorf("cause %v", cause)
	}
}

// TestStopSendsNoErrors: when the server ends, a request under way is not
// answered with an error, and Serve returns only after the backend has.
func TestStopSendsNoErrors(t *testing.T) {
	t.Parallel()
	for _, op := range []uint16{cmdRead, cmdTrim, cmdFlush} {
		d := newDisk(1 << 20)
		entered := make(chan struct{})
		var left atomic.Bool
		d.before = func(ctx context.Context, _ string, _, _ int64) error {
			close(entered)
			<-ctx.Done()
			time.Sleep(10 * time.Millisecond)
			left.Store(true)
			return fmt.Errorf("take the write: %w", ctx.Err())
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := nbd.NewServer(nbd.ServerOptions{})
		s.SetExports(&nbd.Export{Backend: plain{d}})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Serve(ctx, l) }()
		nc, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		w := &wire{t, nc}
		w.take(18)
		w.send(be32(3), optionBytes(optExportName, nil))
		w.take(10)
		n := uint32(512)
		if op == cmdFlush {
			n = 0
		}
		w.send(requestBytes(0, op, 1, 0, n))
		<-entered
		cancel()
		w.wantEnd()
		if err := <-done; err != nil || !left.Load() {
			t.Errorf("serve returned %v, the backend before it: %t", err, left.Load())
		}
		_ = nc.Close()
	}
}

func TestDropExport(t *testing.T) {
	t.Parallel()
	why := errors.New("enough")
	d, other := newDisk(1<<20), newDisk(1<<20)
	var s *nbd.Server
	var running atomic.Bool
	d.before = func(ctx context.Context, _ string, off, _ int64) error {
		running.Store(true)
		defer running.Store(false)
		if off == 0 {
			s.DropExport("d", why) // from within a call
		} else {
			<-ctx.Done()
			time.Sleep(5 * time.Millisecond)
		}
		return nil
	}
	ended := make(chan error, 4)
	hooks := nbd.Hooks{OnDisconnect: func(_ *nbd.Conn, cause error) { ended <- cause }}
	s, path := serve(t, nbd.ServerOptions{Hooks: hooks}, &nbd.Export{Name: "d", Backend: d}, &nbd.Export{Name: "o", Backend: other})
	a, b, o := openWire(t, path, "d", false), openWire(t, path, "d", false), openWire(t, path, "o", false)
	a.send(requestBytes(0, cmdTrim, 1, 0, 512))
	a.wantEnd()
	b.wantEnd()
	for range 2 {
		if cause := <-ended; !errors.Is(cause, why) {
			t.Errorf("cause %v", cause)
		}
	}
	o.send(requestBytes(0, cmdFlush, 1, 0, 0))
	o.wantSimple(0, 1)

	c := openWire(t, path, "d", false)
	c.send(requestBytes(0, cmdTrim, 1, 512, 512))
	for !running.Load() {
		time.Sleep(time.Millisecond)
	}
	if err := s.CloseExport(t.Context(), "d", why); err != nil || running.Load() || s.ExportStats("d").Connections != 0 {
		t.Errorf("close export: %v, %+v", err, s.ExportStats("d"))
	}
	c.wantEnd()
	if s.DropExport("d", why) != 0 {
		t.Error("there is still something to drop")
	}
}

// TestSlowReader: a client that sends requests and takes no answers has the
// memory of its limit, and no more.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	d := newDisk(8 << 20)
	s, path := serve(t, nbd.ServerOptions{MaxInflight: 8, MaxInflightBytes: 3 << 20}, &nbd.Export{Backend: plain{d}})
	w := openWire(t, path, "", false)
	var sent []byte
	for i := range uint64(100) {
		sent = append(sent, requestBytes(0, cmdRead, i, 0, 1<<20)...)
	}
	w.send(sent)
	for begun := false; !begun || len(d.log()) > 0; begun = begun || s.ExportStats("").Requests > 0 {
		time.Sleep(20 * time.Millisecond) // until nothing moves
	}
	if st := s.ExportStats(""); st.Unanswered == 0 || st.Unanswered > 4 {
		t.Errorf("unanswered: %+v", st)
	}
	for range 100 {
		w.take(16 + 1<<20)
	}
	waitIdle(t, s, "")
	// One request that is larger than the limit is let through.
	w.send(requestBytes(0, cmdRead, 1, 0, 8<<20))
	w.take(16 + 8<<20)
}

func TestHangUp(t *testing.T) {
	t.Parallel()
	d := newDisk(1 << 20)
	ended := make(chan error, 1)
	hooks := nbd.Hooks{OnDisconnect: func(_ *nbd.Conn, cause error) { ended <- cause }}
	_, path := serve(t, nbd.ServerOptions{Hooks: hooks}, &nbd.Export{Backend: d})
	w := openWire(t, path, "", false)
	_ = w.Close()
	if cause := <-ended; cause != io.EOF {
		t.Errorf("cause %v", cause)
	}
}
