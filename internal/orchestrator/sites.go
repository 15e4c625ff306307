package orchestrator

import (
	"context"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/provider"
)

// askWait bounds how long a site may take to answer what is shown of it.
const askWait = 10 * time.Second

// ListSites returns all sites, sorted by name.
func (c *Orchestrator) ListSites(ctx context.Context) ([]api.Site, error) {
	sites, err := c.opts.Store.Sites(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]api.Site, len(sites))
	for i, s := range sites {
		if out[i], err = c.apiSite(ctx, s); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// GetSite returns one site.
func (c *Orchestrator) GetSite(ctx context.Context, idOrName string) (api.Site, error) {
	s, err := c.opts.Store.Site(ctx, idOrName)
	if err != nil {
		return api.Site{}, err
	}
	return c.apiSite(ctx, s)
}

// AddSite adds a site, after it was opened and has answered.
func (c *Orchestrator) AddSite(ctx context.Context, add api.AddSite) (api.Site, error) {
	if err := c.tryGateway(add); err != nil {
		return api.Site{}, err
	}
	ask, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	site, err := c.opts.OpenSite(ask, add.Provider, add.Settings)
	if err == nil && site.Inventory != nil {
		_, err = site.Inventory.Machines(ask)
	}
	if site != nil && site.Close != nil {
		defer site.Close()
	}
	if err != nil {
		return api.Site{}, &holdfast.Error{Kind: holdfast.KindInvalid, Op: "add site", Thing: add.Name, Err: err,
			Cause: "the site cannot be opened with these settings", Hint: "Check provider and settings; see the provider's page in docs/"}
	}
	s, err := c.opts.Store.CreateSite(ctx, holdfast.Site{
		ID: newID("site"), Name: add.Name, Provider: add.Provider, Settings: add.Settings, Gateway: add.Gateway,
		Record: holdfast.Record{CreatedAt: c.now(), UpdatedAt: c.now()},
	})
	if err != nil {
		return api.Site{}, err
	}
	c.publish(api.Event{Type: api.EventSiteChanged, Site: s.ID, Message: "site " + s.Name + " was added"})
	return c.apiSite(ctx, s)
}

func (c *Orchestrator) tryGateway(add api.AddSite) error {
	if _, err := c.opts.Gateway(add.Gateway); err != nil {
		return &holdfast.Error{Kind: holdfast.KindInvalid, Op: "add site", Thing: add.Name, Err: err,
			Hint: "Give the gateway's address as unix:PATH, or none for the server's own"}
	}
	return nil
}

// RemoveSite removes a site that no item needs.
func (c *Orchestrator) RemoveSite(ctx context.Context, idOrName string) error {
	s, err := c.opts.Store.Site(ctx, idOrName)
	if err != nil {
		return err
	}
	n, err := c.itemsAt(ctx, s.ID)
	if err != nil {
		return err
	}
	if n > 0 {
		return &holdfast.Error{Kind: holdfast.KindNotAllowed, Op: "remove site", Thing: s.Name,
			Cause: "replicated items need it", Hint: "Disable the protection of its items first; see holdfast item list"}
	}
	if err := c.opts.Store.DeleteSite(ctx, s.ID); err != nil {
		return err
	}
	c.publish(api.Event{Type: api.EventSiteChanged, Site: s.ID, Message: "site " + s.Name + " was removed"})
	return nil
}

func (c *Orchestrator) itemsAt(ctx context.Context, site string) (int, error) {
	items, err := c.opts.Store.Items(ctx)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, it := range items {
		if it.PrimarySite == site || it.RecoverySite == site {
			n++
		}
	}
	return n, nil
}

// apiSite shows a site, and whether it answers.
func (c *Orchestrator) apiSite(ctx context.Context, s holdfast.Site) (api.Site, error) {
	out := api.Site{ID: s.ID, Name: s.Name, Provider: s.Provider, Settings: s.Settings, Gateway: s.Gateway, CreatedAt: s.CreatedAt}
	var err error
	if out.Items, err = c.itemsAt(ctx, s.ID); err != nil {
		return out, err
	}
	ask, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	err = c.withSite(ask, s.ID, func(_ holdfast.Site, p *provider.Site) error {
		out.CanSource, out.CanTarget = p.Source != nil, p.Target != nil
		if p.Inventory == nil {
			return nil
		}
		_, err := p.Inventory.Networks(ask)
		return err
	})
	if out.Reachable = err == nil; err != nil {
		out.Problem = err.Error()
	}
	return out, nil
}

// ListMachines returns the machines of a site, or of all, sorted by name.
func (c *Orchestrator) ListMachines(ctx context.Context, site string) (api.MachineList, error) {
	list := api.MachineList{Machines: []api.Machine{}, Unreachable: []api.SiteProblem{}}
	sites, err := c.opts.Store.Sites(ctx)
	if site != "" {
		var one holdfast.Site
		one, err = c.opts.Store.Site(ctx, site)
		sites = []holdfast.Site{one}
	}
	if err != nil {
		return list, err
	}
	items, err := c.opts.Store.Items(ctx)
	if err != nil {
		return list, err
	}
	for _, s := range sites {
		machines, err := c.machinesOf(ctx, s)
		if err != nil && site != "" {
			return list, err
		}
		if err != nil {
			list.Unreachable = append(list.Unreachable, api.SiteProblem{Site: s.Name, Cause: err.Error(), Hint: holdfast.HintOf(err)})
			continue
		}
		for _, m := range machines {
			list.Machines = append(list.Machines, apiMachine(s, m, items))
		}
	}
	return list, nil
}

func (c *Orchestrator) machinesOf(ctx context.Context, s holdfast.Site) (machines []provider.Machine, err error) {
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	err = c.withSite(ctx, s.ID, func(_ holdfast.Site, p *provider.Site) error {
		if p.Inventory == nil {
			return nil
		}
		machines, err = p.Inventory.Machines(ctx)
		return err
	})
	return machines, err
}

func apiMachine(s holdfast.Site, m provider.Machine, items []holdfast.Item) api.Machine {
	out := api.Machine{
		ID: m.ID, Name: m.Name, Site: s.Name, Power: string(m.Power), CPUs: m.CPUs, Memory: m.Memory, Firmware: m.Firmware,
		Disks: []api.MachineDisk{}, Networks: []string{}, Obstacles: append([]string{}, m.Obstacles...),
	}
	for _, d := range m.Disks {
		out.Disks = append(out.Disks, api.MachineDisk{ID: d.ID, Size: d.Size, Format: d.Format, Boot: d.Boot})
	}
	for _, n := range m.NICs {
		out.Networks = append(out.Networks, n.Network)
	}
	for _, it := range items {
		if it.MachineID == m.ID && it.PrimarySite == s.ID {
			out.Protected, out.Item, out.ItemName = true, it.ID, it.Name
		}
	}
	return out
}
