package api

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Group is a replication group: items that can be recovered to one moment that is
// the same for all of them.
type Group struct {
	Name    string       `json:"name" doc:"Its name"`
	Items   []string     `json:"items" nullable:"false" doc:"The names of its items"`
	Newest  *time.Time   `json:"newest,omitempty" doc:"The newest moment to which all of them can be recovered together"`
	Problem string       `json:"problem,omitempty" doc:"Why there is none"`
	Points  []GroupPoint `json:"points" nullable:"false" doc:"The recovery points that they have in common, newest first; missing in lists"`
}

// GroupPoint is a recovery point of all items of a group.
type GroupPoint struct {
	ID          string    `json:"id" doc:"Its id, the same with all items"`
	Name        string    `json:"name,omitempty" doc:"Its name"`
	Time        time.Time `json:"time" doc:"The moment that it stands for"`
	Consistency string    `json:"consistency" enum:"crash,app" doc:"What a recovered machine finds"`
}

// GroupList is replication groups.
type GroupList struct {
	Groups []Group `json:"groups" nullable:"false" doc:"Sorted by name"`
}

// ChangeGroup has items join or leave a group. A group that has no items any more
// is no group any more.
type ChangeGroup struct {
	Add    []string `json:"add,omitempty" nullable:"false" maxItems:"64" doc:"Items, by id or name"`
	Remove []string `json:"remove,omitempty" nullable:"false" maxItems:"64" doc:"Items, by id or name"`
}

// CommonPoint asks for recovery points of several items that are one moment.
type CommonPoint struct {
	Time  time.Time // not after; zero: the newest
	App   bool      // application-consistent
	Fresh bool      // first take in what was received
}

// CommonMoment is recovery points that are one moment.
type CommonMoment struct {
	Time   time.Time
	Group  string           // of a point that was made for all of them; empty: a moment between such
	Points map[string]Point // by the item's id
}

// Groups returns all replication groups.
func (c *Client) Groups(ctx context.Context) (out GroupList, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/groups", nil, &out)
}

// Group returns one replication group, with its points.
func (c *Client) Group(ctx context.Context, group string) (out Group, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/groups/"+url.PathEscape(group), nil, &out)
}

// ChangeGroup has items join or leave a group.
func (c *Client) ChangeGroup(ctx context.Context, group string, change ChangeGroup) (out Group, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/groups/"+url.PathEscape(group), change, &out)
}

// MakeGroupPoint starts a recovery point of all items of a group.
func (c *Client) MakeGroupPoint(ctx context.Context, group string, point MakePoint) (out Job, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/groups/"+url.PathEscape(group)+"/points", point, &out)
}
