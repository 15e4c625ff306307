package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// serverConn is one connection of a server. Its own goroutine reads requests
// and runs writes, zeroes and flushes itself: their order is that of arrival,
// and a write costs no change of goroutine. Reads get goroutines.
type serverConn struct {
	srv  *Server
	raw  net.Conn
	nc   net.Conn // raw, or TLS over it
	peer *Conn
	in   inReader
	out  outWriter
	agreed

	// since has the times at which unanswered requests came: of the request
	// that is being run, of the oldest kept answer, then of the reads.
	since []atomic.Int64
	slots chan int // free entries of since for reads
	reads sync.WaitGroup
	// memory bounds the buffers of reads.
	memory byteBudget
}

// Places in serverConn.since.
const (
	sinceRunning = iota
	sinceKept
	sinceReads
)

// agreed is what client and server have come to in the handshake.
type agreed struct {
	noZeroes   bool
	structured bool
	meta       bool   // base:allocation was chosen,
	metaName   string // for this export
	// The server's mu guards the next three for others: the export last looked
	// up, and whether requests may come.
	holding  bool
	held     string
	exported bool

	export   *Export
	mapper   StatusMapper // nil: the backend knows no holes
	size     int64
	minBlock uint32
	maxBlock uint32
	count    *counters
}

func newServerConn(s *Server, nc net.Conn) *serverConn {
	c := &serverConn{
		srv: s, raw: nc,
		peer:  &Conn{ID: s.lastID.Add(1), Remote: nc.RemoteAddr()},
		since: make([]atomic.Int64, sinceReads+s.opts.MaxInflight),
		slots: make(chan int, s.opts.MaxInflight),
	}
	for i := range s.opts.MaxInflight {
		c.slots <- sinceReads + i
	}
	c.memory.limit = s.opts.MaxInflightBytes
	c.memory.freed.L = &c.memory.mu
	c.in.before = c.out.flush
	c.in.buf = make([]byte, readBuffer)
	c.out.since = c.since[sinceKept].Store
	c.use(nc)
	return c
}

// use has the connection speak through nc from now on.
func (c *serverConn) use(nc net.Conn) {
	c.nc, c.in.conn, c.out.conn = nc, nc, nc
}

// partingTime is how long the last answers may take once the end is decided.
const partingTime = time.Second

// serve runs the connection to its end, and returns the cause, nil if the
// client said goodbye.
func (c *serverConn) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(WithConn(ctx, c.peer))
	c.peer.drop = cancel
	closed := make(chan struct{})
	context.AfterFunc(ctx, func() {
		defer close(closed)
		_ = c.raw.Close() // unblocks all
	})
	err := c.handshake(ctx)
	if err == nil {
		err = c.transmit(ctx)
	}
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case err == nil:
		c.reads.Wait()
		err = c.part()
	case errors.Is(err, ErrDrop):
		_ = c.part() // what was taken may still be acknowledged
	}
	cancel(err)
	<-closed
	c.reads.Wait()
	c.out.stop()
	if hook := c.srv.opts.Hooks.OnDisconnect; hook != nil && c.exported {
		hook(c.peer, err)
	}
	return err
}

// part sends what is kept, and closes in good order.
func (c *serverConn) part() error {
	err := c.raw.SetDeadline(time.Now().Add(partingTime))
	return errors.Join(err, c.out.flush(), c.nc.Close())
}

// transmit serves requests until the client says goodbye, for which it returns
// nil.
func (c *serverConn) transmit(ctx context.Context) error {
	for {
		b, err := c.in.take(requestSize)
		if err != nil {
			return err
		}
		r, ok := decodeRequest(b)
		if !ok {
			return fmt.Errorf("%w: request without its magic number", ErrProtocol)
		}
		if r.cmd == cmdDisc {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx) // what is buffered must not be looked at
		}
		c.count.requests.Add(1)
		if err := c.request(ctx, r); err != nil {
			return err
		}
	}
}

// request serves one request; an error ends the connection.
func (c *serverConn) request(ctx context.Context, r request) error {
	code, why := c.check(r)
	if code != 0 {
		if r.cmd == cmdWrite {
			if err := c.in.discard(int64(r.length)); err != nil {
				return err
			}
		}
		return c.answerError(r, code, why)
	}
	switch r.cmd {
	case cmdRead, cmdBlockStatus:
		c.startRead(ctx, r)
		return nil
	case cmdWrite:
		return c.write(ctx, r)
	}
	return c.run(ctx, r, func() error {
		off, n, fua := int64(r.offset), int64(r.length), r.flags&cmdFlagFUA != 0
		switch r.cmd {
		case cmdTrim:
			return c.export.Backend.Zero(ctx, off, n, true, fua)
		case cmdWriteZeroes:
			return c.export.Backend.Zero(ctx, off, n, r.flags&cmdFlagNoHole == 0, fua)
		}
		return c.export.Backend.Flush(ctx)
	})
}

// write takes the payload, and hands it to the Backend straight from the
// buffer if it fits there.
func (c *serverConn) write(ctx context.Context, r request) error {
	var p []byte
	if n := int(r.length); n <= len(c.in.buf) {
		b, err := c.in.take(n)
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		p = b
	} else {
		b := c.srv.pool.get(n)
		defer c.srv.pool.put(b)
		if err := c.in.full(*b); err != nil {
			return err
		}
		p = *b
	}
	c.count.in.Add(uint64(len(p)))
	return c.run(ctx, r, func() error {
		return c.export.Backend.WriteAt(ctx, p, int64(r.offset), r.flags&cmdFlagFUA != 0)
	})
}

// run calls the Backend and answers.
func (c *serverConn) run(ctx context.Context, r request, call func() error) error {
	came := c.srv.now()
	running := &c.since[sinceRunning]
	running.Store(came)
	defer running.Store(0)
	err := call()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err == nil:
		return c.out.queue(came, c.busy(), func(b []byte) []byte { return appendSimple(b, 0, r.handle) })
	case dropsConnection(ctx, err):
		return fmt.Errorf("%s of %d bytes at %d: %w", r.cmd, r.length, r.offset, err)
	}
	return c.answerError(r, errnoOf(err), err.Error())
}

// busy says whether another request is at hand already.
func (c *serverConn) busy() bool { return c.in.buffered() >= requestSize }

// answerError keeps an error as the answer to a request. It may be called from
// any goroutine if the caller flushes.
func (c *serverConn) answerError(r request, code Errno, why string) error {
	c.count.errors.Add(1)
	return c.out.queue(c.srv.now(), true, func(b []byte) []byte { return c.appendError(b, r, code, why) })
}

func (c *serverConn) appendError(b []byte, r request, code Errno, why string) []byte {
	if c.structured {
		return appendErrorChunk(b, code, why, r.handle)
	}
	return appendSimple(b, code, r.handle)
}

// check says with what error a request is to be refused, 0 if it is not.
func (c *serverConn) check(r request) (Errno, string) {
	allowed := cmdFlagFUA // by the protocol allowed with every command
	changes := true
	switch r.cmd {
	case cmdRead:
		changes = false
		if c.structured {
			allowed |= cmdFlagDF
		}
	case cmdBlockStatus:
		changes = false
		allowed |= cmdFlagReqOne
		if !c.meta {
			return EINVAL, "no context was negotiated"
		}
	case cmdWriteZeroes:
		allowed |= cmdFlagNoHole
		if c.export.FastZero {
			allowed |= cmdFlagFastZero
		}
	case cmdFlush:
		if r.flags&^allowed != 0 || r.offset != 0 || r.length != 0 {
			return EINVAL, "a flush has no flags and no range"
		}
		return 0, ""
	case cmdWrite, cmdTrim:
	default:
		return EINVAL, fmt.Sprintf("command %d is not supported", uint16(r.cmd))
	}
	if r.flags&^allowed != 0 {
		return EINVAL, fmt.Sprintf("flags %#x of %s are not supported", r.flags&^allowed, r.cmd)
	}
	if changes && c.export.ReadOnly {
		return EPERM, "export is read-only"
	}
	return c.checkRange(r)
}

func (c *serverConn) checkRange(r request) (Errno, string) {
	switch {
	case r.length == 0:
		return EINVAL, "empty range"
	case r.offset > uint64(c.size) || uint64(r.length) > uint64(c.size)-r.offset:
		if r.cmd == cmdWrite || r.cmd == cmdWriteZeroes {
			return ENOSPC, "range reaches beyond the end"
		}
		return EINVAL, "range reaches beyond the end"
	case r.offset%uint64(c.minBlock) != 0 || r.length%c.minBlock != 0:
		return EINVAL, fmt.Sprintf("range is not aligned to %d bytes", c.minBlock)
	case r.length <= c.maxBlock || r.cmd != cmdRead && r.cmd != cmdWrite:
		return 0, ""
	case r.flags&cmdFlagDF != 0:
		return EOVERFLOW, fmt.Sprintf("at most %d bytes at once", c.maxBlock)
	}
	return EINVAL, fmt.Sprintf("at most %d bytes at once", c.maxBlock)
}
