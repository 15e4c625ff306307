package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault/segment"
)

// WriterOptions say what a writer appends to.
type WriterOptions struct {
	Timeline   holdfast.TimelineID
	Generation holdfast.Generation
}

// Writer appends to a timeline. Write, Zero and Mark give positions in the order
// of their calls; Seal closes a segment; Commit makes it durable. Safe for
// concurrent use: Write goes on while Seal encodes and Commit stores.
type Writer struct {
	s     *Stream
	opts  WriterOptions
	disks []Disk // of the timeline

	// mu guards what was given a position and is not sealed.
	mu   sync.Mutex
	b    *segment.Builder
	full []*segment.Builder // those that have reached a limit of the format, the oldest first
	next holdfast.Position
	at   time.Time // of the last entry: times never go back

	// sealing makes Seal and Adopt one at a time. It guards seal, the end of what
	// was sealed, and failed: why nothing can be sealed any more.
	sealing sync.Mutex
	seal    Tail
	failed  error

	// committing makes Commit one at a time.
	committing sync.Mutex
	// cmu guards tail, the end of what is committed.
	cmu  sync.Mutex
	tail Tail
}

// Sealed is a segment that is whole and may not be in the vault yet.
type Sealed struct {
	Seq         uint64
	First, Last holdfast.Position
	Time        time.Time // of its last entry
	Encoded     []byte
	Hash        [segment.HashSize]byte
	RawBytes    int64
	// More says that not all that was there when Seal was called went into this
	// segment, because it would have been above the limits of the format: only
	// another Seal brings the rest.
	More bool
}

// Writer opens a timeline for writing, at its end. It fails with ErrFenced if
// the timeline is closed, or if any timeline of the stream has a newer
// generation, and with ErrCorrupt if the timeline or its past is damaged.
func (s *Stream) Writer(ctx context.Context, o WriterOptions) (*Writer, error) {
	if err := s.Refresh(ctx); err != nil && !isDamage(err) {
		return nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if _, broken := s.lineage(o.Timeline); broken != nil {
		return nil, fmt.Errorf("write to timeline %s: %w", o.Timeline, broken)
	}
	t := s.timelines[o.Timeline]
	if t.ended != nil {
		return nil, fmt.Errorf("write to timeline %s: %w: generation %d has closed it", o.Timeline, ErrFenced, t.ended.Generation)
	}
	for _, other := range s.timelines {
		if other.desc.Generation > o.Generation {
			return nil, fmt.Errorf("write as generation %d: %w: there is generation %d", o.Generation, ErrFenced, other.desc.Generation)
		}
	}
	return &Writer{s: s, opts: o, disks: s.disksOf(o.Timeline), b: segment.NewBuilder(), next: t.tail.Position + 1, at: t.tail.Time, seal: t.tail, tail: t.tail}, nil
}

// Timeline returns the timeline that it appends to.
func (w *Writer) Timeline() holdfast.TimelineID { return w.opts.Timeline }

// Next returns the position that the next Write, Zero or Mark is given.
func (w *Writer) Next() holdfast.Position {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.next
}

// Tail returns the end of what is committed.
func (w *Writer) Tail() Tail {
	w.cmu.Lock()
	defer w.cmu.Unlock()
	return w.tail
}

// Pending returns how many bytes of data wait for Seal, and the first position
// that does.
func (w *Writer) Pending() (bytes int64, first holdfast.Position) {
	w.mu.Lock()
	defer w.mu.Unlock()
	first = w.next
	if !w.b.Empty() {
		bytes, first = w.b.RawBytes(), w.b.First()
	}
	for _, b := range slices.Backward(w.full) {
		bytes, first = bytes+b.RawBytes(), b.First()
	}
	return bytes, first
}

// maxWrite bounds one write, in bytes: a segment that is not full has room for it.
const maxWrite = 64 << 20

func (w *Writer) checkExtent(disk string, e block.Extent) error {
	for _, d := range w.disks {
		if d.ID != disk {
			continue
		}
		if e.Offset < 0 || e.Length <= 0 || e.Offset%block.SectorSize != 0 || e.Length%block.SectorSize != 0 || e.Offset > d.Size-e.Length {
			return fmt.Errorf("write of %d bytes at %d to disk %q of %d bytes: want multiples of %d within the disk", e.Length, e.Offset, disk, d.Size, block.SectorSize)
		}
		return nil
	}
	return fmt.Errorf("timeline %s of stream %s has no disk %q", w.opts.Timeline, w.s.desc.ID, disk)
}

// take gives the next position, a time that does not go back, and a builder that
// has room. mu is held.
func (w *Writer) take(now time.Time) (holdfast.Position, time.Time) {
	if w.b.Full() {
		w.full, w.b = append(w.full, w.b), segment.NewBuilder()
	}
	if now = stamp(now); now.Before(w.at) {
		now = w.at
	}
	pos := w.next
	w.next, w.at = pos+1, now
	return pos, now
}

// Write adds a write of at most 64 MiB, which takes one position; data is copied.
// It is in the vault after Seal and Commit. now is when it arrived; a time before
// that of the last entry counts as that one's.
func (w *Writer) Write(disk string, off int64, data []byte, now time.Time) (holdfast.Position, error) {
	if len(data) > maxWrite {
		return 0, fmt.Errorf("write of %d bytes to disk %q: the limit is %d", len(data), disk, maxWrite)
	}
	if err := w.checkExtent(disk, block.Extent{Offset: off, Length: int64(len(data))}); err != nil {
		return 0, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	pos, now := w.take(now)
	w.b.Write(pos, now, disk, off, data)
	return pos, nil
}

// Zero adds a zeroing; hole says that the space was freed.
func (w *Writer) Zero(disk string, e block.Extent, hole bool, now time.Time) (holdfast.Position, error) {
	if err := w.checkExtent(disk, e); err != nil {
		return 0, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	pos, now := w.take(now)
	w.b.Zero(pos, now, disk, e, hole)
	return pos, nil
}

// Mark adds a mark.
func (w *Writer) Mark(m Mark, now time.Time) (holdfast.Position, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return 0, err
	}
	if len(b) > segment.MaxMark {
		return 0, fmt.Errorf("mark of %d bytes, the limit is %d", len(b), segment.MaxMark)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	pos, now := w.take(now)
	w.b.Mark(pos, now, b)
	return pos, nil
}

// Seal closes what was added so far as a segment and encodes it, on all cores,
// while adding goes on into the next. It returns nil if there is nothing. The
// time is for callers that keep account of it; segments have those of their
// entries.
func (w *Writer) Seal(time.Time) (*Sealed, error) {
	w.sealing.Lock()
	defer w.sealing.Unlock()
	if w.failed != nil {
		return nil, w.failed
	}
	b, more := w.takeBuilder()
	if b == nil {
		return nil, nil
	}
	h := segment.Header{
		Kind: segment.Writes, Generation: w.opts.Generation, Stream: w.s.desc.ID, Timeline: w.opts.Timeline,
		Seq: w.seal.Seq + 1, Prev: w.seal.Hash,
	}
	encoded, h, err := b.Finish(h, w.s.key, w.s.v.codec)
	var sealed *Sealed
	if err == nil {
		sealed, err = sealedOf(h, encoded)
	}
	if err != nil {
		// Its positions are lost to this writer: nothing may take its place.
		w.failed = fmt.Errorf("seal segment %d of timeline %s: %w", w.seal.Seq+1, w.opts.Timeline, err)
		return nil, w.failed
	}
	sealed.More = more
	w.seal = tailOf(sealed)
	return sealed, nil
}

// takeBuilder takes the oldest builder that has anything, or nil, and says
// whether there is another.
func (w *Writer) takeBuilder() (b *segment.Builder, more bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.full) > 0 {
		b, w.full = w.full[0], w.full[1:]
		return b, len(w.full) > 0 || !w.b.Empty()
	}
	if w.b.Empty() {
		return nil, false
	}
	b, w.b = w.b, segment.NewBuilder()
	return b, false
}

func sealedOf(h segment.Header, encoded []byte) (*Sealed, error) {
	hash, err := segment.ChainHash(encoded)
	return &Sealed{Seq: h.Seq, First: h.First, Last: h.Last, Time: h.LastTime, Encoded: encoded, Hash: hash, RawBytes: h.RawBytes}, err
}

func tailOf(s *Sealed) Tail {
	return Tail{Seq: s.Seq, Position: s.Last, Time: s.Time, Hash: s.Hash}
}

// Adopt takes a segment that an earlier writer had sealed and kept, and that may
// not be in the vault. It must follow what was adopted or committed before, and
// nothing may have been added since the writer was opened. It fails with
// ErrAlreadyCommitted if the vault has this very segment, with ErrFenced if it has
// another in its place, with ErrForeign if it is of another timeline or does not
// follow, and with ErrCorrupt if it is damaged.
func (w *Writer) Adopt(encoded []byte) (*Sealed, error) {
	r, err := segment.Open(encoded, w.s.key, w.s.v.codec)
	if err != nil {
		return nil, err
	}
	h := r.Header
	sealed, err := sealedOf(h, encoded)
	if err != nil {
		return nil, err
	}
	if h.Stream != w.s.desc.ID || h.Timeline != w.opts.Timeline || h.Kind != segment.Writes {
		return nil, fmt.Errorf("%w: segment is of stream %s, timeline %s, kind %d", ErrForeign, h.Stream, h.Timeline, h.Kind)
	}
	w.sealing.Lock()
	defer w.sealing.Unlock()
	if h.Seq <= w.Tail().Seq {
		return nil, w.s.compareCommitted(h.Timeline, sealed)
	}
	if h.Seq != w.seal.Seq+1 || h.Prev != w.seal.Hash || h.First != w.seal.Position+1 {
		return nil, fmt.Errorf("%w: segment %d does not follow segment %d", ErrForeign, h.Seq, w.seal.Seq)
	}
	l, err := newLoaded(r, "", int64(len(encoded)))
	if err != nil {
		return nil, err
	}
	if err := w.s.checkEntries(l, w.disks); err != nil {
		return nil, err
	}
	if _, err := l.marks(); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.b.Empty() || len(w.full) > 0 {
		return nil, errors.New("adopt segment: something was written before")
	}
	w.seal = tailOf(sealed)
	w.next, w.at = h.Last+1, h.LastTime
	return sealed, nil
}

// compareCommitted says how a segment stands to the one that the vault has in
// its place.
func (s *Stream) compareCommitted(tl holdfast.TimelineID, sealed *Sealed) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, l := range s.timelines[tl].segs {
		if l.Header.Seq == sealed.Seq && l.hash == sealed.Hash {
			return ErrAlreadyCommitted
		}
	}
	return fmt.Errorf("segment %d: %w: another writer has written this one", sealed.Seq, ErrFenced)
}

// Commit puts a sealed segment into the vault; it is durable when Commit returns
// nil. Segments are committed in the order in which they were sealed. It may be
// repeated after an error, of which the cause (ENOSPC, EIO) is visible to
// errors.Is, also after one that hid a success. It fails with ErrFenced, for good,
// if the timeline was closed, or another writer has put a segment in its place.
func (w *Writer) Commit(ctx context.Context, sealed *Sealed) error {
	w.committing.Lock()
	defer w.committing.Unlock()
	tail := w.Tail()
	if sealed.Seq <= tail.Seq {
		return nil
	}
	if sealed.Seq != tail.Seq+1 {
		return fmt.Errorf("commit segment %d after segment %d: out of order", sealed.Seq, tail.Seq)
	}
	name := segmentName(w.s.desc.ID, w.opts.Timeline, sealed.Seq)
	err := w.s.v.store.PutIfAbsent(ctx, name, sealed.Encoded)
	if errors.Is(err, objstore.ErrExists) {
		err = w.taken(ctx, name, sealed)
	}
	if err != nil {
		return fmt.Errorf("commit segment %d of timeline %s: %w", sealed.Seq, w.opts.Timeline, err)
	}
	w.cmu.Lock()
	w.tail = tailOf(sealed)
	w.cmu.Unlock()
	return nil
}

// taken looks at who has put a segment in the place of ours: ourselves, in an
// attempt that seemed to fail, or somebody else.
func (w *Writer) taken(ctx context.Context, name string, sealed *Sealed) error {
	b, _, err := w.s.v.store.Get(ctx, name)
	if err != nil {
		return err
	}
	if string(b) == string(sealed.Encoded) {
		return nil
	}
	h, err := segment.ParseHeader(b)
	if err != nil {
		return damaged(name, err)
	}
	if h.Kind == segment.End {
		return fmt.Errorf("%w: generation %d has closed it", ErrFenced, h.Generation)
	}
	return fmt.Errorf("%w: another writer has written this segment", ErrFenced)
}
