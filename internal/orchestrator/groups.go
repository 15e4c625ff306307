package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/provider"
)

// kindGroupPoint is the job that makes a recovery point of a replication group.
const kindGroupPoint = "group_point"

// freshWait bounds how long a choice of the newest common moment waits for
// gateways that may be lost with their site.
const freshWait = 10 * time.Second

// ListGroups returns the replication groups that have items, sorted by name.
func (c *Orchestrator) ListGroups(ctx context.Context) (api.GroupList, error) {
	out := api.GroupList{Groups: []api.Group{}}
	items, err := c.opts.Store.Items(ctx)
	if err != nil {
		return out, err
	}
	for _, it := range items {
		i := slices.IndexFunc(out.Groups, func(g api.Group) bool { return g.Name == it.Group })
		switch {
		case it.Group == "":
			continue
		case i < 0:
			out.Groups = append(out.Groups, api.Group{Name: it.Group, Items: []string{it.Name}, Points: []api.GroupPoint{}})
		default:
			out.Groups[i].Items = append(out.Groups[i].Items, it.Name)
		}
	}
	slices.SortFunc(out.Groups, func(a, b api.Group) int { return compareText(a.Name, b.Name) })
	return out, nil
}

func compareText(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// members returns the items of a group, or an error if there are none.
func (c *Orchestrator) members(ctx context.Context, group string) ([]holdfast.Item, error) {
	items, err := c.opts.Store.Items(ctx)
	if err != nil {
		return nil, err
	}
	items = slices.DeleteFunc(items, func(it holdfast.Item) bool { return it.Group != group })
	if len(items) == 0 {
		return nil, &holdfast.Error{Kind: holdfast.KindNotFound, Op: "find replication group", Thing: group, Cause: "no item is in a group of this name", Hint: "See holdfast group list"}
	}
	return items, nil
}

// GetGroup returns a replication group with its newest common moment and points.
func (c *Orchestrator) GetGroup(ctx context.Context, name string) (api.Group, error) {
	items, err := c.members(ctx, name)
	if err != nil {
		return api.Group{}, err
	}
	out := api.Group{Name: name, Items: []string{}, Points: []api.GroupPoint{}}
	for _, it := range items {
		out.Items = append(out.Items, it.Name)
	}
	pasts, err := c.pasts(ctx, items)
	if err != nil {
		return out, err
	}
	if m, why := choose(pasts, api.CommonPoint{}); why == "" {
		out.Newest = &m.Time
	} else {
		out.Problem = why
	}
	if why := c.lastAppPoint("barrier/" + name); why != "" {
		out.Problem = "the last point at all of its gateways was not made: " + why
	}
	for _, p := range commonPoints(pasts) {
		out.Points = append(out.Points, api.GroupPoint{ID: p.Group, Name: p.Name, Time: p.Time, Consistency: string(p.Consistency)})
	}
	return out, nil
}

// ChangeGroup has items join or leave a replication group, while they replicate.
func (c *Orchestrator) ChangeGroup(ctx context.Context, name string, req api.ChangeGroup) (api.Group, error) {
	refuse := func(thing, cause, hint string) (api.Group, error) {
		return api.Group{}, &holdfast.Error{Kind: holdfast.KindNotAllowed, Op: "change replication group", Thing: thing, Cause: cause, Hint: hint}
	}
	all, err := c.opts.Store.Items(ctx)
	if err != nil {
		return api.Group{}, err
	}
	in := map[string]bool{}
	for _, it := range all {
		in[it.ID] = it.Group == name
	}
	for join, names := range map[bool][]string{true: req.Add, false: req.Remove} {
		for _, n := range names {
			it, err := c.opts.Store.Item(ctx, n)
			switch {
			case err != nil:
				return api.Group{}, err
			case join && it.Group != "" && it.Group != name:
				return refuse(it.Name, "it is in group "+it.Group, "Take it out there first: holdfast group remove "+it.Group+" "+it.Name)
			case !join && it.Group != name:
				return refuse(it.Name, "it is not in group "+name, "See holdfast group show "+name)
			}
			in[it.ID] = join
		}
	}
	count := 0
	for _, is := range in {
		if is {
			count++
		}
	}
	if count > holdfast.MaxGroup {
		return refuse(name, fmt.Sprintf("it would have %d items", count), fmt.Sprintf("At most %d items are in one group", holdfast.MaxGroup))
	}
	for _, it := range all {
		if in[it.ID] == (it.Group == name) {
			continue
		}
		if _, err := c.updateItem(ctx, it.ID, func(i holdfast.Item) (holdfast.Item, error) {
			if i.Group = ""; in[i.ID] {
				i.Group = name
			}
			return i, nil
		}); err != nil {
			return api.Group{}, err
		}
	}
	if count == 0 {
		return api.Group{Name: name, Items: []string{}, Points: []api.GroupPoint{}}, nil
	}
	return c.GetGroup(ctx, name)
}

// memberPast is an item with what can be seen of its history beside others.
type memberPast struct {
	item      holdfast.Item
	history   holdfast.History
	stretches []holdfast.Stretch
	gateway   string // whose clock its times are of
}

// pasts reads the histories of items.
func (c *Orchestrator) pasts(ctx context.Context, items []holdfast.Item) ([]memberPast, error) {
	out := make([]memberPast, len(items))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i, it := range items {
		g.Go(func() error {
			p, err := c.pastOf(ctx, it)
			out[i] = p
			return err
		})
	}
	return out, g.Wait()
}

func (c *Orchestrator) pastOf(ctx context.Context, it holdfast.Item) (memberPast, error) {
	site, err := c.opts.Store.Site(ctx, it.ActiveSite())
	if err != nil {
		return memberPast{}, err
	}
	h, err := c.history(ctx, it)
	if err != nil {
		return memberPast{}, err
	}
	p := memberPast{item: it, history: h, gateway: site.Gateway}
	s, err := c.stream(ctx, it.Stream)
	if err != nil {
		return p, vaultError("open stream", it.Name, err)
	}
	var known time.Time // until when nothing was missed, and all of it is in the vault
	canary, err := s.Canary(ctx)
	if err == nil && canary.Timeline == it.Timeline {
		if known = canary.Confirmed; canary.Time.Before(known) {
			known = canary.Time
		}
	}
	ranges := s.Ranges(it.Timeline)
	for i, r := range ranges {
		to := r.Confirmed
		if r.Open && known.After(to) {
			to = known
		}
		if open := r.Open && i == len(ranges)-1; !open && r.ToTime.Before(to) {
			to = r.ToTime
		}
		if !to.Before(r.FromTime) {
			p.stretches = append(p.stretches, holdfast.Stretch{From: r.FromTime, To: to})
		}
	}
	return p, nil
}

// commonMoment returns the newest moment, not after at, that all members can be
// seen at, or why there is none.
func commonMoment(pasts []memberPast, at time.Time) (moment time.Time, why string) {
	var all [][]holdfast.Stretch
	for _, p := range pasts {
		if p.gateway != pasts[0].gateway {
			return moment, fmt.Sprintf("items %s and %s replicate through different gateways, whose clocks are not the same: they have only the points of their group in common, and there is none yet", pasts[0].item.Name, p.item.Name)
		}
		if len(p.stretches) == 0 {
			return moment, "item " + p.item.Name + " has no moment at which it is known that nothing of it was missed"
		}
		all = append(all, p.stretches)
	}
	moment, ok := holdfast.CommonMoment(all, at)
	if !ok {
		return moment, "there is no moment at which all of them were in sync"
	}
	return moment, ""
}

// commonPoints returns the points that all members have, the newest first, as the
// first member has them.
func commonPoints(pasts []memberPast) []holdfast.RecoveryPoint {
	var out []holdfast.RecoveryPoint
	for _, p := range slices.Backward(pasts[0].history.Points) {
		everywhere := p.Group != "" && p.Timeline == pasts[0].history.Timeline
		for _, o := range pasts {
			_, has := o.pointOf(p.Group)
			everywhere = everywhere && has
		}
		if everywhere {
			out = append(out, p)
		}
	}
	return out
}

// pointOf returns the member's point of a group point, if nothing was missed
// before it.
func (m memberPast) pointOf(group string) (holdfast.RecoveryPoint, bool) {
	for _, p := range m.history.Points {
		if p.Group == group && p.Timeline == m.history.Timeline {
			known := slices.ContainsFunc(m.stretches, func(s holdfast.Stretch) bool { return !p.Time.Before(s.From) && !p.Time.After(s.To) })
			return p, known
		}
	}
	return holdfast.RecoveryPoint{}, false
}

// CommonPoint returns recovery points of several items that are one moment for
// all of them: the newest, or the newest not after a time, or the newest
// application-consistent one. Fresh: what was received is taken in first, as far as
// the gateways can be reached.
func (c *Orchestrator) CommonPoint(ctx context.Context, names []string, req api.CommonPoint) (api.CommonMoment, error) {
	var items []holdfast.Item
	for _, n := range names {
		it, err := c.opts.Store.Item(ctx, n)
		if err != nil {
			return api.CommonMoment{}, err
		}
		items = append(items, it)
	}
	if len(items) == 0 {
		return api.CommonMoment{}, &holdfast.Error{Kind: holdfast.KindInvalid, Op: "choose common recovery point", Cause: "no items are named"}
	}
	var since time.Time
	if req.Fresh && !req.App {
		since = c.freshMoment(ctx, items)
	}
	for end := time.Now().Add(freshWait); ; {
		pasts, err := c.pasts(ctx, items)
		if err != nil {
			return api.CommonMoment{}, err
		}
		out, why := choose(pasts, req)
		switch late := time.Now().After(end); {
		case why == "" && (!out.Time.Before(since) || late):
			return out, nil
		case since.IsZero() || late || !sleep(ctx, 100*time.Millisecond):
			return out, &holdfast.Error{Kind: holdfast.KindNotFound, Op: "choose common recovery point of", Thing: listNames(items), Cause: why,
				Hint: "Wait until all of them are in sync, choose an earlier time, or take each machine's own point"}
		}
	}
}

func listNames(items []holdfast.Item) string {
	text := ""
	for i, it := range items {
		if i > 0 {
			text += ", "
		}
		text += it.Name
	}
	return text
}

// choose chooses among what the members have in common.
func choose(pasts []memberPast, req api.CommonPoint) (api.CommonMoment, string) {
	out := api.CommonMoment{Points: map[string]api.Point{}}
	moment, why := commonMoment(pasts, req.Time)
	if req.App || why != "" {
		i := slices.IndexFunc(commonPoints(pasts), func(p holdfast.RecoveryPoint) bool {
			return (!req.App || p.Consistency == holdfast.ConsistencyApp) && (req.Time.IsZero() || !p.Time.After(req.Time))
		})
		switch {
		case i < 0 && req.App:
			return out, "they have no application-consistent recovery point in common"
		case i < 0:
			return out, why
		}
		group := commonPoints(pasts)[i]
		out.Time, out.Group = group.Time, group.Group
		for _, m := range pasts {
			p, _ := m.pointOf(group.Group)
			out.Points[m.item.ID] = apiPoint(p)
		}
		return out, ""
	}
	out.Time = moment
	for _, m := range pasts {
		pos, ok := m.history.Lookup(moment)
		if !ok {
			return out, "item " + m.item.Name + " has no position at that moment"
		}
		out.Points[m.item.ID] = apiPoint(holdfast.RecoveryPoint{Timeline: m.history.Timeline, Position: pos, Time: moment, Consistency: holdfast.ConsistencyCrash})
	}
	return out, ""
}

// freshMoment has the gateway mark the present moment, and returns its time; zero
// if it could not.
func (c *Orchestrator) freshMoment(ctx context.Context, items []holdfast.Item) time.Time {
	ctx, cancel := context.WithTimeout(ctx, lostWait)
	defer cancel()
	at, err := c.markGroup(ctx, items, pointInput{}, newID("group"), holdfast.ConsistencyCrash)
	if err != nil {
		c.log.Info("the newest moment is that which the vault has", "items", listNames(items), "error", err)
		return time.Time{}
	}
	return at
}

// groupPointInput is what a point of a group was asked for.
type groupPointInput struct {
	Title string `json:"title"`
	Group string `json:"group"`
	pointInput
}

// MakeGroupPoint starts the job that makes a recovery point of all items of a
// group, which is one moment for all of them.
func (c *Orchestrator) MakeGroupPoint(ctx context.Context, name string, req api.MakePoint) (api.Job, error) {
	if _, err := c.members(ctx, name); err != nil {
		return api.Job{}, err
	}
	in := groupPointInput{Title: "Make a recovery point of group " + name, Group: name, pointInput: pointInput{Name: req.Name, App: req.AppConsistent}}
	j, err := c.engine.Submit(ctx, kindGroupPoint, "group/"+name, in)
	if errors.Is(err, job.ErrBusy) {
		return api.Job{}, &holdfast.Error{Kind: holdfast.KindConflict, Op: "make recovery point of group", Thing: name, Err: err, Hint: "Wait until that job has ended"}
	}
	if err != nil {
		return api.Job{}, err
	}
	return c.apiJob(ctx, j), nil
}

// scheduleGroupPoint makes an application-consistent point of an item's group when
// one is due: as often as the member wants that wants it most often. The first
// member by name looks after it.
func (c *Orchestrator) scheduleGroupPoint(ctx context.Context, it holdfast.Item, ob observation) {
	items, err := c.members(ctx, it.Group)
	if err != nil || items[0].ID != it.ID || !ob.ready() {
		return
	}
	c.scheduleBarrier(ctx, items)
	var every time.Duration
	for _, m := range items {
		if m.State != holdfast.StateProtected || m.CurrentJob != "" {
			return
		}
		if e := m.Policy.WithDefaults().AppPointInterval; e > 0 && (every == 0 || e < every) {
			every = e
		}
	}
	key := "group/" + it.Group
	c.mu.Lock()
	last := c.appPoints[key].at
	c.mu.Unlock()
	for _, p := range ob.history.Points {
		if p.Consistency == holdfast.ConsistencyApp && p.Group != "" && p.Time.After(last) {
			last = p.Time
		}
	}
	if every == 0 || c.now().Sub(last) < every {
		return
	}
	in := groupPointInput{Title: "Make a recovery point of group " + it.Group, Group: it.Group, pointInput: pointInput{App: true}}
	if _, err := c.engine.Submit(ctx, kindGroupPoint, key, in); err != nil {
		if !errors.Is(err, job.ErrBusy) {
			c.log.Error("application-consistent point is not made", "group", it.Group, "error", err)
		}
		return
	}
	c.noteAppPoint(key, "") // whatever comes of it: the next is due later
}

func (c *Orchestrator) groupPointKind() job.Kind {
	return job.Kind{Name: kindGroupPoint, Title: "Make a recovery point of a group", Tasks: []job.Task{{Name: "point", Title: "Mark the present moment", Run: c.makeGroupPoint}}}
}

func (c *Orchestrator) makeGroupPoint(ctx context.Context, step *job.Step) error {
	var in groupPointInput
	if err := decodeInput(step, &in); err != nil {
		return err
	}
	items, err := c.members(ctx, in.Group)
	if err != nil {
		return err
	}
	if in.App {
		err := c.allFrozen(ctx, step, items, func(ctx context.Context) error {
			_, err := c.markGroup(ctx, items, in.pointInput, step.JobID(), holdfast.ConsistencyApp)
			return err
		})
		problem := ""
		if err != nil {
			problem = "of group " + in.Group + ": " + err.Error()
		}
		for _, it := range items {
			c.noteAppPoint(it.ID, problem)
		}
		if err == nil {
			return nil
		}
		step.Warn("the point is crash-consistent only: " + err.Error())
	}
	_, err = c.markGroup(ctx, items, in.pointInput, step.JobID(), holdfast.ConsistencyCrash)
	return err
}

// allFrozen runs f while the file systems of all guests are frozen, in two phases:
// every guest is frozen, and only if all are, within the bound, f runs. All are
// thawed whatever happens.
func (c *Orchestrator) allFrozen(ctx context.Context, step *job.Step, items []holdfast.Item, f func(context.Context) error) (err error) {
	bound, cancel := context.WithTimeoutCause(ctx, freezeWait, errNoAnswer)
	defer cancel()
	began := c.now()
	var mu sync.Mutex
	var wrong []error
	var frozen sync.WaitGroup
	done := make(chan struct{})
	thawed := new(errgroup.Group)
	for _, it := range items {
		frozen.Add(1)
		thawed.Go(func() error {
			answered := sync.OnceFunc(frozen.Done)
			defer answered()
			fails := func(err error) {
				mu.Lock()
				defer mu.Unlock()
				wrong = append(wrong, fmt.Errorf("freeze %s: %w", it.Name, err))
			}
			reached := false
			err := c.withSite(ctx, it.ActiveSite(), func(site holdfast.Site, s *provider.Site) error {
				reached = true
				if s.Agent == nil {
					fails(fmt.Errorf("the provider of site %s cannot reach guest agents", site.Name))
					return nil
				}
				machine := it.CopyAt(it.ActiveSite()).MachineID
				if _, err := s.Agent.Freeze(bound, machine); err != nil {
					fails(err)
				}
				answered()
				<-done
				return thaw(context.WithoutCancel(ctx), s.Agent, machine)
			})
			if !reached {
				fails(err)
			}
			return err
		})
	}
	frozen.Wait()
	mu.Lock()
	err = errors.Join(wrong...)
	mu.Unlock()
	if err == nil {
		err = bound.Err()
	}
	if err == nil {
		err = f(bound)
	}
	close(done)
	err = errors.Join(err, thawed.Wait())
	step.Log(fmt.Sprintf("file systems of %d machines were frozen for %s", len(items), c.now().Sub(began).Round(time.Millisecond)))
	return err
}
