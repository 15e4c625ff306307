package orchestrator_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
)

// TestEveryStateEveryOperation brings an item into every state, in both
// directions and with what may go on besides, and asks there for every operation
// through the interface. Those that the item lists as allowed do what they are
// for; each other is refused with 409, why, and what to do first, and changes
// nothing. A dry run says the same, and does nothing. What is allowed is what
// docs/states.md says.
func TestEveryStateEveryOperation(t *testing.T) {
	t.Parallel()
	seen := &sight{allowed: map[cell][]string{}}
	t.Run("in", func(t *testing.T) {
		for _, in := range situations() {
			t.Run(in.name, func(t *testing.T) {
				t.Parallel()
				for n := 0; askedIn(t, in, seen, n); n++ {
				}
			})
		}
	})
	seen.compare(t, documented(t))
}

// cell is a state in a direction.
type cell struct {
	state, direction string
}

// sight is what was seen allowed in each state, unless something special went on.
type sight struct {
	mu      sync.Mutex // guards the fields below
	allowed map[cell][]string
}

func (v *sight) add(t *testing.T, it api.Item) {
	t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	c := cell{it.State, it.Direction}
	if old, ok := v.allowed[c]; ok && !slices.Equal(old, it.Allowed) {
		t.Errorf("allowed are %v, and otherwise %v", it.Allowed, old)
	}
	v.allowed[c] = it.Allowed
}

// compare wants every state to have been seen, and what was seen to be what the
// document says.
func (v *sight) compare(t *testing.T, want map[cell][]string) {
	t.Helper()
	for c, ops := range want {
		got, ok := v.allowed[c]
		if !ok && !unreachable(c) {
			t.Errorf("state %s, %s, was not tried", c.state, c.direction)
		}
		if ok && !slices.Equal(got, ops) {
			t.Errorf("in state %s, %s, %v are allowed; docs/states.md says %v", c.state, c.direction, got, ops)
		}
	}
	for c := range v.allowed {
		if _, ok := want[c]; !ok {
			t.Errorf("docs/states.md has no row of %s, %s", c.state, c.direction)
		}
	}
}

// unreachable are states that no item is in, in that direction.
func unreachable(c cell) bool {
	switch holdfast.State(c.state) {
	case holdfast.StateUnprotected: // then there is no item; see TestUnprotected
		return true
	case holdfast.StateEnabling, holdfast.StateEnablingFailed, holdfast.StateMigrating, holdfast.StateMigrationFailed, holdfast.StateMigrated:
		return c.direction == string(holdfast.Reverse)
	}
	return false
}

// documented reads the table of docs/states.md.
func documented(t *testing.T) map[cell][]string {
	t.Helper()
	text, err := os.ReadFile("../../docs/states.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "## What is allowed\n")
	table, _, _ = strings.Cut(table, "\n## ")
	rows := regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| (.*) \\|$").FindAllStringSubmatch(table, -1)
	want := map[cell][]string{}
	for _, row := range rows {
		for _, d := range []holdfast.Direction{holdfast.Forward, holdfast.Reverse} {
			ops := []string{}
			for op := range strings.SplitSeq(row[2], ", ") {
				name, only, _ := strings.Cut(strings.TrimSuffix(op, ")"), " (")
				if strings.HasPrefix(name, "`") && (only == "" || only == string(d)) {
					ops = append(ops, strings.Trim(name, "`"))
				}
			}
			want[cell{row[1], string(d)}] = ops
		}
	}
	if len(want) != 2*len(holdfast.States()) {
		t.Fatalf("docs/states.md has %d rows", len(rows))
	}
	return want
}

// askedIn asks in a situation for the n-th operation that is allowed there, and
// says whether there may be more; the first time it asks for all others before.
func askedIn(t *testing.T, in situation, seen *sight, n int) (more bool) {
	inBubble(t, fmt.Sprint(n), func(t *testing.T) {
		s := newRest(t)
		s.write(0, 1)
		if !slices.Contains([]holdfast.State{holdfast.StateEnabling, holdfast.StateEnablingFailed}, in.state) && !strings.HasPrefix(in.name, "first copy") && !strings.HasPrefix(in.name, "enabled again") {
			s.protect()
		}
		in.bring(s)
		if s.release == nil {
			s.idle()
		}
		it := s.item()
		if it.State != string(in.state) || it.Direction != string(in.direction) {
			t.Fatalf("the item is %s, %s", it.State, it.Direction)
		}
		if n == 0 {
			if !in.special {
				seen.add(t, it)
			}
			s.refusesTheRest(in)
		}
		if more = n < len(it.Allowed); more {
			s.does(in, holdfast.Operation(it.Allowed[n]))
		}
		if s.release != nil {
			s.release()
		}
		if in.mend != nil {
			in.mend(s)
		}
		if slices.Contains(forced, holdfast.State(s.stateNow())) {
			s.force(holdfast.StateCommitPending) // for the look at the end
		}
		s.idle()
	})
	return more
}

// stateNow is the item's state; empty: there is none any more.
func (s *rest) stateNow() string {
	it, err := s.GetItem(s.t.Context(), machine)
	if err != nil {
		return ""
	}
	return it.State
}

// refusesTheRest asks for what the item does not allow, and for dry runs of all.
func (s *rest) refusesTheRest(in situation) {
	s.t.Helper()
	before, jobs := s.item(), s.jobs()
	for _, op := range holdfast.Operations() {
		if c := s.check(op); c.Allowed != slices.Contains(before.Allowed, string(op)) && c.Allowed {
			s.t.Errorf("dry run of %s: %+v", op, c)
		}
		if slices.Contains(before.Allowed, string(op)) {
			continue
		}
		i := slices.IndexFunc(before.Blocked, func(b api.BlockedOperation) bool { return b.Operation == string(op) })
		if i < 0 {
			s.t.Errorf("%s is neither allowed nor blocked", op)
			continue
		}
		s.refuses(op, before.Blocked[i], in.away)
	}
	after := s.item()
	if after.State != before.State || after.Version != before.Version || !reflect.DeepEqual(after.Allowed, before.Allowed) || s.jobs() != jobs {
		s.t.Errorf("refusals have changed the item: %+v, before %+v", after, before)
	}
}

func (s *rest) jobs() int {
	s.t.Helper()
	all, err := s.ListJobs(s.t.Context(), api.JobQuery{Limit: 1000})
	if err != nil {
		s.t.Fatal(err)
	}
	return len(all)
}

// refuses asks for an operation that is blocked.
func (s *rest) refuses(op holdfast.Operation, why api.BlockedOperation, away bool) {
	s.t.Helper()
	if wrong := wrongHint(why.NextStep); why.Reason == "" || wrong != "" {
		s.t.Errorf("%s is blocked because %q, next %q: %s", op, why.Reason, why.NextStep, wrong)
	}
	if c := s.check(op); c.Allowed || c.Reason != why.Reason || c.NextStep != why.NextStep {
		s.t.Errorf("dry run of %s: %+v, want %+v", op, c, why)
	}
	path, body := request(op)
	if path == "" {
		if !why.Missing {
			s.t.Errorf("there is no way to ask for %s, and it is not said to be missing", op)
		}
		return
	}
	var p api.Problem
	code := s.post(path, body, &p)
	if op == holdfast.OpEnable && away && code == http.StatusServiceUnavailable {
		return // it cannot be seen which machine is meant
	}
	if code != http.StatusConflict || p.Code != api.CodeNotAllowed && op != holdfast.OpEnable || p.Cause == "" {
		s.t.Errorf("%s: answer %d, %+v; want 409 with cause and hint", op, code, p)
	}
	if wrong := wrongHint(p.Hint); wrong != "" {
		s.t.Errorf("%s: hint %q: %s", op, p.Hint, wrong)
	}
	if op != holdfast.OpEnable && (p.Cause != why.Reason || p.Hint != why.NextStep) {
		s.t.Errorf("%s is refused because %q, next %q; the item says %q, next %q", op, p.Cause, p.Hint, why.Reason, why.NextStep)
	}
}

// does asks for an operation that is allowed: it does what it is for.
func (s *rest) does(in situation, op holdfast.Operation) {
	s.t.Helper()
	if in.mend != nil {
		in.mend(s)
	}
	if c := s.check(op); !c.Allowed {
		s.t.Errorf("dry run of %s: %+v", op, c)
	}
	path, body := request(op)
	var raw json.RawMessage
	if code := s.post(path, body, &raw); code != http.StatusAccepted {
		s.t.Fatalf("%s: answer %d, %s", op, code, raw)
	}
	var j api.Job
	if err := json.Unmarshal(raw, &j); err != nil {
		s.t.Fatal(err)
	}
	if s.release != nil {
		s.release()
	}
	want := in.ends[op]
	if want == "" {
		want = api.JobSucceeded
	}
	if j = s.ended(j, nil); j.State != want {
		s.t.Errorf("job of %s: %s, want %s; %+v", op, j.State, want, j.Error)
	}
}
