// Package orchestrator carries out operations on items as durable jobs: it
// decides with the domain's table, records its intents, and has gateways, vault,
// views and providers do the work. It is what the REST interface is an
// interface to.
//
// It owns no goroutine outside of Run. Everything that it needs to go on after
// a crash is in the store, in the vault, or with the provider.
package orchestrator

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/gateway"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/script"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// Store is what the orchestrator keeps: sites and items. Its methods fail with
// an *holdfast.Error of kind not_found or conflict, are durable when they return
// nil, and are safe for concurrent use.
type Store interface {
	SiteStore
	ItemStore
}

// SiteStore keeps sites.
type SiteStore interface {
	// CreateSite adds a site whose name no other has.
	CreateSite(ctx context.Context, s holdfast.Site) (holdfast.Site, error)
	// Site returns one site.
	Site(ctx context.Context, idOrName string) (holdfast.Site, error)
	// Sites returns all sites, sorted by name.
	Sites(ctx context.Context) ([]holdfast.Site, error)
	// DeleteSite removes a site.
	DeleteSite(ctx context.Context, id string) error
}

// ItemStore keeps items.
type ItemStore interface {
	// CreateItem adds an item whose name no other has.
	CreateItem(ctx context.Context, it holdfast.Item) (holdfast.Item, error)
	// Item returns one item.
	Item(ctx context.Context, idOrName string) (holdfast.Item, error)
	// Items returns all items, sorted by name.
	Items(ctx context.Context) ([]holdfast.Item, error)
	// UpdateItem replaces the item that is stored in the given version.
	UpdateItem(ctx context.Context, it holdfast.Item) (holdfast.Item, error)
	// DeleteItem removes an item.
	DeleteItem(ctx context.Context, id string) error
}

// Gateway is a gateway as the orchestrator uses it; *gateway.Client is one.
// Every method fails if the gateway cannot be reached, and with
// gateway.ErrUnknownOrder if it has no order for the item.
type Gateway interface {
	Orders
	// Point makes what was received a recovery point, in the vault on return.
	Point(ctx context.Context, item, name string) (gateway.PointReply, error)
	// Mark makes a recovery point of a consistency that the caller has brought
	// about, placed on return, in the vault later.
	Mark(ctx context.Context, item, name string, consistency holdfast.Consistency) (gateway.PointReply, error)
	Groups
	Scripts
	Comparer
}

// Comparer compares the disks of running machines with the vault.
type Comparer interface {
	// Scrub begins a round for an item; its Status tells how far it is.
	Scrub(ctx context.Context, item string) (gateway.ScrubReply, error)
}

// Scripts run on a gateway's host.
type Scripts interface {
	// RunScript runs one; why it failed is in the reply.
	RunScript(ctx context.Context, call script.Call) (gateway.ScriptReply, error)
	// CheckScript says whether it could be run.
	CheckScript(ctx context.Context, call script.Call) error
}

// Groups are recovery points of several items that are one moment for all: of one
// gateway's items at once, of several gateways' while all of them hold theirs.
type Groups interface {
	// GroupPoint makes one, placed on return, in the vault later.
	GroupPoint(ctx context.Context, p gateway.GroupPoint) (gateway.GroupPointReply, error)
	// Hold takes no write of items until Release, or until the bound.
	Hold(ctx context.Context, h gateway.Hold) error
	// MarkHeld makes a recovery point of all items of a hold; gateway.ErrNotHeld if it
	// is over.
	MarkHeld(ctx context.Context, m gateway.HeldMark) (gateway.GroupPointReply, error)
	// Release ends a hold.
	Release(ctx context.Context, id string) error
}

// Orders are what a gateway is to do, and how it fares.
type Orders interface {
	// Put gives an order, kept by the gateway on return.
	Put(ctx context.Context, o gateway.Order) error
	// Withdraw takes an order back and leaves the machine as it was found.
	Withdraw(ctx context.Context, item string) error
	// Status returns how replication fares.
	Status(ctx context.Context, item string) (gateway.Status, error)
	// Machine returns the machine as the gateway saw it last.
	Machine(ctx context.Context, item string) (provider.Machine, error)
}

// Views serves disks of views to targets; *recovery.Exports does.
type Views interface {
	// Socket returns where they are served, the same after a restart.
	Socket() string
	// Add serves an image under a name until Remove.
	Add(name string, image block.Image) error
	// Has says whether something is served under the name.
	Has(name string) bool
	// Remove ends the serving of a name; it is no error if there is none.
	Remove(name string) error
}

// VaultCopy is a copy of the vault that is kept in another store. Safe for
// concurrent use.
type VaultCopy interface {
	// State returns how far it is, and what fails.
	State() api.VaultCopy
	// Verify verifies the vault, and heals from the copy what it can; healed are the
	// objects that were put back.
	Verify(ctx context.Context, o vault.VerifyOptions) (rep *vault.Report, healed []string, err error)
}

// Options are what an orchestrator works with.
type Options struct {
	Store    Store
	Jobs     job.Store
	Vault    *vault.Vault
	VaultRef gateway.VaultRef
	Views    Views
	Pictures Pictures
	// Scripts is the directory of the scripts that a boot verification may run;
	// empty: none.
	Scripts string
	// Gateway returns the gateway at an address; "" is the server's own.
	Gateway func(address string) (Gateway, error)
	// OpenSite opens a site with its provider.
	OpenSite func(ctx context.Context, providerName string, settings json.RawMessage) (*provider.Site, error)
	// VaultLocation and VaultFree say where the vault is and what is free there.
	VaultLocation string
	VaultFree     func() (int64, error)
	// VaultCopy is the vault's copy in another store; nil: there is none.
	VaultCopy VaultCopy
	Scrub     Scrub
	Tuning    gateway.Tuning
	// Confirm fails if another server may have taken the vault over: it is asked
	// before a machine is started. Nil: never.
	Confirm func(ctx context.Context) error
	// Publish tells who follows what happens; nil: nobody.
	Publish func(api.Event)
	// Observe is how often items are looked at. Default 500 ms.
	Observe time.Duration
	Logger  *slog.Logger
	Now     func() time.Time
	// JobHook is job.Options.Hook: for tests.
	JobHook func(when string, j job.Job) error
}

// Orchestrator carries out operations. Its methods are safe for concurrent use.
type Orchestrator struct {
	opts   Options
	log    *slog.Logger
	now    func() time.Time
	engine *job.Engine
	kinds  []job.Kind
	// settled is closed when Run has put right what a crash has left. Until then
	// no operation begins: its item would look as if its job were lost.
	settled chan struct{}

	// mu guards what was observed last.
	mu       sync.Mutex
	observed map[string]observation
	guards   map[string]guardSeen     // by item
	power    map[string]chan struct{} // by item; see lockPower
	// restored is when it was last tried to give a guest its own addresses.
	restored map[string]time.Time
	// appPoints is how the last application-consistent point of an item went.
	appPoints map[string]appPoint
	shapes    map[string]shapeSeen // by item
	streams   map[holdfast.StreamID]*vault.Stream
	verified  verified
}

// New returns an orchestrator that does nothing before Run.
func New(o Options) (*Orchestrator, error) {
	if o.Observe <= 0 {
		o.Observe = 500 * time.Millisecond
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	c := &Orchestrator{
		opts: o, log: o.Logger, now: o.Now, settled: make(chan struct{}),
		observed: map[string]observation{}, guards: map[string]guardSeen{}, power: map[string]chan struct{}{}, appPoints: map[string]appPoint{}, restored: map[string]time.Time{}, shapes: map[string]shapeSeen{}, streams: map[holdfast.StreamID]*vault.Stream{},
	}
	c.engine = job.New(o.Jobs, job.Options{Logger: o.Logger, Now: o.Now, Hook: o.JobHook})
	kinds := append(c.failoverKinds(), c.protectKind(), c.hydrateKind(), c.disableKind(), c.verifyKind(), c.commitKind(), c.undoKind(),
		c.reprotectKind(), c.resyncKind(), c.testKind(), c.cleanUpKind(), c.pointKind(), c.disksKind(), c.pauseKind(), c.compareKind())
	kinds = append(kinds, append(c.switchingKinds(), c.groupPointKind())...)
	c.kinds = kinds
	return c, c.engine.Register(kinds...)
}

// Run serves again the views that recovered machines read from, goes on with
// unfinished jobs, and observes the items, until ctx ends.
func (c *Orchestrator) Run(ctx context.Context) error {
	if err := errors.Join(c.serveViews(ctx), c.settleItems(ctx), c.loadVerified(ctx)); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	close(c.settled)
	g, inner := errgroup.WithContext(ctx)
	g.Go(func() error { return c.engine.Run(inner) })
	g.Go(func() error { return c.observeLoop(inner) })
	g.Go(func() error { return c.pruneLoop(inner) })
	g.Go(func() error { return c.scrubLoop(inner) })
	g.Go(func() error { return c.forwardEvents(inner) })
	if err := g.Wait(); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// Engine returns what runs the jobs, so that others have their kinds of job run by
// it: they register them before Run.
func (c *Orchestrator) Engine() *job.Engine { return c.engine }

// awaitSettled waits until operations may begin.
func (c *Orchestrator) awaitSettled(ctx context.Context) error {
	select {
	case <-c.settled:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// newID returns a random id with a prefix.
func newID(prefix string) string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return prefix + "-" + hex.EncodeToString(b[:])
}

// updateItem changes an item as recorded, again if somebody else changed it
// meanwhile. change sees the newest one.
func (c *Orchestrator) updateItem(ctx context.Context, id string, change func(holdfast.Item) (holdfast.Item, error)) (holdfast.Item, error) {
	for {
		it, err := c.opts.Store.Item(ctx, id)
		if err != nil {
			return it, err
		}
		next, err := change(it)
		if err != nil {
			return it, err
		}
		next.UpdatedAt = c.now()
		stored, err := c.opts.Store.UpdateItem(ctx, next)
		if errors.Is(err, &holdfast.Error{Kind: holdfast.KindConflict}) && ctx.Err() == nil {
			continue
		}
		if err == nil {
			c.publish(api.Event{Type: api.EventItemChanged, Item: stored.ID, Message: stored.Name + " is " + string(stored.State)})
		}
		return stored, err
	}
}

// stream opens a stream of the vault, once.
func (c *Orchestrator) stream(ctx context.Context, id holdfast.StreamID) (*vault.Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s, ok := c.streams[id]; ok {
		return s, nil
	}
	s, err := c.opts.Vault.OpenStream(ctx, id)
	if err != nil {
		return nil, err
	}
	c.streams[id] = s
	return s, nil
}

// withSite opens a site for the time of a call.
func (c *Orchestrator) withSite(ctx context.Context, id string, f func(holdfast.Site, *provider.Site) error) error {
	rec, err := c.opts.Store.Site(ctx, id)
	if err != nil {
		return err
	}
	site, err := c.opts.OpenSite(ctx, rec.Provider, rec.Settings)
	if err != nil {
		return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "open site", Thing: rec.Name, Err: err,
			Hint: "Check that the site's machines can be reached with the settings of the site"}
	}
	return errors.Join(f(rec, site), site.Close())
}

// gatewayOf returns the gateway beside an item's source.
func (c *Orchestrator) gatewayOf(ctx context.Context, it holdfast.Item) (Gateway, holdfast.Site, error) {
	site, err := c.opts.Store.Site(ctx, it.ActiveSite())
	if err != nil {
		return nil, site, err
	}
	g, err := c.gatewayAt(site.Gateway)
	if err != nil {
		return nil, site, &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "reach gateway", Thing: site.Name, Err: err}
	}
	return g, site, nil
}

// sleep waits for d and says whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// decodeInput decodes what a job was submitted with.
func decodeInput(step *job.Step, v any) error {
	if err := step.Input(v); err != nil {
		return fmt.Errorf("decode job input: %w", err)
	}
	return nil
}
