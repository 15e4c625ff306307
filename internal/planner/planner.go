// Package planner keeps recovery plans and carries out their runs: durable jobs
// whose tasks are the steps of package plan, and which start the operations on
// items as jobs of their own.
//
// It owns no goroutine but in Run, which starts drills. A run goes on after a crash of the server: jobs that it
// has started are found again by what they were started for, and an action that
// was begun is not begun again unless the plan says that it may be.
package planner

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"net/http"
	"sync"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/plan"
	"github.com/holdfast-dr/holdfast/internal/script"
)

// Store is where plans are kept. Its methods fail with an *holdfast.Error of kind
// not_found or conflict, are durable when they return nil, and are safe for
// concurrent use.
type Store interface {
	PlanReader
	// CreatePlan adds a plan whose name no other has, with its first text.
	CreatePlan(ctx context.Context, p holdfast.RecoveryPlan) (holdfast.RecoveryPlan, error)
	// UpdatePlan replaces the plan that is stored in the given version; a text of a
	// new revision is kept beside those before it.
	UpdatePlan(ctx context.Context, p holdfast.RecoveryPlan) (holdfast.RecoveryPlan, error)
	// DeletePlan removes a plan.
	DeletePlan(ctx context.Context, id string) error
}

// PlanReader reads plans.
type PlanReader interface {
	// Plan returns one plan.
	Plan(ctx context.Context, idOrName string) (holdfast.RecoveryPlan, error)
	// Plans returns all plans, sorted by name.
	Plans(ctx context.Context) ([]holdfast.RecoveryPlan, error)
	// PlanTexts returns the revisions of a plan's text, the newest first.
	PlanTexts(ctx context.Context, id string) ([]holdfast.PlanText, error)
}

// Items are the replicated items, as the orchestrator shows them.
type Items interface {
	// ListItems returns all items with what was observed of them last.
	ListItems(ctx context.Context) ([]api.Item, error)
	// GetItem returns one item, looked at anew.
	GetItem(ctx context.Context, idOrName string) (api.Item, error)
	// CheckOperation says what an operation would do, and does nothing.
	CheckOperation(ctx context.Context, item string, check api.CheckOperation) (api.OperationCheck, error)
	// GetJob returns a job.
	GetJob(ctx context.Context, id string) (api.Job, error)
}

// Operations bring items to the other site and make that lasting. Each starts a
// job.
type Operations interface {
	// FailoverItem brings an item up at the other site.
	FailoverItem(ctx context.Context, item string, failover api.Failover) (api.Job, error)
	// Failback brings an item home.
	Failback(ctx context.Context, item string, failback api.Failback) (api.Job, error)
	// Commit makes a failover final.
	Commit(ctx context.Context, item string, commit api.Commit) (api.Job, error)
	// Reprotect replicates an item the other way round.
	Reprotect(ctx context.Context, item string, reprotect api.Reprotect) (api.Job, error)
}

// Tests are test failovers. Each starts a job.
type Tests interface {
	// TestFailover runs a copy of an item's machine.
	TestFailover(ctx context.Context, item string, test api.TestFailover) (api.Job, error)
	// CleanUpTest removes such a copy.
	CleanUpTest(ctx context.Context, item string, cleanUp api.CleanUpTest) (api.Job, error)
}

// Switches switch machines of protected items. Each starts a job.
type Switches interface {
	// ShutDownMachine shuts an item's machine down where it works.
	ShutDownMachine(ctx context.Context, item string) (api.Job, error)
	// PowerOnMachine starts it there.
	PowerOnMachine(ctx context.Context, item string) (api.Job, error)
}

// Groups choose recovery points of several items that are one moment for all.
type Groups interface {
	// CommonPoint fails with kind not_found if there is none.
	CommonPoint(ctx context.Context, items []string, req api.CommonPoint) (api.CommonMoment, error)
}

// Guests reach into machines through their guest agents. Test is the handle of a
// test failover, whose machine is meant then, or empty.
type Guests interface {
	// RunInGuest runs a command with the input and returns what it said. It fails
	// if the command ends with anything but 0.
	RunInGuest(ctx context.Context, item, test string, command []string, input []byte) (output string, err error)
	// PingGuest returns nil if the guest agent answers.
	PingGuest(ctx context.Context, item, test string) error
	// GuestAddresses returns the addresses of its network cards, loopback left out,
	// as the guest agent sees them.
	GuestAddresses(ctx context.Context, item, test string) ([]string, error)
}

// Remote runs scripts on the hosts of sites' gateways.
type Remote interface {
	// RunScript runs a script beside the machines of a site, and returns what it said.
	RunScript(ctx context.Context, site string, call script.Call) (output string, err error)
	// CheckScript says whether it could be run there.
	CheckScript(ctx context.Context, site string, call script.Call) error
}

// Options are what a planner works with.
type Options struct {
	Store      Store
	Engine     *job.Engine
	Items      Items
	Operations Operations
	Tests      Tests
	Switches   Switches
	Groups     Groups
	Guests     Guests // nil: guest agents cannot be reached
	Evidence   Evidence
	// Host has the scripts that plans may run on the server, and their secrets.
	Host   script.Host
	Remote Remote // nil: none are run elsewhere
	Client *http.Client
	Logger *slog.Logger
	Now    func() time.Time
	// Publish tells who follows what happens; nil: nobody.
	Publish func(api.Event)
}

// Planner keeps plans and runs them. Its methods are safe for concurrent use.
type Planner struct {
	opts Options
	log  *slog.Logger
	now  func() time.Time

	// mu guards parsed: plans by the digest of their text.
	mu     sync.Mutex
	parsed map[string]*plan.Plan
}

// New returns a planner, and makes its kinds of job known to the engine, which
// must not run yet.
func New(o Options) (*Planner, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Client == nil {
		o.Client = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	if o.Publish == nil {
		o.Publish = func(api.Event) {}
	}
	p := &Planner{opts: o, log: o.Logger, now: o.Now, parsed: map[string]*plan.Plan{}}
	return p, o.Engine.Register(p.runKind(), p.drillKind())
}

// kindRun is the job of a run.
const kindRun = "plan_run"

func (p *Planner) runKind() job.Kind {
	return job.Kind{
		Name: kindRun, Title: "Run a recovery plan", Waits: true, Expand: p.expand,
		Finish: &job.Task{Name: "finish", Title: "Record the outcome", Run: p.finish},
	}
}

// expand makes the tasks of a run from the text that it was started with.
func (p *Planner) expand(input json.RawMessage) ([]job.Task, error) {
	var in runInput
	if err := json.Unmarshal(input, &in); err != nil {
		return nil, err
	}
	pl, err := p.parse(in.Text)
	if err != nil {
		return nil, err
	}
	var tasks []job.Task
	for _, s := range pl.Steps(in.Kind, in.Direction) {
		tasks = append(tasks, job.Task{Name: s.ID, Title: s.Title, Run: func(ctx context.Context, step *job.Step) error {
			return p.do(ctx, &run{Step: step, p: p, in: in, plan: pl, at: s})
		}})
	}
	return tasks, nil
}

// maxParsed is how many plans are kept parsed.
const maxParsed = 64

// parse reads a plan's text, once.
func (p *Planner) parse(text string) (*plan.Plan, error) {
	key := plan.Digest(text)
	p.mu.Lock()
	defer p.mu.Unlock()
	if pl := p.parsed[key]; pl != nil {
		return pl, nil
	}
	pl, err := plan.Parse(text)
	if err != nil {
		return nil, err
	}
	if len(p.parsed) >= maxParsed {
		clear(p.parsed)
	}
	p.parsed[key] = pl
	return pl, nil
}

// newID returns a random id with a prefix.
func newID(prefix string) string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return prefix + "-" + hex.EncodeToString(b[:])
}
