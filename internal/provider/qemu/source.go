package qemu

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-dr/holdfast/internal/provider"
)

// Monitor opens the machine's monitor. It connects for each command, so that
// others get their turn.
func (s *site) Monitor(_ context.Context, machineID string) (provider.Monitor, error) {
	d, err := s.find(machineID)
	if err != nil {
		return nil, err
	}
	return d.monitor()
}

// Shutdown presses the power button and waits until QEMU has ended, as long as
// ctx allows. It is no error if the machine is off.
func (s *site) Shutdown(ctx context.Context, machineID string) error {
	d, err := s.find(machineID)
	if err != nil {
		return err
	}
	pid, err := d.pid()
	if pid == 0 || err != nil {
		return err
	}
	mon := perCommand{socket: d.QMP}
	if err := mon.Execute(ctx, "system_powerdown", nil, nil); err != nil && !errors.Is(err, provider.ErrNotRunning) {
		return fmt.Errorf("shut down machine %s: %w", d.Name, err)
	}
	return d.awaitExit(ctx, pid)
}

// Kill takes the power away and waits until the process is gone.
func (s *site) Kill(ctx context.Context, machineID string) error {
	d, err := s.find(machineID)
	if err != nil {
		return err
	}
	return d.kill(ctx)
}
