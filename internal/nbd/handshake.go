package nbd

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Limits of the handshake. What a client may send in it is small; whoever
// exceeds these is up to no good, or broken.
const (
	maxOptions     = 256
	maxOptionBytes = 64 << 10 // of one option that is looked at
	maxOptionSkip  = 1 << 20  // of one option that is skipped and refused
	maxQueries     = 64       // in one option about contexts
	maxInfoItems   = 64       // in one GO or INFO
)

var errAborted = errors.New("client ended the handshake")

// handshake negotiates until the client has an export, or returns why not.
func (c *serverConn) handshake(ctx context.Context) error {
	if err := c.nc.SetDeadline(time.Now().Add(c.srv.opts.HandshakeTimeout)); err != nil {
		return fmt.Errorf("limit nbd handshake: %w", err)
	}
	hello := binary.BigEndian.AppendUint64(nil, magicServer)
	hello = binary.BigEndian.AppendUint64(hello, magicOption)
	hello = binary.BigEndian.AppendUint16(hello, flagFixedNewstyle|flagNoZeroes)
	if err := c.out.queue(0, false, func(b []byte) []byte { return append(b, hello...) }); err != nil {
		return err
	}
	b, err := c.in.take(4)
	if err != nil {
		return err
	}
	flags := binary.BigEndian.Uint32(b)
	if flags&^uint32(flagFixedNewstyle|flagNoZeroes) != 0 {
		return fmt.Errorf("%w: client flags %#x", ErrProtocol, flags)
	}
	c.noZeroes = flags&uint32(flagNoZeroes) != 0
	for range maxOptions {
		done, err := c.option(ctx)
		if err != nil {
			return err
		}
		if done {
			if err := c.out.flush(); err != nil {
				return err
			}
			return c.nc.SetDeadline(time.Time{})
		}
	}
	return fmt.Errorf("%w: more than %d options", ErrProtocol, maxOptions)
}

// option serves one option; done says that the client has its export.
func (c *serverConn) option(ctx context.Context) (done bool, err error) {
	b, err := c.in.take(optionHeaderSize)
	if err != nil {
		return false, err
	}
	opt, length := option(binary.BigEndian.Uint32(b[8:])), binary.BigEndian.Uint32(b[12:])
	if binary.BigEndian.Uint64(b) != magicOption {
		return false, fmt.Errorf("%w: option without its magic number", ErrProtocol)
	}
	if length > maxOptionBytes {
		if length > maxOptionSkip || opt == optExportName {
			return false, fmt.Errorf("%w: option %d of %d bytes", ErrProtocol, opt, length)
		}
		if err := c.in.discard(int64(length)); err != nil {
			return false, err
		}
		return false, c.refuse(opt, repErrTooBig, "option is too long")
	}
	payload, err := c.in.take(int(length))
	if err != nil {
		if err == io.EOF && length > 0 {
			err = io.ErrUnexpectedEOF
		}
		return false, err
	}
	// EXPORT_NAME cannot be refused but by hanging up.
	if c.srv.opts.RequireTLS && c.peer.TLS == nil {
		switch opt {
		case optStartTLS, optAbort:
		case optExportName:
			return false, ErrTLSRequired
		default:
			return false, c.refuse(opt, repErrTLSReqd, "this server requires TLS")
		}
	}
	switch opt {
	case optExportName:
		return true, c.optExportName(ctx, string(payload))
	case optGo, optInfo:
		return c.optGo(ctx, opt, payload)
	case optListMeta, optSetMeta:
		return false, c.optMeta(ctx, opt, payload)
	}
	if length != 0 && (opt == optList || opt == optStartTLS || opt == optStructuredReply) {
		return false, c.refuse(opt, repErrInvalid, "option must be empty")
	}
	switch opt {
	case optAbort:
		_ = c.reply(opt, repAck, nil) // the client may be gone already
		_ = c.out.flush()
		return false, errAborted
	case optList:
		return false, c.optList(ctx)
	case optStartTLS:
		return false, c.optStartTLS(ctx)
	case optStructuredReply:
		c.structured = true
		return false, c.reply(opt, repAck, nil)
	}
	return false, c.refuse(opt, repErrUnsup, "option is not supported")
}

// reply queues a reply to an option.
func (c *serverConn) reply(opt option, kind uint32, payload []byte) error {
	return c.out.queue(0, false, func(b []byte) []byte { return appendOptReply(b, opt, kind, payload) })
}

// refuse queues an error as the reply to an option.
func (c *serverConn) refuse(opt option, kind uint32, why string) error {
	return c.reply(opt, kind, []byte(why[:min(len(why), maxErrorMessage)]))
}

// refuseExport queues the reply to an option whose export cannot be had.
func (c *serverConn) refuseExport(opt option, err error) error {
	if errors.Is(err, ErrUnknownExport) {
		return c.refuse(opt, repErrUnknown, "no such export")
	}
	return c.refuse(opt, repErrPolicy, err.Error())
}

// open takes an export for this connection, after which requests may come.
func (c *serverConn) open(ctx context.Context, e *Export, name string) error {
	c.export, c.size = e, e.Backend.Size()
	// The mapper is asked for here and nowhere else.
	c.mapper, _ = e.Backend.(StatusMapper)
	c.minBlock, _, c.maxBlock = e.blockSizes(c.srv.opts.MaxRequest)
	c.peer.Export = name
	c.count = c.srv.countersOf(name)
	if hook := c.srv.opts.Hooks.OnConnect; hook != nil {
		if err := hook(ctx, c.peer); err != nil {
			return err
		}
	}
	c.srv.mu.Lock()
	c.exported = true
	c.srv.mu.Unlock()
	return nil
}

func (c *serverConn) optExportName(ctx context.Context, name string) error {
	if len(name) > maxNameLength {
		return fmt.Errorf("%w: export name of %d bytes", ErrProtocol, len(name))
	}
	e, err := c.srv.lookup(ctx, name, c)
	if err != nil {
		return fmt.Errorf("client asked for export %q: %w", name, err)
	}
	if c.metaName != name {
		c.meta = false
	}
	if err := c.open(ctx, e, name); err != nil {
		return fmt.Errorf("export %q: %w", name, err)
	}
	return c.out.queue(0, false, func(b []byte) []byte {
		b = binary.BigEndian.AppendUint64(b, uint64(c.size))
		b = binary.BigEndian.AppendUint16(b, uint16(e.flags(c.structured)))
		if !c.noZeroes {
			b = append(b, make([]byte, exportNameZeroes)...)
		}
		return b
	})
}

// optGo serves GO and INFO, which are the same but for the end.
func (c *serverConn) optGo(ctx context.Context, opt option, payload []byte) (done bool, err error) {
	name, rest, ok := cutString(payload)
	if !ok || len(rest) < 2 || len(rest) != 2+2*int(binary.BigEndian.Uint16(rest)) {
		return false, c.refuse(opt, repErrInvalid, "malformed option")
	}
	if len(name) > maxNameLength || len(rest) > 2+2*maxInfoItems {
		return false, c.refuse(opt, repErrTooBig, "export name or list of requests is too long")
	}
	wanted := map[uint16]bool{}
	for rest = rest[2:]; len(rest) > 0; rest = rest[2:] {
		wanted[binary.BigEndian.Uint16(rest)] = true
	}
	e, err := c.srv.lookup(ctx, name, c)
	if err != nil {
		return false, c.refuseExport(opt, err)
	}
	size := e.Backend.Size()
	if opt == optGo {
		if err := c.open(ctx, e, name); err != nil {
			return false, c.refuseExport(opt, err)
		}
		size = c.size
		if c.metaName != name {
			c.meta = false
		}
	}
	return opt == optGo, c.describe(opt, e, size, wanted)
}

// describe queues what is known of an export, and the final reply.
func (c *serverConn) describe(opt option, e *Export, size int64, wanted map[uint16]bool) error {
	info := func(kind uint16, add func([]byte) []byte) error {
		return c.reply(opt, repInfo, add(binary.BigEndian.AppendUint16(nil, kind)))
	}
	least, preferred, most := e.blockSizes(c.srv.opts.MaxRequest)
	err := info(infoExport, func(b []byte) []byte {
		b = binary.BigEndian.AppendUint64(b, uint64(size))
		return binary.BigEndian.AppendUint16(b, uint16(e.flags(c.structured)))
	})
	if wanted[infoName] {
		err = errors.Join(err, info(infoName, func(b []byte) []byte { return append(b, e.Name...) }))
	}
	if wanted[infoDescription] && e.Description != "" {
		err = errors.Join(err, info(infoDescription, func(b []byte) []byte {
			return append(b, e.Description[:min(len(e.Description), maxNameLength)]...)
		}))
	}
	// The block sizes are told unasked if they are more than a hint: a client
	// that ignores them runs into EINVAL and should be able to know why.
	if wanted[infoBlockSize] || least > 1 {
		err = errors.Join(err, info(infoBlockSize, func(b []byte) []byte {
			b = binary.BigEndian.AppendUint32(b, least)
			b = binary.BigEndian.AppendUint32(b, preferred)
			return binary.BigEndian.AppendUint32(b, most)
		}))
	}
	return errors.Join(err, c.reply(opt, repAck, nil))
}

func (c *serverConn) optList(ctx context.Context) error {
	entries, ok, err := c.srv.list(ctx)
	switch {
	case err != nil:
		return c.refuse(optList, repErrPolicy, err.Error())
	case !ok:
		return c.refuse(optList, repErrPolicy, "exports are not listed here: ask by name")
	}
	for _, e := range entries {
		p := appendString(nil, e.Name)
		p = append(p, e.Description[:min(len(e.Description), maxNameLength)]...)
		if err := c.reply(optList, repServer, p); err != nil {
			return err
		}
	}
	return c.reply(optList, repAck, nil)
}

func (c *serverConn) optStartTLS(ctx context.Context) error {
	switch {
	case c.srv.opts.TLS == nil:
		return c.refuse(optStartTLS, repErrPolicy, "TLS is not configured")
	case c.peer.TLS != nil:
		return c.refuse(optStartTLS, repErrInvalid, "TLS is in use already")
	case c.in.buffered() > 0:
		// Whatever came in clear text must not be taken for what came over TLS.
		return fmt.Errorf("%w: clear text after STARTTLS", ErrProtocol)
	}
	if err := errors.Join(c.reply(optStartTLS, repAck, nil), c.out.flush()); err != nil {
		return err
	}
	tc := tls.Server(c.nc, c.srv.opts.TLS)
	if err := tc.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("shake hands for TLS: %w", err)
	}
	state := tc.ConnectionState()
	c.peer.TLS = &state
	c.use(tc)
	// The protocol has everything negotiated in clear text forgotten.
	c.structured, c.meta, c.metaName = false, false, ""
	return nil
}

// optMeta serves the listing and the choice of contexts.
func (c *serverConn) optMeta(ctx context.Context, opt option, payload []byte) error {
	if opt == optSetMeta {
		c.meta, c.metaName = false, ""
	}
	name, rest, ok := cutString(payload)
	if !ok || len(rest) < 4 {
		return c.refuse(opt, repErrInvalid, "malformed option")
	}
	count := binary.BigEndian.Uint32(rest)
	if len(name) > maxNameLength || count > maxQueries {
		return c.refuse(opt, repErrTooBig, "export name or list of queries is too long")
	}
	rest = rest[4:]
	match := opt == optListMeta && count == 0
	for range count {
		var query string
		if query, rest, ok = cutString(rest); !ok || len(query) > maxNameLength {
			return c.refuse(opt, repErrInvalid, "malformed query")
		}
		match = match || query == contextAllocation || opt == optListMeta && query == namespaceAllocation
		if !strings.Contains(query, ":") {
			return c.refuse(opt, repErrInvalid, "query without a namespace")
		}
	}
	if len(rest) != 0 || opt == optSetMeta && !c.structured {
		return c.refuse(opt, repErrInvalid, "malformed option, or structured replies are not negotiated")
	}
	if _, err := c.srv.lookup(ctx, name, c); err != nil {
		return c.refuseExport(opt, err)
	}
	if match {
		id := allocationID
		if opt == optListMeta {
			id = 0
		} else {
			c.meta, c.metaName = true, name
		}
		p := binary.BigEndian.AppendUint32(nil, id)
		if err := c.reply(opt, repMetaContext, append(p, contextAllocation...)); err != nil {
			return err
		}
	}
	return c.reply(opt, repAck, nil)
}
