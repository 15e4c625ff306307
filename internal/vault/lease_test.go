package vault_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// leaseWorld is a vault in memory, as two servers see it.
type leaseWorld struct {
	a, b   *vault.Vault
	faults vfs.Faults // of a's file system
}

// newLeaseWorld makes one; it belongs in a synctest bubble.
func newLeaseWorld(t *testing.T) *leaseWorld {
	t.Helper()
	w := &leaseWorld{}
	mem := vfs.NewMem()
	if err := mem.MkdirAll("/v"); err != nil {
		t.Fatal(err)
	}
	key, err := vault.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	for i, fsys := range []vfs.FS{vfs.WithFaults(mem, &w.faults), mem} {
		store, err := objstore.NewDir(fsys, "/v")
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			w.a, err = vault.Create(t.Context(), store, vault.CreateOptions{Key: key, Now: start})
		} else {
			w.b, err = vault.Open(t.Context(), store, key, vault.Options{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { verify(t, w.b) })
	return w
}

func acquire(t *testing.T, v *vault.Vault, owner string) (context.Context, *vault.Lease) {
	t.Helper()
	ctx, lease, err := v.AcquireLease(t.Context(), vault.LeaseOptions{Owner: owner, Host: owner + ".example"})
	if err != nil {
		t.Fatal(err)
	}
	return ctx, lease
}

// TestLeaseExcludes has a second server refused, by name, while the first lives,
// and let in at once when it has stopped.
func TestLeaseExcludes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newLeaseWorld(t)
		ctx, lease := acquire(t, w.a, "a")
		_, _, err := w.b.AcquireLease(t.Context(), vault.LeaseOptions{Owner: "b"})
		if !errors.Is(err, vault.ErrInUse) || !strings.Contains(err.Error(), "a.example") {
			t.Errorf("second server: %v, want ErrInUse that names a.example", err)
		}
		time.Sleep(time.Hour)
		if ctx.Err() != nil {
			t.Errorf("the lease ended: %v", context.Cause(ctx))
		}
		lease.Release()
		if ctx.Err() == nil {
			t.Error("the context outlives the lease")
		}
		began := time.Now()
		_, second := acquire(t, w.b, "b")
		if waited := time.Since(began); waited > 0 {
			t.Errorf("the second server waited %s for a released lease", waited)
		}
		second.Release()
	})
}

// TestLeaseOfDead lets another server in when the first one has not moved for 15
// seconds, and not before; its own successor at once.
func TestLeaseOfDead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newLeaseWorld(t)
		var dead atomic.Bool
		w.faults.SetHook(func(vfs.Op) error {
			if dead.Load() {
				return vfs.ErrCrashed
			}
			return nil
		})
		_, lease := acquire(t, w.a, "a")
		time.Sleep(time.Minute)
		dead.Store(true)
		lease.Release()
		began := time.Now()
		_, second := acquire(t, w.b, "b")
		if waited := time.Since(began); waited < 15*time.Second || waited > 20*time.Second {
			t.Errorf("the lease of a dead server was taken after %s, want 15 s", waited)
		}
		second.Release()
		_, again := acquire(t, w.b, "b")
		began = time.Now()
		_, successor := acquire(t, w.b, "b") // the same owner, while the old one seems to live
		if waited := time.Since(began); waited > 0 {
			t.Errorf("the same owner waited %s", waited)
		}
		again.Release()
		successor.Release()
	})
}

// TestLeaseTaken tells the holder that the lease is another's.
func TestLeaseTaken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newLeaseWorld(t)
		ctx, lease := acquire(t, w.a, "a")
		_, taker := acquire(t, w.b, "a")
		<-ctx.Done()
		if err := context.Cause(ctx); !errors.Is(err, vault.ErrLeaseLost) {
			t.Errorf("the context ended with %v, want ErrLeaseLost", err)
		}
		lease.Release() // must not release what is another's
		_, _, err := w.a.AcquireLease(t.Context(), vault.LeaseOptions{Owner: "c"})
		if !errors.Is(err, vault.ErrInUse) {
			t.Errorf("a third server after the release of a lost lease: %v, want ErrInUse", err)
		}
		taker.Release()
	})
}

// TestLeaseSurvivesShortFailure fails the store for less than it takes anyone to
// take the lease over.
func TestLeaseSurvivesShortFailure(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newLeaseWorld(t)
		ctx, lease := acquire(t, w.a, "a")
		defer lease.Release()
		time.Sleep(time.Minute)
		w.faults.SetHook(func(vfs.Op) error { return syscall.EIO })
		time.Sleep(8 * time.Second)
		w.faults.Clear()
		time.Sleep(time.Minute)
		if ctx.Err() != nil {
			t.Errorf("a failure of 8 s cost the lease: %v", context.Cause(ctx))
		}
	})
}

// TestLeaseLostAnswer has a renewal written whose answer is lost: the holder must
// know its own writing.
func TestLeaseLostAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newLeaseWorld(t)
		ctx, lease := acquire(t, w.a, "a")
		defer lease.Release()
		w.faults.Inject(vfs.Fault{Kind: vfs.OpSyncDir, Err: syscall.EIO, Count: 2})
		time.Sleep(time.Minute)
		if ctx.Err() != nil {
			t.Errorf("the holder took its own renewal for another's: %v", context.Cause(ctx))
		}
	})
}

// TestLeaseInDoubt takes the store away from the holder for long: it keeps the
// lease if nobody wanted it, but must not act meanwhile.
func TestLeaseInDoubt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newLeaseWorld(t)
		ctx, lease := acquire(t, w.a, "a")
		defer lease.Release()
		time.Sleep(time.Minute)
		w.faults.SetHook(func(vfs.Op) error { return syscall.EROFS })
		if err := lease.Confirm(ctx); err != nil {
			t.Errorf("just after a renewal: %v", err)
		}
		time.Sleep(time.Hour)
		if err := lease.Confirm(ctx); !errors.Is(err, syscall.EROFS) {
			t.Errorf("after an hour without the store: %v, want EROFS", err)
		}
		w.faults.Clear()
		if err := lease.Confirm(ctx); err != nil {
			t.Errorf("with the store back: %v", err)
		}
		if ctx.Err() != nil {
			t.Errorf("the context has ended: %v", context.Cause(ctx))
		}
	})
}

// TestLeaseTakenInDoubt takes the store away from the holder, and not from another
// server, which takes over: the holder must not act before it knows, and end
// when it does.
func TestLeaseTakenInDoubt(t *testing.T) {
	t.Parallel()
	for _, offset := range []time.Duration{0, time.Millisecond, time.Second, 2999 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			w := newLeaseWorld(t)
			ctx, lease := acquire(t, w.a, "a")
			defer lease.Release()
			time.Sleep(time.Minute + offset)
			w.faults.SetHook(func(vfs.Op) error { return syscall.EIO })
			_, other := acquire(t, w.b, "b")
			if err := lease.Confirm(ctx); err == nil {
				t.Error("another has the lease, and the holder confirms its own")
			}
			w.faults.Clear()
			if err := lease.Confirm(ctx); !errors.Is(err, vault.ErrLeaseLost) {
				t.Errorf("with the store back: %v, want ErrLeaseLost", err)
			}
			<-ctx.Done()
			if err := context.Cause(ctx); !errors.Is(err, vault.ErrLeaseLost) {
				t.Errorf("the context ended with %v, want ErrLeaseLost", err)
			}
			other.Release()
		})
	}
}
