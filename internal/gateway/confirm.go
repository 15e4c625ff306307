package gateway

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"
)

// A source that is cut off goes on, and what it writes then is missed. The end of
// the connection is seen a moment later. Within one stream that does no harm: each
// of its positions is still one that the disks were in. Seen beside other streams
// it would: in that moment, another machine may have written because of what was
// missed. So whoever looks after the mirror confirms, again and again, up to which
// time nothing was missed: he asks for the time, then asks QEMU, and if QEMU says
// that every disk passes its writes on, all that was written until the first is
// here.

// confirmation is what was confirmed of a stream.
type confirmation struct {
	confirmed time.Time // until then, nothing was missed
	base      time.Time // of the newest in the vault when the stream was opened
}

// confirmFile keeps the confirmed time for the next process.
const confirmFile = "confirmed"

// confirm notes that nothing was missed until a time of this gateway's clock, if
// the connections are still those of the epochs.
func (s *stream) confirm(at time.Time, epochs map[string]uint64) error {
	at = at.Truncate(time.Microsecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, d := range s.disks {
		if epochs[id] != d.epoch || d.conn == 0 || !d.synced {
			return fmt.Errorf("disk %q: %w", id, ErrStaleEpoch)
		}
	}
	if !s.consistent || !at.After(s.known.confirmed) || at.After(s.opts.Now()) {
		return nil
	}
	if !at.After(s.known.base) {
		return nil // another gateway's clock was ahead: times stand still here, and there are others that do not
	}
	s.known.confirmed = at
	return s.keepConfirmed(at)
}

// keepConfirmed keeps the time, not synced: it has to survive this process only.
func (s *stream) keepConfirmed(at time.Time) error {
	name := path.Join(s.opts.Dir, confirmFile)
	f, err := s.opts.FS.OpenRW(name)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = s.opts.FS.Create(name)
	}
	if err != nil {
		return fmt.Errorf("keep confirmed time: %w", err)
	}
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(at.UnixMicro()))
	_, err = f.WriteAt(b[:], 0)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("keep confirmed time: %w", err)
	}
	return nil
}

// readConfirmed returns what an earlier process has kept; zero: nothing.
func (s *stream) readConfirmed() time.Time {
	f, err := s.opts.FS.Open(path.Join(s.opts.Dir, confirmFile))
	if err != nil {
		return time.Time{}
	}
	defer f.Close()
	var b [8]byte
	if _, err := f.ReadAt(b[:], 0); err != nil {
		return time.Time{}
	}
	return time.UnixMicro(int64(binary.LittleEndian.Uint64(b[:])))
}

// lastConfirmed returns the confirmed time.
func (s *stream) lastConfirmed() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known.confirmed
}
