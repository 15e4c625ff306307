package orchestrator

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// GetVault returns the vault's state.
func (c *Orchestrator) GetVault(ctx context.Context) (api.Vault, error) {
	v := c.opts.Vault
	out := api.Vault{
		ID: v.ID(), Location: c.opts.VaultLocation, FormatVersion: v.FormatVersion(), CreatedAt: v.CreatedAt(),
		Streams: []api.VaultStream{}, Health: api.Health{Level: api.HealthHealthy, Findings: []api.Finding{}},
	}
	if c.opts.VaultFree != nil {
		if free, err := c.opts.VaultFree(); err == nil {
			out.FreeBytes = &free
		}
	}
	if c.opts.VaultCopy != nil {
		state := c.opts.VaultCopy.State()
		out.Copy = &state
	}
	c.mu.Lock()
	out.LastVerify = c.verified.last
	damage := slices.Sorted(maps.Values(c.verified.damage))
	since := c.verified.at
	c.mu.Unlock()
	if len(damage) > 0 {
		out.Health.Level = api.HealthCritical
		out.Health.Findings = append(out.Health.Findings, apiFinding(holdfast.NewFinding(holdfast.CodeVaultDamaged, strings.Join(damage, "; "), since)))
	}
	items, err := c.opts.Store.Items(ctx)
	if err != nil {
		return out, err
	}
	ids, err := v.Streams(ctx)
	if err != nil {
		return out, vaultError("list streams of vault", c.opts.VaultLocation, err)
	}
	for _, id := range ids {
		vs, err := c.apiStream(ctx, id, items)
		if err != nil && holdfast.KindOf(err) != holdfast.KindCorrupt {
			return out, err
		}
		out.Bytes += vs.Bytes
		out.Streams = append(out.Streams, vs)
	}
	return out, nil
}

func (c *Orchestrator) apiStream(ctx context.Context, id holdfast.StreamID, items []holdfast.Item) (api.VaultStream, error) {
	out := api.VaultStream{ID: id.String()}
	for _, it := range items {
		if it.Stream == id {
			out.Item = it.Name
		}
	}
	s, err := c.stream(ctx, id)
	if err == nil {
		err = s.Refresh(ctx)
	}
	if err != nil && (s == nil || !errors.Is(err, vault.ErrCorrupt)) { // what lies before damage can be had
		return out, vaultError("read stream", id.String(), err)
	}
	out.Name, out.Bytes, out.Segments = s.Name(), s.StoredBytes(), s.SegmentCount()
	for _, tl := range s.Timelines() {
		out.Timelines++
		for _, r := range s.Ranges(tl.ID) {
			if out.Oldest.IsZero() || r.FromTime.Before(out.Oldest) {
				out.Oldest = r.FromTime
			}
			if r.ToTime.After(out.Newest) {
				out.Newest = r.ToTime
			}
		}
	}
	return out, nil
}

// vaultPatience is how long the vault may take to show that it is there.
const vaultPatience = 5 * time.Second

// CheckHealth returns how the server and its parts fare, from what is known.
func (c *Orchestrator) CheckHealth(ctx context.Context) api.ServerHealth {
	out := api.ServerHealth{Status: "ok"}
	add := func(name string, err error, advice string) {
		h := api.ComponentHealth{Name: name, Status: "ok"}
		if err != nil {
			h.Status, h.Detail, h.Advice = "down", err.Error(), advice
			out.Status = "degraded"
		}
		out.Components = append(out.Components, h)
	}
	_, err := c.opts.Store.Sites(ctx)
	add("store", err, "Check the server's state directory")
	ctx, cancel := context.WithTimeout(ctx, vaultPatience)
	defer cancel()
	add("vault", c.opts.Vault.Ping(ctx), "Check that the vault's directory is mounted, or that its object store can be reached")
	if c.opts.VaultCopy != nil {
		var err error
		if state := c.opts.VaultCopy.State(); state.Problem != "" {
			err = errors.New(state.Problem)
		}
		add("vault copy", err, "Check that the store of --vault-copy can be reached. Machines are protected meanwhile; what the copy lacks is copied when it is back")
	}
	return out
}
