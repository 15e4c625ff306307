package httpd

import (
	"context"

	"github.com/holdfast-dr/holdfast/api"
)

// GroupPath names a replication group in a path. The framework wants it exported
// where it is embedded.
type GroupPath struct {
	Group string `path:"group" maxLength:"64" pattern:"^[A-Za-z0-9][A-Za-z0-9._-]*$" doc:"A group's name"`
}

func groupRoutes(b *builder) {
	svc := b.server.opts.Service
	handle(b, "list-groups", func(ctx context.Context, _ *none) (*answer[api.GroupList], error) {
		return reply(svc.Groups.ListGroups(ctx))
	})
	handle(b, "get-group", func(ctx context.Context, in *GroupPath) (*answer[api.Group], error) {
		return reply(svc.Groups.GetGroup(ctx, in.Group))
	})
	type changeInput struct {
		GroupPath
		Body api.ChangeGroup
	}
	handle(b, "change-group", func(ctx context.Context, in *changeInput) (*answer[api.Group], error) {
		return reply(svc.Groups.ChangeGroup(ctx, in.Group, in.Body))
	})
	type pointInput struct {
		GroupPath
		Body api.MakePoint
	}
	handle(b, "make-group-point", func(ctx context.Context, in *pointInput) (*accepted, error) {
		return accept(svc.Groups.MakeGroupPoint(ctx, in.Group, in.Body))
	})
}
