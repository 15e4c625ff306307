package nbd

import (
	"context"
	"crypto/tls"
	"fmt"
	"math"
	"net"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/internal/block"
)

// DialOptions say what a Client asks for. The zero value asks for the default
// export in clear text, with all the server has.
type DialOptions struct {
	// Export is the name of the export; the default export has the empty name.
	Export string
	// TLS, if set, is insisted on: there is no way back to clear text. Its
	// ServerName must be set, or the certificate not be verified.
	TLS *tls.Config
	// SimpleReplies does without structured replies, and thus without Map.
	SimpleReplies bool
	// NoMap does without the context base:allocation.
	NoMap bool
	// MaxRequest bounds the bytes of one read or write; larger ones are split.
	// 0 means what the server allows, and at most 32 MiB.
	MaxRequest uint32
}

// Client is a connection to an export, as an image and as a sink. All methods
// are safe for concurrent use, and requests of several goroutines are under
// way at the same time.
//
// If the connection breaks, all that is under way fails, and so does all that
// comes after: there is no reconnecting. If a context ends while its request
// is under way the request is forgotten, not undone; if a message is cut in
// two by it, the connection is broken.
type Client struct {
	nc   net.Conn
	in   inReader
	opts DialOptions
	granted

	// sending is held (filled) by who sends.
	sending chan struct{}
	header  []byte // of the message being sent

	// mu guards the fields below.
	mu      sync.Mutex
	calls   map[uint64]*call
	last    uint64 // handle
	err     error  // why the connection is broken
	done    chan struct{}
	closing sync.Once
}

// granted is what the handshake came to.
type granted struct {
	size        int64
	flags       Flags
	structured  bool
	metaID      uint32
	meta        bool
	name        string
	description string
	minBlock    uint32
	preferred   uint32
	maxBlock    uint32
}

var (
	_ block.Image = (*Client)(nil)
	_ block.Sink  = (*Client)(nil)
)

// Dial connects to an export. The context bounds connecting and handshake.
func Dial(ctx context.Context, network, addr string, o DialOptions) (*Client, error) {
	nc, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, fmt.Errorf("connect to nbd server: %w", err)
	}
	return NewClient(ctx, nc, o)
}

// NewClient is Dial over a connection that exists; it is closed if there is an
// error.
func NewClient(ctx context.Context, nc net.Conn, o DialOptions) (*Client, error) {
	c := &Client{
		nc: nc, opts: o, sending: make(chan struct{}, 1),
		calls: map[uint64]*call{}, done: make(chan struct{}),
	}
	h := &clientHandshake{nc: nc, opts: o}
	err := h.within(ctx, func() error { return h.open(&c.granted) })
	if err != nil {
		_ = h.nc.Close()
		return nil, fmt.Errorf("open nbd export %q: %w", o.Export, err)
	}
	if o.MaxRequest != 0 {
		c.maxBlock = max(min(c.maxBlock, o.MaxRequest)/c.minBlock*c.minBlock, c.minBlock)
	}
	c.nc = h.nc
	c.in = inReader{conn: c.nc, before: func() error { return nil }, buf: h.in.buf, r: h.in.r, w: h.in.w}
	go c.receive()
	return c, nil
}

// Size returns the size of the export in bytes.
func (c *Client) Size() int64 { return c.size }

// Flags returns what the export can do.
func (c *Client) Flags() Flags { return c.flags }

// HasMap says whether Map knows of holes; if not, all is taken for data.
func (c *Client) HasMap() bool { return c.meta }

// Structured says whether structured replies were negotiated.
func (c *Client) Structured() bool { return c.structured }

// Name returns the name the server gave the export, which may be empty.
func (c *Client) Name() string { return c.name }

// Description returns the server's description of the export.
func (c *Client) Description() string { return c.description }

// BlockSizes returns the granularity of requests, the preferred and the
// largest size of one, in bytes. Reads are rounded to the granularity here.
func (c *Client) BlockSizes() (least, preferred, most uint32) {
	return c.minBlock, c.preferred, c.maxBlock
}

// largestRange is the most that one request without payload may cover: below
// 4 GiB, and small enough that servers that are slow at it answer in time.
const largestRange = 1 << 30

// Err returns why the connection is broken, nil as long as it is not.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *Client) checkRange(op string, off, n int64) error {
	if off < 0 || n < 0 || off > c.size || n > c.size-off {
		return fmt.Errorf("nbd %s of %d bytes at %d: beyond the disk's %d bytes: %w", op, n, off, c.size, EINVAL)
	}
	return nil
}

// ReadAt fills p from off. Any alignment is allowed.
func (c *Client) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := c.checkRange("read", off, int64(len(p))); err != nil {
		return err
	}
	least := int64(c.minBlock)
	if off%least != 0 || int64(len(p))%least != 0 {
		start := off / least * least
		end := min((off+int64(len(p))+least-1)/least*least, c.size)
		b := make([]byte, end-start)
		if err := c.read(ctx, b, start); err != nil {
			return err
		}
		copy(p, b[off-start:])
		return nil
	}
	return c.read(ctx, p, off)
}

func (c *Client) read(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		n := min(len(p), int(c.maxBlock))
		r := request{cmd: cmdRead, offset: uint64(off), length: uint32(n)}
		if err := c.do(ctx, r, nil, p[:n]); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// WriteAt writes p at off. It is durable after the next Flush.
func (c *Client) WriteAt(ctx context.Context, p []byte, off int64) error {
	return c.write(ctx, p, off, 0)
}

// WriteThrough is WriteAt, and durable on return.
func (c *Client) WriteThrough(ctx context.Context, p []byte, off int64) error {
	if c.flags&FlagSendFUA != 0 {
		return c.write(ctx, p, off, cmdFlagFUA)
	}
	if err := c.write(ctx, p, off, 0); err != nil {
		return err
	}
	return c.Flush(ctx)
}

func (c *Client) write(ctx context.Context, p []byte, off int64, flags uint16) error {
	if err := c.checkRange("write", off, int64(len(p))); err != nil {
		return err
	}
	for len(p) > 0 {
		n := min(len(p), int(c.maxBlock))
		r := request{flags: flags, cmd: cmdWrite, offset: uint64(off), length: uint32(n)}
		if err := c.do(ctx, r, p[:n], nil); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// Zero makes the extent read as zeroes; with punch the server may free the
// space. A server that cannot is sent zeroes.
func (c *Client) Zero(ctx context.Context, e block.Extent, punch bool) error {
	if err := c.checkRange("write zeroes", e.Offset, e.Length); err != nil {
		return err
	}
	if c.flags&FlagSendWriteZeroes == 0 {
		return c.writeZeroes(ctx, e)
	}
	r := request{cmd: cmdWriteZeroes}
	if !punch {
		r.flags = cmdFlagNoHole
	}
	return c.ranges(ctx, r, e)
}

func (c *Client) writeZeroes(ctx context.Context, e block.Extent) error {
	b := make([]byte, min(e.Length, 1<<20, int64(c.maxBlock)))
	for e.Length > 0 {
		n := min(e.Length, int64(len(b)))
		if err := c.write(ctx, b[:n], e.Offset, 0); err != nil {
			return err
		}
		e.Offset, e.Length = e.Offset+n, e.Length-n
	}
	return nil
}

// Trim tells the server that the extent's content is not needed. What it reads
// as afterwards is up to the server. ErrNotSupported if the server has no
// trim.
func (c *Client) Trim(ctx context.Context, e block.Extent) error {
	if err := c.checkRange("trim", e.Offset, e.Length); err != nil {
		return err
	}
	if c.flags&FlagSendTrim == 0 {
		return fmt.Errorf("nbd trim: %w", ErrNotSupported)
	}
	return c.ranges(ctx, request{cmd: cmdTrim}, e)
}

func (c *Client) ranges(ctx context.Context, r request, e block.Extent) error {
	for e.Length > 0 {
		n := min(e.Length, max(largestRange, int64(c.minBlock)))
		r.offset, r.length = uint64(e.Offset), uint32(n)
		if err := c.do(ctx, r, nil, nil); err != nil {
			return err
		}
		e.Offset, e.Length = e.Offset+n, e.Length-n
	}
	return nil
}

// Flush returns when what was written before is durable. A server without
// flush is taken to be durable always.
func (c *Client) Flush(ctx context.Context) error {
	if c.flags&FlagSendFlush == 0 {
		return nil
	}
	return c.do(ctx, request{cmd: cmdFlush}, nil, nil)
}

// Map reports spans as the server's base:allocation has them, or one of data
// without it.
func (c *Client) Map(ctx context.Context, e block.Extent) ([]block.Span, error) {
	if err := c.checkRange("block status", e.Offset, e.Length); err != nil {
		return nil, err
	}
	if !c.meta || e.Length == 0 {
		return []block.Span{{Extent: e}}, nil
	}
	least := int64(c.minBlock)
	start := e.Offset / least * least
	end := min((e.End()+least-1)/least*least, start+largestRange, c.size)
	r := request{cmd: cmdBlockStatus, offset: uint64(start), length: uint32(end - start)}
	k := &call{request: r}
	if err := c.roundTrip(ctx, k, nil); err != nil {
		return nil, err
	}
	spans := k.spans[:0]
	for _, sp := range k.spans {
		low, high := max(sp.Offset, e.Offset), min(sp.End(), e.End())
		if low < high {
			sp.Extent = block.Extent{Offset: low, Length: high - low}
			spans = append(spans, sp)
		}
	}
	if len(spans) == 0 {
		return nil, fmt.Errorf("%w: block status of nothing that was asked for", ErrProtocol)
	}
	return spans, nil
}

// Close says goodbye, closes the connection and returns when nothing of the
// client runs any more. What is under way fails with ErrClosed. It does not
// flush. It may be called again.
func (c *Client) Close() error {
	c.closing.Do(func() {
		_ = c.nc.SetWriteDeadline(time.Now().Add(partingTime))
		if c.Err() == nil {
			c.sending <- struct{}{}
			_ = c.nc.SetWriteDeadline(time.Now().Add(partingTime))
			c.header = request{cmd: cmdDisc}.append(c.header[:0])
			_, _ = c.nc.Write(c.header) // a courtesy
			<-c.sending
		}
		c.fail(ErrClosed)
	})
	<-c.done
	return nil
}

// fail breaks the connection, if it is not broken already.
func (c *Client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
		if raw, ok := c.nc.(*tls.Conn); ok {
			_ = raw.NetConn().Close() // without waiting for a farewell to be sent
		} else {
			_ = c.nc.Close()
		}
	}
}

// clampBlocks makes sense of the block sizes a server has told.
func (g *granted) clampBlocks(least, preferred, most uint32) error {
	if least == 0 || least&(least-1) != 0 || least > 64<<10 || most < least {
		return fmt.Errorf("%w: block sizes %d, %d, %d", ErrProtocol, least, preferred, most)
	}
	g.minBlock, g.preferred = least, max(preferred, least)
	g.maxBlock = min(most, defaultMaxRequest) / least * least
	return nil
}

// checkSize makes sure that offsets fit.
func checkSize(size uint64) (int64, error) {
	if size > math.MaxInt64-largestRange {
		return 0, fmt.Errorf("%w: size of %d bytes", ErrProtocol, size)
	}
	return int64(size), nil
}
