package orchestrator

import (
	"context"
	"errors"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/script"
)

// RunScript runs a script on the host of a site's gateway, and returns what it said.
// It is killed when ctx ends.
func (c *Orchestrator) RunScript(ctx context.Context, site string, call script.Call) (string, error) {
	g, at, err := c.siteGateway(ctx, site)
	if err != nil {
		return "", err
	}
	out, err := g.RunScript(ctx, call)
	if err == nil && out.Failed != "" {
		return out.Output, errors.New(out.Failed)
	}
	if err != nil {
		return "", &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "run script " + call.Path + " at site", Thing: at.Name, Err: err, Hint: "Check that holdfast gateway runs there"}
	}
	return out.Output, nil
}

// CheckScript says whether a script could be run there.
func (c *Orchestrator) CheckScript(ctx context.Context, site string, call script.Call) error {
	g, _, err := c.siteGateway(ctx, site)
	if err != nil {
		return err
	}
	return g.CheckScript(ctx, call)
}

func (c *Orchestrator) siteGateway(ctx context.Context, idOrName string) (Gateway, holdfast.Site, error) {
	site, err := c.opts.Store.Site(ctx, idOrName)
	if err != nil {
		return nil, site, err
	}
	g, err := c.gatewayAt(site.Gateway)
	return g, site, err
}
