package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// The disk that is written: position p is a write of fill(p) to block p % blocks, so
// that what any position is follows from its number.
const (
	blocks    = 64
	blockSize = 4096
	keepEvery = 100 // of those before the window, every so many are kept
	window    = 150 // the newest positions, all of which are kept
)

// fill is what position p writes.
func fill(p holdfast.Position) []byte {
	b := make([]byte, blockSize)
	binary.BigEndian.PutUint64(b, uint64(p))
	rng := rand.New(rand.NewPCG(uint64(p), 7))
	for i := 8; i < len(b); i += 64 {
		b[i] = byte(rng.Uint32()) // some of it compresses, some does not
	}
	return b
}

// image is the disk as of position p.
func image(p holdfast.Position) []byte {
	b := make([]byte, blocks*blockSize)
	for q := max(1, int64(p)-blocks+1); q <= int64(p); q++ {
		copy(b[q%blocks*blockSize:], fill(holdfast.Position(q)))
	}
	return b
}

// opened is a vault in a directory, with its only stream.
type opened struct {
	v *vault.Vault
	s *vault.Stream
}

func open(ctx context.Context, dir, name string) (o opened, err error) {
	text, err := os.ReadFile(filepath.Join(dir, "key"))
	if err != nil {
		return o, err
	}
	key, err := vault.ParseKey(string(text))
	if err != nil {
		return o, err
	}
	store, err := objstore.NewDir(vfs.OS, filepath.Join(dir, name))
	if err != nil {
		return o, err
	}
	if o.v, err = vault.Open(ctx, store, key, vault.Options{}); err != nil {
		return o, err
	}
	ids, err := o.v.Streams(ctx)
	if err != nil || len(ids) != 1 {
		return o, errors.Join(err, fmt.Errorf("the vault has %d streams, want 1", len(ids)))
	}
	if o.s, err = o.v.OpenStream(ctx, ids[0]); err == nil {
		err = o.s.Refresh(ctx)
	}
	return o, err
}

// work does one role until it is killed.
func work(ctx context.Context, role, dir string) error {
	o, err := open(ctx, dir, "vault")
	if err != nil {
		return err
	}
	switch role {
	case "write":
		return o.write(ctx)
	case "prune":
		return o.prune(ctx)
	case "verify":
		return o.verify(ctx, dir)
	case "copy":
		return o.copy(ctx, filepath.Join(dir, "copy"))
	}
	return fmt.Errorf("no role %q", role)
}

// write writes, and says on standard output up to where it is acknowledged.
func (o opened) write(ctx context.Context) error {
	w, err := o.s.Writer(ctx, vault.WriterOptions{Timeline: 1, Generation: 1})
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		if err := writeSegment(ctx, w, 1+rand.IntN(16)); err != nil {
			return err
		}
		if err := binary.Write(os.Stdout, binary.BigEndian, uint64(w.Next()-1)); err != nil {
			return err
		}
	}
	return nil
}

// writeSegment writes the next n positions as a segment, durably.
func writeSegment(ctx context.Context, w *vault.Writer, n int) error {
	for range n {
		p := w.Next()
		got, err := w.Write("vda", int64(p)%blocks*blockSize, fill(p), time.Now())
		if err != nil || got != p {
			return errors.Join(err, fmt.Errorf("wrote %d, want %d", got, p))
		}
	}
	sealed, err := w.Seal(time.Now())
	if err != nil {
		return err
	}
	return w.Commit(ctx, sealed)
}

// prune keeps the window, and of what is before it every so many.
func (o opened) prune(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := o.s.Refresh(ctx); err != nil {
			return err
		}
		if tail := o.tail(); tail > window {
			if _, err := o.s.Prune(ctx, vault.PruneOptions{Timeline: 1, Upto: tail - window, Keep: kept(tail - window), Waste: 0.05, Target: 256 << 10}); err != nil {
				return err
			}
		}
	}
	return nil
}

// kept are the positions up to p that are kept.
func kept(p holdfast.Position) (out []holdfast.Position) {
	for q := holdfast.Position(keepEvery); q <= p; q += keepEvery {
		out = append(out, q)
	}
	return out
}

// verify verifies, and opens anew, what others prune meanwhile.
func (o opened) verify(ctx context.Context, dir string) error {
	for ctx.Err() == nil {
		rep, err := o.v.Verify(ctx, vault.VerifyOptions{})
		if err != nil || len(rep.Damaged) > 0 {
			return errors.Join(err, fmt.Errorf("damage is seen where none is: %+v", rep.Damaged))
		}
		if o, err = open(ctx, dir, "vault"); err != nil {
			return err
		}
	}
	return nil
}

func (o opened) copy(ctx context.Context, dir string) error {
	store, err := objstore.NewDir(vfs.OS, dir)
	if err != nil {
		return err
	}
	c := o.v.NewCopier(store, false)
	for ctx.Err() == nil {
		if _, err := c.Pass(ctx, nil); err != nil {
			return err
		}
	}
	return nil
}

// tail is the newest position.
func (o opened) tail() holdfast.Position { return o.s.Timelines()[0].Tail.Position }
