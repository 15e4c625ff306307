package systest

import (
	"context"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/systest/guest/record"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// seqThreads is how many threads write numbered blocks.
const seqThreads = 8

// TestEveryPrefixIsAMoment is the strict test of crash consistency: threads in
// the guest write numbered blocks to a raw disk, each only after the one before
// has completed, and every block says what its writer knew of the others. The
// gateway is killed in between. No crash-consistent position may hold a block
// that knows of one that is missing. Checks of file systems are far weaker: they
// miss nearly every disorder.
func TestEveryPrefixIsAMoment(t *testing.T) {
	w := newWorld(t, worldOptions{
		second: 16 << 20, cmdline: "nowriter exec=seqdev:-dev:/dev/vdb:-threads:8:-seconds:600",
	})
	w.protect()
	time.Sleep(4 * time.Second)
	for range 2 {
		pid, err := w.IngestPID()
		w.must(err)
		w.must(syscall.Kill(pid, syscall.SIGKILL))
		time.Sleep(time.Second)
		w.eventually("replication is continuous again", func() bool {
			r := w.item().Replication
			return r != nil && r.Mode == "continuous" && r.RPOSeconds != nil && *r.RPOSeconds < 2
		})
		time.Sleep(3 * time.Second)
	}
	w.must(w.KillMachine(machine))
	it := w.item()
	s := w.stream(it)
	tl := holdfast.TimelineID(it.Stream.Timeline)
	ranges := s.Ranges(tl)
	if len(ranges) < 3 {
		t.Fatalf("%d consistent ranges, want one before and after each kill: %v", len(ranges), ranges)
	}
	p := newPrefixes(t, s, tl, "")
	positions := p.random(600)
	for _, r := range ranges { // the ends are where order is lost first
		for k := range holdfast.Position(60) {
			positions = append(positions, r.From+min(k, r.To-r.From), r.To-min(k, r.To-r.From))
		}
	}
	rand.Shuffle(len(positions), func(i, k int) { positions[i], positions[k] = positions[k], positions[i] })
	var last uint64
	for _, pos := range positions {
		last = max(last, checkSequence(t, s, tl, pos))
	}
	t.Logf("%d of %d crash-consistent positions in %d ranges hold no violation; a thread reached %d", len(positions), p.count(), len(ranges), last)
	if last < 100 {
		t.Errorf("a thread reached only %d: the test showed nothing", last)
	}
	w.checkVault()
}

// checkSequence judges the numbered blocks at a position.
func checkSequence(t *testing.T, s *vault.Stream, tl holdfast.TimelineID, pos holdfast.Position) uint64 {
	t.Helper()
	view, err := s.View(t.Context(), tl, pos)
	if err != nil {
		t.Fatal(err)
	}
	image, err := view.Disk("vdb")
	if err != nil {
		t.Fatal(err)
	}
	seq, err := record.CheckBlocks(readerAt{t.Context(), image}, seqThreads)
	if err != nil {
		t.Fatal(err)
	}
	if !seq.Consistent() {
		t.Fatalf("position %s is no moment that the guest could have seen: %v", pos, seq.Violations)
	}
	return seq.Last[0]
}

// readerAt reads an image.
type readerAt struct {
	ctx   context.Context
	image block.Image
}

// ReadAt reads len(p) bytes.
func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	if err := r.image.ReadAt(r.ctx, p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}
