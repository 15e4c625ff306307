package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/bandwidth"
	"github.com/holdfast-dr/holdfast/internal/gateway/clock"
	"github.com/holdfast-dr/holdfast/internal/gateway/journal"
	"github.com/holdfast-dr/holdfast/internal/nbd"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// IngestOptions say where an Ingest keeps its things.
type IngestOptions struct {
	Dir       string // journals and spools
	SocketDir string // NBD sockets; its path must be short: unix sockets allow 107 bytes
	Logger    *slog.Logger
	// Limit holds all streams together to a rate; nil: none.
	Limit *bandwidth.Limiter
}

// Ingest is the child process of a gateway: NBD in, segments out. It takes its
// streams from the parent over Handler and forgets them when it ends.
type Ingest struct {
	opts IngestOptions
	log  *slog.Logger
	fs   vfs.FS

	// opening makes Open one at a time. It may take long, when a vault is slow.
	opening sync.Mutex
	// mu guards streams; it is never held for long: the heartbeat needs it.
	mu      sync.Mutex
	streams map[holdfast.StreamID]*served
	group   *errgroup.Group
	clock   *clock.Clock
	holds   holds
	ctx     func() context.Context // the run's context, for what Open starts
}

// served is a stream with its NBD server.
type served struct {
	*stream
	server *nbd.Server
	socket string
	cancel context.CancelFunc
	done   chan struct{}
}

// NewIngest returns an Ingest that does nothing until Run.
func NewIngest(o IngestOptions) *Ingest {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Ingest{opts: o, log: o.Logger, fs: vfs.OS, streams: map[holdfast.StreamID]*served{}}
}

// Run serves the control socket until ctx ends, and then ends every stream.
// What was acknowledged stays in the journals.
func (g *Ingest) Run(ctx context.Context, control net.Listener) error {
	cl, err := clock.Open(g.fs, g.opts.Dir, clock.OfHost())
	if err != nil {
		return err
	}
	defer cl.Close()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return g.keepClock(ctx, cl) })
	g.mu.Lock()
	g.clock = cl
	g.group, g.ctx = group, func() context.Context { return ctx }
	g.mu.Unlock()
	srv := &http.Server{Handler: g.Handler(), ReadHeaderTimeout: 5 * time.Second}
	group.Go(func() error {
		if err := srv.Serve(control); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve ingest control: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		return srv.Close()
	})
	return group.Wait()
}

// keepClock keeps the newest time that was given until ctx ends.
func (g *Ingest) keepClock(ctx context.Context, c *clock.Clock) error {
	failing := false
	for sleep(ctx, clock.KeepEvery) {
		err := c.Keep()
		if failing != (err != nil) {
			g.log.Warn("the gateway's clock stands still when it is not kept", "error", err)
		}
		failing = err != nil
	}
	return nil
}

// OpenRequest asks the ingest to serve a stream.
type OpenRequest struct {
	Stream     holdfast.StreamID   `json:"stream"`
	Timeline   holdfast.TimelineID `json:"timeline"`
	Generation holdfast.Generation `json:"generation"`
	Vault      VaultRef            `json:"vault"`
	Disks      []DiskRef           `json:"disks"`
	Tuning     Tuning              `json:"tuning"`
}

// OpenReply says where a stream is served.
type OpenReply struct {
	Socket string `json:"socket"` // NBD; the exports are named for the disks
	// Fresh says that no account of earlier changes was found here: a mirror
	// that believes itself in sync must be removed, and the stream be begun.
	Fresh bool `json:"fresh"`
	// Seeded says that the vault had the stream in sync before.
	Seeded bool `json:"seeded"`
}

// Open serves a stream. It is no error if it is served already; one whose
// serving has ended by a fault is served anew.
func (g *Ingest) Open(ctx context.Context, r OpenRequest) (OpenReply, error) {
	g.opening.Lock()
	defer g.opening.Unlock()
	if sv := g.served(r.Stream); sv != nil {
		return sv.reply(), nil
	}
	sv, err := g.open(ctx, r)
	if err != nil {
		return OpenReply{}, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.streams[r.Stream] = sv
	return sv.reply(), nil
}

// served returns a stream that is served, or nil.
func (g *Ingest) served(id holdfast.StreamID) *served {
	g.mu.Lock()
	defer g.mu.Unlock()
	sv, ok := g.streams[id]
	if !ok {
		return nil
	}
	select {
	case <-sv.done:
		delete(g.streams, id)
		return nil
	default:
		return sv
	}
}

func (sv *served) reply() OpenReply {
	return OpenReply{Socket: sv.socket, Fresh: sv.isFresh(), Seeded: sv.seeded()}
}

func (g *Ingest) open(ctx context.Context, r OpenRequest) (*served, error) {
	st, err := g.openStream(ctx, r)
	if err != nil {
		return nil, err
	}
	disks := make([]vault.Disk, len(r.Disks))
	for i, d := range r.Disks {
		disks[i] = vault.Disk{ID: d.ID, Size: d.Size}
	}
	s, err := openAccount(ctx, r, StreamOptions{
		Stream: st, Disks: disks, FS: g.fs, Tuning: r.Tuning, Limit: g.opts.Limit, Now: g.clock.Now, Logger: g.log.With("stream", r.Stream.String()),
		Dir: filepath.Join(g.opts.Dir, r.Stream.String()+"-"+r.Timeline.String()),
	})
	if err != nil {
		return nil, err
	}
	return g.serve(&served{stream: s, socket: filepath.Join(g.opts.SocketDir, r.Stream.String()[:12]+".nbd")})
}

// openAccount opens a stream with what an earlier process left of it. If that is
// damaged it is set aside, and the stream begins anew: source and vault are
// compared. What had been acknowledged and is in the damaged part comes from the
// source again.
func openAccount(ctx context.Context, r OpenRequest, o StreamOptions) (*stream, error) {
	for {
		var err error
		if o.Writer, err = o.Stream.Writer(ctx, vault.WriterOptions{Timeline: r.Timeline, Generation: r.Generation}); err != nil {
			return nil, fmt.Errorf("open stream %s for writing: %w", r.Stream, err)
		}
		s, err := newStream(ctx, o)
		if !errors.Is(err, journal.ErrAccount) {
			return s, err
		}
		aside := fmt.Sprintf("%s.damaged-%d", o.Dir, time.Now().UnixNano())
		o.Logger.Error("source and vault are compared, for what this gateway had kept is damaged", "error", err, "set_aside", aside)
		if err := o.FS.Rename(o.Dir, aside); err != nil {
			return nil, fmt.Errorf("set damaged account aside: %w", err)
		}
	}
}

// openStream opens the vault's side of a stream.
func (g *Ingest) openStream(ctx context.Context, r OpenRequest) (*vault.Stream, error) {
	key, err := vault.ParseKey(r.Vault.Key)
	if err != nil {
		return nil, err
	}
	store, err := objstore.Open(ctx, r.Vault.Location, objstore.Options{Credentials: r.Vault.Credentials, FS: g.fs})
	if err != nil {
		return nil, err
	}
	v, err := vault.Open(ctx, store, key, vault.Options{Logger: g.log})
	if err != nil {
		return nil, err
	}
	return v.OpenStream(ctx, r.Stream)
}

// serve starts a stream's NBD server and its loops.
func (g *Ingest) serve(sv *served) (*served, error) {
	if err := os.MkdirAll(g.opts.SocketDir, 0o711); err != nil {
		return nil, fmt.Errorf("create socket directory: %w", err)
	}
	if err := os.Remove(sv.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove stale socket: %w", err)
	}
	l, err := net.Listen("unix", sv.socket)
	if err != nil {
		return nil, fmt.Errorf("listen for the source: %w", err)
	}
	sv.server = sv.nbdServer()
	ctx, cancel := context.WithCancel(g.ctx())
	sv.cancel, sv.done = cancel, make(chan struct{})
	g.group.Go(func() error {
		defer close(sv.done)
		defer cancel()
		run, ctx := errgroup.WithContext(ctx)
		run.Go(func() error { return sv.server.Serve(ctx, l) })
		run.Go(func() error { return sv.run(ctx) })
		if err := run.Wait(); err != nil && ctx.Err() == nil {
			g.log.Error("stream ended", "stream", sv.opts.Stream.ID(), "error", err)
		}
		return nil
	})
	return sv, nil
}

// Close ends the serving of a stream; its account stays on disk.
func (g *Ingest) Close(id holdfast.StreamID) {
	g.mu.Lock()
	sv := g.streams[id]
	delete(g.streams, id)
	g.mu.Unlock()
	if sv != nil {
		sv.cancel()
		<-sv.done
	}
}

// lookup returns a served stream.
func (g *Ingest) lookup(id holdfast.StreamID) (*served, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	sv, ok := g.streams[id]
	if !ok {
		return nil, fmt.Errorf("stream %s is not served here", id)
	}
	return sv, nil
}
