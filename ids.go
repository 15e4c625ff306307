package holdfast

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strconv"
)

// Position is a place in a stream: the number of its writes, zeroes and marks
// so far. Position 0 is before the first of them. Positions grow by one with
// each, never repeat within a timeline, and are comparable between a timeline
// and its forks up to the fork.
type Position uint64

// String returns the position as 16 hexadecimal digits, so that names sort.
func (p Position) String() string { return fmt.Sprintf("%016x", uint64(p)) }

// MarshalText returns String.
func (p Position) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText parses what String returns.
func (p *Position) UnmarshalText(text []byte) error {
	v, err := ParsePosition(string(text))
	*p = v
	return err
}

// ParsePosition parses 1 to 16 hexadecimal digits.
func ParsePosition(s string) (Position, error) {
	v, err := strconv.ParseUint(s, 16, 64)
	if err != nil || len(s) > 16 {
		return 0, fmt.Errorf("position %q: want up to 16 hexadecimal digits", s)
	}
	return Position(v), nil
}

// TimelineID names a timeline of a stream. The first timeline is 1; each fork
// takes the next number.
type TimelineID uint32

// String returns the timeline as 8 hexadecimal digits, so that names sort.
func (t TimelineID) String() string { return fmt.Sprintf("%08x", uint32(t)) }

// Generation is raised by each failover of an item and travels with every
// write to the vault. A writer of an older generation is fenced off. The first
// generation is 1.
type Generation uint32

// StreamID names a stream in a vault.
type StreamID [16]byte

// NewStreamID returns a random stream id.
func NewStreamID() StreamID {
	var id StreamID
	_, _ = rand.Read(id[:]) // never fails: crypto/rand aborts the program instead
	return id
}

// String returns 32 hexadecimal digits.
func (id StreamID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText returns String.
func (id StreamID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText parses what String returns.
func (id *StreamID) UnmarshalText(text []byte) error {
	v, err := ParseStreamID(string(text))
	*id = v
	return err
}

// ParseStreamID parses 32 hexadecimal digits.
func ParseStreamID(s string) (StreamID, error) {
	var id StreamID
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("stream id %q: want 32 hexadecimal digits", s)
	}
	copy(id[:], b)
	return id, nil
}
