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

// ErrInUse says that another server works with the vault.
var ErrInUse = errors.New("the vault is in use by another server")

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

// leaseRecord is the object `lease`.
type leaseRecord struct {
	Format  int    `json:"format"`
	Owner   string `json:"owner"`
	Host    string `json:"host"`
	Session string `json:"session"` // random, of each time that it is taken
	Counter uint64 `json:"counter"` // raised by each renewal
}

// Lease is held by the one server that works with a vault.
type Lease struct {
	cancel context.CancelCauseFunc
	done   sync.WaitGroup
}

// AcquireLease makes this the only server of the vault. The context that it
// returns ends when the lease is lost, with ErrInUse as its cause, or on
// Release. A lease of the same owner is taken over at once; one of another only
// if it does not move while it is watched, on this machine's monotonic clock, so
// that wrong wall clocks do no harm. It fails with ErrInUse.
func (v *Vault) AcquireLease(ctx context.Context, o LeaseOptions) (context.Context, *Lease, error) {
	if o.Beat <= 0 {
		o.Beat = 3 * time.Second
	}
	if o.Watch <= 0 {
		o.Watch = 5 * o.Beat
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	rec, etag, err := v.lease(ctx)
	if err != nil {
		return nil, nil, err
	}
	if etag != "" && rec.Owner != o.Owner {
		o.Logger.Info("another server has worked with this vault; watching whether it still does", "host", rec.Host, "for", o.Watch)
		if etag, err = v.watchLease(ctx, etag, o); err != nil {
			return nil, nil, err
		}
	}
	next := leaseRecord{Format: FormatVersion, Owner: o.Owner, Host: o.Host, Session: rand.Text(), Counter: rec.Counter + 1}
	if etag, err = v.putLease(ctx, next, etag); err != nil {
		return nil, nil, err
	}
	held, cancel := context.WithCancelCause(ctx)
	l := &Lease{cancel: cancel}
	l.done.Go(func() { cancel(v.keepLease(held, next, etag, o)) })
	return held, l, nil
}

// Release ends the renewing. The next server of the same owner takes the lease
// at once, another after having watched it.
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
func (v *Vault) watchLease(ctx context.Context, etag string, o LeaseOptions) (string, error) {
	for end := time.Now().Add(o.Watch); time.Now().Before(end); {
		t := time.NewTimer(o.Beat)
		select {
		case <-ctx.Done():
			t.Stop()
			return "", context.Cause(ctx)
		case <-t.C:
		}
		_, now, err := v.lease(ctx)
		if err != nil {
			return "", err
		}
		if now != etag {
			return "", v.inUse(ctx)
		}
	}
	return etag, nil
}

// keepLease renews the lease until ctx ends, or returns why it is lost. A store
// that cannot be written for a while does not lose it: nobody else can take it
// then either.
func (v *Vault) keepLease(ctx context.Context, rec leaseRecord, etag string, o LeaseOptions) error {
	tick := time.NewTicker(o.Beat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		rec.Counter++
		next, err := v.putLease(ctx, rec, etag)
		switch {
		case err == nil:
			etag = next
		case errors.Is(err, ErrInUse):
			if cur, now, gerr := v.lease(ctx); gerr == nil && cur.Session == rec.Session {
				etag = now // our own write, whose answer was lost
				continue
			} else if gerr != nil && !isDamage(gerr) {
				continue // it is not known who has it; the next beat will tell
			}
			return err
		default:
			o.Logger.Warn("lease is not renewed", "error", err)
		}
	}
}
