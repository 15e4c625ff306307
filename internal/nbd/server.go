package nbd

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ServerOptions say what a Server serves, and to whom. The zero value serves
// no exports, in clear text.
type ServerOptions struct {
	// Lookup finds the export a client asks for. It may be called several times
	// for one connection, and at the same time for several. ErrUnknownExport
	// (wrapped or not) tells the client that there is none; any other error is
	// told as a refusal with its text. Nil: the exports of SetExports.
	Lookup func(ctx context.Context, name string, c *Conn) (*Export, error)
	// List names the exports for clients that ask. Nil: those of SetExports; if
	// Lookup is set, none, and the client is told that listing is not allowed.
	List func(ctx context.Context) ([]ExportEntry, error)
	// TLS, if set, is offered to clients. It needs a certificate, and should
	// ask for the client's.
	TLS *tls.Config
	// RequireTLS refuses everything but TLS to clients.
	RequireTLS bool
	// MaxConns bounds connections, those still shaking hands included; further
	// ones are closed at once. 0 means 128.
	MaxConns int
	// MaxRequest bounds the bytes of one read or write. 0 means 32 MiB.
	MaxRequest uint32
	// MaxInflight bounds the reads of one connection that are being served at
	// the same time. 0 means 32.
	MaxInflight int
	// MaxInflightBytes bounds the memory of those reads, except that one read
	// is always let through. 0 means 64 MiB.
	MaxInflightBytes int64
	// HandshakeTimeout bounds the time from connect to the end of the
	// handshake. 0 means 10 seconds.
	HandshakeTimeout time.Duration
	// Hooks are told of connections.
	Hooks Hooks
	// Logger is told of connections that ended badly. Nil discards.
	Logger *slog.Logger
}

// Hooks are told of connections that have chosen an export.
type Hooks struct {
	// OnConnect runs before any request, and before the client is told that it
	// has the export. An error refuses the client, with the error's text.
	OnConnect func(ctx context.Context, c *Conn) error
	// OnDisconnect runs once for each OnConnect that returned nil, after the
	// last call of the Backend for this connection has returned. The cause is
	// nil if the client said goodbye, io.EOF if it just hung up.
	OnDisconnect func(c *Conn, cause error)
}

// ExportEntry is an export in a list.
type ExportEntry struct {
	Name        string `json:"name"`
	Description string `json:"description"`
}

// Conn is what is known of a connection. It stays valid when the connection
// has ended.
type Conn struct {
	ID     uint64               // from 1, never used twice by a server
	Remote net.Addr             // may be nil or empty for unix sockets
	TLS    *tls.ConnectionState // nil in clear text
	Export string               // empty before the handshake's end

	drop context.CancelCauseFunc
}

// Drop cuts the connection without waiting: the contexts of running requests
// end, these are not answered, and no later request reaches the Backend. It may be called from within Backend and hooks, and again.
func (c *Conn) Drop(cause error) {
	if c.drop != nil {
		c.drop(cause)
	}
}

// connKey is the key of a connection's *Conn in the context of its requests.
type connKey struct{}

// ConnID returns the id of the connection for which a Backend is called, or 0
// if the context is of no connection.
func ConnID(ctx context.Context) uint64 {
	if c, ok := ctx.Value(connKey{}).(*Conn); ok {
		return c.ID
	}
	return 0
}

// WithConn returns a context as a Backend is called with for a connection: for
// tests of backends.
func WithConn(ctx context.Context, c *Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// Server is an NBD server. All methods are safe for concurrent use.
type Server struct {
	opts    ServerOptions
	log     *slog.Logger
	started time.Time
	pool    bufferPool
	lastID  atomic.Uint64

	// mu guards the fields below.
	mu      sync.Mutex
	set     map[string]*Export
	conns   map[*serverConn]struct{}
	counts  map[string]*counters
	changed chan struct{} // closed and replaced when a connection ends
}

// NewServer returns a server that serves nothing before Serve or ServeConn.
func NewServer(o ServerOptions) *Server {
	if o.MaxConns == 0 {
		o.MaxConns = 128
	}
	if o.MaxRequest == 0 {
		o.MaxRequest = defaultMaxRequest
	}
	if o.MaxInflight == 0 {
		o.MaxInflight = 32
	}
	if o.MaxInflightBytes == 0 {
		o.MaxInflightBytes = 2 * defaultMaxRequest
	}
	if o.HandshakeTimeout == 0 {
		o.HandshakeTimeout = 10 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{
		opts: o, log: o.Logger, started: time.Now(),
		set: map[string]*Export{}, conns: map[*serverConn]struct{}{},
		counts: map[string]*counters{}, changed: make(chan struct{}),
	}
}

// SetExports replaces the exports that are found without a Lookup of one's
// own. Connections to exports that are gone stay; see DropExport.
func (s *Server) SetExports(exports ...*Export) {
	set := make(map[string]*Export, len(exports))
	for _, e := range exports {
		set[e.Name] = e
	}
	s.mu.Lock()
	s.set = set
	s.mu.Unlock()
}

// Serve accepts connections until ctx ends, and then closes the listener,
// drops all connections and waits until the last call of a Backend has
// returned. It returns nil if ctx ended, else why nothing can be accepted. A
// server may serve several listeners.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() {
		<-ctx.Done()
		_ = l.Close() // unblocks Accept
	})
	for pause := time.Duration(0); ; {
		nc, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = nc.Close()
			}
			return nil
		case err == nil:
			pause = 0
			running.Go(func() { _ = s.ServeConn(ctx, nc) }) // logged there
			continue
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept nbd connection: %w", err)
		}
		// Running out of file descriptors passes; a backup must not end of it.
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		s.log.Warn("nbd connection not accepted", "error", err, "pause", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// ServeConn serves one connection until it ends or ctx does, and closes it. It
// returns nil if the client said goodbye, else the cause of the end. When it
// returns, no call of a Backend for this connection is running.
func (s *Server) ServeConn(ctx context.Context, nc net.Conn) error {
	c := newServerConn(s, nc)
	if !s.add(c) {
		_ = nc.Close()
		s.log.Warn("nbd connection refused", "error", ErrTooManyConnections, "limit", s.opts.MaxConns)
		return ErrTooManyConnections
	}
	err := c.serve(ctx)
	s.remove(c)
	switch {
	case err == nil, errors.Is(err, io.EOF), ctx.Err() != nil:
		s.log.Debug("nbd connection ended", "conn", c.peer.ID, "export", c.peer.Export, "cause", err)
	default:
		s.log.Warn("nbd connection ended", "conn", c.peer.ID, "export", c.peer.Export, "cause", err)
	}
	return err
}

func (s *Server) add(c *serverConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) >= s.opts.MaxConns {
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

func (s *Server) remove(c *serverConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	close(s.changed)
	s.changed = make(chan struct{})
}

// DropExport cuts all connections of an export without waiting, and returns
// how many. It may be called from within Backend and hooks. Clients may
// connect again as long as the export is found.
func (s *Server) DropExport(name string, cause error) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for c := range s.conns {
		if c.holding && c.held == name {
			c.peer.Drop(cause)
			n++
		}
	}
	return n
}

// CloseExport is DropExport, and returns when no call of the Backend for these
// connections is running, so that the Backend may be closed if the export is
// not found any more. It must not be called from within Backend or hooks.
func (s *Server) CloseExport(ctx context.Context, name string, cause error) error {
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if s.DropExport(name, cause) == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("close nbd export %q: %w", name, context.Cause(ctx))
		}
	}
}

// lookup finds an export and checks that it can be served. Whoever removes an
// export and then drops it finds the connection even before the export is its
// own.
func (s *Server) lookup(ctx context.Context, name string, sc *serverConn) (*Export, error) {
	s.mu.Lock()
	sc.holding, sc.held = true, name
	s.mu.Unlock()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	e, err, c := (*Export)(nil), error(nil), sc.peer
	if s.opts.Lookup != nil {
		e, err = s.opts.Lookup(ctx, name, c)
	} else {
		s.mu.Lock()
		e = s.set[name]
		s.mu.Unlock()
	}
	switch {
	case err != nil:
		return nil, err
	case e == nil:
		return nil, ErrUnknownExport
	case e.Backend == nil || e.Backend.Size() < 0:
		return nil, fmt.Errorf("export %q has no disk", name)
	case e.MinBlock&(e.MinBlock-1) != 0 || e.MinBlock > s.opts.MaxRequest:
		return nil, fmt.Errorf("export %q has a smallest block of %d bytes: want a power of two", name, e.MinBlock)
	}
	return e, nil
}

// list returns the exports for a client that asks; ok is false if that is not
// allowed.
func (s *Server) list(ctx context.Context) (entries []ExportEntry, ok bool, err error) {
	if s.opts.List != nil {
		entries, err = s.opts.List(ctx)
		return entries, true, err
	}
	if s.opts.Lookup != nil {
		return nil, false, nil
	}
	s.mu.Lock()
	for _, e := range s.set {
		entries = append(entries, ExportEntry{e.Name, e.Description})
	}
	s.mu.Unlock()
	slices.SortFunc(entries, func(a, b ExportEntry) int { return cmp.Compare(a.Name, b.Name) })
	return entries, true, nil
}

// now returns nanoseconds since the server was made, never 0.
func (s *Server) now() int64 { return int64(time.Since(s.started)) + 1 }
