package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// options are what soak was asked for.
type options struct {
	kills int
	dir   string
	seed  uint64
	out   io.Writer
}

// How many rounds there are between two verifications, and in the life of a vault.
const (
	roundsToVerify = 50
	roundsToLive   = 400
)

// sum is what was counted.
type sum struct {
	kills, rounds, views, verified int
	acked                          int64 // positions
	began                          time.Time
}

func (s *sum) print(out io.Writer, total int) {
	took := time.Since(s.began)
	left := time.Duration(float64(took) / float64(max(s.kills, 1)) * float64(max(0, total-s.kills)))
	fmt.Fprintf(out, "%d of %d processes killed in %d rounds, %d positions acknowledged, 0 lost; %d views compared, %d verifications; %s, %s left\n",
		s.kills, total, s.rounds, s.acked, s.views, s.verified, took.Round(time.Second), left.Round(time.Second))
}

// soak runs rounds until enough were killed. It fails at the first thing that is wrong,
// and leaves the vault for a look.
func soak(ctx context.Context, o options) error {
	s := &sum{began: time.Now()}
	rng := rand.New(rand.NewPCG(o.seed, 0))
	for s.kills < o.kills {
		dir, err := os.MkdirTemp(o.dir, "soak-")
		if err != nil {
			return err
		}
		if err := life(ctx, dir, o, s, rng); err != nil {
			return fmt.Errorf("%s, after %d kills: %w", dir, s.kills, err)
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	s.print(o.out, o.kills)
	return nil
}

// life is a vault from its making to the end of its rounds.
func life(ctx context.Context, dir string, o options, s *sum, rng *rand.Rand) error {
	if err := create(ctx, dir); err != nil {
		return err
	}
	var acked holdfast.Position
	for round := 1; round <= roundsToLive && s.kills < o.kills; round++ {
		got, err := killAll(ctx, dir, time.Duration(rng.IntN(120))*time.Millisecond, s)
		if err != nil {
			return err
		}
		s.acked += int64(max(acked, got) - acked)
		acked = max(acked, got)
		if err := look(ctx, dir, acked, rng, s); err != nil {
			return fmt.Errorf("round %d, %d acknowledged: %w", round, acked, err)
		}
		if s.rounds++; round%roundsToVerify == 0 || s.kills >= o.kills {
			if err := verifyBoth(ctx, dir, s); err != nil {
				return err
			}
			s.print(o.out, o.kills)
		}
	}
	return nil
}

func create(ctx context.Context, dir string) error {
	for _, d := range []string{"vault", "copy"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			return err
		}
	}
	key, err := vault.NewKey()
	if err != nil {
		return err
	}
	store, err := objstore.NewDir(vfs.OS, filepath.Join(dir, "vault"))
	if err != nil {
		return err
	}
	v, err := vault.Create(ctx, store, vault.CreateOptions{Key: key, Now: time.Now()})
	if err != nil {
		return err
	}
	_, err = v.CreateStream(ctx, vault.StreamOptions{ID: holdfast.NewStreamID(), Name: "soak", Disks: []vault.Disk{{ID: "vda", Size: blocks * blockSize}}, Now: time.Now()})
	return errors.Join(err, os.WriteFile(filepath.Join(dir, "key"), []byte(key.String()), 0o600))
}

// killAll is a round. It returns up to where the writer was acknowledged.
func killAll(ctx context.Context, dir string, after time.Duration, s *sum) (holdfast.Position, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	var said bytes.Buffer
	var wrong [4]bytes.Buffer
	var all []*exec.Cmd
	for i, role := range []string{"write", "prune", "copy", "verify"} {
		cmd := exec.CommandContext(ctx, self, "-role", role, "-dir", dir)
		if cmd.Stderr = &wrong[i]; role == "write" {
			cmd.Stdout = &said
		}
		if err = cmd.Start(); err != nil {
			break
		}
		all = append(all, cmd)
	}
	time.Sleep(20*time.Millisecond + after)
	for i, cmd := range all {
		_ = cmd.Process.Kill() // if it has ended by itself, Wait tells
		if werr := cmd.Wait(); cmd.ProcessState.Exited() {
			err = errors.Join(err, fmt.Errorf("%s ended by itself: %w: %s", cmd.Args[2], werr, &wrong[i]))
		}
		s.kills++
	}
	var last holdfast.Position
	if n := said.Len() / 8; n > 0 {
		last = holdfast.Position(binary.BigEndian.Uint64(said.Bytes()[8*(n-1):]))
	}
	return last, err
}

// look compares what is there with what must be.
func look(ctx context.Context, dir string, acked holdfast.Position, rng *rand.Rand, s *sum) error {
	o, err := open(ctx, dir, "vault")
	if err != nil {
		return err
	}
	tail := o.tail()
	if tail < acked {
		return fmt.Errorf("the newest position is %d", tail)
	}
	positions := []holdfast.Position{tail, tail - min(tail, holdfast.Position(rng.IntN(window)))}
	if k := kept(tail - min(tail, window)); len(k) > 0 {
		positions = append(positions, k[rng.IntN(len(k))])
	}
	for _, p := range positions {
		if err := compare(ctx, o, p); err != nil {
			return fmt.Errorf("position %d of %d: %w", p, tail, err)
		}
		s.views++
	}
	return nil
}

// errDiffers says that a disk was read, and is not as it was written.
var errDiffers = errors.New("the disk is another one")

func compare(ctx context.Context, o opened, p holdfast.Position) error {
	view, err := o.s.View(ctx, 1, p)
	if err != nil {
		return err
	}
	disk, err := view.Disk("vda")
	if err != nil {
		return err
	}
	got := make([]byte, blocks*blockSize)
	if err := disk.ReadAt(ctx, got, 0); err != nil {
		return err
	}
	if !bytes.Equal(got, image(p)) {
		return errDiffers
	}
	return nil
}

// verifyBoth reads all of the vault, and of its copy.
func verifyBoth(ctx context.Context, dir string, s *sum) error {
	for _, name := range []string{"vault", "copy"} {
		if _, err := os.Stat(filepath.Join(dir, name, "vault")); name == "copy" && err != nil {
			continue // it was never begun
		}
		o, err := open(ctx, dir, name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		rep, err := o.v.Verify(ctx, vault.VerifyOptions{})
		if err != nil || len(rep.Damaged) > 0 {
			return errors.Join(err, fmt.Errorf("%s is damaged: %+v", name, rep.Damaged))
		}
		err = compare(ctx, o, o.tail())
		if k := kept(o.tail()); name == "copy" && errors.Is(err, vault.ErrPruned) {
			// It is so far behind that only what is kept for long can be read of it.
			err = nil
			if len(k) > 0 {
				err = compare(ctx, o, k[len(k)-1])
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		s.verified++
	}
	return nil
}
