package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/provider"
)

// guardEvery is how often it is looked whether a machine that was left behind by
// a failover is off and guarded.
const guardEvery = 5 * time.Second

// guard keeps the item's machine at a site from running: it is guarded against
// being started, then the power is taken away if it runs.
func (c *Orchestrator) guard(ctx context.Context, it holdfast.Item, at, active string) error {
	left := it.CopyAt(at)
	if left.MachineID == "" {
		return nil
	}
	return c.withSite(ctx, at, func(site holdfast.Site, s *provider.Site) error {
		if s.Power == nil { // a finding says so
			return c.killIfRunning(ctx, s, left)
		}
		err := s.Power.Guard(ctx, left.MachineID, c.guardReason(ctx, it, active))
		if errors.Is(err, provider.ErrNotFound) {
			return nil // gone with its site's storage
		}
		if err != nil {
			err = &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "guard machine " + left.Name + " at site", Thing: site.Name, Err: err}
		}
		return errors.Join(err, c.killIfRunning(ctx, s, left)) // guarded or not, it must not run
	})
}

// guardReason is what somebody reads who tries to start the machine.
func (c *Orchestrator) guardReason(ctx context.Context, it holdfast.Item, active string) string {
	where := active
	if site, err := c.opts.Store.Site(ctx, active); err == nil {
		where = site.Name
	}
	return fmt.Sprintf("Holdfast: item %s works at site %s; see holdfast item show %s", it.Name, where, it.Name)
}

func (c *Orchestrator) killIfRunning(ctx context.Context, s *provider.Site, m holdfast.Copy) error {
	if s.Inventory == nil || s.Source == nil {
		return nil
	}
	now, err := s.Inventory.Machine(ctx, m.MachineID)
	if errors.Is(err, provider.ErrNotFound) || err == nil && now.Power == provider.PowerOff {
		return nil
	}
	if err != nil {
		return err
	}
	if err := s.Source.Kill(ctx, m.MachineID); err != nil && !errors.Is(err, provider.ErrNotRunning) {
		return fmt.Errorf("switch off machine %s: %w", m.Name, err)
	}
	return nil
}

// switchOff guards the machine at a site and takes its power away.
func (c *Orchestrator) switchOff(ctx context.Context, s *provider.Site, it holdfast.Item, at string) error {
	left := it.CopyAt(at)
	active := it.PrimarySite
	if at == active {
		active = it.RecoverySite
	}
	err := s.Power.Guard(ctx, left.MachineID, c.guardReason(ctx, it, active))
	return errors.Join(err, c.killIfRunning(ctx, s, left))
}

// lockPower waits until nobody else switches machines of an item. Whoever starts
// one that was left behind holds it, and so does who keeps such a one off: each
// then acts on what is recorded of the item while it holds it.
func (c *Orchestrator) lockPower(ctx context.Context, item string) (unlock func(), err error) {
	l := c.powerOf(item)
	select {
	case l <- struct{}{}:
		return func() { <-l }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// tryPower is lockPower for who has time.
func (c *Orchestrator) tryPower(item string) (unlock func(), ok bool) {
	l := c.powerOf(item)
	select {
	case l <- struct{}{}:
		return func() { <-l }, true
	default:
		return nil, false
	}
}

func (c *Orchestrator) powerOf(item string) chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.power[item]
	if l == nil {
		l = make(chan struct{}, 1)
		c.power[item] = l
	}
	return l
}

// leftBehind says whether the item has a machine at the site that is not the
// active one, which must not run.
func leftBehind(it holdfast.Item) (site string, ok bool) {
	switch it.State {
	case holdfast.StateCommitPending, holdfast.StateChangingPoint, holdfast.StateChangingPointFailed,
		holdfast.StateCommitting, holdfast.StateCommitFailed, holdfast.StateCommitted,
		holdfast.StateReprotecting, holdfast.StateReprotectFailed, holdfast.StateInitialReplication, holdfast.StateProtected, holdfast.StateReplicationBroken:
		site = it.TargetSite()
		return site, it.CopyAt(site).MachineID != ""
	}
	return "", false
}

// watchLeftBehind looks whether a machine that was left behind runs, switches it
// off, and guards it if it was not reached before.
func (c *Orchestrator) watchLeftBehind(ctx context.Context, it holdfast.Item) (twoLive, notGuarded string) {
	site, ok := leftBehind(it)
	if !ok {
		return "", ""
	}
	c.mu.Lock()
	old := c.guards[it.ID]
	c.mu.Unlock()
	if c.now().Sub(old.at) < guardEvery {
		return old.twoLive, old.notGuarded
	}
	// What is known of the item may be old by now: a job may be about to start the
	// very machine that was left behind then.
	unlock, ok := c.tryPower(it.ID)
	if !ok {
		return old.twoLive, old.notGuarded
	}
	defer unlock()
	now, err := c.opts.Store.Item(ctx, it.ID)
	if err != nil {
		return old.twoLive, old.notGuarded
	}
	if at, ok := leftBehind(now); !ok || at != site {
		return "", ""
	}
	it = now
	g := guardSeen{at: c.now()}
	ctx, cancel := context.WithTimeout(ctx, guardWait/3)
	defer cancel()
	left := it.CopyAt(site)
	err = c.withSite(ctx, site, func(rec holdfast.Site, s *provider.Site) error {
		if s.Power == nil || s.Inventory == nil {
			g.notGuarded = "the provider of site " + rec.Name + " cannot guard machines"
			return nil
		}
		m, err := s.Inventory.Machine(ctx, left.MachineID)
		if errors.Is(err, provider.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		reason, err := s.Power.Guarded(ctx, left.MachineID)
		if err == nil && (reason == "" || m.Power != provider.PowerOff) {
			err = s.Power.Guard(ctx, left.MachineID, c.guardReason(ctx, it, it.ActiveSite()))
		}
		killed := c.killIfRunning(ctx, s, left) // guarded or not
		if m.Power != provider.PowerOff {
			became := "was switched off"
			if killed != nil {
				became = "could not be switched off"
			}
			g.twoLive = fmt.Sprintf("machine %s was found running at site %s at %s and %s; what it wrote is on its disks",
				left.Name, rec.Name, c.now().UTC().Format(time.DateTime), became)
			c.log.Error("two copies of a machine run", "item", it.Name, "site", rec.Name, "machine", left.Name, "it", became)
		}
		return errors.Join(err, killed)
	})
	if err != nil {
		g.notGuarded = err.Error()
	}
	if g.twoLive != "" {
		if err := c.forgetEqual(ctx, it.ID, site); err != nil {
			c.log.Error("item is not changed", "item", it.Name, "error", err)
		}
	} else if old.twoLive != "" && c.now().Sub(old.since) < twoLiveShown {
		g.twoLive, g.since = old.twoLive, old.since
	}
	if g.twoLive != "" && g.since.IsZero() {
		g.since = g.at
	}
	c.mu.Lock()
	c.guards[it.ID] = g
	c.mu.Unlock()
	return g.twoLive, g.notGuarded
}

// twoLiveShown is for how long it stays a finding that two copies ran.
const twoLiveShown = 24 * time.Hour

// guardSeen is what was seen of a machine that was left behind.
type guardSeen struct {
	at         time.Time
	since      time.Time // of twoLive
	twoLive    string
	notGuarded string
}
