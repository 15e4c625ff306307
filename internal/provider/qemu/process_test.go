package qemu_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/provider/qemu"
)

// endsInPieces makes this program one that loses its command line long before
// it lets go of a file's lock.
const endsInPieces = "HOLDFAST_TEST_ENDS_IN_PIECES"

// It is an init because that alone runs on the process's first thread.
func init() {
	path := os.Getenv(endsInPieces)
	if path == "" {
		return
	}
	f, err := os.Open(path)
	if err == nil {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	}
	fmt.Println("locked", err)
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	go func() {
		time.Sleep(200 * time.Millisecond) // which is for how long it is in pieces
		os.Exit(0)
	}()
	_, _, _ = syscall.Syscall(syscall.SYS_EXIT, 0, 0, 0) // this thread alone
}

// TestAwaitExitFreesLocks is how qemu-nbd failed to open a disk whose machine
// had just been killed.
func TestAwaitExitFreesLocks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	disk, d := filepath.Join(dir, "disk"), qemu.Definition{Name: "m", QMP: filepath.Join(dir, "qmp"), PIDFile: filepath.Join(dir, "pid")}
	if err := os.WriteFile(disk, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "unix:"+d.QMP+",server=on")
	cmd.Env = append(os.Environ(), endsInPieces+"="+disk)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if said, err := bufio.NewReader(stdout).ReadString('\n'); said != "locked <nil>\n" {
		t.Fatalf("the process said %q, %v", said, err)
	}
	if err := os.WriteFile(d.PIDFile, fmt.Append(nil, cmd.Process.Pid), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := qemu.AwaitExit(d, ctx, cmd.Process.Pid); err == nil {
		t.Fatal("a process that runs was taken for gone")
	}
	if _, err := stdin.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := qemu.AwaitExit(d, ctx, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		t.Errorf("the process was taken for gone, and its lock is held: %v", err)
	}
}
