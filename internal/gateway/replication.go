package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/internal/capture"
	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/scrub"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// replication carries out one order: it keeps the stream open in the ingest
// process and the mirror going in the guest's QEMU.
type replication struct {
	sup       *Supervisor
	order     Order
	log       *slog.Logger
	ingest    *ingestClient
	openAgain chan struct{}
	resyncs   chan chan error
	cancel    context.CancelFunc
	done      chan struct{}

	// mu guards what follows.
	mu     sync.Mutex
	mirror *capture.Mirror
	code   string
	err    error
	since  time.Time
	pause  string // that the machine is left alone, and until when; empty: it is not
	quiet  bool   // it is left alone already
	looked look
	scrub  *scrub.Runner // nil: not begun
}

func newReplication(s *Supervisor, o Order) *replication {
	return &replication{
		sup: s, order: o, log: s.log.With("item", o.Item), openAgain: make(chan struct{}, 1), resyncs: make(chan chan error),
		cancel: func() {}, done: make(chan struct{}),
		ingest: newIngestClient(s.child.socket, o),
	}
}

// same says whether an order asks for nothing new.
func (r *replication) same(o Order) bool { return reflect.DeepEqual(r.order, o) }

// run opens the stream whenever a child has started, and controls the mirror,
// until ctx ends or the stream is fenced off.
func (r *replication) run(ctx context.Context) error {
	opened := make(chan bool, 1) // fresh
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.keepOpen(ctx, opened) })
	g.Go(func() error { return r.keepMirror(ctx, opened) })
	g.Go(func() error { return r.keepLooking(ctx) })
	g.Go(func() error { return r.keepScrub(ctx) })
	if err := g.Wait(); err != nil && ctx.Err() == nil {
		r.log.Error("replication ended", "error", err)
	}
	return nil
}

// reopenEvery is how often a stream is asked to be open: one whose serving has
// ended by a fault is then served anew.
const reopenEvery = 5 * time.Second

// keepOpen opens the stream in each new child, and again where it has ended.
func (r *replication) keepOpen(ctx context.Context, opened chan<- bool) error {
	wake(r.openAgain)
	tick := time.NewTicker(reopenEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.openAgain:
		case <-tick.C:
		}
		fresh, err := r.openUntil(ctx)
		if err != nil || ctx.Err() != nil {
			return err
		}
		select {
		case opened <- fresh:
		case <-ctx.Done():
			return nil
		}
	}
}

// openUntil tries to open the stream until it is open, or fenced off, or ctx ends.
func (r *replication) openUntil(ctx context.Context) (fresh bool, err error) {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		fresh, err := r.ingest.open(ctx)
		switch {
		case ctx.Err() != nil:
			return false, nil
		case err == nil:
			r.note("", nil)
			return fresh, nil
		case errors.Is(err, vault.ErrFenced):
			r.note(CodeFenced, err)
			return false, err
		}
		r.note(CodeIngest, err)
		if !sleep(ctx, wait) {
			return false, nil
		}
	}
}

// keepMirror runs the mirror; when the account of changes was lost, a mirror
// that may believe itself in sync is removed first.
func (r *replication) keepMirror(ctx context.Context, opened <-chan bool) error {
	if !r.sitOut(ctx) {
		return nil
	}
	var running *mirrorRun
	defer func() { running.end() }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case done := <-r.resyncs:
			running.end()
			done <- r.detach(ctx)
			running = r.startMirror(ctx)
		case fresh := <-opened:
			if !fresh && running != nil {
				continue
			}
			running.end()
			running = nil
			if fresh && !r.beginAfresh(ctx) {
				return nil
			}
			running = r.startMirror(ctx)
		}
	}
}

// mirrorRun is a mirror that runs.
type mirrorRun struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// end ends it and waits; nil is none.
func (m *mirrorRun) end() {
	if m != nil {
		m.cancel()
		<-m.done
	}
}

func (r *replication) startMirror(ctx context.Context) *mirrorRun {
	m := r.newMirror()
	r.setMirror(m)
	ctx, cancel := context.WithCancel(ctx)
	run := &mirrorRun{cancel: cancel, done: make(chan struct{})}
	go func() { // awaited by end
		defer close(run.done)
		if err := m.Run(ctx); err != nil && ctx.Err() == nil {
			r.note(CodeSource, err)
			r.log.Error("mirror ended", "error", err)
		}
	}()
	return run
}

// beginAfresh removes mirrors of an earlier account, tries until it could, and
// begins the stream. It returns false when ctx has ended.
func (r *replication) beginAfresh(ctx context.Context) bool {
	for wait := 200 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := r.detach(ctx)
		if err == nil || errors.Is(err, provider.ErrNotRunning) {
			err = r.ingest.control.call(ctx, "POST", r.ingest.path("/begin"), nil, nil)
		}
		if err == nil {
			return true
		}
		r.note(CodeSource, err)
		if !sleep(ctx, wait) {
			return false
		}
	}
}

func (r *replication) newMirror() *capture.Mirror {
	disks := make([]capture.Disk, len(r.order.Disks))
	for i, d := range r.order.Disks {
		disks[i] = capture.Disk{ID: d.ID, Size: d.Size}
	}
	return capture.NewMirror(capture.MirrorOptions{
		Open: r.openMonitor, Machine: r.machine, Disks: disks,
		Prefix: r.order.Item, Ingest: r.ingest, Seeded: r.ingest.isSeeded(), Logger: r.log,
	})
}

// openMonitor opens the machine's monitor at its site.
func (r *replication) openMonitor(ctx context.Context) (provider.Monitor, error) {
	site, err := r.site(ctx)
	if err != nil {
		return nil, err
	}
	mon, err := site.Source.Monitor(ctx, r.order.MachineID)
	if err != nil {
		return nil, errors.Join(err, site.Close())
	}
	return &siteMonitor{Monitor: mon, site: site}, nil
}

func (r *replication) site(ctx context.Context) (*provider.Site, error) {
	site, err := r.sup.opts.Sites.OpenSite(ctx, r.order.Site)
	if err != nil {
		return nil, err
	}
	if site.Source == nil {
		return nil, errors.Join(fmt.Errorf("site with provider %q has no machines to protect", r.order.Site.Provider), site.Close())
	}
	return site, nil
}

// machine returns the machine as its site shows it now.
func (r *replication) machine(ctx context.Context) (provider.Machine, error) {
	site, err := r.site(ctx)
	if err != nil {
		return provider.Machine{}, err
	}
	m, err := site.Inventory.Machine(ctx, r.order.MachineID)
	return m, errors.Join(err, site.Close())
}

// siteMonitor closes its site with itself.
type siteMonitor struct {
	provider.Monitor
	site *provider.Site
}

// Close closes the monitor and its site.
func (m *siteMonitor) Close() error { return errors.Join(m.Monitor.Close(), m.site.Close()) }

// detach removes the mirror from the guest's QEMU.
func (r *replication) detach(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return r.newMirror().Detach(ctx)
}

// end ends what run has left: the mirror in the guest's QEMU, and the serving of
// the stream. A machine that is off has no mirror.
func (r *replication) end(ctx context.Context) error {
	err := r.detach(ctx)
	if errors.Is(err, provider.ErrNotRunning) {
		err = nil
	}
	return errors.Join(err, r.closeStream(ctx))
}

func (r *replication) closeStream(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return r.ingest.control.call(ctx, "DELETE", r.ingest.path(""), nil, nil)
}

func (r *replication) setMirror(m *capture.Mirror) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mirror = m
}

func (r *replication) note(code string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.code != code {
		r.since = time.Now()
	}
	r.code, r.err = code, err
}

// status is how the replication fares; a pause goes before what comes of it.
func (r *replication) status(ctx context.Context) Status {
	st := r.unpaused(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pause != "" && st.Code != CodeFenced {
		st.Mode, st.Code, st.Problem, st.Since = string(capture.ModePaused), CodePaused, r.pause, time.Time{}
	}
	return st
}

// unpaused joins what the mirror, the ingest and the supervisor know.
func (r *replication) unpaused(ctx context.Context) Status {
	st := Status{Item: r.order.Item, Stream: r.order.Stream, Timeline: r.order.Timeline, Vault: r.order.Vault.Digest(), Mode: string(capture.ModeDisconnected)}
	_, stalls, childErr := r.sup.child.state()
	st.Stalls = stalls
	r.mu.Lock()
	mirror := r.mirror
	if r.scrub != nil {
		st.Scrub = r.scrub.State()
		st.Scrub.Suspected = nil // many, and of no use to others
	}
	st.Machine, st.Quiet = r.looked.hash, r.quiet
	if r.err != nil {
		st.Code, st.Problem, st.Since = r.code, r.err.Error(), r.since
	}
	r.mu.Unlock()
	if mirror != nil {
		r.addMirror(&st, mirror.State())
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	in, err := r.ingest.status(ctx)
	if err != nil {
		if st.Code == "" {
			st.Code, st.Problem = CodeIngest, errors.Join(err, childErr).Error()
		}
		return st
	}
	st.Consistent, st.Counts, st.Backlog = in.Consistent, in.Counts, in.Backlog
	st.Position, st.AsOf = in.Position, in.AsOf
	if in.Code != "" {
		st.Code, st.Problem, st.Since = in.Code, in.Problem, in.Since
	}
	return st
}

func (r *replication) addMirror(st *Status, ms capture.State) {
	st.Mode = string(ms.Mode())
	resized := ""
	for _, d := range ms.Disks {
		if d.Resized {
			resized = "disk " + d.ID + ": " + d.Problem
		}
		st.Disks = append(st.Disks, DiskStatus{
			ID: d.ID, Size: d.Size, Mode: string(d.Mode), Done: d.Done, Total: d.Total, Rate: d.Rate,
		})
	}
	switch {
	case st.Code != "":
	case ms.SourceOff:
		st.Code, st.Problem = CodeSourceOff, "the machine is off"
	case resized != "":
		st.Code, st.Problem = CodeDiskResized, resized
	case ms.Problem != "":
		st.Code, st.Problem = CodeSource, ms.Problem
	}
}

// ingestClient is one stream of the ingest process, as capture and the
// supervisor use it.
type ingestClient struct {
	control *control
	order   Order
	// mu guards what follows.
	mu     sync.Mutex
	socket string
	seeded bool
}

var _ capture.Ingest = (*ingestClient)(nil)

func newIngestClient(socket string, o Order) *ingestClient {
	return &ingestClient{control: newControl(socket), order: o}
}

func (c *ingestClient) path(rest string) string { return "/streams/" + c.order.Stream.String() + rest }

// open has the stream served; fresh says that no account of it was found.
func (c *ingestClient) open(ctx context.Context) (fresh bool, err error) {
	o := c.order
	var out OpenReply
	err = c.control.call(ctx, "PUT", "/streams", OpenRequest{
		Stream: o.Stream, Timeline: o.Timeline, Generation: o.Generation, Vault: o.Vault, Disks: o.Disks, Tuning: o.Tuning,
	}, &out)
	if err != nil {
		return false, err
	}
	c.mu.Lock()
	c.socket, c.seeded = out.Socket, out.Seeded
	c.mu.Unlock()
	return out.Fresh, nil
}

func (c *ingestClient) isSeeded() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seeded
}

func (c *ingestClient) status(ctx context.Context) (StreamStatus, error) {
	var st StreamStatus
	err := c.control.call(ctx, "GET", c.path(""), nil, &st)
	return st, err
}

func (c *ingestClient) point(ctx context.Context, req pointRequest) (PointReply, error) {
	var out PointReply
	err := c.control.call(ctx, "POST", c.path("/point"), req, &out)
	return out, err
}

// Endpoint returns where a disk is ingested.
func (c *ingestClient) Endpoint(disk string) (socket, export string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.socket, disk
}

// Connection returns how a disk's connection stands.
func (c *ingestClient) Connection(ctx context.Context, disk string) (capture.Connection, error) {
	st, err := c.status(ctx)
	d := st.Disks[disk]
	return capture.Connection{Epoch: d.Epoch, Connected: d.Connected, Ready: d.Ready, At: st.Clock}, err
}

// Confirm says that nothing was missed until a time.
func (c *ingestClient) Confirm(ctx context.Context, at time.Time, epochs map[string]uint64) error {
	return c.control.call(ctx, "POST", c.path("/confirm"), confirmRequest{At: at, Epochs: epochs}, nil)
}

// Synced says that a disk is in sync on the connection of the epoch.
func (c *ingestClient) Synced(ctx context.Context, disk string, epoch uint64) error {
	return c.control.call(ctx, "POST", c.path("/synced"), diskRequest{Disk: disk, Epoch: epoch}, nil)
}

// Cut ends the connection of a disk.
func (c *ingestClient) Cut(ctx context.Context, disk string) error {
	return c.control.call(ctx, "POST", c.path("/cut"), diskRequest{Disk: disk}, nil)
}
