package providertest

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/provider"
)

// has skips the test where the site lacks a role.
func (h Harness) has(t *testing.T, role string, has func(*provider.Site) bool) {
	t.Helper()
	s := h.Open(t)
	ok := has(s)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if !ok {
		t.Skip("the site has no " + role)
	}
}

func (h Harness) power(t *testing.T) {
	h.has(t, "Power", func(s *provider.Site) bool { return s.Power != nil })
	t.Run("unknown machine", h.powerUnknown)
	t.Run("own machine", func(t *testing.T) {
		if h.Victim == nil {
			t.Skip("the harness makes no machine to be killed")
		}
		ctx, site := h.open(t)
		id := h.Victim(t)
		h.guarding(ctx, t, id, site.Power.Start)
	})
	t.Run("recovered machine", func(t *testing.T) {
		h.has(t, "Target", func(s *provider.Site) bool { return s.Target != nil })
		ctx, rec := h.recover(t, 0)
		id := rec.mustDefine(ctx, t)
		if err := rec.site.Power.Start(ctx, id); err != nil {
			t.Fatalf("Start of a machine that was defined: %v", err)
		}
		if s := rec.mustStatus(ctx, t); s.Power != provider.PowerRunning {
			t.Errorf("status after Power.Start: %+v", s)
		}
		h.guarding(ctx, t, id, func(ctx context.Context, _ string) error { return rec.target.Start(ctx, rec.r.Handle) })
		if err := rec.site.Power.Guard(ctx, id, "to be removed"); err != nil {
			t.Fatal(err)
		}
		if err := rec.target.Remove(ctx, rec.r.Handle); err != nil {
			t.Fatal(err)
		}
		h.checkNothingLeft(t, rec.r.Handle)
		rec.mustDefine(ctx, t)
		rec.mustStart(ctx, t) // the guard went with the machine
	})
}

func (h Harness) powerUnknown(t *testing.T) {
	ctx, site := h.open(t)
	const id = "no-such-machine"
	_, guarded := site.Power.Guarded(ctx, id)
	for name, err := range map[string]error{
		"Start": site.Power.Start(ctx, id), "Guard": site.Power.Guard(ctx, id, "why"),
		"Unguard": site.Power.Unguard(ctx, id), "Guarded": guarded,
	} {
		if !errors.Is(err, provider.ErrNotFound) {
			t.Errorf("%s: %v, want ErrNotFound", name, err)
		}
	}
}

// guarding guards a running machine, takes its power away and tries to start it
// in all ways, also other, before and after the guard has ended.
func (h Harness) guarding(ctx context.Context, t *testing.T, id string, other func(context.Context, string) error) {
	t.Helper()
	site := h.Open(t)
	defer site.Close()
	starts := map[string]func() error{
		"Power.Start": func() error { return site.Power.Start(ctx, id) },
		"other start": func() error { return other(ctx, id) },
		"Power.Start of the site opened anew": func() error {
			again := h.Open(t)
			return errors.Join(again.Power.Start(ctx, id), again.Close())
		},
	}
	h.expectPower(ctx, t, site, id, provider.PowerRunning)
	h.expectGuard(ctx, t, id, "")
	for _, bad := range []string{"", "two\nlines"} {
		if err := site.Power.Guard(ctx, id, bad); err == nil {
			t.Errorf("Guard with the reason %q succeeded", bad)
		}
	}
	for _, reason := range []string{"first reason", `Holdfast: item "web" works at <site b> & 'c', see $HOME; ${x}`} {
		if err := site.Power.Guard(ctx, id, reason); err != nil {
			t.Fatalf("Guard: %v", err)
		}
		h.expectGuard(ctx, t, id, reason)
	}
	h.expectPower(ctx, t, site, id, provider.PowerRunning)
	if err := site.Power.Start(ctx, id); err != nil {
		t.Errorf("Start of a guarded machine that runs: %v, want none", err)
	}
	if err := site.Source.Kill(ctx, id); err != nil {
		t.Fatal(err)
	}
	for name, start := range starts {
		if err := start(); !errors.Is(err, provider.ErrGuarded) || !strings.Contains(err.Error(), "Holdfast: item") {
			t.Errorf("%s of a guarded machine: %v, want ErrGuarded with the reason", name, err)
		}
	}
	h.expectPower(ctx, t, site, id, provider.PowerOff)
	for range 2 {
		if err := site.Power.Unguard(ctx, id); err != nil {
			t.Fatalf("Unguard: %v", err)
		}
	}
	h.expectGuard(ctx, t, id, "")
	errs := make(chan error)
	for _, start := range starts {
		go func() { errs <- start() }()
	}
	for range starts {
		if err := <-errs; err != nil {
			t.Errorf("starts at the same time: %v", err)
		}
	}
	h.expectPower(ctx, t, site, id, provider.PowerRunning)
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if err := site.Power.Guard(gone, id, "cancelled"); !errors.Is(err, context.Canceled) {
		t.Errorf("Guard with a cancelled context: %v", err)
	}
}

func (h Harness) expectPower(ctx context.Context, t *testing.T, site *provider.Site, id string, want provider.PowerState) {
	t.Helper()
	if m, err := site.Inventory.Machine(ctx, id); err != nil || m.Power != want {
		t.Errorf("power is %s, %v, want %s", m.Power, err, want)
	}
}

// expectGuard asks the site opened anew: the guard must be durable.
func (h Harness) expectGuard(ctx context.Context, t *testing.T, id, want string) {
	t.Helper()
	site := h.Open(t)
	defer site.Close()
	if got, err := site.Power.Guarded(ctx, id); err != nil || got != want {
		t.Errorf("Guarded: %q, %v, want %q", got, err, want)
	}
}
