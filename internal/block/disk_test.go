package block_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/holdfast-dr/holdfast/internal/block"
)

// disk is what both kinds of disks are.
type disk interface {
	block.Image
	block.Sink
}

// junk returns n bytes without zeroes.
func junk(seed uint64, n int64) []byte {
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	p := make([]byte, n)
	rng.Read(p)
	for i := range p {
		p[i] |= 1
	}
	return p
}

func memDisk(t testing.TB, size int64) *block.MemDisk {
	t.Helper()
	d, err := block.NewMemDisk(size)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func fileDisk(t testing.TB, dir string, size int64) *block.FileDisk {
	t.Helper()
	d, err := block.CreateFileDisk(filepath.Join(dir, fmt.Sprintf("disk-%d", rand.Uint64())), size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// loopDisk returns a block device, which vanishes when it is closed.
func loopDisk(t testing.TB, size int64) *block.FileDisk {
	t.Helper()
	back, err := os.Create(filepath.Join(t.TempDir(), "back"))
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	if err := back.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for range 20 { // another one may take the free device first
		loop, err := attach(back)
		if errors.Is(err, unix.EBUSY) {
			continue
		}
		if err != nil {
			t.Skipf("no loop device: %v", err)
		}
		defer loop.Close() // the device goes with the last that has it open
		d, err := block.OpenFileDisk(loop.Name(), true)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		return d
	}
	t.Skip("no free loop device")
	return nil
}

// attach makes a file a block device for as long as that is open.
func attach(back *os.File) (*os.File, error) {
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer ctl.Close()
	n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return nil, err
	}
	loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	config := &unix.LoopConfig{Fd: uint32(back.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
	if err := unix.IoctlLoopConfigure(int(loop.Fd()), config); err != nil {
		return nil, errors.Join(err, loop.Close())
	}
	return loop, nil
}

const diskSize = 256 << 10

var diskKinds = []struct {
	name  string
	holes bool // whole 4 KiB that are zeroed with punch become holes
	make  func(t testing.TB) disk
}{
	{"memory", true, func(t testing.TB) disk { return memDisk(t, diskSize) }},
	{"file", false, func(t testing.TB) disk { return fileDisk(t, t.TempDir(), diskSize) }},
	{"file without fallocate", false, func(t testing.TB) disk {
		d := fileDisk(t, t.TempDir(), diskSize)
		d.WithoutFallocate()
		return d
	}},
	{"file on tmpfs", true, func(t testing.TB) disk {
		dir, err := os.MkdirTemp("/dev/shm", "holdfast-test-")
		if err != nil {
			t.Skip(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		return fileDisk(t, dir, diskSize)
	}},
	{"block device", false, func(t testing.TB) disk { return loopDisk(t, diskSize) }},
}

// TestDisks writes, zeroes and reads at random, and compares with a slice.
func TestDisks(t *testing.T) {
	t.Parallel()
	for _, kind := range diskKinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			d := kind.make(t)
			if d.Size() != diskSize {
				t.Fatalf("size %d, want %d", d.Size(), diskSize)
			}
			rapid.Check(t, func(t *rapid.T) { checkDisk(t, d) })
		})
	}
}

func checkDisk(t *rapid.T, d disk) {
	ctx := context.Background()
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	extent := func(t *rapid.T, unit int64) block.Extent {
		off := rapid.Int64Range(0, diskSize/unit).Draw(t, "offset")
		return ext(off*unit, rapid.Int64Range(0, diskSize/unit-off).Draw(t, "length")*unit)
	}
	must(d.Zero(ctx, ext(0, diskSize), true))
	model := make([]byte, diskSize)
	t.Repeat(map[string]func(*rapid.T){
		"write": func(t *rapid.T) {
			e := extent(t, 512)
			p := junk(rapid.Uint64().Draw(t, "seed"), e.Length)
			must(d.WriteAt(ctx, p, e.Offset))
			copy(model[e.Offset:], p)
		},
		"zero": func(t *rapid.T) {
			e := extent(t, rapid.SampledFrom([]int64{512, 4096}).Draw(t, "unit"))
			must(d.Zero(ctx, e, rapid.Bool().Draw(t, "punch")))
			clear(model[e.Offset:e.End()])
		},
		"read": func(t *rapid.T) {
			e := extent(t, 1)
			p := bytes.Repeat([]byte{0xaa}, int(e.Length))
			must(d.ReadAt(ctx, p, e.Offset))
			if !bytes.Equal(p, model[e.Offset:e.End()]) {
				t.Fatalf("read %v: not what was written", e)
			}
		},
		"map":   func(t *rapid.T) { checkMap(t, d, extent(t, 512), model) },
		"flush": func(*rapid.T) { must(d.Flush(ctx)) },
	})
}

// checkMap checks that spans cover an extent, and that what is called zero is.
func checkMap(t *rapid.T, d block.Image, e block.Extent, model []byte) {
	for e.Length > 0 {
		spans, err := d.Map(context.Background(), e)
		if err != nil || len(spans) == 0 {
			t.Fatalf("map %v: %v, %v", e, spans, err)
		}
		for _, sp := range spans {
			if sp.Offset != e.Offset || sp.Length <= 0 || sp.End() > e.End() {
				t.Fatalf("map %v has %v", e, sp)
			}
			if sp.Hole && !sp.Zero {
				t.Fatalf("map %v has a hole that is not zero: %v", e, sp)
			}
			if sp.Zero && bytes.ContainsFunc(model[sp.Offset:sp.End()], func(r rune) bool { return r != 0 }) {
				t.Fatalf("map %v calls data zero: %v", e, sp)
			}
			e = ext(sp.End(), e.End()-sp.End())
		}
	}
}

func TestDiskPunch(t *testing.T) {
	t.Parallel()
	for _, kind := range diskKinds {
		if !kind.holes {
			continue
		}
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			d, ctx := kind.make(t), t.Context()
			zero := func(e block.Extent, punch bool) {
				t.Helper()
				if err := d.Zero(ctx, e, punch); err != nil {
					t.Fatal(err)
				}
			}
			if err := d.WriteAt(ctx, junk(1, diskSize), 0); err != nil {
				t.Fatal(err)
			}
			zero(ext(64<<10, 64<<10), true)
			zero(ext(192<<10, 64<<10), false)
			spans, err := d.Map(ctx, ext(0, diskSize))
			if err != nil {
				t.Fatal(err)
			}
			holes := &block.Set{}
			for _, sp := range spans {
				if sp.Hole {
					holes.Add(sp.Extent)
				}
			}
			if !holes.Overlaps(ext(64<<10, 1)) || holes.Bytes() != 64<<10 {
				t.Errorf("spans %v: want a hole of 64 KiB at 64 KiB only", spans)
			}
		})
	}
}

// TestLongZero zeroes more than what is written at once without fallocate.
func TestLongZero(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	d := fileDisk(t, t.TempDir(), 4*mib)
	d.WithoutFallocate()
	if err := errors.Join(d.WriteAt(t.Context(), junk(1, 4*mib), 0), d.Zero(t.Context(), ext(512, 3*mib), true)); err != nil {
		t.Fatal(err)
	}
	got, err := block.Compare(t.Context(), d, block.ZeroImage(4*mib))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]block.Extent{ext(0, 512), ext(512+3*mib, mib-512)}, extents(got)); diff != "" {
		t.Errorf("what is not zero (-want +got):\n%s", diff)
	}
}

func TestDiskRefuses(t *testing.T) {
	t.Parallel()
	for _, kind := range diskKinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			d, ctx := kind.make(t), t.Context()
			p := make([]byte, 1024)
			for _, off := range []int64{-512, diskSize - 512, diskSize + 512, 1<<63 - 512} {
				e := ext(off, 1024)
				_, merr := d.Map(ctx, e)
				for op, err := range map[string]error{"read": d.ReadAt(ctx, p, off), "write": d.WriteAt(ctx, p, off), "zero": d.Zero(ctx, e, true), "map": merr} {
					if !errors.Is(err, io.ErrUnexpectedEOF) {
						t.Errorf("%s at %d: %v, want %v", op, off, err, io.ErrUnexpectedEOF)
					}
				}
			}
			stopped, stop := context.WithCancelCause(ctx)
			why := errors.New("enough")
			stop(why)
			_, merr := d.Map(stopped, ext(0, 512))
			for op, err := range map[string]error{"read": d.ReadAt(stopped, p, 0), "write": d.WriteAt(stopped, p, 0), "zero": d.Zero(stopped, ext(0, 512), true), "map": merr} {
				if !errors.Is(err, why) {
					t.Errorf("%s after the context ended: %v, want %v", op, err, why)
				}
			}
		})
	}
}

func TestZeroImage(t *testing.T) {
	t.Parallel()
	z, ctx := block.ZeroImage(1<<40), t.Context()
	p := junk(1, 100)
	if err := z.ReadAt(ctx, p, 1<<40-100); err != nil || !bytes.Equal(p, make([]byte, 100)) {
		t.Errorf("read %v, %v", p, err)
	}
	spans, err := z.Map(ctx, ext(512, 1<<30))
	if want := (block.Span{Extent: ext(512, 1<<30), Zero: true, Hole: true}); err != nil || len(spans) != 1 || spans[0] != want {
		t.Errorf("map %v, %v, want %v", spans, err, want)
	}
	if err := z.ReadAt(ctx, p, 1<<40-99); err == nil {
		t.Error("read beyond the end")
	}
}

func TestOpenFileDisk(t *testing.T) {
	t.Parallel()
	dir, ctx := t.TempDir(), t.Context()
	file := func(name string, size int64) string {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(name, nil, 0o600), os.Truncate(name, size)); err != nil {
			t.Fatal(err)
		}
		return name
	}
	tests := []struct{ name, path, want string }{
		{"odd size", file("odd", 1000), "has 1000 bytes, which is not a multiple of 512"},
		{"missing", filepath.Join(dir, "missing"), "no such file"},
		{"directory", dir, "neither a file nor a block device"},
		{"character device", "/dev/null", "neither a file nor a block device"},
	}
	for _, tt := range tests {
		d, err := block.OpenFileDisk(tt.path, false)
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), tt.path) {
			t.Errorf("%s: got %v, want the name and %q", tt.name, err, tt.want)
		}
		if err == nil {
			d.Close()
		}
	}
	for _, size := range []int64{-512, 511} {
		if _, err := block.CreateFileDisk(filepath.Join(dir, "new"), size); err == nil {
			t.Errorf("created a file disk of %d bytes", size)
		}
		if _, err := block.NewMemDisk(size); err == nil {
			t.Errorf("created a disk in memory of %d bytes", size)
		}
	}

	good := file("good", 4096)
	d, err := block.OpenFileDisk(good, false)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for op, err := range map[string]error{"write": d.WriteAt(ctx, make([]byte, 512), 0), "zero": d.Zero(ctx, ext(0, 512), true)} {
		if !errors.Is(err, syscall.EBADF) || !strings.Contains(err.Error(), "for reading only") {
			t.Errorf("%s: got %v, want that the disk is open for reading only", op, err)
		}
	}
	if err := os.Truncate(good, 512); err != nil {
		t.Fatal(err)
	}
	if err := d.ReadAt(ctx, make([]byte, 1024), 0); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read of a file that was cut short: %v", err)
	}
}

func TestCreateFileDiskReplaces(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(name, junk(1, 10000), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := block.CreateFileDisk(name, 8192)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if same, err := block.Equal(t.Context(), d, block.ZeroImage(8192)); err != nil || !same {
		t.Errorf("a new disk is not zero: %v", err)
	}
}
