package bandwidth_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/internal/bandwidth"
)

func TestSchedule(t *testing.T) {
	t.Parallel()
	s, err := bandwidth.Parse([]string{"sat,sun none", "mon-fri 08:00-18:00 5MiB/s", "fri-mon 22:00-06:00 512KiB/s", "20MiB/s"})
	if err != nil {
		t.Fatal(err)
	}
	for at, want := range map[string]int64{
		"2026-11-23 07:59": 20 << 20, // Monday; Sunday's night ended at six
		"2026-11-23 08:00": 5 << 20,
		"2026-11-23 17:59": 5 << 20,
		"2026-11-23 18:00": 20 << 20,
		"2026-11-23 05:59": 512 << 10, // of Sunday's night
		"2026-11-24 05:59": 512 << 10, // of Monday's
		"2026-11-25 05:59": 20 << 20,
		"2026-11-27 22:00": 512 << 10,
		"2026-11-28 01:00": 0, // Saturday: the first rule counts
		"2026-11-29 23:00": 0,
	} {
		now, err := time.ParseInLocation("2006-01-02 15:04", at, time.Local)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.At(now); got != want {
			t.Errorf("%s: %d, want %d", at, got, want)
		}
	}
	if (bandwidth.Schedule{}).At(time.Now()) != 0 {
		t.Error("no rule is a limit")
	}
}

func TestBadRules(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "5", "5MB", "1KiB/s", "-5MiB/s", "NaNMiB/s", "1e30GiB/s", "mon 5MiB/s x y", "8-9 1MiB/s", "08:00 1MiB/s", "08:00-08:00 1MiB/s", "24:00-08:00 1MiB/s",
		"25:00-26:00 1MiB/s", "day 1MiB/s", "mon- 1MiB/s", "mon tue 1MiB/s", "08:00-09:00 mon 1MiB/s"} {
		if s, err := bandwidth.Parse([]string{text}); err == nil {
			t.Errorf("%q is %+v", text, s)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("mon-fri 08:00-18:00 5MiB/s")
	f.Add("22:00-06:00 none")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := bandwidth.Parse([]string{text})
		if err == nil && (len(s) != 1 || s[0].Rate < 0 || s[0].From == s[0].To) {
			t.Errorf("%q is %+v", text, s)
		}
	})
}

// TestLimiter has several send at once, together at the rate.
func TestLimiter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, err := bandwidth.Parse([]string{"1MiB/s"})
		if err != nil {
			t.Fatal(err)
		}
		l := bandwidth.NewLimiter(s)
		began := time.Now()
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				for range 5 {
					if err := l.Wait(t.Context(), 2<<20); err != nil {
						t.Error(err)
					}
				}
			})
		}
		time.Sleep(10 * time.Second)
		if !l.Waiting() {
			t.Error("nobody waits")
		}
		wg.Wait()
		if took := time.Since(began); took < 29*time.Second || took > 31*time.Second {
			t.Errorf("30 MiB at 1 MiB/s took %s", took)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("enough")
		time.AfterFunc(time.Second, func() { cancel(why) })
		if err := l.Wait(ctx, 1<<30); !errors.Is(err, why) {
			t.Errorf("cancelled: %v", err)
		}
		var none *bandwidth.Limiter
		if bandwidth.NewLimiter(nil) != nil || none.Wait(t.Context(), 1<<40) != nil || none.Waiting() || none.Rate() != 0 {
			t.Error("no schedule is a limit")
		}
	})
}

// TestRateChanges waits at night for the day's rate.
func TestRateChanges(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		minute := now.Add(time.Minute).Format("15:04") + "-" + now.Add(10*time.Minute).Format("15:04")
		s, err := bandwidth.Parse([]string{minute + " none", "64KiB/s"})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := bandwidth.NewLimiter(s).Wait(t.Context(), 1<<30); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 50*time.Second || took > 62*time.Second {
			t.Errorf("it took %s until the limit was gone", took)
		}
	})
}
