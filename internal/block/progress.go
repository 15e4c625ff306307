package block

import (
	"sync"
	"time"
)

const (
	progressEvery = 200 * time.Millisecond
	// rateWindow is how far back rates look, in reports: 5 s.
	rateWindow = 25
)

// Progress is how far a copy is.
type Progress struct {
	Done, Total int64 // bytes, zeroes included
	// Rate is how many bytes of data a second were copied lately; in the last
	// report, over all the time. Zeroes do not count: they cost nothing.
	Rate float64
	// ETA is how long the rest will take at the pace of late, zeroes included;
	// 0 if that is not known.
	ETA time.Duration
}

// sample is how far a copy was at a time.
type sample struct {
	at         time.Time
	data, done int64
}

// watch reports progress until stop is called, which makes the last report.
func (c *copier) watch() (stop func()) {
	if c.o.Progress == nil {
		return func() {}
	}
	total := c.o.Extents.Bytes()
	take := func() sample {
		data, zero := c.data.Load(), c.zero.Load()
		return sample{time.Now(), data, data + zero}
	}
	samples := []sample{take()}
	c.o.Progress(progress(samples[0], samples[0], total))
	end := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		recent := samples
		for {
			select {
			case <-end:
				return
			case <-tick.C:
			}
			recent = append(recent, take())
			recent = recent[max(0, len(recent)-rateWindow-1):]
			c.o.Progress(progress(recent[0], recent[len(recent)-1], total))
		}
	})
	return func() {
		close(end)
		wg.Wait()
		c.o.Progress(progress(samples[0], take(), total))
	}
}

// progress tells the progress from what was copied between two times.
func progress(from, to sample, total int64) Progress {
	p := Progress{Done: to.done, Total: total}
	took := to.at.Sub(from.at).Seconds()
	if took <= 0 {
		return p
	}
	p.Rate = float64(to.data-from.data) / took
	if pace := float64(to.done-from.done) / took; pace > 0 {
		p.ETA = time.Duration(float64(total-to.done) / pace * float64(time.Second))
	}
	return p
}
