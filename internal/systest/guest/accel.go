package guest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// accel remembers the answer, which costs some seconds, for the process.
var accel = sync.OnceValue(func() string {
	if kvmBoots() {
		return "kvm"
	}
	return "tcg"
})

// Accel returns the accelerator for QEMU on this machine: "kvm" where KVM runs
// a guest as it should, else "tcg", which is about ten times slower. That
// /dev/kvm can be opened is not enough: some kinds of nested virtualization
// interpret a guest that is not in 64-bit mode, and then its boot loader takes
// hours. So a guest of one sector counts to twenty million, once in a process.
func Accel() string { return accel() }

// kvmBoots runs a boot sector that ends QEMU with status 33.
func kvmBoots() bool {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	if err := f.Close(); err != nil {
		return false
	}
	dir, err := os.MkdirTemp("", "holdfast-kvm-")
	if err != nil {
		return false
	}
	defer os.RemoveAll(dir)
	sector := make([]byte, sectorSize)
	copy(sector, "\x66\xb9\x00\x2d\x31\x01"+ // mov ecx,20000000
		"\x66\x49\x75\xfc"+ // again: dec ecx; jnz again
		"\xb0\x10\xe6\xf4\xfa\xf4") // mov al,16; out 0xf4,al; cli; hlt
	sector[510], sector[511] = 0x55, 0xaa
	disk := filepath.Join(dir, "disk")
	if err := os.WriteFile(disk, sector, 0o600); err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	err = exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "kvm", "-m", "32", "-display", "none", "-nodefaults",
		"-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-drive", "if=ide,format=raw,file="+disk).Run()
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.ExitCode() == 16<<1|1
}
