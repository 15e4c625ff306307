package providertest

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/internal/provider"
)

type fakePower struct{ f *Fake }

var _ provider.Power = fakePower{}

// Guards returns the reasons of all guarded machines by machine id.
func (f *Fake) Guards() map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.guards)
}

func (r fakePower) Start(ctx context.Context, machineID string) error {
	return r.f.call(ctx, "PowerOn", machineID, func() error {
		i, err := r.f.find(machineID)
		if err != nil {
			return err
		}
		return r.f.powerOn(ctx, r.f.machines[i].ID)
	})
}

func (r fakePower) Guard(ctx context.Context, machineID, reason string) error {
	return r.f.call(ctx, "Guard", machineID, func() error {
		if strings.TrimSpace(reason) == "" || strings.ContainsAny(reason, "\r\n") {
			return fmt.Errorf("guard machine %s: reason %q is not one line", machineID, reason)
		}
		i, err := r.f.find(machineID)
		if err == nil {
			r.f.guards[r.f.machines[i].ID] = reason
		}
		return err
	})
}

func (r fakePower) Unguard(ctx context.Context, machineID string) error {
	return r.f.call(ctx, "Unguard", machineID, func() error {
		i, err := r.f.find(machineID)
		if err == nil {
			delete(r.f.guards, r.f.machines[i].ID)
		}
		return err
	})
}

func (r fakePower) Guarded(ctx context.Context, machineID string) (reason string, err error) {
	err = r.f.call(ctx, "Guarded", machineID, func() error {
		i, err := r.f.find(machineID)
		if err == nil {
			reason = r.f.guards[r.f.machines[i].ID]
		}
		return err
	})
	return reason, err
}

// powerOn starts a machine by its id, an original or a recovered one, with the
// lock held. All ways to start one lead here.
func (f *Fake) powerOn(ctx context.Context, id string) error {
	i, err := f.find(id)
	if err != nil {
		return err
	}
	m := f.machines[i]
	if m.Power == provider.PowerRunning {
		return nil
	}
	if reason := f.guards[id]; reason != "" {
		return fmt.Errorf("start machine %s: %w: %s", m.Name, provider.ErrGuarded, reason)
	}
	if disk := f.openDisk(id); disk != "" {
		return fmt.Errorf("start machine %s: disk %s is open", m.Name, disk)
	}
	for _, r := range f.recovered {
		if r.MachineID == id {
			return f.powerOnRecovered(ctx, r)
		}
	}
	f.power(id, provider.PowerRunning)
	return nil
}

func (f *Fake) powerOnRecovered(ctx context.Context, r *FakeRecovered) error {
	err := f.readViews(ctx, r)
	if err == nil && f.onStart != nil {
		err = f.onStart(r.Recovered)
	}
	if err != nil {
		return fmt.Errorf("start machine %s: %w", r.Recovered.Name, err)
	}
	r.Starts++
	r.StartedAt = time.Now()
	f.powerRecovered(r, provider.PowerRunning)
	return nil
}
