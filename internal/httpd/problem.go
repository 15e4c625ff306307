package httpd

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/auth"
)

// problem returns what a client is told of err. The text of an error that is
// nobody's fault but the server's is not told.
func problem(err error) *api.Problem {
	var told *api.Problem
	if errors.As(err, &told) {
		p := *told
		return finish(&p)
	}
	var known *holdfast.Error
	if errors.As(err, &known) {
		return domainProblem(known)
	}
	if p := tokenProblem(err); p != nil {
		return finish(p)
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return finish(&api.Problem{Code: api.CodeUnavailable, Detail: "the server took too long",
			Hint: "Try again; if it stays so, see the server's log"})
	case errors.Is(err, context.Canceled):
		return finish(&api.Problem{Code: api.CodeUnavailable, Detail: "the request was broken off"})
	}
	return finish(&api.Problem{Code: api.CodeInternal, Detail: "the server met an error it does not know",
		Hint: "See the server's log for the request's number"})
}

// domainProblem tells a *holdfast.Error: what could not be done to what, and
// the rest of its text as the cause.
func domainProblem(e *holdfast.Error) *api.Problem {
	code, _, hint := e.Describe()
	what := strings.TrimSpace(e.Op + " " + e.Thing)
	text := e.Error()
	p := &api.Problem{Code: code, Detail: text, Hint: hint}
	if what != "" {
		p.Detail = "cannot " + what
		p.Cause = strings.TrimPrefix(strings.TrimPrefix(text, what), ": ")
	}
	if e.Kind == holdfast.KindInternal {
		p.Hint = orElse(p.Hint, "See the server's log for the request's number")
	}
	return finish(p)
}

// tokenProblem tells an error of package auth, or returns nil.
func tokenProblem(err error) *api.Problem {
	switch {
	case errors.Is(err, auth.ErrTokenExpired):
		return &api.Problem{Code: api.CodeUnauthorized, Detail: "the token has expired", Hint: "Ask an administrator for a new one"}
	case errors.Is(err, auth.ErrTokenInvalid):
		return &api.Problem{Code: api.CodeUnauthorized, Detail: "the token is not valid",
			Cause: "It is mistyped, was revoked, or is another server's", Hint: "Log in again: holdfast login"}
	case errors.Is(err, auth.ErrTokenNotFound):
		return &api.Problem{Code: api.CodeNotFound, Detail: "there is no such token", Hint: "List them: holdfast token list"}
	case errors.Is(err, auth.ErrTokenExists):
		return &api.Problem{Code: api.CodeConflict, Detail: "another token has that name", Hint: "Choose another name, or revoke the old token first"}
	case errors.Is(err, auth.ErrLastAdmin):
		return &api.Problem{Code: api.CodeNotAllowed, Detail: "cannot revoke the last admin token",
			Cause: "Nobody could make another token then", Hint: "Make another admin token first: holdfast token create NAME --role admin"}
	case errors.Is(err, auth.ErrTokenOptions):
		return &api.Problem{Code: api.CodeInvalid, Detail: "the token cannot be made as asked", Cause: err.Error()}
	}
	return nil
}

// finish fills in what follows from the code.
func finish(p *api.Problem) *api.Problem {
	if p.Status == 0 {
		p.Status = statusOf(p.Code)
	}
	if p.Code == "" {
		p.Code = codeOf(p.Status)
	}
	p.Type = orElse(p.Type, "about:blank")
	p.Title = orElse(p.Title, http.StatusText(p.Status))
	return p
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// statusOf returns the HTTP status of a code.
func statusOf(code string) int {
	switch code {
	case api.CodeNotFound:
		return http.StatusNotFound
	case api.CodeNotAllowed, api.CodeConflict, api.CodeCancelled:
		return http.StatusConflict
	case api.CodeInvalid:
		return http.StatusUnprocessableEntity
	case api.CodeUnauthorized:
		return http.StatusUnauthorized
	case api.CodeForbidden:
		return http.StatusForbidden
	case api.CodeUnavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// codeOf returns the code of an HTTP status that the framework chose.
func codeOf(status int) string {
	switch status {
	case http.StatusNotFound:
		return api.CodeNotFound
	case http.StatusUnauthorized:
		return api.CodeUnauthorized
	case http.StatusForbidden:
		return api.CodeForbidden
	case http.StatusConflict, http.StatusPreconditionFailed:
		return api.CodeConflict
	case http.StatusServiceUnavailable, http.StatusRequestTimeout:
		return api.CodeUnavailable
	}
	if status >= 400 && status < 500 {
		return api.CodeInvalid
	}
	return api.CodeInternal
}

// frameworkProblem tells an error that the framework made while it read a
// request. Values are not echoed: they might be secret.
func frameworkProblem(m *huma.ErrorModel) *api.Problem {
	p := &api.Problem{Status: m.Status, Detail: m.Detail}
	for _, d := range m.Errors {
		if d != nil {
			p.Fields = append(p.Fields, api.FieldError{Field: d.Location, Message: d.Message})
		}
	}
	switch m.Status {
	case http.StatusUnprocessableEntity, http.StatusBadRequest:
		p.Detail = "the request is not valid"
		if len(p.Fields) > 0 {
			p.Cause = joinFields(p.Fields)
		} else {
			p.Cause = m.Detail
		}
	case http.StatusUnsupportedMediaType:
		p.Detail, p.Cause, p.Fields = "the request's body is of a type that the server does not read", "", nil
		p.Hint = "Send JSON with Content-Type: application/json"
	case http.StatusRequestEntityTooLarge:
		p.Detail = "the request's body is larger than the server takes"
	case http.StatusInternalServerError:
		// What the framework could not do is in the log; its text may name files.
		p.Detail, p.Fields = "the server met an error it does not know", nil
	}
	return finish(p)
}

// joinFields says in one line what is wrong with the fields.
func joinFields(fields []api.FieldError) string {
	parts := make([]string, 0, len(fields))
	for _, f := range fields {
		name := f.Field
		for _, in := range []string{"body.", "path.", "query.", "header."} {
			name = strings.TrimPrefix(name, in)
		}
		if name == "" || name == "body" {
			parts = append(parts, f.Message)
		} else {
			parts = append(parts, name+": "+f.Message)
		}
	}
	return strings.Join(parts, "; ")
}
