package holdfast_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast"
)

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// itemIn returns a healthy item with a recovery point in a state.
func itemIn(s holdfast.State, d holdfast.Direction) holdfast.Item {
	return holdfast.Item{
		ID: "i1", Name: "db01", PrimarySite: "home", RecoverySite: "away", State: s, Direction: d,
		Status: holdfast.Status{Mode: holdfast.ModeContinuous,
			Newest: &holdfast.RecoveryPoint{ID: "p1", Timeline: 1, Position: 10, Time: t0, Consistency: holdfast.ConsistencyCrash}},
	}
}

// withJob gives the item a job where the state has one.
func withJob(it holdfast.Item) holdfast.Item {
	it.CurrentJob = "j1"
	return it
}

func TestEveryCellIsAnswered(t *testing.T) {
	t.Parallel()
	for _, s := range holdfast.States() {
		if s.Meaning() == "" || !s.Valid() {
			t.Errorf("state %s: no meaning", s)
		}
		for _, dir := range []holdfast.Direction{holdfast.Forward, holdfast.Reverse} {
			for _, op := range holdfast.Operations() {
				for _, it := range []holdfast.Item{itemIn(s, dir), withJob(itemIn(s, dir))} {
					d := it.Decide(op)
					if d.Operation != op {
						t.Errorf("%s %s %s: answer is about %s", s, dir, op, d.Operation)
					}
					if d.Allowed && (!d.Next.Valid() || d.Reason != "" || d.Advice != "") {
						t.Errorf("%s %s %s: allowed with next %q, reason %q, advice %q", s, dir, op, d.Next, d.Reason, d.Advice)
					}
					if !d.Allowed && (d.Next != "" || d.Reason == "" || d.Advice == "") {
						t.Errorf("%s %s %s: refused with next %q, reason %q, advice %q", s, dir, op, d.Next, d.Reason, d.Advice)
					}
					for _, text := range []string{d.Reason, d.Advice} {
						if strings.HasSuffix(text, ".") {
							t.Errorf("%s %s %s: %q ends with a full stop", s, dir, op, text)
						}
					}
				}
			}
		}
	}
}

func TestTableIsSound(t *testing.T) {
	t.Parallel()
	type key struct {
		from    holdfast.State
		op      holdfast.Operation
		outcome holdfast.Outcome
		dir     holdfast.Direction
	}
	seen := map[key]bool{}
	leaves := map[holdfast.State]bool{}
	for _, tr := range holdfast.Transitions() {
		if !tr.From.Valid() || !tr.To.Valid() {
			t.Errorf("%+v: unknown state", tr)
		}
		if (tr.Operation == "") == (tr.Outcome == "") {
			t.Errorf("%+v: wants an operation or an outcome", tr)
		}
		if tr.Operation != "" && !slices.Contains(holdfast.Operations(), tr.Operation) {
			t.Errorf("%+v: operation is not listed", tr)
		}
		for _, d := range []holdfast.Direction{holdfast.Forward, holdfast.Reverse} {
			if tr.Direction != "" && tr.Direction != d {
				continue
			}
			k := key{tr.From, tr.Operation, tr.Outcome, d}
			if seen[k] {
				t.Errorf("%+v: there twice", k)
			}
			seen[k] = true
		}
		if tr.To != tr.From {
			leaves[tr.From] = true
		}
	}
	// From everywhere there is a way on, and from everywhere but the end of a
	// migration there is one back to being protected.
	for _, s := range holdfast.States() {
		if !leaves[s] && s != holdfast.StateMigrated {
			t.Errorf("state %s has no way out", s)
		}
		if reach := reachable(s); !slices.Contains(reach, holdfast.StateProtected) && s != holdfast.StateMigrated {
			t.Errorf("from %s there is no way to protected: %v", s, reach)
		}
		if !slices.Contains(reachable(holdfast.StateUnprotected), s) {
			t.Errorf("state %s cannot be reached", s)
		}
	}
}

// reachable returns the states that the table leads to from one, in any direction.
func reachable(from holdfast.State) []holdfast.State {
	found := []holdfast.State{from}
	for i := 0; i < len(found); i++ {
		for _, tr := range holdfast.Transitions() {
			if tr.From == found[i] && !slices.Contains(found, tr.To) {
				found = append(found, tr.To)
			}
		}
	}
	return found
}

func TestAllowedByState(t *testing.T) {
	t.Parallel()
	const fwd, rev = holdfast.Forward, holdfast.Reverse
	tests := []struct {
		state holdfast.State
		dir   holdfast.Direction
		want  string
	}{
		{holdfast.StateUnprotected, fwd, "enable"},
		{holdfast.StateEnabling, fwd, "disable"},
		{holdfast.StateEnablingFailed, fwd, "enable disable"},
		{holdfast.StateInitialReplication, fwd, "resync change_policy switch_gateway disable"},
		{holdfast.StateProtected, fwd, "test_failover failover planned_failover resync change_policy switch_gateway disable"},
		{holdfast.StateProtected, rev, "test_failover failover planned_failover failback resync change_policy switch_gateway disable"},
		{holdfast.StateReplicationBroken, fwd, "test_failover failover resync change_policy switch_gateway disable"},
		{holdfast.StateFailingOver, fwd, ""},
		{holdfast.StateFailoverFailed, fwd, "failover undo_failover disable"},
		{holdfast.StateFailoverFailed, rev, "failover undo_failover disable"},
		{holdfast.StateUndoingFailover, fwd, ""},
		{holdfast.StateCommitPending, fwd, "change_point commit undo_failover complete_migration disable"},
		{holdfast.StateCommitPending, rev, "change_point commit undo_failover disable"},
		{holdfast.StateChangingPoint, fwd, ""},
		{holdfast.StateChangingPointFailed, fwd, "change_point undo_failover disable"},
		{holdfast.StateCommitting, fwd, ""},
		{holdfast.StateCommitFailed, fwd, "commit disable"},
		{holdfast.StateCommitted, fwd, "reprotect complete_migration disable"},
		{holdfast.StateCommitted, rev, "reprotect disable"},
		{holdfast.StateReprotecting, fwd, ""},
		{holdfast.StateReprotectFailed, fwd, "reprotect disable"},
		{holdfast.StateMigrating, fwd, ""},
		{holdfast.StateMigrationFailed, fwd, "complete_migration disable"},
		{holdfast.StateMigrated, fwd, ""},
		{holdfast.StateDisabling, fwd, ""},
		{holdfast.StateDisablingFailed, fwd, "disable"},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.state, " ", tt.dir), func(t *testing.T) {
			t.Parallel()
			var got []string
			for _, op := range holdfast.Operations() {
				if itemIn(tt.state, tt.dir).Decide(op).Allowed {
					got = append(got, string(op))
				}
			}
			if diff := cmp.Diff(tt.want, strings.Join(got, " ")); diff != "" {
				t.Errorf("allowed (-want +got):\n%s", diff)
			}
		})
	}
	// With a job at work, cancelling it is all that there is, where that is safe,
	// and to test what the vault has.
	cancellable := []holdfast.State{holdfast.StateEnabling, holdfast.StateInitialReplication, holdfast.StateProtected,
		holdfast.StateReplicationBroken, holdfast.StateFailingOver, holdfast.StateReprotecting}
	for _, s := range holdfast.States() {
		for _, op := range holdfast.Operations() {
			want := op == holdfast.OpCancel && slices.Contains(cancellable, s) ||
				op == holdfast.OpTestFailover && (s == holdfast.StateProtected || s == holdfast.StateReplicationBroken)
			if got := withJob(itemIn(s, fwd)).Decide(op).Allowed; got != want {
				t.Errorf("%s with a job: %s allowed: got %v, want %v", s, op, got, want)
			}
		}
	}
}

// TestGuards are the guards that REQUIREMENTS section 3.2 names.
func TestGuards(t *testing.T) {
	t.Parallel()
	change := func(it holdfast.Item, f func(*holdfast.Item)) holdfast.Item { f(&it); return it }
	protected := itemIn(holdfast.StateProtected, holdfast.Forward)
	back := itemIn(holdfast.StateProtected, holdfast.Reverse)
	pending := itemIn(holdfast.StateCommitPending, holdfast.Forward)
	committed := itemIn(holdfast.StateCommitted, holdfast.Forward)
	noPoint := func(it *holdfast.Item) { it.Status.Newest = nil }
	testing_ := func(s holdfast.TestState) holdfast.Item {
		return change(protected, func(it *holdfast.Item) { it.Tests = []holdfast.Test{{Handle: "t1", State: s}} })
	}
	ill := change(back, func(it *holdfast.Item) {
		it.Status.Findings = []holdfast.Finding{holdfast.NewFinding(holdfast.CodeRPOExceeded, "", t0)}
	})
	tests := []struct {
		name         string
		item         holdfast.Item
		op           holdfast.Operation
		reason, hint string // parts of them; "" allowed
	}{
		{"failover during the initial replication", itemIn(holdfast.StateInitialReplication, holdfast.Forward), holdfast.OpFailover, "initial replication has not finished", "Wait"},
		{"failover without a point", change(protected, noPoint), holdfast.OpFailover, "no recovery point", "Wait"},
		{"failback without a point", change(back, noPoint), holdfast.OpFailback, "no recovery point", "Wait"},
		{"test without a point", change(protected, noPoint), holdfast.OpTestFailover, "no recovery point", "Wait"},
		{"test in reverse", back, holdfast.OpTestFailover, "", ""},
		{"test while failed over", pending, holdfast.OpTestFailover, "failed over", "reprotect"},
		{"test during failover", itemIn(holdfast.StateFailingOver, holdfast.Forward), holdfast.OpTestFailover, "failover is running", "Wait"},
		{"test during a test", testing_(holdfast.TestRunning), holdfast.OpTestFailover, "", ""},
		{"failover during a test", testing_(holdfast.TestRunning), holdfast.OpFailover, "", ""},
		{"failover while a test starts", testing_(holdfast.TestStarting), holdfast.OpFailover, "", ""},
		{"test during a job", withJob(protected), holdfast.OpTestFailover, "", ""},
		{"clean up during a job", withJob(testing_(holdfast.TestRunning)), holdfast.OpCleanUp, "", ""},
		{"disable after a failed test", testing_(holdfast.TestFailed), holdfast.OpDisable, "test failover waits for clean-up", "Clean"},
		{"clean up a running test", testing_(holdfast.TestRunning), holdfast.OpCleanUp, "", ""},
		{"clean up a failed test", testing_(holdfast.TestFailed), holdfast.OpCleanUp, "", ""},
		{"clean up while starting", testing_(holdfast.TestStarting), holdfast.OpCleanUp, "being started", "Wait"},
		{"clean up twice", testing_(holdfast.TestCleaningUp), holdfast.OpCleanUp, "already", "Nothing"},
		{"clean up nothing", protected, holdfast.OpCleanUp, "there is no test failover", "Nothing"},
		{"commit twice", committed, holdfast.OpCommit, "committed already", "Reprotect"},
		{"change point after commit", committed, holdfast.OpChangePoint, "committed", "Reprotect"},
		{"reprotect before commit", pending, holdfast.OpReprotect, "not committed", "commit the failover, then reprotect"},
		{"failback before reprotect", committed, holdfast.OpFailback, "does not replicate back yet", "Reprotect"},
		{"failback when not healthy", ill, holdfast.OpFailback, "not healthy", "findings"},
		{"emergency failover home when not healthy", ill, holdfast.OpFailover, "", ""},
		{"failback when healthy", back, holdfast.OpFailback, "", ""},
		{"failback forward", protected, holdfast.OpFailback, "primary site already", "failover"},
		{"change point of a failback", itemIn(holdfast.StateCommitPending, holdfast.Reverse), holdfast.OpChangePoint, "", ""},
		{"anything during a job", withJob(protected), holdfast.OpFailover, "job is working", "j1"},
		{"cancel without a job", protected, holdfast.OpCancel, "no job", "Nothing"},
		{"after migration", itemIn(holdfast.StateMigrated, holdfast.Forward), holdfast.OpFailback, "no way back", "anew"},
		{"no such operation", protected, "explode", "no such operation", "item show"},
		{"a state of the future", itemIn("hovering", holdfast.Forward), holdfast.OpFailover, "hovering", "version"},
		{"an item without direction is forward", change(protected, func(it *holdfast.Item) { it.Direction = "" }), holdfast.OpTestFailover, "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := tt.item.Decide(tt.op)
			if d.Allowed != (tt.reason == "") {
				t.Fatalf("allowed: %v (%s)", d.Allowed, d.Reason)
			}
			if !strings.Contains(d.Reason, tt.reason) || !strings.Contains(d.Advice, tt.hint) {
				t.Errorf("reason %q, want %q in it; advice %q, want %q in it", d.Reason, tt.reason, d.Advice, tt.hint)
			}
		})
	}
}

func TestCheckAndApply(t *testing.T) {
	t.Parallel()
	it := itemIn(holdfast.StateProtected, holdfast.Forward)
	next, err := it.Apply(holdfast.OpFailover)
	if err != nil || next.State != holdfast.StateFailingOver || it.State != holdfast.StateProtected {
		t.Fatalf("apply failover: %v; next %s, before %s", err, next.State, it.State)
	}
	if _, err := next.Apply(holdfast.OpFailover); !errors.Is(err, &holdfast.Error{Kind: holdfast.KindNotAllowed}) || holdfast.HintOf(err) == "" {
		t.Errorf("second failover: got %v", err)
	}
	err = it.Check(holdfast.OpCompleteMigration)
	if holdfast.KindOf(err) != holdfast.KindNotAllowed || !strings.Contains(err.Error(), "not available in this version") {
		t.Errorf("operation of a later version: got %v", err)
	}
	allowed := it.Allowed()
	if len(allowed) != len(holdfast.Operations()) {
		t.Fatalf("%d answers for %d operations", len(allowed), len(holdfast.Operations()))
	}
	for i, a := range allowed {
		if op := holdfast.Operations()[i]; a.Operation != op {
			t.Errorf("answer %d is about %s, want %s", i, a.Operation, op)
		}
		if !a.Operation.Available() && (a.Allowed || a.Reason != "not available in this version") {
			t.Errorf("%s: got %+v", a.Operation, a)
		}
		if a.Operation.Available() && a != it.Decide(a.Operation) {
			t.Errorf("%s: got %+v, want the table's answer", a.Operation, a)
		}
	}
}

// TestFullCycle goes once out and home again, and looks where the machine works.
func TestFullCycle(t *testing.T) {
	t.Parallel()
	it := itemIn(holdfast.StateUnprotected, holdfast.Forward)
	point := *it.Status.Newest
	steps := []struct {
		op      holdfast.Operation
		outcome holdfast.Outcome
		state   holdfast.State
		dir     holdfast.Direction
		active  string
	}{
		{op: holdfast.OpEnable, state: holdfast.StateEnabling, dir: holdfast.Forward, active: "home"},
		{outcome: holdfast.OutcomeSucceeded, state: holdfast.StateInitialReplication, dir: holdfast.Forward, active: "home"},
		{outcome: holdfast.OutcomeReady, state: holdfast.StateProtected, dir: holdfast.Forward, active: "home"},
		{op: holdfast.OpFailover, state: holdfast.StateFailingOver, dir: holdfast.Forward, active: "home"},
		{outcome: holdfast.OutcomeSucceeded, state: holdfast.StateCommitPending, dir: holdfast.Forward, active: "away"},
		{op: holdfast.OpChangePoint, state: holdfast.StateChangingPoint, dir: holdfast.Forward, active: "away"},
		{outcome: holdfast.OutcomeSucceeded, state: holdfast.StateCommitPending, dir: holdfast.Forward, active: "away"},
		{op: holdfast.OpCommit, state: holdfast.StateCommitting, dir: holdfast.Forward, active: "away"},
		{outcome: holdfast.OutcomeSucceeded, state: holdfast.StateCommitted, dir: holdfast.Forward, active: "away"},
		{op: holdfast.OpReprotect, state: holdfast.StateReprotecting, dir: holdfast.Forward, active: "away"},
		{outcome: holdfast.OutcomeSucceeded, state: holdfast.StateInitialReplication, dir: holdfast.Reverse, active: "away"},
		{outcome: holdfast.OutcomeReady, state: holdfast.StateProtected, dir: holdfast.Reverse, active: "away"},
		{op: holdfast.OpFailback, state: holdfast.StateFailingOver, dir: holdfast.Reverse, active: "away"},
		{outcome: holdfast.OutcomeSucceeded, state: holdfast.StateCommitPending, dir: holdfast.Reverse, active: "home"},
		{op: holdfast.OpCommit, state: holdfast.StateCommitting, dir: holdfast.Reverse, active: "home"},
		{outcome: holdfast.OutcomeSucceeded, state: holdfast.StateCommitted, dir: holdfast.Reverse, active: "home"},
		{op: holdfast.OpReprotect, state: holdfast.StateReprotecting, dir: holdfast.Reverse, active: "home"},
		{outcome: holdfast.OutcomeSucceeded, state: holdfast.StateInitialReplication, dir: holdfast.Forward, active: "home"},
		{outcome: holdfast.OutcomeReady, state: holdfast.StateProtected, dir: holdfast.Forward, active: "home"},
	}
	for i, s := range steps {
		var err error
		if s.op != "" {
			d := it.Decide(s.op)
			if !d.Allowed {
				t.Fatalf("step %d: %s refused: %s", i, s.op, d.Reason)
			}
			it.State = d.Next
		} else if it, err = it.After(s.outcome); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		if it.State == holdfast.StateCommitPending {
			it.RecoveryPoint = &point
		}
		if it.State != s.state || it.Direction != s.dir || it.ActiveSite() != s.active {
			t.Fatalf("step %d: state %s direction %s active %s, want %s %s %s", i, it.State, it.Direction, it.ActiveSite(), s.state, s.dir, s.active)
		}
		if it.TargetSite() == it.ActiveSite() {
			t.Errorf("step %d: target is the active site", i)
		}
		if it.State == holdfast.StateInitialReplication && it.RecoveryPoint != nil {
			t.Errorf("step %d: recovery point was not cleared", i)
		}
	}
}

func TestActiveSiteWhileDisabling(t *testing.T) {
	t.Parallel()
	it := itemIn(holdfast.StateDisabling, holdfast.Forward)
	if got := it.ActiveSite(); got != "home" {
		t.Errorf("never failed over: active %s, want home", got)
	}
	it.RecoveryPoint = it.Status.Newest
	if got := it.ActiveSite(); got != "away" {
		t.Errorf("failed over: active %s, want away", got)
	}
	it.Direction = holdfast.Reverse
	if got := it.ActiveSite(); got != "home" {
		t.Errorf("failed back: active %s, want home", got)
	}
}

func TestAfterRefusesWhatIsNotExpected(t *testing.T) {
	t.Parallel()
	it := itemIn(holdfast.StateProtected, holdfast.Forward)
	got, err := it.After(holdfast.OutcomeSucceeded)
	if holdfast.KindOf(err) != holdfast.KindNotAllowed {
		t.Errorf("got %v", err)
	}
	if diff := cmp.Diff(it, got); diff != "" {
		t.Errorf("item changed (-before +after):\n%s", diff)
	}
}
