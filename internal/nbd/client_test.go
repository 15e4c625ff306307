package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/nbd"
)

// dial connects to a unix socket until the test ends.
func dial(t testing.TB, path string, o nbd.DialOptions) *nbd.Client {
	t.Helper()
	c, err := nbd.Dial(t.Context(), "unix", path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestClientAgainstModel(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		dial    nbd.DialOptions
		backend func(*disk) nbd.Backend
		least   uint32
		most    uint32
	}{
		{name: "all", backend: func(d *disk) nbd.Backend { return d }},
		{name: "simple replies", dial: nbd.DialOptions{SimpleReplies: true}, backend: func(d *disk) nbd.Backend { return d }},
		{name: "no map", dial: nbd.DialOptions{NoMap: true}, backend: func(d *disk) nbd.Backend { return d }},
		{name: "backend without map", backend: func(d *disk) nbd.Backend { return plain{d} }},
		{name: "blocks of 4096, at most 64 KiB", backend: func(d *disk) nbd.Backend { return d }, least: 4096, most: 64 << 10},
		{name: "small requests", dial: nbd.DialOptions{MaxRequest: 1000}, backend: func(d *disk) nbd.Backend { return d }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := newDisk(4 << 20)
			tt.dial.Export = "x"
			_, path := serve(t, nbd.ServerOptions{}, &nbd.Export{Name: "x", Backend: tt.backend(d), MinBlock: tt.least, MaxBlock: tt.most})
			c := dial(t, path, tt.dial)
			model := make([]byte, d.Size())
			rnd := rand.New(rand.NewPCG(1, 2))
			align := int64(max(tt.least, 1))
			for range 300 {
				off := rnd.Int64N(d.Size()/align) * align
				n := (1 + rnd.Int64N(200<<10)/align) * align
				n = min(n, d.Size()-off)
				var err error
				switch rnd.IntN(5) {
				case 0:
					for i := off; i < off+n; i++ {
						model[i] = byte(rnd.Uint32())
					}
					err = c.WriteAt(t.Context(), model[off:off+n], off)
				case 1:
					clear(model[off : off+n])
					err = c.Zero(t.Context(), block.Extent{Offset: off, Length: n}, rnd.IntN(2) == 0)
				case 2:
					err = c.Flush(t.Context())
				case 3:
					if off += rnd.Int64N(100); off+n > d.Size() {
						n = d.Size() - off
					}
					p := make([]byte, n)
					err = c.ReadAt(t.Context(), p, off)
					if !bytes.Equal(p, model[off:off+n]) {
						t.Fatalf("read of %d at %d differs", n, off)
					}
				case 4:
					err = checkMap(t.Context(), c, block.Extent{Offset: off / 512 * 512, Length: (n + 511) / 512 * 512}, model)
				}
				if err != nil {
					t.Fatalf("at %d+%d: %v", off, n, err)
				}
			}
			if !bytes.Equal(model, d.content()) {
				t.Error("disk and model differ")
			}
		})
	}
}

// checkMap checks that a map covers the extent from its start, and that what it
// calls zero is zero.
func checkMap(ctx context.Context, m block.Image, e block.Extent, content []byte) error {
	e.Length = min(e.Length, int64(len(content))-e.Offset)
	for e.Length > 0 {
		spans, err := m.Map(ctx, e)
		if err != nil {
			return err
		}
		if len(spans) == 0 {
			return errors.New("map of nothing")
		}
		for _, sp := range spans {
			if sp.Offset != e.Offset || sp.Length <= 0 || sp.Length > e.Length || sp.Hole && !sp.Zero {
				return errors.New("map has gaps or reaches beyond the extent")
			}
			if p := content[sp.Offset:sp.End()]; sp.Zero && len(bytes.Trim(p, "\x00")) > 0 {
				return errors.New("map calls data zero")
			}
			e = block.Extent{Offset: sp.End(), Length: e.Length - sp.Length}
		}
	}
	return nil
}

func TestClientConcurrent(t *testing.T) {
	t.Parallel()
	d := newDisk(16 << 20)
	_, path := serve(t, nbd.ServerOptions{MaxInflight: 4, MaxInflightBytes: 100 << 10}, &nbd.Export{Backend: d, MultiConn: true})
	c := dial(t, path, nbd.DialOptions{})
	var all sync.WaitGroup
	for w := range int64(16) {
		all.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 0))
			p, q := make([]byte, 64<<10), make([]byte, 64<<10)
			for range 50 {
				n := 1 + rnd.IntN(len(p))
				for i := range n {
					p[i] = byte(rnd.Uint32())
				}
				off := w<<20 + rnd.Int64N(1<<20-int64(n))
				if err := c.WriteAt(t.Context(), p[:n], off); err != nil {
					t.Error(err)
				}
				if err := c.ReadAt(t.Context(), q[:n], off); err != nil || !bytes.Equal(p[:n], q[:n]) {
					t.Errorf("read back at %d: %v", off, err)
				}
			}
		})
	}
	all.Wait()
}

func TestClientErrors(t *testing.T) {
	t.Parallel()
	tests := []struct {
		err  error
		want error
		sys  error
	}{
		{nbd.EPERM, nbd.EPERM, syscall.EPERM},
		{syscall.EROFS, nbd.EPERM, syscall.EACCES},
		{nbd.ENOSPC, nbd.ENOSPC, syscall.ENOSPC},
		{syscall.EDQUOT, nbd.ENOSPC, syscall.ENOSPC},
		{syscall.ENOMEM, nbd.ENOMEM, syscall.ENOMEM},
		{syscall.EINVAL, nbd.EINVAL, syscall.EINVAL},
		{syscall.EOVERFLOW, nbd.EOVERFLOW, syscall.EOVERFLOW},
		{errors.ErrUnsupported, nbd.ENOTSUP, syscall.EOPNOTSUPP},
		{nbd.ESHUTDOWN, nbd.ESHUTDOWN, syscall.ESHUTDOWN},
		{syscall.ENOENT, nbd.EIO, syscall.EIO},
		{errors.New("the disk is on fire"), nbd.EIO, syscall.EIO},
	}
	for _, simple := range []bool{false, true} {
		d := newDisk(1 << 20)
		_, path := serve(t, nbd.ServerOptions{}, &nbd.Export{Backend: d})
		c := dial(t, path, nbd.DialOptions{SimpleReplies: simple})
		for _, tt := range tests {
			d.before = func(context.Context, string, int64, int64) error { return tt.err }
			p := make([]byte, 512)
			for _, err := range []error{c.ReadAt(t.Context(), p, 0), c.WriteAt(t.Context(), p, 0), c.Flush(t.Context())} {
				var remote *nbd.RemoteError
				if !errors.Is(err, tt.want) || !errors.Is(err, tt.sys) || !errors.As(err, &remote) {
					t.Errorf("%v (simple %t): got %v, want %v", tt.err, simple, err, tt.want)
				} else if !simple && remote.Message != tt.err.Error() {
					t.Errorf("%v: message %q", tt.err, remote.Message)
				}
			}
		}
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	d := newDisk(4096)
	_, path := serve(t, nbd.ServerOptions{}, &nbd.Export{Name: "b", Backend: d}, &nbd.Export{Name: "a", Description: "first", Backend: d})
	got, err := nbd.List(t.Context(), "unix", path, nbd.DialOptions{})
	want := []nbd.ExportEntry{{Name: "a", Description: "first"}, {Name: "b"}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	if _, err := nbd.Dial(t.Context(), "unix", path, nbd.DialOptions{Export: "c"}); !errors.Is(err, nbd.ErrUnknownExport) {
		t.Errorf("unknown export: %v", err)
	}
}
