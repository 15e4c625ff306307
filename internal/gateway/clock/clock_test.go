package clock

import (
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// TestClockNeverGoesBack sets the host's clock back, at rest and while the process
// is not there: no time is given that is before another that was.
func TestClockNeverGoesBack(t *testing.T) {
	t.Parallel()
	fs := vfs.NewMem()
	wall, up := time.Now(), time.Hour
	open := func() *Clock {
		c, err := Open(fs, "/gateway/streams", Host{func() time.Time { return wall }, func() time.Duration { return up }})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := open()
	last := c.Now()
	step := func(what string, d time.Duration) {
		wall = wall.Add(d)
		up += max(0, d)
		now := c.Now()
		if now.Before(last) {
			t.Errorf("%s: %s after %s", what, now, last)
		}
		last = now
	}
	step("a moment", time.Millisecond)
	if !last.Equal(wall.Truncate(time.Microsecond)) {
		t.Errorf("the time is %s, the host's %s", last, wall)
	}
	step("set back", -time.Hour)
	step("still behind", time.Second)
	step("ahead again", 2*time.Hour)
	if ahead := last.Sub(wall.Add(-2*time.Hour + ahead)); ahead > 0 && last.After(wall) {
		t.Errorf("%s ahead of what is kept", ahead)
	}
	for range 3 {
		if err := c.Keep(); err != nil {
			t.Fatal(err)
		}
		step("kept", time.Second)
		wall = wall.Add(-time.Minute) // while nobody looks
		c = open()
		step("a new process", time.Millisecond)
	}
}

// TestClockStopsUnkept gives no time that the next process would not know of.
func TestClockStopsUnkept(t *testing.T) {
	t.Parallel()
	fs := vfs.NewMem()
	wall := time.Now()
	host := Host{func() time.Time { return wall }, uptime}
	c, err := Open(fs, "/g", host)
	if err != nil {
		t.Fatal(err)
	}
	wall = wall.Add(time.Minute) // nobody has kept it
	last := c.Now()
	wall = wall.Add(-2 * time.Minute)
	again, err := Open(fs, "/g", host)
	if err != nil {
		t.Fatal(err)
	}
	// What had passed in truth is next to nothing, and so it is by the host's uptime.
	if now := again.Now(); now.Before(last.Add(-ahead)) {
		t.Errorf("%s after %s", now, last)
	}
}

// TestClockOfMany asks from many sides at once.
func TestClockOfMany(t *testing.T) {
	t.Parallel()
	c, err := Open(vfs.NewMem(), "/g", OfHost())
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var newest time.Time
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20_000 {
				mu.Lock()
				before := newest
				mu.Unlock()
				now := c.Now()
				mu.Lock()
				if newest = now; now.Before(before) {
					t.Errorf("%s was given after %s", now, before)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}
