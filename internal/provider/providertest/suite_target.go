package providertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/provider"
)

// recovery is one recovered machine of the suite with its views.
type recovery struct {
	h      Harness
	r      provider.Recovered
	views  map[string]*View
	target provider.Target
	site   *provider.Site
}

// recover prepares a recovery of the harness's machine, not yet defined, and
// removes whatever becomes of it at the end of the test.
func (h Harness) recover(t *testing.T, bytesPerSecond int64) (context.Context, *recovery) {
	t.Helper()
	ctx, site := h.open(t)
	m := h.Machine
	if m == nil {
		running, err := site.Inventory.Machine(ctx, h.Running)
		if err != nil {
			t.Fatal(err)
		}
		m = &running
	}
	name := strings.NewReplacer("/", "-", " ", "-", "_", "-").Replace(t.Name())
	rec := &recovery{h: h, views: map[string]*View{}, target: site.Target, site: site}
	rec.r = provider.Recovered{Handle: "suite-" + strings.ToLower(name), Name: "recovered-" + name, Machine: *m, Isolated: true,
		Seed: &provider.Seed{Instance: "suite-" + strings.ToLower(name), Host: "recovered", NICs: []holdfast.NIC{{Card: "52:54:00:12:34:56", Addresses: []string{"10.8.0.12/24"}}}}}
	for i, d := range m.Disks {
		v := h.View(t, ServeOptions{DiskID: d.ID, Size: h.DiskSize, Seed: uint64(i + 1), BytesPerSecond: bytesPerSecond})
		rec.views[d.ID] = v
		rec.r.Disks = append(rec.r.Disks, v.Source)
	}
	t.Cleanup(func() {
		if err := site.Target.Remove(context.WithoutCancel(ctx), rec.r.Handle); err != nil {
			t.Errorf("Remove at the end: %v", err)
		}
		h.checkNothingLeft(t, rec.r.Handle)
	})
	return ctx, rec
}

func (h Harness) checkNothingLeft(t *testing.T, handle string) {
	t.Helper()
	if h.Leftovers == nil {
		return
	}
	for _, l := range h.Leftovers(t) {
		if strings.Contains(l, handle) {
			t.Errorf("left over after Remove: %s", l)
		}
	}
}

func (rec *recovery) mustDefine(ctx context.Context, t *testing.T) string {
	t.Helper()
	id, err := rec.target.Define(ctx, rec.r)
	if err != nil {
		t.Fatalf("Define: %v", err)
	}
	return id
}

func (rec *recovery) mustStart(ctx context.Context, t *testing.T) {
	t.Helper()
	if err := rec.target.Start(ctx, rec.r.Handle); err != nil {
		t.Fatalf("Start: %v", err)
	}
}

func (rec *recovery) mustStatus(ctx context.Context, t *testing.T) provider.Status {
	t.Helper()
	s, err := rec.target.Status(ctx, rec.r.Handle)
	if err != nil {
		t.Fatalf("Status: %v", err)
	}
	return s
}

func (rec *recovery) count(ctx context.Context, t *testing.T) int {
	t.Helper()
	machines, err := rec.site.Inventory.Machines(ctx)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, m := range machines {
		if m.Name == rec.r.Name {
			n++
		}
	}
	return n
}

func (rec *recovery) checkContent(t *testing.T) {
	t.Helper()
	if rec.h.Content == nil {
		return
	}
	for _, d := range rec.r.Disks {
		if got, want := rec.h.Content(t, rec.r.Handle, d.DiskID), rec.views[d.DiskID].Content; !bytes.Equal(got, want) {
			t.Errorf("disk %s: content differs from the view (%d bytes, want %d)", d.DiskID, len(got), len(want))
		}
	}
}

func (h Harness) target(t *testing.T) {
	if s := h.Open(t); s.Target == nil {
		_ = s.Close()
		t.Skip("the site has no Target")
	} else {
		_ = s.Close()
	}
	t.Run("define", h.targetDefine)
	t.Run("start", h.targetStart)
	t.Run("hydrate", h.targetHydrate)
	t.Run("hydrate interrupted", h.targetInterrupted)
	t.Run("hydrate needs a running machine", h.targetHydrateOff)
	t.Run("remove", h.targetRemove)
	t.Run("unknown handle", h.targetUnknown)
	t.Run("name taken", h.targetNameTaken)
	t.Run("unknown network", h.targetNetwork)
	t.Run("cancelled", h.targetCancelled)
}

func (h Harness) targetDefine(t *testing.T) {
	ctx, rec := h.recover(t, 0)
	id := rec.mustDefine(ctx, t)
	if id == "" {
		t.Fatal("Define returned no machine id")
	}
	if again := rec.mustDefine(ctx, t); again != id {
		t.Errorf("Define repeated with the same handle: machine %s, first %s", again, id)
	}
	_, other := h.open(t)
	if again, err := other.Target.Define(ctx, rec.r); err != nil || again != id {
		t.Errorf("Define repeated on the site opened anew: machine %s, %v, first %s", again, err, id)
	}
	if n := rec.count(ctx, t); n != 1 {
		t.Errorf("%d machines of that name after Define three times, want 1", n)
	}
	s := rec.mustStatus(ctx, t)
	if s.Power != provider.PowerOff || s.MachineID != id || !s.NeedsView {
		t.Errorf("Status after Define: %+v, want off, machine %s, needs its view", s, id)
	}
	if want := rec.h.DiskSize * int64(len(rec.r.Disks)); s.Total != want {
		t.Errorf("Status.Total: %d, want %d", s.Total, want)
	}
	m, err := rec.site.Inventory.Machine(ctx, id)
	if err != nil {
		t.Fatalf("Inventory of the defined machine: %v", err)
	}
	if m.Name != rec.r.Name || len(m.Disks) != len(rec.r.Disks) {
		t.Errorf("defined machine: name %q with %d disks, want %q with %d", m.Name, len(m.Disks), rec.r.Name, len(rec.r.Disks))
	}
	rec.checkContent(t)
}

func (h Harness) targetStart(t *testing.T) {
	ctx, rec := h.recover(t, 0)
	id := rec.mustDefine(ctx, t)
	rec.mustStart(ctx, t)
	first := rec.mustStatus(ctx, t)
	rec.mustStart(ctx, t)
	_, other := h.open(t)
	if err := other.Target.Start(ctx, rec.r.Handle); err != nil {
		t.Errorf("Start on the site opened anew: %v", err)
	}
	if again := rec.mustDefine(ctx, t); again != id {
		t.Errorf("Define of the running machine: %s, first %s", again, id)
	}
	s := rec.mustStatus(ctx, t)
	if s.Power != provider.PowerRunning || s.MachineID != id || !s.NeedsView {
		t.Errorf("Status after Start: %+v, want running, machine %s, needs its view", s, id)
	}
	if s.StartedAt.IsZero() || !s.StartedAt.Equal(first.StartedAt) {
		t.Errorf("StartedAt is %v, was %v after the first Start: the machine was started again", s.StartedAt, first.StartedAt)
	}
	if n := rec.count(ctx, t); n != 1 {
		t.Errorf("%d machines after Start three times, want 1", n)
	}
}

func (h Harness) targetHydrate(t *testing.T) {
	ctx, rec := h.recover(t, 0)
	rec.mustDefine(ctx, t)
	rec.mustStart(ctx, t)
	before := rec.mustStatus(ctx, t)
	var last, total int64
	err := rec.target.Hydrate(ctx, rec.r.Handle, func(d, n int64) {
		if d < last || d > n {
			t.Errorf("progress went from %d to %d of %d", last, d, n)
		}
		last, total = d, n
	})
	if err != nil {
		t.Fatalf("Hydrate: %v", err)
	}
	if last != total || total == 0 {
		t.Errorf("progress ended at %d of %d", last, total)
	}
	for _, v := range rec.views {
		v.Stop()
	}
	if err := rec.target.Hydrate(ctx, rec.r.Handle, nil); err != nil {
		t.Errorf("Hydrate repeated, with the view gone: %v", err)
	}
	_, other := h.open(t)
	s, err := other.Target.Status(ctx, rec.r.Handle)
	if err != nil {
		t.Fatal(err)
	}
	if s.NeedsView || s.Hydrated != s.Total || s.Power != provider.PowerRunning {
		t.Errorf("Status after Hydrate: %+v, want running, all hydrated, no view needed", s)
	}
	if !s.StartedAt.Equal(before.StartedAt) {
		t.Errorf("the machine was started again: %v, then %v", before.StartedAt, s.StartedAt)
	}
	rec.checkContent(t)
}

func (h Harness) targetInterrupted(t *testing.T) {
	// So slow that it cannot be over before it is cancelled.
	ctx, rec := h.recover(t, h.DiskSize/4)
	rec.mustDefine(ctx, t)
	rec.mustStart(ctx, t)
	sub, cancel := context.WithCancel(ctx)
	defer cancel()
	err := rec.target.Hydrate(sub, rec.r.Handle, func(done, total int64) {
		if done > 0 && done < total {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("Hydrate cancelled: %v, want context.Canceled", err)
	}
	s := rec.mustStatus(ctx, t)
	if s.Power != provider.PowerRunning {
		t.Errorf("power after an interrupted Hydrate is %s", s.Power)
	}
	_, other := h.open(t)
	if err := other.Target.Hydrate(ctx, rec.r.Handle, nil); err != nil {
		t.Fatalf("Hydrate taken up again: %v", err)
	}
	if s := rec.mustStatus(ctx, t); s.NeedsView || s.Hydrated != s.Total {
		t.Errorf("Status after Hydrate was taken up: %+v", s)
	}
	for _, v := range rec.views {
		v.Stop()
	}
	rec.checkContent(t)
}

func (h Harness) targetHydrateOff(t *testing.T) {
	ctx, rec := h.recover(t, 0)
	rec.mustDefine(ctx, t)
	if err := rec.target.Hydrate(ctx, rec.r.Handle, nil); !errors.Is(err, provider.ErrNotRunning) {
		t.Errorf("Hydrate of a machine that is off: %v, want ErrNotRunning", err)
	}
}

func (h Harness) targetRemove(t *testing.T) {
	for _, stage := range []string{"defined", "running", "hydrated"} {
		t.Run(stage, func(t *testing.T) {
			ctx, rec := h.recover(t, 0)
			id := rec.mustDefine(ctx, t)
			if stage != "defined" {
				rec.mustStart(ctx, t)
			}
			if stage == "hydrated" {
				if err := rec.target.Hydrate(ctx, rec.r.Handle, nil); err != nil {
					t.Fatal(err)
				}
			}
			for n := range 2 {
				if err := rec.target.Remove(ctx, rec.r.Handle); err != nil {
					t.Fatalf("Remove, time %d: %v", n+1, err)
				}
			}
			if _, err := rec.target.Status(ctx, rec.r.Handle); !errors.Is(err, provider.ErrNotFound) {
				t.Errorf("Status after Remove: %v, want ErrNotFound", err)
			}
			if n := rec.count(ctx, t); n != 0 {
				t.Errorf("%d machines after Remove", n)
			}
			h.checkNothingLeft(t, rec.r.Handle)
			if again := rec.mustDefine(ctx, t); again == "" {
				t.Errorf("Define after Remove returned no id (was %s)", id)
			}
		})
	}
}

func (h Harness) targetUnknown(t *testing.T) {
	ctx, site := h.open(t)
	const handle = "suite-never-defined"
	if err := site.Target.Start(ctx, handle); !errors.Is(err, provider.ErrNotFound) {
		t.Errorf("Start: %v, want ErrNotFound", err)
	}
	if _, err := site.Target.Status(ctx, handle); !errors.Is(err, provider.ErrNotFound) {
		t.Errorf("Status: %v, want ErrNotFound", err)
	}
	if err := site.Target.Hydrate(ctx, handle, nil); !errors.Is(err, provider.ErrNotFound) {
		t.Errorf("Hydrate: %v, want ErrNotFound", err)
	}
	if err := site.Target.Remove(ctx, handle); err != nil {
		t.Errorf("Remove: %v, want none", err)
	}
}

func (h Harness) targetNameTaken(t *testing.T) {
	ctx, rec := h.recover(t, 0)
	rec.r.Name = h.Running
	if _, err := rec.target.Define(ctx, rec.r); !errors.Is(err, provider.ErrNameTaken) {
		t.Fatalf("Define with the name of a machine that is there: %v, want ErrNameTaken", err)
	}
	h.checkNothingLeft(t, rec.r.Handle)
	m, err := rec.site.Inventory.Machine(ctx, h.Running)
	if err != nil || m.Power != provider.PowerRunning {
		t.Errorf("the machine that had the name: %s, %v", m.Power, err)
	}
	rec.r.Name = "recovered-other-name"
	rec.mustDefine(ctx, t)
	if err := rec.target.Remove(ctx, rec.r.Handle); err != nil {
		t.Fatal(err)
	}
	if m, err = rec.site.Inventory.Machine(ctx, h.Running); err != nil || m.Power != provider.PowerRunning {
		t.Errorf("the machine that was recovered, after Remove of its copy: %s, %v", m.Power, err)
	}
}

func (h Harness) targetNetwork(t *testing.T) {
	ctx, rec := h.recover(t, 0)
	networks, err := rec.site.Inventory.Networks(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(rec.r.Machine.NICs) == 0 || len(networks) == 0 {
		t.Skip("the machine has no network interface or the site no network")
	}
	for _, change := range []func(*provider.Recovered){
		func(r *provider.Recovered) { r.Isolated, r.Network = false, "no-such-network" },
		func(r *provider.Recovered) { r.Networks = map[string]string{"any": "no-such-network"} },
	} {
		r := rec.r
		change(&r)
		_, err = rec.target.Define(ctx, r)
		if err == nil {
			t.Fatal("Define with an unknown network succeeded")
		}
		for _, want := range []string{"no-such-network", networks[0].Name} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("error %q does not name %q", err, want)
			}
		}
	}
	if n := rec.count(ctx, t); n != 0 {
		t.Errorf("%d machines after a Define that was refused", n)
	}
	h.checkNothingLeft(t, rec.r.Handle)
}

func (h Harness) targetCancelled(t *testing.T) {
	ctx, rec := h.recover(t, 0)
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := rec.target.Define(gone, rec.r); !errors.Is(err, context.Canceled) {
		t.Errorf("Define: %v, want context.Canceled", err)
	}
	rec.mustDefine(ctx, t)
	for name, call := range map[string]func() error{
		"Start":   func() error { return rec.target.Start(gone, rec.r.Handle) },
		"Hydrate": func() error { return rec.target.Hydrate(gone, rec.r.Handle, nil) },
		"Remove":  func() error { return rec.target.Remove(gone, rec.r.Handle) },
		"Status":  func() error { _, err := rec.target.Status(gone, rec.r.Handle); return err },
	} {
		if err := call(); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want context.Canceled", name, err)
		}
	}
	if s := rec.mustStatus(ctx, t); s.Power != provider.PowerOff {
		t.Errorf("power is %s after calls that were cancelled", s.Power)
	}
	if !slices.ContainsFunc(rec.r.Disks, func(d provider.DiskSource) bool { return d.Size > 0 }) {
		t.Error(fmt.Errorf("the suite made no disks: %+v", rec.r.Disks))
	}
}
