// Package guest builds the small virtual machine on which Holdfast is tested,
// and judges its disk after a crash.
//
// The guest is a disk that boots by itself under SeaBIOS: Debian's cloud kernel,
// a busybox initramfs, the QEMU guest agent and the load of package writer on
// one ext4 partition. It is made of Debian packages, without a mount, a loop
// device or a partition scan, so that it works in a container and mostly as an
// ordinary user. Its serial console says what happens in it, see Console.
//
// Only tests, benchmarks and the demonstration import it.
package guest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// ErrUnsupported says that this machine cannot build the guest: not Debian on
// amd64, or a tool is missing; the text names it.
var ErrUnsupported = errors.New("this machine cannot build the test guest")

// Formats of a guest's disk.
const (
	FormatRaw   = "raw"
	FormatQCOW2 = "qcow2"
)

// Options say what to build.
type Options struct {
	// Path is the disk's file. It is replaced if it is there.
	Path string
	// SizeMB is the disk's size in MiB, 256 if zero, at least 96. The file is
	// sparse, so 200 GiB cost no more than 1.
	SizeMB int
	// RootMB is the size of the partition. Zero takes the whole disk, but at
	// most 512 MiB: the rest of a larger disk stays unused.
	RootMB int
	// Postgres has PostgreSQL with pgbench write, in place of the writer; see
	// files/postgres-load.sh. The disk needs 640 MiB at least, its partition all of
	// them but one, and who builds it must be root.
	Postgres bool
	// CacheDir keeps downloaded packages and what was made of them, for the
	// next guest. Empty is .cache/holdfast/guest in the home directory.
	CacheDir string
	// Format is FormatRaw or FormatQCOW2; empty is raw.
	Format string
	// Cmdline is added to the kernel's command line; see files/guest-init.sh
	// for the words that the guest knows, such as "rate=50".
	Cmdline string
	// Logger gets a line for each slow step. Nil is silence.
	Logger *slog.Logger
}

func (o Options) withDefaults() (Options, error) {
	if o.SizeMB == 0 {
		o.SizeMB = 256
	}
	if o.RootMB == 0 {
		if o.RootMB = min(o.SizeMB-1, 512); o.Postgres {
			o.RootMB = o.SizeMB - 1
		}
	}
	if o.Format == "" {
		o.Format = FormatRaw
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case o.Path == "":
		return o, errors.New("build guest: no path given")
	case o.RootMB < 95 || o.RootMB > o.SizeMB-1:
		return o, fmt.Errorf("build guest: a partition of %d MiB on a disk of %d MiB: want at least 95 and one less than the disk", o.RootMB, o.SizeMB)
	case o.Format != FormatRaw && o.Format != FormatQCOW2:
		return o, fmt.Errorf("build guest: format %q: want raw or qcow2", o.Format)
	case strings.ContainsAny(o.Cmdline, "\n\"'\\$"):
		return o, fmt.Errorf("build guest: command line %q: no quotes, dollars or new lines", o.Cmdline)
	}
	if o.CacheDir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return o, fmt.Errorf("build guest: %w", err)
		}
		o.CacheDir = filepath.Join(home, ".cache", "holdfast", "guest")
	}
	var err error
	o.CacheDir, err = filepath.Abs(o.CacheDir)
	return o, err
}

// Build makes the guest's disk at o.Path, whole or not at all. The first build
// on a machine downloads about 40 MB of packages; later ones take a second or
// two. Builds may run at the same time, also in several processes. The error
// is ErrUnsupported when something is missing on this machine.
func Build(ctx context.Context, o Options) error {
	o, err := o.withDefaults()
	if err != nil {
		return err
	}
	if err := Supported(); err != nil {
		return err
	}
	if err := os.MkdirAll(o.CacheDir, 0o755); err != nil {
		return fmt.Errorf("build guest: %w", err)
	}
	parts, root, err := prepare(ctx, o)
	if err != nil {
		return fmt.Errorf("build guest: %w", err)
	}
	raw := o.Path + ".building"
	defer os.Remove(raw)
	if err := makeDisk(ctx, raw, o, parts, root); err != nil {
		return fmt.Errorf("build guest: %w", err)
	}
	if o.Format == FormatRaw {
		return os.Rename(raw, o.Path)
	}
	out := o.Path + ".converting"
	defer os.Remove(out)
	if err := tool(ctx, o.CacheDir, "qemu-img", "convert", "-q", "-O", "qcow2", raw, out); err != nil {
		return fmt.Errorf("build guest: %w", err)
	}
	return os.Rename(out, o.Path)
}

// Supported returns nil if this machine has what Build and Check need, or
// ErrUnsupported with the name of what is missing.
func Supported() error {
	for _, name := range []string{"apt-get", "apt-cache", "dpkg-deb", "mke2fs", "e2fsck", "debugfs", "qemu-img", "go"} {
		if _, err := exec.LookPath(toolPath(name)); err != nil {
			return fmt.Errorf("%w: no %s; docs/install-packages lists the packages to install", ErrUnsupported, name)
		}
	}
	return nil
}

// toolPath finds a program also where an ordinary user's PATH does not look.
func toolPath(name string) string {
	if p, err := exec.LookPath(name); err == nil {
		return p
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p
		}
	}
	return name
}

// tool runs a program in dir; its output becomes part of the error.
func tool(ctx context.Context, dir, name string, args ...string) error {
	_, err := output(ctx, dir, name, args...)
	return err
}

func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, toolPath(name), args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, lastLines(string(out), 5))
	}
	return string(out), nil
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}
