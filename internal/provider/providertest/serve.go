package providertest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/provider"
)

// ServeOptions says what disk is served.
type ServeOptions struct {
	DiskID string
	Size   int64  // bytes
	Seed   uint64 // of the pseudo-random content; every fourth MiB of it is zero
	// BytesPerSecond limits how fast the disk can be read; 0 is no limit.
	BytesPerSecond int64
	// Dir is where the socket and the disk are kept; "" means a directory of
	// the test's own, short enough for a socket and open to all users.
	Dir string
}

// View is a disk that is served over NBD as recovery would.
type View struct {
	Source  provider.DiskSource
	Content []byte
	stop    func()
}

// NewView returns a view that is ended by stop, which may be nil.
func NewView(s provider.DiskSource, content []byte, stop func()) *View {
	return &View{Source: s, Content: content, stop: stop}
}

// Stop ends the server. It may be called twice.
func (v *View) Stop() {
	if v.stop != nil {
		v.stop()
	}
}

// Content returns size bytes that depend on seed alone: pseudo-random, but for
// every fourth MiB, which is zero.
func Content(size int64, seed uint64) []byte {
	b := make([]byte, size)
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	_, _ = rand.NewChaCha8(key).Read(b) // never fails
	for off := int64(3 << 20); off < size; off += 4 << 20 {
		clear(b[off:min(off+1<<20, size)])
	}
	return b
}

// Serve serves a disk read-only with qemu-nbd until the test ends or the view
// is stopped. It skips the test where qemu-nbd is not installed.
func Serve(t *testing.T, o ServeOptions) *View {
	t.Helper()
	bin, err := exec.LookPath("qemu-nbd")
	if err != nil {
		t.Skip("qemu-nbd is not installed (Debian: qemu-utils)")
	}
	if o.Dir == "" {
		o.Dir = TempDir(t)
	}
	content := Content(o.Size, o.Seed)
	image := filepath.Join(o.Dir, o.DiskID+".img")
	socket := filepath.Join(o.Dir, o.DiskID+".sock")
	if err := os.WriteFile(image, content, 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"--read-only", "--persistent", "--shared=8", "--socket=" + socket, "--export-name=" + o.DiskID}
	if o.BytesPerSecond > 0 {
		args = append(args, "--object", fmt.Sprintf("throttle-group,id=g,x-bps-total=%d", o.BytesPerSecond),
			"--image-opts", "driver=throttle,throttle-group=g,file.driver=raw,file.file.driver=file,file.file.filename="+image)
	} else {
		args = append(args, "--format=raw", image)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it is killed, so it always says so
		close(done)
	}()
	stop := func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	waitForSocket(t, socket, done)
	if err := os.Chmod(socket, 0o666); err != nil {
		t.Fatal(err)
	}
	return NewView(provider.DiskSource{DiskID: o.DiskID, Size: o.Size, Socket: socket, Export: o.DiskID}, content, stop)
}

func waitForSocket(t *testing.T, socket string, ended <-chan struct{}) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if c, err := net.Dial("unix", socket); err == nil {
			_ = c.Close()
			return
		}
		select {
		case <-tick.C:
		case <-ended:
			t.Fatalf("the server of %s ended at once", socket)
		case <-deadline:
			t.Fatalf("no server at %s after 20 s", socket)
		}
	}
}

// TempDir returns a directory with a name short enough for unix sockets, which
// every user may enter, removed when the test ends.
func TempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
