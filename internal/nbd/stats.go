package nbd

import (
	"sync/atomic"
	"time"
)

// Stats are counts of an export over all its connections, those that have
// ended included.
type Stats struct {
	Connections int    `json:"connections"` // of now
	Requests    uint64 `json:"requests"`
	Errors      uint64 `json:"errors"` // requests answered with an error
	// BytesIn and BytesOut count what was written and read, without headers
	// and without zeroes and holes.
	BytesIn  uint64 `json:"bytes_in"`
	BytesOut uint64 `json:"bytes_out"`
	// Unanswered says how many requests wait for their answer now, as far as
	// they were read from the socket; OldestUnanswered is how long the oldest of
	// them has been waiting, 0 if there is none. An answer that the client
	// does not fetch counts as unanswered.
	Unanswered       int           `json:"unanswered"`
	OldestUnanswered time.Duration `json:"oldest_unanswered"`
}

// counters are the counts of an export that only grow.
type counters struct {
	requests, errors, in, out atomic.Uint64
}

// countersOf returns the counters of an export, which are made at first use.
func (s *Server) countersOf(name string) *counters {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.counts[name]
	if !ok {
		c = &counters{}
		s.counts[name] = c
	}
	return c
}

// Stats returns the counts of every export that was ever connected to.
func (s *Server) Stats() map[string]Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string]Stats, len(s.counts))
	for name := range s.counts {
		all[name] = s.statsLocked(name)
	}
	return all
}

// ExportStats returns the counts of one export. It takes no time: a supervisor
// may ask often.
func (s *Server) ExportStats(name string) Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.statsLocked(name)
}

func (s *Server) statsLocked(name string) Stats {
	var st Stats
	if c := s.counts[name]; c != nil {
		st.Requests, st.Errors = c.requests.Load(), c.errors.Load()
		st.BytesIn, st.BytesOut = c.in.Load(), c.out.Load()
	}
	oldest := int64(0)
	for c := range s.conns {
		if !c.exported || c.peer.Export != name {
			continue
		}
		st.Connections++
		for i := range c.since {
			if t := c.since[i].Load(); t != 0 {
				st.Unanswered++
				if oldest == 0 || t < oldest {
					oldest = t
				}
			}
		}
	}
	if oldest != 0 {
		st.OldestUnanswered = max(time.Duration(s.now()-oldest), 1)
	}
	return st
}
