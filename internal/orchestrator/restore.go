package orchestrator

import (
	"context"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/provider"
)

// restoreEvery is how often it is tried again to give the guest of a machine that
// is home its own addresses, restoreWait for how long its agent is waited for.
const (
	restoreEvery = time.Minute
	restoreWait  = 10 * time.Second
)

// restoreLater gives the guest of a machine that is home its own addresses, if
// that did not succeed when it was brought home.
func (c *Orchestrator) restoreLater(ctx context.Context, it holdfast.Item) {
	if !it.AddressesLeft() || it.CurrentJob != "" {
		return
	}
	c.mu.Lock()
	due := c.now().Sub(c.restored[it.ID]) >= restoreEvery
	if due {
		c.restored[it.ID] = c.now()
	}
	c.mu.Unlock()
	if !due {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, restoreWait)
	defer cancel()
	err := c.withGuest(ctx, it.ID, "", func(a provider.Agent, machine string) error {
		if err := a.Ping(ctx, machine); err != nil {
			return err
		}
		_, err := provider.RestoreAddresses(ctx, a, machine)
		return err
	})
	if err != nil {
		c.log.Info("guest is not given its own addresses again", "item", it.Name, "error", err)
		return
	}
	_, err = c.updateItem(ctx, it.ID, func(i holdfast.Item) (holdfast.Item, error) {
		if i.AddressesLeft() && i.CurrentJob == "" {
			i.Addressing = holdfast.Addressing{}
		}
		return i, nil
	})
	if err != nil {
		c.log.Warn("guest has its own addresses again, which is not recorded", "item", it.Name, "error", err)
	}
}
