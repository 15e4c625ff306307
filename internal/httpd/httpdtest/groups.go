package httpdtest

import (
	"context"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/httpd"
)

var _ httpd.Groups = (*World)(nil)

// town is the one group of a world.
func (w *World) town() api.Group {
	newest := w.Now
	return api.Group{Name: "town", Items: []string{"mail", "web1"}, Newest: &newest, Points: []api.GroupPoint{{ID: "g-1", Name: "noon", Time: w.Now, Consistency: "app"}}}
}

// ListGroups implements httpd.Groups.
func (w *World) ListGroups(context.Context) (api.GroupList, error) {
	return api.GroupList{Groups: []api.Group{w.town()}}, w.call("ListGroups")
}

// GetGroup implements httpd.Groups.
func (w *World) GetGroup(_ context.Context, group string) (api.Group, error) {
	if err := w.call("GetGroup", group); err != nil {
		return api.Group{}, err
	}
	if group != "town" {
		return api.Group{}, notFound("group", group)
	}
	return w.town(), nil
}

// ChangeGroup implements httpd.Groups.
func (w *World) ChangeGroup(_ context.Context, group string, change api.ChangeGroup) (api.Group, error) {
	return w.town(), w.call("ChangeGroup", group, change)
}

// MakeGroupPoint implements httpd.Groups.
func (w *World) MakeGroupPoint(_ context.Context, group string, point api.MakePoint) (api.Job, error) {
	if err := w.call("MakeGroupPoint", group, point); err != nil {
		return api.Job{}, err
	}
	return w.startJob("group_point", ""), nil
}
