package guest

import (
	"bytes"
	"compress/gzip"
	"context"
	_ "embed" // for the guest's scripts
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

//go:embed files/initramfs-init.sh
var initramfsInit string

//go:embed files/guest-init.sh
var guestInit string

//go:embed files/grub.cfg
var grubConfig string

const (
	sectorSize     = 512
	partitionStart = 1 << 20
)

// makeParts fills dir with what does not depend on the guest's options: the
// kernel, the initramfs, the boot loader, and the base of the root tree.
func makeParts(ctx context.Context, o Options, dir string) error {
	f, err := newFetcher(o)
	if err != nil {
		return err
	}
	kernel, err := f.download(ctx)
	if err != nil {
		return err
	}
	work := filepath.Join(dir, "work")
	base := filepath.Join(dir, "base")
	for into, names := range map[string][]string{
		filepath.Join(work, "kernel"): append([]string{kernel}, kernelPackages...),
		filepath.Join(work, "grub"):   grubPackages,
		base:                          rootPackages,
	} {
		if err := os.MkdirAll(into, 0o755); err != nil {
			return err
		}
		if err := f.unpack(ctx, into, names); err != nil {
			return err
		}
	}
	version := strings.TrimPrefix(kernel, "linux-image-")
	if err := copyFile(filepath.Join(dir, "vmlinuz"), filepath.Join(work, "kernel/boot/vmlinuz-"+version), 0o644); err != nil {
		return err
	}
	if err := makeInitramfs(filepath.Join(dir, "initrd"), filepath.Join(work, "kernel"), version); err != nil {
		return err
	}
	if err := makeLoader(ctx, dir, filepath.Join(work, "grub")); err != nil {
		return err
	}
	if err := trimBase(ctx, base); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(work), os.RemoveAll(f.debs))
}

// trimBase drops what a guest without users needs not, and lays busybox's
// commands beside the rest.
func trimBase(ctx context.Context, base string) error {
	for _, name := range []string{"usr/share", "usr/lib/x86_64-linux-gnu/gconv"} {
		if err := os.RemoveAll(filepath.Join(base, name)); err != nil {
			return err
		}
	}
	busybox := filepath.Join(base, "bin/busybox")
	if _, err := os.Stat(busybox); err != nil {
		busybox = filepath.Join(base, "usr/bin/busybox")
	}
	list, err := output(ctx, base, busybox, "--list")
	if err != nil {
		return err
	}
	for _, dir := range []string{"bin", "sbin", "usr/bin", "usr/sbin", "etc", "boot/grub", "proc", "sys", "dev", "run", "tmp", "data", "var/run", "var/log"} {
		if err := os.MkdirAll(filepath.Join(base, dir), 0o755); err != nil {
			return err
		}
	}
	for _, name := range strings.Fields(list) {
		link := filepath.Join(base, filepath.Dir(strings.TrimPrefix(busybox, base)), name)
		if err := os.Symlink("busybox", link); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return errors.Join(
		os.WriteFile(filepath.Join(base, "etc/passwd"), []byte("root:x:0:0::/:/bin/sh\n"), 0o644),
		os.WriteFile(filepath.Join(base, "etc/group"), []byte("root:x:0:\n"), 0o644))
}

// makeLoader has GRUB's core image made by the GRUB of the packages, which need
// not be installed.
func makeLoader(ctx context.Context, dir, grub string) error {
	modules := filepath.Join(grub, "usr/lib/grub/i386-pc")
	libraries := filepath.Join(grub, "usr/lib/x86_64-linux-gnu") + ":" + filepath.Join(grub, "lib/x86_64-linux-gnu")
	err := tool(ctx, dir, "env", "LD_LIBRARY_PATH="+libraries, filepath.Join(grub, "usr/bin/grub-mkimage"),
		"-d", modules, "-O", "i386-pc", "-p", "(hd0,msdos1)/boot/grub", "-o", filepath.Join(dir, "core.img"),
		"biosdisk", "part_msdos", "ext2", "linux", "normal")
	if err != nil {
		return err
	}
	return copyFile(filepath.Join(dir, "boot.img"), filepath.Join(modules, "boot.img"), 0o644)
}

// makeInitramfs writes a gzipped cpio archive with busybox, the modules and the
// first program.
func makeInitramfs(name, kernel, version string) error {
	busybox, err := os.ReadFile(filepath.Join(kernel, "bin/busybox"))
	if errors.Is(err, fs.ErrNotExist) {
		busybox, err = os.ReadFile(filepath.Join(kernel, "usr/bin/busybox"))
	}
	if err != nil {
		return err
	}
	modules := make(map[string]string)
	err = filepath.WalkDir(kernel, func(path string, d fs.DirEntry, err error) error {
		if m, ok := strings.CutSuffix(d.Name(), ".ko"); ok {
			modules[m] = path
		}
		return err
	})
	if err != nil {
		return err
	}
	var archive bytes.Buffer
	appendCPIO(&archive, "bin", 0o40755, nil)
	appendCPIO(&archive, "bin/busybox", 0o100755, busybox)
	for _, m := range kernelModules {
		content, err := os.ReadFile(modules[m])
		if err != nil {
			return fmt.Errorf("module %s of kernel %s: %w", m, version, err)
		}
		appendCPIO(&archive, m+".ko", 0o100644, content)
	}
	first := strings.ReplaceAll(initramfsInit, "@MODULES@", strings.Join(kernelModules, " "))
	appendCPIO(&archive, "init", 0o100755, []byte(first))
	appendCPIO(&archive, "TRAILER!!!", 0, nil)

	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, err = z.Write(archive.Bytes())
	if err := errors.Join(err, z.Close()); err != nil {
		return err
	}
	return os.WriteFile(name, packed.Bytes(), 0o644)
}

// appendCPIO appends one entry in the "newc" form that the kernel unpacks.
func appendCPIO(b *bytes.Buffer, name string, mode int, content []byte) {
	fmt.Fprintf(b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		b.Len()+1, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0, name)
	pad := func() {
		for b.Len()%4 != 0 {
			b.WriteByte(0)
		}
	}
	pad()
	b.Write(content)
	pad()
}

// makeRoot fills dir with the tree of the root file system.
func makeRoot(dir, parts string, writer []byte, grubConfig string) error {
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(parts, "base"))); err != nil {
		return fmt.Errorf("copy the root tree: %w", err)
	}
	for name, from := range map[string]string{"boot/vmlinuz": "vmlinuz", "boot/initrd": "initrd"} {
		if err := copyFile(filepath.Join(dir, name), filepath.Join(parts, from), 0o644); err != nil {
			return err
		}
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "usr/bin/writer"), writer, 0o755),
		os.WriteFile(filepath.Join(dir, "guest-init"), []byte(guestInit), 0o755),
		os.WriteFile(filepath.Join(dir, "boot/grub/grub.cfg"), []byte(grubConfig), 0o644))
}

func copyFile(to, from string, mode os.FileMode) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, mode)
}

// makeDisk lays boot loader, partition table and file system on a sparse file.
func makeDisk(ctx context.Context, path string, o Options, parts, root string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(int64(o.SizeMB) << 20); err != nil {
		return err
	}
	boot, err := os.ReadFile(filepath.Join(parts, "boot.img"))
	if err != nil {
		return err
	}
	core, err := os.ReadFile(filepath.Join(parts, "core.img"))
	if err != nil {
		return err
	}
	if len(boot) != sectorSize || len(core) > partitionStart-sectorSize {
		return fmt.Errorf("boot loader of %d and %d bytes does not fit before the partition", len(boot), len(core))
	}
	sector, err := bootSector(boot, int64(o.RootMB)<<20)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(append(sector, core...), 0); err != nil {
		return err
	}
	// GRUB 2.06 cannot read a file system with the two features switched off.
	features := "^metadata_csum_seed"
	if err := tool(ctx, o.CacheDir, "mke2fs", "-q", "-F", "-t", "ext4", "-O", features+",^orphan_file", "-n", path); err == nil {
		features += ",^orphan_file" // known to this mke2fs
	}
	return tool(ctx, o.CacheDir, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-O", features, "-L", "root", "-d", root,
		"-E", fmt.Sprintf("root_owner=0:0,offset=%d,lazy_itable_init=1", partitionStart), path, fmt.Sprintf("%dM", o.RootMB))
}

// bootSector returns GRUB's boot code with a table of one active partition.
func bootSector(boot []byte, length int64) ([]byte, error) {
	sectors := length / sectorSize
	if sectors > 1<<32-1 {
		return nil, fmt.Errorf("a partition of %d bytes is too large for this kind of partition table", length)
	}
	s := make([]byte, sectorSize)
	copy(s, boot[:440])
	copy(s[440:444], "HDFT") // disk signature
	entry := s[446:462]
	entry[0], entry[4] = 0x80, 0x83 // active, Linux
	copy(entry[1:4], "\xfe\xff\xff")
	copy(entry[5:8], "\xfe\xff\xff")
	binary.LittleEndian.PutUint32(entry[8:], partitionStart/sectorSize)
	binary.LittleEndian.PutUint32(entry[12:], uint32(sectors))
	s[510], s[511] = 0x55, 0xaa
	return s, nil
}
