// Package httpdtest has a scripted service for tests of package httpd and of
// what speaks to it: a small world in memory whose jobs do nothing but go
// through their states. Only tests may import it.
package httpdtest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/httpd"
)

// World is a scripted service. Fields may be set before it is used, and after
// that within Change.
type World struct {
	// mu guards what follows.
	mu     sync.Mutex
	change chan struct{} // closed and replaced by Change

	Sites    []api.Site
	Machines api.MachineList
	Items    []api.Item
	Points   map[string]api.Points // by item id
	Jobs     []api.Job             // newest first
	Vault    api.Vault
	Health   api.ServerHealth
	Check    api.OperationCheck // the answer of CheckOperation
	Log      *httpd.EventLog
	// Fail makes the operation of that name fail, like "ListSites".
	Fail map[string]error
	// Script is what a new job becomes, step by step, each time that a watcher
	// has seen the step before; empty: it has succeeded at once.
	Script []api.Job
	// Calls are the operations that were called, with what they were given.
	Calls []string
	// Now is the world's clock.
	Now time.Time

	Planning
}

var (
	_ httpd.Sites    = (*World)(nil)
	_ httpd.Machines = (*World)(nil)
	_ httpd.Items    = (*World)(nil)
	_ httpd.Points   = (*World)(nil)
	_ httpd.Jobs     = (*World)(nil)
	_ httpd.Vault    = (*World)(nil)
	_ httpd.Health   = (*World)(nil)

	_ httpd.Tests        = (*World)(nil)
	_ httpd.Failovers    = (*World)(nil)
	_ httpd.Replications = (*World)(nil)
	_ httpd.Comparisons  = (*World)(nil)
)

// New returns an empty world at the given time.
func New(now time.Time) *World {
	return &World{Now: now, Log: httpd.NewEventLog(4, now), Points: map[string]api.Points{}, Fail: map[string]error{},
		Health: api.ServerHealth{Status: "ok", Components: []api.ComponentHealth{{Name: "store", Status: "ok"}}}, change: make(chan struct{})}
}

// Service returns the world in the roles of an httpd.Service.
func (w *World) Service() httpd.Service {
	return httpd.Service{Sites: w, Machines: w, Items: w, Points: w, Policies: w, Jobs: w, Vault: w, Events: w.Log, Health: w,
		Tests: w, Failovers: w, Replications: w, Comparisons: w, Plans: w, Runs: w, Groups: w, Reports: w}
}

// Change calls f with the world locked, then wakes all who watch jobs.
func (w *World) Change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
	close(w.change)
	w.change = make(chan struct{})
}

// Called returns the operations that were called since the last Called.
func (w *World) Called() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	calls := w.Calls
	w.Calls = nil
	return calls
}

// call notes a call and returns the error that it shall fail with.
func (w *World) call(name string, with ...any) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := name
	for _, v := range with {
		text += fmt.Sprintf(" %+v", v)
	}
	w.Calls = append(w.Calls, text)
	return w.Fail[name]
}

func notFound(what, name string) error {
	return &holdfast.Error{Kind: holdfast.KindNotFound, Op: "find " + what, Thing: name, Cause: "there is no such " + what, Hint: "List them: holdfast " + what + " list"}
}

// pick returns the first element that matches.
func pick[T any](w *World, from *[]T, what, name string, match func(T) bool) (T, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i := slices.IndexFunc(*from, match); i >= 0 {
		return (*from)[i], nil
	}
	var zero T
	return zero, notFound(what, name)
}

// ListSites implements httpd.Sites.
func (w *World) ListSites(context.Context) ([]api.Site, error) {
	err := w.call("ListSites")
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.Sites), err
}

// GetSite implements httpd.Sites.
func (w *World) GetSite(_ context.Context, site string) (api.Site, error) {
	if err := w.call("GetSite", site); err != nil {
		return api.Site{}, err
	}
	return pick(w, &w.Sites, "site", site, func(s api.Site) bool { return s.ID == site || s.Name == site })
}

// AddSite implements httpd.Sites.
func (w *World) AddSite(_ context.Context, add api.AddSite) (api.Site, error) {
	if err := w.call("AddSite", add.Name, add.Provider, string(add.Settings), add.Gateway); err != nil {
		return api.Site{}, err
	}
	site := api.Site{ID: "s-" + add.Name, Name: add.Name, Provider: add.Provider, Settings: add.Settings, Gateway: add.Gateway,
		CanSource: true, CanTarget: true, Reachable: true, CreatedAt: w.Now}
	w.Change(func() { w.Sites = append(w.Sites, site) })
	return site, nil
}

// RemoveSite implements httpd.Sites.
func (w *World) RemoveSite(ctx context.Context, site string) error {
	if err := w.call("RemoveSite", site); err != nil {
		return err
	}
	found, err := pick(w, &w.Sites, "site", site, func(s api.Site) bool { return s.ID == site || s.Name == site })
	if err != nil {
		return err
	}
	w.Change(func() { w.Sites = slices.DeleteFunc(w.Sites, func(s api.Site) bool { return s.ID == found.ID }) })
	return nil
}

// ListMachines implements httpd.Machines.
func (w *World) ListMachines(_ context.Context, site string) (api.MachineList, error) {
	err := w.call("ListMachines", site)
	w.mu.Lock()
	defer w.mu.Unlock()
	list := w.Machines
	if site != "" {
		list.Machines = slices.DeleteFunc(slices.Clone(list.Machines), func(m api.Machine) bool { return m.Site != site })
		list.Unreachable = nil
	}
	return list, err
}

// ListItems implements httpd.Items.
func (w *World) ListItems(context.Context) ([]api.Item, error) {
	err := w.call("ListItems")
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.Items), err
}

// GetItem implements httpd.Items.
func (w *World) GetItem(_ context.Context, item string) (api.Item, error) {
	if err := w.call("GetItem", item); err != nil {
		return api.Item{}, err
	}
	return pick(w, &w.Items, "item", item, func(i api.Item) bool { return i.ID == item || i.Name == item })
}

// ProtectMachine implements httpd.Items.
func (w *World) ProtectMachine(_ context.Context, p api.Protect) (api.Job, error) {
	if err := w.call("ProtectMachine", p); err != nil {
		return api.Job{}, err
	}
	return w.startJob("protect", p.Name), nil
}

// FailoverItem implements httpd.Items.
func (w *World) FailoverItem(ctx context.Context, item string, f api.Failover) (api.Job, error) {
	if err := w.call("FailoverItem", item, f); err != nil {
		return api.Job{}, err
	}
	found, err := pick(w, &w.Items, "item", item, func(i api.Item) bool { return i.ID == item || i.Name == item })
	if err != nil {
		return api.Job{}, err
	}
	return w.startJob("failover", found.Name), nil
}

// DisableItem implements httpd.Items.
func (w *World) DisableItem(_ context.Context, item string, d api.Disable) (api.Job, error) {
	if err := w.call("DisableItem", item, d); err != nil {
		return api.Job{}, err
	}
	found, err := pick(w, &w.Items, "item", item, func(i api.Item) bool { return i.ID == item || i.Name == item })
	if err != nil {
		return api.Job{}, err
	}
	return w.startJob("disable", found.Name), nil
}

// ListTimelines implements httpd.Points.
func (w *World) ListTimelines(_ context.Context, item string) (api.Timelines, error) {
	if err := w.call("ListTimelines", item); err != nil {
		return api.Timelines{}, err
	}
	found, err := pick(w, &w.Items, "item", item, func(i api.Item) bool { return i.ID == item || i.Name == item })
	if err != nil {
		return api.Timelines{}, err
	}
	return api.Timelines{Item: found.Name, Timelines: []api.Timeline{{Timeline: 1, Origin: "protect", Current: true, Until: found.CreatedAt}}}, nil
}

// ListPoints implements httpd.Points.
func (w *World) ListPoints(_ context.Context, item string) (api.Points, error) {
	if err := w.call("ListPoints", item); err != nil {
		return api.Points{}, err
	}
	found, err := pick(w, &w.Items, "item", item, func(i api.Item) bool { return i.ID == item || i.Name == item })
	if err != nil {
		return api.Points{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.Points[found.ID], nil
}

// startJob adds a job: the first of the script, or one that has succeeded.
func (w *World) startJob(kind, itemName string) api.Job {
	var job api.Job
	w.Change(func() {
		job = api.Job{State: api.JobSucceeded, StartedAt: w.Now, FinishedAt: w.Now.Add(2 * time.Second)}
		if len(w.Script) > 0 {
			job, w.Script = w.Script[0], w.Script[1:]
		}
		job.ID = fmt.Sprintf("j-%d", len(w.Jobs)+1)
		job.Kind, job.ItemName, job.CreatedAt = kind, itemName, w.Now
		w.Jobs = append([]api.Job{job}, w.Jobs...)
	})
	return job
}

// step makes the next of the script of a job that has not ended, and reports
// whether there was one.
func (w *World) step(id string) bool {
	var stepped bool
	w.Change(func() {
		i := slices.IndexFunc(w.Jobs, func(j api.Job) bool { return j.ID == id })
		if i < 0 || w.Jobs[i].Ended() || len(w.Script) == 0 {
			return
		}
		next := w.Script[0]
		w.Script = w.Script[1:]
		next.ID, next.Kind, next.ItemName, next.CreatedAt = id, w.Jobs[i].Kind, w.Jobs[i].ItemName, w.Jobs[i].CreatedAt
		w.Jobs[i], stepped = next, true
	})
	return stepped
}

// ListJobs implements httpd.Jobs.
func (w *World) ListJobs(_ context.Context, q api.JobQuery) ([]api.Job, error) {
	err := w.call("ListJobs", q)
	w.mu.Lock()
	defer w.mu.Unlock()
	var jobs []api.Job
	for _, j := range w.Jobs {
		if (q.Item == "" || j.ItemName == q.Item || j.Item == q.Item) && (q.State == "" || j.State == q.State || q.State == "active" && !j.Ended()) && len(jobs) < q.Limit {
			jobs = append(jobs, j)
		}
	}
	return jobs, err
}

// GetJob implements httpd.Jobs.
func (w *World) GetJob(_ context.Context, id string) (api.Job, error) {
	if err := w.call("GetJob", id); err != nil {
		return api.Job{}, err
	}
	return pick(w, &w.Jobs, "job", id, func(j api.Job) bool { return j.ID == id })
}

// CancelJob implements httpd.Jobs.
func (w *World) CancelJob(_ context.Context, id string) (api.Job, error) {
	if err := w.call("CancelJob", id); err != nil {
		return api.Job{}, err
	}
	job, err := pick(w, &w.Jobs, "job", id, func(j api.Job) bool { return j.ID == id })
	if err != nil {
		return job, err
	}
	if job.Ended() {
		return api.Job{}, &holdfast.Error{Kind: holdfast.KindNotAllowed, Op: "cancel job", Thing: id, Cause: "it has ended already"}
	}
	w.Change(func() {
		i := slices.IndexFunc(w.Jobs, func(j api.Job) bool { return j.ID == id })
		w.Jobs[i].State, w.Jobs[i].FinishedAt = api.JobCancelled, w.Now
		job = w.Jobs[i]
	})
	return job, nil
}

// WatchJob implements httpd.Jobs. Each time that each was called, the script
// makes its next step.
func (w *World) WatchJob(ctx context.Context, id string, each func(api.Job) error) error {
	if err := w.call("WatchJob", id); err != nil {
		return err
	}
	for {
		w.mu.Lock()
		change := w.change
		w.mu.Unlock()
		job, err := pick(w, &w.Jobs, "job", id, func(j api.Job) bool { return j.ID == id })
		if err != nil {
			return err
		}
		if err := each(job); err != nil || job.Ended() {
			return err
		}
		if w.step(id) {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-change:
		}
	}
}

// GetVault implements httpd.Vault.
func (w *World) GetVault(context.Context) (api.Vault, error) {
	err := w.call("GetVault")
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.Vault, err
}

// VerifyVault implements httpd.Vault.
func (w *World) VerifyVault(_ context.Context, v api.VerifyVault) (api.Job, error) {
	if err := w.call("VerifyVault", v); err != nil {
		return api.Job{}, err
	}
	return w.startJob("vault_verify", ""), nil
}

// CheckHealth implements httpd.Health.
func (w *World) CheckHealth(context.Context) api.ServerHealth {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.Health
}
