package gateway

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/gateway/journal"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

const (
	spoolSuffix = ".seg"
	// inMemory is how many sealed segments wait in memory before the next ones
	// go to the spool.
	inMemory = 4
	// baseWait bounds how long a source stays disconnected so that its blocks
	// can be compared with a vault that does not answer.
	baseWait = 15 * time.Second
)

// queued is a sealed segment that is not in the vault yet.
type queued struct {
	sealed  *vault.Sealed
	bytes   int64
	began   time.Time // everything written by then is in it or before it; zero: not known
	queued  time.Time
	spooled bool // sealed.Encoded was dropped from memory; it is in the spool
}

// run seals, commits and opens bases until ctx ends or the stream is fenced.
func (s *stream) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.sealLoop(ctx) })
	g.Go(func() error { return s.commitLoop(ctx) })
	g.Go(func() error { return s.baseLoop(ctx) })
	return g.Wait()
}

func (s *stream) sealLoop(ctx context.Context) error {
	tick := time.NewTicker(s.opts.Tuning.SealInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.periodicPoint()
		case <-s.kick:
		}
		if err := s.seal(); err != nil {
			return err
		}
		s.checkBound()
	}
}

// periodicPoint makes a recovery point when the last one is old enough.
func (s *stream) periodicPoint() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.consistent || s.stop != nil || s.opts.Now().Sub(s.lastPoint) < s.opts.Tuning.PointInterval {
		return
	}
	m := vault.Mark{Kind: vault.MarkPoint, Consistency: vault.CrashConsistent}
	if err := s.pointLocked(m); err != nil {
		s.log.Error("no recovery point was made", "error", err)
	}
}

// seal closes the segment at hand, if it has anything, and queues it.
func (s *stream) seal() error {
	s.mu.Lock()
	now := s.opts.Now()
	var began time.Time
	if s.consistent {
		// Only then has everything that the guest wrote by now arrived: a source
		// that is not connected, or not in sync, must not look up to date.
		began = now
	}
	pending, _ := s.opts.Writer.Pending()
	err := s.journal.Rotate()
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("rotate journal: %w", err)
	}
	s.queueBytes.Add(pending) // while it is encoded it is neither pending nor queued
	defer s.queueBytes.Add(-pending)
	sealed, err := s.opts.Writer.Seal(now)
	if err != nil {
		return fmt.Errorf("seal segment: %w", err)
	}
	if sealed == nil {
		if pending == 0 {
			s.idle(began)
		}
		return nil
	}
	s.enqueue(&queued{sealed: sealed, bytes: int64(len(sealed.Encoded)), began: began})
	return nil
}

// idle notes that nothing had to be sealed: the vault is up to date if nothing
// waits either.
func (s *stream) idle(now time.Time) {
	s.qmu.Lock()
	waiting := len(s.queue)
	s.qmu.Unlock()
	if waiting > 0 || now.IsZero() {
		return
	}
	s.smu.Lock()
	s.progress.asOf = now
	s.smu.Unlock()
	wake(s.sealed)
}

// enqueue hands a segment to the commit loop, through the spool if others wait.
// Only the seal loop calls it.
func (s *stream) enqueue(q *queued) {
	q.queued = s.opts.Now()
	s.queueBytes.Add(q.bytes)
	s.qmu.Lock()
	waiting := len(s.queue)
	s.qmu.Unlock()
	if waiting >= inMemory {
		s.spool(q)
	}
	s.qmu.Lock()
	s.queue = append(s.queue, q)
	s.qmu.Unlock()
	if q.spooled {
		s.release()
	}
	wake(s.sealed)
}

// spool moves a segment from memory to disk. If it cannot, the segment stays in
// memory and its journal stays, so that nothing is lost.
func (s *stream) spool(q *queued) {
	name := s.spoolName(q.sealed.Seq)
	if err := vfs.WriteFileAtomic(s.opts.FS, name, q.sealed.Encoded); err != nil {
		s.log.Warn("segment cannot be spooled", "segment", name, "error", err)
		return
	}
	q.spooled, q.sealed.Encoded = true, nil
}

// release frees the journal up to where the vault or the spool has everything.
func (s *stream) release() {
	s.qmu.Lock()
	last := s.committed()
	for _, q := range s.queue {
		if !q.spooled {
			break
		}
		last = q.sealed.Last
	}
	s.qmu.Unlock()
	s.mu.Lock()
	err := s.journal.Release(last)
	s.mu.Unlock()
	if err != nil {
		s.log.Warn("journal is not released", "error", err)
	}
}

func (s *stream) spoolName(seq uint64) string {
	return path.Join(s.opts.Dir, "spool", fmt.Sprintf("%016x%s", seq, spoolSuffix))
}

// adoptSpool gives the writer what an earlier process had sealed, in order.
func (s *stream) adoptSpool(ctx context.Context) error {
	dir := path.Join(s.opts.Dir, "spool")
	if err := s.opts.FS.MkdirAll(dir); err != nil {
		return fmt.Errorf("open spool %s: %w", dir, err)
	}
	names, err := s.opts.FS.List(dir)
	if err != nil {
		return fmt.Errorf("open spool %s: %w", dir, err)
	}
	follows := true
	for _, name := range names {
		if !strings.HasSuffix(name, spoolSuffix) {
			continue
		}
		if follows {
			err = s.adopt(ctx, path.Join(dir, name))
			follows = !errors.Is(err, vault.ErrForeign)
		}
		if !follows {
			// A segment before it was in memory when the process died. The journal
			// still has that one and all that follow: they are sealed anew. Should
			// it not have them, replay finds the gap.
			err = s.opts.FS.Remove(path.Join(dir, name))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// adopt takes one spooled segment, or removes it if the vault has it already.
func (s *stream) adopt(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	encoded, err := readFile(s.opts.FS, name)
	if err != nil {
		return fmt.Errorf("read spool: %w", err)
	}
	sealed, err := s.opts.Writer.Adopt(encoded)
	if errors.Is(err, vault.ErrAlreadyCommitted) {
		return s.opts.FS.Remove(name)
	}
	if errors.Is(err, vault.ErrCorrupt) {
		return fmt.Errorf("%w: spooled segment %s: %w", journal.ErrAccount, name, err)
	}
	if err != nil {
		return fmt.Errorf("spooled segment %s: %w", name, err)
	}
	bytes := int64(len(encoded))
	sealed.Encoded = nil
	s.queue = append(s.queue, &queued{sealed: sealed, bytes: bytes, spooled: true})
	s.queueBytes.Add(bytes)
	wake(s.sealed)
	return nil
}

// commitLoop moves the queue into the vault, in order, and stamps the canary.
func (s *stream) commitLoop(ctx context.Context) error {
	var stamped time.Time
	wait := time.Duration(0)
	for {
		if wait > 0 {
			if !sleep(ctx, wait) {
				return nil
			}
		} else {
			select {
			case <-ctx.Done():
				return nil
			case <-s.sealed:
			}
		}
		err := s.commitQueue(ctx)
		if err == nil {
			err = s.stamp(ctx, &stamped)
		}
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, vault.ErrFenced) {
			s.note("fenced", err)
			s.halt(err)
			return nil
		}
		wait = s.backoff(err, wait)
	}
}

// backoff notes a problem and says how long to wait before the next try.
func (s *stream) backoff(err error, last time.Duration) time.Duration {
	if err == nil {
		s.note("", nil)
		return 0
	}
	code := "vault_unreachable"
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		code = "vault_full"
	}
	if last == 0 {
		s.log.Warn("nothing is committed to the vault", "code", code, "error", err)
	}
	s.note(code, err)
	return min(max(2*last, 200*time.Millisecond), 5*time.Second)
}

// note keeps why nothing is committed, or that something is.
func (s *stream) note(code string, err error) {
	s.smu.Lock()
	defer s.smu.Unlock()
	if err == nil {
		s.progress.code, s.progress.problem = "", ""
		return
	}
	if s.progress.code != code {
		s.progress.since = s.opts.Now()
	}
	s.progress.code, s.progress.problem = code, err.Error()
}

func (s *stream) commitQueue(ctx context.Context) error {
	for {
		s.qmu.Lock()
		if len(s.queue) == 0 {
			s.qmu.Unlock()
			return nil
		}
		q := s.queue[0]
		s.qmu.Unlock()
		if err := s.commit(ctx, q); err != nil {
			return err
		}
	}
}

func (s *stream) commit(ctx context.Context, q *queued) error {
	name := s.spoolName(q.sealed.Seq)
	sealed := *q.sealed
	if q.spooled {
		encoded, err := readFile(s.opts.FS, name)
		if err != nil {
			return fmt.Errorf("read spool: %w", err)
		}
		sealed.Encoded = encoded
	}
	if err := s.opts.Limit.Wait(ctx, q.bytes); err != nil {
		return err
	}
	if err := s.opts.Writer.Commit(ctx, &sealed); err != nil {
		return err
	}
	s.qmu.Lock()
	s.queue = s.queue[1:]
	s.qmu.Unlock()
	s.queueBytes.Add(-q.bytes)
	s.release()
	if q.spooled {
		if err := s.opts.FS.Remove(name); err != nil {
			s.log.Warn("spooled segment is not removed", "segment", name, "error", err)
		}
	}
	s.mu.Lock()
	s.counts.Stored += q.bytes
	s.counts.Segments++
	s.mu.Unlock()
	s.smu.Lock()
	s.progress.position = q.sealed.Last
	if !q.began.IsZero() {
		s.progress.asOf = q.began
	}
	s.smu.Unlock()
	return nil
}

// stamp writes the canary: the vault's own word on how far it is.
func (s *stream) stamp(ctx context.Context, last *time.Time) error {
	s.smu.Lock()
	p := s.progress
	s.smu.Unlock()
	tail := s.opts.Writer.Tail()
	if p.position == 0 {
		p.position = tail.Position
	}
	if !p.asOf.After(*last) || (p.position == 0 && p.asOf.IsZero()) {
		return nil
	}
	if busy := p.position != tail.Position; busy || p.asOf.Sub(*last) >= s.opts.Tuning.SealInterval {
		c := vault.Canary{Time: p.asOf, Timeline: s.opts.Writer.Timeline(), Seq: tail.Seq, Position: p.position, Confirmed: s.lastConfirmed()}
		if err := s.opts.Stream.PutCanary(ctx, c); err != nil {
			return fmt.Errorf("stamp canary: %w", err)
		}
		*last = p.asOf
	}
	return nil
}

// checkBound lets sources come back when the backlog is well below its bound.
func (s *stream) checkBound() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bound()
	if s.full && s.backlog() < s.opts.Tuning.SpoolLimit*6/10 {
		s.full = false
	}
}

// bound cuts the sources off when the backlog has reached its bound. Every
// write asks, so that the backlog exceeds it by one request at most. The caller
// holds mu.
func (s *stream) bound() {
	n := s.backlog()
	if n < s.opts.Tuning.SpoolLimit || s.full {
		return
	}
	s.log.Warn("the backlog has reached its bound, sources are cut off until it shrinks", "bytes", n)
	s.dropAll(errBacklog)
	s.full = true
}

// commitPatience is how long a segment may wait for the vault before that is
// called a problem, although no error was returned.
const commitPatience = 10 * time.Second

// oldestQueued returns for how long the oldest sealed segment has been waiting.
func (s *stream) oldestQueued() time.Duration {
	s.qmu.Lock()
	defer s.qmu.Unlock()
	if len(s.queue) == 0 || s.queue[0].queued.IsZero() {
		return 0
	}
	return s.opts.Now().Sub(s.queue[0].queued)
}

// backlog returns the bytes that were acknowledged and are not in the vault.
func (s *stream) backlog() int64 {
	n, _ := s.opts.Writer.Pending()
	return n + s.queueBytes.Load()
}

// throttle slows a source that writes faster than the vault takes it; otherwise
// the backlog would reach its bound, and the source be cut off. A copy, which
// can wait, waits for maxThrottle with each large request once an eighth of the
// bound is in use. A guest in sync writes at full speed until a quarter is, so
// that a burst costs it nothing; from there on each of its large requests waits
// longer, up to maxThrottle at three quarters.
func (s *stream) throttle(ctx context.Context, n int64, synced bool) {
	if n < 64<<10 {
		return
	}
	used, limit := s.backlog(), s.opts.Tuning.SpoolLimit
	if !synced && used > limit/8 {
		sleep(ctx, maxThrottle)
		return
	}
	if s.opts.Limit.Rate() > 0 {
		return // the backlog is as somebody wants it; a guest does not wait for that
	}
	if over := used - limit/4; synced && over > 0 {
		sleep(ctx, time.Duration(float64(maxThrottle)*min(1, float64(over)/float64(limit/2))))
	}
}

// maxThrottle bounds what the gateway adds to one large request of a source
// that brings data faster than the vault takes it.
const maxThrottle = 20 * time.Millisecond

// baseLoop opens the bases of disks that wait for a source.
func (s *stream) baseLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.rebase:
		}
		deadline := s.opts.Now().Add(baseWait)
		for _, d := range s.unreadyDisks() {
			s.openBase(ctx, d, deadline)
		}
	}
}

func (s *stream) unreadyDisks() []*disk {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*disk
	for _, d := range s.disks {
		if !d.ready {
			out = append(out, d)
		}
	}
	return out
}

// openBase waits until the vault has all that came before, and opens it. A disk
// whose base cannot be opened is ready all the same: its source then sends
// blocks that the vault has.
func (s *stream) openBase(ctx context.Context, d *disk, deadline time.Time) {
	s.mu.Lock()
	at, epoch := d.baseAt, d.epoch
	s.mu.Unlock()
	for s.committed() < at && s.opts.Now().Before(deadline) {
		if !sleep(ctx, 10*time.Millisecond) {
			return
		}
	}
	var base *baseImage
	if s.committed() >= at {
		var err error
		if base, err = s.baseView(ctx, d.id, at); err != nil {
			s.log.Warn("blocks are not compared with the vault", "disk", d.id, "error", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.epoch == epoch && !d.ready {
		d.base, d.ready = base, true
	}
}

func (s *stream) baseView(ctx context.Context, id string, at holdfast.Position) (*baseImage, error) {
	if err := s.opts.Stream.Refresh(ctx); err != nil {
		return nil, err
	}
	view, err := s.opts.Stream.Base(ctx, s.opts.Writer.Timeline(), at)
	if err != nil {
		return nil, err
	}
	image, err := view.Disk(id)
	if err != nil {
		return nil, err
	}
	return &baseImage{view: view, image: image}, nil
}

// committed returns the position up to which the vault has everything.
func (s *stream) committed() holdfast.Position {
	return s.opts.Writer.Tail().Position
}

func readFile(fsys vfs.FS, name string) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	b := make([]byte, size)
	if size == 0 {
		return b, nil
	}
	_, err = f.ReadAt(b, 0)
	return b, err
}

// sleep waits for d and says whether ctx is still alive.
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
