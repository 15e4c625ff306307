package api

import "net/http"

// The codes of a Problem. A program decides on these, never on texts.
const (
	CodeNotFound     = "not_found"    // the thing does not exist: 404
	CodeNotAllowed   = "not_allowed"  // not in this state: 409
	CodeConflict     = "conflict"     // changed, taken or busy meanwhile: 409, or 412 with If-Match
	CodeInvalid      = "invalid"      // the request is wrong: 400, 413, 415 or 422
	CodeUnauthorized = "unauthorized" // no token, or one that is not valid: 401
	CodeForbidden    = "forbidden"    // the token's role may not do this: 403
	CodeUnavailable  = "unavailable"  // something needed does not answer now: 503
	CodeCorrupt      = "corrupt"      // stored data is damaged: 500
	CodeCancelled    = "cancelled"    // somebody asked for it to stop: 409
	CodeInternal     = "internal"     // a fault of the server itself: 500
)

// Problem is the body of every answer that is an error, as in RFC 9457, with
// what Holdfast adds: a code for programs, the cause and what to do. It is an
// error, which the methods of Client return.
type Problem struct {
	Type     string       `json:"type" doc:"Always about:blank: the code tells problems apart"`
	Title    string       `json:"title" doc:"The HTTP status in words"`
	Status   int          `json:"status" doc:"The HTTP status"`
	Detail   string       `json:"detail" doc:"What went wrong, with what"`
	Code     string       `json:"code" doc:"The kind of problem, for programs" enum:"not_found,not_allowed,conflict,invalid,unauthorized,forbidden,unavailable,corrupt,cancelled,internal"`
	Cause    string       `json:"cause,omitempty" doc:"Why"`
	Hint     string       `json:"hint,omitempty" doc:"What to do about it"`
	Instance string       `json:"instance,omitempty" doc:"The number of the request, as in the server's log"`
	Fields   []FieldError `json:"fields,omitempty" nullable:"false" doc:"What is wrong with which field of the request"`
}

// FieldError says what is wrong with one field of a request.
type FieldError struct {
	Field   string `json:"field" doc:"Where, like body.policy.rpo_threshold_seconds"`
	Message string `json:"message" doc:"What is wrong there"`
}

// Error returns the detail, and the title if there is none.
func (p *Problem) Error() string {
	if p.Detail != "" {
		return p.Detail
	}
	if p.Title != "" {
		return p.Title
	}
	return http.StatusText(p.Status)
}

// GetStatus returns the HTTP status.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType returns the media type of problems in place of plain JSON's.
func (p *Problem) ContentType(ct string) string {
	if ct == "application/json" {
		return "application/problem+json"
	}
	return ct
}
