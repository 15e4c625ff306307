package providertest

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/holdfast-dr/holdfast/internal/provider"
)

type (
	fakeInventory struct{ f *Fake }
	fakeSource    struct{ f *Fake }
	fakeTarget    struct{ f *Fake }
	fakeMonitor   struct {
		f         *Fake
		machineID string
	}
)

var (
	_ provider.Inventory = fakeInventory{}
	_ provider.Source    = fakeSource{}
	_ provider.Target    = fakeTarget{}
	_ provider.Monitor   = fakeMonitor{}
)

func (r fakeInventory) Machines(ctx context.Context) (out []provider.Machine, err error) {
	err = r.f.call(ctx, "Machines", "", func() error {
		out = slices.Clone(r.f.machines)
		return nil
	})
	return out, err
}

func (r fakeInventory) Machine(ctx context.Context, idOrName string) (out provider.Machine, err error) {
	err = r.f.call(ctx, "Machine", idOrName, func() error {
		i, err := r.f.find(idOrName)
		if err == nil {
			out = r.f.machines[i]
		}
		return err
	})
	return out, err
}

func (r fakeInventory) Networks(ctx context.Context) (out []provider.Network, err error) {
	err = r.f.call(ctx, "Networks", "", func() error {
		out = slices.Clone(r.f.networks)
		return nil
	})
	return out, err
}

func (r fakeSource) Monitor(ctx context.Context, machineID string) (out provider.Monitor, err error) {
	err = r.f.call(ctx, "Monitor", machineID, func() error {
		i, err := r.f.find(machineID)
		if err != nil {
			return err
		}
		if r.f.machines[i].Power != provider.PowerRunning {
			return fmt.Errorf("machine %s: %w", machineID, provider.ErrNotRunning)
		}
		out = fakeMonitor{r.f, r.f.machines[i].ID}
		return nil
	})
	return out, err
}

func (r fakeSource) Shutdown(ctx context.Context, machineID string) error {
	return r.off(ctx, "Shutdown", machineID)
}

func (r fakeSource) Kill(ctx context.Context, machineID string) error {
	return r.off(ctx, "Kill", machineID)
}

func (r fakeSource) off(ctx context.Context, method, machineID string) error {
	return r.f.call(ctx, method, machineID, func() error {
		i, err := r.f.find(machineID)
		if err != nil {
			return err
		}
		r.f.power(r.f.machines[i].ID, provider.PowerOff)
		return nil
	})
}

func (m fakeMonitor) Execute(ctx context.Context, command string, arguments, result any) error {
	// The answer is computed without the lock, so that a MonitorFunc may use the fake.
	var answer any
	err := m.f.call(ctx, "Execute", command, func() error {
		i, err := m.f.find(m.machineID)
		if err != nil || m.f.machines[i].Power != provider.PowerRunning {
			return fmt.Errorf("%s: machine %s: %w", command, m.machineID, provider.ErrNotRunning)
		}
		return nil
	})
	if err != nil {
		return err
	}
	m.f.mu.Lock()
	monitor := m.f.monitor
	m.f.mu.Unlock()
	if answer, err = monitor(m.machineID, command, arguments); err != nil || result == nil {
		return err
	}
	b, err := json.Marshal(answer)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, result)
}

func (m fakeMonitor) Close() error { return nil }

func answerVersion(_, command string, _ any) (any, error) {
	if command != "query-version" {
		return nil, &provider.MonitorError{Command: command, Class: "CommandNotFound", Desc: "The command " + command + " has not been found"}
	}
	return map[string]any{"qemu": map[string]int{"major": 7, "minor": 2, "micro": 22}, "package": "fake"}, nil
}

func (r fakeTarget) Define(ctx context.Context, rec provider.Recovered) (id string, err error) {
	err = r.f.call(ctx, "Define", rec.Handle, func() error {
		if have, ok := r.f.recovered[rec.Handle]; ok {
			id = have.MachineID
			return nil
		}
		if slices.ContainsFunc(r.f.machines, func(m provider.Machine) bool { return m.Name == rec.Name }) {
			return fmt.Errorf("machine %q at site %s: %w", rec.Name, r.f.name, provider.ErrNameTaken)
		}
		if err := r.f.checkNetwork(rec); err != nil {
			return err
		}
		r.f.made++
		id = fmt.Sprintf("%s-made-%d", r.f.name, r.f.made)
		r.f.world.same(id, rec.Machine.ID)
		have := &FakeRecovered{MachineID: id, Recovered: rec, Power: provider.PowerOff}
		for _, d := range rec.Disks {
			have.Total += d.Size
		}
		r.f.recovered[rec.Handle] = have
		m := recoveredMachine(id, rec)
		r.f.machines = append(r.f.machines, m)
		slices.SortFunc(r.f.machines, func(a, b provider.Machine) int { return cmp.Compare(a.Name, b.Name) })
		r.f.makeDisks(m)
		return nil
	})
	return id, err
}

// recoveredMachine is the machine that the inventory has after Define.
func recoveredMachine(id string, rec provider.Recovered) provider.Machine {
	m := rec.Machine
	m.ID, m.Name, m.Power = id, rec.Name, provider.PowerOff
	m.Disks, m.NICs = []provider.Disk{}, slices.Clone(m.NICs)
	for i, d := range rec.Disks {
		m.Disks = append(m.Disks, provider.Disk{ID: d.DiskID, Size: d.Size, Format: "qcow2", Path: "/fake/" + id + "/" + d.DiskID, Boot: i == 0})
	}
	for i := range m.NICs {
		m.NICs[i].Network, _ = rec.NetworkOf(m.NICs[i].Network)
	}
	return m
}

func (f *Fake) checkNetwork(rec provider.Recovered) error {
	names := []string{}
	for _, n := range f.networks {
		names = append(names, n.Name)
	}
	for _, n := range rec.TargetNetworks() {
		if !slices.Contains(names, n) {
			return fmt.Errorf("network %q is not at site %s; it has %s", n, f.name, strings.Join(names, ", "))
		}
	}
	return nil
}

func (r fakeTarget) made(handle string) (*FakeRecovered, error) {
	have, ok := r.f.recovered[handle]
	if !ok {
		return nil, fmt.Errorf("recovered machine %s at site %s: %w", handle, r.f.name, provider.ErrNotFound)
	}
	return have, nil
}

func (r fakeTarget) Start(ctx context.Context, handle string) error {
	return r.f.call(ctx, "Start", handle, func() error {
		have, err := r.made(handle)
		if err != nil {
			return err
		}
		return r.f.powerOn(ctx, have.MachineID)
	})
}

func (r fakeTarget) Status(ctx context.Context, handle string) (s provider.Status, err error) {
	err = r.f.call(ctx, "Status", handle, func() error {
		have, err := r.made(handle)
		if err != nil {
			return err
		}
		s = provider.Status{
			Power: have.Power, MachineID: have.MachineID, StartedAt: have.StartedAt,
			Hydrated: have.Hydrated, Total: have.Total, NeedsView: have.Hydrated < have.Total,
		}
		return nil
	})
	return s, err
}

// hydrateSteps is in how many parts a fake machine is hydrated; each can be
// made to fail or wait as a call of "HydrateStep".
const hydrateSteps = 8

func (r fakeTarget) Hydrate(ctx context.Context, handle string, progress func(done, total int64)) error {
	err := r.f.call(ctx, "Hydrate", handle, func() error {
		have, err := r.made(handle)
		if err == nil && have.Power != provider.PowerRunning && have.Hydrated < have.Total {
			return fmt.Errorf("hydrate machine %s: %w", have.Recovered.Name, provider.ErrNotRunning)
		}
		return err
	})
	for err == nil {
		var done, total int64
		err = r.f.call(ctx, "HydrateStep", handle, func() error {
			have, err := r.made(handle)
			if err != nil {
				return err
			}
			step := max(have.Total/hydrateSteps, 1)
			have.Hydrated = min(have.Hydrated+step, have.Total)
			done, total = have.Hydrated, have.Total
			return nil
		})
		if err == nil && progress != nil {
			progress(done, total)
		}
		if err == nil && done == total {
			return nil
		}
	}
	return err
}

func (r fakeTarget) Remove(ctx context.Context, handle string) error {
	return r.f.call(ctx, "Remove", handle, func() error {
		have, ok := r.f.recovered[handle]
		if !ok {
			return nil
		}
		if disk := r.f.openDisk(have.MachineID); disk != "" {
			return fmt.Errorf("remove machine %s: disk %s is open", have.Recovered.Name, disk)
		}
		r.f.powerRecovered(have, provider.PowerOff)
		delete(r.f.recovered, handle)
		r.f.forget(have.MachineID)
		return nil
	})
}
