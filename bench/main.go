// Command bench measures Holdfast next to its peers, in one run: what goes into
// the vault, what comes out of it, and what a guest feels. It prints medians and
// ratios.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"
)

func main() {
	var o options
	flag.IntVar(&o.runs, "runs", 5, "how often each side is measured, in turns")
	flag.IntVar(&o.sizeMB, "size", 512, "size of the disk, in MiB")
	flag.StringVar(&o.dir, "dir", "", "where to work; a temporary directory if empty")
	flag.StringVar(&o.binary, "binary", "bin/holdfast", "the holdfast program, for what is measured in a guest")
	flag.StringVar(&o.only, "only", "", "vault, backup, guest or scale; all but scale if empty")
	flag.IntVar(&o.segments, "segments", 100_000, "for scale: the largest number of segments")
	flag.IntVar(&o.extent, "extent", 4096, "for scale: the size of an extent, in bytes, a multiple of 512 up to 65536")
	flag.StringVar(&o.json, "json", "", "file for the figures as JSON")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	runs, sizeMB int
	dir, json    string
	binary, only string

	segments, extent int
}

// side is one of what is compared.
type side struct {
	name string
	run  func(context.Context) (float64, error) // the figure, larger is better
}

// contest is a figure and the sides that are measured for it; the first is
// Holdfast.
type contest struct {
	name, unit string
	sides      []side
}

// result is what a side came to.
type result struct {
	Figure string    `json:"figure"`
	Side   string    `json:"side"`
	Unit   string    `json:"unit"`
	Runs   []float64 `json:"runs"`
	Median float64   `json:"median"`
	Ratio  float64   `json:"ratio"` // Holdfast's median to this one's
}

func run(ctx context.Context, o options) error {
	if o.dir == "" {
		dir, err := os.MkdirTemp("", "hf-bench-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		o.dir = dir
	}
	if o.only == "scale" {
		return runScale(ctx, o)
	}
	var all []result
	if o.only == "" || o.only == "guest" {
		res, err := runGuest(ctx, o)
		if err != nil {
			return err
		}
		all = append(all, res...)
	}
	for _, kind := range []string{"text", "random", "zeros"} {
		if o.only == "guest" {
			break
		}
		b, err := newBench(ctx, o, kind)
		if err != nil {
			return err
		}
		if o.only != "vault" {
			res, err := b.measureSavers(ctx, o.runs)
			if err != nil {
				return errors.Join(err, b.close())
			}
			all = append(all, res...)
		}
		for _, c := range b.contests() {
			if o.only == "backup" || kind == "zeros" {
				break
			}
			res, err := measure(ctx, c, o.runs)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			all = append(all, res...)
		}
		if err := b.close(); err != nil {
			return err
		}
	}
	show(all)
	if o.json == "" {
		return nil
	}
	data, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(o.json, data, 0o644)
}

// runGuest measures what a guest feels.
func runGuest(ctx context.Context, o options) (all []result, err error) {
	b, err := newGuestBench(ctx, filepath.Join(o.dir, "g"), o.binary)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	return b.measure(ctx, o.runs)
}

// measure runs the sides in turns, so that what else the machine does hits all.
func measure(ctx context.Context, c contest, runs int) ([]result, error) {
	out := make([]result, len(c.sides))
	for i, s := range c.sides {
		out[i] = result{Figure: c.name, Side: s.name, Unit: c.unit}
	}
	for range runs {
		for i, s := range c.sides {
			v, err := s.run(ctx)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
			out[i].Runs = append(out[i].Runs, v)
		}
	}
	compare(out)
	return out, nil
}

// compare fills in the medians of one figure's sides, and what Holdfast's, the
// first, is to them.
func compare(sides []result) {
	for i := range sides {
		sorted := slices.Sorted(slices.Values(sides[i].Runs))
		sides[i].Median = sorted[len(sorted)/2]
		sides[i].Ratio = sides[0].Median / sides[i].Median
	}
}

func show(all []result) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "FIGURE\tSIDE\tMEDIAN\tHOLDFAST IS\tRUNS")
	for _, r := range all {
		ratio := ""
		if r.Ratio != 1 {
			ratio = fmt.Sprintf("%.2f ×", r.Ratio)
		}
		fmt.Fprintf(w, "%s\t%s\t%.0f %s\t%s\t%.0f\n", r.Figure, r.Side, r.Median, r.Unit, ratio, r.Runs)
	}
	_ = w.Flush()
}

// perSecond returns MiB a second.
func perSecond(bytes int64, took time.Duration) float64 {
	return float64(bytes) / (1 << 20) / took.Seconds()
}
