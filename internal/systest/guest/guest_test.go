package guest_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/systest/guest"
)

func needGuest(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("builds and boots a guest")
	}
	if err := guest.Supported(); err != nil {
		t.Skip(err)
	}
}

func build(t *testing.T, o guest.Options) {
	t.Helper()
	start := time.Now()
	if err := guest.Build(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	t.Logf("built %s in %v", filepath.Base(o.Path), time.Since(start).Round(time.Millisecond))
}

// boot starts the guest and returns its process and its console's file.
func boot(t *testing.T, disk, format string, more ...string) (*exec.Cmd, string) {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip(err)
	}
	console := filepath.Join(t.TempDir(), "console")
	args := append([]string{"-accel", guest.Accel(), "-m", "256", "-display", "none", "-nodefaults", "-no-reboot",
		"-drive", "if=virtio,cache=none,format=" + format + ",file=" + disk, "-serial", "file:" + console}, more...)
	cmd := exec.Command("qemu-system-x86_64", args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if stderr.Len() > 0 {
			t.Log(stderr.String())
		}
	})
	return cmd, console
}

func waitFor(t *testing.T, console, what string, done func(guest.Console) bool) guest.Console {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		c, err := guest.ReadConsole(console)
		if err != nil {
			t.Fatal(err)
		}
		if done(c) {
			return c
		}
		if time.Now().After(deadline) || len(c.Errors) > 0 {
			text, _ := os.ReadFile(console)
			t.Fatalf("no %s; the guest said:\n%s", what, text)
		}
	}
}

func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // says that it was killed
}

func check(t *testing.T, disk string) *guest.Report {
	t.Helper()
	r, err := guest.Check(t.Context(), disk)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", *r)
	return r
}

func TestGuestKeepsWhatItAcknowledged(t *testing.T) {
	needGuest(t)
	t.Parallel()
	disk := filepath.Join(t.TempDir(), "disk.qcow2")
	build(t, guest.Options{Path: disk, SizeMB: 128, Format: guest.FormatQCOW2, Cmdline: "rate=200"})
	if r := check(t, disk); !r.OK() || r.Records != 0 {
		t.Fatalf("a new disk: %+v, want it clean and without records", *r)
	}

	accel := guest.Accel()
	start := time.Now()
	cmd, console := boot(t, disk, "qcow2")
	waitFor(t, console, "first boot", func(c guest.Console) bool { return c.Up })
	t.Logf("up %v after the start, with %s", time.Since(start).Round(time.Millisecond), accel)
	waitFor(t, console, "100 records", func(c guest.Console) bool { return c.LastAck >= 100 })
	kill(t, cmd)
	first, err := guest.ReadConsole(console)
	if err != nil {
		t.Fatal(err)
	}
	r := check(t, disk)
	if !r.OK() || r.First != 1 || r.Last < first.LastAck || r.Records != r.Last {
		t.Fatalf("after the kill at ACK %d: %+v", first.LastAck, *r)
	}

	// The second boot finds at least as much by itself, and goes on from there.
	cmd, console = boot(t, disk, "qcow2")
	second := waitFor(t, console, "records after the second boot", func(c guest.Console) bool { return c.LastAck > r.Last+10 })
	kill(t, cmd)
	if !second.Verified || !second.Ordered || second.Last < r.Last || second.Gaps+second.Bad != 0 {
		t.Fatalf("the second boot found %+v, want at least %d records, all good", second, r.Last)
	}
}

func TestGuestRunsAProgramAndSwitchesOff(t *testing.T) {
	needGuest(t)
	t.Parallel()
	dir := t.TempDir()
	disk, second := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "second.raw")
	build(t, guest.Options{Path: disk, SizeMB: 200 << 10})
	if err := os.WriteFile(second, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(second, 64<<20); err != nil {
		t.Fatal(err)
	}
	cmd, console := boot(t, disk, "raw", "-drive", "if=virtio,format=raw,file="+second,
		"-fw_cfg", "name=opt/org.holdfast.guest,string=nowriter poweroff exec=seqdev:-dev:/dev/vdb:-threads:8:-seconds:1")
	c := waitFor(t, console, "end of the program", func(c guest.Console) bool { return c.Done })
	if err := cmd.Wait(); err != nil {
		t.Fatalf("QEMU: %v", err)
	}
	if c.Status != 0 || c.LastAck != 0 || len(c.Lines) < 3 {
		t.Fatalf("the guest said %+v, want the lines of seqdev, and no records", c)
	}
	if r := check(t, disk); !r.OK() || r.Records != 0 {
		t.Fatalf("%+v, want a clean disk without records", *r)
	}
}

func TestCheckSeesDamage(t *testing.T) {
	needGuest(t)
	t.Parallel()
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.raw")
	build(t, guest.Options{Path: disk, SizeMB: 96})
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	byReader, err := guest.CheckReader(t.Context(), f)
	if err != nil || !byReader.OK() {
		t.Fatalf("CheckReader of a good disk: %+v, %v", byReader, err)
	}
	// The block bitmaps and the inode tables of the first block group.
	junk := make([]byte, 256<<10)
	for i := range junk {
		junk[i] = byte(i * 7)
	}
	if _, err := f.WriteAt(junk, 1<<20+64<<10); err != nil {
		t.Fatal(err)
	}
	if r := check(t, disk); r.Clean {
		t.Errorf("a file system with junk in its inode tables is called clean")
	}
	if _, err := f.WriteAt(make([]byte, 512), 0); err != nil {
		t.Fatal(err)
	}
	if r := check(t, disk); r.Clean || !strings.Contains(r.Detail, "partition table") {
		t.Errorf("no partition table: %+v", *r)
	}
	if _, err := guest.Check(t.Context(), filepath.Join(dir, "missing")); err == nil {
		t.Errorf("a missing disk was judged")
	}
}

func TestBuildRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		o    guest.Options
	}{
		{"no path", guest.Options{}},
		{"too small", guest.Options{Path: "x", SizeMB: 40}},
		{"partition larger than the disk", guest.Options{Path: "x", SizeMB: 200, RootMB: 200}},
		{"unknown format", guest.Options{Path: "x", Format: "vmdk"}},
		{"a command line that breaks out", guest.Options{Path: "x", Cmdline: "a\nlinux /evil"}},
	} {
		if err := guest.Build(t.Context(), tt.o); err == nil || errors.Is(err, guest.ErrUnsupported) {
			t.Errorf("%s: error %v, want a refusal", tt.name, err)
		}
	}
}

func TestBuildLeavesNothingWhenCancelled(t *testing.T) {
	needGuest(t)
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	if err := guest.Build(ctx, guest.Options{Path: filepath.Join(dir, "disk")}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that it was cancelled", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestParseConsole(t *testing.T) {
	t.Parallel()
	text := "ACK 99\r\nGUEST-UP 1.0\r\nVERIFY first=1 last=99 count=99 gaps=0 bad=0 synced=98 ordered=true\r\nGUEST-READY 1.1\r\n" +
		"[ 1.2] noise\r\nACK 100\r\nACK 101\r\nGUEST-DONE 3\r\nACK 1"
	c := guest.ParseConsole(text)
	if !c.Up || !c.Ready || !c.Verified || !c.Ordered || c.First != 1 || c.Last != 99 || c.LastAck != 101 || !c.Done || c.Status != 3 {
		t.Errorf("%+v", c)
	}
	if _, err := guest.ReadConsole(filepath.Join(t.TempDir(), "none")); err != nil {
		t.Error(err)
	}
}
