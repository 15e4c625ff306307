package planner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/plan"
	"golang.org/x/sync/errgroup"
)

// run is a task's view of its run.
type run struct {
	*job.Step
	p    *Planner
	in   runInput
	plan *plan.Plan
	at   plan.Step
}

// do does one step.
func (p *Planner) do(ctx context.Context, r *run) error {
	switch r.at.What {
	case plan.StepResolve:
		return r.resolve(ctx)
	case plan.StepShutDown, plan.StepMachines:
		return r.machines(ctx)
	default:
		return r.action(ctx)
	}
}

// What is to become of a member.
const (
	memberGo   = "go"
	memberSkip = "skip"
	memberFail = "fail"
)

// member is a machine of a run, with what was decided of it before anything
// began.
type member struct {
	Machine  plan.Machine `json:"-"`
	Item     string       `json:"item"` // name
	ID       string       `json:"id,omitempty"`
	Listed   string       `json:"listed"` // as the plan names it
	Group    string       `json:"group"`
	Fate     string       `json:"fate"`
	Reason   string       `json:"reason,omitempty"`
	NextStep string       `json:"next_step,omitempty"`
	Site     string       `json:"site,omitempty"` // where it will run
	Name     string       `json:"name,omitempty"` // how it will be called
	Point    *api.Point   `json:"point,omitempty"`
	RPO      *float64     `json:"rpo,omitempty"`
	RTO      *float64     `json:"rto,omitempty"`  // expected
	With     string       `json:"with,omitempty"` // the replication group with which it shares the moment of Point
	Tests    []string     `json:"tests,omitempty"`
	group    string       // the item's replication group
	findings []api.Finding
}

// resolve decides of every member whether it takes part and from which recovery
// point, once.
func (r *run) resolve(ctx context.Context) error {
	option := r.in.Request.Option
	members, err := r.p.members(ctx, r.in, r.plan, looking{checked: option != "" && option != api.OptionLatest || r.in.Kind == plan.Planned, fresh: true})
	if err != nil {
		return err
	}
	var going, failed, skipped []string
	for _, m := range members {
		switch m.Fate {
		case memberGo:
			going = append(going, m.Item)
		case memberFail:
			failed = append(failed, m.Item+": "+m.Reason)
			r.Warn(m.Item + " does not take part: " + m.Reason + ". " + m.NextStep)
		default:
			skipped = append(skipped, m.Item+": "+m.Reason)
			r.Log(m.Item + " is skipped: " + m.Reason)
		}
		if m.Point != nil {
			r.Log(fmt.Sprintf("%s: %s", m.Item, pointText(*m.Point)))
		}
	}
	if err := r.SaveState(ctx, members); err != nil {
		return err
	}
	e := &holdfast.Error{Kind: holdfast.KindNotAllowed, Op: "run plan", Thing: r.in.Name}
	switch {
	case len(failed) > 0 && r.stops():
		e.Cause, e.Hint = strings.Join(failed, "; "), "Put that right, or take these machines out of the plan, and run it again"
		return e
	case len(going) == 0:
		e.Cause, e.Hint = "no machine of it can take part: "+strings.Join(append(failed, skipped...), "; "), "See holdfast plan check"
		return e
	}
	r.Log(fmt.Sprintf("%d machines take part, %d are skipped, %d cannot", len(going), len(skipped), len(failed)))
	return nil
}

// stops says of the run that the first failure stops it.
func (r *run) stops() bool { return stops(r.in.Kind) }

func stops(k plan.Kind) bool { return k == plan.Planned || k == plan.Reprotect || k == plan.Commit }

func pointText(p api.Point) string {
	return fmt.Sprintf("recovery point %s of %s, %s consistent", p.ID, p.Time.UTC().Format("2006-01-02 15:04:05.000 MST"), p.Consistency)
}

// looking says how closely it is looked at the members.
type looking struct {
	checked bool // what the items' own checks find is part of it, and the recovery points
	fresh   bool // a common moment is made of what was received
}

// members decides of every machine of a plan what a run does with it.
func (p *Planner) members(ctx context.Context, in runInput, pl *plan.Plan, look looking) ([]member, error) {
	items, err := p.opts.Items.ListItems(ctx)
	if err != nil {
		return nil, err
	}
	var out []member
	for _, g := range pl.Groups {
		for _, m := range g.Machines {
			out = append(out, p.decide(ctx, in, g.Name, m, items))
		}
	}
	each := func(f func(context.Context, runInput, *member) error) error {
		wait, ctx := errgroup.WithContext(ctx)
		wait.SetLimit(pl.Bounded())
		for i := range out { // each has its own
			wait.Go(func() error { return f(ctx, in, &out[i]) })
		}
		return wait.Wait()
	}
	if err := each(p.lookAgain); err != nil {
		return nil, err
	}
	if err := p.common(ctx, in, out, look.fresh); err != nil {
		return nil, err
	}
	if look.checked {
		return out, each(p.check)
	}
	return out, nil
}

// lookAgain decides anew of a machine that cannot take part as its item was seen
// last.
func (p *Planner) lookAgain(ctx context.Context, in runInput, m *member) error {
	if m.Fate != memberFail || m.ID == "" {
		return nil
	}
	it, err := p.opts.Items.GetItem(ctx, m.ID)
	if err != nil {
		return ctx.Err() // what was seen last must do
	}
	*m = p.decide(ctx, in, m.Group, m.Machine, []api.Item{it})
	return nil
}

// common gives the members of each replication group points that are one moment
// for all of them, in an unplanned run and a test. A planned run needs none: all
// machines are off before the first is brought over.
func (p *Planner) common(ctx context.Context, in runInput, members []member, fresh bool) error {
	option := orElse(in.Request.Option, api.OptionLatest)
	multi := option == api.OptionLatestMulti || option == api.OptionLatestMultiApp
	groups := map[string][]int{}
	for i, m := range members {
		if m.group != "" && m.Fate == memberGo {
			groups[m.group] = append(groups[m.group], i)
		}
	}
	if multi && len(groups) == 0 {
		return &holdfast.Error{Kind: holdfast.KindInvalid, Op: "run plan", Thing: in.Name, Cause: "none of its machines that take part is in a replication group",
			Hint: "Choose another option, or make a group: holdfast group add GROUP ITEM ITEM"}
	}
	moves := in.Kind == plan.Unplanned && in.Direction == plan.ToRecovery || in.Kind == plan.Test
	if !moves || option == api.OptionLatestApp || in.Request.PerMachine && !multi {
		return nil
	}
	for group, of := range groups {
		if err := p.commonOf(ctx, in, members, commonOf{group, of, option, fresh}); err != nil {
			return err
		}
	}
	return nil
}

// commonOf is a replication group for which a common moment is sought.
type commonOf struct {
	group  string
	of     []int // its members, by index
	option string
	fresh  bool
}

func (p *Planner) commonOf(ctx context.Context, in runInput, members []member, g commonOf) error {
	var ids []string
	for _, i := range g.of {
		ids = append(ids, members[i].ID)
	}
	moment, err := p.opts.Groups.CommonPoint(ctx, ids, api.CommonPoint{Time: in.Request.Time, App: g.option == api.OptionLatestMultiApp,
		Fresh: g.fresh && g.option == api.OptionLatest})
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil && in.Request.PerMachine:
		return nil
	}
	for _, i := range g.of {
		m := &members[i]
		if m.With = g.group; err != nil {
			m.Fate, m.Reason, m.NextStep = memberFail, err.Error(), holdfast.HintOf(err)
			continue
		}
		if point, ok := moment.Points[m.ID]; ok {
			m.Point = &point
		}
	}
	return nil
}

// decide says what a run does with one machine, from what is known of its item.
func (p *Planner) decide(ctx context.Context, in runInput, group string, m plan.Machine, items []api.Item) member {
	out := member{Machine: m, Item: m.Item, Listed: m.Item, Group: group, Fate: memberFail}
	it, ok := find(items, m.Item)
	if !ok {
		out.Reason, out.NextStep = "there is no such item", "Protect that machine, or take it out of the plan"
		return out
	}
	out.Item, out.ID, out.group = it.Name, it.ID, it.Group
	to := it.RecoverySite
	if in.Direction == plan.ToPrimary {
		to = it.PrimarySite
	}
	out.Site = to
	skip := func(reason string) member {
		out.Fate, out.Reason = memberSkip, reason
		return out
	}
	op := operation(in.Kind, in.Direction)
	switch after := in.Kind == plan.Reprotect || in.Kind == plan.Commit; {
	case in.Kind == plan.CleanUp:
		if out.Tests = p.testsOf(ctx, in.Plan, it); len(out.Tests) == 0 {
			return skip("it has no test machine of this plan")
		}
	case in.Kind == plan.Test && it.ActiveSite == to:
		return skip("it works at " + to + ", so a test goes the other way")
	case in.Kind.Moves() && it.ActiveSite == to:
		return skip("it works at " + to + " already")
	case after && it.ActiveSite != to:
		return skip("it works at " + it.ActiveSite + ", not at " + to)
	case after && it.State == "protected", in.Kind == plan.Commit && it.State == "committed":
		return skip("it is " + it.State + " already")
	}
	if slices.Contains(it.Allowed, op) {
		out.Fate = memberGo
		return out
	}
	out.Reason, out.NextStep = "it is "+it.State, "See holdfast item show "+it.Name
	for _, b := range it.Blocked {
		if b.Operation == op {
			out.Reason, out.NextStep = b.Reason, b.NextStep
		}
	}
	return out
}

// testsOf are the open tests of an item that a run of the plan has started.
func (p *Planner) testsOf(ctx context.Context, planID string, it api.Item) []string {
	var out []string
	for _, t := range it.Test.Open {
		j, err := p.opts.Engine.Get(ctx, t.Job)
		if err == nil && strings.HasPrefix(j.Parent, planID+"/") {
			out = append(out, t.Handle)
		}
	}
	return out
}

// check asks the item's own checks, and takes the recovery point from there.
func (p *Planner) check(ctx context.Context, in runInput, m *member) error {
	if m.Fate != memberGo || in.Kind == plan.CleanUp {
		return nil
	}
	req := api.CheckOperation{Operation: operation(in.Kind, in.Direction), Option: in.Request.Option, Time: in.Request.Time, Name: m.Machine.Name}
	pl, err := p.parse(in.Text)
	switch {
	case err != nil:
		return err
	case in.Kind == plan.Test:
		req.Name, req.Network, req.Networks = "", m.Machine.TestNetwork, pl.Mapping(plan.Test)
		req.Addressing = addressing(m.Machine, in.Kind)
	case in.Kind.Moves() && in.Direction == plan.ToRecovery:
		req.Networks, req.Addressing = pl.Mapping(in.Kind), addressing(m.Machine, in.Kind)
	}
	switch common := m.Point; {
	case common != nil:
		req.Option, req.Point, req.Timeline, req.Time = api.OptionPoint, orElse(common.ID, common.Position), common.Timeline, time.Time{}
	case req.Option == "" && (in.Kind.Moves() || in.Kind == plan.Test):
		req.Option = api.OptionLatest
	case req.Option == api.OptionLatestMulti: // it is in no group
		req.Option = api.OptionLatestProcessed
	case req.Option == api.OptionLatestMultiApp:
		req.Option = api.OptionLatestApp
	}
	c, err := p.opts.Items.CheckOperation(ctx, m.ID, req)
	var known *holdfast.Error
	if errors.As(err, &known) && ctx.Err() == nil {
		m.Fate, m.Reason, m.NextStep = memberFail, known.Error(), known.Hint
		return nil
	}
	if err != nil {
		return err
	}
	m.findings, m.RPO, m.RTO = c.Findings, c.RPOSeconds, c.ExpectedRTOSeconds
	if c.MachineName != "" {
		m.Name = c.MachineName
	}
	if !c.Allowed {
		m.Fate, m.Reason, m.NextStep = memberFail, c.Reason, c.NextStep
	}
	if m.Point = c.Point; req.Option == api.OptionLatest {
		m.Point = nil // it is made when the machine's turn comes
	}
	return nil
}

// decided returns the members as they were resolved.
func decided(j job.Job, pl *plan.Plan) ([]member, error) {
	var members []member
	if err := saved(j, "resolve", &members); err != nil {
		return nil, err
	}
	for i := range members {
		for _, m := range pl.Machines() {
			if m.Item == members[i].Listed {
				members[i].Machine = m
			}
		}
	}
	return members, nil
}
