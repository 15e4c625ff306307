package orchestrator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/provider"
)

// addressWait is for how long a guest may take until its agent answers and its
// cards have their addresses.
const addressWait = 5 * time.Minute

// addressing translates what was asked for.
func addressing(a api.Addressing) holdfast.Addressing {
	out := holdfast.Addressing{By: holdfast.AddressingBy(a.By)}
	for _, n := range a.NICs {
		out.NICs = append(out.NICs, holdfast.NIC{Card: n.Card, Addresses: n.Addresses, Gateways: n.Gateways, DNS: n.DNS})
	}
	return out
}

// addressingOf returns the addressing with the cards of an item's machine.
func addressingOf(it holdfast.Item, a holdfast.Addressing) (holdfast.Addressing, error) {
	if len(a.NICs) == 0 {
		return a, nil
	}
	if err := a.Validate(); err != nil {
		return a, err
	}
	var m provider.Machine
	if err := json.Unmarshal(it.Machine, &m); err != nil {
		return a, fmt.Errorf("decode description of machine %s: %w", it.MachineName, err)
	}
	var cards []holdfast.Card
	for _, n := range m.NICs {
		cards = append(cards, holdfast.Card{MAC: n.MAC, Network: n.Network})
	}
	return a.For(cards)
}

// checkAddressing fails if a machine could not be given addresses at a site.
func checkAddressing(it holdfast.Item, a holdfast.Addressing, site holdfast.Site, s *provider.Site) error {
	if _, err := addressingOf(it, a); err != nil {
		return err
	}
	if len(a.NICs) > 0 && a.By != holdfast.ByCloudInit && s.Agent == nil {
		return &holdfast.Error{Kind: holdfast.KindInvalid, Op: "give addresses at site", Thing: site.Name, Cause: "its provider reaches no guest agents",
			Hint: "Have cloud-init do it, or leave addresses out"}
	}
	return nil
}

// seed returns what cloud-init in a recovered machine is told, nil if nothing.
func seed(a holdfast.Addressing, handle, name string) *provider.Seed {
	if a.By != holdfast.ByCloudInit || len(a.NICs) == 0 {
		return nil
	}
	return &provider.Seed{Instance: handle, Host: name, NICs: a.NICs}
}

// failoverAddresses gives the cards of the machine that was brought up the
// addresses that were asked for; at home, those that it had.
func (c *Orchestrator) failoverAddresses(ctx context.Context, r *failoverRun) error {
	home := r.in.To == r.item.PrimarySite
	given := r.in.Addressing
	switch {
	case home && len(r.item.Addressing.NICs) == 0, !home && len(given.NICs) == 0:
		return job.Skip("the guest addresses its cards by itself")
	case home && r.item.Addressing.By == holdfast.ByCloudInit:
		r.Warn("the addresses that cloud-init was given at the other site may still be set in the guest: look at them, and give it its own")
		r.st.Restored = true
		return nil
	case !home && given.By == holdfast.ByCloudInit:
		return job.Skip("cloud-init in the guest does it")
	}
	given, err := addressingOf(r.item, given)
	if err != nil {
		return err
	}
	err = c.withSite(ctx, r.in.To, func(site holdfast.Site, s *provider.Site) error {
		return giveAddresses(ctx, r.Step, guestAt{site, s, r.st.MachineID}, given.NICs)
	})
	if err == nil && home {
		r.st.Restored = true
	}
	return err
}

// testAddresses does that for a test machine.
func (c *Orchestrator) testAddresses(ctx context.Context, r *testRun) error {
	given, err := addressingOf(r.item, r.in.Addressing)
	switch {
	case err != nil:
		return err
	case len(given.NICs) == 0:
		return job.Skip("the guest addresses its cards by itself")
	case given.By == holdfast.ByCloudInit:
		return job.Skip("cloud-init in the guest does it")
	}
	return c.withSite(ctx, r.test.Site, func(site holdfast.Site, s *provider.Site) error {
		return giveAddresses(ctx, r.Step, guestAt{site, s, r.test.MachineID}, given.NICs)
	})
}

// guestAt is a running machine.
type guestAt struct {
	site    holdfast.Site
	s       *provider.Site
	machine string
}

// giveAddresses waits for the guest's agent and has it set the addresses; with
// none, those that it has by itself.
func giveAddresses(ctx context.Context, step *job.Step, g guestAt, nics []holdfast.NIC) error {
	ctx, cancel := context.WithTimeoutCause(ctx, addressWait, fmt.Errorf("that took longer than %s", addressWait))
	defer cancel()
	fail := func(err error) error {
		return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "give addresses to machine at site", Thing: g.site.Name, Err: err,
			Hint: "The machine runs with the addresses that its guest gives it: look at it, and set them by hand"}
	}
	if g.s.Agent == nil {
		return fail(errors.New("its provider reaches no guest agents"))
	}
	step.Log("waiting for the guest agent")
	if err := untilFound(ctx, func(ctx context.Context) error { return g.s.Agent.Ping(ctx, g.machine) }); err != nil {
		return fail(err)
	}
	said, err := "", error(nil)
	if len(nics) > 0 {
		said, err = provider.SetAddresses(ctx, g.s.Agent, g.machine, nics)
	} else {
		said, err = provider.RestoreAddresses(ctx, g.s.Agent, g.machine)
	}
	if said != "" {
		step.Log("the guest says: " + said)
	}
	if err != nil {
		return fail(err)
	}
	return nil
}

// givenAddresses are the addresses that the guest of an item was given at the other
// site, while the machine works there.
func givenAddresses(it holdfast.Item) (out []string) {
	if it.ActiveSite() == it.PrimarySite {
		return nil
	}
	for _, a := range it.Addressing.Fixed() {
		out = append(out, a.String())
	}
	return out
}
