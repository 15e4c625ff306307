package httpd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/auth"
)

// maxBody is one more than the largest body of a request, in bytes.
const maxBody = 64<<10 + 1

// maxPlanBody is maxBody for a request with a plan in it: its text, in JSON.
const maxPlanBody = 4<<20 + 1

// bodyLimit returns the limit of an operation's body.
func bodyLimit(operation string) int64 {
	if operation == "apply-plan" || operation == "diff-plan" {
		return maxPlanBody
	}
	return maxBody
}

// serviceTimeout is how long the service may take to answer a request that is
// not a stream. Work that takes long is a job.
const serviceTimeout = 45 * time.Second

// Options say what a Server serves, where and to whom.
type Options struct {
	Addr      string            // to listen on, like :8443
	TLS       *tls.Config       // nil: plain HTTP, for tests and behind a proxy on the same host
	Service   Service           // every role is needed
	Tokens    *auth.Tokens      // needed
	Version   api.ServerVersion // Time is filled in
	Heartbeat time.Duration     // between signs of life on event streams; 0: 15 s
	Grace     time.Duration     // for requests that run when the server stops; 0: 10 s
	Now       func() time.Time  // nil: time.Now
	Logger    *slog.Logger      // nil: discard
}

func (o *Options) applyDefaults() {
	if o.Heartbeat <= 0 {
		o.Heartbeat = 15 * time.Second
	}
	if o.Grace <= 0 {
		o.Grace = 10 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.Version.API = api.Version
}

// Server is the REST interface. Handler and Run are safe for concurrent use.
type Server struct {
	opts     Options
	log      *slog.Logger
	handler  http.Handler
	spec     []byte // the OpenAPI document
	docs     []byte // the same as a page
	routes   map[string]route
	ready    chan struct{}
	stopping chan struct{} // closed when Run's context ends: streams end then
	stopOnce sync.Once
	// mu guards addr.
	mu   sync.Mutex
	addr net.Addr
}

// New returns a server, which listens once Run is called. It fails if a role of
// the service is missing.
func New(opts Options) (*Server, error) {
	opts.applyDefaults()
	svc := opts.Service
	if svc.Sites == nil || svc.Machines == nil || svc.Items == nil || svc.Points == nil || svc.Policies == nil || svc.Jobs == nil ||
		svc.Vault == nil || svc.Events == nil || svc.Health == nil || svc.Tests == nil || svc.Failovers == nil || svc.Replications == nil || svc.Comparisons == nil || svc.Plans == nil || svc.Runs == nil || svc.Groups == nil || svc.Reports == nil || opts.Tokens == nil {
		return nil, errors.New("make http server: a role of the service is missing")
	}
	s := &Server{opts: opts, log: opts.Logger, ready: make(chan struct{}), stopping: make(chan struct{})}
	if err := s.build(); err != nil {
		return nil, fmt.Errorf("make http server: %w", err)
	}
	return s, nil
}

// Handler returns what answers requests, for tests and for embedding.
func (s *Server) Handler() http.Handler { return s.handler }

// OpenAPI returns the OpenAPI 3.1 document of the interface, indented.
func (s *Server) OpenAPI() []byte { return s.spec }

// Ready is closed once the server listens.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Addr returns the address that the server listens on, nil before Ready.
func (s *Server) Addr() net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addr
}

// Run listens and serves until ctx ends, then ends event streams, lets other
// requests finish within the grace period, and returns nil. It fails with a
// *holdfast.Error if it cannot listen. It may be called once.
func (s *Server) Run(ctx context.Context) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", s.opts.Addr)
	if err != nil {
		return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "listen on", Thing: s.opts.Addr, Err: err,
			Hint: "Another program, perhaps another server, may have the port: stop it or choose another address"}
	}
	if s.opts.TLS != nil {
		listener = tls.NewListener(listener, s.opts.TLS)
	}
	// Requests outlive ctx by the grace period.
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	server := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      serviceTimeout + 15*time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	s.mu.Lock()
	s.addr = listener.Addr()
	s.mu.Unlock()
	close(s.ready)

	stopped := make(chan error, 1)
	go func() { // awaited below: Serve returns once Shutdown or Close is called
		stopped <- server.Serve(listener)
	}()
	select {
	case err := <-stopped:
		return fmt.Errorf("serve on %s: %w", listener.Addr(), err)
	case <-ctx.Done():
	}
	s.stopOnce.Do(func() { close(s.stopping) })
	grace, done := context.WithTimeout(base, s.opts.Grace)
	defer done()
	if err := server.Shutdown(grace); err != nil {
		s.log.Warn("requests were cut off when the server stopped", "error", err)
		cancel()
		_ = server.Close() // closes what Shutdown left
	}
	<-stopped
	return nil
}
