package plan_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/holdfast-dr/holdfast/internal/plan"
)

const whole = `# the shop
name: shop
description: The shop
at_once: 4
objectives: {rpo: 5m, rto: 1h}
networks:
  - {from: lan, to: dr, test: bubble}
shutdown: [front, queue, data]
groups:
  - name: data
    before:
      - name: dns
        runs: [planned, unplanned]
        directions: [primary_to_recovery]
        script: {path: dns.sh, args: [a, b], env: {A: "1"}, secrets: {TOKEN: {file: dns-token}}}
        timeout: 30s
        repeatable: true
        on_failure: stop
    machines:
      - db1
      - item: db2
        name: db2-dr
        test_network: bubble
        nics:
          - {card: lan, address: 10.8.0.12/24, gateway: 10.8.0.1, dns: [10.8.0.2, 10.8.0.3], test: {address: dhcp}}
          - {card: san, address: [10.9.0.12/24, fd00::12/64], test: {address: keep}}
        addressing: cloud_init
        verify: {agent: true, tcp: 5432, timeout: 2m, screenshot: true}
  - name: queue
    needs: []
    machines: [mq]
  - name: front
    needs: [data, queue]
    machines: [web]
    after:
      - {name: page, webhook: {url: "https://hooks/x", headers: {A: b}}}
      - {name: look, manual: {instructions: Look}}
      - {name: up, wait: {http: "http://web/"}}
      - {name: inside, guest: {item: web, command: [/bin/true]}}
clean_up:
  after:
    - {name: bye, script: {path: bye.sh}}
drill: {every: 30d, option: latest_processed, keep: 10m}
`

func parse(t *testing.T, text string) *plan.Plan {
	t.Helper()
	p, err := plan.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestRoundTrip writes a plan from what was read of it, and reads that: nothing
// that was given may be dropped.
func TestRoundTrip(t *testing.T) {
	p := parse(t, whole)
	b, err := yaml.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	again := parse(t, string(b))
	if d := cmp.Diff(p, again); d != "" {
		t.Error(d)
	}
	if d := plan.Diff(p, again); len(d) != 0 {
		t.Errorf("a plan differs from itself: %v", d)
	}
	if p.Drill.Every != plan.Duration(30*24*time.Hour) || p.Groups[0].Machines[1].Verify.TCP != 5432 || !p.Groups[0].Before[0].Repeatable {
		t.Errorf("read %+v", p)
	}
}

func ids(steps []plan.Step) string {
	var out []string
	for _, s := range steps {
		out = append(out, s.ID)
	}
	return strings.Join(out, " ")
}

// TestSteps looks at the steps of each kind of run, in both directions.
func TestSteps(t *testing.T) {
	p := parse(t, whole)
	for _, c := range []struct {
		kind plan.Kind
		dir  plan.Direction
		want string
	}{
		{plan.Test, plan.ToRecovery, "resolve stage-001 stage-002 front.after.page front.after.look front.after.up front.after.inside"},
		{plan.Unplanned, plan.ToRecovery, "resolve data.before.dns stage-001 stage-002 front.after.page front.after.look front.after.up front.after.inside"},
		{plan.Unplanned, plan.ToPrimary, "resolve stage-001 stage-002 front.after.page front.after.look front.after.up front.after.inside"},
		{plan.Planned, plan.ToRecovery, "resolve shutdown-001 shutdown-002 shutdown-003 data.before.dns stage-001 stage-002 front.after.page front.after.look front.after.up front.after.inside"},
		{plan.Reprotect, plan.ToRecovery, "resolve stage-001 stage-002"},
		{plan.CleanUp, plan.ToRecovery, "resolve stage-001 stage-002 clean_up.after.bye"},
	} {
		if got := ids(p.Steps(c.kind, c.dir)); got != c.want {
			t.Errorf("%s %s: %s, want %s", c.kind, c.dir, got, c.want)
		}
	}
	first := p.Steps(plan.Test, plan.ToRecovery)[1]
	if first.Group != "data, queue" || len(first.Machines) != 3 {
		t.Errorf("the first stage is %+v", first)
	}
	if first = p.Steps(plan.CleanUp, plan.ToRecovery)[1]; first.Group != "front" {
		t.Errorf("what is removed first is %+v", first)
	}
	p.Shutdown = nil
	if s := p.Steps(plan.Planned, plan.ToRecovery); s[1].Group != "front" || s[2].Group != "data, queue" {
		t.Errorf("without an order of its own, the shutdown is %+v", s[1:3])
	}
}

// TestWrong has everything that can be wrong with a plan named, with its line.
func TestWrong(t *testing.T) {
	head := "name: shop\n"
	group := "groups:\n  - name: a\n    machines: [x]\n"
	act := func(text string) string { return head + group + "    before:\n      - " + text + "\n" }
	nics := func(text string) string {
		return head + "groups:\n  - name: a\n    machines:\n      - item: web\n        nics: [" + text + "]\n"
	}
	for _, c := range []struct{ text, want string }{
		{"", "empty"},
		{head, "0 groups"},
		{head + group + "---\nname: b\n", "second document"},
		{head + group + "colour: red\n", "line 5: colour is not known here: want one of at_once"},
		{head + "groups:\n  - name: a\n    machines: [{item: x, nam: y}]\n", "line 4: nam is not known"},
		{head + "groups:\n  - name: a\n    machines: [{item: x, verify: {agnt: true}}]\n", "line 4: agnt is not known"},
		{head + "groups:\n  - name: a\n    machines: [x]\n    before: yes\n", "line 5: this is text, want a list"},
		{head + "groups:\n  - name: a\n    machines: [null]\n", "line 4: an entry of this list is empty"},
		{"name: a b\n" + group, `line 1: name is "a b"`},
		{head + group + "at_once: -1\n", "line 5: at_once is -1"},
		{head + group + "  - name: a\n    machines: [y]\n", "line 5: there are two groups a"},
		{head + group + "  - name: b\n    machines: [x]\n", "item x is in group a already"},
		{head + group + "  - name: b\n    needs: [c]\n    machines: [y]\n", `needs group "c", which there is not`},
		{head + "groups:\n  - {name: a, needs: [b], machines: [x]}\n  - {name: b, needs: [a], machines: [y]}\n", "need each other in a circle"},
		{head + group + "shutdown: [b]\n", `shutdown names group "b"`},
		{head + group + "shutdown: []\n", "does not name group a"},
		{act("{name: n}"), "line 6: action n has 0 of script"},
		{act("{name: n, script: {path: a}, manual: {instructions: b}}"), "has 2 of script"},
		{act("{name: n, script: {path: ../a}}"), "below the server's scripts directory"},
		{act("{name: n, script: {path: /a}}"), "below the server's scripts directory"},
		{act("{name: n, script: {path: a, secrets: {T: {}}}}"), "want file or env"},
		{act("{name: n, script: {path: a, secrets: {T: {file: ../x}}}}"), "secrets directory"},
		{act("{name: n, guest: {item: y, command: [a]}}"), `names item "y"`},
		{act("{name: n, guest: {item: x}}"), "names no command"},
		{act("{name: n, webhook: {url: ftp://a}}"), "no URL"},
		{act("{name: n, webhook: {url: 'https://a:b@c/'}}"), "plans hold no secrets"},
		{act("{name: n, webhook: {url: https://a, method: LOOK}}"), `method "LOOK"`},
		{act("{name: n, manual: {instructions: ' '}}"), "no instructions"},
		{act("{name: n, wait: {tcp: host}}"), "HOST:PORT"},
		{act("{name: n, wait: {tcp: 'a:1', ping: b}}"), "waits for 2"},
		{act("{name: n, manual: {instructions: a}, runs: [sometimes]}"), `"sometimes" is no kind of run`},
		{act("{name: n, manual: {instructions: a}, directions: [up]}"), `"up" is no direction`},
		{act("{name: n, manual: {instructions: a}, on_failure: cry}"), `on_failure is "cry"`},
		{act("{name: n, wait: {ping: a}, timeout: 48h}"), "too long"},
		{act("{name: n, wait: {ping: a}, timeout: soon}"), `line 6: "soon" is not a time span`},
		{act("{name: n, wait: {ping: a}}\n      - {name: n, wait: {ping: a}}"), "two actions n"},
		{head + group + "drill: {every: 1m}\n", "a drill every 1m0s"},
		{head + group + "drill: {every: 1d, option: time}\n", `option "time"`},
		{head + group + "networks: [{to: b}]\n", `a mapping is from network ""`},
		{nics("{address: 10.8.0.12}"), `address "10.8.0.12"`},
		{nics("{card: a}"), "has no address"},
		{nics("{address: keep, dns: 10.8.0.1}"), "keep goes with nothing else"},
		{nics("{address: [dhcp, 10.8.0.12/24]}"), "dhcp with no other address"},
		{nics("{address: dhcp, gateway: gw}"), `"gw" is no address`},
		{nics("{address: dhcp, mask: 24}"), "mask is not known here: want one of address, card, dns, gateway, test"},
		{nics("{address: dhcp, test: {address: dhcp, card: a}}"), "card is not known here"},
		{nics("{address: dhcp}, {card: b, address: dhcp}"), "several entries mean the same card"},
		{nics("{card: a, address: 10.8.0.12/24}, {card: b, address: 10.8.0.12/16}"), "items web and web would both have the address 10.8.0.12"},
		{nics("{address: 10.8.0.12/24, test: {address: 10.8.0.x/24}}"), `address "10.8.0.x/24"`},
		{nics("{address: {a: b}}"), "want text or a list"},
		{nics("{address: dhcp}]\n        addressing: [magic"), "this is a list, want text"},
		{nics("{address: dhcp}") + "        addressing: magic\n", `addressing is "magic"`},
		{strings.Repeat("#", plan.MaxText+1), "at most"},
		{"name: [\n", "did not find expected"},
	} {
		_, err := plan.Parse(c.text)
		var wrong *plan.Error
		if !errors.As(err, &wrong) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.200s\n→ %v, want %q", c.text, err, c.want)
		}
	}
}

func TestDiff(t *testing.T) {
	a := parse(t, whole)
	changed := strings.NewReplacer("at_once: 4", "at_once: 5", "[mq]", "[mq, new]", "path: dns.sh", "path: dns2.sh", "      - db1\n", "",
		"machines: [web]", "machines: [web, db1]", "{name: up, wait", "{name: up2, wait").Replace(whole)
	var got []string
	for _, c := range plan.Diff(a, parse(t, changed)) {
		got = append(got, c.String())
	}
	want := []string{"plan, at_once: 4 becomes 5", "group data, before, action dns, script: {", "machine db1: moved from group data to group front",
		"group queue: added machine new", "group front, after: removed action up", "group front, after: added action up2"}
	for _, w := range want {
		if !slices.ContainsFunc(got, func(g string) bool { return strings.HasPrefix(g, w) }) {
			t.Errorf("no line %q in %q", w, got)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d lines, want %d: %q", len(got), len(want), got)
	}
	if d := plan.Diff(nil, a); len(d) == 0 {
		t.Error("a new plan does not differ from none")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(whole)
	f.Add("name: a\ngroups: [{name: b, machines: [c, {item: d}]}]\n")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := plan.Parse(text)
		if err != nil {
			return
		}
		for _, k := range plan.Kinds() {
			seen := map[string]bool{}
			for _, s := range p.Steps(k, plan.ToRecovery) {
				if seen[s.ID] {
					t.Errorf("two steps %s", s.ID)
				}
				seen[s.ID] = true
			}
		}
		b, err := yaml.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		again, err := plan.Parse(string(b))
		if err != nil {
			t.Fatalf("what was written cannot be read: %v\n%s", err, b)
		}
		if d := plan.Diff(p, again); len(d) != 0 {
			t.Errorf("it differs from itself: %v", fmt.Sprint(d))
		}
	})
}

// TestAllProblemsAtOnce names everything that is wrong with a text, not only the
// first.
func TestAllProblemsAtOnce(t *testing.T) {
	_, err := plan.Parse("name: shop\ngroups:\n  - name: a\n    machines: [{item: x, verify: {agnet: true}}, {itm: y}]\n    after: [{name: b, wait: {ping: c}, timeout: soon}]\ndrills: {every: 1d}\n")
	var wrong *plan.Error
	if !errors.As(err, &wrong) || len(wrong.Problems) != 4 {
		t.Errorf("%v", err)
	}
}
