package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/scrub"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// compareWait bounds how long a comparison waits for the vault to have what was
// written before it.
const compareWait = 10 * time.Second

// comparison is that of a disk with the vault, while it is written.
type comparison struct {
	epoch uint64
	watch scrub.Watch
	kept  scrub.Kept // nil: not opened yet
}

// keptDisk is a disk as the vault has it.
type keptDisk struct {
	block.Image
	view *vault.View
	id   string
}

// BlockHash returns what the vault's index has of a block.
func (k keptDisk) BlockHash(n int64) (scrub.Sum, bool) { return k.view.BlockHash(k.id, n) }

// wrote tells the comparison under way of a write; the caller holds the stream's mu.
func (d *disk) wrote(off, n int64) {
	if d.compared != nil {
		d.compared.watch.Wrote(block.Extent{Offset: off, Length: n})
	}
}

// compareRequest is a piece of a disk.
type compareRequest struct {
	Disk   string `json:"disk"`
	Offset int64  `json:"offset"`
	Sums   []byte `json:"sums"`
}

// beginCompare has a disk watched from now on, and opens what the vault has of it.
func (s *stream) beginCompare(ctx context.Context, id string) error {
	s.mu.Lock()
	d, ok := s.disks[id]
	if !ok {
		s.mu.Unlock()
		return fmt.Errorf("disk %q: %w", id, ErrUnknownDisk)
	}
	if !s.consistent || !d.synced {
		s.mu.Unlock()
		return fmt.Errorf("disk %q: %w", id, scrub.ErrNotNow)
	}
	c := &comparison{epoch: d.epoch}
	d.compared = c
	at := s.opts.Writer.Next() - 1
	s.mu.Unlock()
	wake(s.kick)
	err := s.openKept(ctx, c, id, at)
	if err != nil {
		s.endCompare(id)
	}
	return err
}

func (s *stream) openKept(ctx context.Context, c *comparison, id string, at holdfast.Position) error {
	ctx, cancel := context.WithTimeoutCause(ctx, compareWait, fmt.Errorf("%w: the vault has not yet what was written", scrub.ErrNotNow))
	defer cancel()
	for s.committed() < at {
		if !sleep(ctx, 10*time.Millisecond) {
			return context.Cause(ctx)
		}
	}
	base, err := s.baseView(ctx, id, s.committed())
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c.kept = keptDisk{base.image, base.view, id}
	return nil
}

// compare compares a piece. What it returns holds only if nothing can have been
// missed since beginCompare.
func (s *stream) compare(ctx context.Context, req compareRequest) (r scrub.Result, err error) {
	c, err := s.comparing(req.Disk)
	if err == nil {
		r, err = c.watch.Compare(ctx, c.kept, req.Offset, req.Sums)
	}
	if err == nil {
		_, err = s.comparing(req.Disk)
	}
	return r, err
}

func (s *stream) comparing(id string) (*comparison, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.disks[id]
	switch {
	case !ok:
		return nil, fmt.Errorf("disk %q: %w", id, ErrUnknownDisk)
	case !s.consistent || !d.synced || d.compared == nil || d.compared.kept == nil || d.compared.epoch != d.epoch:
		return nil, fmt.Errorf("disk %q: %w", id, scrub.ErrNotNow)
	}
	return d.compared, nil
}

func (s *stream) endCompare(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d, ok := s.disks[id]; ok {
		d.compared = nil
	}
}

// handleCompare serves the comparisons of an ingest.
func (g *Ingest) handleCompare(mux *http.ServeMux) {
	with := func(path string, f func(context.Context, *served, compareRequest) (any, error)) {
		mux.HandleFunc("POST /streams/{id}/"+path, g.withStream(func(sv *served, r *http.Request) (any, error) {
			var req compareRequest
			if err := decodeBody(r, &req); err != nil {
				return nil, err
			}
			return f(r.Context(), sv, req)
		}))
	}
	with("compare/begin", func(ctx context.Context, sv *served, req compareRequest) (any, error) {
		return struct{}{}, sv.beginCompare(ctx, req.Disk)
	})
	with("compare", func(ctx context.Context, sv *served, req compareRequest) (any, error) { return sv.compare(ctx, req) })
	with("compare/end", func(_ context.Context, sv *served, req compareRequest) (any, error) {
		sv.endCompare(req.Disk)
		return struct{}{}, nil
	})
}

// comparer is the vault's side of a scrub, as the supervisor reaches it.
type comparer struct{ c *ingestClient }

var _ scrub.Peer = comparer{}

// Begin has a disk watched.
func (p comparer) Begin(ctx context.Context, disk string) error {
	return p.call(ctx, "/compare/begin", compareRequest{Disk: disk}, nil)
}

// Compare compares a piece.
func (p comparer) Compare(ctx context.Context, disk string, off int64, sums []byte) (r scrub.Result, err error) {
	err = p.call(ctx, "/compare", compareRequest{disk, off, sums}, &r)
	return r, err
}

// End ends that.
func (p comparer) End(ctx context.Context, disk string) error {
	return p.call(ctx, "/compare/end", compareRequest{Disk: disk}, nil)
}

func (p comparer) call(ctx context.Context, path string, req compareRequest, out any) error {
	ctx, cancel := context.WithTimeout(ctx, 2*compareWait)
	defer cancel()
	err := p.c.control.call(ctx, "POST", p.c.path(path), req, out)
	var remote *remoteError
	if err != nil && !errors.As(err, &remote) {
		return fmt.Errorf("%w: %w", scrub.ErrNotNow, err) // the ingest is not there, or has the stream not open
	}
	return err
}
