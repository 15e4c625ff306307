package orchestrator

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/provider"
)

// ListItems returns all items, sorted by name.
func (c *Orchestrator) ListItems(ctx context.Context) ([]api.Item, error) {
	items, err := c.opts.Store.Items(ctx)
	if err != nil {
		return nil, err
	}
	names, err := c.siteNames(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]api.Item, len(items))
	for i, it := range items {
		out[i] = c.apiItem(ctx, it, names)
	}
	return out, nil
}

// GetItem returns one item, looked at anew.
func (c *Orchestrator) GetItem(ctx context.Context, idOrName string) (api.Item, error) {
	it, err := c.opts.Store.Item(ctx, idOrName)
	if err != nil {
		return api.Item{}, err
	}
	names, err := c.siteNames(ctx)
	if err != nil {
		return api.Item{}, err
	}
	c.observe(ctx, it)
	return c.apiItem(ctx, it, names), nil
}

// ListPoints returns what an item can be recovered to, newest first.
func (c *Orchestrator) ListPoints(ctx context.Context, idOrName string) (api.Points, error) {
	it, err := c.opts.Store.Item(ctx, idOrName)
	if err != nil {
		return api.Points{}, err
	}
	out := api.Points{Item: it.ID, Points: []api.Point{}, Ranges: []api.PointRange{}}
	if it.State == holdfast.StateEnabling || it.State == holdfast.StateEnablingFailed {
		return out, nil
	}
	h, err := c.history(ctx, past(it))
	if err != nil {
		return out, err
	}
	if newest, ok := h.Newest(); ok {
		p := apiPoint(newest)
		out.Newest = &p
	}
	for _, p := range slices.Backward(h.Points) {
		shown := apiPoint(p)
		shown.Pinned = pinned(it, p)
		out.Points = append(out.Points, shown)
	}
	for _, r := range slices.Backward(h.Ranges) {
		out.Ranges = append(out.Ranges, api.PointRange{
			Timeline: uint32(r.Timeline), From: r.From.String(), To: r.To.String(), FromTime: r.FromTime, ToTime: r.ToTime,
		})
	}
	return out, nil
}

// siteNames maps ids of sites to their names.
func (c *Orchestrator) siteNames(ctx context.Context) (map[string]string, error) {
	sites, err := c.opts.Store.Sites(ctx)
	if err != nil {
		return nil, err
	}
	names := map[string]string{}
	for _, s := range sites {
		names[s.ID] = s.Name
	}
	return names, nil
}

// apiItem shows an item with what was observed of it last.
func (c *Orchestrator) apiItem(ctx context.Context, it holdfast.Item, sites map[string]string) api.Item {
	ob := c.lastObserved(it.ID)
	it.Status = ob.status
	it.Status.TooLate = c.tooLate(ctx, it)
	out := api.Item{
		ID: it.ID, Name: it.Name, Machine: api.MachineRef{ID: it.MachineID, Name: it.MachineName, Disks: []api.MachineDisk{}},
		PrimarySite: sites[it.PrimarySite], RecoverySite: sites[it.RecoverySite], ActiveSite: sites[it.ActiveSite()],
		State: string(it.State), Direction: string(it.Direction), Policy: apiPolicy(it.Policy),
		Health:     api.Health{Level: string(it.Health()), Findings: []api.Finding{}},
		Stream:     api.ItemStream{ID: it.Stream.String(), Timeline: uint32(it.Timeline), Generation: uint32(it.Generation), Hold: apiHold(it.Hold)},
		CurrentJob: it.CurrentJob, Group: it.Group, Version: it.Version, CreatedAt: it.CreatedAt, Allowed: []string{}, Blocked: []api.BlockedOperation{},
	}
	for _, d := range it.Disks {
		out.Machine.Disks = append(out.Machine.Disks, api.MachineDisk{ID: d.ID, Size: d.Size, Boot: d.Boot})
	}
	for _, f := range it.Status.Findings {
		out.Health.Findings = append(out.Health.Findings, apiFinding(f))
	}
	for _, a := range it.Allowed() {
		if a.Allowed {
			out.Allowed = append(out.Allowed, string(a.Operation))
			continue
		}
		out.Blocked = append(out.Blocked, api.BlockedOperation{Operation: string(a.Operation), Reason: a.Reason, NextStep: a.Advice, Missing: !a.Operation.Available()})
	}
	if replicates(it.State) {
		out.Replication = apiReplication(it, ob)
	}
	c.apiTests(it, sites, &out)
	if it.RecoveryPoint != nil {
		out.Recovery = c.apiRecovery(ctx, it, ob, sites)
	}
	return out
}

// apiTests shows the test failovers of an item.
func (c *Orchestrator) apiTests(it holdfast.Item, sites map[string]string, out *api.Item) {
	out.Test = api.ItemTest{State: string(it.TestState()), Open: []api.Test{}}
	for _, t := range it.Tests {
		shown := api.Test{Name: t.Name, Handle: t.Handle, State: string(t.State), Site: sites[t.Site], Network: t.Network, Job: t.Job,
			StartedAt: t.StartedAt, Verified: t.Verified}
		if t.Point.Position != 0 {
			p := apiPoint(t.Point)
			shown.Point = &p
		}
		if t.Ready > 0 {
			s := t.Ready.Seconds()
			shown.ReadySeconds = &s
		}
		out.Test.Open = append(out.Test.Open, shown)
	}
	if l := it.LastTest; l != nil {
		p := apiPoint(l.Point)
		out.Test.Last = &api.LastTest{At: l.At, Passed: l.Passed, Point: &p, ReadySeconds: l.Ready.Seconds(), Note: l.Note, Job: l.Job, SuccessAt: l.Success}
	}
}

// withDetail adds what is known of an occurrence to the cause of its kind.
func withDetail(cause, detail string) string {
	if detail == "" {
		return cause
	}
	return cause + ": " + detail
}

func apiReplication(it holdfast.Item, ob observation) *api.Replication {
	r := &api.Replication{
		Mode: string(ob.status.Mode), Disks: []api.DiskSync{}, BacklogBytes: ob.status.Backlog,
		ReceivedBytes: ob.gateway.Counts.Received, StoredBytes: ob.stored, SentBytes: ob.gateway.Counts.Stored,
		LastReceivedAt: ob.gateway.AsOf, Comparison: apiComparison(ob.gateway.Scrub),
	}
	var left, rate float64
	for _, d := range ob.gateway.Disks {
		r.Disks = append(r.Disks, api.DiskSync{ID: d.ID, Done: d.Done, Total: d.Total})
		rate += d.Rate
		left += float64(d.Total - d.Done)
	}
	r.Rate = rate
	if rate > 0 && left > 0 {
		eta := left / rate
		r.ETASeconds = &eta
	}
	if p := ob.status.Newest; p != nil {
		rpo := ob.status.RPO.Seconds()
		r.RPOSeconds = &rpo
		r.Newest = &api.StreamMoment{Timeline: uint32(it.Timeline), Position: p.Position.String(), Time: p.Time}
	}
	return r
}

func (c *Orchestrator) apiRecovery(ctx context.Context, it holdfast.Item, ob observation, sites map[string]string) *api.Recovery {
	up := it.CopyAt(it.ActiveSite())
	out := &api.Recovery{Site: sites[it.ActiveSite()], MachineID: up.MachineID, MachineName: up.Name, Power: string(provider.PowerUnknown), Point: apiPoint(*it.RecoveryPoint), NeedsView: up.Handle != "", Addresses: givenAddresses(it)}
	if st := ob.recovery; st != nil {
		out.Power, out.MachineID, out.StartedAt = string(st.Power), st.MachineID, st.StartedAt
		out.HydratedBytes, out.TotalBytes, out.NeedsView = st.Hydrated, st.Total, st.NeedsView
	}
	// The last failover's own figures are in its job.
	var last job.Job
	for _, kind := range []holdfast.Operation{holdfast.OpFailover, holdfast.OpPlannedFailover, holdfast.OpFailback, holdfast.OpChangePoint} {
		jobs, err := c.engine.List(ctx, job.Filter{Subject: it.ID, Kind: string(kind), State: job.Succeeded, Limit: 1})
		if err == nil && len(jobs) == 1 && jobs[0].CreatedAt.After(last.CreatedAt) {
			last = jobs[0]
		}
	}
	var res jobResult
	if len(last.Result) > 0 && json.Unmarshal(last.Result, &res) == nil {
		out.RPOSeconds, out.RTOSeconds = res.RPO, res.RTO
	}
	return out
}

func apiPoint(p holdfast.RecoveryPoint) api.Point {
	return api.Point{ID: p.ID, Name: p.Name, Timeline: uint32(p.Timeline), Position: p.Position.String(), Time: p.Time, Consistency: string(p.Consistency)}
}

func apiPolicy(p holdfast.Policy) api.Policy {
	p = p.WithDefaults()
	return api.Policy{
		RPOThreshold: int64(p.RPOThreshold / time.Second), PointInterval: int64(p.PointInterval / time.Second),
		AppPointInterval: max(0, int64(p.AppPointInterval/time.Second)),
		HistoryWindow:    int64(p.Retention.Window / time.Second), Tiers: apiTiers(p.Retention.Tiers),
	}
}

func apiTiers(tiers []holdfast.Tier) []api.Tier {
	var out []api.Tier
	for _, t := range tiers {
		out = append(out, api.Tier{Every: int64(t.Every / time.Second), Until: int64(t.Until / time.Second)})
	}
	return out
}

func apiHold(h *holdfast.Hold) *api.Hold {
	if h == nil {
		return nil
	}
	return &api.Hold{Reason: h.Reason, By: h.By, Since: h.Since}
}

// policyOf reads a policy as it was asked for.
func policyOf(p api.Policy) holdfast.Policy {
	out := holdfast.Policy{RPOThreshold: time.Duration(p.RPOThreshold) * time.Second, PointInterval: time.Duration(p.PointInterval) * time.Second,
		AppPointInterval: time.Duration(p.AppPointInterval) * time.Second}
	out.Retention.Window = time.Duration(p.HistoryWindow) * time.Second
	for _, t := range p.Tiers {
		out.Retention.Tiers = append(out.Retention.Tiers, holdfast.Tier{Every: time.Duration(t.Every) * time.Second, Until: time.Duration(t.Until) * time.Second})
	}
	return out.WithDefaults()
}

func apiFinding(f holdfast.Finding) api.Finding {
	return api.Finding{Code: string(f.Code), Severity: string(f.Severity), Summary: f.Summary, Cause: withDetail(f.Cause, f.Detail), Advice: f.Advice, Since: f.Since}
}
