package orchestrator

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/gateway"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/provider"
)

// observation is what was seen of an item last.
type observation struct {
	at       time.Time
	status   holdfast.Status
	gateway  gateway.Status
	reached  bool // the gateway answered
	asOf     time.Time
	history  holdfast.History
	stored   int64
	recovery *provider.Status
}

// ready says that the item can be recovered and replicates as it should.
func (o observation) ready() bool { return o.status.Newest != nil && o.reached && o.gateway.Consistent }

// observeParallel bounds how many items are looked at together.
const observeParallel = 16

// observeLoop looks at every item, again and again.
func (c *Orchestrator) observeLoop(ctx context.Context) error {
	for {
		if err := c.observeAll(ctx); err != nil && ctx.Err() == nil {
			c.log.Error("items are not observed", "error", err)
		}
		if !sleep(ctx, c.opts.Observe) {
			return nil
		}
	}
}

func (c *Orchestrator) observeAll(ctx context.Context) error {
	items, err := c.opts.Store.Items(ctx)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(observeParallel)
	for _, it := range items {
		g.Go(func() error {
			ob := c.observe(ctx, it)
			if err := c.applyReady(ctx, it.ID, ob); err != nil && ctx.Err() == nil {
				c.log.Error("state is not recorded", "item", it.Name, "error", err)
			}
			c.tend(ctx, it, ob)
			return nil
		})
	}
	return g.Wait()
}

// observe looks at an item and keeps what it saw.
func (c *Orchestrator) observe(ctx context.Context, it holdfast.Item) observation {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var ob observation
	var seen holdfast.Observation
	var wg sync.WaitGroup
	wg.Go(func() { c.observeGateway(ctx, it, &ob, &seen) })
	var vaultSeen holdfast.Observation
	var fromVault observation
	wg.Go(func() { c.observeVault(ctx, it, &fromVault, &vaultSeen) })
	wg.Wait()
	ob.at = c.now()
	ob.history, ob.asOf, ob.stored = fromVault.history, fromVault.asOf, fromVault.stored
	if vaultSeen.VaultUnreachable != "" {
		seen.VaultUnreachable = vaultSeen.VaultUnreachable
	}
	seen.VaultDamaged = cmp.Or(vaultSeen.VaultDamaged, c.damageOf(it.Stream))
	seen.AppPointFailed = c.lastAppPoint(it.ID)
	seen.TwoLiveCopies, seen.NotGuarded = c.watchLeftBehind(ctx, it)
	c.judge(ctx, it, &ob, seen)
	c.mu.Lock()
	old := c.observed[it.ID].status
	c.observed[it.ID] = ob
	c.mu.Unlock()
	c.publishHealth(it, old, ob.status)
	return ob
}

// observeGateway asks the gateway, if the item's state has it replicate.
func (c *Orchestrator) observeGateway(ctx context.Context, it holdfast.Item, ob *observation, seen *holdfast.Observation) {
	if !replicates(it.State) {
		return
	}
	g, _, err := c.gatewayOf(ctx, it)
	if err == nil {
		ob.gateway, err = g.Status(ctx, it.ID)
	}
	lost := errors.Is(err, gateway.ErrUnknownOrder) || err == nil && ob.gateway.Timeline != it.Timeline
	// The vault's key or its store's credentials may be others than when the order was given.
	lost = lost || err == nil && ob.gateway.Vault != c.opts.VaultRef.Digest()
	if lost && c.orderAgain(ctx, it.ID) {
		ob.gateway, err = g.Status(ctx, it.ID)
	}
	if err != nil {
		if it.State != holdfast.StateEnabling || !errors.Is(err, gateway.ErrUnknownOrder) {
			seen.GatewayUnreachable = err.Error()
		}
		return
	}
	ob.reached = true
	seen.DisksChanged = c.watchShape(ctx, it, g, ob.gateway)
	seen.ChangeLost = describeLosses(ob.gateway.Scrub.Losses())
	switch ob.gateway.Code {
	case gateway.CodeVaultFull:
		seen.VaultFull = ob.gateway.Problem
	case gateway.CodeVaultUnreachable, gateway.CodeIngest:
		seen.VaultUnreachable = ob.gateway.Problem
	case gateway.CodeBacklog:
		seen.GatewayCutOff = ob.gateway.Problem
	case gateway.CodeBandwidth:
		seen.BandwidthLimited = ob.gateway.Problem
	case gateway.CodeSourceOff:
		seen.SourceOff = true
	case gateway.CodeDiskResized:
		seen.DiskResized = ob.gateway.Problem
	case gateway.CodePaused:
		seen.Paused = ob.gateway.Problem
	case gateway.CodeSource:
		seen.SourceUnreachable = ob.gateway.Problem
	}
}

// orderAgain gives a gateway its order again that has lost it, with its state
// directory perhaps, or has not got the newest, because the job that gives it has
// failed. The item is read after that was seen: an order that was
// just taken back is not given again.
func (c *Orchestrator) orderAgain(ctx context.Context, item string) bool {
	it, err := c.opts.Store.Item(ctx, item)
	if err != nil || !replicates(it.State) || it.State == holdfast.StateEnabling || it.CurrentJob != "" {
		return false
	}
	if err := c.giveOrder(ctx, it, it.ActiveSite()); err != nil {
		return false
	}
	c.log.Warn("the gateway had not the item's order as it is now, and got it", "item", it.Name)
	return true
}

// replicates says of a state that the gateway works for the item.
func replicates(s holdfast.State) bool {
	switch s {
	case holdfast.StateEnabling, holdfast.StateInitialReplication, holdfast.StateProtected, holdfast.StateReplicationBroken:
		return true
	}
	return false
}

// observeVault reads what the vault's end has.
func (c *Orchestrator) observeVault(ctx context.Context, it holdfast.Item, ob *observation, seen *holdfast.Observation) {
	if it.State == holdfast.StateEnabling {
		return
	}
	h, err := c.history(ctx, it)
	if err != nil {
		if holdfast.KindOf(err) == holdfast.KindCorrupt {
			seen.VaultDamaged = err.Error()
		} else {
			seen.VaultUnreachable = err.Error()
		}
		return
	}
	ob.history = h
	s, err := c.stream(ctx, it.Stream)
	if err != nil {
		return
	}
	if damage := s.Damaged(); damage != nil {
		seen.VaultDamaged = damage.Error()
	}
	ob.stored = s.StoredBytes()
	if canary, err := s.Canary(ctx); err == nil && canary.Timeline == it.Timeline {
		ob.asOf = canary.Time
	}
}

// judge derives status and findings from what was seen.
func (c *Orchestrator) judge(ctx context.Context, it holdfast.Item, ob *observation, seen holdfast.Observation) {
	if newest, ok := ob.history.Newest(); ok {
		ob.status.Newest = &newest
		// The canary says that everything until then is in the vault, also when
		// nothing was written since the newest position.
		reached := newest.Time
		if ob.asOf.After(reached) {
			reached = ob.asOf
		}
		if ob.status.RPO = ob.at.Sub(reached); ob.status.RPO < 0 {
			if ob.status.RPO < -5*time.Second {
				seen.ClockSetBack = -ob.status.RPO
			}
			ob.status.RPO = 0
		}
	}
	if replicates(it.State) {
		ob.status.Mode = holdfast.Mode(ob.gateway.Mode)
		if !ob.reached || ob.gateway.Mode == "" {
			ob.status.Mode = holdfast.ModeDisconnected
		}
		ob.status.Backlog = ob.gateway.Backlog
	}
	if it.CopyAt(it.ActiveSite()).Handle != "" {
		st, err := c.targetStatus(ctx, it)
		if err == nil {
			ob.recovery, ob.status.NeedsView, seen.NeedsView = &st, st.NeedsView, st.NeedsView
		}
		if (errors.Is(err, provider.ErrNotFound) || err == nil && st.Power == provider.PowerOff) && c.recoveredGone(ctx, it) {
			seen.MachineGone = "machine " + it.CopyAt(it.ActiveSite()).Name + " is not at its site any more"
			ob.status.NeedsView, seen.NeedsView = false, false
		}
	}
	c.mu.Lock()
	it.Status = c.observed[it.ID].status
	c.mu.Unlock()
	old := it.Status.Findings
	it.Status = ob.status
	it.Status.Findings = old
	ob.status.Findings = it.Assess(seen, ob.at)
}

// recoveredGone says whether the machine that an item was failed over to is not
// there any more.
func (c *Orchestrator) recoveredGone(ctx context.Context, it holdfast.Item) bool {
	if it.RecoveryPoint == nil || it.CurrentJob != "" || it.State == holdfast.StateChangingPointFailed || it.State == holdfast.StateFailoverFailed {
		return false // it is about to be made or removed, or a job that failed has removed it
	}
	err := c.withSite(ctx, it.ActiveSite(), func(_ holdfast.Site, s *provider.Site) error {
		if s.Inventory == nil {
			return nil
		}
		_, err := s.Inventory.Machine(ctx, it.CopyAt(it.ActiveSite()).MachineID)
		return err
	})
	return errors.Is(err, provider.ErrNotFound)
}

// applyReady moves an item to protected once it can be recovered.
func (c *Orchestrator) applyReady(ctx context.Context, id string, ob observation) error {
	if !ob.ready() {
		return nil
	}
	it, err := c.opts.Store.Item(ctx, id)
	if err != nil || it.State != holdfast.StateInitialReplication {
		return err
	}
	_, err = c.updateItem(ctx, id, func(i holdfast.Item) (holdfast.Item, error) {
		if i.State != holdfast.StateInitialReplication {
			return i, nil
		}
		return i.After(holdfast.OutcomeReady)
	})
	return err
}

// tend starts what has to be done for an item without being asked.
func (c *Orchestrator) tend(ctx context.Context, it holdfast.Item, ob observation) {
	c.scheduleAppPoint(ctx, it, ob)
	c.restoreLater(ctx, it)
	if ob.reached {
		c.scheduleDisks(ctx, it.ID)
	}
	handle := it.CopyAt(it.ActiveSite()).Handle
	if handle == "" || it.RecoveryPoint == nil || it.CurrentJob != "" && it.State != holdfast.StateReprotecting || ob.recovery == nil {
		return
	}
	if !ob.recovery.NeedsView {
		if err := c.dropView(it, handle); err != nil {
			c.log.Warn("view is not closed", "item", it.Name, "error", err)
		}
		return
	}
	if err := c.serveView(ctx, it, handle, *it.RecoveryPoint); err != nil {
		c.log.Error("view is not served", "item", it.Name, "error", err)
		return
	}
	if ob.recovery.Power != provider.PowerRunning {
		return
	}
	_, err := c.engine.Submit(ctx, kindHydrate, "hydrate/"+handle, itemInput{Item: it.ID})
	if err != nil && !errors.Is(err, job.ErrBusy) {
		c.log.Error("hydration is not started", "item", it.Name, "error", err)
	}
}

// tooLate says whether an item's job can no longer be cancelled.
func (c *Orchestrator) tooLate(ctx context.Context, it holdfast.Item) bool {
	if it.CurrentJob == "" {
		return false
	}
	j, err := c.engine.Get(ctx, it.CurrentJob)
	return err == nil && !j.Cancellable() && j.Cancel == nil
}

// lastObserved returns what was seen of an item last.
func (c *Orchestrator) lastObserved(id string) observation {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.observed[id]
}
