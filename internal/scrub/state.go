package scrub

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// State is how far the scrub of a machine is. A round is all of its disks once.
type State struct {
	Began     time.Time `json:"began"`               // the round
	Done      int64     `json:"done"`                // bytes of the round
	Total     int64     `json:"total"`               // bytes of all disks
	Skipped   int64     `json:"skipped"`             // bytes of the round that were written meanwhile, and not compared
	Completed time.Time `json:"completed,omitzero"`  // when the last whole round ended; zero: none has
	Rounds    int       `json:"rounds"`              // that have ended
	Hurry     bool      `json:"hurry,omitempty"`     // the round goes on without waiting
	Lost      []Loss    `json:"lost,omitempty"`      // oldest first, at most maxLost
	Suspected []Suspect `json:"suspected,omitempty"` // a disk is compared as a whole because of them
	Resynced  bool      `json:"resynced,omitempty"`  // that has begun
	Problem   string    `json:"problem,omitempty"`   // why nothing is compared at the moment
}

// Loss is a change that the vault had not.
type Loss struct {
	Disk   string         `json:"disk"`
	Parts  []block.Extent `json:"parts"` // at most maxParts
	Bytes  int64          `json:"bytes"`
	Found  time.Time      `json:"found"`
	Healed bool           `json:"healed"` // the vault has it now
	// Since is when the round before began, in which the vault still had what the disk
	// has; zero: it was never compared before.
	Since time.Time `json:"since,omitzero"`
}

// Suspect is a block that differed each time that it was looked at.
type Suspect struct {
	Disk string `json:"disk"`
	Difference
}

const (
	maxLost  = 20
	maxParts = 16
	// maxSuspects is how many blocks are kept of those that differ: the disk is compared
	// as a whole for one as for all.
	maxSuspects = 4096
)

// Losses returns what was found lost since the last whole round that found nothing
// had begun: as long as there is any, no round has shown that all is well again.
func (s State) Losses() []Loss {
	var out []Loss
	for _, l := range s.Lost {
		if s.Completed.IsZero() || l.Found.After(s.Completed) || !l.Healed {
			out = append(out, l)
		}
	}
	return out
}

// load reads the state; none, or one that cannot be read, is a new beginning.
func load(fsys vfs.FS, name string) (s State, err error) {
	f, err := fsys.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, nil
	}
	if err != nil {
		return s, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return s, err
	}
	b := make([]byte, size)
	if _, err := f.ReadAt(b, 0); err != nil {
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return State{}, fmt.Errorf("%s is damaged: %w", name, err)
	}
	return s, nil
}

func save(fsys vfs.FS, name string, s State) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return vfs.WriteFileAtomic(fsys, name, b)
}

// losses makes one loss for each disk of what was suspected.
func losses(of []Suspect, now, since time.Time, healed bool) []Loss {
	var out []Loss
	for _, s := range of {
		if n := len(out); n == 0 || out[n-1].Disk != s.Disk {
			out = append(out, Loss{Disk: s.Disk, Found: now, Since: since, Healed: healed})
		}
		l := &out[len(out)-1]
		l.Bytes += BlockSize
		if n := len(l.Parts); n > 0 && l.Parts[n-1].End() == s.Offset {
			l.Parts[n-1].Length += BlockSize
		} else if n < maxParts {
			l.Parts = append(l.Parts, block.Extent{Offset: s.Offset, Length: BlockSize})
		}
	}
	return out
}
