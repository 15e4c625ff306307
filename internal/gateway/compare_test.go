package gateway

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/bandwidth"
	"github.com/holdfast-dr/holdfast/internal/nbd"
	"github.com/holdfast-dr/holdfast/internal/scrub"
)

// noise returns random bytes.
func noise(n int) []byte {
	rng := rand.New(rand.NewPCG(uint64(n), 1))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

// TestCompareDisk compares a disk with the vault: what is the same, what is not, and
// what was written meanwhile; nothing after the connection was another.
func TestCompareDisk(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open(Tuning{SealInterval: 10 * time.Millisecond})
	defer r.run(s)()
	if err := s.beginCompare(t.Context(), "vda"); !errors.Is(err, scrub.ErrNotNow) {
		t.Errorf("before anything is in sync: %v", err)
	}
	r.inSync(s, 1)
	ctx := nbd.WithConn(t.Context(), &nbd.Conn{ID: 1, Export: "vda"})
	a := s.disks["vda"]
	image := make([]byte, 1<<20)
	write := func(off int64, p []byte) {
		t.Helper()
		copy(image[off:], p)
		if err := a.WriteAt(ctx, p, off, false); err != nil {
			t.Fatal(err)
		}
	}
	write(8192, noise(20480))
	write(65536+512, noise(1024)) // a part of a block: its sum is in no index
	if err := s.beginCompare(t.Context(), "vda"); err != nil {
		t.Fatal(err)
	}
	compare := func() (scrub.Result, error) {
		return s.compare(t.Context(), compareRequest{Disk: "vda", Sums: scrub.Sums(image)})
	}
	if res, err := compare(); err != nil || len(res.Differ) > 0 || res.Skipped > 0 {
		t.Errorf("of what is the same %+v differs, %v", res, err)
	}
	image[0] ^= 1
	image[65536] ^= 1
	if res, err := compare(); err != nil || len(res.Differ) != 2 || res.Differ[1].Offset != 65536 {
		t.Errorf("of two blocks %+v differ, %v", res, err)
	}
	write(65536, noise(4096))
	if err := a.Zero(ctx, 0, 4096, true, false); err != nil {
		t.Fatal(err)
	}
	if res, err := compare(); err != nil || len(res.Differ) > 0 || res.Skipped != 8192 {
		t.Errorf("of what was written meanwhile: %+v, %v", res, err)
	}
	a.disconnected(1)
	if _, err := compare(); !errors.Is(err, scrub.ErrNotNow) {
		t.Errorf("after the connection has gone: %v", err)
	}
	s.endCompare("vda")
	for what, f := range map[string]func() error{
		"begin":   func() error { return s.beginCompare(t.Context(), "vdx") },
		"compare": func() error { _, err := s.compare(t.Context(), compareRequest{Disk: "vdx"}); return err },
	} {
		if err := f(); !errors.Is(err, ErrUnknownDisk) {
			t.Errorf("%s of a disk that is not there: %v", what, err)
		}
	}
}

// TestBandwidth holds what goes to the vault to a rate; the source does not wait.
func TestBandwidth(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open(Tuning{SealInterval: 10 * time.Millisecond, SealSize: 64 << 10, SpoolLimit: 1 << 20})
	schedule, err := bandwidth.Parse([]string{"128KiB/s"})
	if err != nil {
		t.Fatal(err)
	}
	s.opts.Limit = bandwidth.NewLimiter(schedule)
	defer r.run(s)()
	r.inSync(s, 1)
	ctx := nbd.WithConn(t.Context(), &nbd.Conn{ID: 1, Export: "vda"})
	began := time.Now()
	for i := range 8 {
		if err := s.disks["vda"].WriteAt(ctx, noise(64<<10), int64(i)<<16, false); err != nil {
			t.Fatal(err)
		}
	}
	if waited := time.Since(began); waited > time.Second {
		t.Errorf("a source waited %s although only its way to the vault is limited", waited)
	}
	r.eventually("the vault has all", func() bool { return s.status().Position == s.opts.Writer.Next()-1 })
	if took := time.Since(began); took < 2500*time.Millisecond {
		t.Errorf("512 KiB at 128 KiB/s took %s", took)
	}
}
