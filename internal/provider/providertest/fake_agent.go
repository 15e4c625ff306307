package providertest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"

	"github.com/holdfast-dr/holdfast/internal/provider"
)

type (
	fakeAgent   struct{ f *Fake }
	fakeConsole struct{ f *Fake }

	// fakeGuest is a guest with an agent.
	fakeGuest struct {
		fileSystems int
		frozen      bool
		freezes     int
	}
)

var (
	_ provider.Agent   = fakeAgent{}
	_ provider.Console = fakeConsole{}
)

// SetAgent gives a machine a guest agent that freezes so many file systems, or
// with 0 takes it away. A Fault of "Freeze" with a Delay is a freeze that hangs
// until its context ends; with After, one whose answer is lost. In both cases
// the guest is thawed, as the contract has it, unless "Thaw" fails as well,
// which makes it ErrFrozen.
func (f *Fake) SetAgent(machineID string, fileSystems int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.agents, machineID)
	if fileSystems > 0 {
		f.agents[machineID] = &fakeGuest{fileSystems: fileSystems}
	}
}

// Frozen says whether the machine's file systems are frozen, and how often they
// were so far.
func (f *Fake) Frozen(machineID string) (now bool, times int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if g := f.agents[machineID]; g != nil {
		return g.frozen, g.freezes
	}
	return false, 0
}

// thaw thaws a guest, if there is an agent, with the lock held.
func (f *Fake) thaw(machineID string) {
	if g := f.agents[machineID]; g != nil {
		g.frozen = false
	}
}

// guest returns the agent of a running machine.
func (f *Fake) guest(machineID string) (*fakeGuest, error) {
	m, err := f.running(machineID)
	if err != nil {
		return nil, err
	}
	g := f.agents[m.ID]
	if g == nil {
		return nil, fmt.Errorf("machine %s: %w", m.Name, provider.ErrNoAgent)
	}
	return g, nil
}

func (f *Fake) running(machineID string) (provider.Machine, error) {
	i, err := f.find(machineID)
	if err != nil {
		return provider.Machine{}, err
	}
	if m := f.machines[i]; m.Power == provider.PowerRunning {
		return m, nil
	}
	return provider.Machine{}, fmt.Errorf("machine %s: %w", f.machines[i].Name, provider.ErrNotRunning)
}

func (r fakeAgent) Ping(ctx context.Context, machineID string) error {
	return r.f.call(ctx, "Ping", machineID, func() error {
		_, err := r.f.guest(machineID)
		return err
	})
}

func (r fakeAgent) Freeze(ctx context.Context, machineID string) (fileSystems int, err error) {
	err = r.f.call(ctx, "Freeze", machineID, func() error {
		g, err := r.f.guest(machineID)
		if err != nil {
			return err
		}
		if g.frozen {
			return fmt.Errorf("freeze machine %s: its file systems are frozen already", machineID)
		}
		g.frozen = true
		g.freezes++
		fileSystems = g.fileSystems
		return nil
	})
	if err == nil {
		return fileSystems, nil
	}
	if errors.Is(err, provider.ErrNoAgent) || errors.Is(err, provider.ErrNotRunning) || errors.Is(err, provider.ErrNotFound) {
		return 0, err
	}
	if terr := r.Thaw(context.WithoutCancel(ctx), machineID); terr != nil {
		err = fmt.Errorf("%w; %w: %w", err, provider.ErrFrozen, terr)
	}
	return 0, err
}

// SetCommands has the guest agents of a site answer all commands but those of
// freezing: what f returns is the answer, as JSON has it.
func (f *Fake) SetCommands(g func(machineID, command string, arguments map[string]any) (any, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.commands = g
}

func (r fakeAgent) Ask(ctx context.Context, machineID, command string, arguments, result any) error {
	return r.f.call(ctx, "Ask", machineID, func() error {
		if _, err := r.f.guest(machineID); err != nil {
			return err
		}
		if r.f.commands == nil {
			return fmt.Errorf("guest agent: the command %s has not been found", command)
		}
		var args map[string]any
		if err := again(arguments, &args); err != nil {
			return err
		}
		out, err := r.f.commands(machineID, command, args)
		if err != nil || result == nil {
			return err
		}
		return again(out, result)
	})
}

// again decodes what encodes from.
func again(from, into any) error {
	b, err := json.Marshal(from)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}

func (r fakeAgent) Thaw(ctx context.Context, machineID string) error {
	return r.f.call(ctx, "Thaw", machineID, func() error {
		g, err := r.f.guest(machineID)
		if err == nil {
			g.frozen = false
		}
		return err
	})
}

// SetScreen makes fn answer all screenshots. Without it they are grey. It must
// not call the Fake.
func (f *Fake) SetScreen(fn func(machineID string) ([]byte, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.screen = fn
}

func (r fakeConsole) Screenshot(ctx context.Context, machineID string) (picture []byte, err error) {
	err = r.f.call(ctx, "Screenshot", machineID, func() error {
		m, err := r.f.running(machineID)
		if err == nil {
			picture, err = r.f.screen(m.ID)
		}
		return err
	})
	return picture, err
}

// grey is a small picture without anything on it.
func grey(string) ([]byte, error) {
	img := image.NewGray(image.Rect(0, 0, 64, 48))
	for i := range img.Pix {
		img.Pix[i] = color.Gray{Y: 0x40}.Y
	}
	var b bytes.Buffer
	err := png.Encode(&b, img)
	return b.Bytes(), err
}
