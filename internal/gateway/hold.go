package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// ErrNotHeld says that a hold is not there, or is over.
var ErrNotHeld = errors.New("the hold is over")

// MaxHold is the longest time for which machines may be held: writes of guests
// wait meanwhile.
const MaxHold = time.Second

// Hold asks a gateway to take no write of some items for a moment, while other
// gateways do the same: what is marked in all of them while all are held is one
// moment, whatever their clocks say.
type Hold struct {
	ID    string        `json:"id"` // nobody else's
	Items []string      `json:"items"`
	Bound time.Duration `json:"bound_ns"` // after which it ends by itself; at most MaxHold
}

// HeldMark asks for a recovery point in all items of a hold.
type HeldMark struct {
	ID          string               `json:"id"` // the hold's
	Name        string               `json:"name"`
	Group       string               `json:"group"`
	Consistency holdfast.Consistency `json:"consistency"`
}

// holdRequest is a Hold to the ingest.
type holdRequest struct {
	ID      string              `json:"id"`
	Streams []holdfast.StreamID `json:"streams"`
	Bound   time.Duration       `json:"bound_ns"`
}

// markRequest is a HeldMark to the ingest.
type markRequest struct {
	ID   string     `json:"id"`
	Mark vault.Mark `json:"mark"`
}

// Hold holds items until Release, or until the bound. It fails, and holds nothing,
// if one of them is not in sync. All are held on return.
func (c *Client) Hold(ctx context.Context, h Hold) error {
	return c.control.call(ctx, "POST", "/v1/holds", h, nil)
}

// MarkHeld makes a recovery point of all items of a hold. It fails with ErrNotHeld,
// and makes none, if the hold has not lasted until then. The points are placed on
// return, in the vault a moment later.
func (c *Client) MarkHeld(ctx context.Context, m HeldMark) (GroupPointReply, error) {
	var out GroupPointReply
	err := c.control.call(ctx, "POST", "/v1/holds/mark", m, &out)
	return out, err
}

// Release ends a hold; it is no error if it is over.
func (c *Client) Release(ctx context.Context, id string) error {
	return c.control.call(ctx, "POST", "/v1/holds/release", Hold{ID: id}, nil)
}

func (s *Supervisor) handleHolds(mux *http.ServeMux) {
	mux.HandleFunc("POST /v1/holds", func(w http.ResponseWriter, r *http.Request) {
		var h Hold
		if decode(w, r, &h) {
			reply(w, struct{}{}, s.hold(r.Context(), h))
		}
	})
	mux.HandleFunc("POST /v1/holds/mark", func(w http.ResponseWriter, r *http.Request) {
		var m HeldMark
		if !decode(w, r, &m) {
			return
		}
		var out GroupPointReply
		mark := vault.Mark{Kind: vault.MarkPoint, Name: m.Name, Group: m.Group, Consistency: vault.Consistency(m.Consistency)}
		err := newControl(s.child.socket).call(r.Context(), "POST", "/holds/mark", markRequest{m.ID, mark}, &out)
		reply(w, out, err)
	})
	mux.HandleFunc("POST /v1/holds/release", func(w http.ResponseWriter, r *http.Request) {
		var h Hold
		if decode(w, r, &h) {
			reply(w, struct{}{}, newControl(s.child.socket).call(r.Context(), "POST", "/holds/release", holdRequest{ID: h.ID}, nil))
		}
	})
}

func (s *Supervisor) hold(ctx context.Context, h Hold) error {
	if h.ID == "" || len(h.Items) == 0 || h.Bound <= 0 || h.Bound > MaxHold {
		return fmt.Errorf("a hold names no items, or is not for 1 ns to %s", MaxHold)
	}
	req := holdRequest{ID: h.ID, Bound: h.Bound}
	for _, item := range h.Items {
		r, err := s.lookup(item)
		if err != nil {
			return err
		}
		req.Streams = append(req.Streams, r.order.Stream)
	}
	return newControl(s.child.socket).call(ctx, "POST", "/holds", req, nil)
}

// held are streams that take no write: the locks of their orders are held.
type held struct {
	mu      sync.Mutex
	streams []*served
	over    bool
	timer   *time.Timer
}

// holds are what an ingest holds, by id.
type holds struct {
	mu  sync.Mutex
	all map[string]*held
}

func (h *holds) put(id string, n *held) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all == nil {
		h.all = map[string]*held{}
	}
	if h.all[id] != nil {
		return fmt.Errorf("hold %s is there already", id)
	}
	h.all[id] = n
	return nil
}

func (h *holds) get(id string) *held {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.all[id]
}

func (h *holds) drop(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.all, id)
}

func (g *Ingest) handleHolds(mux *http.ServeMux) {
	mux.HandleFunc("POST /holds", func(w http.ResponseWriter, r *http.Request) {
		var req holdRequest
		if decode(w, r, &req) {
			reply(w, struct{}{}, g.hold(req))
		}
	})
	mux.HandleFunc("POST /holds/mark", func(w http.ResponseWriter, r *http.Request) {
		var req markRequest
		if decode(w, r, &req) {
			at, err := g.markHeld(req)
			reply(w, GroupPointReply{Time: at}, err)
		}
	})
	mux.HandleFunc("POST /holds/release", func(w http.ResponseWriter, r *http.Request) {
		var req holdRequest
		if decode(w, r, &req) {
			g.release(req.ID)
			reply(w, struct{}{}, nil)
		}
	})
}

// lockAll locks the orders of streams, after which none of them takes a write, and
// looks whether all are in sync. On an error none is locked.
func (g *Ingest) lockAll(ids []holdfast.StreamID) ([]*served, error) {
	ids = slices.Clone(ids)
	slices.SortFunc(ids, func(a, b holdfast.StreamID) int { return strings.Compare(a.String(), b.String()) }) // so that no two wait for each other
	var all []*served
	for _, id := range slices.Compact(ids) {
		sv, err := g.lookup(id)
		if err != nil {
			return nil, err
		}
		all = append(all, sv)
	}
	for _, sv := range all {
		sv.mu.Lock()
	}
	for _, sv := range all {
		err := sv.refuse()
		if err == nil && !sv.consistent {
			err = errors.New("it is not in sync with its machine at the moment")
		}
		if err != nil {
			unlockAll(all)
			return nil, fmt.Errorf("stream %s: %w", sv.opts.Stream.ID(), err)
		}
	}
	return all, nil
}

func unlockAll(all []*served) {
	for _, sv := range all {
		sv.mu.Unlock()
	}
}

// hold takes no write of some streams until release, or until the bound.
func (g *Ingest) hold(req holdRequest) error {
	h := &held{}
	if err := g.holds.put(req.ID, h); err != nil {
		return err
	}
	all, err := g.lockAll(req.Streams)
	if err != nil {
		g.holds.drop(req.ID)
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.streams = all
	h.timer = time.AfterFunc(min(req.Bound, MaxHold), func() { g.release(req.ID) })
	return nil
}

// markHeld puts a mark in all streams of a hold that has not ended, and returns a
// time that is not after any of the marks.
func (g *Ingest) markHeld(req markRequest) (time.Time, error) {
	h := g.holds.get(req.ID)
	if h == nil {
		return time.Time{}, ErrNotHeld
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over || h.streams == nil {
		return time.Time{}, ErrNotHeld
	}
	at := g.clock.Now()
	for _, sv := range h.streams {
		if err := sv.pointLocked(req.Mark); err != nil {
			return at, err
		}
	}
	return at, nil
}

// release ends a hold.
func (g *Ingest) release(id string) {
	h := g.holds.get(id)
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over || h.streams == nil {
		return
	}
	h.over = true
	h.timer.Stop()
	unlockAll(h.streams)
	g.holds.drop(id)
}
