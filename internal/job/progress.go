package job

import "time"

// Progress is how far a task is.
type Progress struct {
	Done  int64         `json:"done"`
	Total int64         `json:"total"` // 0: not known
	Unit  string        `json:"unit"`  // "bytes", or what else is counted
	Rate  float64       `json:"rate"`  // units in a second, over the last seconds
	ETA   time.Duration `json:"eta"`   // until it is done; negative: not known
	At    time.Time     `json:"at"`
}

const (
	meterWindow   = 10 * time.Second
	meterInterval = 200 * time.Millisecond // between samples that are kept
)

// meter computes the rate of something that grows from samples of the last
// seconds, so that a start, a stall or a change of speed shows soon.
type meter struct {
	samples []sample
}

type sample struct {
	at   time.Time
	done int64
}

// add takes a sample and returns the rate in units per second; 0 with a single
// sample. A done that shrinks, or a clock that goes back, begins anew.
func (m *meter) add(now time.Time, done int64) float64 {
	if n := len(m.samples); n > 0 && (done < m.samples[n-1].done || now.Before(m.samples[n-1].at)) {
		m.samples = m.samples[:0]
	}
	n := len(m.samples)
	// The newest sample is replaced until it is an interval apart from the one
	// before it: thousands of calls in a second cost no memory.
	if n >= 2 && m.samples[n-1].at.Sub(m.samples[n-2].at) < meterInterval {
		m.samples[n-1] = sample{now, done}
	} else {
		m.samples = append(m.samples, sample{now, done})
	}
	first := 0
	for first < len(m.samples)-2 && now.Sub(m.samples[first+1].at) >= meterWindow {
		first++
	}
	m.samples = append(m.samples[:0], m.samples[first:]...)
	span := now.Sub(m.samples[0].at)
	if span <= 0 {
		return 0
	}
	return float64(done-m.samples[0].done) / span.Seconds()
}

// progress returns the whole picture at one sample.
func (m *meter) progress(now time.Time, done, total int64, unit string) *Progress {
	p := &Progress{Done: done, Total: total, Unit: unit, Rate: m.add(now, done), ETA: -1, At: now}
	left := total - done
	switch {
	case total <= 0:
	case left <= 0:
		p.ETA = 0
	case p.Rate > 0:
		// Bounded, because a duration holds no more than 292 years.
		if seconds := float64(left) / p.Rate; seconds < 100*365*24*3600 {
			p.ETA = time.Duration(seconds * float64(time.Second))
		}
	}
	return p
}
