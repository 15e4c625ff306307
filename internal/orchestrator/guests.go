package orchestrator

import (
	"context"
	"fmt"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/provider"
)

// RunInGuest runs a command in an item's machine where it works, or in that of a
// test failover, whose handle is given, through the guest agent, and returns what
// it said. It fails if the command ends with anything but 0.
func (c *Orchestrator) RunInGuest(ctx context.Context, item, test string, command []string, input []byte) (output string, err error) {
	err = c.withGuest(ctx, item, test, func(a provider.Agent, machine string) error {
		res, err := provider.RunInGuest(ctx, a, machine, provider.GuestCommand{Path: command[0], Args: command[1:], Input: input})
		output = string(res.Stdout) + string(res.Stderr)
		switch {
		case err != nil:
			return err
		case res.Signal != 0:
			return fmt.Errorf("%s was ended by signal %d", command[0], res.Signal)
		case res.ExitCode != 0:
			return fmt.Errorf("%s ended with %d", command[0], res.ExitCode)
		}
		return nil
	})
	return output, err
}

// PingGuest returns nil if the guest agent of such a machine answers.
func (c *Orchestrator) PingGuest(ctx context.Context, item, test string) error {
	return c.withGuest(ctx, item, test, func(a provider.Agent, machine string) error { return a.Ping(ctx, machine) })
}

// GuestAddresses returns the addresses of such a machine as its guest agent sees
// them, without those that mean nothing outside of it.
func (c *Orchestrator) GuestAddresses(ctx context.Context, item, test string) (out []string, err error) {
	err = c.withGuest(ctx, item, test, func(a provider.Agent, machine string) error {
		nics, err := provider.GuestNICs(ctx, a, machine)
		for _, n := range nics {
			for _, p := range n.Addresses {
				if !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
					out = append(out, p.Addr().String())
				}
			}
		}
		return err
	})
	return out, err
}

// withGuest finds the agents of the site where a machine is, and its id there.
func (c *Orchestrator) withGuest(ctx context.Context, item, test string, f func(provider.Agent, string) error) error {
	it, err := c.opts.Store.Item(ctx, item)
	if err != nil {
		return err
	}
	at, machine := it.ActiveSite(), it.CopyAt(it.ActiveSite()).MachineID
	if test != "" {
		t, ok := testOf(it, test)
		if !ok {
			return &holdfast.Error{Kind: holdfast.KindNotFound, Op: "find test machine of", Thing: it.Name, Cause: "it was taken away"}
		}
		at, machine = t.Site, t.MachineID
	}
	return c.withSite(ctx, at, func(site holdfast.Site, s *provider.Site) error {
		if s.Agent == nil {
			return &holdfast.Error{Kind: holdfast.KindInvalid, Op: "reach guest of", Thing: it.Name, Cause: "the provider of site " + site.Name + " cannot reach guest agents"}
		}
		return f(s.Agent, machine)
	})
}
