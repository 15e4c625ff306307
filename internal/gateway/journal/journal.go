// Package journal keeps, in files, what a gateway has acknowledged and the vault
// has not yet: it survives the death of the process.
package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// Kind says what a journal record holds.
type Kind uint8

// The kinds of records.
const (
	Write Kind = 1
	Zero  Kind = 2
	Hole  Kind = 3
	Mark  Kind = 4 // payload: the mark as JSON
)

// Record is one entry of the journal: what the sequencer gave to the vault's
// writer, in order.
type Record struct {
	Kind     Kind
	Disk     uint16 // index in the stream's list of disks
	Position holdfast.Position
	Time     time.Time
	Offset   int64
	Length   int64
	Payload  []byte // Write: Length bytes; Mark: JSON; else empty
}

// A journal record is a header of HeaderSize bytes, little endian, and the
// payload:
//
//	0  4  CRC-32C of all that follows
//	4  4  payload length
//	8  1  kind
//	9  1  zero
//	10 2  disk
//	12 4  zero
//	16 8  position
//	24 8  time, Unix nanoseconds
//	32 8  offset
//	40 8  length
const (
	HeaderSize    = 48
	maxPayload    = 64 << 20
	journalSuffix = ".journal"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Journal keeps what was acknowledged and is not yet in the vault, in files
// that are removed as a whole once the vault or the spool has their last
// position. It is not safe for concurrent use: the sequencer's lock guards it.
type Journal struct {
	fs    vfs.FS
	dir   string
	file  vfs.File
	files []journalFile // oldest first; the last one is open if file != nil
	buf   []byte
}

// journalFile is one file and the last position that it holds.
type journalFile struct {
	name string
	last holdfast.Position
	size int64
}

// Open finds the journal's files in dir and returns their records, in
// order, through replay. A torn record at the very end was never acknowledged
// and is left out; any other that is not whole is damage, and ErrAccount.
func Open(fsys vfs.FS, dir string, replay func(Record) error) (*Journal, error) {
	if err := fsys.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("open journal %s: %w", dir, err)
	}
	names, err := fsys.List(dir)
	if err != nil {
		return nil, fmt.Errorf("open journal %s: %w", dir, err)
	}
	j := &Journal{fs: fsys, dir: dir}
	names = slices.DeleteFunc(names, func(name string) bool { return !strings.HasSuffix(name, journalSuffix) })
	for i, name := range names {
		f := journalFile{name: name}
		err := j.replayFile(&f, replay)
		if errors.Is(err, errTorn) && i == len(names)-1 {
			err = nil
		}
		if errors.Is(err, errTorn) {
			err = fmt.Errorf("%w: %w", ErrAccount, err)
		}
		if err != nil {
			return nil, fmt.Errorf("replay journal %s: %w", path.Join(dir, name), err)
		}
		j.files = append(j.files, f)
	}
	return j, nil
}

// replayFile hands on the records of one file. It fails with errTorn if the last
// one was not written as a whole, and with ErrAccount if a record was damaged
// later.
func (j *Journal) replayFile(jf *journalFile, replay func(Record) error) error {
	f, err := j.fs.Open(path.Join(j.dir, jf.name))
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return err
	}
	r := io.NewSectionReader(f, 0, size)
	for {
		rec, err := readRecord(r)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if errors.Is(err, errTorn) && recordAfter(f, jf.size+1, size, jf.last) {
			return fmt.Errorf("%w: record at %d is damaged", ErrAccount, jf.size)
		}
		if err != nil {
			return err
		}
		jf.last = rec.Position
		jf.size += int64(HeaderSize + len(rec.Payload))
		if err := replay(rec); err != nil {
			return err
		}
	}
}

// recordAfter says whether a whole record that follows the position is anywhere
// behind an offset: then what is before it was not torn by a crash.
func recordAfter(f io.ReaderAt, off, size int64, last holdfast.Position) bool {
	rest := make([]byte, max(0, size-off))
	if _, err := f.ReadAt(rest, off); err != nil && !errors.Is(err, io.EOF) {
		return true // not known
	}
	for ; len(rest) >= HeaderSize; rest = rest[1:] {
		n := int64(binary.LittleEndian.Uint32(rest[4:]))
		pos := holdfast.Position(binary.LittleEndian.Uint64(rest[16:]))
		if n > maxPayload || n > int64(len(rest)-HeaderSize) || pos <= last || pos > last+1<<32 {
			continue
		}
		if crc32.Checksum(rest[4:HeaderSize+n], castagnoli) == binary.LittleEndian.Uint32(rest) {
			return true
		}
	}
	return false
}

// ErrAccount says that the gateway's own account of what it has acknowledged is
// damaged: source and vault have to be compared.
var ErrAccount = errors.New("the gateway's account of changes is damaged")

// errTorn says that a record is not whole.
var errTorn = errors.New("torn journal record")

// readRecord decodes one record. It returns io.EOF at the end, errTorn for one
// that the file ends in, and ErrAccount for one that is there and not what was
// written.
func readRecord(r io.Reader) (Record, error) {
	var h [HeaderSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return Record{}, errTorn
		}
		return Record{}, err
	}
	n := binary.LittleEndian.Uint32(h[4:])
	if n > maxPayload {
		return Record{}, fmt.Errorf("%w: a record of %d bytes", ErrAccount, n)
	}
	rec := Record{
		Kind:     Kind(h[8]),
		Disk:     binary.LittleEndian.Uint16(h[10:]),
		Position: holdfast.Position(binary.LittleEndian.Uint64(h[16:])),
		Time:     time.Unix(0, int64(binary.LittleEndian.Uint64(h[24:]))),
		Offset:   int64(binary.LittleEndian.Uint64(h[32:])),
		Length:   int64(binary.LittleEndian.Uint64(h[40:])),
		Payload:  make([]byte, n),
	}
	if _, err := io.ReadFull(r, rec.Payload); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return Record{}, errTorn
		}
		return Record{}, err
	}
	sum := crc32.Update(crc32.Checksum(h[4:], castagnoli), castagnoli, rec.Payload)
	if sum != binary.LittleEndian.Uint32(h[:]) {
		return Record{}, fmt.Errorf("%w: a record's checksum is wrong", ErrAccount)
	}
	return rec, nil
}

// Append writes one record, so that it survives the death of the process. On an
// error the file is cut back to the record before, and nothing was kept.
func (j *Journal) Append(rec Record) error {
	if j.file == nil {
		if err := j.create(rec.Position); err != nil {
			return err
		}
	}
	j.buf = appendRecord(j.buf[:0], rec)
	cur := &j.files[len(j.files)-1]
	if _, err := j.file.WriteAt(j.buf, cur.size); err != nil {
		_ = j.file.Truncate(cur.size) // best effort: a torn tail is ignored by replay
		return fmt.Errorf("append to journal %s: %w", path.Join(j.dir, cur.name), err)
	}
	cur.size += int64(len(j.buf))
	cur.last = rec.Position
	return nil
}

func appendRecord(b []byte, rec Record) []byte {
	var h [HeaderSize]byte
	binary.LittleEndian.PutUint32(h[4:], uint32(len(rec.Payload)))
	h[8] = byte(rec.Kind)
	binary.LittleEndian.PutUint16(h[10:], rec.Disk)
	binary.LittleEndian.PutUint64(h[16:], uint64(rec.Position))
	binary.LittleEndian.PutUint64(h[24:], uint64(rec.Time.UnixNano()))
	binary.LittleEndian.PutUint64(h[32:], uint64(rec.Offset))
	binary.LittleEndian.PutUint64(h[40:], uint64(rec.Length))
	sum := crc32.Update(crc32.Checksum(h[4:], castagnoli), castagnoli, rec.Payload)
	binary.LittleEndian.PutUint32(h[:], sum)
	return append(append(b, h[:]...), rec.Payload...)
}

func (j *Journal) create(first holdfast.Position) error {
	name := first.String() + journalSuffix
	f, err := j.fs.Create(path.Join(j.dir, name))
	if err != nil {
		return fmt.Errorf("create journal file %s: %w", path.Join(j.dir, name), err)
	}
	j.file = f
	j.files = append(j.files, journalFile{name: name})
	return nil
}

// Rotate lets the next record begin a new file.
func (j *Journal) Rotate() error {
	if j.file == nil {
		return nil
	}
	err := j.file.Close()
	j.file = nil
	return err
}

// Release removes the closed files whose records are all at or before last.
func (j *Journal) Release(last holdfast.Position) error {
	for len(j.files) > 0 {
		if j.files[0].last > last || (len(j.files) == 1 && j.file != nil) {
			return nil
		}
		err := j.fs.Remove(path.Join(j.dir, j.files[0].name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("release journal: %w", err)
		}
		j.files = j.files[1:]
	}
	return nil
}

// Size returns the bytes that the journal holds.
func (j *Journal) Size() int64 {
	var n int64
	for _, f := range j.files {
		n += f.size
	}
	return n
}
