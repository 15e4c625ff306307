package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/gateway"
	"github.com/holdfast-dr/holdfast/internal/nbd"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// saved is how it went to save a disk, then 1 % of it again, and to get it back.
type saved struct {
	first, perCPU, again, back float64 // MiB of the disk per second; perCPU: of a core
	packed                     float64 // bytes of the disk per byte stored
}

// saver is one of those that are compared. work is the disk's file, which change
// changes between the first and the second time; what comes back goes to out.
type saver struct {
	name string
	life func(ctx context.Context, work, out string, change func() ([]block.Extent, error)) (saved, error)
}

// changeSize is the size of the extents in which 1 % of a disk changes.
const changeSize = 64 << 10

// measureSavers measures Holdfast and the backup tools that are installed.
func (b *bench) measureSavers(ctx context.Context, runs int) ([]result, error) {
	savers := []saver{{"gateway and vault", b.saveHere}}
	for _, t := range tools() {
		if _, err := exec.LookPath(t.program); err != nil {
			fmt.Fprintf(os.Stderr, "bench: no %s here: it is not compared\n", t.program)
			continue
		}
		savers = append(savers, saver{t.program, func(ctx context.Context, work, out string, change func() ([]block.Extent, error)) (saved, error) {
			return b.saveWith(ctx, t, work, out, change)
		}})
	}
	all := make([][]saved, len(savers))
	for run := range runs {
		for i, s := range savers {
			got, err := b.saveOnce(ctx, s, uint64(run))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
			all[i] = append(all[i], got)
		}
	}
	var out []result
	for _, f := range []struct {
		name, unit string
		of         func(saved) float64
	}{
		{"save " + b.kind + " data", "MiB/s", func(s saved) float64 { return s.first }},
		{"save " + b.kind + " data, of a core", "MiB/CPU-s", func(s saved) float64 { return s.perCPU }},
		{"save " + b.kind + " data again, 1 % changed", "MiB/s of disk", func(s saved) float64 { return s.again }},
		{"get " + b.kind + " data back in a file, synced", "MiB/s", func(s saved) float64 { return s.back }},
		{b.kind + " data per stored byte", "bytes", func(s saved) float64 { return s.packed }},
	} {
		group := make([]result, len(savers))
		for i, s := range savers {
			group[i] = result{Figure: f.name, Side: s.name, Unit: f.unit}
			for _, got := range all[i] {
				group[i].Runs = append(group[i].Runs, f.of(got))
			}
		}
		compare(group)
		out = append(out, group...)
	}
	return out, nil
}

// saveOnce has one of them save the disk, and checks what comes back.
func (b *bench) saveOnce(ctx context.Context, s saver, seed uint64) (got saved, err error) {
	work, out := filepath.Join(b.dir, "work.raw"), filepath.Join(b.dir, "back")
	defer func() { err = errors.Join(err, os.RemoveAll(out), os.Remove(work)) }()
	if err := errors.Join(command(ctx, "cp", b.source, work), command(ctx, "sync", work), os.MkdirAll(out, 0o755)); err != nil {
		return got, err
	}
	back := filepath.Join(out, "disk.raw")
	got, err = s.life(ctx, work, back, func() ([]block.Extent, error) { return b.change(work, seed) })
	if err == nil {
		err = command(ctx, "cmp", work, back)
	}
	return got, err
}

// change writes 1 % of the disk anew, in extents at random places.
func (b *bench) change(work string, seed uint64) (out []block.Extent, err error) {
	f, err := os.OpenFile(work, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Sync(), f.Close()) }()
	rng := rand.New(rand.NewPCG(seed, 3))
	for _, n := range rng.Perm(int(b.size / changeSize))[:b.size/changeSize/100] {
		e := block.Extent{Offset: int64(n) * changeSize, Length: changeSize}
		p := bytes.Repeat(fmt.Appendf(nil, "%016x changed ", rng.Uint64()), changeSize/20)
		if _, err := f.WriteAt(p[:min(len(p), changeSize)], e.Offset); err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

// cpu returns what this process and its children have used.
func cpu() (sum time.Duration, err error) {
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err != nil {
			return 0, err
		}
		sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return sum, nil
}

// timed measures a first backup.
func (b *bench) timed(got *saved, f func() error) error {
	before, err := cpu()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := f(); err != nil {
		return err
	}
	got.first = perSecond(b.size, time.Since(began))
	after, err := cpu()
	got.perCPU = perSecond(b.size, after-before)
	return err
}

// saveHere saves with Holdfast: the disk by nbdcopy, then what has changed, which the
// source knows, then the newest position as a file.
func (b *bench) saveHere(ctx context.Context, work, out string, change func() ([]block.Extent, error)) (got saved, err error) {
	id := holdfast.NewStreamID()
	s, err := b.vault.CreateStream(ctx, vault.StreamOptions{ID: id, Disks: []vault.Disk{{ID: "vda", Size: b.size}}, Now: time.Now()})
	if err != nil {
		return got, err
	}
	rep, err := b.gateway.Open(ctx, gateway.OpenRequest{
		Stream: id, Timeline: 1, Generation: 1, Disks: []gateway.DiskRef{{ID: "vda", Size: b.size}},
		Vault: gateway.VaultRef{Location: objstore.Location(filepath.Join(b.dir, "vault")), Key: b.key.String()},
	})
	if err != nil {
		return got, err
	}
	defer b.gateway.Close(id)
	if _, err := b.ask(ctx, "POST", "/streams/"+id.String()+"/begin"); err != nil {
		return got, err
	}
	time.Sleep(300 * time.Millisecond) // until it takes a source
	point := func() error {
		_, err := b.ask(ctx, "POST", "/streams/"+id.String()+"/point")
		return err
	}
	if err := b.timed(&got, func() error {
		return errors.Join(command(ctx, "nbdcopy", "--connections=1", work, "nbd+unix:///vda?socket="+rep.Socket), point())
	}); err != nil {
		return got, err
	}
	changed, err := change()
	if err != nil {
		return got, err
	}
	if got.again, err = b.withClient(ctx, rep.Socket, "vda", func(c *nbd.Client) (float64, error) {
		began := time.Now()
		err := errors.Join(replay(ctx, c, work, changed), c.Flush(ctx), point())
		return perSecond(b.size, time.Since(began)), err
	}); err != nil {
		return got, err
	}
	began := time.Now()
	if err := s.Refresh(ctx); err != nil {
		return got, err
	}
	if err := export(ctx, s, out); err != nil {
		return got, err
	}
	got.back = perSecond(b.size, time.Since(began))
	got.packed = float64(b.size) / float64(s.StoredBytes())
	return got, nil
}

// replay writes what has changed in a file to a disk.
func replay(ctx context.Context, c *nbd.Client, work string, changed []block.Extent) error {
	f, err := os.Open(work)
	if err != nil {
		return err
	}
	defer f.Close()
	p := make([]byte, changeSize)
	for _, e := range changed {
		if _, err := f.ReadAt(p, e.Offset); err != nil {
			return err
		}
		if err := c.WriteAt(ctx, p, e.Offset); err != nil {
			return err
		}
	}
	return nil
}

// export writes the newest position to a file, as holdfast vault export does.
func export(ctx context.Context, s *vault.Stream, out string) error {
	view, err := s.View(ctx, 1, s.Timelines()[0].Tail.Position)
	if err != nil {
		return err
	}
	image, err := view.Disk("vda")
	if err != nil {
		return err
	}
	to, err := block.CreateFileDisk(out, image.Size())
	if err != nil {
		return err
	}
	_, err = block.Copy(ctx, to, image, block.CopyOptions{SkipZero: true})
	return errors.Join(err, to.Flush(ctx), to.Close())
}

// tool is a backup tool: its command lines for a repository and a file.
type tool struct {
	program               string
	make, save, load, env func(repo, file string) []string
}

func tools() []tool {
	return []tool{{
		program: "restic",
		make:    func(repo, _ string) []string { return []string{"-q", "-r", repo, "init", "--repository-version", "2"} },
		save:    func(repo, file string) []string { return []string{"-q", "-r", repo, "backup", file} },
		load: func(repo, file string) []string {
			return []string{"-q", "-r", repo, "restore", "latest", "--target", filepath.Dir(file)}
		},
		env: func(repo, _ string) []string {
			return []string{"RESTIC_PASSWORD=bench", "RESTIC_CACHE_DIR=" + repo + ".cache"}
		},
	}, {
		program: "borg",
		make:    func(repo, _ string) []string { return []string{"init", "-e", "repokey-blake2", repo} },
		save:    func(repo, file string) []string { return []string{"create", repo + "::{now:%s%f}", file} },
		load: func(repo, file string) []string {
			return []string{"--lock-wait", "1", "extract", "--sparse", repo + "::" + filepath.Base(file)}
		},
		env: func(repo, _ string) []string {
			return []string{"BORG_PASSPHRASE=bench", "BORG_BASE_DIR=" + repo + ".base"}
		},
	}}
}

// saveWith saves with a backup tool.
func (b *bench) saveWith(ctx context.Context, t tool, work, out string, change func() ([]block.Extent, error)) (got saved, err error) {
	repo := filepath.Join(b.dir, "repo")
	defer func() {
		err = errors.Join(err, os.RemoveAll(repo), os.RemoveAll(repo+".cache"), os.RemoveAll(repo+".base"))
	}()
	run := func(args []string) error { return t.run(ctx, repo, filepath.Dir(out), args) }
	if err := run(t.make(repo, work)); err != nil {
		return got, err
	}
	if err := b.timed(&got, func() error { return run(t.save(repo, work)) }); err != nil {
		return got, err
	}
	if _, err := change(); err != nil {
		return got, err
	}
	began := time.Now()
	if err := run(t.save(repo, work)); err != nil {
		return got, err
	}
	got.again = perSecond(b.size, time.Since(began))
	stored, err := sizeOf(repo)
	if err != nil {
		return got, err
	}
	got.packed = float64(b.size) / float64(stored)
	last := out
	if t.program == "borg" {
		if last, err = t.newest(ctx, repo); err != nil {
			return got, err
		}
	}
	came := filepath.Join(filepath.Dir(out), work) // both make the whole path again
	began = time.Now()
	err = errors.Join(run(t.load(repo, filepath.Join(filepath.Dir(out), filepath.Base(last)))), command(ctx, "sync", came))
	got.back = perSecond(b.size, time.Since(began))
	return got, errors.Join(err, os.Rename(came, out))
}

func (t tool) run(ctx context.Context, repo, dir string, args []string) error {
	_, err := t.output(ctx, repo, dir, args)
	return err
}

func (t tool) output(ctx context.Context, repo, dir string, args []string) (string, error) {
	cmd := exec.CommandContext(ctx, t.program, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), t.env(repo, "")...)
	var wrong bytes.Buffer
	cmd.Stderr = &wrong
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %v: %w: %s", t.program, args, err, &wrong)
	}
	return string(bytes.TrimSpace(out)), nil
}

// newest returns the name of borg's newest archive.
func (t tool) newest(ctx context.Context, repo string) (string, error) {
	return t.output(ctx, repo, filepath.Dir(repo), []string{"list", "--short", "--last", "1", repo})
}

// sizeOf returns what the files below a directory take.
func sizeOf(dir string) (sum int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			sum += info.Size()
		}
		return err
	})
	return sum, err
}
