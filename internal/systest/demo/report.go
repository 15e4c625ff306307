package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/api"
)

// report is what the demonstration measured.
type report struct {
	sync                        time.Duration
	rpos                        []float64
	received, stored            int64
	killed                      time.Time
	acknowledged                int64
	rpo, rto                    float64
	bootToReady                 time.Duration
	guestSays                   string
	first, last, count          int64
	gaps, bad                   int64
	point                       api.Point
	stream                      string
	timeline                    uint32
	clean                       bool
	fsck                        string
	fileLast, fileGaps, fileBad int64
}

// lost returns how many acknowledged records are missing.
func (r *report) lost() int64 { return max(0, r.acknowledged-r.last) }

// print writes the report and returns what must not be.
func (r *report) print(w io.Writer, took time.Duration) error {
	slices.Sort(r.rpos)
	yes := map[bool]string{true: "clean", false: "NOT CLEAN: " + r.fsck}
	fmt.Fprintf(w, `
──────────────────────────────── report ────────────────────────────────
records   acknowledged by the guest before its host died   %8d
          recovered, gapless from %d                        %8d
          lost                                             %8d
          damaged %d, gaps %d
files     file system of the recovery point, journal replayed: %s
RPO       while protected: median %.2f s, worst %.2f s; at the failover: %.2f s
RTO       request to running machine: %.2f s; loss to working guest: %.1f s
bytes     received from the guest %.1f MiB, kept in the vault %.1f MiB (compressed, encrypted)
time      first copy %.1f s; everything %.1f s
─────────────────────────────────────────────────────────────────────────
`, r.acknowledged, r.first, r.last, r.lost(), r.bad, r.gaps, yes[r.clean],
		median(r.rpos), last(r.rpos), r.rpo, r.rto, r.bootToReady.Seconds(),
		float64(r.received)/(1<<20), float64(r.stored)/(1<<20), r.sync.Seconds(), took.Seconds())
	var errs []error
	if r.lost() > 0 {
		errs = append(errs, fmt.Errorf("%d acknowledged records are missing", r.lost()))
	}
	if r.gaps+r.bad+r.fileGaps+r.fileBad > 0 {
		errs = append(errs, fmt.Errorf("records have gaps or damage: guest says %q, file has %d gaps, %d damaged", r.guestSays, r.fileGaps, r.fileBad))
	}
	if !r.clean {
		errs = append(errs, fmt.Errorf("the recovered file system is not clean: %s", r.fsck))
	}
	if r.fileLast < r.acknowledged {
		errs = append(errs, fmt.Errorf("the recovery point ends at record %d, %d were acknowledged", r.fileLast, r.acknowledged))
	}
	if r.acknowledged == 0 || r.count == 0 {
		errs = append(errs, errors.New("the guest wrote nothing: nothing was shown"))
	}
	return errors.Join(errs...)
}

func median(sorted []float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[len(sorted)/2]
}

func last(sorted []float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[len(sorted)-1]
}
