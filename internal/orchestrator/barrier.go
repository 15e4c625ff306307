package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/gateway"
)

// holdBound is for how long machines at several gateways are held at most while
// they are marked: so long their guests wait for their writes. It is mostly over
// after two round trips.
const holdBound = 500 * time.Millisecond

// markGroup makes a point of items that is one moment for all, and returns a time
// of it by the clock of the first item's gateway.
func (c *Orchestrator) markGroup(ctx context.Context, items []holdfast.Item, in pointInput, group string, consistency holdfast.Consistency) (time.Time, error) {
	by := map[string][]string{} // ids of items by their gateways
	first := ""
	for i, it := range items {
		site, err := c.opts.Store.Site(ctx, it.ActiveSite())
		if err != nil {
			return time.Time{}, err
		}
		if by[site.Gateway] = append(by[site.Gateway], it.ID); i == 0 {
			first = site.Gateway
		}
	}
	if len(by) > 1 {
		return c.markHeld(ctx, by, first, gateway.HeldMark{ID: newID("hold"), Name: in.Name, Group: group, Consistency: consistency})
	}
	g, err := c.gatewayAt(first)
	if err != nil {
		return time.Time{}, err
	}
	out, err := g.GroupPoint(ctx, gateway.GroupPoint{Items: by[first], Name: in.Name, Group: group, Consistency: consistency})
	return out.Time, err
}

// markHeld makes a point of items at several gateways, in two phases: every gateway
// holds its items, and once all of them do, each is marked, unless its hold has
// ended meanwhile. Then all are released. At the moment in which the last began to
// hold no item took a write, and none did until it was marked: so if all were
// marked, all marks are that moment, and if not all were, nobody takes the rest for
// a point of the group.
func (c *Orchestrator) markHeld(ctx context.Context, by map[string][]string, first string, mark gateway.HeldMark) (at time.Time, err error) {
	gateways := map[string]Gateway{}
	for address := range by {
		g, err := c.gatewayAt(address)
		if err != nil {
			return at, err
		}
		gateways[address] = g
	}
	defer func() {
		rest, cancel := context.WithTimeout(context.WithoutCancel(ctx), holdBound)
		defer cancel()
		// Whom that does not reach lets go by itself.
		_ = eachGateway(rest, gateways, func(ctx context.Context, _ string, g Gateway) error { return g.Release(ctx, mark.ID) })
	}()
	began := time.Now()
	bound, cancel := context.WithTimeoutCause(ctx, holdBound, fmt.Errorf("that took longer than %s, for which guests may be held", holdBound))
	defer cancel()
	var mu sync.Mutex
	err = eachGateway(bound, gateways, func(ctx context.Context, address string, g Gateway) error {
		return g.Hold(ctx, gateway.Hold{ID: mark.ID, Items: by[address], Bound: holdBound})
	})
	if err != nil {
		return at, fmt.Errorf("hold the machines at all gateways: %w", err)
	}
	err = eachGateway(bound, gateways, func(ctx context.Context, address string, g Gateway) error {
		out, err := g.MarkHeld(ctx, mark)
		if mu.Lock(); address == first {
			at = out.Time
		}
		mu.Unlock()
		return err
	})
	if err != nil {
		return at, fmt.Errorf("mark the machines at all gateways while all are held: %w", err)
	}
	c.log.Debug("machines at several gateways were marked", "gateways", len(gateways), "held", time.Since(began))
	return at, nil
}

// eachGateway does something with all gateways at once.
func eachGateway(ctx context.Context, gateways map[string]Gateway, f func(context.Context, string, Gateway) error) error {
	var mu sync.Mutex
	var wrong []error
	wait := new(errgroup.Group)
	for _, address := range slices.Sorted(maps.Keys(gateways)) {
		wait.Go(func() error {
			if err := f(ctx, address, gateways[address]); err != nil {
				if ctx.Err() != nil {
					err = context.Cause(ctx)
				}
				mu.Lock()
				defer mu.Unlock()
				wrong = append(wrong, fmt.Errorf("gateway %s: %w", gatewayName(address), err))
			}
			return nil
		})
	}
	_ = wait.Wait() // never fails
	return errors.Join(wrong...)
}

func gatewayName(address string) string {
	if address == "" {
		return "of the server"
	}
	return address
}

// barrierEvery is how often it is done, if no policy wants it more often.
const barrierEvery = time.Minute

// scheduleBarrier makes a point of an item's group, if that replicates through
// several gateways: the group has no other moments in common. The first member by
// name looks after it.
func (c *Orchestrator) scheduleBarrier(ctx context.Context, items []holdfast.Item) {
	key, every := "barrier/"+items[0].Group, barrierEvery
	addresses := map[string]bool{}
	for _, m := range items {
		site, err := c.opts.Store.Site(ctx, m.ActiveSite())
		if err != nil || m.State != holdfast.StateProtected || m.CurrentJob != "" {
			return
		}
		addresses[site.Gateway] = true
		every = min(every, m.Policy.WithDefaults().PointInterval)
	}
	c.mu.Lock()
	due := len(addresses) > 1 && c.now().Sub(c.appPoints[key].at) >= every
	c.mu.Unlock()
	if !due {
		return
	}
	c.noteAppPoint(key, "") // whatever comes of it: the next is due later
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if _, err := c.markGroup(ctx, items, pointInput{}, newID("group"), holdfast.ConsistencyCrash); err != nil {
		c.log.Warn("point of group is not made", "group", items[0].Group, "error", err)
		c.noteAppPoint(key, err.Error())
	}
}
