package vault

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/internal/objstore"
)

var (
	// ErrInUse says that another server works with the vault.
	ErrInUse = errors.New("the vault is in use by another server")
	// ErrLeaseLost says why a lease's context ended: another server took it over.
	ErrLeaseLost = errors.New("the lease of the vault is lost")
)

// leaseName is the object that says who works with the vault.
const leaseName = "lease"

// LeaseOptions say who wants the lease.
type LeaseOptions struct {
	Owner  string        // the same at each start of a server
	Host   string        // for people
	Beat   time.Duration // how often it is renewed; default 3 s
	Watch  time.Duration // for how long another's must not move; default 5 beats
	Logger *slog.Logger
}

func (o *LeaseOptions) applyDefaults() {
	if o.Beat <= 0 {
		o.Beat = 3 * time.Second
	}
	if o.Watch <= 0 {
		o.Watch = 5 * o.Beat
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// leaseRecord is the object `lease`.
type leaseRecord struct {
	Format   int    `json:"format"`
	Owner    string `json:"owner"`
	Host     string `json:"host"`
	Session  string `json:"session"` // random, of each time that it is taken
	Counter  uint64 `json:"counter"` // raised by each renewal
	Released bool   `json:"released,omitempty"`
}

// Lease is held by the one server that works with a vault.
type Lease struct {
	cancel context.CancelCauseFunc
	done   sync.WaitGroup
	keeper *leaseKeeper
}

// AcquireLease makes this the only server of the vault. The context that it
// returns ends with ErrLeaseLost as its cause when another has taken the lease,
// and on Release, which must be called in the end. It does not end while the
// vault merely cannot be written: Confirm, before whatever two servers must not
// both do, tells whether the lease may have been taken meanwhile. A lease that
// was released, or is of
// the same owner, is taken over at once; one of another owner only if it does
// not move while it is watched. Only this machine's monotonic clock is used, so
// that wrong wall clocks do no harm. It fails with ErrInUse, which names the
// holder.
func (v *Vault) AcquireLease(ctx context.Context, o LeaseOptions) (context.Context, *Lease, error) {
	o.applyDefaults()
	rec, etag, err := v.lease(ctx)
	if err != nil {
		return nil, nil, err
	}
	if etag != "" && rec.Owner != o.Owner && !rec.Released {
		o.Logger.Info("another server has worked with this vault; watching whether it still does", "host", rec.Host, "for", o.Watch)
		if err := v.watchLease(ctx, etag, o); err != nil {
			return nil, nil, err
		}
	}
	next := leaseRecord{Format: FormatVersion, Owner: o.Owner, Host: o.Host, Session: rand.Text(), Counter: rec.Counter + 1}
	if etag, err = v.putLease(ctx, next, etag); err != nil {
		return nil, nil, err
	}
	held, cancel := context.WithCancelCause(ctx)
	l := &Lease{cancel: cancel, keeper: &leaseKeeper{v: v, o: o, rec: next, etag: etag, renewed: time.Now()}}
	l.done.Go(func() { cancel(l.keeper.run(held)) })
	return held, l, nil
}

// Confirm returns nil if no other server can have taken the lease. Where it was
// not renewed for long, it is renewed now; it fails with ErrLeaseLost if another
// server has it, and with the error of the vault if that cannot be known.
func (l *Lease) Confirm(ctx context.Context) error {
	k := l.keeper
	k.mu.Lock()
	defer k.mu.Unlock()
	if time.Since(k.renewed) < k.o.Watch-k.o.Beat {
		return nil
	}
	err := k.renew(ctx)
	if errors.Is(err, ErrInUse) {
		return fmt.Errorf("%w: %w", ErrLeaseLost, err)
	}
	return err
}

// Release gives the lease back and ends its context. The next server takes it at
// once.
func (l *Lease) Release() {
	l.cancel(context.Canceled)
	l.done.Wait()
}

func (v *Vault) lease(ctx context.Context) (leaseRecord, string, error) {
	var rec leaseRecord
	etag, err := v.getDocument(ctx, leaseName, &rec)
	if missing(err) {
		return leaseRecord{}, "", nil
	}
	if err != nil {
		return rec, "", fmt.Errorf("read lease: %w", err)
	}
	return rec, etag, nil
}

func (v *Vault) putLease(ctx context.Context, rec leaseRecord, etag string) (string, error) {
	b, err := v.secret.document(leaseName, rec)
	if err != nil {
		return "", err
	}
	etag, err = v.store.CompareAndSwap(ctx, leaseName, b, etag)
	if errors.Is(err, objstore.ErrChanged) {
		return "", v.inUse(ctx)
	}
	if err != nil {
		return "", fmt.Errorf("write lease: %w", err)
	}
	return etag, nil
}

// inUse names who has the lease.
func (v *Vault) inUse(ctx context.Context) error {
	rec, _, err := v.lease(ctx)
	if err != nil {
		return errors.Join(ErrInUse, err)
	}
	return fmt.Errorf("%w: %s on host %s; stop it, or give this one a vault of its own", ErrInUse, rec.Owner, rec.Host)
}

// watchLease returns when another's lease has not moved for long enough.
func (v *Vault) watchLease(ctx context.Context, etag string, o LeaseOptions) error {
	for end := time.Now().Add(o.Watch); ; {
		left := time.Until(end)
		if left <= 0 {
			return nil
		}
		if !pause(ctx, min(left, o.Beat)) {
			return context.Cause(ctx)
		}
		_, now, err := v.lease(ctx)
		if err != nil {
			return err
		}
		if now != etag {
			return v.inUse(ctx)
		}
	}
}

// pause waits and says whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// leaseKeeper renews one lease.
type leaseKeeper struct {
	v *Vault
	o LeaseOptions

	mu      sync.Mutex // guards what follows
	rec     leaseRecord
	etag    string
	renewed time.Time // monotonic: when the last renewal that succeeded began
}

// run renews the lease until ctx ends, and releases it then, or returns why it
// is lost.
func (k *leaseKeeper) run(ctx context.Context) error {
	failing := false
	for {
		if !pause(ctx, k.o.Beat) {
			k.release(ctx)
			return context.Cause(ctx)
		}
		k.mu.Lock()
		err := k.renew(ctx)
		k.mu.Unlock()
		switch {
		case errors.Is(err, ErrInUse):
			return fmt.Errorf("%w: %w", ErrLeaseLost, err)
		case err != nil && ctx.Err() == nil && !failing:
			k.o.Logger.Warn("lease of the vault is not renewed", "error", err)
		case err == nil && failing:
			k.o.Logger.Info("lease of the vault is renewed again")
		}
		failing = err != nil
	}
}

// renew raises the counter. mu is held.
func (k *leaseKeeper) renew(ctx context.Context) error {
	// A store that hangs must not keep the lease alive in our eyes.
	ctx, cancel := context.WithTimeout(ctx, k.o.Watch-k.o.Beat)
	defer cancel()
	began := time.Now()
	rec := k.rec
	rec.Counter++
	etag, err := k.v.putLease(ctx, rec, k.etag)
	if err == nil {
		k.rec, k.etag, k.renewed = rec, etag, began
		return nil
	}
	if errors.Is(err, ErrInUse) {
		// Perhaps by ourselves, by a write whose answer was lost.
		cur, now, gerr := k.v.lease(ctx)
		if gerr == nil && cur.Session == rec.Session {
			k.rec, k.etag, k.renewed = cur, now, began
			return nil
		}
		if gerr != nil && !isDamage(gerr) {
			return gerr // it is not known who has it: the next beat will tell
		}
	}
	return err
}

// release lets the next server in at once. If it cannot, that one has to watch.
func (k *leaseKeeper) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), k.o.Beat)
	defer cancel()
	k.mu.Lock()
	defer k.mu.Unlock()
	rec := k.rec
	rec.Counter++
	rec.Released = true
	if _, err := k.v.putLease(ctx, rec, k.etag); err != nil {
		k.o.Logger.Warn("lease is not released", "error", err)
	}
}
