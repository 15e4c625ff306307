package vault_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// benchStream makes a stream with one disk in a directory.
func benchStream(b *testing.B, size int64) (*vault.Vault, *vault.Stream) {
	b.Helper()
	store, err := objstore.NewDir(vfs.OS, b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	key, err := vault.NewKey()
	if err != nil {
		b.Fatal(err)
	}
	v, err := vault.Create(b.Context(), store, vault.CreateOptions{Key: key, Now: start})
	if err != nil {
		b.Fatal(err)
	}
	s, err := v.CreateStream(b.Context(), vault.StreamOptions{ID: holdfast.NewStreamID(), Disks: []vault.Disk{{ID: "vda", Size: size}}, Now: start})
	if err != nil {
		b.Fatal(err)
	}
	return v, s
}

func benchWriter(b *testing.B, s *vault.Stream) *vault.Writer {
	b.Helper()
	w, err := s.Writer(b.Context(), vault.WriterOptions{Timeline: 1, Generation: 1})
	if err != nil {
		b.Fatal(err)
	}
	return w
}

// fills are kinds of data.
func fills() map[string]func([]byte) {
	return map[string]func([]byte){
		"zero": func(p []byte) { clear(p) },
		"text": func(p []byte) {
			rng := rand.New(rand.NewPCG(1, 1))
			words := []string{"replicated ", "item ", "gateway ", "vault ", "segment ", "stream ", "position ", "2026-03-01T12:00:00Z ", "failover\n"}
			for n := 0; n < len(p); {
				n += copy(p[n:], fmt.Sprintf("%s%d ", words[rng.IntN(len(words))], rng.IntN(1000)))
			}
		},
		"random": func(p []byte) {
			rng := rand.New(rand.NewPCG(2, 2))
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
		},
	}
}

// BenchmarkWriteSeal writes 8 MiB in pieces and seals them.
func BenchmarkWriteSeal(b *testing.B) {
	for name, fill := range fills() {
		for _, piece := range []int{4 << 10, 64 << 10} {
			b.Run(fmt.Sprintf("%s-%dk", name, piece>>10), func(b *testing.B) {
				_, s := benchStream(b, 1<<30)
				w := benchWriter(b, s)
				data := make([]byte, 8<<20)
				fill(data)
				b.SetBytes(int64(len(data)))
				b.ReportAllocs()
				stored := 0
				for b.Loop() {
					for at := 0; at < len(data); at += piece {
						if _, err := w.Write("vda", int64(at), data[at:at+piece], start); err != nil {
							b.Fatal(err)
						}
					}
					sealed, err := w.Seal(start)
					if err != nil {
						b.Fatal(err)
					}
					stored = len(sealed.Encoded)
				}
				b.ReportMetric(float64(stored)/float64(len(data)), "stored/raw")
			})
		}
	}
}

// BenchmarkWrite is what a source waits for: one write's way into memory.
func BenchmarkWrite(b *testing.B) {
	for _, piece := range []int{4 << 10, 64 << 10} {
		b.Run(fmt.Sprintf("%dk", piece>>10), func(b *testing.B) {
			_, s := benchStream(b, 1<<30)
			w := benchWriter(b, s)
			data := make([]byte, piece)
			fills()["random"](data)
			b.SetBytes(int64(piece))
			for b.Loop() {
				if _, err := w.Write("vda", 0, data, start); err != nil {
					b.Fatal(err)
				}
				if n, _ := w.Pending(); n > 32<<20 {
					b.StopTimer()
					if _, err := w.Seal(start); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
				}
			}
		})
	}
}

// benchHistory writes many small segments to a disk of 1 GiB.
func benchHistory(b *testing.B, segments, each int) (*vault.Vault, *vault.Stream) {
	b.Helper()
	v, s := benchStream(b, 1<<30)
	w := benchWriter(b, s)
	rng := rand.New(rand.NewPCG(3, 3))
	p := make([]byte, 4096)
	for i := range segments {
		now := start.Add(time.Duration(i) * time.Second)
		for range each {
			p[rng.IntN(len(p))] = byte(rng.Uint32())
			if _, err := w.Write("vda", rng.Int64N(1<<18)*4096, p, now); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := w.Mark(vault.Mark{Kind: vault.MarkPoint}, now); err != nil {
			b.Fatal(err)
		}
		sealed, err := w.Seal(now)
		if err == nil {
			err = w.Commit(b.Context(), sealed)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Refresh(b.Context()); err != nil {
		b.Fatal(err)
	}
	return v, s
}

// BenchmarkViewOpen opens views of a history of 1e5 writes: from nothing but the
// loaded indexes, and one shortly behind another.
func BenchmarkViewOpen(b *testing.B) {
	_, s := benchHistory(b, 500, 200)
	tail := s.Timelines()[0].Tail.Position
	b.Run("any", func(b *testing.B) {
		rng := rand.New(rand.NewPCG(4, 4))
		for b.Loop() {
			if _, err := s.View(b.Context(), 1, tail-holdfast.Position(rng.IntN(50_000))); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("next", func(b *testing.B) {
		pos := tail - 10_000
		for b.Loop() {
			if pos += 100; pos > tail {
				pos = tail - 10_000
			}
			if _, err := s.View(b.Context(), 1, pos); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkRefresh refreshes a stream of 2000 segments of which none is new.
func BenchmarkRefresh(b *testing.B) {
	_, s := benchHistory(b, 2000, 1)
	for b.Loop() {
		if err := s.Refresh(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLoad opens a stream of 2000 segments from its objects.
func BenchmarkLoad(b *testing.B) {
	v, s := benchHistory(b, 2000, 20)
	for b.Loop() {
		again, err := v.OpenStream(b.Context(), s.ID())
		if err == nil {
			err = again.Refresh(b.Context())
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// benchImage writes a disk of 64 MiB in order and opens it.
func benchImage(b *testing.B, fill string) block.Image {
	b.Helper()
	_, s := benchStream(b, 64<<20)
	w := benchWriter(b, s)
	data := make([]byte, 8<<20)
	for off := int64(0); off < 64<<20; off += int64(len(data)) {
		fills()[fill](data)
		for at := 0; at < len(data); at += 64 << 10 {
			if _, err := w.Write("vda", off+int64(at), data[at:at+64<<10], start); err != nil {
				b.Fatal(err)
			}
		}
		sealed, err := w.Seal(start)
		if err == nil {
			err = w.Commit(b.Context(), sealed)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Refresh(b.Context()); err != nil {
		b.Fatal(err)
	}
	view, err := s.View(b.Context(), 1, s.Timelines()[0].Tail.Position)
	if err != nil {
		b.Fatal(err)
	}
	image, err := view.Disk("vda")
	if err != nil {
		b.Fatal(err)
	}
	return image
}

// BenchmarkRead reads a view in the sizes of a booting guest and of a copy. The
// disk is as large as the cache, so reads in order decode each frame once a
// round, and those at random mostly find it in the cache.
func BenchmarkRead(b *testing.B) {
	for _, fill := range []string{"text", "random"} {
		image := benchImage(b, fill)
		b.Run(fill+"-4k-random", func(b *testing.B) {
			rng := rand.New(rand.NewPCG(5, 5))
			p := make([]byte, 4096)
			b.SetBytes(int64(len(p)))
			for b.Loop() {
				if err := image.ReadAt(b.Context(), p, rng.Int64N(64<<20/4096)*4096); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	for _, fill := range []string{"text", "random"} {
		image := benchImage(b, fill)
		b.Run(fill+"-1m-in-order-cold", func(b *testing.B) {
			p := make([]byte, 1<<20)
			b.SetBytes(int64(len(p)))
			off := int64(0)
			for b.Loop() {
				if off += int64(len(p)); off >= 64<<20 {
					b.StopTimer()
					image, off = benchImage(b, fill), 0
					b.StartTimer()
				}
				if err := image.ReadAt(b.Context(), p, off); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
