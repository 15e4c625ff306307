package scrub_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/internal/scrub"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// run lets a runner work for a time.
func run(t *testing.T, r *scrub.Runner, d time.Duration) scrub.State {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if err := r.Run(ctx); err != nil {
		t.Error(err)
	}
	return r.State()
}

// TestQuiet compares a machine that does nothing: a round begins when it is due, and
// finds nothing, also where the process ends again and again.
func TestQuiet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		began := time.Now()
		var st scrub.State
		for st.Rounds < 2 && time.Since(began) < 20*time.Hour {
			st = run(t, w.runner(8*time.Hour), 10*time.Minute)
		}
		if took := time.Since(began); took < 8*time.Hour || took > 16*time.Hour || len(st.Lost) > 0 || w.syncs > 0 || st.Skipped > 0 || st.Completed.IsZero() {
			t.Errorf("two rounds, of which the second begins after 8 h, took %s: %+v, %d resyncs", took, st, w.syncs)
		}
	})
}

// TestBusy compares a machine that writes all the time, with writes that take a
// moment between its disk and the vault: nothing is lost, and nothing is said to be.
func TestBusy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			rng := rand.New(rand.NewPCG(3, 4))
			for ctx.Err() == nil {
				d := w.disks[rng.IntN(len(w.disks))]
				p := make([]byte, 512*(1+rng.IntN(40)))
				for i := range p {
					p[i] = byte(rng.Uint32())
				}
				w.write(d.ID, rng.Int64N((d.Size-int64(len(p)))/512)*512, p, time.Duration(rng.IntN(50))*time.Millisecond)
			}
		}()
		r := w.runner(time.Minute)
		st := run(t, r, 10*time.Minute)
		stop()
		<-done
		if st.Rounds < 5 || len(st.Lost) > 0 || w.syncs > 0 {
			t.Errorf("%+v, %d resyncs", st, w.syncs)
		}
	})
}

// TestLost loses changes of each disk, in a block at the end that is short too.
func TestLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		st := run(t, w.runner(time.Hour), 90*time.Minute)
		if st.Completed.IsZero() || len(st.Losses()) > 0 {
			t.Fatalf("before anything was lost: %+v", st)
		}
		good := st.Completed
		w.disk["vda"][9<<20+5] ^= 1 // the last block has 512 bytes
		for i := range 3 {
			w.disk["vdb"][4096*(7+i)] ^= 1
		}
		r := w.runner(time.Hour)
		if rounds, err := r.Hurry(); err != nil || rounds != st.Rounds {
			t.Fatal(rounds, err)
		}
		st = run(t, r, 10*time.Minute)
		lost := st.Losses()
		if len(lost) != 2 || lost[0].Disk != "vda" || lost[0].Parts[0].Offset != 9<<20 || lost[1].Disk != "vdb" || lost[1].Bytes != 3*4096 || len(lost[1].Parts) != 1 {
			t.Errorf("found are %+v", lost)
		}
		for _, l := range lost {
			if !l.Healed || !l.Since.Equal(good) {
				t.Errorf("found is %+v; all was right at %s", l, good)
			}
		}
		for id := range w.disk {
			if !bytes.Equal(w.disk[id], w.vault[id]) {
				t.Errorf("disk %s is not mended", id)
			}
		}
		if w.syncs != 2 || !st.Completed.Equal(good) {
			t.Errorf("%d resyncs, completed %s", w.syncs, st.Completed)
		}
		st = run(t, w.runner(time.Hour), 3*time.Hour)
		if len(st.Losses()) > 0 || len(st.Lost) != 2 || !st.Completed.After(good) {
			t.Errorf("after a round that found nothing: %+v", st)
		}
	})
}

// TestLate has a host's file behind the machine, as where an image's tables are still
// in its memory: it is compared by the machine's own mirror, and nothing was lost.
func TestLate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.late["vdb"] = slices.Clone(w.disk["vdb"])
		w.write("vdb", 8192, bytes.Repeat([]byte{1}, 4096), 0)
		st := run(t, w.runner(time.Hour), 90*time.Minute)
		if w.syncs != 1 || len(st.Lost) > 0 || st.Completed.IsZero() {
			t.Errorf("%d resyncs, %+v", w.syncs, st)
		}
	})
}

// TestNotMended has a loss that comparing as a whole does not mend: it is told and not
// tried for ever.
func TestNotMended(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.deaf = true
		w.disk["vda"][0] ^= 1
		st := run(t, w.runner(time.Hour), 50*time.Minute)
		if lost := st.Losses(); len(lost) != 1 || lost[0].Healed || w.syncs != 1 || st.Rounds == 0 {
			t.Errorf("%d resyncs, %+v", w.syncs, st)
		}
	})
}

// TestAway compares nothing while the machine is not replicated, and says so; what it
// was at is gone on with.
func TestAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.away = true
		st := run(t, w.runner(time.Hour), 3*time.Hour)
		if st.Rounds > 0 || st.Done > 0 || st.Problem == "" {
			t.Errorf("while it is away: %+v", st)
		}
		w.away = false
		if st = run(t, w.runner(time.Hour), time.Hour); st.Rounds == 0 || st.Problem != "" {
			t.Errorf("afterwards: %+v", st)
		}
	})
}

// TestKilledWhileJudging ends the process after what differed was recorded, and while
// the disk is compared as a whole.
func TestKilledWhileJudging(t *testing.T) {
	t.Parallel()
	for stop := range 60 {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.disk["vda"][0] ^= 1
			r := w.runner(time.Hour)
			if _, err := r.Hurry(); err != nil {
				t.Fatal(err)
			}
			run(t, r, time.Duration(stop)*time.Second)
			st := run(t, w.runner(time.Hour), 10*time.Minute)
			if lost := st.Losses(); len(lost) != 1 || !lost[0].Healed || w.disk["vda"][0] != w.vault["vda"][0] {
				t.Errorf("stopped after %d s: %+v", stop, st)
			}
		})
	}
}

// TestStateDamaged begins anew where the state cannot be read.
func TestStateDamaged(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		if err := vfs.WriteFileAtomic(w.fs, "s/state", []byte(`{"began": 7}`)); err != nil {
			t.Fatal(err)
		}
		if st := run(t, w.runner(time.Hour), 2*time.Hour); st.Rounds == 0 {
			t.Errorf("%+v", st)
		}
	})
}

// TestBadPieces refuses what is no piece of the disk.
func TestBadPieces(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	img := image{&w.mu, w.disk["vdb"]}
	for _, c := range []struct {
		off  int64
		sums int
	}{{-4096, 16}, {512, 16}, {0, 15}, {5 << 20, 16}, {5<<20 - 4096, 32}, {0, 16 * 1025}} {
		if _, err := (&scrub.Watch{}).Compare(t.Context(), img, c.off, make([]byte, c.sums)); err == nil {
			t.Errorf("%d bytes of sums at %d were compared", c.sums, c.off)
		}
	}
}
