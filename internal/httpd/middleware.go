package httpd

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"runtime/debug"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/auth"
)

// request is what is known of one request, for its log line.
type request struct {
	id    string
	op    string
	token auth.Token
	cause error // of a fault of the server
}

type requestKey struct{}

// requestOf returns what is known of the request of ctx.
func requestOf(ctx context.Context) *request {
	if r, ok := ctx.Value(requestKey{}).(*request); ok {
		return r
	}
	return new(request)
}

// recorder remembers the status of an answer.
type recorder struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController find what is beneath.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// outermost numbers and logs requests, sets headers that all answers have, and
// turns a panic into a problem.
func (s *Server) outermost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := s.opts.Now()
		var raw [6]byte
		_, _ = rand.Read(raw[:]) // never fails: crypto/rand aborts the program instead
		req := &request{id: hex.EncodeToString(raw[:])}
		rec := &recorder{ResponseWriter: w}
		h := w.Header()
		h.Set("X-Request-Id", req.id)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		if s.opts.TLS != nil {
			h.Set("Strict-Transport-Security", "max-age=31536000")
		}
		defer func() {
			if fault := recover(); fault != nil {
				if fault == http.ErrAbortHandler {
					panic(fault)
				}
				s.log.Error("request panicked", "request", req.id, "panic", fault, "stack", string(debug.Stack()))
				if rec.status == 0 {
					s.writeProblem(rec, req, finish(&api.Problem{Code: api.CodeInternal,
						Detail: "the server met an error it does not know", Hint: "See the server's log for the request's number"}))
				}
			}
			attrs := []any{"request", req.id, "method", r.Method, "path", r.URL.Path, "status", rec.status,
				"duration", s.opts.Now().Sub(start), "remote", r.RemoteAddr, "operation", req.op, "token", req.token.Name}
			switch {
			case req.cause != nil:
				s.log.Error("request", append(attrs, "error", req.cause)...)
			case r.Method == http.MethodGet && rec.status < 400:
				s.log.Debug("request", attrs...)
			default:
				s.log.Info("request", attrs...)
			}
		}()
		next.ServeHTTP(rec, r.WithContext(context.WithValue(r.Context(), requestKey{}, req)))
	})
}

// writeProblem answers with a problem, outside of the framework.
func (s *Server) writeProblem(w http.ResponseWriter, req *request, p *api.Problem) {
	p.Instance = req.id
	if p.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="holdfast"`)
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // the client may have gone: nobody to tell
}

// authenticate returns the token that the request carries.
func (s *Server) authenticate(r *http.Request) (auth.Token, error) {
	scheme, secret, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if scheme == "" {
		return auth.Token{}, &api.Problem{Code: api.CodeUnauthorized, Detail: "a token is needed",
			Hint: "Log in first: holdfast login, or send Authorization: Bearer hf_…"}
	}
	if !strings.EqualFold(scheme, "bearer") {
		return auth.Token{}, &api.Problem{Code: api.CodeUnauthorized, Detail: "the token is not valid",
			Cause: "The header Authorization is not of the form: Bearer hf_…"}
	}
	return s.opts.Tokens.Authenticate(r.Context(), strings.TrimSpace(secret), s.opts.Now())
}

// guard lets a request through to a route if its token may use it. It runs
// before the request's body or parameters are looked at.
func (s *Server) guard(hctx huma.Context, next func(huma.Context)) {
	r, w := humago.Unwrap(hctx)
	req := requestOf(r.Context())
	req.op = hctx.Operation().OperationID
	line, listed := s.routes[req.op]
	token, err := s.authenticate(r)
	if err == nil {
		req.token = token
	}
	switch {
	case listed && line.role == anyone:
		// An invalid token is no worse than none here.
	case err != nil:
		p := problem(err)
		if p.Code == api.CodeInternal {
			req.cause = err
		}
		s.writeProblem(w, req, p)
		return
	case !listed || !token.Role.Allows(line.role):
		s.writeProblem(w, req, finish(&api.Problem{Code: api.CodeForbidden, Detail: "the token may not do this",
			Cause: "It is a " + string(token.Role) + "'s, and this needs the role " + string(line.role),
			Hint:  "Ask an administrator for a token with that role"}))
		return
	}
	next(hctx)
}

// fallback answers what no route does.
func (s *Server) fallback(mux *http.ServeMux) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		req := requestOf(r.Context())
		token, err := s.authenticate(r)
		if err != nil {
			s.writeProblem(w, req, problem(err))
			return
		}
		req.token = token
		var allowed []string
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
			other := r.Clone(r.Context())
			other.Method = method
			if _, pattern := mux.Handler(other); pattern != "" && pattern != "/" {
				allowed = append(allowed, method)
			}
		}
		if len(allowed) > 0 {
			w.Header().Set("Allow", strings.Join(allowed, ", "))
			s.writeProblem(w, req, finish(&api.Problem{Status: http.StatusMethodNotAllowed, Code: api.CodeInvalid,
				Detail: r.Method + " is not possible here", Hint: "Possible are: " + strings.Join(allowed, ", ")}))
			return
		}
		s.writeProblem(w, req, finish(&api.Problem{Code: api.CodeNotFound, Detail: "there is nothing at " + r.URL.Path,
			Hint: "See /v1/docs for what there is"}))
	}
}
