package main

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/holdfast-dr/holdfast/internal/systest/guest/record"
)

// openDisk opens a block device, or a file, past the page cache.
func openDisk(name string) (f *os.File, size int64, err error) {
	f, err = os.OpenFile(name, os.O_RDWR|syscall.O_DIRECT, 0)
	if err != nil {
		return nil, 0, err
	}
	if size, err = f.Seek(0, 2); err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, size, nil
}

// alignedBuffer returns n bytes at an address that O_DIRECT accepts.
func alignedBuffer(n int) []byte {
	raw := make([]byte, n+4096)
	skip := -uintptr(unsafe.Pointer(&raw[0])) & 4095
	return raw[skip : int(skip)+n]
}

// runSequence is the strict write test of package record. It clears the ring
// first, prints "SEQ-START", every second "SEQ n", and at its end "SEQ-DONE".
func runSequence(fl *flag.FlagSet, args []string) error {
	dev := fl.String("dev", "/dev/vdb", "disk to write; what is on it is lost")
	threads := fl.Int("threads", 4, "how many threads write, 1 to 24")
	seconds := fl.Int("seconds", 10, "how long; 0 is for ever")
	if err := fl.Parse(args); err != nil {
		return err
	}
	if *threads < 1 || *threads > record.MaxThreads {
		return fmt.Errorf("-threads %d: want 1 to %d", *threads, record.MaxThreads)
	}
	disk, size, err := openDisk(*dev)
	if err != nil {
		return err
	}
	defer disk.Close()
	if size < record.SequenceBytes(*threads) {
		return fmt.Errorf("%s has %d bytes, %d threads need %d", *dev, size, *threads, record.SequenceBytes(*threads))
	}
	zero := alignedBuffer(record.Ring * record.BlockSize)
	for t := range *threads {
		if _, err := disk.WriteAt(zero, int64(t*len(zero))); err != nil {
			return err
		}
	}
	fmt.Println("SEQ-START")
	var done [record.MaxThreads]atomic.Uint64
	stop := make(chan struct{})
	errs := make(chan error, *threads)
	for t := range *threads {
		go func() { errs <- writeSequence(disk, record.Block{Thread: t, Threads: *threads}, &done, stop) }()
	}
	total := func() (n uint64) {
		for t := range done {
			n += done[t].Load()
		}
		return n
	}
	for s := 0; *seconds == 0 || s < *seconds; s++ {
		time.Sleep(time.Second)
		fmt.Printf("SEQ %d\n", total())
	}
	close(stop)
	for range *threads {
		err = errors.Join(err, <-errs)
	}
	fmt.Printf("SEQ-DONE %d\n", total())
	return err
}

func writeSequence(disk *os.File, b record.Block, done *[record.MaxThreads]atomic.Uint64, stop <-chan struct{}) error {
	buf := alignedBuffer(record.BlockSize)
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		b.Number++
		for t := range done {
			b.Known[t] = done[t].Load()
		}
		b.Put(buf)
		if _, err := disk.WriteAt(buf, b.Offset()); err != nil {
			return fmt.Errorf("thread %d, block %d: %w", b.Thread, b.Number, err)
		}
		done[b.Thread].Store(b.Number)
	}
}

// runCheck judges a disk that runSequence wrote.
func runCheck(fl *flag.FlagSet, args []string) error {
	dev := fl.String("dev", "/dev/vdb", "disk or file to check")
	threads := fl.Int("threads", 4, "how many threads wrote")
	if err := fl.Parse(args); err != nil {
		return err
	}
	f, err := os.Open(*dev)
	if err != nil {
		return err
	}
	defer f.Close()
	s, err := record.CheckBlocks(f, *threads)
	if err != nil {
		return err
	}
	for _, v := range s.Violations {
		fmt.Println("SEQ-VIOLATION", v)
	}
	fmt.Printf("SEQ-CHECK consistent=%t last=%v\n", s.Consistent(), s.Last[:*threads])
	return nil
}

// runBench measures a disk past the page cache and prints one line of figures.
func runBench(fl *flag.FlagSet, args []string) error {
	dev := fl.String("dev", "/dev/vdb", "disk to use; what is on it is lost unless -read")
	size := fl.Int("bs", 4096, "bytes of one request")
	depth := fl.Int("qd", 1, "requests in flight")
	seconds := fl.Float64("seconds", 5, "how long")
	sequential := fl.Bool("sequential", false, "one after the other, not at random")
	read := fl.Bool("read", false, "read, not write")
	if err := fl.Parse(args); err != nil {
		return err
	}
	disk, length, err := openDisk(*dev)
	if err != nil {
		return err
	}
	defer disk.Close()
	slots := length / int64(*size)
	if *size <= 0 || *size%512 != 0 || *depth < 1 || slots < 1 {
		return fmt.Errorf("-bs %d -qd %d on a disk of %d bytes: want a multiple of 512 that fits, and at least one in flight", *size, *depth, length)
	}
	var (
		next atomic.Int64
		mu   sync.Mutex
		took []time.Duration
		fail error
		wg   sync.WaitGroup
	)
	start := time.Now()
	end := start.Add(time.Duration(*seconds * float64(time.Second)))
	for range *depth {
		wg.Go(func() {
			buf := alignedBuffer(*size)
			for i := range buf {
				buf[i] = byte(rand.Uint32())
			}
			var mine []time.Duration
			var err error
			for err == nil && time.Now().Before(end) {
				slot := rand.Int64N(slots)
				if *sequential {
					slot = next.Add(1) % slots
				}
				began := time.Now()
				if *read {
					_, err = disk.ReadAt(buf, slot*int64(*size))
				} else {
					_, err = disk.WriteAt(buf, slot*int64(*size))
				}
				mine = append(mine, time.Since(began))
			}
			mu.Lock()
			defer mu.Unlock()
			took, fail = append(took, mine...), errors.Join(fail, err)
		})
	}
	wg.Wait()
	if fail != nil {
		return fail
	}
	elapsed := time.Since(start).Seconds()
	slices.Sort(took)
	at := func(q float64) int64 { return took[int(q*float64(len(took)-1))].Microseconds() }
	n := float64(len(took))
	fmt.Printf("BENCH bs=%d qd=%d sequential=%t read=%t n=%d iops=%.0f mbps=%.1f p50us=%d p99us=%d maxus=%d\n",
		*size, *depth, *sequential, *read, len(took), n/elapsed, n*float64(*size)/elapsed/1e6, at(0.5), at(0.99), at(1))
	return nil
}
