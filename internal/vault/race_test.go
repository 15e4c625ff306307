package vault_test

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// raceWorld is a stream in memory, opened as often as there are processes.
type raceWorld struct {
	mem *vfs.Mem
	key vault.Key
	id  holdfast.StreamID
}

const raceDisk = 1 << 20

func newRaceWorld(t *testing.T) *raceWorld {
	t.Helper()
	r := &raceWorld{mem: vfs.NewMem(), id: holdfast.NewStreamID()}
	if err := r.mem.MkdirAll("/v"); err != nil {
		t.Fatal(err)
	}
	var err error
	if r.key, err = vault.NewKey(); err != nil {
		t.Fatal(err)
	}
	store, err := objstore.NewDir(r.mem, "/v")
	if err != nil {
		t.Fatal(err)
	}
	v, err := vault.Create(t.Context(), store, vault.CreateOptions{Key: r.key, Now: start})
	if err == nil {
		_, err = v.CreateStream(t.Context(), vault.StreamOptions{ID: r.id, Disks: []vault.Disk{{ID: "vda", Size: raceDisk}}, Now: start})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { verify(t, v) })
	return r
}

// open opens the stream as another process does, over a file system of its own
// making.
func (r *raceWorld) open(t *testing.T, fsys vfs.FS) *vault.Stream {
	t.Helper()
	store, err := objstore.NewDir(fsys, "/v")
	if err != nil {
		t.Fatal(err)
	}
	v, err := vault.Open(t.Context(), store, r.key, vault.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := v.OpenStream(t.Context(), r.id)
	if err == nil {
		err = s.Refresh(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// sealWrite writes a block and seals it.
func sealWrite(t *testing.T, w *vault.Writer, b byte) *vault.Sealed {
	t.Helper()
	if _, err := w.Write("vda", int64(b)*4096, bytes.Repeat([]byte{b}, 4096), start); err != nil {
		t.Fatal(err)
	}
	sealed, err := w.Seal(start)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

// TestWritersRace has several writers of one timeline, each of which believes to
// be the only one: one wins each place, and all others are fenced off for good.
func TestWritersRace(t *testing.T) {
	t.Parallel()
	for round := range 20 {
		r := newRaceWorld(t)
		const racers = 4
		won := make([]int, racers)
		writers := make([]*vault.Writer, racers)
		for i := range writers {
			writers[i] = openWriter(t, r.open(t, r.mem))
		}
		var wg sync.WaitGroup
		for i, w := range writers {
			wg.Go(func() {
				for range 5 {
					sealed := sealWrite(t, w, byte(1+i))
					err := w.Commit(t.Context(), sealed)
					if err != nil && !errors.Is(err, vault.ErrFenced) {
						t.Errorf("round %d, writer %d: %v, want ErrFenced", round, i, err)
					}
					if err != nil {
						if err := w.Commit(t.Context(), sealed); !errors.Is(err, vault.ErrFenced) {
							t.Errorf("round %d, writer %d, again: %v, want ErrFenced", round, i, err)
						}
						return
					}
					won[i]++
				}
			})
		}
		wg.Wait()
		winner := -1
		for i, n := range won {
			if n == 5 {
				winner = i
			} else if n != 0 {
				t.Errorf("round %d: writer %d has won %d places and was fenced off then: %v", round, i, n, won)
			}
		}
		s := r.open(t, r.mem)
		if tail := s.Timelines()[0].Tail; winner < 0 || tail.Seq != 5 {
			t.Fatalf("round %d: places won %v, the timeline has %d segments", round, won, tail.Seq)
		}
		if got := content(t, s, 1, 5, "vda"); got[4096*(1+winner)] != byte(1+winner) || bytes.Count(got, []byte{0}) != raceDisk-4096 {
			t.Errorf("round %d: the disk is not the winner's", round)
		}
	}
}

// TestEndRaces closes a timeline while its writer commits as fast as it can, and
// while another does the same: what was acknowledged is in, both learn the same
// end, and nothing comes behind it.
func TestEndRaces(t *testing.T) {
	t.Parallel()
	for round := range 20 {
		r := newRaceWorld(t)
		w := openWriter(t, r.open(t, r.mem))
		var acked holdfast.Position
		ends := make([]holdfast.Position, 2)
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := 0; ; i++ {
				sealed := sealWrite(t, w, byte(1+i%200))
				err := w.Commit(t.Context(), sealed)
				if errors.Is(err, vault.ErrFenced) {
					return
				}
				if err != nil {
					t.Errorf("round %d: commit: %v, want ErrFenced in the end", round, err)
					return
				}
				acked = sealed.Last
			}
		})
		for i := range ends {
			s := r.open(t, r.mem)
			wg.Go(func() {
				var err error
				ends[i], err = s.End(t.Context(), 1, vault.EndOptions{Generation: 2, Reason: fmt.Sprint(i), Now: start})
				if err != nil {
					t.Errorf("round %d: end: %v", round, err)
				}
			})
		}
		wg.Wait()
		if ends[0] != ends[1] || ends[0] != acked {
			t.Errorf("round %d: the ends are %v, acknowledged was %d", round, ends, acked)
		}
		s := r.open(t, r.mem)
		if tl := s.Timelines()[0]; !tl.Ended || tl.Tail.Position != acked {
			t.Errorf("round %d: timeline is %+v, want it closed at %d", round, tl, acked)
		}
		_, err := s.Writer(t.Context(), vault.WriterOptions{Timeline: 1, Generation: 9})
		if !errors.Is(err, vault.ErrFenced) {
			t.Errorf("round %d: writer of a closed timeline: %v, want ErrFenced", round, err)
		}
	}
}

// TestForksRace forks from many processes at once: each gets a timeline of its
// own.
func TestForksRace(t *testing.T) {
	t.Parallel()
	r := newRaceWorld(t)
	w := openWriter(t, r.open(t, r.mem))
	sealed := sealWrite(t, w, 1)
	if err := w.Commit(t.Context(), sealed); err != nil {
		t.Fatal(err)
	}
	const racers = 8
	got := make([]holdfast.TimelineID, racers)
	var wg sync.WaitGroup
	for i := range racers {
		s := r.open(t, r.mem)
		wg.Go(func() {
			var err error
			if got[i], err = s.Fork(t.Context(), vault.ForkOptions{From: 1, At: 1, Generation: 2, Now: start}); err != nil {
				t.Errorf("fork: %v", err)
			}
		})
	}
	wg.Wait()
	seen := map[holdfast.TimelineID]bool{}
	for _, id := range got {
		if seen[id] || id < 2 || id > racers+1 {
			t.Errorf("timelines %v: want 2 to %d, each once", got, racers+1)
		}
		seen[id] = true
	}
}

// TestUseTogether writes, seals, commits, refreshes and reads at the same time,
// for the race detector; every view is right.
func TestUseTogether(t *testing.T) {
	t.Parallel()
	r := newRaceWorld(t)
	s := r.open(t, r.mem)
	w := openWriter(t, s)
	queue := make(chan *vault.Sealed, 100)
	written := make(chan struct{})
	const n = 400
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(written)
		for i := range n { // position p has the number p in the block p%200
			if _, err := w.Write("vda", int64((i+1)%200)*4096, bytes.Repeat([]byte{byte(i + 1), byte((i + 1) >> 8)}, 2048), start); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Go(func() {
		defer close(queue)
		for last := false; ; {
			sealed, err := w.Seal(start)
			if err != nil {
				t.Error(err)
			}
			if sealed == nil && last {
				return
			}
			if sealed != nil {
				queue <- sealed
			}
			select {
			case <-written:
				last = true
			default:
			}
		}
	})
	done := make(chan struct{})
	wg.Go(func() {
		defer close(done)
		for sealed := range queue {
			if err := w.Commit(t.Context(), sealed); err != nil {
				t.Error(err)
			}
		}
	})
	for range 3 {
		wg.Go(func() {
			for last := false; ; {
				if err := s.Refresh(t.Context()); err != nil {
					t.Error(err)
				}
				pos := s.Timelines()[0].Tail.Position
				if pos > 0 {
					got := content(t, s, 1, pos, "vda")[pos%200*4096:]
					if got[0] != byte(pos) || got[1] != byte(pos>>8) {
						t.Errorf("position %d reads as %x", pos, got[:2])
					}
				}
				if last {
					if pos != n {
						t.Errorf("the timeline ends at %d, want %d", pos, n)
					}
					return
				}
				select {
				case <-done:
					last = true
				default:
				}
			}
		})
	}
	wg.Wait()
}

// TestCommitAgain fails the store in every operation of a commit: the cause is
// visible, and the same commit succeeds when the store is well again.
func TestCommitAgain(t *testing.T) {
	t.Parallel()
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EIO, syscall.EROFS} {
		for _, kind := range []vfs.OpKind{vfs.OpCreate, vfs.OpWrite, vfs.OpSync, vfs.OpLink, vfs.OpSyncDir} {
			t.Run(fmt.Sprintf("%s-%d", kind, errno), func(t *testing.T) {
				t.Parallel()
				r := newRaceWorld(t)
				var faults vfs.Faults
				s := r.open(t, vfs.WithFaults(r.mem, &faults))
				w := openWriter(t, s)
				first, second := sealWrite(t, w, 1), sealWrite(t, w, 2)
				if err := w.Commit(t.Context(), second); err == nil {
					t.Fatal("the second segment was committed before the first")
				}
				faults.Inject(vfs.Fault{Kind: kind, Err: errno, Count: 3, Partial: true})
				for range 3 {
					if err := w.Commit(t.Context(), first); !errors.Is(err, errno) || errors.Is(err, vault.ErrFenced) {
						t.Fatalf("commit: %v, want %v", err, errno)
					}
				}
				if w.Tail().Seq != 0 {
					t.Fatal("a failed commit has moved the tail")
				}
				for _, sealed := range []*vault.Sealed{first, first, second, first} {
					if err := w.Commit(t.Context(), sealed); err != nil {
						t.Fatalf("commit of segment %d: %v", sealed.Seq, err)
					}
				}
				if err := s.Refresh(t.Context()); err != nil {
					t.Fatal(err)
				}
				if got := content(t, s, 1, 2, "vda"); got[4096] != 1 || got[8192] != 2 {
					t.Error("what was committed is not there")
				}
			})
		}
	}
}

// TestFullStore fills the store: Commit says so, and goes on when there is room.
func TestFullStore(t *testing.T) {
	t.Parallel()
	r := newRaceWorld(t)
	s := r.open(t, r.mem)
	w := openWriter(t, s)
	r.mem.SetLimit(64 << 10)
	var sealed *vault.Sealed
	var err error
	for i := 0; err == nil && i < 200; i++ {
		p := make([]byte, 4096)
		for j := range p {
			p[j] = byte(j * (i + 7) * (j >> 3)) // does not compress to nothing
		}
		if _, err := w.Write("vda", 0, p, start); err != nil {
			t.Fatal(err)
		}
		if sealed, err = w.Seal(start); err != nil {
			t.Fatal(err)
		}
		if err = w.Commit(t.Context(), sealed); err != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("commit to a full store: %v, want ENOSPC", err)
		}
		if err != nil {
			break
		}
	}
	if w.Tail().Seq != sealed.Seq-1 {
		t.Fatalf("the store was never full: tail %d of %d", w.Tail().Seq, sealed.Seq)
	}
	r.mem.SetLimit(1 << 30)
	if err := w.Commit(t.Context(), sealed); err != nil {
		t.Errorf("commit when there is room again: %v", err)
	}
}

// TestClockSetBack has the clock of a source jump: times in the stream never go
// back, also across a reopening, and points are found by them.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	r := newRaceWorld(t)
	w := openWriter(t, r.open(t, r.mem))
	mark := func(kind vault.MarkKind, at time.Duration) {
		t.Helper()
		if _, err := w.Mark(vault.Mark{Kind: kind}, start.Add(at)); err != nil {
			t.Fatal(err)
		}
	}
	mark(vault.MarkConsistent, 0)
	mark(vault.MarkPoint, 10*time.Second)
	mark(vault.MarkPoint, 4*time.Second) // back
	seal(t, w)
	w = openWriter(t, r.open(t, r.mem))
	mark(vault.MarkPoint, -time.Hour) // further, after a restart
	mark(vault.MarkPoint, 20*time.Second)
	seal(t, w)
	s := r.open(t, r.mem)
	var got []time.Duration
	for _, p := range s.Points(1) {
		got = append(got, p.Time.Sub(start))
	}
	if want := fmt.Sprint([]time.Duration{10e9, 10e9, 10e9, 20e9}); fmt.Sprint(got) != want {
		t.Errorf("points are at %v, want %v", got, want)
	}
	for _, c := range []struct {
		at   time.Duration
		want holdfast.Position
	}{{0, 1}, {5 * time.Second, 1}, {10 * time.Second, 4}, {15 * time.Second, 4}, {time.Hour, 5}} {
		if pos, err := s.Resolve(1, start.Add(c.at)); err != nil || pos != c.want {
			t.Errorf("at %s there is position %d (%v), want %d", c.at, pos, err, c.want)
		}
	}
	if pos, err := s.Resolve(1, start.Add(-time.Second)); !errors.Is(err, vault.ErrNoPosition) {
		t.Errorf("before the beginning there is position %d, %v", pos, err)
	}
}

// TestRefusedWrites takes no position.
func TestRefusedWrites(t *testing.T) {
	t.Parallel()
	r := newRaceWorld(t)
	w := openWriter(t, r.open(t, r.mem))
	write := func(disk string, off int64, n int) error {
		_, err := w.Write(disk, off, make([]byte, n), start)
		return err
	}
	zero := func(off, n int64) error {
		_, err := w.Zero("vda", block.Extent{Offset: off, Length: n}, false, start)
		return err
	}
	for name, err := range map[string]error{
		"unknown disk": write("vdb", 0, 512), "beyond the end": write("vda", raceDisk-512, 1024), "behind the end": write("vda", raceDisk, 512),
		"negative": write("vda", -512, 512), "empty": write("vda", 0, 0), "odd offset": write("vda", 100, 512), "odd length": write("vda", 0, 100),
		"too long": write("vda", 0, 65<<20), "zero beyond the end": zero(0, raceDisk+512), "zero of nothing": zero(0, 0), "zero with overflow": zero(512, 1<<63-512),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if w.Next() != 1 {
		t.Errorf("refused writes took positions up to %d", w.Next()-1)
	}
}
