package plan

import (
	"fmt"
	"slices"
)

// What a step does.
const (
	StepResolve  = "resolve"   // choose members, direction and recovery points
	StepShutDown = "shut_down" // shut machines down
	StepMachines = "machines"  // the operation itself
	StepAction   = "action"
)

// Step is a part of a run. Steps are done one after the other; what is in one
// step is done at the same time, within the plan's bound.
type Step struct {
	ID       string // unique in the run, stable for a plan's text
	Title    string
	What     string
	Group    string    // or groups, separated by a comma
	Machines []Machine // of StepMachines and StepShutDown
	Action   *Action   // of StepAction
}

// Bounded returns how many machines are worked on at the same time.
func (p *Plan) Bounded() int {
	if p.AtOnce > 0 {
		return p.AtOnce
	}
	return DefaultAtOnce
}

// Steps returns what a run of a kind does, in order.
func (p *Plan) Steps(k Kind, d Direction) []Step {
	steps := []Step{{ID: "resolve", Title: "Choose machines and recovery points", What: StepResolve}}
	switch k {
	case CleanUp:
		steps = append(steps, acts(p.CleanUp.Before, k, d, Step{ID: "clean_up.before."})...)
	case Planned:
		steps = append(steps, p.shutDown()...)
	}
	stages, _ := p.stages()
	if k == CleanUp {
		slices.Reverse(stages) // what came up last goes first
	}
	for i, stage := range stages {
		for _, g := range stage {
			steps = append(steps, acts(g.Before, k, d, Step{ID: g.Name + ".before.", Group: g.Name})...)
		}
		s := Step{ID: "stage-" + number(i+1), What: StepMachines, Group: names(stage)}
		for _, g := range stage {
			s.Machines = append(s.Machines, g.Machines...)
		}
		s.Title = title(k, s.Group)
		if len(s.Machines) > 0 {
			steps = append(steps, s)
		}
		for _, g := range stage {
			steps = append(steps, acts(g.After, k, d, Step{ID: g.Name + ".after.", Group: g.Name})...)
		}
	}
	if k == CleanUp {
		steps = append(steps, acts(p.CleanUp.After, k, d, Step{ID: "clean_up.after."})...)
	}
	return steps
}

// title says what happens to the machines of groups.
func title(k Kind, groups string) string {
	switch k {
	case Test:
		return "Test machines of " + groups
	case CleanUp:
		return "Remove test machines of " + groups
	case Reprotect:
		return "Reprotect " + groups
	case Commit:
		return "Commit " + groups
	default:
		return "Bring up " + groups
	}
}

// acts are the actions of a list that a run has, as steps that begin as the given
// one does. The lists around the clean-up, which have no group, belong to no other
// run.
func acts(list []Action, k Kind, d Direction, like Step) []Step {
	var out []Step
	for i := range list {
		a := &list[i]
		around := like.Group == "" && a.Runs == nil && (a.Direction == nil || slices.Contains(a.Direction, d))
		if around || a.in(k, d) {
			out = append(out, Step{ID: like.ID + a.Name, Title: a.What() + " " + a.Name, What: StepAction, Group: like.Group, Action: a})
		}
	}
	return out
}

// shutDown are the steps that shut groups down, in the plan's order or from the
// last that comes up to the first.
func (p *Plan) shutDown() []Step {
	var order [][]Group
	if p.Shutdown != nil {
		for _, name := range p.Shutdown {
			i := slices.IndexFunc(p.Groups, func(g Group) bool { return g.Name == name })
			order = append(order, []Group{p.Groups[i]})
		}
	} else {
		order, _ = p.stages()
		slices.Reverse(order)
	}
	var out []Step
	for i, stage := range order {
		s := Step{ID: "shutdown-" + number(i+1), What: StepShutDown, Group: names(stage)}
		for _, g := range stage {
			s.Machines = append(s.Machines, g.Machines...)
		}
		s.Title = "Shut down " + s.Group
		if len(s.Machines) > 0 {
			out = append(out, s)
		}
	}
	return out
}

// stages orders groups: each stage needs only those before it. If groups need
// each other in a circle, loop has their names.
func (p *Plan) stages() (stages [][]Group, loop []string) {
	done := map[string]bool{}
	left := make([]int, len(p.Groups))
	for i := range left {
		left[i] = i
	}
	for len(left) > 0 {
		var now []Group
		var later []int
		for _, i := range left {
			if slices.ContainsFunc(p.needs(i), func(n string) bool { return !done[n] }) {
				later = append(later, i)
			} else {
				now = append(now, p.Groups[i])
			}
		}
		if len(now) == 0 {
			for _, i := range later {
				loop = append(loop, p.Groups[i].Name)
			}
			return stages, loop
		}
		for _, g := range now {
			done[g.Name] = true
		}
		stages, left = append(stages, now), later
	}
	return stages, nil
}

// needs are the groups that a group comes after.
func (p *Plan) needs(i int) []string {
	switch g := p.Groups[i]; {
	case g.Needs != nil:
		return *g.Needs
	case i > 0:
		return []string{p.Groups[i-1].Name}
	}
	return nil
}

func names(groups []Group) string {
	text := ""
	for i, g := range groups {
		if i > 0 {
			text += ", "
		}
		text += g.Name
	}
	return text
}

// number writes a number so that texts sort as numbers do.
func number(n int) string { return fmt.Sprintf("%03d", n) }

// Stages returns the groups in the order in which they come up: those of one stage
// at the same time.
func (p *Plan) Stages() [][]Group {
	stages, _ := p.stages()
	return stages
}
