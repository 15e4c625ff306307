package nbd

import (
	"io"
	"math/bits"
	"net"
	"sync"
	"time"
)

// readBuffer is the size of a connection's read buffer in bytes: writes of up
// to 64 KiB are handed to the Backend straight from it, several of them from
// one read of the socket.
const readBuffer = 128<<10 + requestSize

// bufferPool has byte slices of power-of-two capacities.
type bufferPool struct {
	classes [26]sync.Pool // from 4 KiB up
}

const smallestClass = 12

// get returns a slice of length n with arbitrary content.
func (p *bufferPool) get(n int) *[]byte {
	class := max(bits.Len(uint(max(n, 1)-1)), smallestClass) - smallestClass
	if class >= len(p.classes) {
		b := make([]byte, n)
		return &b
	}
	if b, ok := p.classes[class].Get().(*[]byte); ok {
		*b = (*b)[:n]
		return b
	}
	b := make([]byte, n, 1<<(class+smallestClass))
	return &b
}

// put takes back what get returned.
func (p *bufferPool) put(b *[]byte) {
	class := bits.Len(uint(cap(*b))) - 1 - smallestClass
	if class >= 0 && class < len(p.classes) && cap(*b) == 1<<(class+smallestClass) {
		p.classes[class].Put(b)
	}
}

// inReader reads from a connection into a buffer out of which messages are
// taken without copying. before runs ahead of every read of the connection,
// which is the moment when what was answered must be sent.
type inReader struct {
	conn   net.Conn
	before func() error
	buf    []byte
	r, w   int
}

// buffered returns the bytes that were read and not taken.
func (b *inReader) buffered() int { return b.w - b.r }

// take returns the next n bytes, which stay valid until the next call, or
// io.EOF if there are none, or io.ErrUnexpectedEOF if there are too few. n is
// at most the buffer's size.
func (b *inReader) take(n int) ([]byte, error) {
	if b.w-b.r < n {
		if err := b.fill(n); err != nil {
			return nil, err
		}
	}
	p := b.buf[b.r : b.r+n]
	b.r += n
	if b.r == b.w {
		b.r, b.w = 0, 0
	}
	return p, nil
}

func (b *inReader) fill(n int) error {
	if b.r+n > len(b.buf) {
		b.w = copy(b.buf, b.buf[b.r:b.w])
		b.r = 0
	}
	for b.w-b.r < n {
		if err := b.before(); err != nil {
			return err
		}
		m, err := b.conn.Read(b.buf[b.w:])
		b.w += m
		if err != nil && b.w-b.r < n {
			if err == io.EOF && b.w > b.r {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// full fills p.
func (b *inReader) full(p []byte) error {
	n := copy(p, b.buf[b.r:b.w])
	b.r += n
	if b.r == b.w {
		b.r, b.w = 0, 0
	}
	if n == len(p) {
		return nil
	}
	if err := b.before(); err != nil {
		return err
	}
	_, err := io.ReadFull(b.conn, p[n:])
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// discard skips n bytes.
func (b *inReader) discard(n int64) error {
	for n > 0 {
		p, err := b.take(int(min(n, int64(len(b.buf)/2))))
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		n -= int64(len(p))
	}
	return nil
}

// lingerTime is how long an answer may wait for others to be sent with it
// while the connection is busy with further requests.
const lingerTime = 200 * time.Microsecond

// outWriter sends to a connection. Small answers are kept until flush, so that
// one system call sends many.
type outWriter struct {
	conn net.Conn
	// since is told when the oldest kept answer's request came, 0 if none.
	since func(int64)

	// mu guards the fields below, and the sending itself.
	mu      sync.Mutex
	pending []byte
	err     error // sticky
	timer   *time.Timer
	armed   bool
	timers  sync.WaitGroup
}

// maxPending bounds the bytes of kept answers.
const maxPending = 64 << 10

// queue keeps what add appends until the next flush; came is the time of
// the request. If more requests are at hand, so that the next flush may take a
// while, one is set up.
func (o *outWriter) queue(came int64, more bool, add func([]byte) []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.pending) == 0 && came != 0 {
		o.since(came)
	}
	o.pending = add(o.pending)
	if len(o.pending) >= maxPending {
		return o.flushLocked()
	}
	if more && !o.armed && o.err == nil {
		o.arm()
	}
	return o.err
}

// arm sets the timer; the caller holds mu.
func (o *outWriter) arm() {
	o.armed = true
	o.timers.Add(1)
	if o.timer != nil {
		o.timer.Reset(lingerTime)
		return
	}
	o.timer = time.AfterFunc(lingerTime, func() {
		defer o.timers.Done()
		o.mu.Lock()
		defer o.mu.Unlock()
		o.armed = false
		_ = o.flushLocked() // the error is kept
	})
}

// flush sends what is kept.
func (o *outWriter) flush() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.flushLocked()
}

func (o *outWriter) flushLocked() error {
	if o.armed && o.timer.Stop() {
		o.armed = false
		o.timers.Done()
	}
	if len(o.pending) == 0 || o.err != nil {
		return o.err
	}
	_, o.err = o.conn.Write(o.pending)
	o.pending = o.pending[:0]
	o.since(0)
	return o.err
}

// send sends what is kept, and then b.
func (o *outWriter) send(b []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.flushLocked(); err != nil {
		return err
	}
	_, o.err = o.conn.Write(b)
	return o.err
}

// stop ends sending: nothing of it runs afterwards. The connection must be
// closed, so that no write blocks.
func (o *outWriter) stop() {
	o.mu.Lock()
	if o.err == nil {
		o.err = net.ErrClosed
	}
	_ = o.flushLocked()
	o.mu.Unlock()
	o.timers.Wait()
}

// byteBudget bounds how many bytes are in use. One user is always let through.
type byteBudget struct {
	limit int64

	// mu guards used.
	mu    sync.Mutex
	used  int64
	freed sync.Cond
}

func (b *byteBudget) acquire(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.used > 0 && b.used+n > b.limit {
		b.freed.Wait()
	}
	b.used += n
}

func (b *byteBudget) release(n int64) {
	b.mu.Lock()
	b.used -= n
	b.mu.Unlock()
	b.freed.Signal()
}
