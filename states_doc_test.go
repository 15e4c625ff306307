package holdfast_test

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast"
)

var update = flag.Bool("update", false, "write generated documents instead of comparing")

// TestStatesDocument keeps docs/states.md what the table says.
func TestStatesDocument(t *testing.T) {
	t.Parallel()
	golden(t, "docs/states.md", statesDocument())
}

// TestFindingsDocument keeps docs/findings.md what the table says.
func TestFindingsDocument(t *testing.T) {
	t.Parallel()
	golden(t, "docs/findings.md", findingsDocument())
}

func golden(t *testing.T, file, want string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll("docs", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what the code says; run: go test . -update", file)
	}
}

func statesDocument() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("# An item's states")
	p("")
	p("Generated from the table in state_table.go by `go test . -update`; do not edit.")
	p("")
	p("The direction (forward: from the primary to the recovery site; reverse: back) is an attribute of the item, a test")
	p("failover and health are separate dimensions; none of them is a state. Labels in ‹› are outcomes of what goes on in a")
	p("state, the others are operations that a user asks for.")
	p("")
	p("```mermaid")
	p("stateDiagram-v2")
	p("    [*] --> %s", holdfast.StateUnprotected)
	for _, l := range edges() {
		p("    %s", l)
	}
	p("    %s --> [*]", holdfast.StateMigrated)
	p("```")
	p("")
	p("## States")
	p("")
	p("| state | meaning |")
	p("| --- | --- |")
	for _, s := range holdfast.States() {
		p("| `%s` | %s |", s, s.Meaning())
	}
	p("")
	p("## Transitions")
	p("")
	p("| from | operation | outcome | direction | to |")
	p("| --- | --- | --- | --- | --- |")
	for _, tr := range holdfast.Transitions() {
		dir := string(tr.Direction)
		if dir == "" {
			dir = "both"
		}
		to := fmt.Sprintf("`%s`", tr.To)
		if tr.Flips {
			to += ", direction turned round"
		}
		p("| `%s` | %s | %s | %s | %s |", tr.From, tr.Operation, tr.Outcome, dir, to)
	}
	p("")
	p("## What is allowed")
	p("")
	p("For a healthy item with a recovery point and without a test failover; where a job works, while it does.")
	p("")
	p("| state | operations |")
	p("| --- | --- |")
	for _, s := range holdfast.States() {
		p("| `%s` | %s |", s, strings.Join(allowed(s), ", "))
	}
	p("")
	p("While a job works on the item in a state that it can stay in, everything but cancel is refused, and what has to do")
	p("with test failovers. While there is a test failover, clean_up is allowed and disable is not; it stands in the way of")
	p("nothing else. A failover of any kind, a test and a change of point need a recovery point; a failback needs a healthy")
	p("item.")
	p("")
	p("## Operations")
	p("")
	var later []string
	for _, op := range holdfast.Operations() {
		if !op.Available() {
			later = append(later, fmt.Sprintf("`%s`", op))
		}
	}
	p("Not available in this version, whatever the state: %s.", strings.Join(later, ", "))
	p("")
	p("## What is refused, why, and what to do first")
	p("")
	p("For an idle, healthy item with a recovery point. f: only in the forward direction, r: only in reverse.")
	for _, s := range holdfast.States() {
		p("")
		p("### %s", s)
		p("")
		p("| refused | reason | what to do first |")
		p("| --- | --- | --- |")
		for _, r := range refusals(s) {
			p("| %s | %s | %s |", strings.Join(r.ops, ", "), r.reason, r.advice)
		}
	}
	return b.String()
}

// allowed returns what can be asked for in a state. On an item in a state that
// ends by itself a job works.
func allowed(s holdfast.State) []string {
	var all []string
	for _, op := range holdfast.Operations() {
		in := func(d holdfast.Direction) bool {
			it := itemIn(s, d)
			if slices.ContainsFunc(holdfast.Transitions(), func(tr holdfast.Transition) bool {
				return tr.From == s && tr.Outcome == holdfast.OutcomeSucceeded
			}) {
				it = withJob(it)
			}
			return it.Check(op) == nil
		}
		switch f, r := in(holdfast.Forward), in(holdfast.Reverse); {
		case f && r:
			all = append(all, fmt.Sprintf("`%s`", op))
		case f:
			all = append(all, fmt.Sprintf("`%s` (%s)", op, holdfast.Forward))
		case r:
			all = append(all, fmt.Sprintf("`%s` (%s)", op, holdfast.Reverse))
		}
	}
	if len(all) == 0 {
		return []string{"none"}
	}
	return all
}

// edges returns the lines of the diagram: one for each pair of states.
func edges() []string {
	type pair struct{ from, to holdfast.State }
	var order []pair
	labels := map[pair][]string{}
	for _, tr := range holdfast.Transitions() {
		if tr.From == tr.To || tr.Operation == holdfast.OpDisable {
			continue // disable leads from nearly everywhere to disabling; see the table
		}
		label := string(tr.Operation)
		if tr.Outcome != "" {
			label = "‹" + string(tr.Outcome) + "›"
		}
		if tr.Direction != "" {
			label += " (" + string(tr.Direction) + ")"
		}
		if tr.Flips {
			label += " ⇄"
		}
		k := pair{tr.From, tr.To}
		if labels[k] == nil {
			order = append(order, k)
		}
		labels[k] = append(labels[k], label)
	}
	var lines []string
	for _, k := range order {
		lines = append(lines, fmt.Sprintf("%s --> %s: %s", k.from, k.to, strings.Join(labels[k], ", ")))
	}
	return append(lines, fmt.Sprintf("%s --> %s: disable, and from most other states", holdfast.StateProtected, holdfast.StateDisabling))
}

type refused struct {
	ops            []string
	reason, advice string
}

// refusals returns what is refused in a state, operations with the same answer
// together.
func refusals(s holdfast.State) []refused {
	var all []refused
	add := func(op string, d holdfast.AllowedOperation) {
		i := slices.IndexFunc(all, func(r refused) bool { return r.reason == d.Reason && r.advice == d.Advice })
		if i < 0 {
			all = append(all, refused{reason: d.Reason, advice: d.Advice})
			i = len(all) - 1
		}
		all[i].ops = append(all[i].ops, op)
	}
	for _, op := range holdfast.Operations() {
		f, r := itemIn(s, holdfast.Forward).Decide(op), itemIn(s, holdfast.Reverse).Decide(op)
		if f == r {
			if !f.Allowed {
				add(string(op), f)
			}
			continue
		}
		if !f.Allowed {
			add(string(op)+" (f)", f)
		}
		if !r.Allowed {
			add(string(op)+" (r)", r)
		}
	}
	return all
}

func findingsDocument() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("# Findings")
	p("")
	p("Generated from the table in health.go by `go test . -update`; do not edit.")
	p("")
	p("What can be wrong with an item. An item's health is the worst of its findings, where infos do not count; it never")
	p("changes the item's state.")
	for _, f := range holdfast.Findings() {
		p("")
		p("## %s %s (%s)", f.Code, f.Name, f.Severity)
		p("")
		p("%s.", f.Summary)
		p("")
		p("- Cause: %s.", f.Cause)
		p("- What to do: %s.", f.Advice)
	}
	return b.String()
}
