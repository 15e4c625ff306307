package holdfast_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"github.com/holdfast-dr/holdfast"
)

func TestErrorText(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		err  holdfast.Error
		want string
	}{
		{"all", holdfast.Error{Kind: holdfast.KindUnavailable, Op: "open site", Thing: "berlin", Cause: "it does not answer", Hint: "Look", Err: fs.ErrNotExist}, "open site berlin: it does not answer: file does not exist"},
		{"no thing", holdfast.Error{Kind: holdfast.KindInvalid, Op: "choose point", Cause: "no time"}, "choose point: no time"},
		{"cause alone", holdfast.Error{Kind: holdfast.KindInvalid, Cause: "no time"}, "no time"},
		{"thing alone", holdfast.Error{Kind: holdfast.KindInvalid, Thing: "x"}, "x"},
		{"kind alone", holdfast.Error{Kind: holdfast.KindNotFound}, "not_found"},
	}
	for _, tt := range tests {
		if got := tt.err.Error(); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestErrorIsAndDescribe(t *testing.T) {
	t.Parallel()
	inner := &holdfast.Error{Kind: holdfast.KindNotFound, Op: "find machine", Thing: "m", Cause: "it is not there", Hint: "List machines", Err: fs.ErrNotExist}
	outer := fmt.Errorf("protect: %w", &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "check", Err: inner})
	if holdfast.KindOf(outer) != holdfast.KindUnavailable {
		t.Errorf("kind: got %s", holdfast.KindOf(outer))
	}
	for _, kind := range []holdfast.Kind{holdfast.KindUnavailable, holdfast.KindNotFound} {
		if !errors.Is(outer, &holdfast.Error{Kind: kind}) {
			t.Errorf("errors.Is %s: no", kind)
		}
	}
	if errors.Is(outer, &holdfast.Error{Kind: holdfast.KindConflict}) || errors.Is(outer, &holdfast.Error{Kind: holdfast.KindNotFound, Op: "other"}) {
		t.Error("errors.Is finds what is not there")
	}
	if !errors.Is(outer, fs.ErrNotExist) {
		t.Error("the error beneath is not found")
	}
	if got := holdfast.HintOf(outer); got != "List machines" {
		t.Errorf("hint: got %q", got)
	}
	var e *holdfast.Error
	if !errors.As(outer, &e) {
		t.Fatal("no *Error")
	}
	if code, cause, hint := e.Describe(); code != "unavailable" || cause != "it is not there" || hint != "List machines" {
		t.Errorf("describe: got %q %q %q", code, cause, hint)
	}
	data, err := json.Marshal(e)
	const want = `{"kind":"unavailable","op":"check","message":"check: find machine m: it is not there: file does not exist","cause":"it is not there","hint":"List machines"}`
	if err != nil || string(data) != want {
		t.Errorf("json: got %s %v, want %s", data, err, want)
	}
	if holdfast.KindOf(nil) != "" || holdfast.KindOf(fs.ErrExist) != holdfast.KindInternal || holdfast.HintOf(fs.ErrExist) != "" {
		t.Error("errors without kind")
	}
}
