package main

import (
	"fmt"
	"io"
	"os"
)

// write writes a disk as it was at a position. The file is new.
func (s *stream) write(timeline uint32, position uint64, id string, f *os.File) error {
	t, ok := s.timelines[timeline]
	if !ok {
		return fmt.Errorf("there is no timeline %d", timeline)
	}
	if timeline > 1 && position <= t.forkAt {
		return s.write(t.Parent, position, id, f) // it has the disks of then
	}
	for at, p := timeline, position; ; { // the position's own timeline says whether it is kept
		if x := s.timelines[at]; at > 1 && p <= x.forkAt {
			at = x.Parent
			continue
		}
		if p > s.timelines[at].forkAt { // position 0 of timeline 1 is the empty disks
			if err := s.keeps(at, p); err != nil {
				return err
			}
		}
		break
	}
	had, err := s.build(timeline, position, id, f)
	if err == nil && !had {
		err = fmt.Errorf("there is no disk %s at this position", id)
	}
	return err
}

// build makes the disk, from where its timeline begins; it says whether it is there.
func (s *stream) build(timeline uint32, position uint64, id string, f *os.File) (bool, error) {
	t := s.timelines[timeline]
	if timeline > 1 {
		if position <= t.forkAt {
			return s.build(t.Parent, position, id, f)
		}
		had, err := s.build(t.Parent, t.forkAt, id, f)
		if err != nil {
			return false, err
		}
		if !had {
			if err := f.Truncate(0); err != nil {
				return false, err
			}
		}
	}
	here := false
	for _, d := range s.disksOf(timeline) {
		if d.ID == id {
			here = true
			if err := f.Truncate(d.Size); err != nil { // smaller, larger, or new: what is new is zero
				return false, err
			}
		}
	}
	if !here {
		return false, nil
	}
	reached := t.forkAt
	err := s.each(timeline, func(g *segment) error {
		for _, e := range g.entries {
			if e.position > position {
				break
			}
			reached = e.position
			if e.kind > 2 || e.disk != id {
				continue
			}
			if err := g.apply(e, f); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && reached < position {
		err = fmt.Errorf("timeline %d ends at %016x", timeline, reached)
	}
	return true, err
}

// apply does one entry.
func (g *segment) apply(e entry, f *os.File) error {
	if e.kind == 0 {
		b, err := g.data(e)
		if err == nil {
			_, err = f.WriteAt(b, e.from)
		}
		return err
	}
	zero := make([]byte, 1<<20)
	had := make([]byte, 1<<20)
	for off := e.from; off < e.from+e.length; off += int64(len(zero)) {
		n := min(int64(len(zero)), e.from+e.length-off)
		if _, err := f.ReadAt(had[:n], off); err != nil && err != io.EOF {
			return err
		}
		if string(had[:n]) == string(zero[:n]) {
			continue // so that the file stays sparse
		}
		if _, err := f.WriteAt(zero[:n], off); err != nil {
			return err
		}
	}
	return nil
}
