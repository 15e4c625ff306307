package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/internal/systest/guest/record"
)

// runWrite appends records to two files, each durable in the first before it
// goes to the second, and prints "ACK n" after record n is durable in both.
func runWrite(fl *flag.FlagSet, args []string) error {
	a := fl.String("a", "/data/a.log", "first log")
	b := fl.String("b", "/data/b.log", "second log")
	rate := fl.Float64("rate", 100, "records a second; 0 is as fast as the disk allows")
	rateFile := fl.String("ratefile", "/data/rate", "file whose number replaces -rate while it exists")
	if err := fl.Parse(args); err != nil {
		return err
	}
	fileA, logA, err := openLog(*a)
	if err != nil {
		return err
	}
	defer fileA.Close()
	fileB, logB, err := openLog(*b)
	if err != nil {
		return err
	}
	defer fileB.Close()
	if !record.Ordered(logA, logB) {
		return fmt.Errorf("the logs do not fit together: %s is at %d, %s at %d", *a, logA.Last, *b, logB.Last)
	}
	if logA.Last == logB.Last+1 {
		// The crash came between the two: finish the record first.
		if err := appendRecord(fileB, logA.Last); err != nil {
			return err
		}
	}
	next := time.Now()
	for n := logA.Last + 1; ; n++ {
		for _, f := range []*os.File{fileA, fileB} {
			if err := appendRecord(f, n); err != nil {
				return err
			}
		}
		// Standard output is not buffered: the line leaves the guest only
		// after both calls of fsync have returned.
		if _, err := os.Stdout.WriteString("ACK " + strconv.FormatUint(n, 10) + "\n"); err != nil {
			return err
		}
		if n%64 == 0 {
			if r, err := readRate(*rateFile); err == nil {
				*rate = r
			}
		}
		if *rate > 0 {
			next = next.Add(time.Duration(float64(time.Second) / *rate))
			if wait := time.Until(next); wait > 0 {
				time.Sleep(wait)
			} else {
				next = time.Now() // never catch up in a burst
			}
		}
	}
}

func readRate(name string) (float64, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(strings.TrimSpace(string(text)), 64)
}

// openLog opens a log for appending, without a torn record at its end. A log
// with a bad record is refused: writing on would hide what went wrong.
func openLog(name string) (*os.File, record.Log, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, record.Log{}, err
	}
	l, err := record.Scan(f)
	if err == nil && l.Bad+l.Gaps > 0 {
		err = fmt.Errorf("%s is damaged: %v", name, l)
	}
	if err == nil && l.Tail > 0 {
		err = f.Truncate(int64(l.Count) * record.Size)
	}
	if err == nil {
		_, err = f.Seek(int64(l.Count)*record.Size, io.SeekStart)
	}
	if err != nil {
		return nil, l, errors.Join(err, f.Close())
	}
	return f, l, nil
}

func appendRecord(f *os.File, n uint64) error {
	if _, err := f.Write(record.Record{Number: n, Time: time.Now()}.Append(nil)); err != nil {
		return err
	}
	return f.Sync()
}

// runVerify prints what is in the two logs.
func runVerify(fl *flag.FlagSet, args []string) error {
	a := fl.String("a", "/data/a.log", "first log")
	b := fl.String("b", "/data/b.log", "second log")
	if err := fl.Parse(args); err != nil {
		return err
	}
	logA, err := scanFile(*a)
	if err != nil {
		return err
	}
	logB, err := scanFile(*b)
	if err != nil {
		return err
	}
	fmt.Printf("VERIFY %v synced=%d ordered=%t\n", logA, logB.Last, record.Ordered(logA, logB) && logB.Bad+logB.Gaps == 0)
	return nil
}

func scanFile(name string) (record.Log, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return record.Log{}, nil
	}
	if err != nil {
		return record.Log{}, err
	}
	defer f.Close()
	return record.Scan(f)
}
