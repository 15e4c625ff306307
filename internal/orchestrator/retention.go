package orchestrator

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// What is kept of an item's past is decided by its policy (holdfast.Retention),
// by what needs a position, and by people who pin points. A job that works beside
// the item frees the rest now and then. Whoever has chosen a recovery point, or is
// about to, keeps that job off: see lockHistory.

const (
	// pruneEvery is how often what is not kept is freed, and pruneLook how often it
	// is looked for an item whose turn it is.
	pruneEvery = 10 * time.Minute
	pruneLook  = 30 * time.Second
	// maxPinned is how many points of an item can be pinned.
	maxPinned = 256
)

// lockHistory waits until nobody changes what is kept of an item's past. A job
// that chooses a recovery point holds it for a moment when it begins: a prune that
// was under way has recorded what it keeps by then, and another one finds the job.
func (c *Orchestrator) lockHistory(ctx context.Context, item string) (unlock func(), err error) {
	l := c.powerOf("history/" + item)
	select {
	case l <- struct{}{}:
		return func() { <-l }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// settleHistory waits for a prune that was under way when a job began.
func (c *Orchestrator) settleHistory(ctx context.Context, item string) error {
	unlock, err := c.lockHistory(ctx, item)
	if err == nil {
		unlock()
	}
	return err
}

// prunable says whether an item's past may be thinned in its state.
func prunable(it holdfast.Item) bool {
	switch it.State {
	case holdfast.StateProtected, holdfast.StateCommitPending, holdfast.StateCommitted, holdfast.StateReplicationBroken:
	default:
		return false
	}
	return it.CurrentJob == "" && it.Hold == nil && !slices.ContainsFunc(it.Tests, func(t holdfast.Test) bool { return t.Point.Position == 0 })
}

// pruneLoop frees what is not kept, item after item, until ctx ends. It is no job:
// nothing is lost when it is interrupted, and it leaves no record for each of
// thousands of items a day.
func (c *Orchestrator) pruneLoop(ctx context.Context) error {
	last := map[string]time.Time{}
	for sleep(ctx, pruneLook) {
		items, err := c.opts.Store.Items(ctx)
		if err != nil {
			continue // whoever observes the items says so
		}
		for _, it := range items {
			at, known := last[it.ID]
			if !known {
				last[it.ID] = c.now() // not all at once when the server starts
			}
			if !known || c.now().Sub(at) < pruneEvery || !prunable(it) {
				continue
			}
			last[it.ID] = c.now()
			rep, err := c.prune(ctx, pruning{item: it.ID})
			switch {
			case err != nil && !job.IsSkip(err) && ctx.Err() == nil:
				c.log.Error("what is not kept is not freed", "item", it.Name, "error", err)
			case rep.Removed > 0:
				c.log.Info("what is not kept was freed", "item", it.Name, "bytes", rep.Freed-rep.Rewritten, "objects", rep.Removed)
			}
		}
	}
	return nil
}

// prune frees, timeline by timeline, what is not kept of an item's past.
func (c *Orchestrator) prune(ctx context.Context, p pruning) (sum vault.PruneReport, err error) {
	it, err := c.opts.Store.Item(ctx, p.item)
	if err != nil {
		return sum, err
	}
	if p.s, err = c.stream(ctx, it.Stream); err != nil {
		return sum, vaultError("open stream", it.Name, err)
	}
	if err := refresh(ctx, p.s); err != nil {
		return sum, vaultError("read stream", it.Name, err)
	}
	for _, tl := range p.s.Timelines() {
		p.tl = tl.ID
		rep, err := c.pruneTimeline(ctx, p)
		if job.IsSkip(err) {
			return sum, err
		}
		if err != nil {
			return sum, vaultError("prune stream", it.Name, err)
		}
		sum.Removed, sum.Freed, sum.Rewritten = sum.Removed+rep.Removed, sum.Freed+rep.Freed, sum.Rewritten+rep.Rewritten
	}
	return sum, nil
}

// pruning is what is freed of an item's past.
type pruning struct {
	item string
	job  string // that does it; empty: none
	all  bool   // nothing from before the failover is kept, but what somebody needs
	s    *vault.Stream
	tl   holdfast.TimelineID // the one at hand
}

// pruneTimeline frees what is not kept of one timeline. What is kept is decided
// and recorded while no job has a recovery point, or is about to choose one.
func (c *Orchestrator) pruneTimeline(ctx context.Context, p pruning) (rep vault.PruneReport, err error) {
	unlock, err := c.lockHistory(ctx, p.item)
	if err != nil {
		return rep, err
	}
	once := true
	release := func() {
		if once {
			once = false
			unlock()
		}
	}
	defer release()
	it, err := c.opts.Store.Item(ctx, p.item)
	if err != nil {
		return rep, err
	}
	jobs, err := c.engine.List(ctx, job.Filter{Subject: it.ID, Unfinished: true, Limit: 1})
	if err != nil {
		return rep, err
	}
	if mine := len(jobs) == 1 && jobs[0].ID == p.job; len(jobs) > 0 && !mine || !mine && !prunable(it) {
		return rep, job.Skip("another job has begun to work on the item")
	}
	o := keptOf(it, p, c.now())
	o.Narrowed = release
	return p.s.Prune(ctx, o)
}

// keptOf decides what is kept of a timeline.
func keptOf(it holdfast.Item, p pruning, now time.Time) vault.PruneOptions {
	s, tl := p.s, p.tl
	o := vault.PruneOptions{Timeline: tl, Keep: needed(it)}
	lines := s.Timelines()
	at := slices.IndexFunc(lines, func(t vault.Timeline) bool { return t.ID == tl })
	if tl == past(it).Timeline {
		o.Keep = append(o.Keep, lines[at].Tail.Position) // see leftAt
	}
	current := tl == it.Timeline
	if p.all {
		if !current {
			o.Upto = lines[at].Tail.Position
		}
		return o
	}
	// The history that the item can choose from, as one; and what was abandoned,
	// whose points have an age and nothing else.
	var line []holdfast.RecoveryPoint
	in := map[holdfast.Position]bool{}
	newest := time.Time{}
	for _, of := range []holdfast.TimelineID{it.Timeline, past(it).Timeline} {
		upTo, on := lineOf(lines, of)[tl]
		for _, p := range historyOf(s, of).Points {
			if !slices.ContainsFunc(line, func(q holdfast.RecoveryPoint) bool { return q.Position == p.Position && q.ID == p.ID }) {
				line = append(line, p)
			}
			if on && p.Position > lines[at].ForkAt && p.Position <= upTo {
				in[p.Position] = true
			}
			if p.Time.After(newest) {
				newest = p.Time
			}
		}
	}
	if newest.After(now) {
		newest = now
	}
	keep := it.Policy.WithDefaults().Retention
	for _, v := range keep.Decide(line, nil, now) {
		if v.Keep && in[v.Point.Position] {
			o.Keep = append(o.Keep, v.Point.Position)
		}
	}
	for _, p := range s.Points(tl) {
		if p.Position > lines[at].ForkAt && !in[p.Position] && newest.Sub(p.Time) <= keep.Reach() {
			o.Keep = append(o.Keep, p.Position)
		}
	}
	if !newest.IsZero() {
		o.Upto = s.LastBefore(tl, newest.Add(-keep.Window))
	}
	return o
}

// needed are the positions that something needs: people who pinned them, tests,
// the machine that runs, and what others can be brought to with little to move. On
// a timeline that does not have one, it names nothing, or a moment more.
func needed(it holdfast.Item) []holdfast.Position {
	var out []holdfast.Position
	for _, p := range it.Pinned {
		out = append(out, p.Position)
	}
	for _, t := range it.Tests {
		out = append(out, t.Point.Position)
	}
	if it.RecoveryPoint != nil {
		out = append(out, it.RecoveryPoint.Position)
	}
	for _, site := range []string{it.PrimarySite, it.RecoverySite} {
		if e := it.CopyAt(site).Equal; e != nil {
			out = append(out, e.Position)
		}
	}
	return out
}

// PinPoint keeps a recovery point of an item until somebody unpins it, whatever
// its policy says. It is durable when it returns.
func (c *Orchestrator) PinPoint(ctx context.Context, idOrName string, req api.PinPoint) (api.Point, error) {
	it, err := c.opts.Store.Item(ctx, idOrName)
	if err != nil {
		return api.Point{}, err
	}
	unlock, err := c.lockHistory(ctx, it.ID)
	if err != nil {
		return api.Point{}, err
	}
	defer unlock()
	r := holdfast.PointRequest{Option: holdfast.PointChosen, Point: req.Point, Timeline: holdfast.TimelineID(req.Timeline)}
	if err := r.Validate(); err != nil {
		return api.Point{}, err
	}
	h, err := c.historyFor(ctx, past(it), r)
	if err != nil {
		return api.Point{}, err
	}
	res, err := holdfast.ResolvePoint(r, h)
	if err != nil {
		return api.Point{}, err
	}
	it, err = c.updateItem(ctx, it.ID, func(i holdfast.Item) (holdfast.Item, error) {
		i.Pinned = slices.DeleteFunc(slices.Clone(i.Pinned), func(p holdfast.RecoveryPoint) bool { return samePoint(p, res.Point) })
		if !req.Unpin {
			i.Pinned = append(i.Pinned, res.Point)
		}
		if len(i.Pinned) > maxPinned {
			return i, &holdfast.Error{Kind: holdfast.KindInvalid, Op: "pin recovery point of", Thing: i.Name, Cause: fmt.Sprintf("it has %d pinned points, the most there can be", maxPinned),
				Hint: "Unpin some with holdfast point unpin"}
		}
		return i, nil
	})
	p := apiPoint(res.Point)
	p.Pinned = pinned(it, res.Point)
	return p, err
}

// samePoint says whether two are the same moment of the same history.
func samePoint(a, b holdfast.RecoveryPoint) bool {
	return a.Position == b.Position && (a.Timeline == b.Timeline || a.ID != "" && a.ID == b.ID)
}

func pinned(it holdfast.Item, p holdfast.RecoveryPoint) bool {
	return slices.ContainsFunc(it.Pinned, func(q holdfast.RecoveryPoint) bool { return samePoint(p, q) })
}

// ChangePolicy gives an item another policy, in force when it returns. What it no
// longer keeps is removed within the hour.
func (c *Orchestrator) ChangePolicy(ctx context.Context, idOrName string, req api.ChangePolicy) (api.Item, error) {
	p := policyOf(req.Policy)
	if err := p.Validate(); err != nil {
		return api.Item{}, err
	}
	it, err := c.opts.Store.Item(ctx, idOrName)
	if err != nil {
		return api.Item{}, err
	}
	before := it.Policy
	it, err = c.updateItem(ctx, it.ID, func(i holdfast.Item) (holdfast.Item, error) {
		if err := c.checkVersion(i, req.IfVersion); err != nil {
			return i, err
		}
		before, i.Policy = i.Policy, p
		return i, nil
	})
	if err != nil {
		return api.Item{}, err
	}
	if before.WithDefaults().PointInterval != p.PointInterval && replicates(it.State) && it.CurrentJob == "" {
		if err := c.giveOrder(ctx, it, it.ActiveSite()); err != nil {
			c.log.Warn("the gateway does not know of the new policy yet", "item", it.Name, "error", err)
		}
	}
	return c.GetItem(ctx, it.ID)
}

// HoldItem holds the history of an item, or releases it, as somebody asks: while it is
// held, neither the policy nor any operation removes anything of it. It is durable
// when it returns.
func (c *Orchestrator) HoldItem(ctx context.Context, idOrName, by string, req api.HoldItem) (api.Item, error) {
	if !req.Release && strings.TrimSpace(req.Reason) == "" {
		return api.Item{}, &holdfast.Error{Kind: holdfast.KindInvalid, Op: "hold history of item", Thing: idOrName, Cause: "there is no reason", Hint: "Give one with --reason"}
	}
	it, err := c.opts.Store.Item(ctx, idOrName)
	if err != nil {
		return api.Item{}, err
	}
	unlock, err := c.lockHistory(ctx, it.ID) // what is being removed now is waited for
	if err != nil {
		return api.Item{}, err
	}
	defer unlock()
	it, err = c.updateItem(ctx, it.ID, func(i holdfast.Item) (holdfast.Item, error) {
		if i.Hold = nil; !req.Release {
			i.Hold = &holdfast.Hold{Reason: req.Reason, By: by, Since: c.now()}
		}
		return i, nil
	})
	if err != nil {
		return api.Item{}, err
	}
	c.log.Info("legal hold", "item", it.Name, "held", it.Hold != nil, "by", by, "reason", req.Reason)
	return c.GetItem(ctx, it.ID)
}

// mayDelete refuses to delete anything of a history that is held.
func (c *Orchestrator) mayDelete(ctx context.Context, idOrName string, asked bool) error {
	it, err := c.opts.Store.Item(ctx, idOrName)
	if err == nil && asked {
		err = it.CheckHold("delete recovery points of item")
	}
	return err
}

// commitDelete deletes the recovery points from before the failover, if that was
// asked for.
func (c *Orchestrator) commitDelete(ctx context.Context, step *job.Step, it holdfast.Item) error {
	var in itemInput
	if err := decodeInput(step, &in); err != nil {
		return err
	}
	if !in.DeletePoints {
		return job.Skip("they stay as the policy says")
	}
	if it.Hold != nil {
		return job.Skip("the history is held: " + it.Hold.Reason) // since the job began
	}
	rep, err := c.prune(ctx, pruning{item: it.ID, job: step.JobID(), all: true})
	if err == nil {
		step.Log(fmt.Sprintf("%d bytes were freed; %d objects were removed", rep.Freed-rep.Rewritten, rep.Removed))
	}
	return err
}

// disableDelete deletes the stream of an item that is being disabled, if that was
// asked for.
func (c *Orchestrator) disableDelete(ctx context.Context, step *job.Step, it holdfast.Item) error {
	var in disableInput
	if err := decodeInput(step, &in); err != nil {
		return err
	}
	if !in.DeleteHistory {
		return job.Skip("it stays in the vault")
	}
	unlock, err := c.lockHistory(ctx, it.ID)
	if err != nil {
		return err
	}
	defer unlock()
	if it, err = c.opts.Store.Item(ctx, it.ID); err != nil {
		return err
	}
	if err := it.CheckHold("delete history of item"); err != nil {
		return job.Skip("it stays: " + err.Error()) // held since the job began
	}
	c.mu.Lock()
	delete(c.streams, it.Stream)
	c.mu.Unlock()
	return vaultError("delete stream", it.Name, c.opts.Vault.DeleteStream(ctx, it.Stream, c.now(), func(done, total int64) { step.Progress(done, total, "objects") }))
}
