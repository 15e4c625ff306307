package block_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/zeebo/blake3"
	"pgregory.net/rapid"

	"github.com/holdfast-dr/holdfast/internal/block"
)

func TestCompareAndHash(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		a := drawDisk(t, rapid.Int64Range(0, 1024).Draw(t, "size")*512)
		b := drawDisk(t, rapid.Int64Range(0, 1024).Draw(t, "other size")*512)
		if rapid.Bool().Draw(t, "related") && b.Size() >= a.Size() {
			some := &block.Set{}
			some.Add(ext(0, rapid.Int64Range(0, a.Size()/512).Draw(t, "same sectors")*512))
			if _, err := block.Copy(ctx, b, a, block.CopyOptions{Extents: some}); err != nil {
				t.Fatal(err)
			}
		}
		pa, pb := content(t, a), content(t, b)
		want := &block.Set{}
		for off := 0; off < max(len(pa), len(pb)); off += 512 {
			if off >= min(len(pa), len(pb)) || !bytes.Equal(pa[off:off+512], pb[off:off+512]) {
				want.Add(ext(int64(off), 512))
			}
		}
		got, err := block.Compare(ctx, a, b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(extents(want), extents(got)); diff != "" {
			t.Fatalf("differences (-want +got):\n%s", diff)
		}
		if same, err := block.Equal(ctx, a, b); err != nil || same != (want.Len() == 0) {
			t.Fatalf("equal: %v, %v, with %d differences", same, err, want.Len())
		}
		for img, p := range map[*block.MemDisk][]byte{a: pa, b: pb} {
			if sum, err := block.Hash(ctx, img); err != nil || sum != blake3.Sum256(p) {
				t.Fatalf("hash %x, %v, want %x", sum, err, blake3.Sum256(p))
			}
		}
	})
}

// TestHashOrder hashes more than what is read ahead, and finds one swapped.
func TestHashOrder(t *testing.T) {
	t.Parallel()
	d := memDisk(t, 20<<20)
	p := junk(5, 20<<20)
	clear(p[6<<20 : 9<<20])
	if err := errors.Join(d.WriteAt(t.Context(), p, 0), d.Zero(t.Context(), ext(6<<20, 3<<20), true)); err != nil {
		t.Fatal(err)
	}
	if sum, err := block.Hash(t.Context(), d); err != nil || sum != blake3.Sum256(p) {
		t.Errorf("hash %x, %v, want %x", sum, err, blake3.Sum256(p))
	}
}

// TestReadErrors breaks images in ways that must not be taken for a result.
func TestReadErrors(t *testing.T) {
	t.Parallel()
	broken := errors.New("the disk is broken")
	good := memDisk(t, 20<<20)
	if err := good.WriteAt(t.Context(), junk(1, 20<<20), 0); err != nil {
		t.Fatal(err)
	}
	bad := &scripted{disk: good, onRead: func(_ context.Context, e block.Extent) error {
		if e.Offset >= 10<<20 {
			return broken
		}
		return nil
	}}
	why := errors.New("enough")
	stopping, stop := context.WithCancelCause(t.Context())
	stopper := &scripted{disk: good, onRead: func(ctx context.Context, e block.Extent) error {
		if e.Offset >= 10<<20 {
			stop(why)
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}}
	gap := &scripted{disk: good, onMap: func(e block.Extent) []block.Span {
		return []block.Span{{Extent: ext(e.Offset+512, e.Length-512)}}
	}}
	tests := []struct {
		name string
		ctx  context.Context
		img  block.Image
		err  error
		want string
	}{
		{"read", t.Context(), bad, broken, "bytes at 1"},
		{"stop", stopping, stopper, why, ""}, // the first also ends the context for the rest
		{"map", t.Context(), gap, nil, "where those from 0 are due"},
	}
	for _, tt := range tests {
		for op, do := range map[string]func() (any, error){
			"hash":            func() (any, error) { return block.Hash(tt.ctx, tt.img) },
			"compare":         func() (any, error) { return block.Compare(tt.ctx, good, tt.img) },
			"compare swapped": func() (any, error) { return block.Compare(tt.ctx, tt.img, good) },
			"equal":           func() (any, error) { return block.Equal(tt.ctx, good, tt.img) },
		} {
			if got, err := do(); err == nil || tt.err != nil && !errors.Is(err, tt.err) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s with %s: %v, %v, want an error with %q", op, tt.name, got, err, tt.want)
			}
		}
	}
}

func TestEqualStopsAtTheFirstDifference(t *testing.T) {
	t.Parallel()
	a := memDisk(t, 64<<20)
	b := &scripted{disk: memDisk(t, 64<<20), onRead: func(_ context.Context, e block.Extent) error {
		if e.Offset > 32<<20 {
			return errors.New("read on")
		}
		return nil
	}}
	if err := errors.Join(b.disk.WriteAt(t.Context(), junk(1, 64<<20), 0), b.disk.WriteAt(t.Context(), make([]byte, 32<<20), 8<<20)); err != nil {
		t.Fatal(err)
	}
	if same, err := block.Equal(t.Context(), a, b); same || err != nil {
		t.Errorf("equal: %v, %v", same, err)
	}
}
