// Package httpd serves the REST interface that package api describes: routes
// with their permissions in one table, tokens, problems, server-sent events,
// and the OpenAPI document generated from the code. What the routes do is the
// Service behind it.
package httpd

import (
	"context"

	"github.com/holdfast-dr/holdfast/api"
)

// Service is what the interface is an interface to, in roles. Every method
// is safe for concurrent use, takes and returns the api's own types, accepts a
// thing's id or its name where it is named by one string, and fails with a
// *holdfast.Error or an *api.Problem; any other error is a fault of the server
// (500), whose text is logged and not shown.
type Service struct {
	Sites    Sites
	Machines Machines
	Items    Items
	Points   Points
	Policies Policies
	Jobs     Jobs
	Vault    Vault
	Events   Events
	Health   Health

	Tests        Tests
	Failovers    Failovers
	Replications Replications
	Comparisons  Comparisons

	Plans  Plans
	Runs   Runs
	Groups Groups

	Reports Reports
}

// Reports are the evidence of runs.
type Reports interface {
	// Report returns the signed report of a run that has ended, a DSSE envelope.
	Report(ctx context.Context, job string) ([]byte, error)
	// ReportKey returns the public key that reports are signed with, as PEM.
	ReportKey(ctx context.Context) ([]byte, error)
}

// Groups are replication groups.
type Groups interface {
	// ListGroups returns all groups, sorted by name.
	ListGroups(ctx context.Context) (api.GroupList, error)
	// GetGroup returns one group with its newest common moment and its points.
	GetGroup(ctx context.Context, group string) (api.Group, error)
	// ChangeGroup has items join or leave a group.
	ChangeGroup(ctx context.Context, group string, change api.ChangeGroup) (api.Group, error)
	// MakeGroupPoint starts the job that makes a recovery point of all its items.
	MakeGroupPoint(ctx context.Context, group string, point api.MakePoint) (api.Job, error)
}

// Plans are recovery plans as texts.
type Plans interface {
	// ListPlans returns all plans without their texts, sorted by name.
	ListPlans(ctx context.Context) (api.PlanList, error)
	// GetPlan returns one plan.
	GetPlan(ctx context.Context, plan string) (api.Plan, error)
	// ApplyPlan gives the plan that the text names that text, or says how the two
	// differ. By is who asks.
	ApplyPlan(ctx context.Context, by string, apply api.ApplyPlan) (api.PlanChanges, error)
	// RemovePlan removes a plan that does not run.
	RemovePlan(ctx context.Context, plan string) error
	// PlanTexts returns the revisions of a plan's text, newest first.
	PlanTexts(ctx context.Context, plan string) (api.PlanTexts, error)
}

// Runs are runs of recovery plans.
type Runs interface {
	// RunPlan starts the job of a run. By is who asks.
	RunPlan(ctx context.Context, plan, by string, run api.RunPlan) (api.Job, error)
	// CheckPlan says what a run would do.
	CheckPlan(ctx context.Context, plan string, run api.RunPlan) (api.PlanCheck, error)
	// GetRun returns a run in full.
	GetRun(ctx context.Context, job string) (api.PlanRun, error)
	// DrillPlan starts a drill: a test and its clean-up, with nobody there.
	DrillPlan(ctx context.Context, plan, by string) (api.Job, error)
	// AnswerJob answers what a suspended run asks. By is who answers.
	AnswerJob(ctx context.Context, job, by string, answer api.Answer) (api.Job, error)
}

// Tests are test failovers.
type Tests interface {
	// TestFailover starts the job that runs a copy of an item's machine apart from
	// the world. IfVersion as for FailoverItem.
	TestFailover(ctx context.Context, item string, test api.TestFailover) (api.Job, error)
	// CleanUpTest starts the job that removes a test machine.
	CleanUpTest(ctx context.Context, item string, cleanUp api.CleanUpTest) (api.Job, error)
	// Screenshot returns the picture of a console that was kept with a job, as PNG.
	Screenshot(ctx context.Context, job string) ([]byte, error)
}

// Failovers are the operations that follow a failover. Each starts a job.
type Failovers interface {
	// Failback starts the job that brings an item's machine home.
	Failback(ctx context.Context, item string, failback api.Failback) (api.Job, error)
	// ChangePoint starts the job that rebuilds a recovered machine from another point.
	ChangePoint(ctx context.Context, item string, change api.ChangePoint) (api.Job, error)
	// Commit starts the job that makes a failover final.
	Commit(ctx context.Context, item string, commit api.Commit) (api.Job, error)
	// UndoFailover starts the job that gives a failover up.
	UndoFailover(ctx context.Context, item string, undo api.UndoFailover) (api.Job, error)
	// CheckOperation says what any operation would do, and does nothing.
	CheckOperation(ctx context.Context, item string, check api.CheckOperation) (api.OperationCheck, error)
}

// Replications are the operations on the copying. Each starts a job.
type Replications interface {
	// Reprotect starts the job that replicates the item the other way round.
	Reprotect(ctx context.Context, item string, reprotect api.Reprotect) (api.Job, error)
	// Resync starts the job that compares source and vault.
	Resync(ctx context.Context, item string, resync api.Resync) (api.Job, error)
	// Pause starts the job that has the item's machine left alone for a time.
	Pause(ctx context.Context, item string, pause api.Pause) (api.Job, error)
	// Resume starts the job that ends a pause.
	Resume(ctx context.Context, item string, resume api.Resume) (api.Job, error)
	// CancelItem cancels the job that works on the item, and returns it.
	CancelItem(ctx context.Context, item string, cancel api.CancelItem) (api.Job, error)
}

// Comparisons show that what is replicated is what the machines have.
type Comparisons interface {
	// CompareItem starts the job that compares an item's disks with the vault.
	CompareItem(ctx context.Context, item string, compare api.CompareItem) (api.Job, error)
}

// Sites are the places with machines.
type Sites interface {
	// ListSites returns all sites, sorted by name.
	ListSites(ctx context.Context) ([]api.Site, error)
	// GetSite returns one site.
	GetSite(ctx context.Context, site string) (api.Site, error)
	// AddSite adds a site after it was opened and answered.
	AddSite(ctx context.Context, add api.AddSite) (api.Site, error)
	// RemoveSite removes a site that no item needs.
	RemoveSite(ctx context.Context, site string) error
}

// Machines are what providers discover.
type Machines interface {
	// ListMachines returns the machines of a site, or of all if site is empty,
	// sorted by site and name. Of all, a site that does not answer is named in
	// Unreachable; if it was asked for by name, that is an error.
	ListMachines(ctx context.Context, site string) (api.MachineList, error)
}

// Items are machines under protection.
type Items interface {
	// ListItems returns all items, sorted by name.
	ListItems(ctx context.Context) ([]api.Item, error)
	// GetItem returns one item.
	GetItem(ctx context.Context, item string) (api.Item, error)
	// ProtectMachine starts the job that makes a replicated item of a machine.
	ProtectMachine(ctx context.Context, protect api.Protect) (api.Job, error)
	// FailoverItem starts the job that brings the item up at the other site. It
	// fails with kind conflict if failover.IfVersion is neither 0 nor the item's.
	FailoverItem(ctx context.Context, item string, failover api.Failover) (api.Job, error)
	// DisableItem starts the job that ends protection. IfVersion as above.
	DisableItem(ctx context.Context, item string, disable api.Disable) (api.Job, error)
}

// Points are what items can be recovered to.
type Points interface {
	// ListPoints returns the recovery points of an item, newest first.
	ListPoints(ctx context.Context, item string) (api.Points, error)
	// ListTimelines returns the timelines of an item's history, newest first.
	ListTimelines(ctx context.Context, item string) (api.Timelines, error)
	// PinPoint keeps a recovery point, or leaves it to the policy again.
	PinPoint(ctx context.Context, item string, pin api.PinPoint) (api.Point, error)
	// MakePoint starts the job that makes a recovery point of the present moment.
	MakePoint(ctx context.Context, item string, point api.MakePoint) (api.Job, error)
}

// Policies are how items are replicated, and what is kept of their past.
type Policies interface {
	// ChangePolicy gives an item another policy. It fails with kind conflict if
	// change.IfVersion is neither 0 nor the item's.
	ChangePolicy(ctx context.Context, item string, change api.ChangePolicy) (api.Item, error)
	// HoldItem holds the history of an item, or releases it.
	HoldItem(ctx context.Context, item, by string, hold api.HoldItem) (api.Item, error)
}

// Jobs are the durable work.
type Jobs interface {
	// ListJobs returns jobs, newest first.
	ListJobs(ctx context.Context, query api.JobQuery) ([]api.Job, error)
	// GetJob returns one job by id.
	GetJob(ctx context.Context, id string) (api.Job, error)
	// CancelJob asks a job to stop and returns it as it then stands. It is no
	// error if it is being cancelled already; kind not_allowed if it has ended.
	CancelJob(ctx context.Context, id string) (api.Job, error)
	// WatchJob calls each with the job as it stands and then after changes,
	// several of which may come as one, and returns nil once each was called
	// with the job ended, each's error if it returns one, and the context's
	// error if that ends. each is called by one goroutine at a time.
	WatchJob(ctx context.Context, id string, each func(api.Job) error) error
}

// Vault is where history is kept.
type Vault interface {
	// GetVault returns the vault's state.
	GetVault(ctx context.Context) (api.Vault, error)
	// VerifyVault starts the job that reads the vault as a whole.
	VerifyVault(ctx context.Context, verify api.VerifyVault) (api.Job, error)
}

// Events are what happens. *EventLog is one.
type Events interface {
	// FollowEvents calls each with the events after the one whose id is given,
	// or from now on if that is 0, until the context ends, whose error it then
	// returns, or each returns an error, which it then returns. If some after
	// the given one are no longer kept, the first is of type reset.
	FollowEvents(ctx context.Context, after uint64, each func(api.Event) error) error
}

// Health is how the server fares.
type Health interface {
	// CheckHealth returns how the server and its parts fare. It is quick: it
	// reports what is known, and asks the vault for some seconds at most.
	CheckHealth(ctx context.Context) api.ServerHealth
}
