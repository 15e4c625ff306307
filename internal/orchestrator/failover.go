package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/gateway"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

const (
	// drainWait bounds how long a failover waits for a gateway that may be lost
	// with its site to bring over what it has received.
	drainWait = 10 * time.Second
	// plannedDrainWait bounds it where nothing may be left behind.
	plannedDrainWait = 10 * time.Minute
	// shutdownWait bounds the attempt to shut the source down.
	shutdownWait = 2 * time.Minute
	// guardWait bounds the attempt to keep the source from running, lostWait where
	// neither it nor its gateway answered when the failover was asked for: whatever
	// hangs there must not keep the recovered machine waiting, and the source is
	// looked after from then on.
	guardWait = 15 * time.Second
	lostWait  = 4 * time.Second
)

// failoverInput is what a failover, a failback or a change of point was asked
// for. From and To are ids of sites.
type failoverInput struct {
	Item        string                `json:"item"`
	Operation   holdfast.Operation    `json:"operation"`
	From        string                `json:"from"`
	To          string                `json:"to"`
	Request     holdfast.PointRequest `json:"request"`
	Shutdown    bool                  `json:"shutdown"`
	TargetName  string                `json:"target_name"`
	Network     string                `json:"network,omitempty"` // of a test, for a dry run
	Networks    map[string]string     `json:"networks,omitempty"`
	Addressing  holdfast.Addressing   `json:"addressing,omitzero"`
	RequestedAt time.Time             `json:"requested_at"`
	Handle      string                `json:"handle"` // of the machine, should it be made anew
	// Keep and Discard say what becomes of writes that the vault has not.
	Keep    bool `json:"keep,omitempty"`
	Discard bool `json:"discard,omitempty"`
	// Lost says that the source, or the gateway beside it, did not answer then.
	Lost bool `json:"lost,omitempty"`
	// Before is the state that the item was in when it was asked for.
	Before holdfast.State `json:"before,omitempty"`
}

// planned says that nothing may be lost: the job stops where that would happen.
func (in failoverInput) planned() bool {
	return in.Operation == holdfast.OpPlannedFailover || in.Operation == holdfast.OpFailback
}

// failoverState is what its tasks hand on to each other, recorded before each
// effect.
type failoverState struct {
	Off        bool                   `json:"off,omitempty"`    // the source was shut down by this job
	Begun      bool                   `json:"begun,omitempty"`  // the machine that runs is being replaced
	Proved     bool                   `json:"proved,omitempty"` // source and vault were compared and are equal
	Generation holdfast.Generation    `json:"generation,omitempty"`
	Last       holdfast.Position      `json:"last,omitempty"` // end of the old timeline
	AsOf       time.Time              `json:"as_of,omitzero"` // the old timeline has all that was written until then
	Point      holdfast.RecoveryPoint `json:"point,omitzero"`
	Disks      []holdfast.Disk        `json:"disks,omitempty"`    // that the machine had at Point
	Newest     bool                   `json:"newest,omitempty"`   // Point is the newest that there was
	Timeline   holdfast.TimelineID    `json:"timeline,omitempty"` // the new one
	Reuse      bool                   `json:"reuse,omitempty"`    // the machine that is there already is brought up to date
	Moved      int64                  `json:"moved,omitempty"`    // bytes written to its disks
	MachineID  string                 `json:"machine_id,omitempty"`
	StartedAt  time.Time              `json:"started_at,omitzero"`
	Restored   bool                   `json:"restored,omitempty"` // the guest has its own addresses again
}

// jobResult is what jobs leave for their readers.
type jobResult struct {
	Item        string                  `json:"item,omitempty"`
	RPO         *float64                `json:"rpo,omitempty"` // seconds
	RTO         *float64                `json:"rto,omitempty"` // seconds
	Point       *holdfast.RecoveryPoint `json:"point,omitempty"`
	MachineID   string                  `json:"machine_id,omitempty"`
	MachineName string                  `json:"machine_name,omitempty"`
	Site        string                  `json:"site,omitempty"`
	Verify      *api.VerifyReport       `json:"verify,omitempty"`
	Proved      bool                    `json:"proved,omitempty"` // source and vault were compared and are equal
	Moved       *int64                  `json:"moved,omitempty"`  // bytes written to disks that were there already
	Test        string                  `json:"test,omitempty"`   // handle of the test failover
}

// FailoverItem starts the job that runs the item's machine at the other site.
func (c *Orchestrator) FailoverItem(ctx context.Context, idOrName string, req api.Failover) (api.Job, error) {
	in := failoverInput{Operation: holdfast.OpFailover, Shutdown: req.ShutdownSource, TargetName: req.TargetName, Networks: req.Networks, Addressing: addressing(req.Addressing),
		Request: pointRequest(req.Option, req.Point, req.Timeline, req.Time)}
	if req.Planned {
		in.Operation = holdfast.OpPlannedFailover
	}
	return c.startFailover(ctx, idOrName, req.IfVersion, in)
}

// pointRequest translates a choice of recovery point.
func pointRequest(option, point string, timeline uint32, at time.Time) holdfast.PointRequest {
	return holdfast.PointRequest{Option: holdfast.PointOption(option), Point: point, Timeline: holdfast.TimelineID(timeline), Time: at}
}

// startFailover begins what brings an item up at another site, or anew at the
// one where it is.
func (c *Orchestrator) startFailover(ctx context.Context, idOrName string, ifVersion int64, in failoverInput) (api.Job, error) {
	in.RequestedAt = c.now()
	if err := c.awaitSettled(ctx); err != nil {
		return api.Job{}, err
	}
	if err := in.Request.Validate(); err != nil {
		return api.Job{}, err
	}
	it, err := c.opts.Store.Item(ctx, idOrName)
	if err != nil {
		return api.Job{}, err
	}
	if err := c.checkVersion(it, ifVersion); err != nil {
		return api.Job{}, err
	}
	ob := c.observe(ctx, it)
	it.Status, in.Lost = ob.status, replicates(it.State) && (!ob.reached || ob.gateway.Code == gateway.CodeSource)
	if err := c.mayBegin(ctx, it, in.Operation); err != nil {
		return api.Job{}, err
	}
	if _, err := addressingOf(it, in.Addressing); err != nil {
		return api.Job{}, err
	}
	if err := c.hasPoint(ctx, past(it), in.Request); err != nil {
		return api.Job{}, err
	}
	in = completeFailover(it, in)
	in.Handle = newID("rec")
	status, before := it.Status, it.State
	if it, err = c.updateItem(ctx, it.ID, func(i holdfast.Item) (holdfast.Item, error) {
		i.Status, before = status, i.State
		i.Networks = in.Networks
		return i.Apply(in.Operation)
	}); err != nil {
		return api.Job{}, err
	}
	in.Before = before
	return c.submit(ctx, it, submission{string(in.Operation), in.Operation, before, in})
}

// hasPoint fails if there is nothing that the request could choose. The choice
// itself is the job's.
func (c *Orchestrator) hasPoint(ctx context.Context, it holdfast.Item, req holdfast.PointRequest) error {
	inner, cancel := context.WithTimeoutCause(ctx, guardWait, errNoAnswer)
	defer cancel()
	h, err := c.historyFor(inner, it, req)
	if err == nil {
		_, err = holdfast.ResolvePoint(req, h)
	}
	return late(ctx, inner, guardWait, err)
}

// completeFailover fills in what was not said.
func completeFailover(it holdfast.Item, in failoverInput) failoverInput {
	in.Item, in.From, in.To = it.ID, it.ActiveSite(), it.TargetSite()
	if in.Operation == holdfast.OpChangePoint {
		in.From, in.To, in.Networks, in.Addressing = it.TargetSite(), it.ActiveSite(), it.Networks, it.Addressing
	}
	if in.TargetName == "" {
		if in.TargetName = it.CopyAt(in.To).Name; in.TargetName == "" {
			in.TargetName = it.MachineName
		}
	}
	return in
}

// checkVersion refuses a change made from an older version of an item.
func (c *Orchestrator) checkVersion(it holdfast.Item, want int64) error {
	if want == 0 || want == it.Version {
		return nil
	}
	return &holdfast.Error{Kind: holdfast.KindConflict, Op: "change item", Thing: it.Name,
		Cause: fmt.Sprintf("it has version %d now, and the request was made for version %d", it.Version, want),
		Hint:  "Look at the item again, and ask anew if you still want it"}
}

// failoverKinds are the jobs that bring an item up.
func (c *Orchestrator) failoverKinds() []job.Kind {
	retry := job.Retry{Attempts: 3, Delay: 300 * time.Millisecond}
	task := func(name, title string, f func(context.Context, *failoverRun) error) job.Task {
		return job.Task{Name: name, Title: title, Run: c.failoverTask(f)}
	}
	brief := func(t job.Task) job.Task { t.Run = bound(t.Run); return t }
	optional := func(t job.Task) job.Task { t.Optional = true; return t }
	again := func(t job.Task) job.Task { t.Retry = retry; return t }
	final := func(t job.Task) job.Task { t.NoReturn = true; return t }
	check := brief(task("check", "Check recovery point and site", c.failoverCheck))
	shutdown := task("shutdown", "Shut the source down", c.failoverShutdown)
	drain := task("drain", "Bring over what was received", c.failoverDrain)
	prove := task("prove", "Compare the source with the vault", c.failoverProve)
	fence := final(again(brief(task("fence", "Fence the source off", c.failoverFence))))
	guard := optional(task("guard", "Keep the source from running", c.failoverGuard))
	keep := task("keep", "Keep what the machine there wrote and the vault has not", c.failoverKeep)
	abandon := final(task("keep", "Keep what the machine wrote that runs now", c.changeKeep))
	remove := final(again(task("remove", "Take the machine away that runs now", c.changeRemove)))
	bringUp := []job.Task{
		again(brief(task("resolve", "Choose the recovery point", c.failoverResolve))),
		again(task("prepare", "Prepare the machine", c.failoverPrepare)),
		again(brief(task("start", "Start the machine", c.failoverStart))),
		optional(task("addresses", "Give its network cards their addresses", c.failoverAddresses)),
	}
	kind := func(op holdfast.Operation, title string, tasks ...job.Task) job.Kind {
		return job.Kind{Name: string(op), Title: title, Tasks: append(tasks, bringUp...),
			Finish: &job.Task{Name: "finish", Title: "Record the outcome", Run: c.failoverFinish}}
	}
	return []job.Kind{
		kind(holdfast.OpFailover, "Fail over", check, optional(keep), optional(shutdown), optional(drain), fence, guard),
		kind(holdfast.OpPlannedFailover, "Fail over as planned", check, keep, shutdown, drain, prove, fence, guard),
		kind(holdfast.OpFailback, "Fail back", check, keep, shutdown, drain, prove, fence, guard),
		kind(holdfast.OpChangePoint, "Change the recovery point", check, abandon, remove, fence, guard),
	}
}

// failoverRun is a task's view of its failover.
type failoverRun struct {
	*job.Step
	in   failoverInput
	st   failoverState
	item holdfast.Item
}

// failoverTask gives a task its failover, and records what it changed.
func (c *Orchestrator) failoverTask(f func(context.Context, *failoverRun) error) func(context.Context, *job.Step) error {
	return func(ctx context.Context, step *job.Step) error {
		r := &failoverRun{Step: step}
		if err := decodeInput(step, &r.in); err != nil {
			return err
		}
		if err := step.JobState(&r.st); err != nil {
			return err
		}
		var err error
		if r.item, err = c.take(ctx, step, r.in.Item); err != nil {
			return err
		}
		if err := f(ctx, r); err != nil {
			return err
		}
		return step.SaveJobState(ctx, r.st)
	}
}

// failoverCheck finds what would make the failover fail after it could not be
// cancelled any more.
func (c *Orchestrator) failoverCheck(ctx context.Context, r *failoverRun) error {
	if err := c.settleHistory(ctx, r.item.ID); err != nil {
		return err
	}
	h, err := c.historyFor(ctx, past(r.item), r.in.Request)
	if err != nil {
		return err
	}
	res, err := holdfast.ResolvePoint(r.in.Request, h)
	if err != nil {
		return err // it is gone since it was asked for
	}
	if r.item, err = c.itemAt(ctx, r.item, res.Point); err != nil {
		return err
	}
	if err := c.checkDamage(ctx, r, h); err != nil {
		return err
	}
	if r.in.Operation == holdfast.OpChangePoint {
		return c.changeCheck(ctx, r.item, r.in.To)
	}
	return c.withSite(ctx, r.in.To, func(rec holdfast.Site, s *provider.Site) error { return c.checkTarget(ctx, r, rec, s) })
}

// changeCheck looks whether a machine that no recovery has made, which a change of
// point brings to another moment, has the disks of that. The item is as it was then.
func (c *Orchestrator) changeCheck(ctx context.Context, it holdfast.Item, at string) error {
	if it.CopyAt(at).Handle != "" {
		return nil // it is made anew
	}
	return c.withSite(ctx, at, func(_ holdfast.Site, s *provider.Site) error {
		_, err := c.reusable(ctx, it, at, s)
		return err
	})
}

// checkTarget looks whether the machine can be brought up at its site.
func (c *Orchestrator) checkTarget(ctx context.Context, r *failoverRun, rec holdfast.Site, s *provider.Site) error {
	if err := checkAddressing(r.item, r.in.Addressing, rec, s); err != nil {
		return err
	}
	var err error
	if r.st.Reuse, err = c.reusable(ctx, r.item, r.in.To, s); err != nil || r.st.Reuse {
		return err
	}
	if s.Target == nil {
		return &holdfast.Error{Kind: holdfast.KindInvalid, Op: "check recovery site", Thing: rec.Name,
			Cause: "its provider cannot run recovered machines", Hint: "Protect the machine with another recovery site"}
	}
	if err := fitsAt(r.item, rec, s); err != nil {
		return err
	}
	if err := c.checkNetworks(ctx, s, rec, "", r.in.Networks); err != nil {
		return err
	}
	return c.nameFree(ctx, s, rec, r.in.TargetName)
}

// nameFree fails if the site has a machine of the name.
func (c *Orchestrator) nameFree(ctx context.Context, s *provider.Site, site holdfast.Site, name string) error {
	if s.Inventory == nil {
		return nil
	}
	_, err := s.Inventory.Machine(ctx, name)
	if errors.Is(err, provider.ErrNotFound) {
		return nil
	}
	if err == nil {
		return nameTaken(site, name, provider.ErrNameTaken)
	}
	return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "look for machine " + name + " at site", Thing: site.Name, Err: err,
		Hint: "Mend what the site says, then ask again"}
}

// reusable says whether the site has the item's machine, left behind by an
// earlier failover, so that its disks only have to be brought up to date.
func (c *Orchestrator) reusable(ctx context.Context, it holdfast.Item, at string, s *provider.Site) (bool, error) {
	m, there, err := c.leftMachine(ctx, it, at, s)
	if err != nil || !there {
		return false, err // it is made anew
	}
	left := it.CopyAt(at)
	for _, d := range it.Disks {
		if !slices.ContainsFunc(m.Disks, func(o provider.Disk) bool { return o.ID == d.ID }) {
			return false, &holdfast.Error{Kind: holdfast.KindConflict, Op: "reuse machine", Thing: left.Name,
				Cause: fmt.Sprintf("it has no disk %s", d.ID),
				Hint:  "Give it a disk of that name, of any size; or remove or rename that machine: then it is made anew"}
		}
	}
	return true, nil
}

// leftMachine returns the item's machine at a site, if it is there and its disks
// can be read and written while it is off.
func (c *Orchestrator) leftMachine(ctx context.Context, it holdfast.Item, at string, s *provider.Site) (m provider.Machine, there bool, err error) {
	left := it.CopyAt(at)
	if left.MachineID == "" || s.Replica == nil || s.Power == nil || s.Inventory == nil || s.Source == nil {
		return m, false, nil
	}
	m, err = s.Inventory.Machine(ctx, left.MachineID)
	if errors.Is(err, provider.ErrNotFound) {
		return m, false, nil
	}
	if err != nil {
		return m, false, &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "look at machine", Thing: left.Name, Err: err}
	}
	return m, true, nil
}

// checkDamage refuses "the newest" where damage hides what is newer: how much
// that loses is for people to decide.
func (c *Orchestrator) checkDamage(ctx context.Context, r *failoverRun, h holdfast.History) error {
	switch r.in.Request.Option {
	case holdfast.PointChosen, holdfast.PointTime:
		return nil
	}
	s, err := c.stream(ctx, r.item.Stream)
	if err != nil {
		return vaultError("open stream", r.item.Name, err)
	}
	damage := s.Damaged()
	if damage == nil {
		return nil
	}
	e := &holdfast.Error{Kind: holdfast.KindCorrupt, Op: "choose recovery point of", Thing: r.item.Name, Err: damage,
		Cause: "damage in the vault hides the newest of its history", Hint: "Run holdfast vault verify, and restore what it names from a copy of the vault"}
	if newest, ok := h.Newest(); ok {
		e.Hint = "To go back to the last moment before the damage, fail over with --time " + newest.Time.UTC().Format(time.RFC3339Nano)
	}
	return e
}

func nameTaken(site holdfast.Site, name string, err error) error {
	return &holdfast.Error{Kind: holdfast.KindConflict, Op: "bring up machine", Thing: name, Err: err,
		Cause: fmt.Sprintf("site %s has a machine named %s already", site.Name, name),
		Hint:  "Remove or rename that machine, or give another name with --name"}
}

// failoverShutdown asks the source to shut down. In an unplanned failover its
// failure stops nothing.
func (c *Orchestrator) failoverShutdown(ctx context.Context, r *failoverRun) error {
	if !r.in.Shutdown && !r.in.planned() {
		return job.Skip("it was not asked for")
	}
	if !r.st.Off {
		r.st.Off = true // whoever undoes this has to know
		if err := r.SaveJobState(ctx, r.st); err != nil {
			return err
		}
	}
	return c.shutDownAt(ctx, r.item, r.in.From)
}

// failoverDrain has the gateway make everything received a recovery point. A
// gateway that is lost with its site cannot: then the vault's end is the end.
func (c *Orchestrator) failoverDrain(ctx context.Context, r *failoverRun) error {
	if o := r.in.Request.Option; o != "" && o != holdfast.PointLatest && !r.in.planned() {
		return job.Skip("the recovery point is in the vault already")
	}
	wait := drainWait
	switch {
	case r.in.planned():
		wait = plannedDrainWait
	case r.in.Lost:
		wait = lostWait / 4 // should it be back already
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	g, site, err := c.gatewayOf(ctx, r.item)
	if err != nil {
		return err
	}
	if _, err := g.Point(ctx, r.item.ID, string(r.in.Operation)+" "+r.JobID()); err != nil {
		return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "drain gateway of site", Thing: site.Name, Err: err,
			Hint: "What the gateway has received and the vault has not is not in the recovered machine"}
	}
	return nil
}

// failoverProve compares the disks of the source, which is off, with what the
// vault has: a planned failover loses nothing, and that is checked.
func (c *Orchestrator) failoverProve(ctx context.Context, r *failoverRun) error {
	if o := r.in.Request.Option; o != "" && o != holdfast.PointLatest {
		return job.Skip("an older recovery point was asked for")
	}
	h, err := c.history(ctx, past(r.item))
	if err != nil {
		return err
	}
	newest, ok := h.Newest()
	if !ok {
		return &holdfast.Error{Kind: holdfast.KindNotFound, Op: "choose recovery point of", Thing: r.item.Name, Cause: "the vault has none"}
	}
	source := r.item.CopyAt(r.in.From)
	return c.withSite(ctx, r.in.From, func(site holdfast.Site, s *provider.Site) error {
		if s.Replica == nil {
			r.Warn("the provider of site " + site.Name + " cannot read disks of machines that are off, so source and vault were not compared")
			return nil
		}
		n, err := c.compare(ctx, r, s, source, holdfast.StreamPosition{Timeline: newest.Timeline, Position: newest.Position})
		if err != nil {
			return err
		}
		if n > 0 {
			return &holdfast.Error{Kind: holdfast.KindConflict, Op: string(r.in.Operation), Thing: r.item.Name,
				Cause: fmt.Sprintf("%d bytes of its disks are not in the vault", n),
				Hint:  "The machine is started again and the rest is brought over; ask again when the item is protected"}
		}
		r.st.Proved = true
		return nil
	})
}

// failoverGuard keeps the source from running beside the recovered machine. A
// source that cannot be reached is guarded when it can.
func (c *Orchestrator) failoverGuard(ctx context.Context, r *failoverRun) error {
	wait := guardWait
	if r.in.Lost {
		wait = lostWait
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	return c.guard(ctx, r.item, r.in.From, r.in.To)
}

// failoverFence closes the item's timeline under a new generation, so that
// nobody can write to it any more.
func (c *Orchestrator) failoverFence(ctx context.Context, r *failoverRun) error {
	s, err := c.stream(ctx, r.item.Stream)
	if err != nil {
		return vaultError("open stream", r.item.Name, err)
	}
	if err := refresh(ctx, s); err != nil {
		return vaultError("read stream", r.item.Name, err)
	}
	if r.st.Generation == 0 {
		r.st.Generation = r.item.Generation + 1
		for _, tl := range s.Timelines() {
			r.st.Generation = max(r.st.Generation, tl.Generation+1)
		}
		if canary, err := s.Canary(ctx); err == nil {
			r.st.AsOf = canary.Time
		}
		if err := r.SaveJobState(ctx, r.st); err != nil {
			return err
		}
	}
	r.st.Last, err = s.End(ctx, r.item.Timeline, vault.EndOptions{
		Generation: r.st.Generation, Reason: string(r.in.Operation) + " " + r.JobID(), Now: c.now(),
	})
	return vaultError("fence off", r.item.Name, err)
}

// failoverResolve chooses the recovery point, for good, and forks the stream
// there.
func (c *Orchestrator) failoverResolve(ctx context.Context, r *failoverRun) error {
	s, err := c.stream(ctx, r.item.Stream)
	if err != nil {
		return vaultError("open stream", r.item.Name, err)
	}
	if r.st.Point.Position == 0 {
		h, err := c.historyFor(ctx, past(r.item), r.in.Request)
		if err != nil {
			return err
		}
		res, err := holdfast.ResolvePoint(r.in.Request, h)
		if err != nil {
			return err
		}
		if res.Warning != "" {
			r.Log(res.Warning)
		}
		r.st.Point = res.Point
		if r.st.Disks, err = c.disksAt(ctx, r.item, res.Point); err != nil {
			return err
		}
		if newest, ok := h.Newest(); ok {
			r.st.Newest = newest.Position == res.Point.Position && newest.Timeline == past(r.item).Timeline
		}
		if err := r.SaveJobState(ctx, r.st); err != nil {
			return err
		}
	}
	if err := refresh(ctx, s); err != nil {
		return vaultError("read stream", r.item.Name, err)
	}
	for _, tl := range s.Timelines() {
		if tl.Generation == r.st.Generation && tl.Parent == r.st.Point.Timeline && tl.ForkAt == r.st.Point.Position {
			r.st.Timeline = tl.ID // made before the server was interrupted
			return nil
		}
	}
	r.st.Timeline, err = s.Fork(ctx, vault.ForkOptions{
		From: r.st.Point.Timeline, At: r.st.Point.Position, Generation: r.st.Generation, Reason: string(r.in.Operation) + " " + r.JobID(), Now: c.now(),
	})
	return vaultError("fork stream", r.item.Name, err)
}
