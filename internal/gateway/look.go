package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/holdfast-dr/holdfast/internal/provider"
)

const (
	// lookEvery is about how often the machine is looked at: whether it has other
	// disks, another size or other cards than before.
	lookEvery = 8 * time.Second
	// lookWait bounds one look.
	lookWait = 10 * time.Second
)

// look is what a machine was when it was looked at last.
type look struct {
	machine provider.Machine
	hash    string // of all but its power
}

// keepLooking looks at the machine now and then until ctx ends. One that cannot
// be looked at is what it was.
func (r *replication) keepLooking(ctx context.Context) error {
	for {
		if err := r.lookAt(ctx); err != nil && ctx.Err() == nil {
			r.log.Debug("machine is not looked at", "error", err)
		}
		if !sleep(ctx, lookEvery-rand.N(lookEvery/4)) { // not all at once
			return nil
		}
	}
}

func (r *replication) lookAt(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookWait)
	defer cancel()
	m, err := r.machine(ctx)
	if err != nil {
		return err
	}
	hash, err := MachineHash(m)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.looked = look{m, hash}
	return nil
}

// MachineHash names what a machine is, whether it runs or not.
func MachineHash(m provider.Machine) (string, error) {
	m.Power, m.Obstacles = "", nil
	b, err := json.Marshal(m)
	if err != nil {
		return "", fmt.Errorf("describe machine %s: %w", m.Name, err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8]), nil
}

// seen returns the machine as it was when it was looked at last.
func (r *replication) seen() (provider.Machine, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.looked.hash == "" {
		return provider.Machine{}, errors.New("the machine was not looked at yet; ask again")
	}
	return r.looked.machine, nil
}

// pausedFor returns for how much longer the machine is left alone.
func (r *replication) pausedFor() time.Duration {
	if r.order.PausedUntil.IsZero() {
		return 0
	}
	return time.Until(r.order.PausedUntil)
}

// sitOut leaves the machine alone for as long as the order says: it takes the
// mirror out of its QEMU and waits. It returns false when ctx has ended.
func (r *replication) sitOut(ctx context.Context) bool {
	if r.pausedFor() <= 0 {
		return true
	}
	why := "paused until " + r.order.PausedUntil.UTC().Format(time.RFC3339)
	r.setPause(why, false)
	for r.pausedFor() > 0 {
		err := r.detach(ctx)
		if err == nil || errors.Is(err, provider.ErrNotRunning) {
			r.setPause(why, true)
			break
		}
		r.setPause(fmt.Sprintf("%s, but the machine is not left alone yet: %v", why, err), false)
		if !sleep(ctx, time.Second) {
			return false
		}
	}
	if !sleep(ctx, max(0, r.pausedFor())) {
		return false
	}
	r.setPause("", false)
	return true
}

func (r *replication) setPause(why string, quiet bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pause, r.quiet = why, quiet
}
