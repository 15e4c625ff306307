package orchestrator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/gateway"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// A machine gets disks, loses some, and has them grown while it is protected. Its
// gateway looks at it every few seconds; what has changed becomes a new timeline
// with the disks of now, and what differs from the vault is sent. Recovery points
// from before keep the disks of then, and the machine as it was described.

const (
	// kindDisks is the job that takes over other disks.
	kindDisks = "update_disks"
	// disksSettle is for how long other disks must have been there: backup software
	// attaches some for a moment. A disk of another size is not waited for.
	disksSettle = 30 * time.Second
)

// shapeSeen is what an item's machine was when its gateway looked last.
type shapeSeen struct {
	hash    string // gateway.Status.Machine
	machine provider.Machine
	disks   []holdfast.Disk
	since   time.Time // that it has these disks
	tried   time.Time // when they were about to be taken over last
	wrong   string    // why they cannot be taken over; empty: they can
}

// vaultDisks and domainDisks translate.
func vaultDisks(disks []holdfast.Disk) []vault.Disk {
	out := make([]vault.Disk, len(disks))
	for i, d := range disks {
		out[i] = vault.Disk{ID: d.ID, Size: d.Size}
	}
	return out
}

func domainDisks(disks []vault.Disk) []holdfast.Disk {
	out := make([]holdfast.Disk, len(disks))
	for i, d := range disks {
		out[i] = holdfast.Disk{ID: d.ID, Size: d.Size}
	}
	return out
}

// disksOfMachine are the disks of a machine, in the domain's words.
func disksOfMachine(m provider.Machine) []holdfast.Disk {
	out := make([]holdfast.Disk, len(m.Disks))
	for i, d := range m.Disks {
		out[i] = holdfast.Disk{ID: d.ID, Size: d.Size, Boot: d.Boot}
	}
	return out
}

// disksAt returns the disks that an item's machine had at a recovery point.
func (c *Orchestrator) disksAt(ctx context.Context, it holdfast.Item, p holdfast.RecoveryPoint) ([]holdfast.Disk, error) {
	s, err := c.stream(ctx, it.Stream)
	if err != nil {
		return nil, vaultError("open stream", it.Name, err)
	}
	disks, err := s.DisksAt(p.Timeline, p.Position)
	if err != nil {
		if err := refresh(ctx, s); err != nil {
			return nil, vaultError("read stream", it.Name, err)
		}
		disks, err = s.DisksAt(p.Timeline, p.Position)
	}
	return domainDisks(disks), vaultError("open recovery point", p.Position.String(), err)
}

// itemAt returns an item as its machine was at a recovery point.
func (c *Orchestrator) itemAt(ctx context.Context, it holdfast.Item, p holdfast.RecoveryPoint) (holdfast.Item, error) {
	disks, err := c.disksAt(ctx, it, p)
	if err != nil {
		return it, err
	}
	return it.WithDisks(disks), nil
}

// itemStream returns the item of a job with its stream, read.
func (c *Orchestrator) itemStream(ctx context.Context, step *job.Step) (it holdfast.Item, s *vault.Stream, err error) {
	var in itemInput
	if err = decodeInput(step, &in); err != nil {
		return it, nil, err
	}
	if it, err = c.opts.Store.Item(ctx, in.Item); err != nil {
		return it, nil, err
	}
	if s, err = c.stream(ctx, it.Stream); err == nil {
		err = refresh(ctx, s)
	}
	return it, s, err
}

// takesDisks says whether disks of an item can be taken over now.
func takesDisks(it holdfast.Item) bool {
	return (it.State == holdfast.StateProtected || it.State == holdfast.StateInitialReplication) && it.CurrentJob == ""
}

// watchShape looks whether the machine has other disks than those that are
// replicated, or is otherwise not what it was.
func (c *Orchestrator) watchShape(ctx context.Context, it holdfast.Item, g Gateway, st gateway.Status) (changed string) {
	if st.Machine == "" || !replicates(it.State) || st.Timeline != it.Timeline {
		return ""
	}
	c.mu.Lock()
	seen := c.shapes[it.ID]
	c.mu.Unlock()
	if seen.hash != st.Machine {
		m, err := g.Machine(ctx, it.ID)
		if err != nil {
			return ""
		}
		next := shapeSeen{hash: st.Machine, machine: m, disks: disksOfMachine(m), since: seen.since, tried: seen.tried, wrong: badDisks(m)}
		if seen.hash == "" || !holdfast.SameDisks(seen.disks, next.disks) {
			next.since = c.now()
		}
		if err := c.describe(ctx, it, m); err != nil {
			c.log.Warn("machine is not described anew", "item", it.Name, "error", err)
			return ""
		}
		seen = next
		c.mu.Lock()
		c.shapes[it.ID] = seen
		c.mu.Unlock()
	}
	if holdfast.SameDisks(it.Disks, seen.disks) {
		return ""
	}
	changed = diskChanges(it.Disks, seen.disks)
	if seen.wrong != "" {
		changed += "; they cannot be taken over: " + seen.wrong
	}
	return changed
}

// badDisks says why disks cannot be replicated; empty if they can.
func badDisks(m provider.Machine) string {
	var held *holdfast.Error
	m.Power = provider.PowerRunning // it may be off by now
	if err := protectable(m); errors.As(err, &held) {
		return held.Cause
	}
	return ""
}

// diskChanges says how disks differ.
func diskChanges(from, to []holdfast.Disk) string {
	var out []string
	for _, d := range to {
		at := slices.IndexFunc(from, func(o holdfast.Disk) bool { return o.ID == d.ID })
		switch {
		case at < 0:
			out = append(out, fmt.Sprintf("disk %s of %d bytes is new", d.ID, d.Size))
		case from[at].Size != d.Size:
			out = append(out, fmt.Sprintf("disk %s has %d bytes, and had %d", d.ID, d.Size, from[at].Size))
		}
	}
	for _, d := range from {
		if !slices.ContainsFunc(to, func(o holdfast.Disk) bool { return o.ID == d.ID }) {
			out = append(out, fmt.Sprintf("disk %s is gone", d.ID))
		}
	}
	return strings.Join(out, "; ")
}

// describe keeps how a machine is described now, so that it is recovered with the
// memory and the cards that it has. What another site has made of it is described
// in that site's terms and is not taken for the original.
func (c *Orchestrator) describe(ctx context.Context, it holdfast.Item, m provider.Machine) error {
	if it.ActiveSite() != it.PrimarySite || !takesDisks(it) || !holdfast.SameDisks(it.Disks, disksOfMachine(m)) {
		return nil
	}
	var old provider.Machine
	if err := json.Unmarshal(it.Machine, &old); err != nil {
		return fmt.Errorf("decode description of machine %s: %w", it.MachineName, err)
	}
	was, err := gateway.MachineHash(old)
	if err != nil {
		return err
	}
	if is, err := gateway.MachineHash(m); err != nil || was == is {
		return err
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, err = c.updateItem(ctx, it.ID, func(i holdfast.Item) (holdfast.Item, error) {
		if takesDisks(i) && i.ActiveSite() == i.PrimarySite && holdfast.SameDisks(i.Disks, disksOfMachine(m)) {
			i.Machine = raw
		}
		return i, nil
	})
	return err
}

// scheduleDisks starts the job that takes over other disks, if there are some.
func (c *Orchestrator) scheduleDisks(ctx context.Context, id string) {
	it, err := c.opts.Store.Item(ctx, id) // it may have been done since the item was looked at
	if err != nil {
		return
	}
	c.mu.Lock()
	seen := c.shapes[it.ID]
	c.mu.Unlock()
	if seen.hash == "" || seen.wrong != "" || !takesDisks(it) || holdfast.SameDisks(it.Disks, seen.disks) {
		return
	}
	if c.now().Sub(seen.since) < disksSettle && !onlySizes(it.Disks, seen.disks) || c.now().Sub(seen.tried) < disksSettle {
		return
	}
	_, err = c.engine.Submit(ctx, kindDisks, it.ID, disksInput{Item: it.ID, Machine: seen.machine})
	if errors.Is(err, job.ErrBusy) {
		return
	}
	if err != nil {
		c.log.Error("changed disks are not taken over", "item", it.Name, "error", err)
	}
	seen.tried = c.now() // who cancels it has time for something else
	c.mu.Lock()
	c.shapes[it.ID] = seen
	c.mu.Unlock()
}

// onlySizes says whether two lists have the same disks but for their sizes.
func onlySizes(a, b []holdfast.Disk) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(d holdfast.Disk) bool {
		return !slices.ContainsFunc(b, func(o holdfast.Disk) bool { return o.ID == d.ID })
	})
}

// disksInput is the machine whose disks are taken over.
type disksInput struct {
	Item    string           `json:"item"`
	Machine provider.Machine `json:"machine"`
}

// disksState is what its tasks hand on to each other.
type disksState struct {
	Generation holdfast.Generation `json:"generation,omitempty"`
}

func (c *Orchestrator) disksKind() job.Kind {
	retry := job.Retry{Attempts: 3, Delay: time.Second}
	return job.Kind{
		Name: kindDisks, Title: "Take over changed disks",
		Tasks: []job.Task{
			{Name: "drain", Title: "Bring over what was received", Run: c.withItem(c.disksDrain), Optional: true},
			{Name: "fork", Title: "Go on with the disks of now", Run: bound(c.withItem(c.disksFork)), NoReturn: true, Retry: retry},
			{Name: "replicate", Title: "Have the gateway replicate them", Run: c.withItem(c.disksOrder), Optional: true},
		},
		Finish: &job.Task{Name: "finish", Title: "Record the outcome", Run: c.disksFinish},
	}
}

func (c *Orchestrator) disksDrain(ctx context.Context, step *job.Step, it holdfast.Item) error {
	var in disksInput
	if err := decodeInput(step, &in); err != nil {
		return err
	}
	if holdfast.SameDisks(it.Disks, disksOfMachine(in.Machine)) {
		return job.Skip("they were taken over already")
	}
	ctx, cancel := context.WithTimeout(ctx, drainWait)
	defer cancel()
	g, site, err := c.gatewayOf(ctx, it)
	if err == nil {
		_, err = g.Point(ctx, it.ID, kindDisks+" "+step.JobID())
	}
	if err != nil {
		return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "drain gateway of site", Thing: site.Name, Err: err,
			Hint: "What the gateway has received and the vault has not is sent again with the comparison"}
	}
	return nil
}

// disksOrder gives the gateway its order. Should the site be lost at this very
// moment, nobody waits for it: the order is given when it is back.
func (c *Orchestrator) disksOrder(ctx context.Context, _ *job.Step, it holdfast.Item) error {
	ctx, cancel := context.WithTimeout(ctx, guardWait)
	defer cancel()
	return c.giveOrder(ctx, it, it.ActiveSite())
}

// disksFork closes the item's timeline and begins one with the disks of now.
func (c *Orchestrator) disksFork(ctx context.Context, step *job.Step, it holdfast.Item) error {
	var in disksInput
	if err := decodeInput(step, &in); err != nil {
		return err
	}
	return c.forkDisks(ctx, step, it, in.Machine)
}

// adoptDisks goes on with the disks that the item's machine has at its site, if
// they are not those that it had, and returns the item so.
func (c *Orchestrator) adoptDisks(ctx context.Context, step *job.Step, it holdfast.Item) (holdfast.Item, error) {
	var m provider.Machine
	err := c.withSite(ctx, it.ActiveSite(), func(site holdfast.Site, s *provider.Site) (err error) {
		if m, err = s.Inventory.Machine(ctx, it.CopyAt(it.ActiveSite()).MachineID); err != nil {
			return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "look at the machine of item " + it.Name + " at site", Thing: site.Name, Err: err}
		}
		return nil
	})
	if err != nil {
		return it, err
	}
	if why := badDisks(m); why != "" {
		return it, &holdfast.Error{Kind: holdfast.KindNotAllowed, Op: "replicate machine", Thing: m.Name, Cause: why, Hint: "Mend that, then ask again"}
	}
	if err := c.forkDisks(ctx, step, it, m); err != nil {
		return it, err
	}
	return c.opts.Store.Item(ctx, it.ID)
}

// forkDisks closes the item's timeline and begins one with a machine's disks,
// unless they are those of now.
func (c *Orchestrator) forkDisks(ctx context.Context, step *job.Step, it holdfast.Item, m provider.Machine) error {
	var st disksState
	if err := step.JobState(&st); err != nil {
		return err
	}
	disks := disksOfMachine(m)
	if holdfast.SameDisks(it.Disks, disks) {
		return nil // perhaps done before the server was interrupted
	}
	s, err := c.stream(ctx, it.Stream)
	if err != nil {
		return vaultError("open stream", it.Name, err)
	}
	if err := refresh(ctx, s); err != nil {
		return vaultError("read stream", it.Name, err)
	}
	reason := kindDisks + " " + step.JobID()
	tl := holdfast.TimelineID(0)
	for _, t := range s.Timelines() {
		if t.Reason == reason {
			tl = t.ID
		} else if st.Generation <= t.Generation && tl == 0 {
			st.Generation = t.Generation + 1
		}
	}
	if tl == 0 {
		if err := step.SaveJobState(ctx, st); err != nil {
			return err
		}
		last, err := s.End(ctx, it.Timeline, vault.EndOptions{Generation: st.Generation, Reason: reason, Now: c.now()})
		if err != nil {
			return vaultError("close timeline", it.Name, err)
		}
		if tl, err = s.Fork(ctx, vault.ForkOptions{From: it.Timeline, At: last, Generation: st.Generation, Reason: reason, Now: c.now(), Disks: vaultDisks(disks)}); err != nil {
			return vaultError("fork stream", it.Name, err)
		}
	}
	step.Log(diskChanges(it.Disks, disks))
	_, err = c.updateItem(ctx, it.ID, func(i holdfast.Item) (holdfast.Item, error) { return takeDisks(i, m, tl, st.Generation) })
	return err
}

// takeDisks returns the item with the disks of its machine, on a new timeline.
func takeDisks(it holdfast.Item, m provider.Machine, tl holdfast.TimelineID, g holdfast.Generation) (holdfast.Item, error) {
	disks := disksOfMachine(m)
	if it.ActiveSite() != it.PrimarySite {
		// The rest is described in the other site's terms.
		var home provider.Machine
		if err := json.Unmarshal(it.Machine, &home); err != nil {
			return it, fmt.Errorf("decode description of machine %s: %w", it.MachineName, err)
		}
		home.Disks = m.Disks
		m = home
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return it, err
	}
	it = it.WithDisks(disks)
	it.Disks, it.Machine, it.Timeline, it.Generation = disks, raw, tl, g
	// What the machine at the other site was equal to is of the stream still.
	return it, nil
}

func (c *Orchestrator) disksFinish(ctx context.Context, step *job.Step) error {
	var in disksInput
	if err := decodeInput(step, &in); err != nil {
		return err
	}
	_, err := c.updateItem(ctx, in.Item, func(i holdfast.Item) (holdfast.Item, error) {
		i.CurrentJob = ""
		return i, nil
	})
	if errors.Is(err, &holdfast.Error{Kind: holdfast.KindNotFound}) {
		return nil
	}
	return errors.Join(err, step.SetResult(ctx, jobResult{Item: in.Item}))
}
