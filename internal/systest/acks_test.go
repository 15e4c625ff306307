package systest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/api"
)

// ackClock notes, outside of the guest, when which record was acknowledged on
// its console. What it has seen by some moment was safe before that moment.
type ackClock struct {
	mu   sync.Mutex // guards seen
	seen []ack      // in order of time, and of number
}

type ack struct {
	at time.Time
	n  int64
}

// watchAcks follows a console until the test ends.
func (w *world) watchAcks(serial string) *ackClock {
	w.t.Helper()
	f, err := os.Open(serial)
	w.must(err)
	c := &ackClock{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.follow(ctx, f) }()
	w.t.Cleanup(func() {
		cancel()
		w.must(errors.Join(<-done, f.Close()))
	})
	return c
}

// follow reads what is added to a file, until ctx ends.
func (c *ackClock) follow(ctx context.Context, r io.Reader) error {
	var text []byte
	buf := make([]byte, 64<<10)
	for ctx.Err() == nil {
		n, err := r.Read(buf)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if text = c.note(time.Now(), append(text, buf[:n]...)); n > 0 {
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

// note takes the whole lines off text, and returns the rest.
func (c *ackClock) note(now time.Time, text []byte) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		line, rest, whole := bytes.Cut(text, []byte("\n"))
		if !whole {
			return text
		}
		text = rest
		number, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte("ACK "))
		if !ok {
			continue
		}
		if n, err := strconv.ParseInt(string(number), 10, 64); err == nil {
			c.seen = append(c.seen, ack{at: now, n: n})
		}
	}
}

// by returns the last record that was acknowledged by a moment, 0 if none was.
func (c *ackClock) by(t time.Time) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	var last int64
	for _, a := range c.seen {
		if a.at.After(t) {
			break
		}
		last = a.n
	}
	return last
}

// promised returns up to which record a recovery must have brought all back, by
// what it says of itself: the moment of its point, and how much is lost counted
// back from when it was asked for, which must not be earlier than the truth.
func (c *ackClock) promised(asked time.Time, r *api.JobResult) int64 {
	lost := time.Duration(*r.RPOSeconds * float64(time.Second))
	return max(c.by(r.Point.Time), c.by(asked.Add(-lost)))
}

// TestAckClock is the clock's own: a line that comes in pieces counts once it is
// whole, and nothing is known of a moment before it was seen.
func TestAckClock(t *testing.T) {
	t.Parallel()
	var c ackClock
	start := time.Unix(1000, 0)
	after := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	rest := c.note(after(1), []byte("GUEST-READY 1\r\nACK 1\r\nACK 2\nAC"))
	rest = c.note(after(2), append(rest, "K 1"...))
	rest = c.note(after(3), append(rest, "2\r\nnoise ACK 99\nACK x\n"...))
	if len(rest) != 0 {
		t.Errorf("%q is left, want nothing", rest)
	}
	for s, want := range []int64{0, 2, 2, 12, 12} {
		if got := c.by(after(s)); got != want {
			t.Errorf("acknowledged by second %d: %d, want %d", s, got, want)
		}
	}
	half := 1.5
	for _, tt := range []struct {
		point, asked int
		want         int64
	}{{1, 0, 2}, {0, 4, 2}, {0, 5, 12}, {3, 2, 12}} {
		r := &api.JobResult{RPOSeconds: &half, Point: &api.Point{Time: after(tt.point)}}
		if got := c.promised(after(tt.asked), r); got != tt.want {
			t.Errorf("point at %d, asked at %d, 1.5 s lost: promised %d, want %d", tt.point, tt.asked, got, tt.want)
		}
	}
}
