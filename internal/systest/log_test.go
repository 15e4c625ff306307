package systest

import (
	"io"
	"sync"
)

// syncWriter lets many goroutines write.
type syncWriter struct {
	mu sync.Mutex
	w  io.Writer
}

// Write writes p as a whole.
func (s *syncWriter) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}
