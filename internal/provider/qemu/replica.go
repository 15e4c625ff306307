package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

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

// replicaDisk is a disk that qemu-nbd has open. QEMU's lock on the image keeps
// the machine from starting, and everybody else from writing.
type replicaDisk struct {
	*nbd.Client
	name   string
	server *diskServer
	once   sync.Once
	err    error
}

var _ provider.ReplicaDisk = (*replicaDisk)(nil)

// OpenDisk opens a disk with all that lies under it, its view too if it still
// needs one, through qemu-nbd, which ends with the connection and with this
// process.
func (s *site) OpenDisk(ctx context.Context, machineID, diskID string) (out provider.ReplicaDisk, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d, err := s.find(machineID)
	if err != nil {
		return nil, err
	}
	d, lock, err := d.lockPower(ctx)
	if err != nil {
		return nil, fmt.Errorf("open disk %s of machine %s: %w", diskID, d.Name, err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	disk, err := d.replica(diskID)
	if err != nil {
		return nil, err
	}
	r, err := serveDisk(ctx, disk)
	if err != nil {
		return nil, fmt.Errorf("open disk %s of machine %s: %w", diskID, d.Name, err)
	}
	r.name = fmt.Sprintf("disk %s of machine %s", diskID, d.Name)
	return r, nil
}

// replica returns a disk if it can be opened.
func (d Definition) replica(diskID string) (DiskDef, error) {
	for _, disk := range d.Disks {
		if disk.ID != diskID {
			continue
		}
		switch pid, err := d.pid(); {
		case err != nil:
			return disk, err
		case pid != 0:
			return disk, fmt.Errorf("open disk %s of machine %s: %w", diskID, d.Name, provider.ErrRunning)
		case disk.ReadOnly:
			return disk, fmt.Errorf("open disk %s of machine %s: it is read-only", diskID, d.Name)
		}
		return disk, nil
	}
	return DiskDef{}, fmt.Errorf("disk %s of machine %s: %w", diskID, d.Name, provider.ErrNotFound)
}

// serveDisk starts a disk's server and connects to it. The socket is gone again
// when it returns, so that nobody else can.
func serveDisk(ctx context.Context, disk DiskDef) (out *replicaDisk, err error) {
	dir, err := os.MkdirTemp("", "hf-disk-") // for its owner alone
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	socket := filepath.Join(dir, "nbd")
	image := mustJSON(map[string]any{
		"driver": disk.Format, "discard": "unmap",
		"file": map[string]any{"driver": "file", "filename": disk.Path, "discard": "unmap", "locking": "on"},
	})
	// Without --persistent it ends when its one client has gone.
	server, err := startServer("qemu-nbd", "--socket="+socket, "--shared=1", "--cache=writeback", "--discard=unmap", "--detect-zeroes=off", "json:"+image)
	if err != nil {
		return nil, err
	}
	for {
		c, err := nbd.Dial(ctx, "unix", socket, nbd.DialOptions{})
		if err == nil {
			return &replicaDisk{Client: c, server: server}, nil
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
func (r *replicaDisk) Close() error {
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
