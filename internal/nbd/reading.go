package nbd

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/holdfast-dr/holdfast/internal/block"
)

// maxReadSpans bounds the chunks of the answer to one read.
const maxReadSpans = 64

// startRead serves a read or a block status in a goroutine of its own, once
// there is a place for it.
func (c *serverConn) startRead(ctx context.Context, r request) {
	slot, memory := <-c.slots, int64(0)
	if r.cmd == cmdRead {
		memory = int64(r.length)
	}
	c.since[slot].Store(c.srv.now())
	c.memory.acquire(memory)
	c.reads.Go(func() {
		defer func() {
			c.memory.release(memory)
			c.since[slot].Store(0)
			c.slots <- slot
		}()
		answer := c.read
		if r.cmd == cmdBlockStatus {
			answer = c.blockStatus
		}
		err := answer(ctx, r)
		switch {
		case err == nil:
			return
		case dropsConnection(ctx, err):
			c.peer.Drop(fmt.Errorf("%s of %d bytes at %d: %w", r.cmd, r.length, r.offset, err))
			return
		}
		c.count.errors.Add(1)
		c.send(ctx, c.appendError(nil, r, errnoOf(err), err.Error()))
	})
}

// send sends an answer, unless the connection was dropped meanwhile; if it
// cannot be sent the connection is at its end.
func (c *serverConn) send(ctx context.Context, b []byte) {
	if ctx.Err() != nil {
		return
	}
	if err := c.out.send(b); err != nil {
		c.peer.Drop(err)
	}
}

// read reads and answers; an error is of the Backend, and nothing was sent.
func (c *serverConn) read(ctx context.Context, r request) error {
	e := block.Extent{Offset: int64(r.offset), Length: int64(r.length)}
	if !c.structured {
		buf := c.srv.pool.get(simpleReplySize + int(r.length))
		defer c.srv.pool.put(buf)
		data := appendSimple((*buf)[:0], 0, r.handle)
		if err := c.export.Backend.ReadAt(ctx, (*buf)[len(data):], e.Offset); err != nil {
			return err
		}
		c.count.out.Add(uint64(r.length))
		c.send(ctx, *buf)
		return nil
	}
	spans := []block.Span{{Extent: e}}
	if r.flags&cmdFlagDF == 0 {
		spans = c.spans(ctx, e, maxReadSpans)
	}
	size := 0
	for _, sp := range spans {
		size += chunkHeaderSize + 12
		if !sp.Zero {
			size += int(sp.Length) - 4
		}
	}
	buf := c.srv.pool.get(size)
	defer c.srv.pool.put(buf)
	b := (*buf)[:0]
	for i, sp := range spans {
		h := chunk{kind: chunkOffsetHole, handle: r.handle, length: 12}
		if i == len(spans)-1 {
			h.flags = chunkFlagDone
		}
		if sp.Zero {
			b = binary.BigEndian.AppendUint64(h.append(b), uint64(sp.Offset))
			b = binary.BigEndian.AppendUint32(b, uint32(sp.Length))
			continue
		}
		h.kind, h.length = chunkOffsetData, uint32(8+sp.Length)
		b = binary.BigEndian.AppendUint64(h.append(b), uint64(sp.Offset))
		if err := c.export.Backend.ReadAt(ctx, b[len(b):len(b)+int(sp.Length)], sp.Offset); err != nil {
			return err
		}
		b = b[:len(b)+int(sp.Length)]
		c.count.out.Add(uint64(sp.Length))
	}
	c.send(ctx, b)
	return nil
}

// blockStatus maps and answers; an error is of the Backend, and nothing was
// sent.
func (c *serverConn) blockStatus(ctx context.Context, r request) error {
	most := maxStatusDescriptors
	if r.flags&cmdFlagReqOne != 0 {
		most = 1
	}
	e := block.Extent{Offset: int64(r.offset), Length: int64(r.length)}
	spans, err := c.mapped(ctx, e, most)
	if err != nil {
		return err
	}
	b := make([]byte, 0, chunkHeaderSize+4+8*len(spans))
	b = chunk{chunkFlagDone, chunkBlockStatus, r.handle, uint32(4 + 8*len(spans))}.append(b)
	b = binary.BigEndian.AppendUint32(b, allocationID)
	for _, sp := range spans {
		state := uint32(0)
		if sp.Zero {
			state |= stateZero
		}
		if sp.Hole {
			state |= stateHole
		}
		b = binary.BigEndian.AppendUint32(b, uint32(sp.Length))
		b = binary.BigEndian.AppendUint32(b, state)
	}
	c.send(ctx, b)
	return nil
}

// spans is mapped over the whole extent: what comes after the last span that
// fits is taken for data. Without a map a disk can still be read.
func (c *serverConn) spans(ctx context.Context, e block.Extent, most int) []block.Span {
	spans, err := c.mapped(ctx, e, most)
	if err != nil {
		return []block.Span{{Extent: e}}
	}
	for i := range spans {
		spans[i].Hole = false // a read does not tell zeroes from holes
	}
	last := &spans[len(spans)-1]
	switch rest := e.End() - last.End(); {
	case rest == 0:
	case last.Zero && len(spans) < most:
		spans = append(spans, block.Span{Extent: block.Extent{Offset: last.End(), Length: rest}})
	default:
		last.Zero = false
		last.Length += rest
	}
	return spans
}

// mapped returns at least one and at most the given number of spans that cover
// the extent from its start. The Backend is asked for whole sectors, and not
// believed to keep to the extent.
func (c *serverConn) mapped(ctx context.Context, e block.Extent, most int) ([]block.Span, error) {
	unknown := []block.Span{{Extent: e}}
	if c.mapper == nil {
		return unknown, nil
	}
	var spans []block.Span
	end := min((e.End()+block.SectorSize-1)/block.SectorSize*block.SectorSize, c.size)
	for at := e.Offset / block.SectorSize * block.SectorSize; at < e.End(); {
		found, err := c.mapper.Map(ctx, block.Extent{Offset: at, Length: end - at})
		if err != nil {
			return nil, fmt.Errorf("map %d bytes at %d: %w", end-at, at, err)
		}
		before := at
		for _, sp := range found {
			if sp.Offset != at || sp.Length <= 0 || at >= e.End() {
				break
			}
			at = sp.End()
			low, high := max(sp.Offset, e.Offset), min(at, e.End())
			if low >= high {
				continue
			}
			n := len(spans)
			if n > 0 && spans[n-1].Zero == sp.Zero && spans[n-1].Hole == sp.Hole {
				spans[n-1].Length += high - low
				continue
			}
			if n == most {
				return spans, nil
			}
			spans = append(spans, block.Span{Extent: block.Extent{Offset: low, Length: high - low}, Zero: sp.Zero, Hole: sp.Hole})
		}
		if at == before {
			break // the map says nothing here
		}
	}
	if len(spans) == 0 {
		return unknown, nil
	}
	return spans, nil
}
