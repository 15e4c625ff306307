package guest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// The Debian packages that the guest is made of. "a|b" takes the first that
// Debian's release on this machine has.
var (
	kernelPackages = []string{"busybox-static"} // and the cloud kernel
	grubPackages   = []string{"grub-pc-bin", "grub-common", "libdevmapper1.02.1", "libefiboot1|libefiboot1t64", "libefivar1|libefivar1t64", "libfuse3-3|libfuse3-4"}
	rootPackages   = []string{"busybox-static", "qemu-guest-agent", "libc6", "libglib2.0-0|libglib2.0-0t64", "libpcre2-8-0", "libnuma1", "libudev1", "liburing2", "libcap2"}
)

// kernelModules are loaded in this order. Without virtio_ring first the others
// do not load; ext4 is built into the kernel.
var kernelModules = []string{
	"virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci",
	"virtio_blk", "virtio_console", "qemu_fw_cfg", "failover", "net_failover", "virtio_net",
	"evdev", "button",
}

// partsVersion is part of the cache's key: raise it when makeParts changes.
const partsVersion = "1"

// prepare returns the directories with the boot parts and with the root file
// system's tree, made now or found in the cache.
func prepare(ctx context.Context, o Options) (parts, root string, err error) {
	lock, err := os.OpenFile(filepath.Join(o.CacheDir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", "", err
	}
	defer lock.Close() // which unlocks
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	recipe := fmt.Sprint(partsVersion, kernelPackages, grubPackages, rootPackages, kernelModules, initramfsInit)
	parts = filepath.Join(o.CacheDir, "parts-"+digest([]byte(recipe)))
	if err := once(parts, func(dir string) error { return makeParts(ctx, o, dir) }); err != nil {
		return "", "", err
	}
	writer, err := buildWriter(ctx, o.CacheDir)
	if err != nil {
		return "", "", err
	}
	grubConfig := strings.ReplaceAll(grubConfig, "@CMDLINE@", o.Cmdline)
	root = filepath.Join(o.CacheDir, "root-"+digest(writer, []byte(guestInit), []byte(grubConfig), []byte(parts)))
	if err := once(root, func(dir string) error { return makeRoot(dir, parts, writer, grubConfig) }); err != nil {
		return "", "", err
	}
	if o.Postgres {
		plain := root
		root = filepath.Join(o.CacheDir, "root-postgres-"+digest([]byte(filepath.Base(plain)), postgresLoad, postgresRecipe))
		if err := once(root, func(dir string) error { return makePostgres(ctx, o, dir, plain) }); err != nil {
			return "", "", err
		}
	}
	return parts, root, forget(o.CacheDir, root, time.Now())
}

// forget removes trees of the root file system that nobody has used for a
// week: every change of the load makes a new one.
func forget(cache, used string, now time.Time) error {
	if err := os.Chtimes(used, now, now); err != nil {
		return err
	}
	trees, err := filepath.Glob(filepath.Join(cache, "root-*"))
	if err != nil {
		return err
	}
	for _, tree := range trees {
		if st, err := os.Stat(tree); err == nil && now.Sub(st.ModTime()) > 7*24*time.Hour {
			if err := os.RemoveAll(tree); err != nil {
				return err
			}
		}
	}
	return nil
}

func digest(pieces ...[]byte) string {
	h := sha256.New()
	for _, p := range pieces {
		fmt.Fprintf(h, "%d:", len(p))
		h.Write(p)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// once makes the directory whole or not at all, unless it is there.
func once(dir string, fill func(dir string) error) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	temp := dir + ".new"
	if err := os.RemoveAll(temp); err != nil {
		return err
	}
	if err := os.Mkdir(temp, 0o755); err != nil {
		return err
	}
	if err := fill(temp); err != nil {
		return errors.Join(err, os.RemoveAll(temp))
	}
	return os.Rename(temp, dir)
}

// buildWriter compiles the guest's load, static, and returns the program.
func buildWriter(ctx context.Context, cache string) ([]byte, error) {
	temp, err := os.MkdirTemp(cache, "writer-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(temp)
	dir, err := moduleDir()
	if err != nil {
		return nil, err
	}
	out := filepath.Join(temp, "writer")
	if err := tool(ctx, dir, "env", "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=-buildvcs=false",
		"go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, "./internal/systest/writer"); err != nil {
		return nil, err
	}
	return os.ReadFile(out)
}

// moduleDir returns the root of the checkout that this source file is in.
func moduleDir() (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok || !filepath.IsAbs(file) {
		return "", fmt.Errorf("%w: built with -trimpath, the writer's source cannot be found", ErrUnsupported)
	}
	return filepath.Dir(filepath.Dir(filepath.Dir(filepath.Dir(file)))), nil
}

// fetcher downloads packages and unpacks them.
type fetcher struct {
	o       Options
	debs    string
	options []string // for apt: where its lists are, once our own are needed
	names   map[string]string
}

func newFetcher(o Options) (*fetcher, error) {
	if runtime.GOARCH != "amd64" {
		return nil, fmt.Errorf("%w: it is for amd64, this is %s", ErrUnsupported, runtime.GOARCH)
	}
	f := &fetcher{o: o, debs: filepath.Join(o.CacheDir, "debs"), names: make(map[string]string)}
	if os.Getuid() == 0 {
		f.options = append(f.options, "-o", "APT::Sandbox::User=root")
	}
	return f, os.MkdirAll(f.debs, 0o755)
}

// ownLists makes the fetcher use fresh package lists of its own: the machine's
// may be missing, or so old that Debian no longer has what they name.
func (f *fetcher) ownLists(ctx context.Context) error {
	lists := filepath.Join(f.o.CacheDir, "lists")
	if err := os.MkdirAll(filepath.Join(lists, "partial"), 0o755); err != nil {
		return err
	}
	f.options = append(f.options, "-o", "Dir::State::lists="+lists,
		"-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache=")
	f.o.Logger.Info("reading Debian's package lists")
	return f.apt(ctx, "apt-get", "-q", "update")
}

func (f *fetcher) apt(ctx context.Context, name string, args ...string) error {
	return tool(ctx, f.debs, name, append(append([]string{}, f.options...), args...)...)
}

// resolve returns the names of the packages in this release of Debian.
func (f *fetcher) resolve(ctx context.Context, names []string) ([]string, error) {
	var resolved []string
	for _, alternatives := range names {
		found := f.names[alternatives]
		for _, name := range strings.Split(alternatives, "|") {
			if found == "" && f.apt(ctx, "apt-cache", "show", "--no-all-versions", name) == nil {
				found = name
			}
		}
		if found == "" {
			return nil, fmt.Errorf("Debian has no package %s here", alternatives)
		}
		f.names[alternatives] = found
		resolved = append(resolved, found)
	}
	return resolved, nil
}

// kernel returns the package of the newest cloud kernel.
func (f *fetcher) kernel(ctx context.Context) (string, error) {
	out, err := output(ctx, f.debs, "apt-cache", append(append([]string{}, f.options...), "depends", "linux-image-cloud-amd64")...)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok && strings.HasPrefix(name, "linux-image-") {
			return name, nil
		}
	}
	return "", errors.New("linux-image-cloud-amd64 names no kernel")
}

// download gets every package that the guest needs and returns the kernel's
// name.
func (f *fetcher) download(ctx context.Context) (kernel string, err error) {
	err = f.get(ctx, func() ([]string, error) {
		kernel, err = f.kernel(ctx)
		return append([]string{kernel}, slices.Concat(kernelPackages, grubPackages, rootPackages)...), err
	})
	return kernel, err
}

// get downloads packages, at a second try with package lists of its own.
func (f *fetcher) get(ctx context.Context, list func() ([]string, error)) error {
	once := func() error {
		names, err := list()
		if err == nil {
			names, err = f.resolve(ctx, names)
		}
		if err != nil {
			return err
		}
		f.o.Logger.Info("downloading the guest's packages", "packages", len(names))
		return f.apt(ctx, "apt-get", append([]string{"-q", "download"}, names...)...)
	}
	first := once()
	if first == nil {
		return nil
	}
	err := f.ownLists(ctx)
	if err == nil {
		err = once()
	}
	if err != nil {
		return fmt.Errorf("get the guest's packages: %w (at first: %w)", err, first)
	}
	return nil
}

// unpack unpacks packages that were downloaded into a directory.
func (f *fetcher) unpack(ctx context.Context, dir string, names []string) error {
	names, err := f.resolve(ctx, names)
	if err != nil {
		return err
	}
	for _, name := range names {
		debs, err := filepath.Glob(filepath.Join(f.debs, name+"_*.deb"))
		if err != nil || len(debs) == 0 {
			return fmt.Errorf("package %s was not downloaded: %w", name, errors.Join(err, os.ErrNotExist))
		}
		if err := tool(ctx, dir, "dpkg-deb", "-x", debs[len(debs)-1], dir); err != nil {
			return err
		}
	}
	return nil
}
