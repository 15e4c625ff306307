package providertest_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/providertest"
)

// newWeb returns a fake site with a machine "id-web" that is off.
func newWeb(t *testing.T) (*providertest.Fake, *provider.Site) {
	t.Helper()
	f := providertest.NewFake("a", nil)
	f.AddMachine(providertest.FakeMachine("id-web", "web", "vda"))
	f.SetPower("id-web", provider.PowerOff)
	return f, f.Site()
}

func TestOpenDiskAndPower(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	f, s := newWeb(t)
	if err := s.Power.Start(ctx, "id-web"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Replica.OpenDisk(ctx, "id-web", "vda"); !errors.Is(err, provider.ErrRunning) {
		t.Errorf("OpenDisk of a running machine: %v", err)
	}
	if err := s.Source.Shutdown(ctx, "id-web"); err != nil {
		t.Fatal(err)
	}
	d, err := s.Replica.OpenDisk(ctx, "id-web", "vda")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Power.Start(ctx, "id-web"); err == nil {
		t.Error("a machine started while its disk was open")
	}
	f.SetPower("id-web", provider.PowerRunning)
	if m, err := s.Inventory.Machine(ctx, "id-web"); err != nil || m.Power != provider.PowerOff {
		t.Errorf("power of a machine with an open disk: %s, %v", m.Power, err)
	}
	want := bytes.Repeat([]byte{7}, 512)
	if err := errors.Join(d.WriteAt(ctx, want, 512), d.Flush(ctx), d.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
	if err := d.WriteAt(ctx, want, 0); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("write to a closed disk: %v", err)
	}
	got := make([]byte, 512)
	if err := f.Disk("id-web", "vda").ReadAt(ctx, got, 512); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the disk has not what was written: %v", err)
	}
	if err := s.Power.Start(ctx, "id-web"); err != nil {
		t.Errorf("start after the disk was closed: %v", err)
	}
}

func TestGuardBindsEveryStart(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	f, s := newWeb(t)
	m := providertest.FakeMachine("id-web", "web", "vda")
	id, err := s.Target.Define(ctx, provider.Recovered{Handle: "h", Name: "copy", Machine: m})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Power.Guard(ctx, id, "elsewhere"); err != nil {
		t.Fatal(err)
	}
	for name, start := range map[string]func() error{
		"Power":  func() error { return s.Power.Start(ctx, id) },
		"Target": func() error { return s.Target.Start(ctx, "h") },
	} {
		if err := start(); !errors.Is(err, provider.ErrGuarded) {
			t.Errorf("%s.Start of a guarded machine: %v", name, err)
		}
	}
	if err := s.Power.Unguard(ctx, id); err != nil {
		t.Fatal(err)
	}
	if err := s.Power.Start(ctx, id); err != nil {
		t.Error(err)
	}
	if r, _ := f.Recovered("h"); r.Starts != 1 || r.Power != provider.PowerRunning {
		t.Errorf("after Power.Start of a recovered machine: %+v", r)
	}
}

func TestRecoveredDisks(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	f, s := newWeb(t)
	view, err := block.NewMemDisk(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	if err := view.WriteAt(ctx, []byte("from the view"), 4096); err != nil {
		t.Fatal(err)
	}
	f.SetViews(func(context.Context, provider.DiskSource) (block.Image, error) { return view, nil })
	id, err := s.Target.Define(ctx, provider.Recovered{
		Handle: "h", Name: "copy", Machine: providertest.FakeMachine("id-web", "web", "vda"),
		Disks: []provider.DiskSource{{DiskID: "vda", Size: 1 << 20}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Target.Start(ctx, "h"); err != nil {
		t.Fatal(err)
	}
	if err := f.Disk(id, "vda").WriteAt(ctx, []byte("by the guest"), 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Source.Kill(ctx, id); err != nil {
		t.Fatal(err)
	}
	early, err := s.Replica.OpenDisk(ctx, id, "vda")
	if err != nil {
		t.Fatal(err)
	}
	if err := early.Close(); err != nil {
		t.Error(err)
	}
	if err := errors.Join(s.Power.Start(ctx, id), s.Target.Hydrate(ctx, "h", nil), s.Source.Kill(ctx, id)); err != nil {
		t.Fatal(err)
	}
	d, err := s.Replica.OpenDisk(ctx, id, "vda")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for off, want := range map[int64]string{0: "by the guest", 4096: "from the view"} {
		got := make([]byte, len(want))
		if err := d.ReadAt(ctx, got, off); err != nil || string(got) != want {
			t.Errorf("at %d: %q, %v, want %q", off, got, err, want)
		}
	}
	if err := s.Target.Remove(ctx, "h"); err == nil {
		t.Error("a machine with an open disk was removed")
	}
}

func TestLostHostClosesDisks(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	f, s := newWeb(t)
	d, err := s.Replica.OpenDisk(ctx, "id-web", "vda")
	if err != nil {
		t.Fatal(err)
	}
	f.LoseHost()
	if err := d.Flush(ctx); !errors.Is(err, providertest.ErrUnreachable) {
		t.Errorf("flush while the host is lost: %v", err)
	}
	f.SetDown(false)
	if err := d.Flush(ctx); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("flush of a disk that was open when the host was lost: %v", err)
	}
	again, err := s.Replica.OpenDisk(ctx, "id-web", "vda")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := again.Flush(ctx); err != nil {
		t.Errorf("the old opening's Close closed the new one: %v", err)
	}
}

func TestThawFailsAsWell(t *testing.T) {
	t.Parallel()
	f, s := newWeb(t)
	f.SetPower("id-web", provider.PowerRunning)
	f.SetAgent("id-web", 2)
	boom := errors.New("boom")
	f.Script(providertest.Fault{Method: "Freeze", Err: boom, After: true}, providertest.Fault{Method: "Thaw", Call: 1, Err: boom})
	if _, err := s.Agent.Freeze(t.Context(), "id-web"); !errors.Is(err, provider.ErrFrozen) || !errors.Is(err, boom) {
		t.Errorf("Freeze: %v, want ErrFrozen", err)
	}
	if frozen, _ := f.Frozen("id-web"); !frozen {
		t.Error("the guest is not frozen")
	}
	if err := s.Agent.Thaw(t.Context(), "id-web"); err != nil {
		t.Error(err)
	}
	if frozen, times := f.Frozen("id-web"); frozen || times != 1 {
		t.Errorf("frozen %t, %d times", frozen, times)
	}
}

// TestFreezeNeverStays lets freezes fail in all ways.
func TestFreezeNeverStays(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	for _, tt := range []struct {
		name  string
		fault providertest.Fault
		err   error
		calls []string
	}{
		{"works", providertest.Fault{}, nil, []string{"Freeze(id-web)"}},
		{"refused", providertest.Fault{Method: "Freeze", Err: boom}, boom, []string{"Freeze(id-web): boom", "Thaw(id-web)"}},
		{"the answer is lost", providertest.Fault{Method: "Freeze", Err: boom, After: true}, boom, []string{"Freeze(id-web): boom", "Thaw(id-web)"}},
		{"hangs", providertest.Fault{Method: "Freeze", Delay: time.Hour}, context.DeadlineExceeded, []string{"Freeze(id-web): context deadline exceeded", "Thaw(id-web)"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f, s := newWeb(t)
				f.SetPower("id-web", provider.PowerRunning)
				f.SetAgent("id-web", 2)
				f.Script(tt.fault)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				n, err := s.Agent.Freeze(ctx, "id-web")
				if !errors.Is(err, tt.err) || (err == nil) != (n == 2) {
					t.Errorf("Freeze: %d, %v, want %v", n, err, tt.err)
				}
				if frozen, _ := f.Frozen("id-web"); frozen != (err == nil) {
					t.Errorf("frozen: %t after %v", frozen, err)
				}
				var calls []string
				for _, c := range f.Calls("Freeze", "Thaw") {
					calls = append(calls, c.String())
				}
				if diff := cmp.Diff(tt.calls, calls); diff != "" {
					t.Errorf("calls (-want +got):\n%s", diff)
				}
				f.SetPower("id-web", provider.PowerOff)
				if frozen, _ := f.Frozen("id-web"); frozen {
					t.Error("a machine that is off is frozen")
				}
			})
		})
	}
}
