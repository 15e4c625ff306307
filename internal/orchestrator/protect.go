package orchestrator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/gateway"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// The kinds of jobs.
const (
	kindProtect  = "protect"
	kindFailover = string(holdfast.OpFailover)
	kindHydrate  = "hydrate"
	kindDisable  = "disable"
	kindVerify   = "vault_verify"
)

// itemInput is the input of every job on an item.
type itemInput struct {
	Item string `json:"item"`
	// Keep and Discard say what becomes of writes that the vault has not, where
	// an operation takes them away.
	Keep    bool `json:"keep,omitempty"`
	Discard bool `json:"discard,omitempty"`
	// DeletePoints says that the recovery points from before are not kept.
	DeletePoints bool `json:"delete_points,omitempty"`
}

// ProtectMachine makes an item of a machine and starts the job that replicates
// it. The item is recorded when it returns.
func (c *Orchestrator) ProtectMachine(ctx context.Context, req api.Protect) (api.Job, error) {
	if err := c.awaitSettled(ctx); err != nil {
		return api.Job{}, err
	}
	from, err := c.opts.Store.Site(ctx, req.Site)
	if err != nil {
		return api.Job{}, err
	}
	to, err := c.opts.Store.Site(ctx, req.RecoverySite)
	if err != nil {
		return api.Job{}, err
	}
	if from.ID == to.ID {
		return api.Job{}, &holdfast.Error{Kind: holdfast.KindInvalid, Op: "protect machine", Thing: req.Machine,
			Cause: "source and recovery site are the same", Hint: "Name another recovery site"}
	}
	m, err := c.findMachine(ctx, from, req.Machine)
	if err != nil {
		return api.Job{}, err
	}
	if err := protectable(m); err != nil {
		return api.Job{}, err
	}
	it, err := c.newItem(req, m, from, to)
	if err != nil {
		return api.Job{}, err
	}
	if it, err = c.recordItem(ctx, it); err != nil {
		return api.Job{}, err
	}
	return c.submit(ctx, it, submission{kindProtect, holdfast.OpEnable, it.State, itemInput{Item: it.ID}})
}

// findMachine finds a machine at its site.
func (c *Orchestrator) findMachine(ctx context.Context, site holdfast.Site, idOrName string) (m provider.Machine, err error) {
	err = c.withSite(ctx, site.ID, func(_ holdfast.Site, s *provider.Site) error {
		if s.Source == nil || s.Inventory == nil {
			return &holdfast.Error{Kind: holdfast.KindInvalid, Op: "protect machine", Thing: idOrName,
				Cause: "machines of site " + site.Name + " cannot be protected", Hint: "Use a site whose provider can be a source"}
		}
		m, err = s.Inventory.Machine(ctx, idOrName)
		if errors.Is(err, provider.ErrNotFound) {
			return &holdfast.Error{Kind: holdfast.KindNotFound, Op: "find machine", Thing: idOrName, Err: err,
				Cause: "site " + site.Name + " has no such machine", Hint: "See holdfast machine list --site " + site.Name}
		}
		if err != nil {
			return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "look at machine", Thing: idOrName, Err: err,
				Hint: "Mend what site " + site.Name + " says of it, then ask again"}
		}
		return nil
	})
	return m, err
}

// protectable says why a machine cannot be protected as it is.
func protectable(m provider.Machine) error {
	fail := func(cause, hint string) error {
		return &holdfast.Error{Kind: holdfast.KindNotAllowed, Op: "protect machine", Thing: m.Name, Cause: cause, Hint: hint}
	}
	if len(m.Disks) == 0 {
		return fail("it has no disks that could be replicated", "Give it a disk, then protect it")
	}
	for _, o := range m.Obstacles {
		return fail(o, "Remove the obstacle, then protect the machine")
	}
	if m.Power != provider.PowerRunning {
		return fail("it is "+string(m.Power)+", and its disks are read while it runs", "Start the machine, then protect it")
	}
	for _, d := range m.Disks {
		if d.Size <= 0 || d.Size%512 != 0 {
			return fail(fmt.Sprintf("disk %s has %d bytes, which is not a positive multiple of 512", d.ID, d.Size), "Resize the disk")
		}
	}
	return nil
}

func (c *Orchestrator) newItem(req api.Protect, m provider.Machine, from, to holdfast.Site) (holdfast.Item, error) {
	raw, err := json.Marshal(m)
	if err != nil {
		return holdfast.Item{}, err
	}
	it := holdfast.Item{
		ID: newID("item"), Name: req.Name, MachineID: m.ID, MachineName: m.Name, Machine: raw,
		PrimarySite: from.ID, RecoverySite: to.ID, Policy: policyOf(req.Policy),
		State: holdfast.StateUnprotected, Direction: holdfast.Forward,
		Replication: holdfast.Replication{Stream: holdfast.NewStreamID(), Timeline: 1, Generation: 1},
		Record:      holdfast.Record{CreatedAt: c.now(), UpdatedAt: c.now()},
	}
	if it.Name == "" {
		it.Name = m.Name
	}
	for _, d := range m.Disks {
		it.Disks = append(it.Disks, holdfast.Disk{ID: d.ID, Size: d.Size, Boot: d.Boot})
	}
	if err := it.Policy.Validate(); err != nil {
		return it, err
	}
	return it.Apply(holdfast.OpEnable)
}

// recordItem records a new item, or takes the one whose enabling had failed.
func (c *Orchestrator) recordItem(ctx context.Context, it holdfast.Item) (holdfast.Item, error) {
	items, err := c.opts.Store.Items(ctx)
	if err != nil {
		return it, err
	}
	for _, old := range items {
		if old.MachineID != it.MachineID || old.PrimarySite != it.PrimarySite {
			continue
		}
		if old.State != holdfast.StateEnablingFailed {
			return it, &holdfast.Error{Kind: holdfast.KindConflict, Op: "protect machine", Thing: it.MachineName,
				Cause: "it is protected already, as item " + old.Name, Hint: "See holdfast item show " + old.Name}
		}
		return c.updateItem(ctx, old.ID, func(o holdfast.Item) (holdfast.Item, error) {
			o.Machine, o.Disks, o.Policy, o.RecoverySite = it.Machine, it.Disks, it.Policy, it.RecoverySite
			o.Stream = it.Stream // the disks may have changed since
			return o.Apply(holdfast.OpEnable)
		})
	}
	return c.opts.Store.CreateItem(ctx, it)
}

// submission is a job that is to be started for an operation.
type submission struct {
	kind   string
	op     holdfast.Operation
	before holdfast.State // of the item, which the operation has been applied to
	input  any
}

// mayBegin fails if the operation is not allowed, or a job on the item has not
// ended that has not begun to work on it either. Nothing is applied to such an
// item: submit could put it right, unless the server dies before.
func (c *Orchestrator) mayBegin(ctx context.Context, it holdfast.Item, op holdfast.Operation) error {
	if err := it.Check(op); err != nil {
		return err
	}
	jobs, err := c.engine.List(ctx, job.Filter{Subject: it.ID, Unfinished: true, Limit: 1})
	if err != nil || len(jobs) == 0 {
		return err
	}
	return busy(it, op, &job.BusyError{Subject: it.ID, JobID: jobs[0].ID, Kind: jobs[0].Kind})
}

// busy says that an item has another job.
func busy(it holdfast.Item, op holdfast.Operation, err error) error {
	return &holdfast.Error{Kind: holdfast.KindNotAllowed, Op: string(op), Thing: it.Name, Cause: "another job of it has not ended", Err: err,
		Hint: "Wait until its job has ended; watch it with holdfast job watch"}
}

// submit starts a job on an item. If that cannot be, the item is as it was: it
// must not wait for a job that is not there.
func (c *Orchestrator) submit(ctx context.Context, it holdfast.Item, s submission) (api.Job, error) {
	j, err := c.engine.Submit(ctx, s.kind, it.ID, s.input)
	if err == nil {
		return c.apiJob(ctx, j), nil
	}
	ctx = context.WithoutCancel(ctx)
	if !errors.Is(err, job.ErrBusy) {
		err = fmt.Errorf("start to %s item %s: %w", s.op, it.Name, err)
		return api.Job{}, errors.Join(err, c.settleItem(ctx, it))
	}
	// A job was asked for a moment ago, and has not begun to work on the item.
	_, reverted := c.updateItem(ctx, it.ID, func(i holdfast.Item) (holdfast.Item, error) {
		if i.State == it.State {
			i.State = s.before
		}
		return i, nil
	})
	return api.Job{}, errors.Join(busy(it, s.op, err), reverted)
}

func (c *Orchestrator) protectKind() job.Kind {
	retry := job.Retry{Attempts: 3, Delay: 500 * time.Millisecond}
	return job.Kind{
		Name: kindProtect, Title: "Protect machine",
		Tasks: []job.Task{
			{Name: "check", Title: "Check machine, sites and gateway", Run: bound(c.withItem(c.protectCheck))},
			{Name: "stream", Title: "Create the stream in the vault", Run: bound(c.withItem(c.protectStream)), Retry: retry},
			{Name: "replicate", Title: "Have the gateway replicate", Run: bound(c.withItem(c.protectOrder)), Retry: retry},
			{Name: "sync", Title: "Copy the disks for the first time", Run: c.withItem(c.protectSync)},
		},
		Finish: &job.Task{Name: "finish", Title: "Record the outcome", Run: c.protectFinish},
	}
}

// withItem gives a task the item of its job.
func (c *Orchestrator) withItem(f func(context.Context, *job.Step, holdfast.Item) error) func(context.Context, *job.Step) error {
	return func(ctx context.Context, step *job.Step) error {
		var in itemInput
		if err := decodeInput(step, &in); err != nil {
			return err
		}
		it, err := c.take(ctx, step, in.Item)
		if err != nil {
			return err
		}
		return f(ctx, step, it)
	}
}

// take returns the item of a job, which bears the job's name from its first task
// to its end.
func (c *Orchestrator) take(ctx context.Context, step *job.Step, id string) (holdfast.Item, error) {
	it, err := c.opts.Store.Item(ctx, id)
	if err != nil || step.Subject() != it.ID || it.CurrentJob == step.JobID() {
		return it, err // a job beside the item, like hydration, does not keep others off
	}
	return c.updateItem(ctx, id, func(i holdfast.Item) (holdfast.Item, error) {
		i.CurrentJob = step.JobID()
		return i, nil
	})
}

// protectCheck finds what would make protection fail later.
func (c *Orchestrator) protectCheck(ctx context.Context, _ *job.Step, it holdfast.Item) error {
	err := c.withSite(ctx, it.RecoverySite, func(rec holdfast.Site, s *provider.Site) error {
		if s.Target != nil {
			return fitsAt(it, rec, s)
		}
		return &holdfast.Error{Kind: holdfast.KindInvalid, Op: "check recovery site", Thing: rec.Name,
			Cause: "its provider cannot run recovered machines", Hint: "Protect the machine with another recovery site"}
	})
	if err != nil {
		return err
	}
	return c.reachGateway(ctx, it)
}

// fitsAt fails if an item's machine cannot be run at a site.
func fitsAt(it holdfast.Item, rec holdfast.Site, s *provider.Site) error {
	if s.Fits == nil {
		return nil
	}
	var m provider.Machine
	if err := json.Unmarshal(it.Machine, &m); err != nil {
		return fmt.Errorf("decode description of machine %s: %w", it.MachineName, err)
	}
	if err := s.Fits(m); err != nil {
		return &holdfast.Error{Kind: holdfast.KindInvalid, Op: "check recovery site", Thing: rec.Name, Err: err, Cause: err.Error(),
			Hint: "Protect the machine with a recovery site of the provider that it runs under"}
	}
	return nil
}

// reachGateway fails if the gateway beside the item's machine does not answer.
func (c *Orchestrator) reachGateway(ctx context.Context, it holdfast.Item) error {
	g, site, err := c.gatewayOf(ctx, it)
	if err != nil {
		return err
	}
	if _, err := g.Status(ctx, it.ID); err != nil && !errors.Is(err, gateway.ErrUnknownOrder) {
		return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "reach gateway of site", Thing: site.Name, Err: err,
			Hint: "Check that holdfast gateway runs there"}
	}
	return nil
}

// protectStream makes the item's stream. It is there already if the task was
// interrupted after it.
func (c *Orchestrator) protectStream(ctx context.Context, _ *job.Step, it holdfast.Item) error {
	if _, err := c.stream(ctx, it.Stream); err == nil {
		return nil
	}
	_, err := c.opts.Vault.CreateStream(ctx, vault.StreamOptions{ID: it.Stream, Name: it.Name, Disks: vaultDisks(it.Disks), Now: c.now()})
	return vaultError("create stream", it.Name, err)
}

// protectOrder gives the order to the gateway.
func (c *Orchestrator) protectOrder(ctx context.Context, _ *job.Step, it holdfast.Item) error {
	g, site, err := c.gatewayOf(ctx, it)
	if err != nil {
		return err
	}
	if err := g.Put(ctx, c.order(it, site, it.CopyAt(it.ActiveSite()).MachineID)); err != nil {
		return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "give order to gateway of site", Thing: site.Name, Err: err}
	}
	_, err = c.updateItem(ctx, it.ID, func(i holdfast.Item) (holdfast.Item, error) {
		if i.State != holdfast.StateEnabling {
			return i, nil // the task is repeated
		}
		return i.After(holdfast.OutcomeSucceeded)
	})
	return err
}

// order returns what the gateway shall do for an item.
func (c *Orchestrator) order(it holdfast.Item, site holdfast.Site, machine string) gateway.Order {
	o := gateway.Order{
		Item: it.ID, Stream: it.Stream, Timeline: it.Timeline, Generation: it.Generation, Vault: c.opts.VaultRef,
		Site: gateway.SiteRef{Provider: site.Provider, Settings: site.Settings}, MachineID: machine, Tuning: c.opts.Tuning,
		PausedUntil: it.PausedUntil, ScrubEvery: c.opts.Scrub.Sources,
	}
	if p := it.Policy.WithDefaults().PointInterval; p > 0 {
		o.Tuning.PointInterval = p
	}
	for _, d := range it.Disks {
		o.Disks = append(o.Disks, gateway.DiskRef{ID: d.ID, Size: d.Size})
	}
	return o
}

// giveOrder has the gateway of a site replicate the item's machine there.
func (c *Orchestrator) giveOrder(ctx context.Context, it holdfast.Item, at string) error {
	site, err := c.opts.Store.Site(ctx, at)
	if err != nil {
		return err
	}
	g, err := c.gatewayAt(site.Gateway)
	if err == nil {
		err = g.Put(ctx, c.order(it, site, it.CopyAt(at).MachineID))
	}
	if err != nil {
		return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "give order to gateway of site", Thing: site.Name, Err: err,
			Hint: "Check that holdfast gateway runs there"}
	}
	return nil
}

// protectSync waits for the first recovery point. Replication goes on by itself
// whatever becomes of this task.
func (c *Orchestrator) protectSync(ctx context.Context, step *job.Step, it holdfast.Item) error {
	for {
		ob := c.observe(ctx, it)
		if err := c.applyReady(ctx, it.ID, ob); err != nil {
			return err
		}
		if ob.ready() {
			return nil
		}
		if ob.gateway.Code == gateway.CodeFenced {
			return &holdfast.Error{Kind: holdfast.KindConflict, Op: "replicate", Thing: it.Name, Cause: ob.gateway.Problem}
		}
		if ob.gateway.Code == gateway.CodeDiskResized {
			return &holdfast.Error{Kind: holdfast.KindConflict, Op: "replicate", Thing: it.Name, Cause: ob.gateway.Problem,
				Hint: "Nothing is to be done: the disks of now are taken over, and replication goes on"}
		}
		var done, total int64
		for _, d := range ob.gateway.Disks {
			done, total = done+d.Done, total+d.Total
		}
		if total > 0 {
			step.Progress(done, total, "bytes")
		}
		if !sleep(ctx, 200*time.Millisecond) {
			return context.Cause(ctx)
		}
	}
}

// protectFinish records what came of it. An item whose replication has begun
// stays, whatever became of the watching.
func (c *Orchestrator) protectFinish(ctx context.Context, step *job.Step) error {
	var in itemInput
	if err := decodeInput(step, &in); err != nil {
		return err
	}
	ending := step.Ending().State
	it, err := c.updateItem(ctx, in.Item, func(i holdfast.Item) (holdfast.Item, error) {
		i.CurrentJob = ""
		if i.State != holdfast.StateEnabling {
			return i, nil
		}
		if ending == job.Cancelled {
			return i.After(holdfast.OutcomeCancelled)
		}
		return i.After(holdfast.OutcomeFailed)
	})
	if errors.Is(err, &holdfast.Error{Kind: holdfast.KindNotFound}) {
		return nil // the task is repeated after the item was taken away
	}
	if err != nil || it.State != holdfast.StateUnprotected {
		return errors.Join(err, step.SetResult(ctx, jobResult{Item: in.Item}))
	}
	c.withdraw(ctx, it)
	return c.opts.Store.DeleteItem(ctx, it.ID)
}

// withdraw takes an order back as far as the gateway can be reached.
func (c *Orchestrator) withdraw(ctx context.Context, it holdfast.Item) {
	g, _, err := c.gatewayOf(ctx, it)
	if err == nil {
		err = g.Withdraw(ctx, it.ID)
	}
	if err != nil && !errors.Is(err, gateway.ErrUnknownOrder) {
		c.log.Warn("order is not withdrawn", "item", it.Name, "error", err)
	}
}
