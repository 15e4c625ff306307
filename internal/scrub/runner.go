package scrub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// Disk is a disk that is compared.
type Disk struct {
	ID   string
	Size int64 // bytes
}

// Peer is where the vault is. It compares a disk from Begin to End, one at a time.
type Peer interface {
	// Begin has it watched what is written to a disk from now on. It fails with
	// ErrNotNow unless everything that the machine writes arrives.
	Begin(ctx context.Context, disk string) error
	// Compare compares a piece with what the vault has. It fails with ErrNotNow if
	// anything may have been missed since Begin.
	Compare(ctx context.Context, disk string, off int64, sums []byte) (Result, error)
	// End ends what Begin has begun.
	End(ctx context.Context, disk string) error
}

// ErrNotNow says that nothing can be compared at the moment, because the machine is
// off or not replicated continuously.
var ErrNotNow = errors.New("the machine is not replicated continuously at the moment")

// Options say what is compared and how.
type Options struct {
	Disks []Disk
	// Every is the time in which all disks are compared once; 0: only when asked.
	Every time.Duration
	// Rate is how much is read at most, in bytes per second; 0: no limit.
	Rate int64
	// Retries are the waits after which what differs is looked at again: a write that
	// was under way has then arrived, and the host's file has what the machine's cache
	// had. Default 2 s, 10 s, 30 s.
	Retries []time.Duration
	// Look is how often it is looked whether something is due. Default 5 s.
	Look time.Duration
	// Open opens a disk as its host has it, while the machine runs.
	Open func(ctx context.Context, disk string) (block.Image, error)
	Peer Peer
	// Resync has a disk compared and sent as a whole by the machine itself, and
	// returns when that has begun.
	Resync func(ctx context.Context, disk string) error
	FS     vfs.FS
	File   string // keeps the state
	// Slots has room for as many comparisons as there may be at once, of all runners;
	// nil: any number.
	Slots  chan struct{}
	Logger *slog.Logger
	Now    func() time.Time
}

// batch is how much is compared before it is looked anew what is due, in bytes.
const batch = 16 * AtOnce

// Runner carries out the scrub of one machine.
type Runner struct {
	o    Options
	kick chan struct{}
	// mu guards state.
	mu    sync.Mutex
	state State
}

// NewRunner returns a Runner that goes on where an earlier one stopped.
func NewRunner(o Options) (*Runner, error) {
	if o.Retries == nil {
		o.Retries = []time.Duration{2 * time.Second, 10 * time.Second, 30 * time.Second}
	}
	if o.Look <= 0 {
		o.Look = 5 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	st, err := load(o.FS, o.File)
	if err != nil {
		o.Logger.Warn("the scrub begins anew", "error", err)
	}
	var total int64
	for _, d := range o.Disks {
		total += d.Size
	}
	if st.Total != total || st.Began.IsZero() { // other disks than before: the round begins anew
		st.Began, st.Done, st.Total, st.Skipped = o.Now(), 0, total, 0
	}
	return &Runner{o: o, kick: make(chan struct{}, 1), state: st}, nil
}

// State returns how far it is. Safe for concurrent use.
func (r *Runner) State() State {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.state
	s.Lost, s.Suspected = slices.Clone(s.Lost), slices.Clone(s.Suspected)
	return s
}

// Hurry begins a round now, which does not wait, and returns how many rounds have
// ended before. Safe for concurrent use.
func (r *Runner) Hurry() (int, error) {
	r.mu.Lock()
	if !r.state.Hurry {
		r.state.Began, r.state.Done, r.state.Skipped, r.state.Hurry = r.o.Now(), 0, 0, true
	}
	rounds, err := r.state.Rounds, save(r.o.FS, r.o.File, r.state)
	r.mu.Unlock()
	select {
	case r.kick <- struct{}{}:
	default:
	}
	return rounds, err
}

// Run compares what is due until ctx ends.
func (r *Runner) Run(ctx context.Context) error {
	tick := time.NewTicker(r.o.Look)
	defer tick.Stop()
	for {
		for r.due() {
			err := r.step(ctx)
			if ctx.Err() != nil {
				return nil
			}
			r.note(err)
			if err != nil {
				break
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-r.kick:
		}
	}
}

// due says whether something is to be compared now.
func (r *Runner) due() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &r.state
	if len(s.Suspected) > 0 || s.Hurry {
		return true
	}
	if r.o.Every <= 0 || s.Total == 0 {
		return false
	}
	passed := r.o.Now().Sub(s.Began)
	if s.Done >= s.Total { // the round has ended; the next begins in its time
		if passed < r.o.Every {
			return false
		}
		s.Began, s.Done, s.Skipped = r.o.Now(), 0, 0
		return false
	}
	return s.Done <= int64(float64(passed)/float64(r.o.Every)*float64(s.Total))
}

// note keeps why nothing can be compared.
func (r *Runner) note(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state.Problem = ""
	if err != nil {
		r.state.Problem = err.Error()
		if !errors.Is(err, ErrNotNow) {
			r.o.Logger.Warn("disks are not compared with the vault", "error", err)
		}
	}
}

// step judges what is suspected, or compares the next batch.
func (r *Runner) step(ctx context.Context) error {
	st := r.State()
	if len(st.Suspected) > 0 {
		return r.judge(ctx, st)
	}
	disk, off := r.at(st.Done)
	if disk.ID == "" {
		return r.ended()
	}
	n := min(batch, disk.Size-off)
	found, skipped, err := r.compare(ctx, disk, []block.Extent{{Offset: off, Length: n}})
	if err != nil {
		return err
	}
	if found, err = r.settle(ctx, disk, found); err != nil {
		return err
	}
	if len(found) > 0 {
		return r.suspect(ctx, disk, found)
	}
	return r.advance(st.Done, n, skipped)
}

// at returns the disk and the offset that a place in the round is at; none at the end.
func (r *Runner) at(done int64) (Disk, int64) {
	for _, d := range r.o.Disks {
		if done < d.Size {
			return d, done
		}
		done -= d.Size
	}
	return Disk{}, 0
}

// advance records that a batch was compared, unless a round was begun meanwhile.
func (r *Runner) advance(from, n, skipped int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state.Done != from {
		return nil
	}
	r.state.Done += n
	r.state.Skipped += skipped
	if r.state.Done >= r.state.Total {
		r.finish()
	}
	return save(r.o.FS, r.o.File, r.state)
}

// ended ends a round that has nothing left.
func (r *Runner) ended() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.finish()
	return save(r.o.FS, r.o.File, r.state)
}

// finish ends the round; the caller holds mu. One that has found something does not
// count as one that shows that all is well.
func (r *Runner) finish() {
	s := &r.state
	s.Rounds++
	s.Hurry = false
	s.Done = s.Total
	if !slices.ContainsFunc(s.Lost, func(l Loss) bool { return l.Found.After(s.Began) }) {
		s.Completed = r.o.Now()
		for i := range s.Lost {
			s.Lost[i].Healed = true // it was compared since, and is as it should be
		}
	}
}

// compare compares parts of a disk and returns the blocks that differ.
func (r *Runner) compare(ctx context.Context, d Disk, parts []block.Extent) (found []Difference, skipped int64, err error) {
	if r.o.Slots != nil {
		select {
		case r.o.Slots <- struct{}{}:
			defer func() { <-r.o.Slots }()
		case <-ctx.Done():
			return nil, 0, context.Cause(ctx)
		}
	}
	if err := r.o.Peer.Begin(ctx, d.ID); err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, r.o.Peer.End(context.WithoutCancel(ctx), d.ID)) }()
	src, err := r.o.Open(ctx, d.ID)
	if err != nil {
		return nil, 0, fmt.Errorf("open disk %s: %w", d.ID, err)
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	if src.Size() != d.Size {
		return nil, 0, fmt.Errorf("disk %s has %d bytes on its host, %d are replicated", d.ID, src.Size(), d.Size)
	}
	buf := make([]byte, AtOnce)
	began, read := time.Now(), int64(0)
	for _, part := range parts {
		for part.Length > 0 {
			p := buf[:min(AtOnce, part.Length)]
			if err := src.ReadAt(ctx, p, part.Offset); err != nil {
				return nil, 0, fmt.Errorf("read disk %s: %w", d.ID, err)
			}
			res, err := r.o.Peer.Compare(ctx, d.ID, part.Offset, Sums(p))
			if err != nil {
				return nil, 0, err
			}
			found, skipped = append(found, res.Differ...), skipped+res.Skipped
			part.Offset, part.Length = part.Offset+int64(len(p)), part.Length-int64(len(p))
			read += int64(len(p))
			if ahead := r.ahead(read, time.Since(began)); ahead > 0 && !sleep(ctx, ahead) {
				return nil, 0, context.Cause(ctx)
			}
		}
	}
	return found, skipped, nil
}

// ahead returns how long to wait so that no more is read than Rate says.
func (r *Runner) ahead(read int64, took time.Duration) time.Duration {
	if r.o.Rate <= 0 {
		return 0
	}
	return time.Duration(float64(read)/float64(r.o.Rate)*float64(time.Second)) - took
}

// settle looks at blocks again after each of the waits, and returns those that
// differed every time.
func (r *Runner) settle(ctx context.Context, d Disk, found []Difference) (_ []Difference, err error) {
	for _, wait := range r.o.Retries {
		if len(found) == 0 {
			break
		}
		if !sleep(ctx, wait) {
			return nil, context.Cause(ctx)
		}
		if found, err = r.again(ctx, d, found); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// again looks at blocks once more and returns those that differ still.
func (r *Runner) again(ctx context.Context, d Disk, found []Difference) ([]Difference, error) {
	var parts []block.Extent
	for _, f := range found[:min(len(found), maxSuspects)] {
		e := block.Extent{Offset: f.Offset, Length: min(BlockSize, d.Size-f.Offset)}
		if n := len(parts); n > 0 && parts[n-1].End() == e.Offset {
			parts[n-1].Length += e.Length
			continue
		}
		parts = append(parts, e)
	}
	still, _, err := r.compare(ctx, d, parts)
	return still, err
}

// suspect has a disk compared as a whole by the machine's own mirror, after what
// differs was recorded: only that tells who is right, and mends the vault.
func (r *Runner) suspect(ctx context.Context, d Disk, found []Difference) error {
	r.o.Logger.Error("blocks of a disk are not as the vault has them; the disk is compared as a whole", "disk", d.ID, "blocks", len(found), "first", found[0].Offset)
	r.mu.Lock()
	for _, f := range found[:min(len(found), maxSuspects)] {
		r.state.Suspected = append(r.state.Suspected, Suspect{d.ID, f})
	}
	err := save(r.o.FS, r.o.File, r.state)
	r.mu.Unlock()
	if err != nil {
		return err
	}
	return r.resync(ctx, d.ID)
}

// resync has a disk compared as a whole, and records that this has begun.
func (r *Runner) resync(ctx context.Context, disk string) error {
	if err := r.o.Resync(ctx, disk); err != nil {
		return fmt.Errorf("have disk %s compared as a whole: %w", disk, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state.Resynced = true
	return save(r.o.FS, r.o.File, r.state)
}

// judge looks at what was suspected when the disk was compared as a whole: what the
// vault has been given by that had been lost; what it had all the time, the host's
// file was late with.
func (r *Runner) judge(ctx context.Context, st State) error {
	id := st.Suspected[0].Disk
	i := slices.IndexFunc(r.o.Disks, func(d Disk) bool { return d.ID == id })
	if i < 0 {
		return r.judged(nil, nil) // it is not replicated any more
	}
	if !st.Resynced { // it was not begun, or the process died at it
		return r.resync(ctx, id)
	}
	d := r.o.Disks[i]
	suspected := make([]Difference, len(st.Suspected))
	for i, s := range st.Suspected {
		suspected[i] = s.Difference
	}
	still, err := r.again(ctx, d, suspected)
	if err == nil {
		still, err = r.settle(ctx, d, still)
	}
	if err != nil {
		return err
	}
	lost, unhealed, err := r.sort(ctx, d, st.Suspected, still)
	if err != nil {
		return err
	}
	return r.judged(lost, unhealed)
}

// sort tells what was lost, and what of that the vault has not yet, of what was
// suspected.
func (r *Runner) sort(ctx context.Context, d Disk, suspected []Suspect, still []Difference) (lost, unhealed []Suspect, err error) {
	src, err := r.o.Open(ctx, d.ID)
	if err != nil {
		return nil, nil, fmt.Errorf("open disk %s: %w", d.ID, err)
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	buf := make([]byte, BlockSize)
	for _, s := range suspected {
		if slices.ContainsFunc(still, func(f Difference) bool { return f.Offset == s.Offset }) {
			unhealed = append(unhealed, s)
			continue
		}
		p := buf[:min(BlockSize, d.Size-s.Offset)]
		if err := src.ReadAt(ctx, p, s.Offset); err != nil {
			return nil, nil, fmt.Errorf("read disk %s: %w", d.ID, err)
		}
		if SumOf(p) != s.Kept { // the vault has now what the disk had
			lost = append(lost, s)
		}
	}
	return lost, unhealed, nil
}

// judged records what became of what was suspected.
func (r *Runner) judged(lost, unhealed []Suspect) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &r.state
	if len(lost)+len(unhealed) == 0 {
		r.o.Logger.Info("nothing was lost: the host's file was late", "blocks", len(s.Suspected))
	}
	now := r.o.Now()
	found := append(losses(lost, now, s.Completed, true), losses(unhealed, now, s.Completed, false)...)
	s.Lost = append(s.Lost, found...)
	s.Lost = s.Lost[max(0, len(s.Lost)-maxLost):]
	var behind int64
	if len(s.Suspected) > 0 {
		behind = r.behind(s.Suspected[0].Disk, s.Done)
	}
	s.Suspected, s.Resynced = nil, false
	// The batch is compared again, but not for ever.
	if len(unhealed) > 0 {
		s.Done = behind
	}
	if s.Done >= s.Total {
		r.finish()
	}
	for _, l := range found {
		r.o.Logger.Error("a change was lost on its way to the vault", "disk", l.Disk, "bytes", l.Bytes, "mended", l.Healed)
	}
	return save(r.o.FS, r.o.File, *s)
}

// behind returns the end of the batch that a place in the round is in.
func (r *Runner) behind(disk string, done int64) int64 {
	d, off := r.at(done)
	if d.ID != disk {
		return done
	}
	return done + min(batch, d.Size-off)
}

// sleep waits and says whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
