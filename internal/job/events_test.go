package job_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/job/jobtest"
)

func TestProgress(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T) {
		const mib = 1 << 20
		k := job.Kind{Name: "k", Tasks: []job.Task{task("copy", func(_ context.Context, s *job.Step) error {
			for i := range int64(3000) { // 10 MiB/s in steps of 10 ms
				s.Progress(i*mib/10, 600*mib, "bytes")
				time.Sleep(10 * time.Millisecond)
			}
			return nil
		})}}
		e := engine(t, jobtest.NewStore(), job.Options{}, k)
		stop := run(t, e)
		id := submit(t, e, "k", "", nil).ID
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		events, err := e.Watch(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		told := 0
		for ev := range events {
			if ev.Lost != 0 {
				t.Errorf("lost %d", ev.Lost)
			}
			if ev.Type != job.EventProgress {
				continue
			}
			told++
			p := ev.Job.Tasks[0].Progress
			if told < 5 {
				continue
			}
			if p.Rate < 9.9*mib || p.Rate > 10.1*mib || p.Unit != "bytes" || p.Total != 600*mib {
				t.Fatalf("progress %+v", p)
			}
			eta := time.Duration(float64(p.Total-p.Done) / (10 * mib) * float64(time.Second))
			if d := p.ETA - eta; d < -time.Second || d > time.Second {
				t.Fatalf("eta %s, want %s", p.ETA, eta)
			}
		}
		if told < 100 || told > 200 {
			t.Errorf("%d events of progress in 30 s", told)
		}
		j, err := e.Get(t.Context(), id)
		if err != nil || j.Tasks[0].Progress == nil || j.Tasks[0].Progress.Done != 2999*mib/10 {
			t.Errorf("recorded: %+v, %v", j.Tasks[0].Progress, err)
		}
		_ = stop()
	})
}

// TestRateFollows: a stall and a new beginning show within the window.
func TestRateFollows(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T) {
		var stalled, restarted, done, unknown, single job.Progress
		k := job.Kind{Name: "k", Tasks: []job.Task{task("copy", func(_ context.Context, s *job.Step) error {
			get := func() job.Progress { return *s.Job().Tasks[0].Progress }
			s.Progress(0, 1000, "bytes")
			single = get()
			for i := range int64(100) {
				s.Progress(i, 1000, "bytes")
				time.Sleep(100 * time.Millisecond)
			}
			for range 120 {
				s.Progress(99, 1000, "bytes")
				time.Sleep(100 * time.Millisecond)
			}
			stalled = get()
			s.Progress(0, 1000, "bytes") // another pass
			time.Sleep(time.Second)
			s.Progress(50, 1000, "bytes")
			restarted = get()
			s.Progress(1000, 1000, "bytes")
			done = get()
			s.Progress(2000, 0, "bytes")
			unknown = get()
			return nil
		})}}
		e := engine(t, jobtest.NewStore(), job.Options{}, k)
		stop := run(t, e)
		ended(t, e, submit(t, e, "k", "", nil).ID)
		_ = stop()
		if single.Rate != 0 || single.ETA >= 0 {
			t.Errorf("after one sample: %+v", single)
		}
		if stalled.Rate != 0 || stalled.ETA >= 0 {
			t.Errorf("stalled: %+v", stalled)
		}
		if restarted.Rate != 50 || restarted.ETA != 19*time.Second {
			t.Errorf("restarted: %+v", restarted)
		}
		if done.ETA != 0 {
			t.Errorf("done: %+v", done)
		}
		if unknown.ETA >= 0 {
			t.Errorf("unknown total: %+v", unknown)
		}
	})
}

func TestLog(t *testing.T) {
	t.Parallel()
	k := job.Kind{Name: "k", Tasks: []job.Task{task("a", func(_ context.Context, s *job.Step) error {
		for i := range 250 {
			s.Log(fmt.Sprint("line ", i))
		}
		s.Log(strings.Repeat("é", 4096))
		return nil
	})}}
	e := engine(t, jobtest.NewStore(), job.Options{}, k)
	run(t, e)
	j := ended(t, e, submit(t, e, "k", "", nil).ID)
	log := j.Tasks[0].Log
	if len(log) != 200 || log[0].Text != "line 51" {
		t.Fatalf("%d lines, the first %q", len(log), log[0].Text)
	}
	if last := log[199].Text; len(last) > 4100 || !strings.HasSuffix(last, "é…") {
		t.Errorf("a long line has %d bytes and ends with %q", len(last), last[len(last)-8:])
	}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	k := job.Kind{Name: "k", Tasks: []job.Task{task("a", nothing), task("b", nothing)}}
	e := engine(t, jobtest.NewStore(), job.Options{}, k)
	j := submit(t, e, "k", "", nil)
	other := submit(t, e, "k", "", nil)
	events, err := e.Watch(t.Context(), j.ID)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	all := e.Subscribe(ctx)
	run(t, e)
	var states []string
	for ev := range events {
		if ev.Job.ID != j.ID {
			t.Errorf("event of job %s", ev.Job.ID)
		}
		s := string(ev.Job.State)
		for _, rec := range ev.Job.Tasks {
			s += " " + string(rec.State)
		}
		states = append(states, s)
	}
	want := []string{
		"not_started not_started not_started", "in_progress in_progress not_started", "in_progress succeeded not_started",
		"in_progress succeeded in_progress", "in_progress succeeded succeeded", "in_progress succeeded succeeded", "succeeded succeeded succeeded",
	}
	if diff := cmp.Diff(want, states); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	ended(t, e, other.ID)
	cancel()
	seen := map[string]bool{}
	for ev := range all {
		seen[ev.Job.ID] = true
	}
	if !seen[j.ID] || !seen[other.ID] {
		t.Errorf("subscriber of everything saw %v", seen)
	}
	again, err := e.Watch(t.Context(), j.ID)
	if err != nil {
		t.Fatal(err)
	}
	var last []job.State
	for ev := range again {
		last = append(last, ev.Job.State)
	}
	if diff := cmp.Diff([]job.State{job.Succeeded}, last); diff != "" {
		t.Errorf("watch of an ended job (-want +got):\n%s", diff)
	}
	if _, err := e.Watch(t.Context(), "none"); err == nil {
		t.Error("watch of nothing")
	}
}

type note struct{ N, Lost int }

func TestBroadcaster(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T) {
		b := job.NewBroadcaster(func(n *note) *int { return &n.Lost })
		ctx, cancel := context.WithCancel(t.Context())
		slow := b.Subscribe(ctx, job.Subscription[note]{Buffer: 3})
		even := b.Subscribe(ctx, job.Subscription[note]{Filter: func(n note) bool { return n.N%2 == 0 }})
		upTo5 := b.Subscribe(ctx, job.Subscription[note]{First: []note{{N: -1}}, Last: func(n note) bool { return n.N == 5 }})
		short := b.Subscribe(ctx, job.Subscription[note]{First: []note{{N: 5}, {N: 6}}, Last: func(n note) bool { return n.N == 5 }})
		for i := range 10 {
			b.Publish(note{N: i})
		}
		read := func(ch <-chan note) (got []note) {
			for {
				select {
				case n, ok := <-ch:
					if !ok {
						return append(got, note{N: -99})
					}
					got = append(got, n)
				default:
					return got
				}
			}
		}
		closed := note{N: -99}
		got := read(slow)
		lost := 0
		for _, n := range got {
			lost += n.Lost
		}
		if len(got) != 3 || got[2].N != 9 || lost != 7 {
			t.Errorf("slow subscriber: %v, %d told lost; want the last three and 7", got, lost)
		}
		b.Publish(note{N: 10})
		if diff := cmp.Diff([]note{{N: 10}}, read(slow)); diff != "" {
			t.Errorf("once it has caught up (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]note{{N: 0}, {N: 2}, {N: 4}, {N: 6}, {N: 8}, {N: 10}}, read(even)); diff != "" {
			t.Errorf("filter (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]note{{N: -1}, {N: 0}, {N: 1}, {N: 2}, {N: 3}, {N: 4}, {N: 5}, closed}, read(upTo5)); diff != "" {
			t.Errorf("last (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]note{{N: 5}, closed}, read(short)); diff != "" {
			t.Errorf("first is last (-want +got):\n%s", diff)
		}
		cancel()
		synctest.Wait()
		b.Publish(note{N: 11})
		if diff := cmp.Diff([]note{closed}, read(slow)); diff != "" {
			t.Errorf("after its context (-want +got):\n%s", diff)
		}
	})
}
