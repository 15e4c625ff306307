package plan

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// slug is how plans, groups and actions may be named.
var slug = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// checker finds what is wrong with a plan that could be read.
type checker struct {
	plan     *Plan
	root     *yaml.Node
	problems []Problem
}

func (c *checker) check() []Problem {
	p := c.plan
	if !slug.MatchString(p.Name) {
		c.add([]any{"name"}, "name is %q: want 1 to 63 letters, digits, dots, dashes or underscores", p.Name)
	}
	if p.AtOnce < 0 || p.AtOnce > MaxMachines {
		c.add([]any{"at_once"}, "at_once is %d: want 1 to %d", p.AtOnce, MaxMachines)
	}
	if len(p.Groups) == 0 || len(p.Groups) > MaxGroups {
		c.add([]any{"groups"}, "there are %d groups: want 1 to %d", len(p.Groups), MaxGroups)
	}
	if n := len(p.Machines()); n > MaxMachines {
		c.add([]any{"groups"}, "there are %d machines: at most %d in one plan", n, MaxMachines)
	}
	c.missing(c.root)
	c.groups()
	c.machines()
	c.actions()
	c.order()
	c.networks()
	c.addresses()
	c.drill()
	slices.SortStableFunc(c.problems, func(a, b Problem) int { return a.Line - b.Line })
	return c.problems
}

// add notes a problem of the value that a path of keys and indices leads to.
func (c *checker) add(at []any, format string, args ...any) {
	c.problems = append(c.problems, Problem{c.line(at), fmt.Sprintf(format, args...)})
}

// line finds the line of a value, or of what it would be in.
func (c *checker) line(at []any) int {
	n := c.root
	if n.Kind == yaml.DocumentNode && len(n.Content) > 0 {
		n = n.Content[0]
	}
	for _, key := range at {
		next := child(n, key)
		if next == nil {
			break
		}
		n = next
	}
	return n.Line
}

func child(n *yaml.Node, key any) *yaml.Node {
	switch k := key.(type) {
	case string:
		for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == k {
				return n.Content[i+1]
			}
		}
	case int:
		if n.Kind == yaml.SequenceNode && k < len(n.Content) {
			return n.Content[k]
		}
	}
	return nil
}

// missing notes entries of lists that have nothing in them: their reader leaves
// them out.
func (c *checker) missing(n *yaml.Node) {
	for _, e := range n.Content {
		if n.Kind == yaml.SequenceNode && e.ShortTag() == "!!null" {
			c.problems = append(c.problems, Problem{e.Line, "an entry of this list is empty"})
		}
		c.missing(e)
	}
}

func (c *checker) groups() {
	seen := map[string]bool{}
	for i, g := range c.plan.Groups {
		at := []any{"groups", i}
		switch {
		case !slug.MatchString(g.Name):
			c.add(append(at, "name"), "a group's name is %q: want 1 to 63 letters, digits, dots, dashes or underscores", g.Name)
		case seen[g.Name]:
			c.add(append(at, "name"), "there are two groups %s", g.Name)
		}
		seen[g.Name] = true
		if g.Needs == nil {
			continue
		}
		for j, n := range *g.Needs {
			if !slices.ContainsFunc(c.plan.Groups, func(o Group) bool { return o.Name == n }) {
				c.add(append(at, "needs", j), "group %s needs group %q, which there is not", g.Name, n)
			}
		}
	}
	if _, loop := c.plan.stages(); len(loop) > 0 {
		c.add([]any{"groups"}, "groups %s need each other in a circle", strings.Join(loop, ", "))
	}
}

func (c *checker) machines() {
	in := map[string]string{}
	names := map[string]string{}
	for i, g := range c.plan.Groups {
		for j, m := range g.Machines {
			at := []any{"groups", i, "machines", j}
			if m.Item == "" {
				c.add(at, "a machine of group %s names no item", g.Name)
				continue
			}
			if other, twice := in[m.Item]; twice {
				c.add(at, "item %s is in group %s already: a machine is in one group of a plan", m.Item, other)
			}
			in[m.Item] = g.Name
			if m.Name == "" {
				continue
			}
			if other, taken := names[m.Name]; taken {
				c.add(at, "items %s and %s would both be called %s", other, m.Item, m.Name)
			}
			names[m.Name] = m.Item
		}
	}
}

func (c *checker) actions() {
	n := 0
	list := func(at []any, actions []Action) {
		seen := map[string]bool{}
		for i, a := range actions {
			n++
			c.action(append(slices.Clone(at), i), a)
			if seen[a.Name] {
				c.add(append(slices.Clone(at), i, "name"), "there are two actions %s in this list", a.Name)
			}
			seen[a.Name] = true
		}
	}
	for i, g := range c.plan.Groups {
		list([]any{"groups", i, "before"}, g.Before)
		list([]any{"groups", i, "after"}, g.After)
	}
	list([]any{"clean_up", "before"}, c.plan.CleanUp.Before)
	list([]any{"clean_up", "after"}, c.plan.CleanUp.After)
	if n > MaxActions {
		c.add(nil, "there are %d actions: at most %d in one plan", n, MaxActions)
	}
}

func (c *checker) action(at []any, a Action) {
	if !slug.MatchString(a.Name) {
		c.add(append(at, "name"), "an action's name is %q: want 1 to 63 letters, digits, dots, dashes or underscores", a.Name)
	}
	given := 0
	for _, is := range []bool{a.Script != nil, a.Guest != nil, a.Webhook != nil, a.Manual != nil, a.Wait != nil} {
		if is {
			given++
		}
	}
	if given != 1 {
		c.add(at, "action %s has %d of script, guest, webhook, manual and wait: want one", a.Name, given)
		return
	}
	for _, k := range a.Runs {
		if !slices.Contains(Kinds(), k) {
			c.add(append(at, "runs"), "action %s: %q is no kind of run: want some of %v", a.Name, k, Kinds())
		}
	}
	for _, d := range a.Direction {
		if d != ToRecovery && d != ToPrimary {
			c.add(append(at, "directions"), "action %s: %q is no direction: want %s or %s", a.Name, d, ToRecovery, ToPrimary)
		}
	}
	if a.OnFailure != "" && a.OnFailure != Stop && a.OnFailure != Continue {
		c.add(append(at, "on_failure"), "action %s: on_failure is %q: want %s or %s", a.Name, a.OnFailure, Stop, Continue)
	}
	if a.Timeout > Duration(24*time.Hour) {
		c.add(append(at, "timeout"), "action %s: a time-out of %s is too long: at most 24h", a.Name, a.Timeout)
	}
	c.details(at, a)
}

// details checks what an action is to do.
func (c *checker) details(at []any, a Action) {
	switch {
	case a.Script != nil:
		if p := a.Script.Path; p == "" || path.IsAbs(p) || path.Clean(p) != p || strings.HasPrefix(p, "..") {
			c.add(append(at, "script"), "action %s: path %q: want one below the server's scripts directory, without ..", a.Name, p)
		}
		c.secrets(append(at, "script"), a, a.Script.Secrets)
	case a.Guest != nil:
		c.inPlan(append(at, "guest"), a, a.Guest.Item)
		if len(a.Guest.Command) == 0 || a.Guest.Command[0] == "" {
			c.add(append(at, "guest"), "action %s names no command", a.Name)
		}
	case a.Webhook != nil:
		c.url(append(at, "webhook"), a, a.Webhook.URL)
		if m := a.Webhook.Method; m != "" && !slices.Contains([]string{"POST", "PUT", "PATCH", "GET", "DELETE"}, m) {
			c.add(append(at, "webhook", "method"), "action %s: method %q: want POST, PUT, PATCH, GET or DELETE", a.Name, m)
		}
		c.secrets(append(at, "webhook"), a, a.Webhook.Secrets)
	case a.Manual != nil:
		if strings.TrimSpace(a.Manual.Instructions) == "" {
			c.add(append(at, "manual"), "action %s has no instructions", a.Name)
		}
	case a.Wait != nil:
		c.wait(append(at, "wait"), a)
	}
}

func (c *checker) wait(at []any, a Action) {
	w, given := a.Wait, 0
	for _, s := range []string{w.TCP, w.HTTP, w.Ping, w.Agent} {
		if s != "" {
			given++
		}
	}
	switch {
	case given != 1:
		c.add(at, "action %s waits for %d of tcp, http, ping and agent: want one", a.Name, given)
	case w.TCP != "":
		if host, port, err := net.SplitHostPort(w.TCP); err != nil || host == "" || port == "" {
			c.add(at, "action %s: tcp %q: want HOST:PORT", a.Name, w.TCP)
		}
	case w.HTTP != "":
		c.url(at, a, w.HTTP)
	case w.Agent != "":
		c.inPlan(at, a, w.Agent)
	}
}

func (c *checker) url(at []any, a Action, text string) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		c.add(at, "action %s: %q is no URL: want http or https", a.Name, text)
		return
	}
	if u.User != nil {
		c.add(at, "action %s: the URL has a password in it: plans hold no secrets, give a header under secrets", a.Name)
	}
}

func (c *checker) inPlan(at []any, a Action, item string) {
	if !slices.ContainsFunc(c.plan.Machines(), func(m Machine) bool { return m.Item == item }) {
		c.add(at, "action %s names item %q, which is in no group of this plan", a.Name, item)
	}
}

func (c *checker) secrets(at []any, a Action, secrets map[string]Secret) {
	for name, s := range secrets {
		if (s.File == "") == (s.Env == "") {
			c.add(append(at, "secrets", name), "action %s: secret %s: want file or env", a.Name, name)
		}
		if p := s.File; p != "" && (path.IsAbs(p) || path.Clean(p) != p || strings.HasPrefix(p, "..")) {
			c.add(append(at, "secrets", name), "action %s: secret %s: want a file below the server's secrets directory, without ..", a.Name, name)
		}
	}
}

func (c *checker) order() {
	seen := map[string]bool{}
	for i, g := range c.plan.Shutdown {
		if !slices.ContainsFunc(c.plan.Groups, func(o Group) bool { return o.Name == g }) || seen[g] {
			c.add([]any{"shutdown", i}, "shutdown names group %q, which is not there or named twice", g)
		}
		seen[g] = true
	}
	for _, g := range c.plan.Groups {
		if c.plan.Shutdown != nil && !seen[g.Name] {
			c.add([]any{"shutdown"}, "shutdown does not name group %s: want all of them, or leave shutdown out", g.Name)
		}
	}
}

func (c *checker) networks() {
	seen := map[string]bool{}
	for i, n := range c.plan.Networks {
		if n.From == "" || seen[n.From] {
			c.add([]any{"networks", i}, "a mapping is from network %q: want a name that no other mapping has", n.From)
		}
		seen[n.From] = true
	}
}

// addresses checks how cards are addressed, and that no two machines get the same
// address.
func (c *checker) addresses() {
	for _, k := range []Kind{Unplanned, Test} {
		given := map[netip.Addr]string{}
		for i, g := range c.plan.Groups {
			for j, m := range g.Machines {
				at := []any{"groups", i, "machines", j}
				if a := m.Addressing; k == Unplanned && a != "" && a != "agent" && a != "cloud_init" {
					c.add(append(at, "addressing"), "item %s: addressing is %q: want agent or cloud_init", m.Item, a)
				}
				cards := map[string]bool{}
				for n, nic := range m.NICs {
					if where := append(slices.Clone(at), "nics", n); cards[nic.Card] || nic.Card == "" && len(m.NICs) > 1 {
						c.add(where, "item %s: several entries mean the same card: name each by its MAC address or its network, once", m.Item)
					}
					cards[nic.Card] = true
				}
				c.cards(k, at, m, given)
			}
		}
	}
}

// cards checks the cards of one machine in one kind of run.
func (c *checker) cards(k Kind, at []any, m Machine, given map[netip.Addr]string) {
	for n, nic := range m.NICs {
		where := append(slices.Clone(at), "nics", n)
		if k == Test {
			if nic.Test == nil {
				continue
			}
			where = append(where, "test")
			nic.Address, nic.Gateway, nic.DNS = nic.Test.Address, nic.Test.Gateway, nic.Test.DNS
		}
		if len(nic.Address) == 0 {
			c.add(where, "item %s: a card has no address: want keep, dhcp or addresses like 10.8.0.12/24", m.Item)
		}
		word := slices.Contains(nic.Address, KeepAddress) || slices.Contains(nic.Address, DHCPAddress)
		if word && (len(nic.Address) > 1 || len(nic.Gateway) > 0) || slices.Contains(nic.Address, KeepAddress) && len(nic.DNS) > 0 {
			c.add(where, "item %s: keep goes with nothing else, and dhcp with no other address and no gateway", m.Item)
		}
		for _, a := range nic.Address {
			p, err := netip.ParsePrefix(a)
			switch {
			case word:
			case err != nil:
				c.add(append(slices.Clone(where), "address"), "item %s: address %q: want keep, dhcp or one like 10.8.0.12/24", m.Item, a)
			case given[p.Addr()] != "":
				c.add(append(slices.Clone(where), "address"), "items %s and %s would both have the address %s", given[p.Addr()], m.Item, p.Addr())
			default:
				given[p.Addr()] = m.Item
			}
		}
		for _, a := range slices.Concat(nic.Gateway, nic.DNS) {
			if _, err := netip.ParseAddr(a); err != nil {
				c.add(where, "item %s: %q is no address: want one like 10.8.0.1", m.Item, a)
			}
		}
	}
}

func (c *checker) drill() {
	d := c.plan.Drill
	if d == nil {
		return
	}
	if d.Every < Duration(time.Hour) || d.Every > Duration(366*24*time.Hour) {
		c.add([]any{"drill", "every"}, "a drill every %s: want 1h to 366d", d.Every)
	}
	if d.Keep > Duration(24*time.Hour) {
		c.add([]any{"drill", "keep"}, "test machines are kept for %s: want at most 24h", d.Keep)
	}
	if !slices.Contains([]string{"", "latest", "latest_processed", "latest_app"}, d.Option) {
		c.add([]any{"drill", "option"}, "option %q: want latest, latest_processed or latest_app", d.Option)
	}
}
