// Package bandwidth holds what a gateway sends to a rate that depends on the day of
// the week and the time of day.
package bandwidth

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Rule is a rate at certain times.
type Rule struct {
	Days     [7]bool // by time.Weekday
	From, To int     // minutes of the day, To is not in it; a rule with From > To goes over midnight
	Rate     int64   // bytes per second; 0: no limit
}

// Schedule are rules of which the first that holds counts. Where none does, there is
// no limit.
type Schedule []Rule

// minRate is the lowest rate, in bytes per second: below it no segment would arrive in
// a reasonable time.
const minRate = 16 << 10

var days = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// Parse reads rules such as "mon-fri 08:00-18:00 5MiB/s", "22:00-06:00 none" or "20MiB/s":
// days and times may be left out; the rate is in KiB/s, MiB/s or GiB/s, or "none".
func Parse(rules []string) (Schedule, error) {
	var s Schedule
	for _, text := range rules {
		r, err := parseRule(text)
		if err != nil {
			return nil, fmt.Errorf("bandwidth %q: %w", text, err)
		}
		s = append(s, r)
	}
	return s, nil
}

func parseRule(text string) (r Rule, err error) {
	fields := strings.Fields(text)
	if len(fields) == 0 || len(fields) > 3 {
		return r, fmt.Errorf("want [DAYS] [FROM-TO] RATE, like mon-fri 08:00-18:00 5MiB/s")
	}
	if r.Rate, err = parseRate(fields[len(fields)-1]); err != nil {
		return r, err
	}
	r.Days, r.To = [7]bool{true, true, true, true, true, true, true}, 24*60
	for i, f := range fields[:len(fields)-1] {
		if strings.Contains(f, ":") {
			r.From, r.To, err = parseTimes(f)
		} else if i == 0 {
			r.Days, err = parseDays(f)
		} else {
			err = fmt.Errorf("%q is no time of the day", f)
		}
		if err != nil {
			return r, err
		}
	}
	return r, nil
}

func parseRate(text string) (int64, error) {
	if text == "none" {
		return 0, nil
	}
	for unit, size := range map[string]int64{"KiB/s": 1 << 10, "MiB/s": 1 << 20, "GiB/s": 1 << 30} {
		if n, ok := strings.CutSuffix(text, unit); ok {
			f, err := strconv.ParseFloat(n, 64)
			if v := f * float64(size); err == nil && v >= minRate && v <= 1<<40 {
				return int64(v), nil
			}
		}
	}
	return 0, fmt.Errorf("%q is no rate: want one of 16KiB/s or more, in KiB/s, MiB/s or GiB/s, or none", text)
}

func parseTimes(text string) (from, to int, err error) {
	a, b, _ := strings.Cut(text, "-")
	if from, err = parseTime(a); err == nil {
		to, err = parseTime(b)
	}
	if err == nil && (from == to || from == 24*60) {
		err = fmt.Errorf("%q is no time at all", text)
	}
	return from, to, err
}

func parseTime(text string) (int, error) {
	if text == "24:00" {
		return 24 * 60, nil
	}
	t, err := time.Parse("15:04", text)
	if err != nil {
		return 0, fmt.Errorf("%q is no time of the day, like 08:00", text)
	}
	return t.Hour()*60 + t.Minute(), nil
}

func parseDays(text string) (out [7]bool, err error) {
	for part := range strings.SplitSeq(text, ",") {
		a, b, isRange := strings.Cut(part, "-")
		from, to := dayOf(a), dayOf(a)
		if isRange {
			to = dayOf(b)
		}
		if from < 0 || to < 0 {
			return out, fmt.Errorf("%q are no days, like mon-fri or sat,sun", text)
		}
		for d := from; ; d = (d + 1) % 7 {
			out[d] = true
			if d == to {
				break
			}
		}
	}
	return out, nil
}

func dayOf(name string) int {
	for i, d := range days {
		if d == name {
			return i
		}
	}
	return -1
}

// At returns the rate at a time, in bytes per second; 0: no limit.
func (s Schedule) At(t time.Time) int64 {
	now, day := t.Hour()*60+t.Minute(), int(t.Weekday())
	for _, r := range s {
		switch {
		case r.From < r.To && r.Days[day] && now >= r.From && now < r.To:
			return r.Rate
		case r.From > r.To && r.Days[day] && now >= r.From:
			return r.Rate
		case r.From > r.To && r.Days[(day+6)%7] && now < r.To: // since the evening before
			return r.Rate
		}
	}
	return 0
}

// Limiter holds all that send through it together to a schedule, by local time. Safe
// for concurrent use. A nil one has no limit.
type Limiter struct {
	schedule Schedule
	bucket   *rate.Limiter
	waiting  atomic.Int32
}

// NewLimiter returns a limiter; nil for a schedule without rules.
func NewLimiter(s Schedule) *Limiter {
	if len(s) == 0 {
		return nil
	}
	return &Limiter{schedule: s, bucket: rate.NewLimiter(minRate, minRate)}
}

// Rate returns the rate of now, in bytes per second; 0: no limit.
func (l *Limiter) Rate() int64 {
	if l == nil {
		return 0
	}
	return l.schedule.At(time.Now())
}

// Waiting says whether somebody waits because of the limit.
func (l *Limiter) Waiting() bool { return l != nil && l.waiting.Load() > 0 }

// Wait returns when so many bytes may be sent, or with the cause of ctx. The rate may
// change meanwhile.
func (l *Limiter) Wait(ctx context.Context, n int64) error {
	if l == nil {
		return nil
	}
	l.waiting.Add(1)
	defer l.waiting.Add(-1)
	for n > 0 {
		now := l.Rate()
		if now == 0 {
			return nil
		}
		part := max(now/4, minRate) // a quarter of a second: then it is asked again
		l.bucket.SetLimit(rate.Limit(now))
		l.bucket.SetBurst(int(part))
		if err := l.bucket.WaitN(ctx, int(min(n, part))); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			// Another has changed the burst at the same time, or the deadline is too near.
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		n -= part
	}
	return nil
}
