package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"text/tabwriter"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// scaleDisks and scaleDiskSize are what a stream has whose growth is measured: 10 TB
// in all, of which every extent writes a little.
const (
	scaleDisks    = 10
	scaleDiskSize = 1 << 40
)

// scaleRow is what a vault of one size costs.
type scaleRow struct {
	segments, extents int
	stored            int64
	list, open        time.Duration
	far               time.Duration // open, of a store that takes farLatency for each request
	idle              time.Duration // a Refresh that finds nothing new
	view, next        time.Duration // the first view, and one a little later
	prune             time.Duration
	left              int64         // segments after prune
	reopen            time.Duration // after prune
	indexed, viewed   int64         // bytes of memory for the indexes, and for the first view besides
	rewritten         int64
}

// farLatency is about what a request to an object store in another city takes.
const farLatency = 20 * time.Millisecond

// runScale measures how a stream's costs grow with its segments and extents. The
// store is in memory, so that what is measured is Holdfast's own part.
func runScale(ctx context.Context, o options) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "SEGMENTS\tEXTENTS\tSTORED\tLIST\tOPEN\tOPEN, 20 ms FAR\tREFRESH\tVIEW\tNEXT VIEW\tINDEX MEMORY\tVIEW MEMORY\tPRUNE\tREWRITTEN\tSEGMENTS LEFT\tOPEN THEN\t")
	for n := 1000; n <= o.segments; n *= 10 {
		r, err := measureScale(ctx, n, o.extent)
		if err != nil {
			return fmt.Errorf("%d segments: %w", n, err)
		}
		fmt.Fprintf(w, "%d\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t\n", r.segments, r.extents, mib(r.stored), short(r.list), short(r.open), short(r.far), short(r.idle),
			short(r.view), short(r.next), mib(r.indexed), mib(r.viewed), short(r.prune), mib(r.rewritten), r.left, short(r.reopen))
		fmt.Fprintf(os.Stderr, "bench: %d segments: %+v\n", n, r)
	}
	return w.Flush()
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

func short(d time.Duration) string { return d.Round(100 * time.Microsecond).String() }

// perSegment is how many extents a segment has.
const perSegment = 10

func measureScale(ctx context.Context, segments, extent int) (r scaleRow, err error) {
	store := newMemStore()
	key, err := vault.NewKey()
	if err != nil {
		return r, err
	}
	began := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	v, err := vault.Create(ctx, store, vault.CreateOptions{Key: key, Now: began})
	if err != nil {
		return r, err
	}
	id := holdfast.NewStreamID()
	if err := (filling{v, id, segments, extent}).write(ctx, began); err != nil {
		return r, err
	}
	r.segments, r.extents = segments, segments*perSegment
	r.stored = store.size()
	lap := stopwatch()
	if _, err := store.List(ctx, "", ""); err != nil {
		return r, err
	}
	r.list = lap()
	if err := r.measure(ctx, v, id); err != nil {
		return r, err
	}
	if segments <= 100_000 {
		store.latency.Store(int64(farLatency))
		lap = stopwatch()
		if _, err := openScale(ctx, v, id); err != nil {
			return r, err
		}
		r.far = lap()
		store.latency.Store(0)
	}
	s, err := openScale(ctx, v, id)
	if err != nil {
		return r, err
	}
	lap = stopwatch()
	rep, err := s.Prune(ctx, vault.PruneOptions{Timeline: 1})
	if err != nil {
		return r, err
	}
	r.prune, r.rewritten, r.left = lap(), rep.Rewritten, s.SegmentCount()
	lap = stopwatch()
	_, err = openScale(ctx, v, id)
	r.reopen = lap()
	return r, err
}

// measure measures opening and viewing.
func (r *scaleRow) measure(ctx context.Context, v *vault.Vault, id holdfast.StreamID) error {
	before := heap()
	lap := stopwatch()
	s, err := openScale(ctx, v, id)
	if err != nil {
		return err
	}
	r.open = lap()
	r.indexed = heap() - before
	lap = stopwatch()
	if err := s.Refresh(ctx); err != nil {
		return err
	}
	r.idle = lap()
	tail := s.Timelines()[0].Tail.Position
	before = heap()
	lap = stopwatch()
	a, err := s.View(ctx, 1, tail-perSegment)
	if err != nil {
		return err
	}
	r.view = lap()
	r.viewed = heap() - before
	lap = stopwatch()
	b, err := s.View(ctx, 1, tail)
	if err != nil {
		return err
	}
	r.next = lap()
	if a.Position() >= b.Position() {
		return errors.New("the views are not what was asked for")
	}
	return nil
}

func openScale(ctx context.Context, v *vault.Vault, id holdfast.StreamID) (*vault.Stream, error) {
	s, err := v.OpenStream(ctx, id)
	if err != nil {
		return nil, err
	}
	return s, s.Refresh(ctx)
}

// filling is a stream that is made: as many segments, with extents of one size.
type filling struct {
	v                *vault.Vault
	id               holdfast.StreamID
	segments, extent int
}

// write writes the segments, with extents at random places. What they write can be
// compressed well, so that the machine's memory holds it.
func (f filling) write(ctx context.Context, now time.Time) error {
	var disks []vault.Disk
	for i := range scaleDisks {
		disks = append(disks, vault.Disk{ID: fmt.Sprintf("vd%c", 'a'+i), Size: scaleDiskSize})
	}
	s, err := f.v.CreateStream(ctx, vault.StreamOptions{ID: f.id, Disks: disks, Now: now})
	if err != nil {
		return err
	}
	w, err := s.Writer(ctx, vault.WriterOptions{Timeline: 1, Generation: 1})
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(1, uint64(f.segments)))
	data := make([]byte, f.extent)
	for n := range f.segments {
		now = now.Add(time.Second)
		for range perSegment {
			binary.LittleEndian.PutUint64(data, rng.Uint64())
			off := rng.Int64N((scaleDiskSize-int64(f.extent))/4096) * 4096
			if _, err := w.Write(disks[rng.IntN(scaleDisks)].ID, off, data, now); err != nil {
				return err
			}
		}
		sealed, err := w.Seal(now)
		if err != nil {
			return err
		}
		if err := w.Commit(ctx, sealed); err != nil {
			return err
		}
		if n%100_000 == 99_999 {
			fmt.Fprintf(os.Stderr, "bench: %d of %d segments written\n", n+1, f.segments)
		}
	}
	return nil
}

// stopwatch returns what tells the time since it was called.
func stopwatch() func() time.Duration {
	runtime.GC()
	began := time.Now()
	return func() time.Duration { return time.Since(began) }
}

// heap returns the memory in use, in bytes.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
