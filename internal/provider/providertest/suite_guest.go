package providertest

import (
	"bytes"
	"context"
	"errors"
	"image/png"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/provider"
)

func (h Harness) replica(t *testing.T) {
	h.has(t, "Replica or Target", func(s *provider.Site) bool { return s.Replica != nil && s.Target != nil })
	t.Run("unknown", func(t *testing.T) {
		ctx, rec := h.recover(t, 0)
		id := rec.mustDefine(ctx, t)
		for name, at := range map[string][2]string{"machine": {"no-such-machine", "vda"}, "disk": {id, "no-such-disk"}} {
			if _, err := rec.site.Replica.OpenDisk(ctx, at[0], at[1]); !errors.Is(err, provider.ErrNotFound) {
				t.Errorf("%s: %v, want ErrNotFound", name, err)
			}
		}
	})
	t.Run("needs its view", func(t *testing.T) {
		ctx, rec := h.recover(t, 0)
		id := rec.mustDefine(ctx, t)
		disk := rec.r.Disks[0].DiskID
		d := rec.openDisk(ctx, t, id, disk)
		checkDisk(ctx, t, d, rec.views[disk].Content)
		if err := d.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		rec.mustStart(ctx, t)
	})
	t.Run("disks", h.replicaDisks)
}

func (h Harness) replicaDisks(t *testing.T) {
	ctx, rec := h.recover(t, 0)
	id := rec.mustDefine(ctx, t)
	rec.mustStart(ctx, t)
	if err := rec.target.Hydrate(ctx, rec.r.Handle, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := rec.site.Replica.OpenDisk(ctx, id, rec.r.Disks[0].DiskID); !errors.Is(err, provider.ErrRunning) {
		t.Errorf("OpenDisk of a running machine: %v, want ErrRunning", err)
	}
	if err := rec.site.Source.Kill(ctx, id); err != nil {
		t.Fatal(err)
	}
	for _, s := range rec.r.Disks {
		want := bytes.Clone(rec.views[s.DiskID].Content)
		rec.useDisk(ctx, t, id, s.DiskID, want)
		d := rec.openDisk(ctx, t, id, s.DiskID)
		checkDisk(ctx, t, d, want)
		if err := d.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := rec.site.Replica.OpenDisk(gone, id, rec.r.Disks[0].DiskID); !errors.Is(err, context.Canceled) {
		t.Errorf("OpenDisk with a cancelled context: %v", err)
	}
	rec.mustStart(ctx, t)
}

func (rec *recovery) openDisk(ctx context.Context, t *testing.T, id, disk string) provider.ReplicaDisk {
	t.Helper()
	opening, cancel := context.WithCancel(ctx)
	d, err := rec.site.Replica.OpenDisk(opening, id, disk)
	cancel() // which must not matter any more
	if err != nil {
		t.Fatalf("OpenDisk: %v", err)
	}
	return d
}

// useDisk writes to a disk and to want alike, and checks that nobody else gets
// at it meanwhile.
func (rec *recovery) useDisk(ctx context.Context, t *testing.T, id, disk string, want []byte) {
	t.Helper()
	h := rec.h
	d := rec.openDisk(ctx, t, id, disk)
	if d.Size() != h.DiskSize {
		t.Errorf("size %d, want %d", d.Size(), h.DiskSize)
	}
	if len(want) > 0 { // else the harness has no content
		checkDisk(ctx, t, d, want)
	}
	if other, err := rec.site.Replica.OpenDisk(ctx, id, disk); err == nil {
		t.Errorf("a disk was opened twice; close: %v", other.Close())
	}
	for name, start := range map[string]func() error{
		"Target.Start": func() error { return rec.target.Start(ctx, rec.r.Handle) },
		"Power.Start":  func() error { return rec.site.Power.Start(ctx, id) },
	} {
		if err := start(); err == nil {
			t.Errorf("%s while a disk is open succeeded", name)
		}
	}
	h.expectPower(ctx, t, rec.site, id, provider.PowerOff)
	piece := bytes.Repeat([]byte{0xa5}, 3*512)
	zeroes := []block.Extent{{Offset: 1 << 20, Length: 1 << 20}, {Offset: 5<<20 + 512, Length: 70 << 10}}
	err := d.WriteAt(ctx, piece, 3<<20+512)
	for i, e := range zeroes {
		err = errors.Join(err, d.Zero(ctx, e, i == 0))
	}
	if err := errors.Join(err, d.Flush(ctx)); err != nil {
		t.Fatal(err)
	}
	if len(want) > 0 {
		copy(want[3<<20+512:], piece)
		for _, e := range zeroes {
			clear(want[e.Offset:e.End()])
		}
		if zero := checkDisk(ctx, t, d, want); zero < zeroes[0].Length {
			t.Errorf("Map knows of %d bytes of zeroes after %d were made", zero, zeroes[0].Length)
		}
	}
	if err := d.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// checkDisk compares all of a disk, and what Map says of it, with what it
// should have, and returns how many bytes Map calls zero. Without content it
// compares nothing.
func checkDisk(ctx context.Context, t *testing.T, d provider.ReplicaDisk, want []byte) (zero int64) {
	t.Helper()
	if len(want) == 0 {
		return 0
	}
	got := make([]byte, d.Size())
	if err := d.ReadAt(ctx, got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the disk's content is not what it should be")
	}
	for off := int64(0); off < d.Size(); {
		spans, err := d.Map(ctx, block.Extent{Offset: off, Length: d.Size() - off})
		if err != nil || len(spans) == 0 {
			t.Fatalf("Map at %d: %d spans, %v", off, len(spans), err)
		}
		for _, sp := range spans {
			if sp.Offset != off || sp.Length <= 0 {
				t.Fatalf("Map: %+v where the span at %d is due", sp, off)
			}
			off = sp.End()
			if !sp.Zero {
				continue
			}
			zero += sp.Length
			if len(bytes.Trim(want[sp.Offset:sp.End()], "\x00")) > 0 {
				t.Errorf("Map: %+v is not zero", sp)
			}
		}
	}
	return zero
}

func (h Harness) agent(t *testing.T) {
	h.has(t, "Agent", func(s *provider.Site) bool { return s.Agent != nil })
	t.Run("unknown machine", func(t *testing.T) {
		ctx, site := h.open(t)
		checkAgent(ctx, t, site.Agent, "no-such-machine", provider.ErrNotFound)
	})
	t.Run("no agent", func(t *testing.T) {
		h.has(t, "Target", func(s *provider.Site) bool { return s.Target != nil })
		ctx, rec := h.recover(t, 0)
		id := rec.mustDefine(ctx, t)
		checkAgent(ctx, t, rec.site.Agent, id, provider.ErrNotRunning)
		rec.mustStart(ctx, t)
		checkAgent(ctx, t, rec.site.Agent, id, provider.ErrNoAgent) // its disk is junk
	})
	t.Run("agent", func(t *testing.T) {
		if h.WithAgent == nil {
			t.Skip("the harness makes no machine with an agent")
		}
		ctx, site := h.open(t)
		id := h.WithAgent(t)
		if err := errors.Join(site.Agent.Ping(ctx, id), site.Agent.Thaw(ctx, id)); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if n, err := site.Agent.Freeze(ctx, id); err != nil || n < 1 {
				t.Fatalf("Freeze: %d, %v", n, err)
			}
			if err := errors.Join(site.Agent.Thaw(ctx, id), site.Agent.Thaw(ctx, id)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func checkAgent(ctx context.Context, t *testing.T, a provider.Agent, id string, want error) {
	t.Helper()
	for name, call := range map[string]func(context.Context) error{
		"Ping":   func(ctx context.Context) error { return a.Ping(ctx, id) },
		"Freeze": func(ctx context.Context) error { _, err := a.Freeze(ctx, id); return err },
		"Thaw":   func(ctx context.Context) error { return a.Thaw(ctx, id) },
		"Ask":    func(ctx context.Context) error { return a.Ask(ctx, id, "guest-info", nil, nil) },
	} {
		ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		if err := call(ctx); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
		cancel()
	}
}

func (h Harness) console(t *testing.T) {
	h.has(t, "Console or Target", func(s *provider.Site) bool { return s.Console != nil && s.Target != nil })
	ctx, rec := h.recover(t, 0)
	id := rec.mustDefine(ctx, t)
	if _, err := rec.site.Console.Screenshot(ctx, "no-such-machine"); !errors.Is(err, provider.ErrNotFound) {
		t.Errorf("of an unknown machine: %v, want ErrNotFound", err)
	}
	if _, err := rec.site.Console.Screenshot(ctx, id); !errors.Is(err, provider.ErrNotRunning) {
		t.Errorf("of a machine that is off: %v, want ErrNotRunning", err)
	}
	rec.mustStart(ctx, t)
	picture, err := rec.site.Console.Screenshot(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	img, err := png.Decode(bytes.NewReader(picture))
	if err != nil {
		t.Fatalf("the picture is no PNG: %v", err)
	}
	if b := img.Bounds(); b.Dx() < 16 || b.Dy() < 16 {
		t.Errorf("the picture has %d by %d pixels", b.Dx(), b.Dy())
	}
}
