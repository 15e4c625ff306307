package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/holdfast-dr/holdfast/internal/provider"
)

const (
	guardSuffix = ".guard"
	maxReason   = 1000
)

// power is the site as provider.Power; its Start takes a machine where the
// target's takes a handle.
type power struct{ s *site }

// Start powers a machine on, one of the site's own or a recovered one.
func (p power) Start(ctx context.Context, machineID string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d, err := p.s.find(machineID)
	if err != nil {
		return err
	}
	if d.Handle != "" {
		return p.s.Start(ctx, d.Handle)
	}
	return d.spawn(ctx)
}

// Guard writes NAME.guard beside the definition. A start that is under way is
// waited for, so that afterwards the machine either runs or never will.
func (p power) Guard(ctx context.Context, machineID, reason string) (err error) {
	if strings.TrimSpace(reason) == "" || strings.ContainsAny(reason, "\r\n") || len(reason) > maxReason {
		return fmt.Errorf("guard machine %s: reason %q: want one line of at most %d bytes", machineID, reason, maxReason)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	d, err := p.s.find(machineID)
	if err != nil {
		return err
	}
	d, lock, err := d.lockPower(ctx)
	if err != nil {
		return fmt.Errorf("guard machine %s: %w", d.Name, err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := saveFile(d.guardPath(), []byte(reason+"\n"), false); err != nil {
		return fmt.Errorf("guard machine %s: %w", d.Name, err)
	}
	return nil
}

// Unguard removes the guard's file.
func (p power) Unguard(ctx context.Context, machineID string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d, err := p.s.find(machineID)
	if err != nil {
		return err
	}
	return d.unguard()
}

// Guarded returns the reason in the guard's file.
func (p power) Guarded(ctx context.Context, machineID string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	d, err := p.s.find(machineID)
	if err != nil {
		return "", err
	}
	return d.guarded()
}

func (d Definition) guardPath() string { return filepath.Join(d.dir, d.Name+guardSuffix) }

func (d Definition) unguard() error {
	err := os.Remove(d.guardPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = syncDir(d.dir)
	}
	if err != nil {
		return fmt.Errorf("unguard machine %s: %w", d.Name, err)
	}
	return nil
}

// guarded returns why the machine must not be started, or "". Whatever is in
// the file, it is a guard while it is there.
func (d Definition) guarded() (string, error) {
	b, err := readBounded(d.guardPath())
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read guard of machine %s: %w", d.Name, err)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	if line = strings.TrimSpace(line); line == "" {
		return "no reason is recorded in " + d.guardPath(), nil
	}
	return line, nil
}

func (d Definition) checkGuard() error {
	reason, err := d.guarded()
	if err != nil {
		return err
	}
	if reason != "" {
		return fmt.Errorf("start machine %s: %w: %s", d.Name, provider.ErrGuarded, reason)
	}
	return nil
}
