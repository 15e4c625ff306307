package providertest

import (
	"context"
	"encoding/json"
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/provider"
)

// Harness is what a provider's test gives the suite.
type Harness struct {
	// Open opens the site. The suite calls it several times, also for the same
	// place, as a restarted server would; it closes what it opens.
	Open func(t *testing.T) *provider.Site
	// Running names a machine that runs at the site and may be watched, never stopped.
	Running string
	// Victim makes a running machine of the site's own that the suite may kill,
	// start and guard, and returns its id; nil leaves out the tests of Kill and
	// those of Power with such a machine.
	Victim func(t *testing.T) string
	// WithAgent makes a running machine whose guest agent answers, and returns
	// its id; nil leaves out the tests with an agent.
	WithAgent func(t *testing.T) string
	// View serves a disk of pseudo-random content, read-only; nil makes Serve
	// do it with qemu-nbd.
	View func(t *testing.T, o ServeOptions) *View
	// Machine is the source machine from which the suite's recoveries are made,
	// with one disk for each view. nil uses the machine called Running.
	Machine *provider.Machine
	// Content returns a reader of the disk as the recovered, powered-off or
	// running machine would see it; nil leaves out comparisons of content.
	Content func(t *testing.T, handle, diskID string) []byte
	// Leftovers returns what is at the site's storage that recovery put there;
	// nil leaves out the tests for it.
	Leftovers func(t *testing.T) []string
	// DiskSize is the size of the views; 0 means 16 MiB.
	DiskSize int64
	// Timeout bounds each test of the suite; 0 means two minutes.
	Timeout time.Duration
}

// Run runs the conformance suite. Roles that the site does not have are
// skipped by name.
func Run(t *testing.T, h Harness) {
	if h.DiskSize == 0 {
		h.DiskSize = 16 << 20
	}
	if h.Timeout == 0 {
		h.Timeout = 2 * time.Minute
	}
	if h.View == nil {
		h.View = Serve
	}
	t.Run("Inventory", func(t *testing.T) { h.inventory(t) })
	t.Run("Source", func(t *testing.T) { h.source(t) })
	t.Run("Target", func(t *testing.T) { h.target(t) })
	t.Run("Power", func(t *testing.T) { h.power(t) })
	t.Run("Replica", func(t *testing.T) { h.replica(t) })
	t.Run("Agent", func(t *testing.T) { h.agent(t) })
	t.Run("Console", func(t *testing.T) { h.console(t) })
}

// open returns a context of the test's own bound and the site, closed at the end.
func (h Harness) open(t *testing.T) (context.Context, *provider.Site) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), h.Timeout)
	t.Cleanup(cancel)
	site := h.Open(t)
	t.Cleanup(func() {
		if err := site.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return ctx, site
}

var diskID = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)

func (h Harness) inventory(t *testing.T) {
	t.Run("machines", func(t *testing.T) {
		ctx, site := h.open(t)
		machines, err := site.Inventory.Machines(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.IsSortedFunc(machines, func(a, b provider.Machine) int { return strings.Compare(a.Name, b.Name) }) {
			t.Errorf("machines are not sorted by name: %v", names(machines))
		}
		if !slices.Contains(names(machines), h.Running) {
			t.Errorf("machines %v lack %q", names(machines), h.Running)
		}
		for _, m := range machines {
			checkMachine(t, m)
		}
	})
	t.Run("machine by id and by name", func(t *testing.T) {
		ctx, site := h.open(t)
		byName, err := site.Inventory.Machine(ctx, h.Running)
		if err != nil {
			t.Fatal(err)
		}
		byID, err := site.Inventory.Machine(ctx, byName.ID)
		if err != nil {
			t.Fatal(err)
		}
		if byID.ID != byName.ID || byID.Name != h.Running {
			t.Errorf("by name: %s %q, by id: %s %q", byName.ID, byName.Name, byID.ID, byID.Name)
		}
		if byName.Power != provider.PowerRunning {
			t.Errorf("power of %q is %s, want running", h.Running, byName.Power)
		}
		if len(byName.Obstacles) != 0 {
			t.Errorf("obstacles of a plain machine: %q", byName.Obstacles)
		}
		if len(byName.Disks) == 0 {
			t.Errorf("machine %q has no disks", h.Running)
		}
	})
	t.Run("unknown machine", func(t *testing.T) {
		ctx, site := h.open(t)
		for _, id := range []string{"no-such-machine", "", "00000000-0000-0000-0000-000000000000", "../../etc", "a'\"<&>\x00"} {
			if _, err := site.Inventory.Machine(ctx, id); !errors.Is(err, provider.ErrNotFound) {
				t.Errorf("Machine(%q): %v, want ErrNotFound", id, err)
			}
		}
	})
	t.Run("networks", func(t *testing.T) {
		ctx, site := h.open(t)
		networks, err := site.Inventory.Networks(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range networks {
			if n.ID == "" || n.Name == "" {
				t.Errorf("network without id or name: %+v", n)
			}
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		_, site := h.open(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := site.Inventory.Machines(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Machines with a cancelled context: %v, want context.Canceled", err)
		}
	})
}

func names(machines []provider.Machine) []string {
	out := []string{}
	for _, m := range machines {
		out = append(out, m.Name)
	}
	return out
}

func checkMachine(t *testing.T, m provider.Machine) {
	t.Helper()
	if m.ID == "" || m.Name == "" {
		t.Errorf("machine without id or name: %+v", m)
	}
	if !slices.Contains([]provider.PowerState{provider.PowerRunning, provider.PowerOff, provider.PowerPaused, provider.PowerUnknown}, m.Power) {
		t.Errorf("machine %s: power %q is not one of the power states", m.Name, m.Power)
	}
	if m.Firmware != "bios" && m.Firmware != "uefi" {
		t.Errorf("machine %s: firmware %q", m.Name, m.Firmware)
	}
	if !json.Valid(m.Config) {
		t.Errorf("machine %s: config is not JSON: %.80s", m.Name, m.Config)
	}
	if m.Disks == nil || m.NICs == nil || m.Obstacles == nil {
		t.Errorf("machine %s: disks, nics and obstacles must be lists, never null", m.Name)
	}
	if len(m.Disks) == 0 && len(m.Obstacles) == 0 {
		t.Errorf("machine %s has neither disks nor obstacles", m.Name)
	}
	seen := map[string]bool{}
	for _, d := range m.Disks {
		if !diskID.MatchString(d.ID) || seen[d.ID] {
			t.Errorf("machine %s: disk id %q is malformed or not unique", m.Name, d.ID)
		}
		seen[d.ID] = true
		if len(m.Obstacles) == 0 && (d.Size <= 0 || d.Size%512 != 0) {
			t.Errorf("machine %s: disk %s has size %d", m.Name, d.ID, d.Size)
		}
	}
	for _, o := range m.Obstacles {
		if strings.TrimSpace(o) == "" {
			t.Errorf("machine %s: empty obstacle", m.Name)
		}
	}
}

func (h Harness) source(t *testing.T) {
	if s := h.Open(t); s.Source == nil {
		_ = s.Close()
		t.Skip("the site has no Source")
	} else {
		_ = s.Close()
	}
	t.Run("monitor", func(t *testing.T) {
		ctx, site := h.open(t)
		mon := h.monitor(ctx, t, site, h.Running)
		for range 2 {
			var v struct {
				QEMU struct{ Major int } `json:"qemu"`
			}
			if err := mon.Execute(ctx, "query-version", nil, &v); err != nil {
				t.Fatal(err)
			}
			if v.QEMU.Major < 1 {
				t.Errorf("query-version: %+v", v)
			}
		}
		if err := mon.Execute(ctx, "query-version", nil, nil); err != nil {
			t.Errorf("without a result: %v", err)
		}
	})
	t.Run("refusal is a MonitorError", func(t *testing.T) {
		ctx, site := h.open(t)
		mon := h.monitor(ctx, t, site, h.Running)
		err := mon.Execute(ctx, "no-such-command", map[string]any{"a": 1}, nil)
		var refused *provider.MonitorError
		if !errors.As(err, &refused) {
			t.Fatalf("no-such-command: %v, want *provider.MonitorError", err)
		}
		if refused.Class != "CommandNotFound" || refused.Command != "no-such-command" || refused.Desc == "" {
			t.Errorf("no-such-command: %+v", refused)
		}
		if err := mon.Execute(ctx, "query-version", nil, nil); err != nil {
			t.Errorf("monitor after a refusal: %v", err)
		}
	})
	t.Run("concurrent commands", func(t *testing.T) {
		ctx, site := h.open(t)
		mon := h.monitor(ctx, t, site, h.Running)
		errs := make(chan error)
		for range 8 {
			go func() { errs <- mon.Execute(ctx, "query-version", nil, nil) }()
		}
		for range 8 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("monitor cancelled", func(t *testing.T) {
		ctx, site := h.open(t)
		mon := h.monitor(ctx, t, site, h.Running)
		gone, cancel := context.WithCancel(ctx)
		cancel()
		if err := mon.Execute(gone, "query-version", nil, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("Execute with a cancelled context: %v, want context.Canceled", err)
		}
		if err := mon.Execute(ctx, "query-version", nil, nil); err != nil {
			t.Errorf("monitor after a cancelled command: %v", err)
		}
	})
	t.Run("unknown machine", func(t *testing.T) {
		ctx, site := h.open(t)
		if _, err := site.Source.Monitor(ctx, "no-such-machine"); !errors.Is(err, provider.ErrNotFound) {
			t.Errorf("Monitor: %v, want ErrNotFound", err)
		}
		if err := site.Source.Kill(ctx, "no-such-machine"); !errors.Is(err, provider.ErrNotFound) {
			t.Errorf("Kill: %v, want ErrNotFound", err)
		}
		if err := site.Source.Shutdown(ctx, "no-such-machine"); !errors.Is(err, provider.ErrNotFound) {
			t.Errorf("Shutdown: %v, want ErrNotFound", err)
		}
	})
	if h.Victim != nil {
		t.Run("kill", func(t *testing.T) { h.kill(t) })
	}
}

func (h Harness) monitor(ctx context.Context, t *testing.T, site *provider.Site, name string) provider.Monitor {
	t.Helper()
	m, err := site.Inventory.Machine(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	mon, err := site.Source.Monitor(ctx, m.ID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mon.Close(); err != nil {
			t.Errorf("Close of the monitor: %v", err)
		}
	})
	return mon
}

func (h Harness) kill(t *testing.T) {
	ctx, site := h.open(t)
	id := h.Victim(t)
	for n := range 2 {
		if err := site.Source.Kill(ctx, id); err != nil {
			t.Fatalf("Kill, time %d: %v", n+1, err)
		}
	}
	m, err := site.Inventory.Machine(ctx, id)
	if err == nil && m.Power != provider.PowerOff {
		t.Errorf("power after Kill is %s, want off", m.Power)
	}
	if err != nil && !errors.Is(err, provider.ErrNotFound) {
		t.Error(err)
	}
	if err := site.Source.Shutdown(ctx, id); err != nil && !errors.Is(err, provider.ErrNotFound) {
		t.Errorf("Shutdown of a machine that is off: %v", err)
	}
	if _, err := site.Source.Monitor(ctx, id); !errors.Is(err, provider.ErrNotRunning) && !errors.Is(err, provider.ErrNotFound) {
		t.Errorf("Monitor of a machine that is off: %v, want ErrNotRunning", err)
	}
}
