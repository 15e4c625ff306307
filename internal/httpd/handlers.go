package httpd

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/auth"
)

// none is an input or output without anything in it.
type none struct{}

// answer is an output with a body alone.
type answer[T any] struct{ Body T }

// accepted is the output of what starts a job.
type accepted struct {
	Location string `header:"Location" doc:"Where the job is"`
	Body     api.Job
}

func accept(job api.Job, err error) (*accepted, error) {
	if err != nil {
		return nil, err
	}
	return &accepted{Location: "/v1/jobs/" + job.ID, Body: job}, nil
}

func reply[T any](body T, err error) (*answer[T], error) {
	if err != nil {
		return nil, err
	}
	return &answer[T]{Body: body}, nil
}

// rawAnswer is an output that is not JSON of the api's types.
type rawAnswer struct {
	ContentType string `header:"Content-Type"`
	Policy      string `header:"Content-Security-Policy"`
	Body        []byte
}

func systemRoutes(b *builder) {
	s := b.server
	handle(b, "get-health", func(ctx context.Context, _ *none) (*answer[api.ServerHealth], error) {
		health := s.opts.Service.Health.CheckHealth(ctx)
		if requestOf(ctx).token.ID == "" {
			health.Components = nil // what the server is made of is not for strangers
		}
		return reply(health, nil)
	})
	handle(b, "get-docs", func(context.Context, *none) (*rawAnswer, error) {
		return &rawAnswer{ContentType: "text/html; charset=utf-8", Body: s.docs,
			Policy: "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"}, nil
	})
	handle(b, "get-openapi", func(context.Context, *none) (*rawAnswer, error) {
		return &rawAnswer{ContentType: "application/vnd.oai.openapi+json;version=3.1", Body: s.spec}, nil
	})
	handle(b, "get-version", func(context.Context, *none) (*answer[api.ServerVersion], error) {
		version := s.opts.Version
		version.Time = s.opts.Now().UTC()
		return reply(version, nil)
	})
	type eventsInput struct {
		LastEventID string `header:"Last-Event-ID" pattern:"^[0-9]{0,20}$" doc:"The last event that was received: go on after it"`
		After       uint64 `query:"after" doc:"The same, for clients that cannot set headers"`
	}
	handleStream(b, "watch-events", "event", api.Event{}, func(_ context.Context, in *eventsInput) (func(context.Context, *stream) error, error) {
		after := in.After
		if in.LastEventID != "" {
			id, err := strconv.ParseUint(in.LastEventID, 10, 64)
			if err != nil {
				return nil, &api.Problem{Code: api.CodeInvalid, Detail: "the header Last-Event-ID is not a number"}
			}
			after = id
		}
		return func(ctx context.Context, out *stream) error {
			return s.opts.Service.Events.FollowEvents(ctx, after, func(e api.Event) error { return out.send("event", e.ID, e) })
		}, nil
	})
}

// sitePath names a site in a path.
type sitePath struct {
	Site string `path:"site" maxLength:"128" pattern:"^[A-Za-z0-9][A-Za-z0-9._-]*$" doc:"A site's id or name"`
}

func siteRoutes(b *builder) {
	svc := b.server.opts.Service
	handle(b, "list-sites", func(ctx context.Context, _ *none) (*answer[api.SiteList], error) {
		sites, err := svc.Sites.ListSites(ctx)
		return reply(api.SiteList{Sites: sites}, err)
	})
	handle(b, "get-site", func(ctx context.Context, in *sitePath) (*answer[api.Site], error) {
		return reply(svc.Sites.GetSite(ctx, in.Site))
	})
	type addInput struct{ Body api.AddSite }
	handle(b, "add-site", func(ctx context.Context, in *addInput) (*answer[api.Site], error) {
		if text := bytes.TrimSpace(in.Body.Settings); len(text) > 0 && text[0] != '{' {
			return nil, &api.Problem{Code: api.CodeInvalid, Detail: "the site's settings are not an object",
				Hint: `Give them as JSON, like {"socket": "/run/vm.sock"}`}
		}
		return reply(svc.Sites.AddSite(ctx, in.Body))
	})
	handle(b, "remove-site", func(ctx context.Context, in *sitePath) (*none, error) {
		return new(none), svc.Sites.RemoveSite(ctx, in.Site)
	})
	type machinesInput struct {
		Site string `query:"site" maxLength:"128" doc:"A site's id or name; all sites if empty"`
	}
	handle(b, "list-machines", func(ctx context.Context, in *machinesInput) (*answer[api.MachineList], error) {
		return reply(svc.Machines.ListMachines(ctx, in.Site))
	})
}

// ItemPath names an item in a path. The framework wants it exported where it is
// embedded.
type ItemPath struct {
	Item string `path:"item" maxLength:"128" pattern:"^[A-Za-z0-9][A-Za-z0-9._-]*$" doc:"An item's id or name"`
}

// itemAnswer is an item with its version as an ETag.
type itemAnswer struct {
	Status int
	ETag   string `header:"ETag" doc:"The item's version"`
	Body   api.Item
}

// etag returns an item's version as an entity tag.
func etag(version int64) string { return fmt.Sprintf(`"v%d"`, version) }

func itemRoutes(b *builder) {
	svc := b.server.opts.Service
	handle(b, "list-items", func(ctx context.Context, _ *none) (*answer[api.ItemList], error) {
		items, err := svc.Items.ListItems(ctx)
		return reply(api.ItemList{Items: items}, err)
	})
	type getInput struct {
		ItemPath
		IfNoneMatch string `header:"If-None-Match" doc:"An ETag: answer 304 if the item's recorded state is still that. Measured values, like the RPO, change without it"`
	}
	handle(b, "get-item", func(ctx context.Context, in *getInput) (*itemAnswer, error) {
		item, err := svc.Items.GetItem(ctx, in.Item)
		if err != nil {
			return nil, err
		}
		out := &itemAnswer{Status: http.StatusOK, ETag: etag(item.Version), Body: item}
		if in.IfNoneMatch == out.ETag {
			out.Status = http.StatusNotModified
		}
		return out, nil
	})
	type protectInput struct{ Body api.Protect }
	handle(b, "protect-machine", func(ctx context.Context, in *protectInput) (*accepted, error) {
		return accept(svc.Items.ProtectMachine(ctx, in.Body))
	})
	handle(b, "list-timelines", func(ctx context.Context, in *ItemPath) (*answer[api.Timelines], error) {
		return reply(svc.Points.ListTimelines(ctx, in.Item))
	})
	handle(b, "list-points", func(ctx context.Context, in *ItemPath) (*answer[api.Points], error) {
		return reply(svc.Points.ListPoints(ctx, in.Item))
	})
	type failoverInput struct {
		ItemPath
		IfMatch string `header:"If-Match" doc:"An ETag: refuse if the item has changed since"`
		Body    api.Failover
	}
	handle(b, "failover-item", func(ctx context.Context, in *failoverInput) (*accepted, error) {
		if err := checkFailover(in.Body); err != nil {
			return nil, err
		}
		if err := unchanged(ctx, svc.Items, in.Item, in.IfMatch, &in.Body.IfVersion); err != nil {
			return nil, err
		}
		return accept(svc.Items.FailoverItem(ctx, in.Item, in.Body))
	})
	type disableInput struct {
		ItemPath
		IfMatch string `header:"If-Match" doc:"An ETag: refuse if the item has changed since"`
		Body    api.Disable
	}
	handle(b, "disable-item", func(ctx context.Context, in *disableInput) (*accepted, error) {
		if err := unchanged(ctx, svc.Items, in.Item, in.IfMatch, &in.Body.IfVersion); err != nil {
			return nil, err
		}
		return accept(svc.Items.DisableItem(ctx, in.Item, in.Body))
	})
}

// checkFailover refuses options that contradict each other, so that nothing is
// recovered from another point than the one that was meant.
func checkFailover(f api.Failover) error {
	invalid := func(field, message string) error {
		return &api.Problem{Code: api.CodeInvalid, Detail: "the recovery point is not clear", Cause: message,
			Fields: []api.FieldError{{Field: "body." + field, Message: message}}}
	}
	switch {
	case f.Option == api.OptionPoint && f.Point == "":
		return invalid("point", "option point needs a point")
	case f.Option != api.OptionPoint && f.Point != "":
		return invalid("point", "a point goes with option point alone")
	case f.Option == api.OptionTime && f.Time.IsZero():
		return invalid("time", "option time needs a time")
	case f.Option != api.OptionTime && !f.Time.IsZero():
		return invalid("time", "a time goes with option time alone")
	case f.Planned && f.Timeline != 0:
		return invalid("timeline", "a planned failover loses nothing, so it takes the present timeline alone")
	case f.Planned && f.Option != api.OptionLatest:
		return invalid("option", "a planned failover loses nothing, so it goes with option latest alone")
	}
	return nil
}

// unchanged refuses a request whose If-Match is not the item's version, and
// passes the version on, for the service to check again at one with its change.
func unchanged(ctx context.Context, items Items, ref, ifMatch string, version *int64) error {
	if ifMatch == "" || ifMatch == "*" {
		return nil
	}
	text, ok := strings.CutPrefix(strings.Trim(ifMatch, `"`), "v")
	wanted, err := strconv.ParseInt(text, 10, 64)
	if !ok || err != nil || wanted < 1 {
		return &api.Problem{Code: api.CodeInvalid, Detail: "the header If-Match is not an ETag of an item", Hint: `Send back what the item's ETag was, like "v12"`}
	}
	item, err := items.GetItem(ctx, ref)
	if err != nil {
		return err
	}
	if item.Version != wanted {
		return &api.Problem{Status: http.StatusPreconditionFailed, Code: api.CodeConflict, Detail: "item " + item.Name + " has changed meanwhile",
			Cause: fmt.Sprintf("Its version is %d, and %d was asked for", item.Version, wanted), Hint: "Look at it again, then repeat"}
	}
	*version = wanted
	return nil
}

// jobPath names a job in a path.
type jobPath struct {
	Job string `path:"job" maxLength:"128" pattern:"^[A-Za-z0-9][A-Za-z0-9._-]*$" doc:"A job's id"`
}

func jobRoutes(b *builder) {
	svc := b.server.opts.Service
	type listInput struct {
		Item  string `query:"item" maxLength:"128" doc:"Only those of this item, by id or name"`
		State string `query:"state" enum:"not_started,in_progress,succeeded,failed,cancelling,cancelled,suspended,active" doc:"Only those in this state; active for all that have not ended"`
		Limit int    `query:"limit" minimum:"0" maximum:"1000" doc:"At most this many; 0 for 50"`
	}
	handle(b, "list-jobs", func(ctx context.Context, in *listInput) (*answer[api.JobList], error) {
		query := api.JobQuery{Item: in.Item, State: in.State, Limit: in.Limit}
		if query.Limit == 0 {
			query.Limit = 50
		}
		jobs, err := svc.Jobs.ListJobs(ctx, query)
		return reply(api.JobList{Jobs: jobs}, err)
	})
	handle(b, "get-job", func(ctx context.Context, in *jobPath) (*answer[api.Job], error) {
		return reply(svc.Jobs.GetJob(ctx, in.Job))
	})
	handle(b, "cancel-job", func(ctx context.Context, in *jobPath) (*accepted, error) {
		return accept(svc.Jobs.CancelJob(ctx, in.Job))
	})
	handleStream(b, "watch-job", "job", api.Job{}, func(ctx context.Context, in *jobPath) (func(context.Context, *stream) error, error) {
		job, err := svc.Jobs.GetJob(ctx, in.Job)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context, out *stream) error {
			// Each event is the whole job, so whoever comes back needs only the
			// newest: there is nothing to resume.
			return svc.Jobs.WatchJob(ctx, job.ID, func(j api.Job) error { return out.send("job", 0, j) })
		}, nil
	})
}

func vaultRoutes(b *builder) {
	svc := b.server.opts.Service
	handle(b, "get-vault", func(ctx context.Context, _ *none) (*answer[api.Vault], error) {
		return reply(svc.Vault.GetVault(ctx))
	})
	type verifyInput struct{ Body api.VerifyVault }
	handle(b, "verify-vault", func(ctx context.Context, in *verifyInput) (*accepted, error) {
		return accept(svc.Vault.VerifyVault(ctx, in.Body))
	})
}

func tokenRoutes(b *builder) {
	s := b.server
	handle(b, "list-tokens", func(ctx context.Context, _ *none) (*answer[api.TokenList], error) {
		tokens, err := s.opts.Tokens.List(ctx)
		if err != nil {
			return nil, err
		}
		var list api.TokenList
		for _, t := range tokens {
			list.Tokens = append(list.Tokens, apiToken(t))
		}
		return reply(list, nil)
	})
	type createInput struct{ Body api.CreateToken }
	handle(b, "create-token", func(ctx context.Context, in *createInput) (*answer[api.CreatedToken], error) {
		token, secret, err := s.opts.Tokens.Create(ctx, auth.CreateOptions{Name: in.Body.Name, Role: auth.Role(in.Body.Role),
			TTL: time.Duration(in.Body.TTLSeconds) * time.Second, Now: s.opts.Now()})
		return reply(api.CreatedToken{Token: apiToken(token), Secret: secret}, err)
	})
	type tokenPath struct {
		Token string `path:"token" maxLength:"64" doc:"A token's id or name"`
	}
	handle(b, "revoke-token", func(ctx context.Context, in *tokenPath) (*none, error) {
		return new(none), s.opts.Tokens.Revoke(ctx, in.Token, s.opts.Now())
	})
}

func apiToken(t auth.Token) api.Token {
	return api.Token{ID: t.ID, Name: t.Name, Role: string(t.Role), CreatedAt: t.CreatedAt, ExpiresAt: t.ExpiresAt}
}
