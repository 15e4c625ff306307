package providertest

import (
	"context"
	"fmt"

	"github.com/holdfast-dr/holdfast/internal/provider"
)

// fakeProbe finds that every machine that runs answers, unless it is scripted.
type fakeProbe struct{ f *Fake }

var _ provider.Probe = fakeProbe{}

// Said returns what a machine's console says: its name, and that one can log in.
func (r fakeProbe) Said(ctx context.Context, machineID string) (text []byte, err error) {
	err = r.f.call(ctx, "Said", machineID, func() error {
		m, err := r.f.running(machineID)
		text = fmt.Appendf(nil, "%s login: ", m.Name)
		return err
	})
	return text, err
}

// Dial finds that the port accepts a connection.
func (r fakeProbe) Dial(ctx context.Context, machineID string, _ int) error {
	return r.answers(ctx, "Dial", machineID)
}

// Ping finds that the machine answers.
func (r fakeProbe) Ping(ctx context.Context, machineID string) error {
	return r.answers(ctx, "NetworkPing", machineID)
}

func (r fakeProbe) answers(ctx context.Context, method, machineID string) error {
	return r.f.call(ctx, method, machineID, func() error {
		_, err := r.f.running(machineID)
		return err
	})
}
