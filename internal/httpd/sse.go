package httpd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"golang.org/x/sync/errgroup"
)

// writeTimeout is how long a client may take to receive one event. One that
// takes longer is cut off and may come back with Last-Event-ID.
const writeTimeout = 20 * time.Second

// errStreamDone ends a stream that has nothing more to tell.
var errStreamDone = errors.New("stream is done")

// stream is one answer of server-sent events. Safe for concurrent use.
type stream struct {
	// mu guards what follows: events and heartbeats come from two goroutines.
	mu      sync.Mutex
	w       http.ResponseWriter
	control *http.ResponseController
}

// send writes one event and flushes it. An id of 0 is left out.
func (s *stream) send(event string, id uint64, data any) error {
	body, err := json.Marshal(neverNull(data))
	if err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	head := "event: " + event + "\n"
	if id != 0 {
		head += fmt.Sprintf("id: %d\n", id)
	}
	return s.write(head + "data: " + string(body) + "\n\n")
}

func (s *stream) write(text string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.control.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	if _, err := s.w.Write([]byte(text)); err != nil {
		return err
	}
	return s.control.Flush()
}

// serveStream answers with server-sent events: feed sends them until it
// returns or its context ends, which it does when the client has gone or the
// server stops; between them a comment is sent at every heartbeat, so that
// both sides notice a dead connection.
func (s *Server) serveStream(hctx huma.Context, feed func(ctx context.Context, out *stream) error) {
	r, w := humago.Unwrap(hctx)
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // nginx would hold events back
	out := &stream{w: w, control: http.NewResponseController(w)}
	// The server's own limits are for answers that end by themselves.
	_ = out.control.SetReadDeadline(time.Time{})
	hctx.SetStatus(http.StatusOK)
	if err := out.write("retry: 2000\n\n"); err != nil {
		return
	}
	group, ctx := errgroup.WithContext(r.Context())
	group.Go(func() error {
		if err := feed(ctx, out); err != nil {
			return err
		}
		return errStreamDone
	})
	group.Go(func() error {
		tick := time.NewTicker(s.opts.Heartbeat)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-s.stopping:
				return errStreamDone
			case <-tick.C:
				if err := out.write(": still here\n\n"); err != nil {
					return err
				}
			}
		}
	})
	if err := group.Wait(); err != nil && !errors.Is(err, errStreamDone) && r.Context().Err() == nil {
		s.log.Info("event stream broke off", "path", r.URL.Path, "error", err)
	}
}
