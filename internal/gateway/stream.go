package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"sync"
	"sync/atomic"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/bandwidth"
	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/gateway/journal"
	"github.com/holdfast-dr/holdfast/internal/nbd"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

var (
	// ErrStaleEpoch says that the connection, of which something is claimed, is
	// not the one of now.
	ErrStaleEpoch = errors.New("the ingest connection has changed meanwhile")
	// ErrUnknownDisk says that a stream has no such disk.
	ErrUnknownDisk = errors.New("unknown disk")
)

// Tuning are the bounds of a stream's ingest. The zero value means defaults.
type Tuning struct {
	SealInterval  time.Duration `json:"seal_interval"`  // default 500 ms
	SealSize      int64         `json:"seal_size"`      // bytes; default 8 MiB
	SpoolLimit    int64         `json:"spool_limit"`    // bytes not yet in the vault; default 1 GiB
	PointInterval time.Duration `json:"point_interval"` // default 1 minute
	IdleCanary    time.Duration `json:"idle_canary"`    // default 1 s
}

func (t Tuning) withDefaults() Tuning {
	if t.SealInterval <= 0 {
		t.SealInterval = 500 * time.Millisecond
	}
	if t.SealSize <= 0 {
		t.SealSize = 8 << 20
	}
	if t.SpoolLimit <= 0 {
		t.SpoolLimit = 1 << 30
	}
	if t.PointInterval <= 0 {
		t.PointInterval = time.Minute
	}
	if t.IdleCanary <= 0 {
		t.IdleCanary = time.Second
	}
	return t
}

// StreamOptions say what a stream's ingest needs.
type StreamOptions struct {
	Stream *vault.Stream
	Writer *vault.Writer
	Disks  []vault.Disk
	FS     vfs.FS
	Dir    string // journal and spool of this stream
	Tuning Tuning
	Limit  *bandwidth.Limiter // of what goes to the vault; nil: none
	Logger *slog.Logger
	// Now returns the time; tests set it. Default time.Now.
	Now func() time.Time
}

// stream is the sequencer of one stream: it gives every write of all its disks
// a position in order of arrival, and moves what was sealed into the vault.
type stream struct {
	opts StreamOptions
	log  *slog.Logger
	wakers

	// mu guards the order of writes: what follows changes only under it.
	mu         sync.Mutex
	journal    *journal.Journal
	disks      map[string]*disk
	fresh      bool // no account of earlier changes was found, and begin was not called
	consistent bool
	noted      bool  // consistent was noted in the stream since it was opened
	full       bool  // nothing is taken until the backlog has shrunk
	dropped    error // why the sources were cut off last; nil once in sync again
	stop       error // set for good: nothing is taken any more
	lastPoint  time.Time
	counts     Counts
	known      confirmation

	// qmu guards the queue of segments between seal and commit.
	qmu   sync.Mutex
	queue []*queued

	queueBytes atomic.Int64 // of the queue, and of what is about to join it

	// smu guards the state shown to others.
	smu      sync.Mutex
	progress commitProgress
}

// wakers wake the loops of a stream; each has room for one.
type wakers struct {
	kick   chan struct{} // there is enough to seal
	sealed chan struct{} // there is something to commit
	rebase chan struct{} // a disk needs its base
}

// Counts are totals since the stream was opened.
type Counts struct {
	Received int64 `json:"received_bytes"` // written by the source
	Skipped  int64 `json:"skipped_bytes"`  // received, but already in the vault
	Stored   int64 `json:"stored_bytes"`   // committed to the vault, as stored
	Segments int64 `json:"segments"`
}

// commitProgress is how far the vault is.
type commitProgress struct {
	position holdfast.Position // everything up to here is in the vault
	asOf     time.Time         // everything that had arrived by then is in the vault
	problem  string            // why nothing is committed at the moment
	code     string            // vault_full, vault_unreachable, fenced
	since    time.Time
}

// newStream replays what an earlier process left in journal and spool.
func newStream(ctx context.Context, o StreamOptions) (*stream, error) {
	o.Tuning = o.Tuning.withDefaults()
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &stream{
		opts: o, log: o.Logger, wakers: wakers{kick: make(chan struct{}, 1), sealed: make(chan struct{}, 1), rebase: make(chan struct{}, 1)},

		disks: map[string]*disk{},
	}
	for i, d := range o.Disks {
		s.disks[d.ID] = newDisk(s, uint16(i), d)
	}
	var err error
	if s.fresh, err = s.openSession(); err != nil {
		return nil, err
	}
	s.known = confirmation{confirmed: s.readConfirmed(), base: o.Writer.Tail().Time}
	if err := s.adoptSpool(ctx); err != nil {
		return nil, err
	}
	s.journal, err = journal.Open(o.FS, path.Join(o.Dir, "journal"), s.replay)
	if err != nil {
		return nil, err
	}
	// Whatever was connected is not any more, and may have missed writes.
	if err := s.setConsistent(false, "gateway started"); err != nil {
		return nil, err
	}
	for _, d := range s.disks {
		d.unready()
	}
	return s, nil
}

// sessionFile shows that this directory holds the account of a stream.
const sessionFile = "session"

// openSession says whether no earlier process kept its account here.
func (s *stream) openSession() (fresh bool, err error) {
	if err := s.opts.FS.MkdirAll(s.opts.Dir); err != nil {
		return false, fmt.Errorf("open spool %s: %w", s.opts.Dir, err)
	}
	_, err = s.opts.FS.Stat(path.Join(s.opts.Dir, sessionFile))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return false, err
}

// seeded says whether the vault had the stream in sync at some time.
func (s *stream) seeded() bool { return len(s.opts.Stream.Ranges(s.opts.Writer.Timeline())) > 0 }

// begin lets sources connect to a fresh stream: every mirror that could believe
// itself in sync has been removed.
func (s *stream) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.fresh {
		return nil
	}
	name := path.Join(s.opts.Dir, sessionFile)
	if err := vfs.WriteFileAtomic(s.opts.FS, name, []byte(s.opts.Stream.ID().String()+"\n")); err != nil {
		return fmt.Errorf("begin session: %w", err)
	}
	s.fresh = false
	return nil
}

// replay gives a record of the journal to the writer again.
func (s *stream) replay(rec journal.Record) error {
	next := s.opts.Writer.Next()
	if rec.Position < next {
		return nil // sealed already
	}
	if rec.Position != next || int(rec.Disk) >= len(s.opts.Disks) {
		return fmt.Errorf("%w: position %s follows %s", journal.ErrAccount, rec.Position, next)
	}
	_, err := s.toWriter(rec)
	return err
}

// toWriter hands one record to the vault's writer.
func (s *stream) toWriter(rec journal.Record) (holdfast.Position, error) {
	id := s.opts.Disks[rec.Disk].ID
	switch rec.Kind {
	case journal.Write:
		return s.opts.Writer.Write(id, rec.Offset, rec.Payload, rec.Time)
	case journal.Zero, journal.Hole:
		e := block.Extent{Offset: rec.Offset, Length: rec.Length}
		return s.opts.Writer.Zero(id, e, rec.Kind == journal.Hole, rec.Time)
	case journal.Mark:
		var m vault.Mark
		if err := json.Unmarshal(rec.Payload, &m); err != nil {
			return 0, fmt.Errorf("decode mark at %s: %w", rec.Position, err)
		}
		return s.opts.Writer.Mark(m, rec.Time)
	}
	return 0, fmt.Errorf("journal record at %s has unknown kind %d", rec.Position, rec.Kind)
}

// accept journals a record and gives it its position. The caller holds mu. On
// an error nothing was kept, and the connection must be dropped.
func (s *stream) accept(rec journal.Record) (holdfast.Position, error) {
	rec.Position, rec.Time = s.opts.Writer.Next(), s.opts.Now()
	if err := s.journal.Append(rec); err != nil {
		return 0, err
	}
	pos, err := s.toWriter(rec)
	if err != nil {
		return 0, err
	}
	if pos != rec.Position {
		panic(fmt.Sprintf("gateway: position %s was journaled as %s", pos, rec.Position))
	}
	if bytes, _ := s.opts.Writer.Pending(); bytes >= s.opts.Tuning.SealSize {
		wake(s.kick)
	}
	return pos, nil
}

// mark puts a mark in the stream. The caller holds mu.
func (s *stream) mark(m vault.Mark) (holdfast.Position, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return 0, err
	}
	return s.accept(journal.Record{Kind: journal.Mark, Payload: b})
}

// setConsistent notes, as a mark, whether the positions from here on are each
// crash-consistent. The caller holds mu, or nobody else knows s yet.
func (s *stream) setConsistent(on bool, why string) error {
	if s.noted && s.consistent == on {
		return nil
	}
	kind := vault.MarkInconsistent
	if on {
		kind = vault.MarkConsistent
	}
	m := vault.Mark{Kind: kind, Name: why}
	if !on {
		m.Confirmed = s.known.confirmed
	}
	if _, err := s.mark(m); err != nil {
		if !on {
			s.consistent, s.noted = false, false // to be noted before anything else is taken
		}
		return fmt.Errorf("mark stream: %w", err)
	}
	s.consistent, s.noted = on, true
	return nil
}

// refuse returns why no write can be taken now. The caller holds mu.
func (s *stream) refuse() error {
	switch {
	case s.stop != nil:
		return s.stop
	case s.fresh:
		return errFresh
	case s.full:
		return errBacklog
	}
	return nil
}

var (
	errBacklog  = errors.New("the backlog has reached its bound")
	errFresh    = errors.New("the stream has not begun")
	errNotReady = errors.New("what the vault has is being looked up")
)

// dropAll ends every ingest connection; the caller holds mu.
func (s *stream) dropAll(why error) {
	if s.consistent {
		if err := s.setConsistent(false, why.Error()); err != nil {
			s.log.Error("stream is not marked inconsistent", "error", err)
		}
	}
	s.dropped = why
	for _, d := range s.disks {
		d.drop(why)
	}
}

// halt stops the stream for good, as when it was fenced off.
func (s *stream) halt(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop == nil {
		s.stop = why
		for _, d := range s.disks {
			d.drop(why)
		}
	}
}

// synced notes that a disk's mirror is in sync on the connection of the epoch.
func (s *stream) synced(id string, epoch uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.disks[id]
	if !ok {
		return fmt.Errorf("disk %q: %w", id, ErrUnknownDisk)
	}
	if d.epoch != epoch || d.conn == 0 {
		return fmt.Errorf("disk %q: %w", id, ErrStaleEpoch)
	}
	if err := s.refuse(); err != nil {
		return err
	}
	d.inSync()
	for _, d := range s.disks {
		if !d.synced {
			return nil
		}
	}
	if s.consistent {
		return nil
	}
	if err := s.setConsistent(true, "all disks are in sync"); err != nil {
		return err
	}
	s.dropped = nil
	return s.pointLocked(vault.Mark{Kind: vault.MarkPoint, Name: "in sync", Consistency: vault.CrashConsistent})
}

// pointLocked makes a recovery point; the caller holds mu.
func (s *stream) pointLocked(m vault.Mark) error {
	_, err := s.mark(m)
	if err == nil {
		s.lastPoint = s.opts.Now()
		wake(s.kick)
	}
	return err
}

// asDrop makes the NBD server end the connection without a reply.
func asDrop(err error) error { return fmt.Errorf("%w: %w", nbd.ErrDrop, err) }

// wake puts a token in a channel of capacity one.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
