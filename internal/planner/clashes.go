package planner

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/plan"
)

// clashes finds addresses that a run would give to machines and that something
// else has: another item's machine, or whatever answers them now. A machine's own
// address, which it keeps, is no clash.
func (p *Planner) clashes(ctx context.Context, in runInput, pl *plan.Plan, members []member) []api.Finding {
	if in.Kind != plan.Test && (!in.Kind.Moves() || in.Direction != plan.ToRecovery) {
		return nil
	}
	items, err := p.opts.Items.ListItems(ctx)
	if err != nil {
		return []api.Finding{found(holdfast.SeverityWarning, "addresses of other items are not known: "+err.Error(), "Check again")}
	}
	var mu sync.Mutex
	var out []api.Finding
	wait := new(errgroup.Group)
	wait.SetLimit(pl.Bounded())
	for _, m := range members {
		if m.Fate != memberGo {
			continue
		}
		for _, a := range fixed(m.Machine, in.Kind) {
			wait.Go(func() error {
				if who := p.hasAddress(ctx, m, a, items, in.Kind != plan.Test || m.Machine.TestNetwork != "" || len(pl.Mapping(plan.Test)) > 0); who != "" {
					mu.Lock()
					defer mu.Unlock()
					out = append(out, found(holdfast.SeverityCritical, fmt.Sprintf("%s would be given %s, which %s", m.Item, a, who), "Give it another address, or take that one away there"))
				}
				return nil
			})
		}
	}
	_ = wait.Wait() // never fails
	slices.SortFunc(out, func(a, b api.Finding) int { return strings.Compare(a.Summary, b.Summary) })
	return out
}

// hasAddress says who has an address already, "" if nobody is known to. A machine
// that has no way out is in nobody's way.
func (p *Planner) hasAddress(ctx context.Context, m member, a netip.Addr, items []api.Item, out bool) string {
	if !out {
		return ""
	}
	for _, it := range items {
		if it.ID != m.ID && it.Recovery != nil && slices.Contains(it.Recovery.Addresses, a.String()) {
			return "item " + it.Name + " has at " + it.ActiveSite
		}
	}
	if !answers(ctx, a.String()) {
		return ""
	}
	if p.opts.Guests != nil {
		if own, err := p.opts.Guests.GuestAddresses(ctx, m.ID, ""); err == nil && slices.Contains(own, a.String()) {
			return ""
		}
	}
	return "answers already"
}

// answers says whether an address answers a ping from here.
func answers(ctx context.Context, address string) bool {
	return exec.CommandContext(ctx, "ping", "-n", "-c", "1", "-W", "1", "--", address).Run() == nil
}

// fixed are the addresses that a machine is given in a run.
func fixed(m plan.Machine, k plan.Kind) (out []netip.Addr) {
	for _, n := range m.Cards(k) {
		for _, a := range n.Address {
			if p, err := netip.ParsePrefix(a); err == nil {
				out = append(out, p.Addr())
			}
		}
	}
	return out
}
