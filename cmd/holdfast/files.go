package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/recovery"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// files is what `holdfast vault files` was asked for.
type files struct {
	moments
	path, system, output string
}

// filesCommand is `holdfast vault files`.
func filesCommand() *cobra.Command {
	var o files
	cmd := &cobra.Command{
		Use: "files STREAM [PATH]", Args: cobra.RangeArgs(1, 2),
		Short: "List files of a recovery point, or copy them out of it, without a server",
		Long: `List files of a recovery point, or copy them out of it, with the vault's key and without a server or the
machine. Without a path it lists the file systems. It takes the newest consistent moment, unless a point
or a time is given.

guestfish (Debian: guestfish, libguestfs-xfs, and any kernel, as linux-image-cloud-amd64) reads the file
systems, in a small virtual machine with the kernel's own drivers: ext4, XFS, NTFS, Btrfs, LVM. There the
journal is replayed, as it would be at the machine's next start, over a layer that is thrown away:
without that, files written last would be missing. The vault is only read.`,
		Example: `  holdfast vault files web1 --vault /srv/vault --vault-key vault.key
  holdfast vault files web1 /etc/nginx --vault /srv/vault --vault-key vault.key --time 2026-11-23T12:00:00Z
  holdfast vault files web1 /etc/nginx --vault /srv/vault --vault-key vault.key --output restored
  holdfast vault files db1 /16/main --file-system vdb1 --vault /srv/vault --vault-key vault.key --output .`,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.stream = args[0]
			if len(args) > 1 {
				o.path = args[1]
			}
			return o.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&o.system, "file-system", "", "the file system that the path is in, as listed; all of the machine's, where it has them, if not given")
	f.StringVar(&o.output, "output", "", "copy what the path names into this directory; it is made if it is not there, and nothing in it is replaced")
	return cmd
}

func (o *files) run(ctx context.Context, out, progress io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	tool, err := exec.LookPath("guestfish")
	if err != nil {
		return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "read files", Err: err, Hint: "Install it (Debian: guestfish and linux-image-cloud-amd64), or take holdfast vault export"}
	}
	view, at, err := o.view(ctx)
	if err != nil {
		return err
	}
	into := ""
	if o.output != "" {
		if into, err = o.target(); err != nil {
			return err
		}
	}
	fmt.Fprintf(progress, "%s as it was at %s; the file systems are being opened…\n", o.stream, at.UTC().Format(time.RFC3339))
	return serveView(ctx, view, "", func(ctx context.Context, socket string) error {
		g := guestfish{tool: tool, socket: socket, disks: view.Disks(), progress: progress, slow: new(bool)}
		switch {
		case o.path == "":
			return g.listSystems(ctx, out)
		case into == "":
			return g.run(ctx, out, o.system, "ll", o.path)
		}
		if err := g.run(ctx, out, o.system, "copy-out", o.path, into); err != nil {
			return err
		}
		fmt.Fprintf(out, "%s is %s of %s as it was at %s\n", filepath.Join(o.output, path.Base(o.path)), o.path, o.stream, at.UTC().Format(time.RFC3339))
		return nil
	})
}

// check refuses what guestfish would take for something else.
func (o *files) check() error {
	e := &holdfast.Error{Kind: holdfast.KindInvalid, Op: "read files", Thing: o.path}
	switch {
	case o.path == "" && (o.output != "" || o.system != ""):
		e.Cause, e.Hint = "no path is given", "Give the path of a file or directory, like /etc"
	case o.path != "" && !path.IsAbs(o.path):
		e.Cause, e.Hint = "it does not begin with /", "Give the path from the file system's beginning, like /etc"
	case o.path != "" && path.Clean(o.path) != strings.TrimSuffix(o.path, "/") && o.path != "/":
		e.Cause, e.Hint = "it is not in its shortest form", "Give it as "+path.Clean(o.path)
	case o.output != "" && o.path == "/":
		e.Cause, e.Hint = "all of a file system is not copied", "Name its directories one by one, or take holdfast vault export"
	default:
		return nil
	}
	return e
}

// target makes the directory that files are copied into.
func (o *files) target() (string, error) {
	into, err := filepath.Abs(o.output)
	if err == nil {
		err = os.MkdirAll(into, 0o777)
	}
	if err != nil {
		return "", startError("copy files to", o.output, err, "Name a directory that can be written to")
	}
	name := filepath.Join(into, path.Base(o.path))
	if _, err := os.Lstat(name); err == nil {
		return "", &holdfast.Error{Kind: holdfast.KindConflict, Op: "copy files to", Thing: name, Cause: "it is there already", Hint: "Name another directory with --output"}
	}
	return into, nil
}

// guestfish reads the file systems of disks that are served over NBD.
type guestfish struct {
	tool, socket string
	disks        []vault.Disk
	progress     io.Writer
	slow         *bool // KVM does not work here
}

// device returns guestfish's name of a file system: of the disks in their order
// /dev/sda, /dev/sdb and so on; those of logical volumes are as they are.
func (g guestfish) device(system string) (string, error) {
	if strings.HasPrefix(system, "/dev/") {
		return system, nil
	}
	for i, d := range g.disks {
		if rest, ok := strings.CutPrefix(system, d.ID); ok && strings.Trim(rest, "0123456789") == "" {
			return "/dev/sd" + letters(i) + rest, nil
		}
	}
	return "", &holdfast.Error{Kind: holdfast.KindInvalid, Op: "choose file system", Thing: system, Cause: "the machine had no such disk at that moment", Hint: "holdfast vault files without a path lists the file systems"}
}

// named returns what a device is called by the machine's disks.
func (g guestfish) named(device string) string {
	for i, d := range slices.Backward(g.disks) {
		if rest, ok := strings.CutPrefix(device, "/dev/sd"+letters(i)); ok && strings.Trim(rest, "0123456789") == "" {
			return d.ID + rest
		}
	}
	return device
}

// letters counts as Linux does: a to z, aa, ab and so on.
func letters(n int) string {
	if n < 26 {
		return string(rune('a' + n))
	}
	return letters(n/26-1) + letters(n%26)
}

// run runs a command of guestfish in a file system, or in all that the machine
// mounts, where it has them.
func (g guestfish) run(ctx context.Context, out io.Writer, system string, command ...string) error {
	if system == "" {
		return g.exec(ctx, out, []string{"-i"}, command)
	}
	device, err := g.device(system)
	if err != nil {
		return err
	}
	return g.exec(ctx, out, []string{"-m", device}, command)
}

// exec starts guestfish, which is told nothing that it would take for a script.
func (g guestfish) exec(ctx context.Context, out io.Writer, options, command []string) error {
	args := []string{"--ro", "--format=raw"}
	for _, d := range g.disks {
		args = append(args, "-a", "nbd:///"+d.ID+"?socket="+g.socket)
	}
	args = append(append(args, options...), command...)
	said, err := g.start(ctx, out, args)
	if err != nil && !*g.slow && strings.Contains(said, "guestfs_launch failed") && ctx.Err() == nil {
		fmt.Fprintln(g.progress, "its virtual machine does not start with KVM; it is tried without, which is slower…")
		*g.slow = true
		said, err = g.start(ctx, out, args)
	}
	if err != nil {
		return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "read files with", Thing: "guestfish", Err: err, Cause: strings.TrimSpace(said),
			Hint: "holdfast vault files without a path lists the file systems; name one with --file-system. If there is none, guestfish may lack a kernel (Debian: linux-image-cloud-amd64)"}
	}
	return nil
}

// start runs guestfish once, and returns what it says of errors.
func (g guestfish) start(ctx context.Context, out io.Writer, args []string) (string, error) {
	cmd := exec.CommandContext(ctx, g.tool, args...)
	if *g.slow {
		cmd.Env = append(os.Environ(), "LIBGUESTFS_BACKEND_SETTINGS=force_tcg")
	}
	var said boundedText
	cmd.Stdout, cmd.Stderr = out, &said
	err := cmd.Run()
	return string(said), err
}

// listSystems lists file systems with their kind, size and label.
func (g guestfish) listSystems(ctx context.Context, out io.Writer) error {
	var text strings.Builder
	if err := g.exec(ctx, &text, nil, []string{"run", ":", "list-filesystems"}); err != nil {
		return err
	}
	var query []string
	var names [][2]string
	for line := range strings.Lines(text.String()) {
		device, kind, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok || kind == "unknown" || kind == "swap" {
			continue
		}
		names = append(names, [2]string{device, kind})
		query = append(query, ":", "blockdev-getsize64", device, ":", "vfs-label", device)
	}
	if len(names) == 0 {
		fmt.Fprintln(out, "no file system was found")
		return nil
	}
	text.Reset()
	if err := g.exec(ctx, &text, nil, append([]string{"run"}, query...)); err != nil {
		return err
	}
	facts := strings.Split(text.String(), "\n")
	for i, n := range names {
		size, label := "", ""
		if 2*i+1 < len(facts) {
			size, label = facts[2*i], facts[2*i+1]
		}
		fmt.Fprintln(out, strings.TrimSpace(fmt.Sprintf("%-12s %-8s %15s bytes  %s", g.named(n[0]), n[1], size, label)))
	}
	return nil
}

// serveCommand is `holdfast vault serve`.
func serveCommand() *cobra.Command {
	var o moments
	var socket string
	cmd := &cobra.Command{
		Use: "serve STREAM", Args: cobra.ExactArgs(1),
		Short: "Serve the disks of a recovery point over NBD, for reading, without a server",
		Long: `Serve the disks of a recovery point over NBD on a unix socket, for reading, until it is interrupted:
for nbdcopy, qemu-img, qemu-nbd, guestfish and whatever else reads NBD. The exports have the disks' names.`,
		Example: "  holdfast vault serve web1 --vault /srv/vault --vault-key vault.key --socket /run/web1.nbd\n  nbdinfo 'nbd+unix:///vda?socket=/run/web1.nbd'",
		RunE: func(cmd *cobra.Command, args []string) error {
			o.stream = args[0]
			view, at, err := o.view(cmd.Context())
			if err != nil {
				return err
			}
			return serveView(cmd.Context(), view, socket, func(ctx context.Context, socket string) error {
				out := cmd.OutOrStdout()
				fmt.Fprintf(out, "%s as it was at %s, until this is interrupted:\n", o.stream, at.UTC().Format(time.RFC3339))
				for _, d := range view.Disks() {
					fmt.Fprintf(out, "  nbd+unix:///%s?socket=%s  %d bytes\n", d.ID, socket, d.Size)
				}
				<-ctx.Done()
				return nil
			})
		},
	}
	o.flags(cmd)
	cmd.Flags().StringVar(&socket, "socket", "", "the unix socket to make")
	_ = cmd.MarkFlagRequired("socket") // the flag is there
	return cmd
}

// serveView serves all disks of a view while f runs.
func serveView(ctx context.Context, view *vault.View, socket string, f func(ctx context.Context, socket string) error) error {
	images := map[string]block.Image{}
	for _, d := range view.Disks() {
		image, err := view.Disk(d.ID)
		if err != nil {
			return err
		}
		images[d.ID] = image
	}
	return serve(ctx, images, socket, f)
}

// serve serves images over NBD while f runs, on a socket in a directory of its own
// if none is given.
func serve(ctx context.Context, images map[string]block.Image, socket string, f func(ctx context.Context, socket string) error) (err error) {
	if socket == "" {
		dir, err := os.MkdirTemp("", "hf-")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		socket = filepath.Join(dir, "nbd")
	} else if socket, err = filepath.Abs(socket); err != nil {
		return err
	}
	views := recovery.NewExports(recovery.Options{Socket: socket, Logger: slog.New(slog.DiscardHandler)})
	for name, image := range images {
		if err := views.Add(name, image); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- views.Run(ctx) }()
	defer func() { cancel(); err = errors.Join(err, <-done) }()
	for range 500 {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return f(ctx, socket)
}
