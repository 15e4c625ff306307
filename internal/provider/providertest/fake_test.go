package providertest_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/providertest"
)

func harness(f *providertest.Fake) providertest.Harness {
	return providertest.Harness{
		Open:    func(*testing.T) *provider.Site { return f.Site() },
		Running: "web",
		Victim: func(*testing.T) string {
			f.AddMachine(providertest.FakeMachine("id-victim", "victim", "vda"))
			return "id-victim"
		},
		WithAgent: func(*testing.T) string {
			f.AddMachine(providertest.FakeMachine("id-agent", "agent", "vda"))
			f.SetAgent("id-agent", 1)
			return "id-agent"
		},
		View: func(_ *testing.T, o providertest.ServeOptions) *providertest.View {
			return providertest.NewView(provider.DiskSource{DiskID: o.DiskID, Size: o.Size, Socket: "/nowhere", Export: o.DiskID}, providertest.Content(o.Size, o.Seed), nil)
		},
		Leftovers: func(*testing.T) []string { return f.Handles() },
	}
}

func TestFakePassesSuite(t *testing.T) {
	t.Parallel()
	f := providertest.NewFake("a", nil)
	f.AddMachine(providertest.FakeMachine("id-web", "web", "vda", "vdb"))
	f.AddMachine(providertest.FakeMachine("id-db", "db", "vda"))
	f.SetViews(func(ctx context.Context, s provider.DiskSource) (block.Image, error) {
		d, err := block.NewMemDisk(s.Size)
		if err != nil {
			return nil, err
		}
		// As the suite has it: the seed is the number of the disk.
		content := providertest.Content(s.Size, uint64(s.DiskID[2]-'a'+1))
		for off := int64(0); off < s.Size && err == nil; off += 1 << 20 {
			if off>>20%4 != 3 {
				err = d.WriteAt(ctx, content[off:off+1<<20], off)
			}
		}
		return d, err
	})
	providertest.Run(t, harness(f))
}

func TestFaults(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	f := providertest.NewFake("a", nil)
	f.AddMachine(providertest.FakeMachine("id-web", "web", "vda"))
	boom := errors.New("boom")
	f.Script(
		providertest.Fault{Method: "Define", Call: 1, Err: boom},
		providertest.Fault{Method: "Define", Call: 2, Err: boom, After: true},
		providertest.Fault{Method: "HydrateStep", Call: 3, Err: boom},
	)
	target := f.Site().Target
	r := provider.Recovered{Handle: "h", Name: "web-r", Machine: providertest.FakeMachine("id-web", "web", "vda"), Disks: []provider.DiskSource{{DiskID: "vda", Size: 64 << 20}}}
	if _, err := target.Define(ctx, r); !errors.Is(err, boom) || len(f.Handles()) != 0 {
		t.Errorf("first Define: %v, handles %v", err, f.Handles())
	}
	if _, err := target.Define(ctx, r); !errors.Is(err, boom) || len(f.Handles()) != 1 {
		t.Errorf("Define whose answer is lost: %v, handles %v", err, f.Handles())
	}
	if _, err := target.Define(ctx, r); err != nil {
		t.Errorf("third Define: %v", err)
	}
	if err := target.Start(ctx, "h"); err != nil {
		t.Fatal(err)
	}
	if err := target.Hydrate(ctx, "h", nil); !errors.Is(err, boom) {
		t.Errorf("Hydrate: %v", err)
	}
	if got, _ := f.Recovered("h"); got.Hydrated != 16<<20 || got.Starts != 1 {
		t.Errorf("after a hydration that failed at its third step: %+v", got)
	}
	if err := target.Hydrate(ctx, "h", nil); err != nil {
		t.Errorf("Hydrate again: %v", err)
	}
	var log []string
	for _, c := range f.Calls("Define", "Start", "Hydrate") {
		log = append(log, c.String())
	}
	want := []string{"Define(h): boom", "Define(h): boom", "Define(h)", "Start(h)", "Hydrate(h)", "Hydrate(h)"}
	if diff := cmp.Diff(want, log); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}

func TestDelayEndsWithContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := providertest.NewFake("a", nil)
		f.Script(providertest.Fault{Method: "Machines", Delay: time.Hour})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begin := time.Now()
		_, err := f.Site().Inventory.Machines(ctx)
		if took := time.Since(begin); !errors.Is(err, context.DeadlineExceeded) || took != time.Minute {
			t.Errorf("%v after %v, want the deadline after a minute", err, took)
		}
	})
}

func TestTwoLiveCopies(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name      string
		before    func(primary *providertest.Fake)
		isolated  bool
		conflicts int
	}{
		{"the original runs", func(*providertest.Fake) {}, false, 1},
		{"the original is unreachable but runs", func(p *providertest.Fake) { p.SetDown(true) }, false, 1},
		{"the original's host is lost", func(p *providertest.Fake) { p.LoseHost() }, false, 0},
		{"the original is off", func(p *providertest.Fake) { p.SetPower("id-web", provider.PowerOff) }, false, 0},
		{"a test failover", func(*providertest.Fake) {}, true, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			world := providertest.NewWorld()
			primary, recovery := providertest.NewFake("primary", world), providertest.NewFake("recovery", world)
			m := providertest.FakeMachine("id-web", "web", "vda")
			primary.AddMachine(m)
			tt.before(primary)
			target := recovery.Site().Target
			if _, err := target.Define(ctx, provider.Recovered{Handle: "h", Name: "web", Machine: m, Isolated: tt.isolated}); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := target.Start(ctx, "h"); err != nil {
					t.Fatal(err)
				}
			}
			if got := world.Conflicts(); len(got) != tt.conflicts {
				t.Errorf("conflicts: %q, want %d", got, tt.conflicts)
			}
		})
	}
}

func TestDownSite(t *testing.T) {
	t.Parallel()
	f := providertest.NewFake("a", nil)
	f.SetDown(true)
	if _, err := f.Site().Inventory.Machines(t.Context()); !errors.Is(err, providertest.ErrUnreachable) {
		t.Errorf("Machines of a site that is down: %v", err)
	}
	f.SetDown(false)
	if _, err := f.Site().Inventory.Machines(t.Context()); err != nil {
		t.Errorf("Machines of a site that is up again: %v", err)
	}
}
