// Package recovery serves moments of a stream: a view of the vault as NBD
// exports, from which a provider boots a machine at once through an overlay of
// its own. It writes nothing to the vault, and knows no provider.
package recovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/nbd"
)

var errRemoved = errors.New("the view is not served any more")

// ErrReadOnly is the answer to a write to a view.
var ErrReadOnly = errors.New("a view cannot be written")

// Options say where exports are served.
type Options struct {
	// Socket is the unix socket of the NBD server; its directory is made. The
	// path must be the same after a restart: running machines reconnect to it.
	Socket string
	Logger *slog.Logger
}

// Exports serves the disks of views, read-only, on one socket. Safe for
// concurrent use.
type Exports struct {
	opts   Options
	server *nbd.Server

	// mu guards images.
	mu     sync.Mutex
	images map[string]block.Image
}

// NewExports returns an empty set. Nothing is served before Run.
func NewExports(o Options) *Exports {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	e := &Exports{opts: o, images: map[string]block.Image{}}
	e.server = nbd.NewServer(nbd.ServerOptions{Lookup: e.lookup, Logger: o.Logger, MaxConns: 1024})
	return e
}

// Socket returns the path of the socket.
func (e *Exports) Socket() string { return e.opts.Socket }

// Add serves an image under a name until Remove, and closes it then. An image
// that is served under this name already stays, and the new one is closed.
func (e *Exports) Add(name string, image block.Image) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, ok := e.images[name]; ok {
		return image.Close()
	}
	e.images[name] = image
	return nil
}

// Has says whether something is served under the name.
func (e *Exports) Has(name string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, ok := e.images[name]
	return ok
}

// lookup finds what a client asks for.
func (e *Exports) lookup(_ context.Context, name string, _ *nbd.Conn) (*nbd.Export, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	image, ok := e.images[name]
	if !ok {
		return nil, fmt.Errorf("view %q: %w", name, nbd.ErrUnknownExport)
	}
	return &nbd.Export{Name: name, Backend: backend{image}, ReadOnly: true, MultiConn: true}, nil
}

// Remove ends the serving of a name: its connections are cut and its image is
// closed. It is no error if there is none.
func (e *Exports) Remove(name string) error {
	e.mu.Lock()
	image, ok := e.images[name]
	delete(e.images, name)
	e.mu.Unlock()
	if !ok {
		return nil
	}
	e.server.DropExport(name, errRemoved)
	return image.Close()
}

// Run serves until ctx ends.
func (e *Exports) Run(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(e.opts.Socket), 0o711); err != nil {
		return fmt.Errorf("serve views: %w", err)
	}
	if err := os.Remove(e.opts.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("serve views: %w", err)
	}
	l, err := net.Listen("unix", e.opts.Socket)
	if err != nil {
		return fmt.Errorf("serve views: %w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return e.server.Serve(ctx, l) })
	return g.Wait()
}

// backend makes an export of an image.
type backend struct{ block.Image }

// ReadAt reads from the view.
func (b backend) ReadAt(ctx context.Context, p []byte, off int64) error {
	return b.Image.ReadAt(ctx, p, off)
}

// WriteAt refuses.
func (b backend) WriteAt(context.Context, []byte, int64, bool) error { return ErrReadOnly }

// Zero refuses.
func (b backend) Zero(context.Context, int64, int64, bool, bool) error { return ErrReadOnly }

// Flush has nothing to do.
func (b backend) Flush(context.Context) error { return nil }
