package block

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"
)

const (
	compareParallel = 4
	compareBuffer   = 256 << 10
)

// errDiffer ends Equal at the first difference.
var errDiffer = errors.New("images differ")

// Compare returns where two images differ, in sectors. What only the larger one
// has counts as different. What both know to be zero is not read. It holds 8
// buffers of 256 KiB.
func Compare(ctx context.Context, a, b Image) (*Set, error) {
	var mu sync.Mutex // guards out
	out := &Set{}
	err := compare(ctx, a, b, func(e Extent) error {
		mu.Lock()
		defer mu.Unlock()
		out.Add(e)
		return nil
	})
	if err != nil {
		return nil, failure(ctx, "compare", err)
	}
	small, large := min(a.Size(), b.Size()), max(a.Size(), b.Size())
	out.Add(Extent{small, large - small})
	return out, nil
}

// Equal says whether two images have the same size and content. It stops at the
// first difference that it finds.
func Equal(ctx context.Context, a, b Image) (bool, error) {
	if a.Size() != b.Size() {
		return false, nil
	}
	err := compare(ctx, a, b, func(Extent) error { return errDiffer })
	if errors.Is(err, errDiffer) {
		return false, nil
	}
	if err != nil {
		return false, failure(ctx, "compare", err)
	}
	return true, nil
}

// pair is the same part of two images.
type pair struct {
	Extent
	zeroA, zeroB bool
}

// compare calls differ for each extent in which the images differ, as far as
// both go, in no order and from several goroutines.
func compare(ctx context.Context, a, b Image, differ func(Extent) error) error {
	g, ctx := errgroup.WithContext(ctx)
	pairs := make(chan pair)
	g.Go(func() error {
		defer close(pairs)
		ma, mb := mapper{img: a}, mapper{img: b}
		for e := (Extent{0, min(a.Size(), b.Size())}); e.Length > 0; {
			sa, err := ma.at(ctx, e)
			if err != nil {
				return err
			}
			sb, err := mb.at(ctx, e)
			if err != nil {
				return err
			}
			p := pair{Extent{e.Offset, min(sa.Length, sb.Length)}, sa.Zero, sb.Zero}
			if !p.zeroA || !p.zeroB {
				p.Length = min(p.Length, compareBuffer)
				select {
				case pairs <- p:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
			e = Extent{p.End(), e.End() - p.End()}
		}
		return nil
	})
	for range compareParallel {
		g.Go(func() error {
			bufA, bufB := make([]byte, compareBuffer), make([]byte, compareBuffer)
			for p := range pairs {
				if err := readPart(ctx, a, p.zeroA, bufA[:p.Length], p.Offset); err != nil {
					return err
				}
				if err := readPart(ctx, b, p.zeroB, bufB[:p.Length], p.Offset); err != nil {
					return err
				}
				if err := differences(bufA[:p.Length], bufB[:p.Length], p.Offset, differ); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func readPart(ctx context.Context, img Image, zero bool, p []byte, off int64) error {
	if zero {
		clear(p)
		return nil
	}
	if err := img.ReadAt(ctx, p, off); err != nil {
		return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
	}
	return nil
}

// differences calls f for each run of sectors in which a and b, read from off,
// differ.
func differences(a, b []byte, off int64, f func(Extent) error) error {
	if bytes.Equal(a, b) {
		return nil
	}
	var run Extent
	for i := 0; i < len(a); i += SectorSize {
		j := min(i+SectorSize, len(a))
		if bytes.Equal(a[i:j], b[i:j]) {
			continue
		}
		at := off + int64(i)
		if run.Length > 0 && run.End() != at {
			if err := f(run); err != nil {
				return err
			}
			run = Extent{}
		}
		if run.Length == 0 {
			run.Offset = at
		}
		run.Length += int64(j - i)
	}
	return f(run)
}
