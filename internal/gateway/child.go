package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// child runs the ingest process and kills it when it does not answer: QEMU has
// no time-out of its own, so that a frozen ingest would freeze the guests.
type child struct {
	command func(control string) *exec.Cmd
	socket  string
	bound   time.Duration
	log     *slog.Logger
	started func() // told after each start, when the child answers

	// mu guards what follows.
	mu     sync.Mutex
	up     bool
	stalls int
	err    error // why it is down
}

// startGrace is how long a new child may take until its first answer.
const startGrace = 10 * time.Second

// run keeps a child alive until ctx ends.
func (c *child) run(ctx context.Context) error {
	wait := 50 * time.Millisecond
	for {
		began := time.Now()
		err := c.once(ctx)
		if ctx.Err() != nil {
			return nil
		}
		c.setUp(false, err)
		c.log.Error("ingest process ended, it is started again", "error", err)
		if time.Since(began) > time.Minute {
			wait = 50 * time.Millisecond
		}
		if !sleep(ctx, wait) {
			return nil
		}
		wait = min(2*wait, 2*time.Second)
	}
}

// once starts a child and returns when it has ended.
func (c *child) once(ctx context.Context) error {
	if err := os.Remove(c.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove stale control socket: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.exec(ctx) })
	g.Go(func() error {
		err := c.watch(ctx)
		cancel(err)
		return err
	})
	return g.Wait()
}

// exec runs the process; it is killed when ctx ends.
func (c *child) exec(ctx context.Context) error {
	// Pdeathsig is sent when the *thread* that started the child ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := c.command(c.socket)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start ingest process: %w", err)
	}
	stop := context.AfterFunc(ctx, func() {
		_ = cmd.Process.Kill() // it has ended already
	})
	defer stop()
	err := cmd.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return fmt.Errorf("ingest process: %w", errors.Join(err, errors.New("it ended by itself")))
}

// watch asks for heartbeats and returns when the child does not answer in time.
func (c *child) watch(ctx context.Context) error {
	ctl := newControl(c.socket)
	defer ctl.http.CloseIdleConnections()
	lastAnswer, grace := time.Now(), startGrace
	for {
		var h Heartbeat
		callCtx, cancel := context.WithTimeout(ctx, c.bound)
		err := ctl.call(callCtx, "GET", "/heartbeat", nil, &h)
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		switch {
		case err == nil && h.Oldest <= c.bound:
			if grace > 0 {
				grace = 0
				c.setUp(true, nil)
				c.started()
			}
			lastAnswer = time.Now()
		case err == nil:
			return c.stalled(fmt.Errorf("a write has waited for %s", h.Oldest.Round(time.Millisecond)))
		case time.Since(lastAnswer) > max(c.bound, grace):
			return c.stalled(fmt.Errorf("no answer for %s: %w", time.Since(lastAnswer).Round(time.Millisecond), err))
		}
		if !sleep(ctx, min(c.bound/8, 100*time.Millisecond)) {
			return nil
		}
	}
}

func (c *child) stalled(why error) error {
	c.mu.Lock()
	c.stalls++
	c.mu.Unlock()
	return fmt.Errorf("ingest process stalled and is killed: %w", why)
}

func (c *child) setUp(up bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.up, c.err = up, err
}

// state returns whether the child answers, how often it was killed for not
// answering, and why it is down.
func (c *child) state() (up bool, stalls int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.up, c.stalls, c.err
}

// childSocket returns the path of the child's control socket.
func childSocket(dir string) string { return filepath.Join(dir, "ingest.sock") }
