package orchestrator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/provider"
)

// CheckOperation says what an operation would do, from which recovery point, and
// what its checks find. It changes nothing.
func (c *Orchestrator) CheckOperation(ctx context.Context, idOrName string, req api.CheckOperation) (api.OperationCheck, error) {
	it, err := c.opts.Store.Item(ctx, idOrName)
	if err != nil {
		return api.OperationCheck{}, err
	}
	op := holdfast.Operation(req.Operation)
	if !slices.Contains(holdfast.Operations(), op) {
		return api.OperationCheck{}, &holdfast.Error{Kind: holdfast.KindInvalid, Op: "check operation", Thing: req.Operation, Cause: "there is no such operation"}
	}
	it.Status = c.observe(ctx, it).status
	it.Status.TooLate = c.tooLate(ctx, it)
	out := api.OperationCheck{Operation: req.Operation, Allowed: true, Steps: c.steps(op), Findings: []api.Finding{}}
	if err := it.Check(op); err != nil {
		var e *holdfast.Error
		if errors.As(err, &e) {
			out.Allowed, out.Reason, out.NextStep = false, e.Cause, e.Hint
		}
		return out, nil
	}
	find := func(severity holdfast.Severity, err error) {
		out.Findings = append(out.Findings, api.Finding{Severity: string(severity), Summary: err.Error(), Advice: holdfast.HintOf(err)})
	}
	in := completeFailover(it, failoverInput{Operation: op, Request: pointRequest(req.Option, req.Point, req.Timeline, req.Time), TargetName: req.Name, Network: req.Network, Networks: req.Networks,
		Addressing: addressing(req.Addressing)})
	if op == holdfast.OpTestFailover && req.Name == "" {
		in.TargetName = testName(it, newID("test"))
	}
	if needsPoint(op) {
		if err := c.checkPoint(ctx, it, in.Request, &out); err != nil {
			find(holdfast.SeverityCritical, err)
		}
		if site, err := c.opts.Store.Site(ctx, in.To); err == nil {
			out.Site = site.Name
		}
		out.MachineName = in.TargetName
		c.expectRTO(ctx, it, op, &out)
	}
	if err := c.checkSites(ctx, it, in); err != nil {
		find(holdfast.SeverityCritical, err)
	}
	if (op == holdfast.OpFailover || op == holdfast.OpPlannedFailover) && it.LastTest == nil {
		out.Findings = append(out.Findings, api.Finding{Severity: string(holdfast.SeverityWarning), Summary: "the item was never tested",
			Advice: "Run a test failover first, if there is time"})
	}
	for _, f := range out.Findings {
		if f.Severity == string(holdfast.SeverityCritical) && out.Reason == "" {
			out.Allowed, out.Reason, out.NextStep = false, f.Summary, f.Advice
		}
	}
	return out, nil
}

// needsPoint says of an operation that it brings a machine up.
func needsPoint(op holdfast.Operation) bool {
	switch op {
	case holdfast.OpFailover, holdfast.OpPlannedFailover, holdfast.OpFailback, holdfast.OpTestFailover, holdfast.OpChangePoint:
		return true
	}
	return false
}

// steps are the titles of what the operation's job does.
func (c *Orchestrator) steps(op holdfast.Operation) []string {
	steps := []string{}
	for _, k := range c.kinds {
		if k.Name != string(op) {
			continue
		}
		for _, t := range k.Tasks {
			steps = append(steps, t.Title)
		}
	}
	return steps
}

func (c *Orchestrator) checkPoint(ctx context.Context, it holdfast.Item, req holdfast.PointRequest, out *api.OperationCheck) error {
	h, err := c.historyFor(ctx, past(it), req)
	if err != nil {
		return err
	}
	res, err := holdfast.ResolvePoint(req, h)
	if err != nil {
		return err
	}
	p := apiPoint(res.Point)
	out.Point, out.Warning = &p, res.Warning
	rpo := res.Behind.Seconds()
	if newest, ok := h.Newest(); ok && newest.Position == res.Point.Position {
		rpo = it.Status.RPO.Seconds()
	}
	if it.Status.RPO > res.Behind {
		rpo = max(rpo, it.Status.RPO.Seconds())
	}
	out.RPOSeconds = &rpo
	return nil
}

// checkSites asks what the operation needs of the sites, as its job will.
func (c *Orchestrator) checkSites(ctx context.Context, it holdfast.Item, in failoverInput) error {
	ctx, cancel := context.WithTimeout(ctx, guardWait)
	defer cancel()
	switch in.Operation {
	case holdfast.OpFailover, holdfast.OpPlannedFailover, holdfast.OpFailback:
		r := &failoverRun{in: in, item: it}
		err := c.withSite(ctx, in.To, func(rec holdfast.Site, s *provider.Site) error { return c.checkTarget(ctx, r, rec, s) })
		if err != nil || in.Operation == holdfast.OpFailover {
			return err
		}
		return c.reachGateway(ctx, it)
	case holdfast.OpReprotect, holdfast.OpResync:
		return c.reachGateway(ctx, it)
	case holdfast.OpTestFailover:
		return c.withSite(ctx, in.To, func(site holdfast.Site, s *provider.Site) error {
			if s.Target == nil {
				return errors.New("the site's provider cannot run recovered machines")
			}
			return errors.Join(fitsAt(it, site, s), c.checkNetworks(ctx, s, site, in.Network, in.Networks), checkAddressing(it, in.Addressing, site, s), c.nameFree(ctx, s, site, in.TargetName))
		})
	}
	return nil
}

// expectRTO says how long it will take, from how long it took before.
func (c *Orchestrator) expectRTO(ctx context.Context, it holdfast.Item, op holdfast.Operation, out *api.OperationCheck) {
	for _, kind := range []string{string(op), kindTest, kindFailover} {
		jobs, err := c.engine.List(ctx, job.Filter{Kind: kind, State: job.Succeeded, Limit: 100})
		if err != nil {
			return
		}
		var took []time.Duration
		for _, j := range jobs {
			var of itemInput
			if json.Unmarshal(j.Input, &of) != nil || of.Item != it.ID || len(took) == 3 {
				continue
			}
			var res jobResult
			if json.Unmarshal(j.Result, &res) == nil && res.RTO != nil {
				took = append(took, time.Duration(*res.RTO*float64(time.Second)))
			}
		}
		if len(took) > 0 {
			slices.Sort(took)
			rto := took[len(took)/2].Seconds()
			out.ExpectedRTOSeconds = &rto
			out.Basis = fmt.Sprintf("the last %d of kind %s", len(took), kind)
			return
		}
	}
}
