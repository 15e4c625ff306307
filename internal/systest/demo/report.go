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
	sync             time.Duration
	rpos             []float64
	received, stored int64
	killed           time.Time
	acknowledged     int64
	rpo, rto         float64
	bootToReady      time.Duration
	point            api.Point
	stream           string
	timeline         uint32
	guest            guestWord
	files            fileCheck
}

// guestWord is what the recovered guest says of its records.
type guestWord struct {
	text                          string
	first, last, count, gaps, bad int64
}

// fileCheck is what the host finds in the recovery point, without the guest.
type fileCheck struct {
	clean           bool
	detail          string
	last, gaps, bad int64
}

// lost returns how many acknowledged records are missing.
func (r *report) lost() int64 { return max(0, r.acknowledged-r.guest.last) }

// print writes the report and returns what must not be.
func (r *report) print(w io.Writer, took time.Duration) error {
	slices.Sort(r.rpos)
	yes := map[bool]string{true: "clean", false: "NOT CLEAN: " + r.files.detail}
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
`, r.acknowledged, r.guest.first, r.guest.last, r.lost(), r.guest.bad, r.guest.gaps, yes[r.files.clean],
		median(r.rpos), last(r.rpos), r.rpo, r.rto, r.bootToReady.Seconds(),
		float64(r.received)/(1<<20), float64(r.stored)/(1<<20), r.sync.Seconds(), took.Seconds())
	var errs []error
	if r.lost() > 0 {
		errs = append(errs, fmt.Errorf("%d acknowledged records are missing", r.lost()))
	}
	if r.guest.gaps+r.guest.bad+r.files.gaps+r.files.bad > 0 {
		errs = append(errs, fmt.Errorf("records have gaps or damage: guest says %q, file has %d gaps, %d damaged", r.guest.text, r.files.gaps, r.files.bad))
	}
	if !r.files.clean {
		errs = append(errs, fmt.Errorf("the recovered file system is not clean: %s", r.files.detail))
	}
	if r.files.last < r.acknowledged {
		errs = append(errs, fmt.Errorf("the recovery point ends at record %d, %d were acknowledged", r.files.last, r.acknowledged))
	}
	if r.acknowledged == 0 || r.guest.count == 0 {
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
