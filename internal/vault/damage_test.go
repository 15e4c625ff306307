package vault_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// damageWorld is a vault in memory with two timelines of a stream, and what each
// position reads as.
type damageWorld struct {
	key     vault.Key
	id      holdfast.StreamID
	objects map[string][]byte
	disks   []vault.Disk
	want    map[holdfast.TimelineID][][]byte // by position, of disk vda
}

const damageDisk = 32 << 10

// newDamageWorld writes six segments of four writes and a point each, closes the
// timeline and goes on in a fork behind the fourth segment.
func newDamageWorld(t *testing.T) *damageWorld {
	t.Helper()
	key, err := vault.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	w := &damageWorld{key: key, id: holdfast.StreamID{9}, disks: []vault.Disk{{ID: "vda", Size: damageDisk}}, want: map[holdfast.TimelineID][][]byte{}}
	store := memStore(t, nil)
	v, err := vault.Create(t.Context(), store, vault.CreateOptions{Key: key, Now: start})
	if err != nil {
		t.Fatal(err)
	}
	s, err := v.CreateStream(t.Context(), vault.StreamOptions{ID: w.id, Name: "d", Disks: w.disks, Now: start})
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	state := make([]byte, damageDisk)
	w.want[1] = [][]byte{bytes.Clone(state)}
	w.fill(t, rng, s, 1, 6, state)
	if _, err := s.End(t.Context(), 1, vault.EndOptions{Generation: 2, Now: start}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Fork(t.Context(), vault.ForkOptions{From: 1, At: 20, Generation: 2, Now: start}); err != nil {
		t.Fatal(err)
	}
	copy(state, w.want[1][20])
	w.want[2] = slices.Clone(w.want[1][:21])
	w.fill(t, rng, s, 2, 2, state)
	_, lease, err := v.AcquireLease(t.Context(), vault.LeaseOptions{Owner: "o"})
	if err != nil {
		t.Fatal(err)
	}
	lease.Release()
	w.objects = snapshot(t, store)
	return w
}

func (w *damageWorld) fill(t *testing.T, rng *rand.Rand, s *vault.Stream, tl holdfast.TimelineID, segments int, state []byte) {
	t.Helper()
	wr, err := s.Writer(t.Context(), vault.WriterOptions{Timeline: tl, Generation: holdfast.Generation(tl)})
	if err != nil {
		t.Fatal(err)
	}
	for i := range segments {
		now := start.Add(time.Duration(i) * time.Second)
		for range 4 {
			p := make([]byte, 512*(1+rng.IntN(10)))
			for j := range p {
				p[j] = byte(rng.Uint32())
			}
			off := rng.Int64N((damageDisk-int64(len(p)))/512+1) * 512
			if _, err := wr.Write("vda", off, p, now); err != nil {
				t.Fatal(err)
			}
			copy(state[off:], p)
			w.want[tl] = append(w.want[tl], bytes.Clone(state))
		}
		kind := vault.MarkPoint
		if i == 0 {
			kind = vault.MarkConsistent
		}
		if _, err := wr.Mark(vault.Mark{Kind: kind, Name: fmt.Sprint(i)}, now); err != nil {
			t.Fatal(err)
		}
		w.want[tl] = append(w.want[tl], bytes.Clone(state))
		seal(t, wr)
	}
	tail := wr.Tail()
	if err := s.PutCanary(t.Context(), vault.Canary{Time: start, Timeline: tl, Seq: tail.Seq, Position: tail.Position}); err != nil {
		t.Fatal(err)
	}
}

func snapshot(t *testing.T, store objstore.Store) map[string][]byte {
	t.Helper()
	entries, err := store.List(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	for _, e := range entries {
		if out[e.Name], _, err = store.Get(t.Context(), e.Name); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func (w *damageWorld) segment(tl, seq int) string {
	return fmt.Sprintf("streams/%s/%08x/%016x.seg", w.id, tl, seq)
}

// open opens a changed copy of the vault; nil if it cannot be opened because of
// damage.
func (w *damageWorld) open(t *testing.T, change func(map[string][]byte)) (*vault.Vault, objstore.Store) {
	t.Helper()
	objects := map[string][]byte{}
	for name, b := range w.objects {
		objects[name] = b
	}
	change(objects)
	store := memStore(t, objects)
	v, err := vault.Open(t.Context(), store, w.key, vault.Options{})
	if err != nil {
		if !isDamage(err) && !errors.Is(err, vault.ErrWrongKey) && !errors.Is(err, vault.ErrNotVault) {
			t.Fatalf("open: %v is not damage", err)
		}
		return nil, store
	}
	return v, store
}

// checkDamaged wants the named objects, and no others, in the report, and wants
// every view to be right or an error.
func (w *damageWorld) checkDamaged(t *testing.T, v *vault.Vault, names ...string) {
	t.Helper()
	rep, err := v.Verify(t.Context(), vault.VerifyOptions{})
	if err != nil {
		t.Fatalf("verify: %v", err)
	}
	var got []string
	for _, d := range rep.Damaged {
		got = append(got, d.Object)
	}
	for _, name := range names {
		if !slices.Contains(got, name) {
			t.Errorf("verify names %v, want %s", got, name)
		}
	}
	w.checkViews(t, v)
}

// checkViews opens every position: what reads must be what was written.
func (w *damageWorld) checkViews(t *testing.T, v *vault.Vault) (readable int) {
	t.Helper()
	s, err := v.OpenStream(t.Context(), w.id)
	if err != nil {
		if !isDamage(err) && !errors.Is(err, vault.ErrNoStream) && !errors.Is(err, vault.ErrWrongKey) {
			t.Fatalf("open stream: %v is not damage", err)
		}
		return 0
	}
	if err := s.Refresh(t.Context()); err != nil && !isDamage(err) {
		t.Fatalf("refresh: %v is not damage", err)
	}
	for tl, positions := range w.want {
		for pos, want := range positions {
			view, err := s.View(t.Context(), tl, holdfast.Position(pos))
			if err == nil {
				got := make([]byte, damageDisk)
				image, derr := view.Disk("vda")
				if derr != nil {
					t.Fatal(derr)
				}
				if err = image.ReadAt(t.Context(), got, 0); err == nil && !bytes.Equal(got, want) {
					t.Fatalf("timeline %s at %d: wrong data without an error", tl, pos)
				}
			}
			if err == nil {
				readable++
			} else if !isDamage(err) && !errors.Is(err, vault.ErrNoPosition) {
				t.Fatalf("timeline %s at %d: %v is not damage", tl, pos, err)
			}
		}
	}
	return readable
}

// TestFlips flips bytes of every object: all of those of documents, and a
// sample of each segment. Verify names the object every time.
func TestFlips(t *testing.T) {
	t.Parallel()
	w := newDamageWorld(t)
	rng := rand.New(rand.NewPCG(1, 2))
	tried := 0
	for name, b := range w.objects {
		step := 1
		if strings.HasSuffix(name, ".seg") {
			step = max(1, len(b)/60)
		}
		for at := rng.IntN(step); at < len(b); at += step {
			x := byte(1 << rng.IntN(8))
			if v, _ := w.open(t, func(o map[string][]byte) {
				o[name] = bytes.Clone(b)
				o[name][at] ^= x
			}); v != nil {
				w.checkDamaged(t, v, name)
			} else if name != "vault" {
				t.Errorf("a flip in %s keeps the vault from being opened", name)
			}
			tried++
			if t.Failed() {
				t.Fatalf("byte %d of %s changed by %#x", at, name, x)
			}
		}
	}
	t.Logf("%d flips", tried)
}

// TestCuts cuts every object at random lengths, and removes it.
func TestCuts(t *testing.T) {
	t.Parallel()
	w := newDamageWorld(t)
	rng := rand.New(rand.NewPCG(5, 6))
	for name, b := range w.objects {
		for _, n := range []int{0, 1, len(b) - 1, rng.IntN(len(b)), rng.IntN(len(b))} {
			if v, _ := w.open(t, func(o map[string][]byte) { o[name] = b[:n] }); v != nil {
				w.checkDamaged(t, v, name)
			}
			if t.Failed() {
				t.Fatalf("%s cut to %d bytes", name, n)
			}
		}
		v, _ := w.open(t, func(o map[string][]byte) { delete(o, name) })
		switch base := name[strings.LastIndex(name, "/")+1:]; {
		case name == "vault": // it cannot be opened
		case base == "lease" || base == "canary":
			w.checkDamaged(t, v)
		case name == w.segment(1, 7):
			// The end of the first timeline: nothing tells that it was there. Its
			// generation still fences writers.
			w.checkDamaged(t, v)
		default:
			w.checkDamaged(t, v, name)
		}
		if t.Failed() {
			t.Fatalf("%s removed", name)
		}
	}
}

// TestMoved puts segments where they do not belong.
func TestMoved(t *testing.T) {
	t.Parallel()
	w := newDamageWorld(t)
	other := newDamageWorld(t)
	for _, c := range []struct {
		name     string
		change   func(map[string][]byte)
		damaged  []string
		readable int // positions at least
	}{
		{"two swapped", func(o map[string][]byte) {
			o[w.segment(1, 3)], o[w.segment(1, 4)] = o[w.segment(1, 4)], o[w.segment(1, 3)]
		}, []string{w.segment(1, 3), w.segment(1, 4)}, 22},
		{"of another vault", func(o map[string][]byte) { o[w.segment(1, 5)] = other.objects[w.segment(1, 5)] }, []string{w.segment(1, 5)}, 21 + 31},
		{"of another timeline", func(o map[string][]byte) { o[w.segment(2, 1)] = o[w.segment(1, 1)] }, []string{w.segment(2, 1)}, 31 + 21},
		{"behind the end", func(o map[string][]byte) { o[w.segment(1, 8)] = o[w.segment(1, 6)] }, []string{w.segment(1, 8)}, 62},
		{"timeline of another vault", func(o map[string][]byte) {
			name := fmt.Sprintf("streams/%s/timelines/00000002", w.id)
			o[name] = other.objects[name]
		}, []string{fmt.Sprintf("streams/%s/timelines/00000002", w.id)}, 31},
		{"canary of another time", func(o map[string][]byte) { delete(o, w.segment(2, 2)) }, []string{w.segment(2, 2)}, 31 + 26},
		{"strange objects", func(o map[string][]byte) {
			o[fmt.Sprintf("streams/%s/00000001/notes.seg", w.id)] = []byte("x")
			o["strange"] = []byte("x")
		}, []string{"strange", fmt.Sprintf("streams/%s/00000001/notes.seg", w.id)}, 62},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v, _ := w.open(t, c.change)
			w.checkDamaged(t, v, c.damaged...)
			if n := w.checkViews(t, v); n < c.readable {
				t.Errorf("%d positions can be read, want at least %d", n, c.readable)
			}
		})
	}
}

// TestAroundDamage uses a stream of which a segment in the middle is damaged:
// older positions and other timelines can be read and failed over to.
func TestAroundDamage(t *testing.T) {
	t.Parallel()
	w := newDamageWorld(t)
	for _, lost := range []bool{false, true} {
		name := w.segment(1, 3) // positions 11 to 15
		v, store := w.open(t, func(o map[string][]byte) {
			b := bytes.Clone(o[name])
			b[len(b)-60] ^= 1 // in the index
			if o[name] = b; lost {
				delete(o, name)
			}
			delete(o, w.segment(1, 7)) // nobody has ended the first timeline
		})
		s, err := v.OpenStream(t.Context(), w.id)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := s.Refresh(t.Context()); !errors.Is(err, vault.ErrCorrupt) || !strings.Contains(err.Error(), name) {
				t.Fatalf("refresh: %v, want the damage of %s", err, name)
			}
			if err := s.Damaged(); !errors.Is(err, vault.ErrCorrupt) {
				t.Fatalf("Damaged = %v", err)
			}
		}
		for _, tl := range []holdfast.TimelineID{1, 2} {
			if n := len(s.Points(tl)); n != 1 { // segment 1 has none
				t.Errorf("timeline %s has %d points, want 1", tl, n)
			}
			if r := s.Ranges(tl); len(r) != 1 || r[0].To != 10 {
				t.Errorf("timeline %s has ranges %v, want one to position 10", tl, r)
			}
			if pos, err := s.Resolve(tl, start.Add(time.Hour)); err != nil || pos != 10 {
				t.Errorf("timeline %s: the newest position is %d (%v), want 10", tl, pos, err)
			}
			if got := content(t, s, tl, 10, "vda"); !bytes.Equal(got, w.want[1][10]) {
				t.Errorf("timeline %s at 10 reads otherwise", tl)
			}
			if _, err := s.View(t.Context(), tl, 11); !errors.Is(err, vault.ErrCorrupt) {
				t.Errorf("view behind the damage: %v, want ErrCorrupt", err)
			}
			if _, err := s.Writer(t.Context(), vault.WriterOptions{Timeline: tl, Generation: 9}); !errors.Is(err, vault.ErrCorrupt) {
				t.Errorf("writer behind the damage: %v, want ErrCorrupt", err)
			}
			for range 2 {
				if last, err := s.End(t.Context(), tl, vault.EndOptions{Generation: 3, Now: start}); err != nil || tl == 1 && last != 10 {
					t.Errorf("End of timeline %s = %d, %v", tl, last, err)
				}
			}
		}
		if entries, err := store.List(t.Context(), w.segment(1, 7), ""); err != nil || len(entries) != 1 {
			t.Errorf("the damaged timeline was not closed behind its last segment: %v", err)
		}
		if _, err := s.Fork(t.Context(), vault.ForkOptions{From: 1, At: 11, Generation: 3, Now: start}); !errors.Is(err, vault.ErrCorrupt) {
			t.Errorf("fork behind the damage: %v, want ErrCorrupt", err)
		}
		tl, err := s.Fork(t.Context(), vault.ForkOptions{From: 2, At: 10, Generation: 3, Now: start})
		if err != nil {
			t.Fatal(err)
		}
		wr, err := s.Writer(t.Context(), vault.WriterOptions{Timeline: tl, Generation: 3})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := wr.Write("vda", 0, bytes.Repeat([]byte{7}, 512), start); err != nil {
			t.Fatal(err)
		}
		seal(t, wr)
		if err := s.Refresh(t.Context()); !errors.Is(err, vault.ErrCorrupt) {
			t.Fatal(err)
		}
		if got := content(t, s, tl, 11, "vda"); got[0] != 7 || !bytes.Equal(got[512:], w.want[1][10][512:]) {
			t.Error("the fork before the damage reads otherwise")
		}
		// Mended, it is whole again.
		if err := store.Put(t.Context(), name, w.objects[name]); err != nil {
			t.Fatal(err)
		}
		if err := s.Refresh(t.Context()); err != nil || s.Damaged() != nil {
			t.Fatalf("refresh of the mended stream: %v", err)
		}
		if got := content(t, s, 2, 30, "vda"); !bytes.Equal(got, w.want[2][30]) {
			t.Error("the mended stream reads otherwise")
		}
	}
}

// TestShortParent removes the last segments that a fork's past needs: the fork
// is damaged, and not shorter.
func TestShortParent(t *testing.T) {
	t.Parallel()
	w := newDamageWorld(t)
	v, _ := w.open(t, func(o map[string][]byte) {
		for seq := 3; seq <= 7; seq++ {
			delete(o, w.segment(1, seq))
		}
	})
	s, err := v.OpenStream(t.Context(), w.id)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Refresh(t.Context()); !errors.Is(err, vault.ErrCorrupt) {
		t.Fatalf("refresh: %v, want ErrCorrupt", err)
	}
	if tls := s.Timelines(); tls[0].Damaged != nil || !errors.Is(tls[1].Damaged, vault.ErrCorrupt) {
		t.Errorf("timelines %+v: want the second to be damaged", tls)
	}
	if _, err := s.View(t.Context(), 2, 25); !errors.Is(err, vault.ErrCorrupt) {
		t.Errorf("view of the fork: %v, want ErrCorrupt", err)
	}
	if got := content(t, s, 2, 10, "vda"); !bytes.Equal(got, w.want[1][10]) {
		t.Error("what is left reads otherwise")
	}
	w.checkDamaged(t, v, fmt.Sprintf("streams/%s/timelines/00000002", w.id))
}
