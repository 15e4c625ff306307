package qemutool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/nbd"
	"github.com/holdfast-dr/holdfast/internal/provider"
)

const (
	// maxStderr bounds what is kept of what a disk's server says.
	maxStderr = 4 << 10
	// partingPatience is for how long a disk's server may write out what it
	// holds after it was closed.
	partingPatience = time.Minute
)

// Image says what to open.
type Image struct {
	Name   string // for messages
	Format string // "raw", "qcow2"
	Path   string // a file or a block device
}

// Disk is a disk that qemu-nbd has open. QEMU's lock on the image keeps its
// machine from starting, and everybody else from writing. Safe for concurrent
// use.
type Disk struct {
	*nbd.Client
	name   string
	server *diskServer
	once   sync.Once
	err    error
}

// Open opens an image for reading and writing, through a server that ends with
// the connection and with this process. Its socket is gone again when Open
// returns, so that nobody else can connect.
func Open(ctx context.Context, img Image) (*Disk, error) {
	return open(ctx, img, imageOptions{"locking": "on", "discard": "unmap"}, "--cache=writeback", "--discard=unmap", "--detect-zeroes=off")
}

// OpenLive opens an image for reading only, whether or not a machine has it open for
// writing, and past the host's cache where the file system can do that. What the
// machine has written may be seen or not yet.
func OpenLive(ctx context.Context, img Image) (*Disk, error) {
	options := imageOptions{"read-only": true, "force-share": true}
	d, err := open(ctx, img, options, "--read-only", "--cache=none")
	if err != nil && ctx.Err() == nil {
		return open(ctx, img, options, "--read-only")
	}
	return d, err
}

// imageOptions are what a block node of QEMU is given beside its file.
type imageOptions map[string]any

func (o imageOptions) with(key string, value any) imageOptions {
	o = maps.Clone(o)
	o[key] = value
	return o
}

func open(ctx context.Context, img Image, options imageOptions, args ...string) (out *Disk, err error) {
	dir, err := os.MkdirTemp("", "hf-disk-") // for its owner alone
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	socket := filepath.Join(dir, "nbd")
	info, err := os.Stat(img.Path)
	if err != nil {
		return nil, err
	}
	driver := "file"
	if info.Mode()&os.ModeDevice != 0 {
		driver = "host_device"
	}
	file := options.with("driver", driver).with("filename", img.Path)
	delete(options, "locking") // the format has none
	image, err := json.Marshal(options.with("driver", img.Format).with("file", file))
	if err != nil {
		return nil, err
	}
	// Without --persistent it ends when its one client has gone.
	server, err := startServer("qemu-nbd", append(args, "--socket="+socket, "--shared=1", "json:"+string(image))...)
	if err != nil {
		return nil, err
	}
	for {
		c, err := nbd.Dial(ctx, "unix", socket, nbd.DialOptions{})
		if err == nil {
			return &Disk{Client: c, name: img.Name, server: server}, nil
		}
		if !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, errors.Join(err, server.kill())
		}
		select {
		case <-server.done:
			return nil, server.failure()
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), server.kill())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// Close ends the server and returns when it is gone, with its lock.
func (r *Disk) Close() error {
	r.once.Do(func() {
		err := r.Client.Close()
		t := time.NewTimer(partingPatience)
		defer t.Stop()
		select {
		case <-r.server.done:
			err = errors.Join(err, r.server.err)
		case <-t.C:
			err = errors.Join(err, fmt.Errorf("qemu-nbd has not ended within %v", partingPatience), r.server.kill())
		}
		if err != nil {
			r.err = fmt.Errorf("close %s: %w", r.name, err)
		}
	})
	return r.err
}

// diskServer is a process that ends when this one does.
type diskServer struct {
	cmd    *exec.Cmd
	stderr headBuffer
	done   chan struct{} // closed when it has ended; then err is set
	err    error
}

// startServer starts a program. The thread that starts it is kept until it
// ends, because the kernel takes that thread's end for this process's.
func startServer(program string, args ...string) (*diskServer, error) {
	s := &diskServer{cmd: exec.Command(program, args...), done: make(chan struct{})}
	s.cmd.Stderr = &s.stderr
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(s.done)
		err := s.cmd.Start()
		started <- err
		if err == nil {
			s.err = s.cmd.Wait()
		}
	}()
	err := <-started
	if errors.Is(err, exec.ErrNotFound) {
		err = fmt.Errorf("%w; install the package qemu-utils", err)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// failure says why the server has ended.
func (s *diskServer) failure() error {
	return fmt.Errorf("qemu-nbd ended: %w: %s", s.err, strings.TrimSpace(string(s.stderr.b)))
}

func (s *diskServer) kill() error {
	err := s.cmd.Process.Kill()
	<-s.done
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// headBuffer keeps the first bytes that are written to it.
type headBuffer struct{ b []byte }

func (h *headBuffer) Write(p []byte) (int, error) {
	h.b = append(h.b, p[:min(len(p), maxStderr-len(h.b))]...)
	return len(p), nil
}

// Resize gives an image another virtual size, in bytes. What it has more reads as
// zero, what it has less is lost. A block device is whoever's who made it: it is
// only looked whether it is large enough. It fails where the image is in use.
func Resize(ctx context.Context, img Image, size int64) error {
	info, err := os.Stat(img.Path)
	if err != nil {
		return err
	}
	if info.Mode()&os.ModeDevice != 0 && img.Format == "raw" {
		return fmt.Errorf("%s is block device %s: give the device %d bytes, then ask again", img.Name, img.Path, size)
	}
	cmd := exec.CommandContext(ctx, "qemu-img", "resize", "--quiet", "--shrink", "-f", img.Format, img.Path, strconv.FormatInt(size, 10))
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%w; install the package qemu-utils", err)
	}
	if err != nil {
		return fmt.Errorf("resize %s: %w: %s", img.Name, err, strings.TrimSpace(string(out[:min(len(out), maxStderr)])))
	}
	return nil
}

// Live is provider.Site's OpenLive for machines of which the disks are files or block
// devices of this host.
func Live(ctx context.Context, d provider.Disk) (block.Image, error) {
	img := Image{Name: "disk " + d.ID, Format: d.Format, Path: d.Path}
	disk, err := OpenLive(ctx, img)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", img.Name, err)
	}
	return disk, nil
}
