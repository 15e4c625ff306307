package gateway

import (
	"context"
	"errors"
	"net/http"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// GroupPoint asks for a recovery point of several items that is one moment for
// all of them.
type GroupPoint struct {
	Items       []string             `json:"items"`
	Name        string               `json:"name"`
	Group       string               `json:"group"` // the same in all of these points, and in no other
	Consistency holdfast.Consistency `json:"consistency"`
}

// GroupPointReply says where such a point is.
type GroupPointReply struct {
	Time time.Time `json:"time"` // by the gateway's clock
}

// groupRequest is a GroupPoint to the ingest.
type groupRequest struct {
	Streams []holdfast.StreamID `json:"streams"`
	Mark    vault.Mark          `json:"mark"`
}

// GroupPoint makes everything received so far of several items a recovery point
// that is one moment for all. It fails, and makes none, if one of the items is not
// in sync. The points are placed on return, in the vault a moment later.
func (c *Client) GroupPoint(ctx context.Context, p GroupPoint) (GroupPointReply, error) {
	var out GroupPointReply
	err := c.control.call(ctx, "POST", "/v1/points", p, &out)
	return out, err
}

func (s *Supervisor) handleGroup(mux *http.ServeMux) {
	mux.HandleFunc("POST /v1/points", func(w http.ResponseWriter, r *http.Request) {
		var p GroupPoint
		if !decode(w, r, &p) {
			return
		}
		out, err := s.groupPoint(r.Context(), p)
		reply(w, out, err)
	})
}

func (s *Supervisor) groupPoint(ctx context.Context, p GroupPoint) (GroupPointReply, error) {
	if p.Group == "" || len(p.Items) == 0 {
		return GroupPointReply{}, errors.New("a point of a group names no group or no items")
	}
	req := groupRequest{Mark: vault.Mark{Kind: vault.MarkPoint, Name: p.Name, Group: p.Group, Consistency: vault.Consistency(p.Consistency)}}
	for _, item := range p.Items {
		r, err := s.lookup(item)
		if err != nil {
			return GroupPointReply{}, err
		}
		req.Streams = append(req.Streams, r.order.Stream)
	}
	var out GroupPointReply
	err := newControl(s.child.socket).call(ctx, "POST", "/points", req, &out)
	return out, err
}

func (g *Ingest) handleGroup(mux *http.ServeMux) {
	mux.HandleFunc("POST /points", func(w http.ResponseWriter, r *http.Request) {
		var req groupRequest
		if !decode(w, r, &req) {
			return
		}
		at, err := g.markAll(req)
		reply(w, GroupPointReply{Time: at}, err)
	})
}

// markAll puts a mark of one time in several streams, while none of them takes a
// write: for as long as that takes, which is microseconds.
func (g *Ingest) markAll(req groupRequest) (time.Time, error) {
	all, err := g.lockAll(req.Streams)
	if err != nil {
		return time.Time{}, err
	}
	defer unlockAll(all)
	for _, sv := range all {
		if err := sv.pointLocked(req.Mark); err != nil {
			return time.Time{}, err
		}
	}
	return g.clock.Now(), nil // not before any of the marks, and before whatever is written next
}
