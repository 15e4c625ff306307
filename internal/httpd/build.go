package httpd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/holdfast-dr/holdfast/api"
)

// builder puts handlers to the lines of the table of routes.
type builder struct {
	server *Server
	api    huma.API
	lines  map[string]route // those that have no handler yet
}

// build makes the handler, the OpenAPI document and the page of it.
func (s *Server) build() error {
	mux := http.NewServeMux()
	config := huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{Title: "Holdfast", Version: fmt.Sprintf("v%d", api.Version),
				Description: "Self-hosted site recovery. Sizes are in bytes, durations in seconds, times in RFC 3339. Errors are RFC 9457 problems with a code, a cause and a hint."},
			Components: &huma.Components{
				Schemas: huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer),
				SecuritySchemes: map[string]*huma.SecurityScheme{
					"token": {Type: "http", Scheme: "bearer", Description: "A token: hf_ and 43 letters and digits"},
				},
			},
		},
		Formats:                      map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
		Transformers:                 []huma.Transformer{transform},
	}
	b := &builder{server: s, api: humago.New(mux, config), lines: map[string]route{}}
	s.routes = map[string]route{}
	for _, line := range routes() {
		b.lines[line.id], s.routes[line.id] = line, line
	}
	b.api.UseMiddleware(s.guard)
	for _, register := range []func(*builder){systemRoutes, siteRoutes, itemRoutes, lifecycleRoutes, jobRoutes, planRoutes, groupRoutes, vaultRoutes, tokenRoutes} {
		register(b)
	}
	if len(b.lines) > 0 {
		return fmt.Errorf("routes without a handler: %v", b.lines)
	}
	if err := s.describe(b.api.OpenAPI()); err != nil {
		return err
	}
	mux.HandleFunc("/", s.fallback(mux))
	s.handler = s.outermost(mux)
	return nil
}

// operation takes the line of that id from the table. It panics if there is
// none: a route without a permission cannot be.
func (b *builder) operation(id string) huma.Operation {
	line, ok := b.lines[id]
	if !ok {
		panic("httpd: handler " + id + " is not in the table of routes, or is there twice")
	}
	delete(b.lines, id)
	op := huma.Operation{
		OperationID: line.id, Method: line.method, Path: line.path, Summary: line.summary,
		DefaultStatus: line.status, MaxBodyBytes: bodyLimit(line.id),
		Extensions: map[string]any{"x-role": string(line.role)},
	}
	if line.role != anyone {
		op.Security = []map[string][]string{{"token": {}}}
	} else {
		op.Extensions["x-role"] = "anyone"
	}
	return op
}

// handle registers what answers one request.
func handle[I, O any](b *builder, id string, answer func(context.Context, *I) (*O, error)) {
	huma.Register(b.api, b.operation(id), func(ctx context.Context, in *I) (*O, error) {
		ctx, cancel := context.WithTimeout(ctx, serviceTimeout)
		defer cancel()
		out, err := answer(ctx, in)
		if err != nil {
			return nil, failure(ctx, err)
		}
		return out, nil
	})
}

// handleStream registers what answers with server-sent events, whose data is
// like example. prepare may refuse; feed then sends.
func handleStream[I any](b *builder, id, event string, example any, prepare func(context.Context, *I) (feed func(context.Context, *stream) error, err error)) {
	op := b.operation(id)
	schema := b.api.OpenAPI().Components.Schemas.Schema(reflect.TypeOf(example), true, "")
	op.Responses = map[string]*huma.Response{"200": {
		Description: "Events named " + event + ", the data of each as described; comments between them are signs of life",
		Content:     map[string]*huma.MediaType{"text/event-stream": {Schema: schema}},
	}}
	huma.Register(b.api, op, func(ctx context.Context, in *I) (*huma.StreamResponse, error) {
		feed, err := prepare(ctx, in)
		if err != nil {
			return nil, failure(ctx, err)
		}
		return &huma.StreamResponse{Body: func(hctx huma.Context) { b.server.serveStream(hctx, feed) }}, nil
	})
}

// failure returns what a client is told of err, and notes for the log what it
// is not told.
func failure(ctx context.Context, err error) error {
	p := problem(err)
	req := requestOf(ctx)
	if p.Status >= http.StatusInternalServerError {
		req.cause = err
	}
	return p
}

// transform makes every answer the api's: problems for the framework's own
// errors, and empty lists in place of null.
func transform(hctx huma.Context, _ string, v any) (any, error) {
	var p *api.Problem
	switch v := v.(type) {
	case *huma.ErrorModel:
		p = frameworkProblem(v)
	case *api.Problem:
		p = v
	default:
		return neverNull(v), nil
	}
	p.Instance = requestOf(hctx.Context()).id
	return p, nil
}

// neverNull returns a copy of v in which lists that are nil are empty instead,
// so that clients need not tell null from nothing.
func neverNull(v any) any {
	if v == nil {
		return nil
	}
	in := reflect.ValueOf(v)
	out := reflect.New(in.Type()).Elem()
	fillLists(out, in)
	return out.Interface()
}

func fillLists(out, in reflect.Value) {
	out.Set(in)
	switch in.Kind() {
	case reflect.Pointer:
		if !in.IsNil() {
			out.Set(reflect.New(in.Type().Elem()))
			fillLists(out.Elem(), in.Elem())
		}
	case reflect.Slice:
		if in.Type().Elem().Kind() == reflect.Uint8 {
			return // json.RawMessage is not a list
		}
		out.Set(reflect.MakeSlice(in.Type(), in.Len(), in.Len()))
		for i := range in.Len() {
			fillLists(out.Index(i), in.Index(i))
		}
	case reflect.Struct:
		for i := range in.NumField() {
			if in.Type().Field(i).IsExported() {
				fillLists(out.Field(i), in.Field(i))
			}
		}
	}
}

// describe completes the OpenAPI document and makes the page of it.
func (s *Server) describe(doc *huma.OpenAPI) error {
	schemas := doc.Components.Schemas
	ref := schemas.Schema(reflect.TypeFor[api.Problem](), true, "")
	problem := map[string]*huma.MediaType{"application/problem+json": {Schema: ref}}
	for _, item := range doc.Paths {
		for _, op := range []*huma.Operation{item.Get, item.Post, item.Delete} {
			if op == nil {
				continue
			}
			for status := range op.Responses {
				if status >= "4" { // 4xx, 5xx and "default"
					delete(op.Responses, status)
				}
			}
			op.Responses["default"] = &huma.Response{Description: "A problem", Content: problem}
		}
	}
	delete(schemas.Map(), "ErrorModel")
	delete(schemas.Map(), "ErrorDetail")
	spec, err := json.Marshal(doc)
	if err != nil {
		return fmt.Errorf("encode OpenAPI document: %w", err)
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, spec, "", "  "); err != nil {
		return fmt.Errorf("encode OpenAPI document: %w", err)
	}
	indented.WriteByte('\n')
	s.spec = indented.Bytes()
	s.docs, err = docsPage(doc)
	return err
}

// docsRoute is a route on the page.
type docsRoute struct {
	Method, Path, Role, Summary string
	Parameters                  []*huma.Param
	Body, Answer                string // names of schemas
}

// docsSchema is a type on the page.
type docsSchema struct {
	Name       string
	Properties []docsProperty
}

type docsProperty struct {
	Name, Type, Doc string
	Required        bool
}

// docsPage renders the document as a page without scripts.
func docsPage(doc *huma.OpenAPI) ([]byte, error) {
	var page struct {
		Title, Version, Description string
		Routes                      []docsRoute
		Schemas                     []docsSchema
	}
	page.Title, page.Version, page.Description = doc.Info.Title, doc.Info.Version, doc.Info.Description
	for _, line := range routes() {
		item := doc.Paths[line.path]
		op := map[string]*huma.Operation{http.MethodGet: item.Get, http.MethodPost: item.Post, http.MethodDelete: item.Delete}[line.method]
		r := docsRoute{Method: line.method, Path: line.path, Role: orElse(string(line.role), "anyone"), Summary: line.summary, Parameters: op.Parameters}
		if op.RequestBody != nil {
			for _, media := range op.RequestBody.Content {
				r.Body = schemaName(media.Schema)
			}
		}
		if answer := op.Responses[fmt.Sprint(line.status)]; answer != nil {
			for _, media := range answer.Content {
				r.Answer = schemaName(media.Schema)
			}
		}
		page.Routes = append(page.Routes, r)
	}
	for name, schema := range doc.Components.Schemas.Map() {
		s := docsSchema{Name: name}
		for prop, p := range schema.Properties {
			s.Properties = append(s.Properties, docsProperty{Name: prop, Type: schemaName(p), Doc: p.Description, Required: slices.Contains(schema.Required, prop)})
		}
		slices.SortFunc(s.Properties, func(a, b docsProperty) int { return strings.Compare(a.Name, b.Name) })
		page.Schemas = append(page.Schemas, s)
	}
	slices.SortFunc(page.Schemas, func(a, b docsSchema) int { return strings.Compare(a.Name, b.Name) })
	tmpl, err := docsTemplate()
	if err != nil {
		return nil, errors.Join(errors.New("parse docs page"), err)
	}
	var out bytes.Buffer
	if err := tmpl.Execute(&out, page); err != nil {
		return nil, fmt.Errorf("render docs page: %w", err)
	}
	return out.Bytes(), nil
}

// schemaName returns how a schema is named on the page.
func schemaName(s *huma.Schema) string {
	if s == nil {
		return ""
	}
	if i := strings.LastIndexByte(s.Ref, '/'); i >= 0 {
		return s.Ref[i+1:]
	}
	switch {
	case s.Type == huma.TypeArray:
		return schemaName(s.Items) + " list"
	case len(s.Enum) > 0:
		return strings.Trim(strings.ReplaceAll(fmt.Sprint(s.Enum), " ", " | "), "[]")
	case s.Format == "date-time":
		return "time"
	}
	return s.Type
}
