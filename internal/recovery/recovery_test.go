package recovery_test

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/nbd"
	"github.com/holdfast-dr/holdfast/internal/recovery"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// image is a disk that counts how often it is closed, and can be slow.
type image struct {
	*block.MemDisk
	closed atomic.Int32
	hold   chan struct{} // reads wait for it, if not nil
}

func (i *image) Close() error { i.closed.Add(1); return nil }

func (i *image) ReadAt(ctx context.Context, p []byte, off int64) error {
	if i.hold != nil {
		select {
		case <-i.hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return i.MemDisk.ReadAt(ctx, p, off)
}

func newImage(t *testing.T, fill byte) *image {
	t.Helper()
	mem, err := block.NewMemDisk(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	if err := mem.WriteAt(t.Context(), bytes.Repeat([]byte{fill}, 64<<10), 128<<10); err != nil {
		t.Fatal(err)
	}
	return &image{MemDisk: mem}
}

// serve runs exports until the test ends.
func serve(t *testing.T) *recovery.Exports {
	t.Helper()
	e := recovery.NewExports(recovery.Options{Socket: filepath.Join(t.TempDir(), "run", "views.sock")})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return e
}

func dial(t *testing.T, e *recovery.Exports, name string) *nbd.Client {
	t.Helper()
	for {
		c, err := nbd.Dial(t.Context(), "unix", e.Socket(), nbd.DialOptions{Export: name})
		if err == nil {
			t.Cleanup(func() { _ = c.Close() })
			return c
		}
		if errors.Is(err, nbd.ErrUnknownExport) {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Millisecond) // it is about to listen
	}
}

// TestExports reads views over NBD: what is served is the image, and cannot be
// written.
func TestExports(t *testing.T) {
	t.Parallel()
	e := serve(t)
	a, b := newImage(t, 1), newImage(t, 2)
	for name, i := range map[string]*image{"a": a, "b": b} {
		if err := e.Add(name, i); err != nil {
			t.Fatal(err)
		}
	}
	var all sync.WaitGroup
	for name, i := range map[string]*image{"a": a, "b": b} {
		for range 3 {
			c := dial(t, e, name)
			all.Go(func() {
				same, err := block.Equal(t.Context(), c, i.MemDisk)
				if err != nil || !same {
					t.Errorf("view %s: equal %v, %v", name, same, err)
				}
				if err := c.WriteAt(t.Context(), make([]byte, 512), 0); err == nil {
					t.Errorf("view %s was written", name)
				}
			})
		}
	}
	all.Wait()
	second := newImage(t, 3)
	if err := e.Add("a", second); err != nil || second.closed.Load() != 1 {
		t.Errorf("a second image of the same name: %v, closed %d times", err, second.closed.Load())
	}
	if _, err := nbd.Dial(t.Context(), "unix", e.Socket(), nbd.DialOptions{Export: "nix"}); !errors.Is(err, nbd.ErrUnknownExport) {
		t.Errorf("an unknown view: %v", err)
	}
	for range 2 {
		if err := e.Remove("a"); err != nil || a.closed.Load() != 1 || e.Has("a") || !e.Has("b") {
			t.Errorf("remove: %v, closed %d times", err, a.closed.Load())
		}
	}
	if err := e.Remove("b"); err != nil {
		t.Error(err)
	}
}

// TestRemoveWhileRead takes a view away under a reader: it is cut off, nothing
// hangs, and another view goes on.
func TestRemoveWhileRead(t *testing.T) {
	t.Parallel()
	e := serve(t)
	slow, other := newImage(t, 1), newImage(t, 2)
	slow.hold = make(chan struct{})
	for name, i := range map[string]*image{"slow": slow, "other": other} {
		if err := e.Add(name, i); err != nil {
			t.Fatal(err)
		}
	}
	c, d := dial(t, e, "slow"), dial(t, e, "other")
	read := make(chan error, 1)
	go func() { read <- c.ReadAt(t.Context(), make([]byte, 4096), 128<<10) }()
	if err := e.Remove("slow"); err != nil {
		t.Error(err)
	}
	select {
	case err := <-read:
		if err == nil {
			t.Error("a read of a view that was taken away succeeded")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the reader hangs")
	}
	p := make([]byte, 4096)
	if err := d.ReadAt(t.Context(), p, 128<<10); err != nil || p[0] != 2 {
		t.Errorf("the other view: %v, %d", err, p[0])
	}
	if err := e.Remove("other"); err != nil {
		t.Error(err)
	}
}
