package nbd

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/internal/block"
)

// maxStatusChunk bounds the bytes of one chunk of block status.
const maxStatusChunk = 8 << 20

// call is a request under way.
type call struct {
	request
	into  []byte // of a read
	spans []block.Span
	done  chan struct{} // closed at the end, after which err may be read
	err   error

	// The client's mu guards abandoned and receiving: into belongs to the caller
	// again if the call is abandoned, and must not be given up while receiving.
	abandoned bool
	receiving bool
	idle      chan struct{} // closed when receiving pauses; nil if nobody waits

	// Of the receiver alone: whether into may be filled, and what of a read has
	// come.
	filling bool
	next    uint64 // all before it, counted from the request's offset
	parts   []block.Extent
}

// maxReadParts bounds the pieces of a read that come out of order.
const maxReadParts = 1 << 16

// do runs a request.
func (c *Client) do(ctx context.Context, r request, payload, into []byte) error {
	return c.roundTrip(ctx, &call{request: r, into: into}, payload)
}

// roundTrip sends a call and waits for its end.
func (c *Client) roundTrip(ctx context.Context, k *call, payload []byte) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	k.done = make(chan struct{})
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return fmt.Errorf("nbd %s: %w", k.cmd, c.err)
	}
	c.last++
	k.handle = c.last
	c.calls[k.handle] = k
	c.mu.Unlock()
	if err := c.send(ctx, k, payload); err != nil {
		c.abandon(k)
		c.mu.Lock()
		delete(c.calls, k.handle)
		c.mu.Unlock()
		return err
	}
	select {
	case <-k.done:
	case <-ctx.Done():
		c.abandon(k)
		select {
		case <-k.done: // the answer came just now
			return k.err
		default:
		}
		return fmt.Errorf("nbd %s of %d bytes at %d: %w", k.cmd, k.length, k.offset, context.Cause(ctx))
	}
	return k.err
}

// send sends a call. If ctx ends in the middle, the connection is broken.
func (c *Client) send(ctx context.Context, k *call, payload []byte) error {
	select {
	case c.sending <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("nbd %s: %w", k.cmd, context.Cause(ctx))
	}
	defer func() { <-c.sending }()
	c.header = k.append(c.header[:0])
	if ctx.Done() != nil {
		hurried := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			defer close(hurried)
			_ = c.nc.SetWriteDeadline(time.Unix(1, 0))
		})
		defer func() {
			if !stop() {
				<-hurried
				_ = c.nc.SetWriteDeadline(time.Time{}) // if all was sent, all is well
			}
		}()
	}
	var err error
	switch {
	case len(payload) == 0:
		_, err = c.nc.Write(c.header)
	case len(payload) <= smallPayload:
		c.header = append(c.header, payload...)
		_, err = c.nc.Write(c.header)
	default:
		b := net.Buffers{c.header, payload}
		_, err = b.WriteTo(c.nc)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		err = fmt.Errorf("nbd %s: send: %w", k.cmd, err)
		c.fail(err)
	}
	return err
}

// smallPayload is up to where copying is cheaper than a second vector.
const smallPayload = 16 << 10

// abandon gives a call up: the receiver skips its answer. If the receiver is
// just filling the caller's buffer and does not come to an end with it, the
// connection is broken.
func (c *Client) abandon(k *call) {
	c.mu.Lock()
	k.abandoned = true
	if !k.receiving {
		c.mu.Unlock()
		return
	}
	idle := make(chan struct{})
	k.idle = idle
	c.mu.Unlock()
	select {
	case <-idle:
	case <-k.done:
	case <-time.After(partingTime):
		c.fail(fmt.Errorf("nbd %s given up in the middle of its answer", k.cmd))
		<-k.done
	}
}

// receive takes answers until the connection ends, and then fails all calls.
func (c *Client) receive() {
	defer close(c.done)
	for {
		if err := c.answer(); err != nil {
			if err == io.EOF {
				err = fmt.Errorf("nbd server closed the connection: %w", err)
			}
			c.fail(err)
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.calls {
		k.err = fmt.Errorf("nbd %s of %d bytes at %d: %w", k.cmd, k.length, k.offset, c.err)
		close(k.done)
	}
	c.calls = nil
}

// find returns the call of an answer, and marks it as being received.
func (c *Client) find(handle uint64) (*call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.calls[handle]
	if k == nil {
		return nil, fmt.Errorf("%w: answer to no request", ErrProtocol)
	}
	k.receiving = !k.abandoned
	k.filling = k.receiving
	return k, nil
}

// settle ends the receiving of an answer's part; with last, of all.
func (c *Client) settle(k *call, last bool) {
	c.mu.Lock()
	k.receiving = false
	if k.idle != nil {
		close(k.idle)
		k.idle = nil
	}
	if last {
		delete(c.calls, k.handle)
	}
	c.mu.Unlock()
	if last {
		close(k.done)
	}
}

// answer takes one simple reply or one chunk. An error breaks the connection.
func (c *Client) answer() error {
	b, err := c.in.take(4)
	if err != nil {
		return err
	}
	switch magic := binary.BigEndian.Uint32(b); {
	case magic == magicSimple:
		return noEOF(c.simpleReply())
	case magic == magicStructured && c.structured:
		return noEOF(c.chunk())
	default:
		return fmt.Errorf("%w: answer begins with %#x", ErrProtocol, magic)
	}
}

// noEOF makes the end of the stream within a message what it is.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (c *Client) simpleReply() error {
	b, err := c.in.take(simpleReplySize - 4)
	if err != nil {
		return err
	}
	code := Errno(binary.BigEndian.Uint32(b))
	k, err := c.find(binary.BigEndian.Uint64(b[4:]))
	if err != nil {
		return err
	}
	switch {
	case code != 0:
		k.err = k.remote(code, "")
	case k.cmd == cmdBlockStatus, k.cmd == cmdRead && c.structured:
		return fmt.Errorf("%w: simple reply to %s", ErrProtocol, k.cmd)
	case k.cmd == cmdRead:
		if err := c.fill(k, 0, k.length); err != nil {
			return err
		}
	}
	c.settle(k, true)
	return nil
}

func (k *call) remote(code Errno, message string) error {
	return &RemoteError{k.cmd.String(), int64(k.offset), int64(k.length), code, message}
}

// fill reads n bytes of an answer to their place.
func (c *Client) fill(k *call, at uint64, n uint32) error {
	if !k.filling {
		return c.in.discard(int64(n))
	}
	return c.in.full(k.into[at : at+uint64(n)])
}

// chunk takes one chunk of a structured reply.
func (c *Client) chunk() error {
	b, err := c.in.take(chunkHeaderSize - 4)
	if err != nil {
		return err
	}
	h := chunk{binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), binary.BigEndian.Uint64(b[4:]), binary.BigEndian.Uint32(b[12:])}
	k, err := c.find(h.handle)
	if err != nil {
		return err
	}
	switch {
	case h.kind == chunkNone && h.length == 0 && h.flags&chunkFlagDone != 0:
	case h.kind == chunkOffsetData && k.cmd == cmdRead && h.length > 8 && h.length <= k.length+8:
		err = c.dataChunk(k, h.length-8, false)
	case h.kind == chunkOffsetHole && k.cmd == cmdRead && h.length == 12:
		err = c.dataChunk(k, 0, true)
	case h.kind == chunkBlockStatus && k.cmd == cmdBlockStatus:
		err = c.statusChunk(k, h.length)
	case h.kind&chunkErrorBit != 0 && h.length >= 6 && h.length <= 6+8+maxNameLength:
		err = c.errorChunk(k, h)
	default:
		err = fmt.Errorf("%w: chunk of kind %d and %d bytes for %s", ErrProtocol, h.kind, h.length, k.cmd)
	}
	if err != nil {
		return err
	}
	last := h.flags&chunkFlagDone != 0
	if last {
		if err := k.complete(); err != nil {
			return err
		}
	}
	c.settle(k, last)
	return nil
}

// dataChunk takes the offset of a chunk of data or hole, and the data.
func (c *Client) dataChunk(k *call, n uint32, hole bool) error {
	size := 8
	if hole {
		size = 12
	}
	b, err := c.in.take(size)
	if err != nil {
		return err
	}
	at := binary.BigEndian.Uint64(b) - k.offset // wraps if below: too large then
	if hole {
		n = binary.BigEndian.Uint32(b[8:])
	}
	if n == 0 || at > uint64(k.length) || uint64(n) > uint64(k.length)-at {
		return fmt.Errorf("%w: chunk beyond the read", ErrProtocol)
	}
	if at == k.next {
		k.next += uint64(n)
	} else if k.parts = append(k.parts, block.Extent{Offset: int64(at), Length: int64(n)}); len(k.parts) > maxReadParts {
		return fmt.Errorf("%w: read answered in too many pieces", ErrProtocol)
	}
	if !hole {
		return c.fill(k, at, n)
	}
	if k.filling {
		clear(k.into[at : at+uint64(n)])
	}
	return nil
}

// complete checks that a call was answered in full.
func (k *call) complete() error {
	if k.err != nil {
		return nil
	}
	switch k.cmd {
	case cmdRead:
		slices.SortFunc(k.parts, func(a, b block.Extent) int { return cmp.Compare(a.Offset, b.Offset) })
		for _, p := range k.parts {
			if uint64(p.Offset) == k.next {
				k.next += uint64(p.Length)
			}
		}
		if k.next != uint64(k.length) {
			return fmt.Errorf("%w: read of %d bytes answered in part", ErrProtocol, k.length)
		}
	case cmdBlockStatus:
		if len(k.spans) == 0 {
			return fmt.Errorf("%w: block status without extents", ErrProtocol)
		}
	}
	return nil
}

// statusChunk takes the extents of a block status.
func (c *Client) statusChunk(k *call, n uint32) error {
	if n < 12 || n%8 != 4 || n > maxStatusChunk || k.spans != nil {
		return fmt.Errorf("%w: block status of %d bytes", ErrProtocol, n)
	}
	b, err := c.in.take(4)
	if err != nil {
		return err
	}
	if id := binary.BigEndian.Uint32(b); id != c.metaID {
		return fmt.Errorf("%w: block status of context %d", ErrProtocol, id)
	}
	at := int64(k.offset)
	end := at + int64(k.length)
	for ; n > 4; n -= 8 {
		b, err := c.in.take(8)
		if err != nil {
			return err
		}
		length, state := int64(binary.BigEndian.Uint32(b)), binary.BigEndian.Uint32(b[4:])
		if length == 0 {
			return fmt.Errorf("%w: empty extent in block status", ErrProtocol)
		}
		// The last extent may reach beyond what was asked for.
		if length = min(length, end-at); length == 0 {
			continue
		}
		zero := state&stateZero != 0
		k.spans = append(k.spans, block.Span{
			Extent: block.Extent{Offset: at, Length: length},
			Zero:   zero, Hole: zero && state&stateHole != 0,
		})
		at += length
	}
	return nil
}

// errorChunk takes an error; the call goes on until its last chunk.
func (c *Client) errorChunk(k *call, h chunk) error {
	b, err := c.in.take(int(h.length))
	if err != nil {
		return err
	}
	code, n := Errno(binary.BigEndian.Uint32(b)), int(binary.BigEndian.Uint16(b[4:]))
	if code == 0 || 6+n > len(b) {
		return fmt.Errorf("%w: malformed error", ErrProtocol)
	}
	if k.err == nil { // the first says most
		k.err = k.remote(code, string(b[6:6+min(n, maxErrorMessage)]))
	}
	return nil
}
