package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/internal/nbd"
)

// load is a way to write to the disk. Data is random: it cannot be compressed.
type load struct {
	name       string
	outside    bool // over the disk's export, not by the guest
	size       int  // bytes of one write
	depth      int  // writes under way
	sequential bool
	seconds    float64 // how long
	limit      int64   // bytes, then it ends; 0: none
}

// loads come from the gentle to the rough.
func loads() []load {
	const kib, mib = 1 << 10, 1 << 20
	return []load{
		{name: "guest, 4 KiB at random", size: 4 * kib, depth: 1, seconds: 3},
		{name: "no guest, 4 KiB at random", outside: true, size: 4 * kib, depth: 1, seconds: 3},
		{name: "no guest, 1 MiB, 4 at a time, 64 MiB in all", outside: true, size: mib, depth: 4, sequential: true, seconds: 30, limit: 64 * mib},
		{name: "guest, 1 MiB, 4 at a time, 3 s", size: mib, depth: 4, sequential: true, seconds: 3},
		{name: "no guest, 1 MiB, 4 at a time, 3 s", outside: true, size: mib, depth: 4, sequential: true, seconds: 3},
	}
}

// felt is how writes went.
type felt struct {
	rate          float64 // MB/s
	p50, p99, max float64 // µs for one write
}

// figure is a number that is read off a load.
type figure struct {
	name, unit string
	of         func(felt) float64
}

// figures returns what is told of a load: of one write at a time how long it
// takes, of more how much gets through.
func (l load) figures() []figure {
	if l.depth > 1 {
		return []figure{{l.name, "MB/s", func(f felt) float64 { return f.rate }}}
	}
	return []figure{
		{l.name + ", median", "µs", func(f felt) float64 { return f.p50 }},
		{l.name + ", 99th percentile", "µs", func(f felt) float64 { return f.p99 }},
		{l.name + ", longest", "µs", func(f felt) float64 { return f.max }},
	}
}

// measure puts every load on every side, the sides in turns.
func (b *guestBench) measure(ctx context.Context, runs int) ([]result, error) {
	sides := []struct {
		name string
		with replicated
	}{{"holdfast", b.held}, {"no replication", b.alone}, {"QEMU mirror to qemu-nbd", b.mirrored}}
	all, loads := make([][]felt, len(sides)*len(loads())), loads()
	for range runs {
		for i, s := range sides {
			err := s.with(ctx, func() error {
				for j, l := range loads {
					f, err := b.put(ctx, l)
					if err != nil {
						return fmt.Errorf("%s: %w", l.name, err)
					}
					all[j*len(sides)+i] = append(all[j*len(sides)+i], f)
				}
				return nil
			})
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	var out []result
	for j, l := range loads {
		for _, fig := range l.figures() {
			group := make([]result, len(sides))
			for i, s := range sides {
				group[i] = result{Figure: fig.name, Side: s.name, Unit: fig.unit}
				for _, f := range all[j*len(sides)+i] {
					group[i].Runs = append(group[i].Runs, fig.of(f))
				}
			}
			compare(group)
			out = append(out, group...)
		}
	}
	return out, nil
}

// put puts a load on the disk, once nothing of an earlier one is left to do.
func (b *guestBench) put(ctx context.Context, l load) (felt, error) {
	if err := b.rest(ctx); err != nil {
		return felt{}, err
	}
	if !l.outside {
		return b.inGuest(ctx, l)
	}
	c, err := nbd.Dial(ctx, "unix", b.export, nbd.DialOptions{Export: guestDisk})
	if err != nil {
		return felt{}, err
	}
	f, err := l.drive(ctx, c)
	return f, errors.Join(err, c.Close())
}

// rest waits until the gateway, if there is one, has nothing more to seal and to
// upload: then it uses next to no processor time.
func (b *guestBench) rest(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	last := int64(-1)
	for {
		pid, err := b.IngestPID()
		if err != nil {
			return nil // there is none
		}
		now, err := ticks(pid)
		if err != nil {
			return err
		}
		if last >= 0 && now-last <= 4 { // 40 ms in a second
			return nil
		}
		last = now
		select {
		case <-ctx.Done():
			return errors.New("the gateway does not come to rest")
		case <-time.After(time.Second):
		}
	}
}

// ticks returns the processor time that a process has used, in 10 ms.
func ticks(pid int) (int64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	user, err := strconv.ParseInt(string(fields[11]), 10, 64)
	system, err2 := strconv.ParseInt(string(fields[12]), 10, 64)
	return user + system, errors.Join(err, err2)
}

var benchLine = regexp.MustCompile(`mbps=([0-9.]+) p50us=(\d+) p99us=(\d+) maxus=(\d+)`)

// inGuest has the guest write, and returns what it says.
func (b *guestBench) inGuest(ctx context.Context, l load) (felt, error) {
	args := []string{"bench", "-dev", "/dev/" + guestDisk, "-bs", strconv.Itoa(l.size), "-qd", strconv.Itoa(l.depth),
		"-seconds", fmt.Sprint(l.seconds), fmt.Sprintf("-sequential=%t", l.sequential)}
	out, err := b.guestExec(ctx, args)
	if err != nil {
		return felt{}, err
	}
	m := benchLine.FindStringSubmatch(out)
	if m == nil {
		return felt{}, fmt.Errorf("the guest says %q", out)
	}
	var v [4]float64
	for i := range v {
		if v[i], err = strconv.ParseFloat(m[i+1], 64); err != nil {
			return felt{}, err
		}
	}
	return felt{rate: v[0], p50: v[1], p99: v[2], max: v[3]}, nil
}

// drive writes over an export what the guest's program writes in a guest.
func (l load) drive(ctx context.Context, c *nbd.Client) (felt, error) {
	var (
		next atomic.Int64
		took = make([][]time.Duration, l.depth)
		errs = make([]error, l.depth)
		wg   sync.WaitGroup
	)
	slots := c.Size() / int64(l.size)
	start := time.Now()
	end := start.Add(time.Duration(l.seconds * float64(time.Second)))
	for w := range l.depth {
		wg.Go(func() {
			buf := make([]byte, l.size)
			for i := range buf {
				buf[i] = byte(rand.Uint32())
			}
			for errs[w] == nil && time.Now().Before(end) {
				n := next.Add(1) - 1
				if l.limit > 0 && n*int64(l.size) >= l.limit {
					return
				}
				if !l.sequential {
					n = rand.Int64()
				}
				began := time.Now()
				errs[w] = c.WriteAt(ctx, buf, n%slots*int64(l.size))
				took[w] = append(took[w], time.Since(began))
			}
		})
	}
	wg.Wait()
	seconds := time.Since(start).Seconds()
	all := slices.Sorted(slices.Values(slices.Concat(took...)))
	if err := errors.Join(errs...); err != nil || len(all) == 0 {
		return felt{}, errors.Join(err, ctx.Err())
	}
	at := func(q float64) float64 { return float64(all[int(q*float64(len(all)-1))].Nanoseconds()) / 1e3 }
	return felt{rate: float64(len(all)) * float64(l.size) / seconds / 1e6, p50: at(0.5), p99: at(0.99), max: at(1)}, nil
}
