package plan

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Change is a difference between two plans, in words and as values.
type Change struct {
	Where  string // like "group db, machine db1"
	What   string // added, removed, changed or moved
	Before string // as YAML in one line; empty: it was not there
	After  string
}

// String returns it as a line.
func (c Change) String() string {
	switch c.What {
	case "added":
		return c.Where + ": added " + c.After
	case "removed":
		return c.Where + ": removed " + c.Before
	case "moved":
		return c.Where + ": moved from " + c.Before + " to " + c.After
	}
	return c.Where + ": " + orNothing(c.Before) + " becomes " + orNothing(c.After)
}

func orNothing(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}

// Diff returns how b differs from a in what it means: comments and the layout of
// the text are nothing to it. Nil stands for no plan.
func Diff(a, b *Plan) []Change {
	if a == nil {
		a = &Plan{}
	}
	if b == nil {
		b = &Plan{}
	}
	d := &differ{}
	d.fields("plan", *a, *b, "Groups", "CleanUp")
	d.groups(a, b)
	d.machines(a, b)
	d.actions("before clean-up", a.CleanUp.Before, b.CleanUp.Before)
	d.actions("after clean-up", a.CleanUp.After, b.CleanUp.After)
	return d.out
}

type differ struct{ out []Change }

// fields compares two structs field by field, but for those left out.
func (d *differ) fields(where string, a, b any, without ...string) {
	va, vb := reflect.ValueOf(a), reflect.ValueOf(b)
	for i := range va.NumField() {
		f := va.Type().Field(i)
		if slices.Contains(without, f.Name) || reflect.DeepEqual(va.Field(i).Interface(), vb.Field(i).Interface()) {
			continue
		}
		key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		d.out = append(d.out, Change{where + ", " + key, "changed", inline(va.Field(i)), inline(vb.Field(i))})
	}
}

// inline writes a value as YAML in one line.
func inline(v reflect.Value) string {
	if v.IsZero() {
		return ""
	}
	var n yaml.Node
	if err := n.Encode(v.Interface()); err != nil {
		return fmt.Sprint(v.Interface())
	}
	flow(&n)
	text, err := yaml.Marshal(&n)
	if err != nil {
		return fmt.Sprint(v.Interface())
	}
	return strings.Join(strings.Fields(string(text)), " ")
}

func flow(n *yaml.Node) {
	n.Style |= yaml.FlowStyle
	for _, c := range n.Content {
		flow(c)
	}
}

func (d *differ) groups(a, b *Plan) {
	var order []string
	for _, g := range a.Groups {
		i := slices.IndexFunc(b.Groups, func(o Group) bool { return o.Name == g.Name })
		if i < 0 {
			d.out = append(d.out, Change{"group " + g.Name, "removed", fmt.Sprintf("with %d machines", len(g.Machines)), ""})
			d.actions("group "+g.Name+", before", g.Before, nil)
			d.actions("group "+g.Name+", after", g.After, nil)
			continue
		}
		order = append(order, g.Name)
		o := b.Groups[i]
		d.fields("group "+g.Name, g, o, "Before", "Machines", "After")
		d.actions("group "+g.Name+", before", g.Before, o.Before)
		d.actions("group "+g.Name+", after", g.After, o.After)
	}
	var now []string
	for _, g := range b.Groups {
		if slices.Contains(order, g.Name) {
			now = append(now, g.Name)
			continue
		}
		d.out = append(d.out, Change{"group " + g.Name, "added", "", fmt.Sprintf("with %d machines", len(g.Machines))})
		d.actions("group "+g.Name+", before", nil, g.Before)
		d.actions("group "+g.Name+", after", nil, g.After)
	}
	if !slices.Equal(order, now) {
		d.out = append(d.out, Change{"order of groups", "changed", strings.Join(order, ", "), strings.Join(now, ", ")})
	}
}

func (d *differ) machines(a, b *Plan) {
	type placed struct {
		Machine
		group string
	}
	place := func(p *Plan) (list []string, at map[string]placed) {
		at = map[string]placed{}
		for _, g := range p.Groups {
			for _, m := range g.Machines {
				list = append(list, m.Item)
				at[m.Item] = placed{m, g.Name}
			}
		}
		return list, at
	}
	listA, inA := place(a)
	listB, inB := place(b)
	for _, item := range listA {
		was, now := inA[item], inB[item]
		switch {
		case now.group == "":
			d.out = append(d.out, Change{"group " + was.group, "removed", "machine " + item, ""})
			continue
		case now.group != was.group:
			d.out = append(d.out, Change{"machine " + item, "moved", "group " + was.group, "group " + now.group})
		}
		d.fields("machine "+item, was.Machine, now.Machine, "Item")
	}
	for _, item := range listB {
		if inA[item].group == "" {
			d.out = append(d.out, Change{"group " + inB[item].group, "added", "", "machine " + item})
		}
	}
}

func (d *differ) actions(where string, a, b []Action) {
	var order, now []string
	for _, x := range a {
		i := slices.IndexFunc(b, func(o Action) bool { return o.Name == x.Name })
		if i < 0 {
			d.out = append(d.out, Change{where, "removed", "action " + x.Name, ""})
			continue
		}
		order = append(order, x.Name)
		d.fields(where+", action "+x.Name, x, b[i], "Name")
	}
	for _, x := range b {
		if !slices.ContainsFunc(a, func(o Action) bool { return o.Name == x.Name }) {
			d.out = append(d.out, Change{where, "added", "", "action " + x.Name})
		} else {
			now = append(now, x.Name)
		}
	}
	if !slices.Equal(order, now) {
		d.out = append(d.out, Change{where + ", order of actions", "changed", strings.Join(order, ", "), strings.Join(now, ", ")})
	}
}
