package scrub_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/scrub"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// image is a disk in memory.
type image struct {
	mu   *sync.Mutex
	data []byte
}

func (i image) Size() int64 { return int64(len(i.data)) }

func (i image) ReadAt(_ context.Context, p []byte, off int64) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	copy(p, i.data[off:])
	return nil
}

func (i image) Map(_ context.Context, e block.Extent) ([]block.Span, error) {
	return []block.Span{{Extent: e}}, nil
}

func (i image) Close() error { return nil }

// BlockHash knows every other block.
func (i image) BlockHash(n int64) (scrub.Sum, bool) {
	if n%2 == 0 {
		return scrub.Sum{}, false
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return scrub.SumOf(i.data[n*scrub.BlockSize : min(int64(len(i.data)), (n+1)*scrub.BlockSize)]), true
}

// world is a machine with two disks and a vault that has them, as far as nothing is
// lost. Its writes reach the disk first and the vault a little later, as a mirror's
// do.
type world struct {
	t     *testing.T
	mu    sync.Mutex
	disks []scrub.Disk
	disk  map[string][]byte // what the host has
	vault map[string][]byte
	watch map[string]*scrub.Watch
	late  map[string][]byte // what the host's file does not show yet; nil: nothing
	away  bool              // the machine is not replicated continuously
	syncs int               // resyncs
	deaf  bool              // resyncs mend nothing
	fs    *vfs.Mem
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, disk: map[string][]byte{}, vault: map[string][]byte{}, watch: map[string]*scrub.Watch{}, late: map[string][]byte{}, fs: vfs.NewMem()}
	rng := rand.New(rand.NewPCG(1, 2))
	for i, size := range []int{9<<20 + 512, 5 << 20} {
		id := fmt.Sprintf("vd%c", 'a'+i)
		b := make([]byte, size)
		for k := 0; k < size; k += 8192 {
			b[k] = byte(rng.Uint32())
		}
		w.disks = append(w.disks, scrub.Disk{ID: id, Size: int64(size)})
		w.disk[id], w.vault[id] = b, slices.Clone(b)
	}
	if err := w.fs.MkdirAll("s"); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) runner(every time.Duration) *scrub.Runner {
	w.t.Helper()
	r, err := scrub.NewRunner(scrub.Options{
		Disks: w.disks, Every: every, Look: time.Second, Peer: w, FS: w.fs, File: "s/state",
		Open: func(_ context.Context, id string) (block.Image, error) {
			if b := w.late[id]; b != nil {
				return image{&w.mu, b}, nil
			}
			return image{&w.mu, w.disk[id]}, nil
		},
		Resync: func(_ context.Context, id string) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.syncs++
			if !w.deaf {
				copy(w.vault[id], w.disk[id])
			}
			w.late = map[string][]byte{}
			return nil
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (w *world) Begin(_ context.Context, disk string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.away {
		return scrub.ErrNotNow
	}
	w.watch[disk] = &scrub.Watch{}
	return nil
}

func (w *world) Compare(ctx context.Context, disk string, off int64, sums []byte) (scrub.Result, error) {
	w.mu.Lock()
	watch := w.watch[disk]
	w.mu.Unlock()
	return watch.Compare(ctx, image{&w.mu, w.vault[disk]}, off, sums)
}

func (w *world) End(_ context.Context, disk string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.watch, disk)
	return nil
}

// write writes as the machine does.
func (w *world) write(disk string, off int64, p []byte, wait time.Duration) {
	w.mu.Lock()
	copy(w.disk[disk][off:], p)
	w.mu.Unlock()
	time.Sleep(wait)
	w.mu.Lock()
	defer w.mu.Unlock()
	if watch := w.watch[disk]; watch != nil {
		watch.Wrote(block.Extent{Offset: off, Length: int64(len(p))})
	}
	copy(w.vault[disk][off:], p)
}
