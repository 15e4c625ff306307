package block_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/holdfast-dr/holdfast/internal/block"
)

// scripted is a disk whose functions, where not nil, come first; what they
// return instead of nil is returned.
type scripted struct {
	disk
	onRead, onWrite, onZero func(ctx context.Context, e block.Extent) error
	onMap                   func(e block.Extent) []block.Span
}

func call(ctx context.Context, f func(context.Context, block.Extent) error, e block.Extent) error {
	if f == nil {
		return nil
	}
	return f(ctx, e)
}

func (s *scripted) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := call(ctx, s.onRead, ext(off, int64(len(p)))); err != nil {
		return err
	}
	return s.disk.ReadAt(ctx, p, off)
}

func (s *scripted) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := call(ctx, s.onWrite, ext(off, int64(len(p)))); err != nil {
		return err
	}
	return s.disk.WriteAt(ctx, p, off)
}

func (s *scripted) Zero(ctx context.Context, e block.Extent, punch bool) error {
	if err := call(ctx, s.onZero, e); err != nil {
		return err
	}
	return s.disk.Zero(ctx, e, punch)
}

func (s *scripted) Map(ctx context.Context, e block.Extent) ([]block.Span, error) {
	if s.onMap != nil {
		return s.onMap(e), nil
	}
	return s.disk.Map(ctx, e)
}

// content reads a whole image.
func content(t interface{ Fatal(...any) }, img block.Image) []byte {
	p := make([]byte, img.Size())
	if err := img.ReadAt(context.Background(), p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// drawDisk returns a disk of data, holes, allocated zeroes and written zeroes.
func drawDisk(t *rapid.T, size int64) *block.MemDisk {
	d, err := block.NewMemDisk(size)
	for i := rapid.IntRange(0, 8).Draw(t, "pieces"); i > 0 && err == nil; i-- {
		off := rapid.Int64Range(0, size/512).Draw(t, "offset") * 512
		e := ext(off, rapid.Int64Range(0, (size-off)/512).Draw(t, "length")*512)
		switch rapid.SampledFrom([]string{"data", "hole", "zero", "written zeroes"}).Draw(t, "kind") {
		case "data":
			err = d.WriteAt(context.Background(), junk(rapid.Uint64().Draw(t, "seed"), e.Length), off)
		case "hole":
			err = d.Zero(context.Background(), e, true)
		case "zero":
			err = d.Zero(context.Background(), e, false)
		case "written zeroes":
			err = d.WriteAt(context.Background(), make([]byte, e.Length), off)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestCopy copies all or some of a disk onto junk, or onto zeroes.
func TestCopy(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		src := drawDisk(t, rapid.Int64Range(0, 1024).Draw(t, "size")*512)
		dst, err := block.NewMemDisk(src.Size() + rapid.SampledFrom([]int64{0, 4096}).Draw(t, "more"))
		if err != nil {
			t.Fatal(err)
		}
		o := block.CopyOptions{
			BufferSize: rapid.SampledFrom([]int{0, 512, 3 * 512, 4096, 128 << 10}).Draw(t, "buffer"),
			Parallel:   rapid.IntRange(0, 5).Draw(t, "parallel"),
			SkipZero:   rapid.Bool().Draw(t, "skip zero"),
		}
		if !o.SkipZero {
			if err := dst.WriteAt(ctx, junk(7, dst.Size()), 0); err != nil {
				t.Fatal(err)
			}
		}
		all := setOf(ext(0, src.Size()))
		if rapid.Bool().Draw(t, "some") {
			o.Extents = &block.Set{}
			for i := rapid.IntRange(0, 4).Draw(t, "extents"); i > 0; i-- {
				off := rapid.Int64Range(0, src.Size()/512).Draw(t, "from") * 512
				o.Extents.Add(ext(off, rapid.Int64Range(0, (src.Size()-off)/512).Draw(t, "sectors")*512))
			}
			all = o.Extents
		}
		want := content(t, dst)
		from := content(t, src)
		for e := range all.Extents() {
			copy(want[e.Offset:e.End()], from[e.Offset:e.End()])
		}
		res, err := block.Copy(ctx, dst, src, o)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(content(t, dst), want) {
			t.Fatal("the target is not what it should be")
		}
		if res.Data+res.Zero != all.Bytes() {
			t.Fatalf("result %+v, want %d bytes together", res, all.Bytes())
		}
	})
}

func TestCopyReadsAndWritesOnlyData(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	for _, skip := range []bool{false, true} {
		src, dst := &scripted{disk: memDisk(t, 8*mib)}, &scripted{disk: memDisk(t, 8*mib)}
		ctx := t.Context()
		if err := errors.Join(
			src.WriteAt(ctx, junk(1, mib), mib),
			src.Zero(ctx, ext(3*mib, mib), false),
			src.WriteAt(ctx, make([]byte, mib), 5*mib), // zeroes that Map does not know
			src.WriteAt(ctx, make([]byte, 32<<10), mib+64<<10),
		); err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		read, written, zeroed := &block.Set{}, &block.Set{}, &block.Set{}
		note := func(s *block.Set) func(context.Context, block.Extent) error {
			return func(_ context.Context, e block.Extent) error {
				mu.Lock()
				defer mu.Unlock()
				s.Add(e)
				return nil
			}
		}
		src.onRead, dst.onWrite, dst.onZero = note(read), note(written), note(zeroed)
		res, err := block.Copy(ctx, dst, src, block.CopyOptions{SkipZero: skip})
		if err != nil {
			t.Fatal(err)
		}
		wantZeroed := []block.Extent{ext(0, mib), ext(2*mib, 6*mib)}
		if skip {
			wantZeroed = nil
		}
		if diff := cmp.Diff([][]block.Extent{{ext(mib, mib), ext(5*mib, mib)}, {ext(mib, mib)}, wantZeroed}, [][]block.Extent{extents(read), extents(written), extents(zeroed)}); diff != "" {
			t.Errorf("skip zero %v: read, written, zeroed (-want +got):\n%s", skip, diff)
		}
		if want := (block.CopyResult{Data: mib, Zero: 7 * mib}); res != want {
			t.Errorf("skip zero %v: result %+v, want %+v", skip, res, want)
		}
	}
}

func TestCopyFails(t *testing.T) {
	t.Parallel()
	broken := errors.New("the disk is broken")
	at := func(off int64) func(context.Context, block.Extent) error {
		return func(_ context.Context, e block.Extent) error {
			if e.Offset <= off && off < e.End() {
				return broken
			}
			return nil
		}
	}
	tests := []struct {
		name     string
		src, dst scripted
		opts     block.CopyOptions
		want     string
		other    bool // another error than broken
	}{
		{name: "read", src: scripted{onRead: at(70000)}, want: "read 4096 bytes at 69632"},
		{name: "write", dst: scripted{onWrite: at(70000)}, want: "write 4096 bytes at 69632"},
		{name: "zero", dst: scripted{onZero: at(600 << 10)}, want: "zero 524288 bytes at 524288"},
		{name: "nothing mapped", src: scripted{onMap: func(block.Extent) []block.Span { return nil }}, want: "the image reports nothing", other: true},
		{name: "map with a gap", src: scripted{onMap: func(e block.Extent) []block.Span {
			return []block.Span{{Extent: ext(e.Offset, 512)}, {Extent: ext(e.Offset+1024, 512)}}
		}}, want: "the image reports 512 bytes at 1024 where those from 512 are due", other: true},
		{name: "map that begins late", src: scripted{onMap: func(e block.Extent) []block.Span {
			return []block.Span{{Extent: ext(e.Offset+512, 512)}}
		}}, want: "where those from 0 are due", other: true},
		{name: "map beyond", src: scripted{onMap: func(e block.Extent) []block.Span {
			return []block.Span{{Extent: ext(e.Offset, e.Length+512)}}
		}}, want: "the image reports 1049088 bytes at 0", other: true},
		{name: "map of nothing", src: scripted{onMap: func(e block.Extent) []block.Span {
			return []block.Span{{Extent: ext(e.Offset, 0)}}
		}}, want: "the image reports 0 bytes at 0", other: true},
		{name: "extents beyond", opts: block.CopyOptions{Extents: setOf(ext(1<<20-512, 1024))}, want: "1024 bytes at 1048064 are outside", other: true},
		{name: "extents before", opts: block.CopyOptions{Extents: setOf(ext(-512, 1024))}, want: "1024 bytes at -512 are outside", other: true},
		{name: "odd buffer", opts: block.CopyOptions{BufferSize: 1000}, want: "buffers of 1000 bytes", other: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.src.disk, tt.dst.disk = memDisk(t, 1<<20), memDisk(t, 1<<20)
			if err := tt.src.disk.WriteAt(t.Context(), junk(1, 512<<10), 0); err != nil {
				t.Fatal(err)
			}
			if tt.opts.BufferSize == 0 {
				tt.opts.BufferSize = 4096
			}
			res, err := block.Copy(t.Context(), &tt.dst, &tt.src, tt.opts)
			if err == nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, broken) == tt.other {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if res.Data+res.Zero >= 1<<20 {
				t.Errorf("result %+v says that all was copied", res)
			}
		})
	}
	if _, err := block.Copy(t.Context(), memDisk(t, 512), memDisk(t, 1024), block.CopyOptions{}); err == nil {
		t.Error("copied onto a smaller target")
	}
}

func TestCopyStops(t *testing.T) {
	t.Parallel()
	why := errors.New("the job was cancelled")
	ctx, stop := context.WithCancelCause(t.Context())
	src, dst := &scripted{disk: memDisk(t, 1<<20)}, memDisk(t, 1<<20)
	if err := src.disk.WriteAt(ctx, junk(1, 1<<20), 0); err != nil {
		t.Fatal(err)
	}
	src.onRead = func(ctx context.Context, e block.Extent) error {
		if e.Offset == 64<<10 {
			stop(why)
		}
		if e.Offset >= 64<<10 {
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}
	res, err := block.Copy(ctx, dst, src, block.CopyOptions{BufferSize: 4096})
	if !errors.Is(err, why) {
		t.Errorf("got %v, want %v", err, why)
	}
	if res.Data > 64<<10 {
		t.Errorf("%d bytes were copied, more than before the stop", res.Data)
	}
}

// TestCopyBounds counts how many reads and writes are under way, and buffers.
func TestCopyBounds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const parallel = 3
		var mu sync.Mutex
		now, most := 0, 0
		enter := func(context.Context, block.Extent) error {
			mu.Lock()
			now++
			most = max(most, now)
			mu.Unlock()
			time.Sleep(time.Millisecond)
			mu.Lock()
			now--
			mu.Unlock()
			return nil
		}
		src := &scripted{disk: memDisk(t, 1<<20)}
		if err := src.disk.WriteAt(t.Context(), junk(1, 1<<20), 0); err != nil {
			t.Fatal(err)
		}
		src.onRead = enter
		dst := &scripted{disk: memDisk(t, 1<<20), onWrite: enter}
		began := time.Now()
		if _, err := block.Copy(t.Context(), dst, src, block.CopyOptions{BufferSize: 4096, Parallel: parallel}); err != nil {
			t.Fatal(err)
		}
		if most != parallel {
			t.Errorf("%d reads and writes under way at most, want %d", most, parallel)
		}
		if took, want := time.Since(began), 256*2*time.Millisecond/parallel; took > want+10*time.Millisecond {
			t.Errorf("took %s, want %s: not all workers have work", took, want)
		}
	})
}

func TestCopyPaceAndProgress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const mib = 1 << 20
		src := memDisk(t, 40*mib)
		for _, off := range []int64{0, 20 * mib} { // 10 MiB of data, 10 of hole, twice
			if err := src.WriteAt(t.Context(), junk(1, 10*mib), off); err != nil {
				t.Fatal(err)
			}
		}
		var reports []block.Progress
		began := time.Now()
		last := began.Add(-time.Hour)
		_, err := block.Copy(t.Context(), memDisk(t, 40*mib), src, block.CopyOptions{BytesPerSecond: 2 * mib, Progress: func(p block.Progress) {
			if p.Done < p.Total && time.Since(last) < 200*time.Millisecond {
				t.Errorf("two reports in %s", time.Since(last))
			}
			last = time.Now()
			reports = append(reports, p)
		}})
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 9700*time.Millisecond || took > 10*time.Second {
			t.Errorf("20 MiB at 2 MiB a second took %s", took)
		}
		if n := len(reports); n < 45 || n > 53 {
			t.Errorf("%d reports in 10 s", n)
		}
		first, end := reports[0], reports[len(reports)-1]
		if want := (block.Progress{Total: 40 * mib}); first != want {
			t.Errorf("first report %+v, want %+v", first, want)
		}
		if end.Done != end.Total || end.ETA != 0 || end.Rate < 1.9*mib || end.Rate > 2.1*mib {
			t.Errorf("last report %+v", end)
		}
		if p := reports[15]; p.Rate < 1.8*mib || p.Rate > 2.3*mib || p.ETA < 10*time.Second || p.ETA > 20*time.Second {
			t.Errorf("report after 3 s: %+v, want 2 MiB/s and, before the hole is known, 17 s", p)
		}
	})
}

func TestCopyProgressOfAStalledSink(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		src := memDisk(t, 1<<20)
		if err := src.WriteAt(t.Context(), junk(1, 1<<20), 0); err != nil {
			t.Fatal(err)
		}
		dst := &scripted{disk: memDisk(t, 1<<20), onWrite: func(_ context.Context, e block.Extent) error {
			if e.Offset == 512<<10 {
				time.Sleep(20 * time.Second)
			}
			return nil
		}}
		stalled := 0
		_, err := block.Copy(t.Context(), dst, src, block.CopyOptions{BufferSize: 4096, Parallel: 1, Progress: func(p block.Progress) {
			if p.Done == 512<<10 && p.Rate == 0 && p.ETA == 0 {
				stalled++
			}
		}})
		if err != nil {
			t.Fatal(err)
		}
		if stalled < 50 {
			t.Errorf("%d reports said that nothing moves, in 20 s", stalled)
		}
	})
}

func BenchmarkCopy(b *testing.B) {
	const size = 256 << 20
	fill := func(b *testing.B, d block.Sink, every int64) {
		p := junk(1, 1<<20)
		for off := int64(0); off < size; off += every << 20 {
			if err := d.WriteAt(b.Context(), p, off); err != nil {
				b.Fatal(err)
			}
		}
	}
	for _, parallel := range []int{1, 4} {
		b.Run(fmt.Sprintf("file to file/%d", parallel), func(b *testing.B) {
			dir := b.TempDir()
			src, dst := fileDisk(b, dir, size), fileDisk(b, dir, size)
			fill(b, src, 1)
			b.SetBytes(size)
			for b.Loop() {
				if _, err := block.Copy(b.Context(), dst, src, block.CopyOptions{Parallel: parallel}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("sparse file to file", func(b *testing.B) {
		dir := b.TempDir()
		src, dst := fileDisk(b, dir, size), fileDisk(b, dir, size)
		fill(b, src, 16)
		b.SetBytes(size)
		for b.Loop() {
			if _, err := block.Copy(b.Context(), dst, src, block.CopyOptions{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("compare", func(b *testing.B) {
		dir := b.TempDir()
		x, y := fileDisk(b, dir, size), fileDisk(b, dir, size)
		fill(b, x, 1)
		fill(b, y, 1)
		b.SetBytes(size)
		for b.Loop() {
			if same, err := block.Equal(b.Context(), x, y); !same || err != nil {
				b.Fatal(same, err)
			}
		}
	})
	b.Run("hash", func(b *testing.B) {
		x := fileDisk(b, b.TempDir(), size)
		fill(b, x, 1)
		b.SetBytes(size)
		for b.Loop() {
			if _, err := block.Hash(b.Context(), x); err != nil {
				b.Fatal(err)
			}
		}
	})
}
