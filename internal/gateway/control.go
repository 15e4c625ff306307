package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/scrub"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// maxControlBody bounds a request or reply on a control socket, in bytes.
const maxControlBody = 4 << 20

// Heartbeat is the ingest's answer to its supervisor.
type Heartbeat struct {
	// Oldest is for how long the oldest write has not been answered.
	Oldest time.Duration `json:"oldest_ns"`
}

// StreamStatus is how the ingest of one stream fares.
type StreamStatus struct {
	Stream     holdfast.StreamID       `json:"stream"`
	Clock      time.Time               `json:"clock"` // the gateway's time, of now
	Consistent bool                    `json:"consistent"`
	Disks      map[string]IngestedDisk `json:"disks"`
	Counts     Counts                  `json:"counts"`
	Backlog    int64                   `json:"backlog_bytes"`
	Position   holdfast.Position       `json:"position"`
	AsOf       time.Time               `json:"as_of"`
	Code       string                  `json:"code"`
	Problem    string                  `json:"problem"`
	Since      time.Time               `json:"since,omitzero"`
}

// IngestedDisk is the connection of one disk.
type IngestedDisk struct {
	Epoch     uint64 `json:"epoch"`
	Connected bool   `json:"connected"`
	Ready     bool   `json:"ready"`
	Synced    bool   `json:"synced"`
}

// diskRequest names a disk of a stream, and the connection meant.
type diskRequest struct {
	Disk  string `json:"disk"`
	Epoch uint64 `json:"epoch"`
}

// confirmRequest says what was seen of a machine's mirror; see stream.confirm.
type confirmRequest struct {
	At     time.Time         `json:"at"`
	Epochs map[string]uint64 `json:"epochs"` // by disk
}

// pointRequest asks for a recovery point.
type pointRequest struct {
	Name        string            `json:"name"`
	Consistency vault.Consistency `json:"consistency,omitempty"` // empty: crash
	NoWait      bool              `json:"no_wait,omitempty"`     // it need not be in the vault yet
}

// Handler serves the control socket of an ingest. Only its parent uses it.
func (g *Ingest) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /heartbeat", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, Heartbeat{Oldest: g.oldest()}, nil)
	})
	mux.HandleFunc("PUT /streams", func(w http.ResponseWriter, r *http.Request) {
		var req OpenRequest
		if decode(w, r, &req) {
			out, err := g.Open(r.Context(), req)
			reply(w, out, err)
		}
	})
	mux.HandleFunc("GET /streams/{id}", g.withStream(func(sv *served, _ *http.Request) (any, error) {
		return sv.status(), nil
	}))
	mux.HandleFunc("DELETE /streams/{id}", g.withStream(func(sv *served, _ *http.Request) (any, error) {
		g.Close(sv.opts.Stream.ID())
		return struct{}{}, nil
	}))
	mux.HandleFunc("POST /streams/{id}/begin", g.withStream(func(sv *served, _ *http.Request) (any, error) {
		return struct{}{}, sv.begin()
	}))
	mux.HandleFunc("POST /streams/{id}/synced", g.withStream(func(sv *served, r *http.Request) (any, error) {
		var req diskRequest
		if err := decodeBody(r, &req); err != nil {
			return nil, err
		}
		return struct{}{}, sv.synced(req.Disk, req.Epoch)
	}))
	mux.HandleFunc("POST /streams/{id}/confirm", g.withStream(func(sv *served, r *http.Request) (any, error) {
		var req confirmRequest
		if err := decodeBody(r, &req); err != nil {
			return nil, err
		}
		return struct{}{}, sv.confirm(req.At, req.Epochs)
	}))
	mux.HandleFunc("POST /streams/{id}/cut", g.withStream(func(sv *served, r *http.Request) (any, error) {
		var req diskRequest
		if err := decodeBody(r, &req); err != nil {
			return nil, err
		}
		return struct{}{}, sv.cutOff(req.Disk)
	}))
	mux.HandleFunc("POST /streams/{id}/point", g.withStream(func(sv *served, r *http.Request) (any, error) {
		var req pointRequest
		if err := decodeBody(r, &req); err != nil {
			return nil, err
		}
		return sv.point(r.Context(), req)
	}))
	g.handleGroup(mux)
	g.handleCompare(mux)
	g.handleHolds(mux)
	return mux
}

// withStream finds the stream that a request names.
func (g *Ingest) withStream(f func(*served, *http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		id, err := holdfast.ParseStreamID(r.PathValue("id"))
		if err != nil {
			reply(w, nil, err)
			return
		}
		sv, err := g.lookup(id)
		if err != nil {
			reply(w, nil, err)
			return
		}
		out, err := f(sv, r)
		reply(w, out, err)
	}
}

// oldest returns for how long the oldest request of any stream waits.
func (g *Ingest) oldest() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	var oldest time.Duration
	for _, sv := range g.streams {
		oldest = max(oldest, sv.oldestRequest())
	}
	return oldest
}

// status returns how the stream fares.
func (s *stream) status() StreamStatus {
	st := StreamStatus{Stream: s.opts.Stream.ID(), Clock: s.opts.Now(), Disks: map[string]IngestedDisk{}, Backlog: s.backlog()}
	waits := s.oldestQueued()
	s.mu.Lock()
	st.Consistent, st.Counts = s.consistent, s.counts
	switch {
	case s.full:
		st.Code, st.Problem = CodeBacklog, errBacklog.Error()
	case waits > commitPatience && s.opts.Limit.Waiting():
		st.Code, st.Problem = CodeBandwidth, fmt.Sprintf("what goes to the vault is held to %d KiB/s; %d MiB wait, the oldest for %s", s.opts.Limit.Rate()>>10, st.Backlog>>20, waits.Round(time.Second))
	case waits > commitPatience:
		st.Code, st.Problem = CodeVaultUnreachable, fmt.Sprintf("the vault has not taken a segment for %s", waits.Round(time.Second))
	case s.dropped != nil && !s.consistent:
		st.Code, st.Problem = CodeIngest, "the source was cut off: "+s.dropped.Error()
	}
	for id, d := range s.disks {
		st.Disks[id] = IngestedDisk{Epoch: d.epoch, Connected: d.conn != 0, Ready: d.ready, Synced: d.synced}
	}
	s.mu.Unlock()
	s.smu.Lock()
	defer s.smu.Unlock()
	st.Position, st.AsOf = s.committed(), s.progress.asOf
	if s.progress.code != "" {
		st.Code, st.Problem, st.Since = s.progress.code, s.progress.problem, s.progress.since
	}
	return st
}

// isFresh says whether the stream has not begun.
func (s *stream) isFresh() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fresh
}

// cutOff ends the connection of a disk.
func (s *stream) cutOff(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.disks[id]
	if !ok {
		return fmt.Errorf("disk %q: %w", id, ErrUnknownDisk)
	}
	d.drop(errors.New("cut off by the supervisor"))
	return nil
}

// PointReply says where a recovery point was made.
type PointReply struct {
	Position   holdfast.Position `json:"position"`
	Consistent bool              `json:"consistent"`
}

// point makes everything received so far a recovery point and waits, if that is
// wanted, until the vault has it.
func (s *stream) point(ctx context.Context, req pointRequest) (PointReply, error) {
	if req.Consistency == "" {
		req.Consistency = vault.CrashConsistent
	}
	s.mu.Lock()
	out := PointReply{Consistent: s.consistent}
	var err error
	if s.consistent {
		err = s.pointLocked(vault.Mark{Kind: vault.MarkPoint, Name: req.Name, Consistency: req.Consistency})
	}
	out.Position = s.opts.Writer.Next() - 1
	s.mu.Unlock()
	wake(s.kick)
	if err != nil || req.NoWait {
		return out, err
	}
	for s.committed() < out.Position {
		if !sleep(ctx, 5*time.Millisecond) {
			return out, fmt.Errorf("wait for the vault to have position %s: %w", out.Position, context.Cause(ctx))
		}
	}
	return out, nil
}

// problem is an error on a control socket.
type problem struct {
	Error string `json:"error"`
	Code  string `json:"code,omitempty"`
}

// The codes by which errors keep their identity across a control socket.
var controlCodes = map[string]error{
	"stale_epoch": ErrStaleEpoch,
	"fenced":      vault.ErrFenced,
	"not_found":   ErrUnknownOrder,
	"not_held":    ErrNotHeld,
	"not_now":     scrub.ErrNotNow,
}

func reply(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		p := problem{Error: err.Error()}
		for code, is := range controlCodes {
			if errors.Is(err, is) {
				p.Code = code
			}
		}
		w.WriteHeader(http.StatusUnprocessableEntity)
		v = p
	}
	_ = json.NewEncoder(w).Encode(v) // the peer has gone; nobody is left to be told
}

func decode(w http.ResponseWriter, r *http.Request, v any) bool {
	if err := decodeBody(r, v); err != nil {
		reply(w, nil, err)
		return false
	}
	return true
}

func decodeBody(r *http.Request, v any) error {
	dec := json.NewDecoder(io.LimitReader(r.Body, maxControlBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("decode request: %w", err)
	}
	return nil
}

// control is the client of a control socket.
type control struct {
	http *http.Client
}

// newControl returns a client of the unix socket.
func newControl(socket string) *control {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &control{http: &http.Client{Transport: &http.Transport{DialContext: dial, MaxIdleConns: 4, IdleConnTimeout: time.Minute}}}
}

// call sends a request and decodes the reply into out.
func (c *control) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://gateway"+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(io.LimitReader(resp.Body, maxControlBody))
	if resp.StatusCode == http.StatusOK {
		if out == nil {
			return nil
		}
		return dec.Decode(out)
	}
	var p problem
	if err := dec.Decode(&p); err != nil {
		return fmt.Errorf("gateway answered %s", resp.Status)
	}
	if is, ok := controlCodes[p.Code]; ok {
		return &remoteError{text: p.Error, is: is}
	}
	return errors.New(p.Error)
}

// remoteError is an error of the other side, with its identity.
type remoteError struct {
	text string
	is   error
}

// Error returns the other side's text.
func (e *remoteError) Error() string { return e.text }

// Unwrap returns the identity.
func (e *remoteError) Unwrap() error { return e.is }
