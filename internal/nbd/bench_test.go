package nbd_test

import (
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/nbd"
)

// memory is a Backend that costs nothing but the copying.
type memory []byte

func (m memory) Size() int64 { return int64(len(m)) }

func (m memory) ReadAt(_ context.Context, p []byte, off int64) error {
	copy(p, m[off:])
	return nil
}

func (m memory) WriteAt(_ context.Context, p []byte, off int64, _ bool) error {
	copy(m[off:], p)
	return nil
}

func (m memory) Zero(_ context.Context, off, n int64, _, _ bool) error {
	clear(m[off : off+n])
	return nil
}

func (m memory) Flush(context.Context) error { return nil }

const benchSize = 64 << 20

// benchServers are this server and QEMU's, with the same client.
func benchServers(b *testing.B, f func(b *testing.B, path string)) {
	b.Run("server=holdfast", func(b *testing.B) {
		_, path := serve(b, nbd.ServerOptions{}, &nbd.Export{Backend: make(memory, benchSize)})
		f(b, path)
	})
	b.Run("server=qemu-nbd", func(b *testing.B) {
		need(b, "qemu-nbd")
		dir, err := os.MkdirTemp("/dev/shm", "nbd")
		if err != nil {
			b.Skipf("no memory file system: %v", err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		file := filepath.Join(dir, "disk")
		if err := os.WriteFile(file, make([]byte, benchSize), 0o600); err != nil {
			b.Fatal(err)
		}
		f(b, start(b, "qemu-nbd", "-f", "raw", "-t", "-e", "4", "-k", "SOCKET", file))
	})
}

// BenchmarkWrite4K is the latency of single writes, one after the other.
func BenchmarkWrite4K(b *testing.B) {
	benchServers(b, func(b *testing.B, path string) {
		c := dial(b, path, nbd.DialOptions{})
		p := make([]byte, 4096)
		b.SetBytes(int64(len(p)))
		b.ReportAllocs()
		for i := int64(0); b.Loop(); i++ {
			if err := c.WriteAt(context.Background(), p, i*4096%benchSize); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkWrite4KDeep has 16 writes under way, as QEMU's mirror does.
func BenchmarkWrite4KDeep(b *testing.B) { benchDeep(b, 4096, true) }

// BenchmarkWrite1M and BenchmarkRead1M are the throughput of large requests, 4
// of them under way.
func BenchmarkWrite1M(b *testing.B) { benchDeep(b, 1<<20, true) }

func BenchmarkRead1M(b *testing.B) { benchDeep(b, 1<<20, false) }

func benchDeep(b *testing.B, n int, write bool) {
	benchServers(b, func(b *testing.B, path string) {
		c := dial(b, path, nbd.DialOptions{})
		var at atomic.Int64
		b.SetBytes(int64(n))
		b.SetParallelism(8 * 4096 / min(n, 16384)) // goroutines for each of 2 processors
		b.RunParallel(func(pb *testing.PB) {
			p := make([]byte, n)
			for pb.Next() {
				off := at.Add(int64(n)) % benchSize
				var err error
				if write {
					err = c.WriteAt(context.Background(), p, off)
				} else {
					err = c.ReadAt(context.Background(), p, off)
				}
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}
