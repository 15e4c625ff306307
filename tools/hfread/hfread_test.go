package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	product "github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

const (
	golden    = "../../internal/vault/testdata/v1"
	goldenKey = "AGE-SECRET-KEY-1QN9L6LD4JHNT4WKSQ8EHHEXVUD7CUDHNEYCCW6HGPLM6FK0JVTVSHGZPLL"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// read reads a disk as somebody would who has built this program.
func read(t *testing.T, dir, key, stream string, timeline, position any, disk string) ([]byte, error) {
	t.Helper()
	temp := t.TempDir()
	file, out := filepath.Join(temp, "key"), filepath.Join(temp, "out")
	must(t, os.WriteFile(file, []byte(key+"\n"), 0o600))
	if err := run([]string{dir, file, stream, fmt.Sprint(timeline), fmt.Sprint(position), disk, out}, os.Stdout); err != nil {
		return nil, err
	}
	return os.ReadFile(out)
}

// TestGolden reads all that the golden vault is said to have.
func TestGolden(t *testing.T) {
	f, err := os.Open(golden + ".txt")
	must(t, err)
	defer f.Close()
	stream, timeline, views := "", "", 0
	for sc := bufio.NewScanner(f); sc.Scan(); {
		w := strings.Fields(sc.Text())
		switch w[0] {
		case "stream":
			stream = w[1]
		case "timeline":
			timeline = w[1]
		case "view":
			for i := 2; i < len(w); i += 2 {
				views++
				b, err := read(t, golden, goldenKey, stream, timeline, w[1], w[i])
				must(t, err)
				if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != w[i+1] {
					t.Errorf("timeline %s position %s disk %s reads otherwise", timeline, w[1], w[i])
				}
			}
		}
	}
	if views < 20 {
		t.Fatalf("only %d disks were read", views)
	}
	var said bytes.Buffer
	file := filepath.Join(t.TempDir(), "key")
	must(t, os.WriteFile(file, []byte(goldenKey), 0o600))
	must(t, run([]string{golden, file}, &said))
	if !strings.Contains(said.String(), `"name":"first"`) || !strings.Contains(said.String(), "timeline 00000002, disks vda of 1048576 bytes vdb of 8192 bytes") {
		t.Errorf("the list is\n%s", said.String())
	}
}

// TestRandom has Holdfast write random histories, with forks, disks that come, go,
// grow and shrink, and pruning; this reader must read each disk of each position as
// Holdfast does, and refuse the positions that are not kept.
func TestRandom(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 3))
			dir := t.TempDir()
			store, err := objstore.NewDir(vfs.OS, dir)
			must(t, err)
			key, err := product.NewKey()
			must(t, err)
			v, err := product.Create(t.Context(), store, product.CreateOptions{Key: key, Now: time.Unix(1e9, 0)})
			must(t, err)
			s, err := v.CreateStream(t.Context(), product.StreamOptions{ID: holdfast.NewStreamID(), Name: "m", Now: time.Unix(1e9, 0),
				Disks: []product.Disk{{ID: "vda", Size: 256 << 10}, {ID: "vdb", Size: 64 << 10}}})
			must(t, err)
			tails := histories(t, rng, s)
			refused, agreed := 0, 0
			for tl, tail := range tails {
				for pos := holdfast.Position(0); pos <= tail; pos++ {
					view, verr := s.View(t.Context(), tl, pos)
					for _, id := range []string{"vda", "vdb", "vdc"} {
						got, err := read(t, dir, key.String(), s.ID().String(), tl, pos, id)
						var image interface{ Size() int64 }
						if verr == nil {
							d, derr := view.Disk(id)
							if derr == nil {
								want := make([]byte, d.Size())
								must(t, d.ReadAt(t.Context(), want, 0))
								if err != nil || !bytes.Equal(got, want) {
									t.Fatalf("timeline %s position %s disk %s reads otherwise (%v)", tl, pos, id, err)
								}
								image = d
								agreed++
							}
						} else if !errors.Is(verr, product.ErrNoPosition) && !errors.Is(verr, product.ErrPruned) {
							t.Fatal(verr)
						}
						if image == nil && err == nil {
							t.Fatalf("timeline %s position %s disk %s is read, and is not there (%v)", tl, pos, id, verr)
						}
						if err != nil {
							refused++
						}
					}
				}
			}
			if agreed < 20 {
				t.Errorf("%d disks agreed, %d were refused: this shows little", agreed, refused)
			}
		})
	}
}

// histories writes four timelines, and prunes; it returns where each ends.
func histories(t *testing.T, rng *rand.Rand, s *product.Stream) map[holdfast.TimelineID]holdfast.Position {
	t.Helper()
	tails := map[holdfast.TimelineID]holdfast.Position{}
	now := time.Unix(1e9, 0)
	for n := range 4 {
		tl, g := holdfast.TimelineID(1), holdfast.Generation(n+1)
		if n > 0 {
			from := holdfast.TimelineID(n)
			o := product.ForkOptions{From: from, At: 1 + holdfast.Position(rng.Int64N(int64(tails[from]))), Generation: g, Reason: "test", Now: now}
			if rng.IntN(2) == 0 {
				o.Disks = []product.Disk{{ID: "vda", Size: 512 * (1 + rng.Int64N(600))}, {ID: []string{"vdb", "vdc"}[rng.IntN(2)], Size: 512 * (1 + rng.Int64N(100))}}
			}
			var err error
			for tl, err = s.Fork(t.Context(), o); errors.Is(err, product.ErrPruned); tl, err = s.Fork(t.Context(), o) {
				o.At = 1 + holdfast.Position(rng.Int64N(int64(tails[from])))
			}
			must(t, err)
		}
		w, err := s.Writer(t.Context(), product.WriterOptions{Timeline: tl, Generation: g})
		must(t, err)
		for range 5 {
			for range 1 + rng.IntN(4) {
				now = now.Add(time.Second)
				writeOne(t, rng, w, s.Disks(tl), now)
			}
			sealed, err := w.Seal(now)
			must(t, err)
			must(t, w.Commit(t.Context(), sealed))
		}
		tails[tl] = w.Tail().Position
		if rng.IntN(2) == 0 {
			_, err := s.Prune(t.Context(), product.PruneOptions{Timeline: tl, Upto: tails[tl] - holdfast.Position(rng.Int64N(int64(tails[tl]))), Waste: 0.01,
				Keep: []holdfast.Position{holdfast.Position(rng.Int64N(int64(tails[tl]))) + 1, holdfast.Position(rng.Int64N(int64(tails[tl]))) + 1}})
			must(t, err)
		}
	}
	must(t, s.Refresh(t.Context()))
	return tails
}

func writeOne(t *testing.T, rng *rand.Rand, w *product.Writer, disks []product.Disk, now time.Time) {
	t.Helper()
	d := disks[rng.IntN(len(disks))]
	off := 512 * rng.Int64N(d.Size/512)
	length := 512 * (1 + rng.Int64N(min(100<<10, d.Size-off)/512))
	var err error
	switch rng.IntN(4) {
	case 0:
		_, err = w.Zero(d.ID, block.Extent{Offset: off, Length: length}, rng.IntN(2) == 0, now)
	case 1:
		_, err = w.Write(d.ID, off, bytes.Repeat([]byte("text "), 1+int(length))[:length], now)
	default:
		b := make([]byte, length)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		_, err = w.Write(d.ID, off, b, now)
	}
	must(t, err)
}
