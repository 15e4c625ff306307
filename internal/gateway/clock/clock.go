// Package clock is the time by which a gateway orders the writes of all its machines.
package clock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// Clock gives the writes of all streams of a gateway their times, in
// microseconds: never one that is earlier than another that was given before, by
// this process or one before it. So what a machine writes because of what another
// has written is never given an earlier time, and all streams up to one time are
// one moment, with no pause: the order of times is an order in which the writes of
// all machines could have happened.
//
// While the host's clock is behind, the time stands still.
type Clock struct {
	host  Host
	last  atomic.Int64 // the newest time that was given
	limit atomic.Int64 // no time above it is given before a later one is kept
	file  vfs.File
	boot  [16]byte
}

const (
	// clockFile keeps the newest time, so that the next process begins after it.
	clockFile = "clock"
	// KeepEvery is how often it is kept, ahead by how much times may be ahead
	// of what is kept.
	KeepEvery = 200 * time.Millisecond
	ahead     = 2 * time.Second
)

// Host is the host's time, which somebody may set back, and for how long the
// host has been up.
type Host struct {
	Wall func() time.Time
	Up   func() time.Duration
}

// Open goes on where an earlier process stopped.
func Open(f vfs.FS, dir string, host Host) (*Clock, error) {
	c := &Clock{host: host}
	if id, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		copy(c.boot[:], strings.ReplaceAll(string(id), "-", ""))
	}
	if err := f.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("open clock: %w", err)
	}
	name := path.Join(dir, clockFile)
	file, err := f.OpenRW(name)
	if errors.Is(err, fs.ErrNotExist) {
		file, err = f.Create(name)
	}
	if err != nil {
		return nil, fmt.Errorf("open clock: %w", err)
	}
	c.file = file
	var b [32]byte
	if _, err := file.ReadAt(b[:], 0); err == nil {
		kept := int64(binary.LittleEndian.Uint64(b[:8]))
		since := ahead // on another day of the host, at most so much was given after it
		if up := host.Up() - time.Duration(binary.LittleEndian.Uint64(b[8:16])); [16]byte(b[16:]) == c.boot && up >= 0 {
			since = min(since, up)
		}
		c.last.Store(kept + since.Microseconds())
	}
	c.limit.Store(max(c.last.Load(), host.Wall().UnixMicro()))
	return c, c.Keep()
}

// OfHost returns the clock of this host.
func OfHost() Host { return Host{time.Now, uptime} }

// Close ends the keeping.
func (c *Clock) Close() error { return c.file.Close() }

// uptime is how long the host has been up.
func uptime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// Now returns the time. It never waits.
func (c *Clock) Now() time.Time {
	for {
		last := c.last.Load()
		now := min(c.host.Wall().UnixMicro(), c.limit.Load())
		if now <= last {
			return time.UnixMicro(last)
		}
		if c.last.CompareAndSwap(last, now) {
			return time.UnixMicro(now)
		}
	}
}

// Keep keeps the newest time, not synced: with the host's memory, the machines
// are lost as well.
func (c *Clock) Keep() error {
	now := max(c.last.Load(), c.host.Wall().UnixMicro())
	var b [32]byte
	binary.LittleEndian.PutUint64(b[:8], uint64(now))
	binary.LittleEndian.PutUint64(b[8:16], uint64(c.host.Up()))
	copy(b[16:], c.boot[:])
	if _, err := c.file.WriteAt(b[:], 0); err != nil {
		return fmt.Errorf("keep clock: %w", err)
	}
	c.limit.Store(now + ahead.Microseconds())
	return nil
}
