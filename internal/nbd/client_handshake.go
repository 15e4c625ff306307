package nbd

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"
)

// Limits of what a client takes from a server in the handshake.
const (
	maxOptReply   = 64 << 10 // bytes of one reply
	maxOptReplies = 16384    // to one option
)

// clientHandshake is the client's side before the first request.
type clientHandshake struct {
	nc   net.Conn
	opts DialOptions
	in   inReader
	no0  bool // the server leaves out the zeroes after EXPORT_NAME
}

// optRefusal is an error reply to an option.
type optRefusal struct {
	kind    uint32
	message string
}

func (r *optRefusal) Error() string {
	s := map[uint32]string{
		repErrUnsup: "option is not supported", repErrPolicy: "not allowed", repErrInvalid: "invalid option",
		repErrTLSReqd: "TLS is required", repErrUnknown: "no such export", repErrTooBig: "option is too long",
	}[r.kind]
	if s == "" {
		s = fmt.Sprintf("reply %#x", r.kind)
	}
	if r.message != "" {
		s += fmt.Sprintf(" (%q)", r.message)
	}
	return "server refused: " + s
}

// Unwrap returns what a caller may want to decide on.
func (r *optRefusal) Unwrap() error {
	switch r.kind {
	case repErrUnknown:
		return ErrUnknownExport
	case repErrTLSReqd:
		return ErrTLSRequired
	case repErrUnsup:
		return ErrNotSupported
	}
	return nil
}

// within runs a part of the handshake, and has it fail when ctx ends.
func (h *clientHandshake) within(ctx context.Context, f func() error) error {
	h.in = inReader{conn: h.nc, before: func() error { return nil }, buf: make([]byte, readBuffer)}
	raw, hurried := h.nc, make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(hurried)
		_ = raw.SetDeadline(time.Unix(1, 0))
	})
	err := f()
	if !stop() {
		<-hurried
		return errors.Join(context.Cause(ctx), err)
	}
	return err
}

// open negotiates an export.
func (h *clientHandshake) open(g *granted) error {
	if err := h.greet(); err != nil {
		return err
	}
	if !h.opts.SimpleReplies {
		err := h.simpleOption(optStructuredReply)
		if err != nil && !errors.As(err, new(*optRefusal)) {
			return err
		}
		if errors.Is(err, ErrTLSRequired) {
			return err
		}
		g.structured = err == nil
	}
	if g.structured && !h.opts.NoMap {
		if err := h.chooseContext(g); err != nil {
			return err
		}
	}
	_ = g.clampBlocks(1, defaultPreferred, defaultMaxRequest)
	err := h.gotoExport(g)
	var refused *optRefusal
	if errors.As(err, &refused) && refused.kind == repErrUnsup {
		return h.exportName(g)
	}
	return err
}

// greet exchanges the first words, and changes to TLS if that is wanted.
func (h *clientHandshake) greet() error {
	b, err := h.in.take(16)
	if err != nil {
		return err
	}
	switch {
	case binary.BigEndian.Uint64(b) != magicServer:
		return fmt.Errorf("%w: this is not an nbd server", ErrProtocol)
	case binary.BigEndian.Uint64(b[8:]) == magicOldstyle:
		return fmt.Errorf("oldstyle handshake: %w", errors.ErrUnsupported)
	case binary.BigEndian.Uint64(b[8:]) != magicOption:
		return fmt.Errorf("%w: unknown handshake", ErrProtocol)
	}
	if b, err = h.in.take(2); err != nil {
		return err
	}
	flags := binary.BigEndian.Uint16(b)
	if flags&flagFixedNewstyle == 0 {
		return fmt.Errorf("handshake is not fixed newstyle: %w", errors.ErrUnsupported)
	}
	h.no0 = flags&flagNoZeroes != 0
	answer := uint32(flags & (flagFixedNewstyle | flagNoZeroes))
	if _, err := h.nc.Write(binary.BigEndian.AppendUint32(nil, answer)); err != nil {
		return err
	}
	if h.opts.TLS == nil {
		return nil
	}
	if err := h.simpleOption(optStartTLS); err != nil {
		return fmt.Errorf("ask for TLS: %w", err)
	}
	if h.in.buffered() > 0 {
		return fmt.Errorf("%w: clear text after STARTTLS", ErrProtocol)
	}
	tc := tls.Client(h.nc, h.opts.TLS)
	if err := tc.Handshake(); err != nil {
		return fmt.Errorf("shake hands for TLS: %w", err)
	}
	h.nc, h.in.conn = tc, tc
	return nil
}

// option sends an option and hands every reply before the final one to each.
func (h *clientHandshake) option(opt option, payload []byte, each func(kind uint32, p []byte) error) error {
	if _, err := h.nc.Write(appendOption(nil, opt, payload)); err != nil {
		return err
	}
	for range maxOptReplies {
		b, err := h.in.take(optReplyHeaderSize)
		if err != nil {
			return err
		}
		kind, n := binary.BigEndian.Uint32(b[12:]), binary.BigEndian.Uint32(b[16:])
		if binary.BigEndian.Uint64(b) != magicOptReply || option(binary.BigEndian.Uint32(b[8:])) != opt || n > maxOptReply {
			return fmt.Errorf("%w: reply to another option, or of %d bytes", ErrProtocol, n)
		}
		p, err := h.in.take(int(n))
		if err != nil {
			return err
		}
		switch {
		case kind == repAck:
			return nil
		case kind&repErr != 0:
			return &optRefusal{kind, string(p[:min(len(p), maxErrorMessage)])}
		}
		if err := each(kind, p); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: more than %d replies to an option", ErrProtocol, maxOptReplies)
}

// simpleOption sends an option that has neither payload nor replies but one.
func (h *clientHandshake) simpleOption(opt option) error {
	return h.option(opt, nil, func(kind uint32, _ []byte) error {
		return fmt.Errorf("%w: reply %#x to option %d", ErrProtocol, kind, opt)
	})
}

// chooseContext asks for base:allocation. That a server has none is no error.
func (h *clientHandshake) chooseContext(g *granted) error {
	p := appendString(nil, h.opts.Export)
	p = binary.BigEndian.AppendUint32(p, 1)
	p = appendString(p, contextAllocation)
	err := h.option(optSetMeta, p, func(kind uint32, p []byte) error {
		if kind == repMetaContext && len(p) >= 4 && string(p[4:]) == contextAllocation {
			g.metaID, g.meta = binary.BigEndian.Uint32(p), true
			return nil
		}
		return fmt.Errorf("%w: context that was not asked for", ErrProtocol)
	})
	if errors.As(err, new(*optRefusal)) {
		g.meta = false // if the export is missing, GO says so
		return nil
	}
	return err
}

func (h *clientHandshake) gotoExport(g *granted) error {
	p := appendString(nil, h.opts.Export)
	wanted := []uint16{infoName, infoDescription, infoBlockSize}
	p = binary.BigEndian.AppendUint16(p, uint16(len(wanted)))
	for _, w := range wanted {
		p = binary.BigEndian.AppendUint16(p, w)
	}
	told := false
	err := h.option(optGo, p, func(kind uint32, p []byte) error {
		if kind != repInfo || len(p) < 2 {
			return fmt.Errorf("%w: reply %#x to GO", ErrProtocol, kind)
		}
		item, p := binary.BigEndian.Uint16(p), p[2:]
		switch item {
		case infoExport:
			told = true
			return g.setExport(p)
		case infoName:
			g.name = string(p[:min(len(p), maxNameLength)])
		case infoDescription:
			g.description = string(p[:min(len(p), maxNameLength)])
		case infoBlockSize:
			if len(p) != 12 {
				return fmt.Errorf("%w: block sizes in %d bytes", ErrProtocol, len(p))
			}
			return g.clampBlocks(binary.BigEndian.Uint32(p), binary.BigEndian.Uint32(p[4:]), binary.BigEndian.Uint32(p[8:]))
		}
		return nil
	})
	if err == nil && !told {
		return fmt.Errorf("%w: GO without the export's size", ErrProtocol)
	}
	return err
}

func (g *granted) setExport(p []byte) (err error) {
	if len(p) != 10 {
		return fmt.Errorf("%w: export described in %d bytes", ErrProtocol, len(p))
	}
	g.flags = Flags(binary.BigEndian.Uint16(p[8:]))
	g.size, err = checkSize(binary.BigEndian.Uint64(p))
	return err
}

// exportName is the way of servers that do not know GO.
func (h *clientHandshake) exportName(g *granted) error {
	if _, err := h.nc.Write(appendOption(nil, optExportName, []byte(h.opts.Export))); err != nil {
		return err
	}
	n := 10
	if !h.no0 {
		n += exportNameZeroes
	}
	p, err := h.in.take(n)
	if err != nil {
		return fmt.Errorf("%w, or the connection broke: %w", ErrUnknownExport, err)
	}
	return g.setExport(p[:10])
}

// List asks a server for its exports. Only the TLS of the options counts.
func List(ctx context.Context, network, addr string, o DialOptions) (entries []ExportEntry, err error) {
	nc, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, fmt.Errorf("connect to nbd server: %w", err)
	}
	h := &clientHandshake{nc: nc, opts: o}
	err = h.within(ctx, func() error {
		if err := h.greet(); err != nil {
			return err
		}
		err := h.option(optList, nil, func(kind uint32, p []byte) error {
			name, rest, ok := cutString(p)
			if kind != repServer || !ok || len(name) > maxNameLength {
				return fmt.Errorf("%w: malformed list", ErrProtocol)
			}
			entries = append(entries, ExportEntry{name, string(rest[:min(len(rest), maxNameLength)])})
			return nil
		})
		if err == nil {
			_ = h.simpleOption(optAbort) // a courtesy; some servers just hang up
		}
		return err
	})
	if err != nil {
		_ = h.nc.Close()
		return nil, fmt.Errorf("list nbd exports: %w", err)
	}
	_ = h.nc.Close() // nothing was promised
	return entries, nil
}
