package record_test

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/internal/systest/guest/record"
)

func logOf(numbers ...uint64) []byte {
	var b []byte
	for _, n := range numbers {
		b = record.Record{Number: n, Time: time.Unix(int64(n), 5)}.Append(b)
	}
	return b
}

func TestScan(t *testing.T) {
	t.Parallel()
	damaged := logOf(1, 2, 3)
	damaged[record.Size+30] ^= 1
	for _, tt := range []struct {
		name string
		log  []byte
		want record.Log
	}{
		{"empty", nil, record.Log{}},
		{"whole", logOf(1, 2, 3), record.Log{Count: 3, First: 1, Last: 3, LastTime: time.Unix(3, 5)}},
		{"torn", append(logOf(1), 'x', 'y'), record.Log{Count: 1, First: 1, Last: 1, Tail: 2, LastTime: time.Unix(1, 5)}},
		{"one missing", logOf(1, 3), record.Log{Count: 2, First: 1, Last: 3, Gaps: 1, LastTime: time.Unix(3, 5)}},
		{"one twice", logOf(1, 1), record.Log{Count: 2, First: 1, Last: 1, Gaps: 1, LastTime: time.Unix(1, 5)}},
		{"one damaged", damaged, record.Log{Count: 2, First: 1, Last: 3, Gaps: 1, Bad: 1, LastTime: time.Unix(3, 5)}},
		{"zeroes", make([]byte, 2*record.Size), record.Log{Bad: 2}},
	} {
		got, err := record.Scan(bytes.NewReader(tt.log))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestOrdered(t *testing.T) {
	t.Parallel()
	for a := uint64(5); a <= 8; a++ {
		want := a == 6 || a == 7
		if got := record.Ordered(record.Log{Last: a}, record.Log{Last: 6}); got != want {
			t.Errorf("a at %d, b at 6: %t, want %t", a, got, want)
		}
	}
}

// write is one write of the strict test, as a disk would see it.
type write struct {
	off  int64
	data []byte
}

// play runs the strict test with n threads that take turns at random: a write
// is issued, and completes some time later. It returns the writes in an order
// in which they may have reached the disk.
func play(rng *rand.Rand, threads, steps int) []write {
	var (
		done    [record.MaxThreads]uint64
		issued  [record.MaxThreads]bool
		pending [record.MaxThreads]record.Block
		order   []write
	)
	for range steps {
		t := rng.IntN(threads)
		if issued[t] {
			done[t], issued[t] = pending[t].Number, false
			continue
		}
		b := record.Block{Thread: t, Threads: threads, Number: done[t] + 1, Known: done}
		p := make([]byte, record.BlockSize)
		b.Put(p)
		order = append(order, write{b.Offset(), p})
		pending[t], issued[t] = b, true
	}
	return order
}

func TestCheckBlocksAcceptsEveryPrefixAndSeesEveryLoss(t *testing.T) {
	t.Parallel()
	const threads = 3
	rng := rand.New(rand.NewPCG(1, 2))
	order := play(rng, threads, 800)
	disk := make([]byte, record.SequenceBytes(threads))
	lost := 0
	for i, w := range order {
		copy(disk[w.off:], w.data)
		s, err := record.CheckBlocks(bytes.NewReader(disk), threads)
		if err != nil || !s.Consistent() {
			t.Fatalf("after %d writes: %v, %v", i+1, s.Violations, err)
		}
	}
	// Without one of the writes that others knew of, the disk is impossible.
	for range 50 {
		skip := rng.IntN(len(order) - 20)
		disk := make([]byte, len(disk))
		for i, w := range order {
			if i != skip && i < skip+20 {
				copy(disk[w.off:], w.data)
			}
		}
		s, err := record.CheckBlocks(bytes.NewReader(disk), threads)
		if err != nil {
			t.Fatal(err)
		}
		if !s.Consistent() {
			lost++
		}
	}
	if lost != 50 {
		t.Errorf("of 50 disks that lack a write, %d were found out", lost)
	}
}

func TestCheckBlocksTakesAnything(t *testing.T) {
	t.Parallel()
	if s, err := record.CheckBlocks(bytes.NewReader(nil), 24); err != nil || !s.Consistent() {
		t.Errorf("an empty disk: %v, %v", s.Violations, err)
	}
	junk := bytes.Repeat([]byte{7}, 3*record.BlockSize+5)
	if s, err := record.CheckBlocks(bytes.NewReader(junk), 1); err != nil || s.Consistent() {
		t.Errorf("junk: %v, %v, want violations", s.Violations, err)
	}
	for _, threads := range []int{-1, 0, 25} {
		if _, err := record.CheckBlocks(bytes.NewReader(nil), threads); err == nil {
			t.Errorf("%d threads were taken", threads)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(logOf(7))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := record.Parse(b); err == nil && !bytes.Equal(r.Append(nil), b[:record.Size]) {
			t.Errorf("%x parses as %+v, which is written otherwise", b, r)
		}
		_, _ = record.ParseBlock(b)
	})
}
