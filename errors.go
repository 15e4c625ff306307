package holdfast

import (
	"encoding/json"
	"errors"
	"strings"
)

// Kind is what sort of problem an Error is: what a caller decides on.
type Kind string

// The kinds of errors.
const (
	// KindNotFound says that the thing does not exist.
	KindNotFound Kind = "not_found"
	// KindNotAllowed says that the thing's state does not permit the operation.
	KindNotAllowed Kind = "not_allowed"
	// KindConflict says that something else stands in the way: a name that is
	// taken, a change made meanwhile, a job that is still running.
	KindConflict Kind = "conflict"
	// KindInvalid says that the request itself is wrong.
	KindInvalid Kind = "invalid"
	// KindUnauthorized says that nobody known is asking.
	KindUnauthorized Kind = "unauthorized"
	// KindForbidden says that whoever asks may not.
	KindForbidden Kind = "forbidden"
	// KindUnavailable says that something needed does not answer, or is full or
	// read-only; trying again later may help.
	KindUnavailable Kind = "unavailable"
	// KindCorrupt says that stored data is damaged. Trying again does not help.
	KindCorrupt Kind = "corrupt"
	// KindCancelled says that somebody asked for it to stop.
	KindCancelled Kind = "cancelled"
	// KindInternal says that Holdfast itself is at fault.
	KindInternal Kind = "internal"
)

// Error is an error that a user can act on: what was being done, to what, why
// it went wrong and what to do about it. Only Kind is mandatory.
type Error struct {
	Kind  Kind
	Op    string // what was being done, like "protect machine"
	Thing string // what it was done to, by the name that the user knows
	Cause string // why it went wrong, one sentence without a full stop
	Hint  string // what to do, one sentence without a full stop
	Err   error  // the error beneath, nil if there is none
}

// Error returns operation, thing, cause and the error beneath, but not the hint.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Thing != "" {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(e.Thing)
	}
	add := func(s string) {
		if s == "" {
			return
		}
		if b.Len() > 0 {
			b.WriteString(": ")
		}
		b.WriteString(s)
	}
	add(e.Cause)
	if e.Err != nil {
		add(e.Err.Error())
	}
	if b.Len() == 0 {
		return string(e.Kind)
	}
	return b.String()
}

// Unwrap returns the error beneath.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is an *Error with the same kind and nothing else
// in it, so that errors.Is(err, &Error{Kind: KindNotFound}) asks for the kind.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && *t == Error{Kind: e.Kind}
}

// Describe returns kind, cause and hint as plain text, for what keeps errors
// without knowing this package. Where the error itself names no cause or hint,
// those of the nearest *Error beneath it are taken.
func (e *Error) Describe() (code, cause, hint string) {
	code, cause, hint = string(e.Kind), e.Cause, e.Hint
	var inner *Error
	if (cause == "" || hint == "") && errors.As(e.Err, &inner) {
		_, c, h := inner.Describe()
		if cause == "" {
			cause = c
		}
		if hint == "" {
			hint = h
		}
	}
	return code, cause, hint
}

// MarshalJSON writes the error as an object of kind, op, thing, message, cause
// and hint.
func (e *Error) MarshalJSON() ([]byte, error) {
	code, cause, hint := e.Describe()
	return json.Marshal(struct {
		Kind    string `json:"kind"`
		Op      string `json:"op,omitempty"`
		Thing   string `json:"thing,omitempty"`
		Message string `json:"message"`
		Cause   string `json:"cause,omitempty"`
		Hint    string `json:"hint,omitempty"`
	}{code, e.Op, e.Thing, e.Error(), cause, hint})
}

// KindOf returns the kind of the outermost *Error in err's tree, KindInternal
// if there is none, and "" for nil.
func KindOf(err error) Kind {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return KindInternal
}

// HintOf returns the first hint in err's tree, or "".
func HintOf(err error) string {
	var e *Error
	if !errors.As(err, &e) {
		return ""
	}
	_, _, hint := e.Describe()
	return hint
}
