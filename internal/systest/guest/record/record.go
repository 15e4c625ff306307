// Package record defines what the test guest's load leaves on its disks, and
// judges what is found of it later: numbered, checksummed records in files, and
// numbered blocks on a raw disk. The guest's program writes both; the host
// checks both after a crash. Only tests and the guest's program import it.
package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"
)

// Size is the length of one record in bytes.
const Size = 64

var (
	magic      = [8]byte{'H', 'F', 'R', 'E', 'C', '0', '1', '\n'}
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// ErrBad says that bytes are not a record: wrong magic or wrong checksum.
var ErrBad = errors.New("not a record")

// Record is one entry of the load's log: a number and when it was written.
type Record struct {
	Number uint64
	Time   time.Time
}

// Append appends the record's Size bytes to b.
func (r Record) Append(b []byte) []byte {
	var p [Size]byte
	copy(p[:8], magic[:])
	binary.LittleEndian.PutUint64(p[8:], r.Number)
	binary.LittleEndian.PutUint64(p[16:], uint64(r.Time.UnixNano()))
	for i := 24; i < Size-4; i++ {
		p[i] = byte(r.Number>>(uint(i%8)*8)) ^ byte(i)
	}
	binary.LittleEndian.PutUint32(p[Size-4:], crc32.Checksum(p[:Size-4], castagnoli))
	return append(b, p[:]...)
}

// Parse reads the record in the first Size bytes of b. The error is ErrBad.
func Parse(b []byte) (Record, error) {
	if len(b) < Size || [8]byte(b[:8]) != magic ||
		binary.LittleEndian.Uint32(b[Size-4:]) != crc32.Checksum(b[:Size-4], castagnoli) {
		return Record{}, ErrBad
	}
	return Record{
		Number: binary.LittleEndian.Uint64(b[8:]),
		Time:   time.Unix(0, int64(binary.LittleEndian.Uint64(b[16:]))),
	}, nil
}

// Log is what Scan found in one log.
type Log struct {
	Count uint64 // good records
	First uint64 // number of the first good record; 0 if there is none
	Last  uint64 // number of the last good record; 0 if there is none
	Gaps  uint64 // places where the number did not rise by one
	Bad   uint64 // whole records that do not parse
	Tail  int64  // bytes after the last whole record: a torn append
	// LastTime is when the last good record was written, by the guest's clock.
	LastTime time.Time
}

// String returns the form that the guest prints on its console.
func (l Log) String() string {
	return fmt.Sprintf("first=%d last=%d count=%d gaps=%d bad=%d", l.First, l.Last, l.Count, l.Gaps, l.Bad)
}

// Scan reads a log to its end and judges it. An error is one of reading only.
func Scan(r io.Reader) (Log, error) {
	var l Log
	buf := make([]byte, Size)
	for {
		n, err := io.ReadFull(r, buf)
		if errors.Is(err, io.EOF) {
			return l, nil
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			l.Tail = int64(n)
			return l, nil
		}
		if err != nil {
			return l, fmt.Errorf("scan log: %w", err)
		}
		rec, err := Parse(buf)
		if err != nil {
			l.Bad++
			continue
		}
		if l.Count == 0 {
			l.First = rec.Number
		} else if rec.Number != l.Last+1 {
			l.Gaps++
		}
		l.Count++
		l.Last, l.LastTime = rec.Number, rec.Time
	}
}

// Ordered says whether two logs could have been found after a crash of a load
// that makes each record durable in a before it writes it to b: b is then at
// the same record as a, or one behind.
func Ordered(a, b Log) bool {
	return a.Last == b.Last || a.Last == b.Last+1
}
