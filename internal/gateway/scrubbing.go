package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"

	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/capture"
	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/scrub"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// scrubRate bounds how much of a machine's disks is read to compare them, in bytes
// per second.
const scrubRate = 64 << 20

// scrubsAtOnce is how many machines of a gateway are compared at the same time.
const scrubsAtOnce = 2

// newScrub returns what compares the order's disks with the vault.
func (r *replication) newScrub() (*scrub.Runner, error) {
	o := scrub.Options{
		Every: r.order.ScrubEvery, Rate: scrubRate, Open: r.openLive, Peer: comparer{r.ingest}, Resync: r.resync,
		FS: vfs.OS, File: r.sup.scrubFile(r.order), Slots: r.sup.slots, Logger: r.log,
	}
	for _, d := range r.order.Disks {
		o.Disks = append(o.Disks, scrub.Disk{ID: d.ID, Size: d.Size})
	}
	return scrub.NewRunner(o)
}

// scrubFile keeps how far an order's scrub is.
func (s *Supervisor) scrubFile(o Order) string {
	return filepath.Join(s.opts.Dir, "orders", o.Item+"."+o.Timeline.String()+".scrub")
}

// keepScrub compares until ctx ends.
func (r *replication) keepScrub(ctx context.Context) error {
	run, err := r.newScrub()
	if err != nil {
		r.log.Error("disks are not compared with the vault", "error", err)
		return nil
	}
	r.mu.Lock()
	r.scrub = run
	r.mu.Unlock()
	return run.Run(ctx)
}

// resync takes the mirror out of the machine and begins it anew, so that QEMU
// compares all of its disks with the vault; the ingest drops what that has.
func (r *replication) resync(ctx context.Context, _ string) error {
	done := make(chan error, 1)
	select {
	case r.resyncs <- done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// openLive opens a disk as its host has it, if the machine has it open as its
// definition says.
func (r *replication) openLive(ctx context.Context, id string) (_ block.Image, err error) {
	site, err := r.site(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, site.Close()) }()
	if site.OpenLive == nil {
		return nil, errors.New("disks of running machines cannot be read at this site")
	}
	m, err := site.Inventory.Machine(ctx, r.order.MachineID)
	if err != nil {
		return nil, err
	}
	for _, d := range m.Disks {
		if d.ID != id {
			continue
		}
		mon, err := site.Source.Monitor(ctx, r.order.MachineID)
		if errors.Is(err, provider.ErrNotRunning) {
			return nil, fmt.Errorf("%w: %w", scrub.ErrNotNow, err)
		}
		if err != nil {
			return nil, err
		}
		err = errors.Join(capture.Backed(ctx, mon, d), mon.Close())
		if err != nil {
			return nil, err
		}
		return site.OpenLive(ctx, d)
	}
	return nil, fmt.Errorf("the machine has no disk %s", id)
}

// handleScrub serves the request to compare now.
func (s *Supervisor) handleScrub(mux *http.ServeMux) {
	mux.HandleFunc("POST /v1/orders/{item}/scrub", func(w http.ResponseWriter, r *http.Request) {
		job, err := s.lookup(r.PathValue("item"))
		var out ScrubReply
		if err == nil {
			out, err = job.hurryScrub()
		}
		reply(w, out, err)
	})
}

// ScrubReply says how many rounds had ended when one was begun.
type ScrubReply struct {
	Rounds int `json:"rounds"`
}

func (r *replication) hurryScrub() (out ScrubReply, err error) {
	r.mu.Lock()
	run := r.scrub
	r.mu.Unlock()
	if run == nil {
		return out, errors.New("the replication has not begun; ask again")
	}
	out.Rounds, err = run.Hurry()
	return out, err
}

// Scrub has all disks of an item compared with the vault now.
func (c *Client) Scrub(ctx context.Context, item string) (ScrubReply, error) {
	var out ScrubReply
	err := c.control.call(ctx, "POST", "/v1/orders/"+item+"/scrub", nil, &out)
	return out, err
}
