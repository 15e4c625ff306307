package block

import (
	"context"
	"fmt"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"
)

const (
	hashAhead  = 4
	hashBuffer = 1 << 20
)

// Hash returns the BLAKE3 of an image's whole content, zeroes and holes
// included, so that it does not depend on how the image is kept. What Map calls
// zero is not read. It holds 4 buffers of 1 MiB.
func Hash(ctx context.Context, img Image) ([32]byte, error) {
	sum, err := hash(ctx, img)
	if err != nil {
		return [32]byte{}, failure(ctx, "hash", err)
	}
	return sum, nil
}

// hashPart is a part of the image; p is filled once ready is closed.
type hashPart struct {
	Span
	p     []byte
	ready chan struct{}
}

// hash reads ahead, several parts at once, and hashes in order.
func hash(ctx context.Context, img Image) (sum [32]byte, err error) {
	g, ctx := errgroup.WithContext(ctx)
	parts := make(chan hashPart, hashAhead)
	free := make(chan []byte, hashAhead)
	for range hashAhead {
		free <- nil // made when needed
	}
	g.Go(func() error {
		defer close(parts)
		m := mapper{img: img}
		for e := (Extent{0, img.Size()}); e.Length > 0; {
			sp, err := m.at(ctx, e)
			if err != nil {
				return err
			}
			part := hashPart{Span: sp}
			if !sp.Zero {
				part.Length = min(sp.Length, hashBuffer)
				if err := readAhead(ctx, g, img, &part, free); err != nil {
					return err
				}
			}
			select {
			case parts <- part:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			e = Extent{part.End(), e.End() - part.End()}
		}
		return nil
	})
	g.Go(func() (err error) {
		sum, err = hashInOrder(ctx, parts, free)
		return err
	})
	err = g.Wait()
	return sum, err
}

// readAhead takes a buffer and begins to fill it.
func readAhead(ctx context.Context, g *errgroup.Group, img Image, part *hashPart, free <-chan []byte) error {
	select {
	case part.p = <-free:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if part.p == nil {
		part.p = make([]byte, hashBuffer)
	}
	part.ready = make(chan struct{})
	p, off, ready := part.p[:part.Length], part.Offset, part.ready
	g.Go(func() error {
		if err := img.ReadAt(ctx, p, off); err != nil {
			return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
		}
		close(ready)
		return nil
	})
	return nil
}

// hashInOrder hashes parts as they become ready, and gives their buffers back.
// If parts end early the sum means nothing; then the group has an error.
func hashInOrder(ctx context.Context, parts <-chan hashPart, free chan<- []byte) (sum [32]byte, err error) {
	h := blake3.New()
	zero := make([]byte, 64<<10)
	for part := range parts {
		if part.Zero {
			for left := part.Length; left > 0; left -= int64(len(zero)) {
				if ctx.Err() != nil {
					return sum, context.Cause(ctx)
				}
				h.Write(zero[:min(left, int64(len(zero)))]) // cannot fail
			}
			continue
		}
		select {
		case <-part.ready:
		case <-ctx.Done():
			return sum, context.Cause(ctx)
		}
		h.Write(part.p[:part.Length])
		free <- part.p
	}
	h.Sum(sum[:0])
	return sum, nil
}
