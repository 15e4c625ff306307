package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/provider"
)

// The kinds of jobs of a test failover.
const (
	kindTest    = string(holdfast.OpTestFailover)
	kindCleanUp = string(holdfast.OpCleanUp)
)

// testInput is what a test failover was asked for.
type testInput struct {
	Item        string                `json:"item"`
	Handle      string                `json:"handle"`
	Name        string                `json:"name"` // of the test machine
	Network     string                `json:"network,omitempty"`
	Networks    map[string]string     `json:"networks,omitempty"`
	Addressing  holdfast.Addressing   `json:"addressing,omitzero"`
	Request     holdfast.PointRequest `json:"request"`
	Verify      *api.BootVerification `json:"verify,omitempty"`
	RequestedAt time.Time             `json:"requested_at"`
}

// testSubject is what the jobs of a test failover work on: not the item, whose
// own jobs it does not keep off.
func testSubject(handle string) string { return "test/" + handle }

// TestFailover starts the job that runs a copy of the item's machine apart from
// the world. The test is recorded in the item when it returns.
func (c *Orchestrator) TestFailover(ctx context.Context, idOrName string, req api.TestFailover) (api.Job, error) {
	if err := c.awaitSettled(ctx); err != nil {
		return api.Job{}, err
	}
	in := testInput{Handle: newID("test"), Network: req.Network, Networks: req.Networks, Request: pointRequest(req.Option, req.Point, req.Timeline, req.Time),
		Addressing: addressing(req.Addressing), Verify: req.Verify, Name: req.Name, RequestedAt: c.now()}
	if err := errors.Join(in.Request.Validate(), c.checkVerification(req.Verify)); err != nil {
		return api.Job{}, err
	}
	it, err := c.opts.Store.Item(ctx, idOrName)
	if err != nil {
		return api.Job{}, err
	}
	if err := c.checkVersion(it, req.IfVersion); err != nil {
		return api.Job{}, err
	}
	status := c.observe(ctx, it).status
	it.Status = status
	if err := it.Check(holdfast.OpTestFailover); err != nil {
		return api.Job{}, err
	}
	if _, err := addressingOf(it, in.Addressing); err != nil {
		return api.Job{}, err
	}
	if err := c.hasPoint(ctx, it, in.Request); err != nil {
		return api.Job{}, err
	}
	if in.Name == "" {
		in.Name = testName(it, in.Handle)
	}
	in.Item = it.ID
	it, err = c.updateItem(ctx, it.ID, func(i holdfast.Item) (holdfast.Item, error) {
		i.Status = status
		if err := i.Check(holdfast.OpTestFailover); err != nil {
			return i, err
		}
		if slices.ContainsFunc(i.Tests, func(t holdfast.Test) bool { return t.Name == in.Name }) {
			return i, nameTaken(holdfast.Site{Name: "of the test"}, in.Name, provider.ErrNameTaken)
		}
		i.Tests = append(slices.Clone(i.Tests), holdfast.Test{Handle: in.Handle, Name: in.Name, State: holdfast.TestStarting,
			Site: i.TargetSite(), Network: in.Network, StartedAt: c.now()})
		return i, nil
	})
	if err != nil {
		return api.Job{}, err
	}
	j, err := c.engine.Submit(ctx, kindTest, testSubject(in.Handle), in)
	if err != nil {
		return api.Job{}, errors.Join(err, c.dropTest(context.WithoutCancel(ctx), it.ID, in.Handle))
	}
	return c.apiJob(ctx, j), nil
}

// testName is what a test machine is called if nobody says.
func testName(it holdfast.Item, handle string) string {
	return it.Name + "-test-" + handle[len(handle)-4:]
}

// testOf returns a test of an item.
func testOf(it holdfast.Item, handle string) (holdfast.Test, bool) {
	i := slices.IndexFunc(it.Tests, func(t holdfast.Test) bool { return t.Handle == handle })
	if i < 0 {
		return holdfast.Test{}, false
	}
	return it.Tests[i], true
}

// changeTest changes what is recorded of a test; it is no error if it is gone.
func (c *Orchestrator) changeTest(ctx context.Context, item, handle string, change func(*holdfast.Test)) error {
	_, err := c.updateItem(ctx, item, func(i holdfast.Item) (holdfast.Item, error) {
		i.Tests = slices.Clone(i.Tests)
		for n := range i.Tests {
			if i.Tests[n].Handle == handle {
				change(&i.Tests[n])
			}
		}
		return i, nil
	})
	return err
}

func (c *Orchestrator) dropTest(ctx context.Context, item, handle string) error {
	_, err := c.updateItem(ctx, item, func(i holdfast.Item) (holdfast.Item, error) {
		i.Tests = slices.DeleteFunc(slices.Clone(i.Tests), func(t holdfast.Test) bool { return t.Handle == handle })
		return i, nil
	})
	return err
}

// testRun is a task's view of its test failover.
type testRun struct {
	*job.Step
	in   testInput
	item holdfast.Item
	test holdfast.Test
}

func (c *Orchestrator) testKind() job.Kind {
	retry := job.Retry{Attempts: 3, Delay: 300 * time.Millisecond}
	return job.Kind{
		Name: kindTest, Title: "Test failover",
		Tasks: []job.Task{
			{Name: "check", Title: "Check recovery point and site", Run: bound(c.testTask(c.testCheck))},
			{Name: "drain", Title: "Bring over what was received", Run: c.testTask(c.testDrain), Optional: true},
			{Name: "resolve", Title: "Choose the recovery point", Run: bound(c.testTask(c.testResolve))},
			{Name: "define", Title: "Prepare the test machine", Run: bound(c.testTask(c.testDefine)), Retry: retry},
			{Name: "start", Title: "Start the test machine", Run: bound(c.testTask(c.testStart)), Retry: retry},
			{Name: "addresses", Title: "Give its network cards their addresses", Run: c.testTask(c.testAddresses)},
			{Name: "verify", Title: "Look whether it has booted", Run: c.testTask(c.testVerify)},
		},
		Finish: &job.Task{Name: "finish", Title: "Record the outcome", Run: c.testFinish},
	}
}

func (c *Orchestrator) testTask(f func(context.Context, *testRun) error) func(context.Context, *job.Step) error {
	return func(ctx context.Context, step *job.Step) error {
		r := &testRun{Step: step}
		if err := decodeInput(step, &r.in); err != nil {
			return err
		}
		var err error
		if r.item, err = c.opts.Store.Item(ctx, r.in.Item); err != nil {
			return err
		}
		var ok bool
		if r.test, ok = testOf(r.item, r.in.Handle); !ok {
			return &holdfast.Error{Kind: holdfast.KindNotFound, Op: "test failover", Thing: r.in.Name, Cause: "the test was taken away"}
		}
		if r.test.Job != step.JobID() {
			if err := c.changeTest(ctx, r.item.ID, r.in.Handle, func(t *holdfast.Test) { t.Job = step.JobID() }); err != nil {
				return err
			}
		}
		return f(ctx, r)
	}
}

func (c *Orchestrator) testCheck(ctx context.Context, r *testRun) error {
	if err := c.settleHistory(ctx, r.item.ID); err != nil {
		return err
	}
	h, err := c.historyFor(ctx, r.item, r.in.Request)
	if err != nil {
		return err
	}
	if _, err := holdfast.ResolvePoint(r.in.Request, h); err != nil {
		return err
	}
	return c.withSite(ctx, r.test.Site, func(site holdfast.Site, s *provider.Site) error {
		if s.Target == nil {
			return &holdfast.Error{Kind: holdfast.KindInvalid, Op: "check site", Thing: site.Name, Cause: "its provider cannot run recovered machines"}
		}
		if err := errors.Join(c.checkNetworks(ctx, s, site, r.in.Network, r.in.Networks), checkAddressing(r.item, r.in.Addressing, site, s)); err != nil {
			return err
		}
		if st, err := s.Target.Status(ctx, r.in.Handle); err == nil && st.MachineID != "" {
			return nil // made before the server was interrupted
		}
		return c.nameFree(ctx, s, site, r.in.Name)
	})
}

// checkNetworks fails if one of the networks that were asked for is not there.
func (c *Orchestrator) checkNetworks(ctx context.Context, s *provider.Site, site holdfast.Site, network string, networks map[string]string) error {
	names := append(slices.Sorted(maps.Values(networks)), network)
	for _, name := range slices.Compact(names) {
		if err := c.checkNetwork(ctx, s, site, name); err != nil {
			return err
		}
	}
	return nil
}

// checkNetwork fails if a network was asked for that the site does not have.
func (c *Orchestrator) checkNetwork(ctx context.Context, s *provider.Site, site holdfast.Site, network string) error {
	if network == "" || s.Inventory == nil {
		return nil
	}
	all, err := s.Inventory.Networks(ctx)
	if err != nil {
		return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "list networks of site", Thing: site.Name, Err: err}
	}
	var names []string
	for _, n := range all {
		if n.ID == network || n.Name == network {
			return nil
		}
		names = append(names, n.Name)
	}
	return &holdfast.Error{Kind: holdfast.KindNotFound, Op: "find network", Thing: network, Cause: "site " + site.Name + " has no such network",
		Hint: fmt.Sprintf("It has %q; without a network the test machine is isolated", names)}
}

func (c *Orchestrator) testDrain(ctx context.Context, r *testRun) error {
	if o := r.in.Request.Option; o != "" && o != holdfast.PointLatest {
		return job.Skip("the recovery point is in the vault already")
	}
	ctx, cancel := context.WithTimeout(ctx, drainWait)
	defer cancel()
	g, site, err := c.gatewayOf(ctx, r.item)
	if err != nil {
		return err
	}
	if _, err := g.Point(ctx, r.item.ID, "test "+r.in.Name); err != nil {
		return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "drain gateway of site", Thing: site.Name, Err: err,
			Hint: "The test runs with the newest that the vault has"}
	}
	return nil
}

func (c *Orchestrator) testResolve(ctx context.Context, r *testRun) error {
	if r.test.Point.Position != 0 {
		return nil
	}
	h, err := c.historyFor(ctx, r.item, r.in.Request)
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
	return c.changeTest(ctx, r.item.ID, r.in.Handle, func(t *holdfast.Test) { t.Point = res.Point })
}

func (c *Orchestrator) testDefine(ctx context.Context, r *testRun) error {
	if err := c.serveView(ctx, r.item, r.in.Handle, r.test.Point); err != nil {
		return err
	}
	rec, err := c.recovered(ctx, r.item, r.in.Handle, r.in.Name, r.test.Point)
	if err != nil {
		return err
	}
	given, err := addressingOf(r.item, r.in.Addressing)
	if err != nil {
		return err
	}
	rec.Network, rec.Networks, rec.Isolated = r.in.Network, r.in.Networks, r.in.Network == ""
	rec.Seed = seed(given, r.in.Handle, r.in.Name)
	var id string
	err = c.withSite(ctx, r.test.Site, func(site holdfast.Site, s *provider.Site) error {
		id, err = s.Target.Define(ctx, rec)
		if errors.Is(err, provider.ErrNameTaken) {
			return nameTaken(site, rec.Name, err)
		}
		if err != nil {
			return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "prepare machine at site", Thing: site.Name, Err: err}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return c.changeTest(ctx, r.item.ID, r.in.Handle, func(t *holdfast.Test) { t.MachineID = id })
}

func (c *Orchestrator) testStart(ctx context.Context, r *testRun) error {
	if err := c.serveView(ctx, r.item, r.in.Handle, r.test.Point); err != nil {
		return err
	}
	return c.withSite(ctx, r.test.Site, func(site holdfast.Site, s *provider.Site) error {
		if err := s.Target.Start(ctx, r.in.Handle); err != nil {
			return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "start machine at site", Thing: site.Name, Err: err}
		}
		return nil
	})
}

// testFinish records what came of it. What a cancelled test has made is removed;
// what a failed one has made is left to be looked at, until clean-up.
func (c *Orchestrator) testFinish(ctx context.Context, step *job.Step) error {
	var in testInput
	if err := decodeInput(step, &in); err != nil {
		return err
	}
	it, err := c.opts.Store.Item(ctx, in.Item)
	if errors.Is(err, &holdfast.Error{Kind: holdfast.KindNotFound}) {
		return nil
	}
	if err != nil {
		return err
	}
	t, ok := testOf(it, in.Handle)
	if !ok {
		return nil
	}
	switch step.Ending().State {
	case job.Succeeded:
		ready := c.now().Sub(in.RequestedAt)
		if t.Ready != 0 {
			ready = t.Ready
		}
		if err := c.changeTest(ctx, it.ID, in.Handle, func(t *holdfast.Test) { t.State, t.Ready = holdfast.TestRunning, ready }); err != nil {
			return err
		}
		rto := ready.Seconds()
		res := jobResult{Item: it.ID, RTO: &rto, Point: &t.Point, MachineID: t.MachineID, MachineName: t.Name, Test: t.Handle}
		rpo := max(0, in.RequestedAt.Sub(t.Point.Time)).Seconds()
		res.RPO = &rpo
		if site, err := c.opts.Store.Site(ctx, t.Site); err == nil {
			res.Site = site.Name
		}
		return step.SetResult(ctx, res)
	case job.Cancelled:
		if err := c.removeTest(ctx, it, t); err != nil {
			step.Warn(err.Error())
			break
		}
		return c.dropTest(ctx, it.ID, in.Handle)
	}
	return c.changeTest(ctx, it.ID, in.Handle, func(t *holdfast.Test) { t.State = holdfast.TestFailed })
}

func (c *Orchestrator) removeTest(ctx context.Context, it holdfast.Item, t holdfast.Test) error {
	return c.removeRecovered(ctx, it, t.Site, t.Handle)
}

// cleanUpInput is what a clean-up was asked for.
type cleanUpInput struct {
	Item   string `json:"item"`
	Handle string `json:"handle"`
	Note   string `json:"note,omitempty"`
	Passed bool   `json:"passed"`
}

// CleanUpTest starts the job that removes a test machine and every trace of it.
func (c *Orchestrator) CleanUpTest(ctx context.Context, idOrName string, req api.CleanUpTest) (api.Job, error) {
	it, err := c.opts.Store.Item(ctx, idOrName)
	if err != nil {
		return api.Job{}, err
	}
	it.Status = c.lastObserved(it.ID).status
	if err := it.Check(holdfast.OpCleanUp); err != nil {
		return api.Job{}, err
	}
	t, err := chooseTest(it, req.Test)
	if err != nil {
		return api.Job{}, err
	}
	in := cleanUpInput{Item: it.ID, Handle: t.Handle, Note: req.Note, Passed: t.State == holdfast.TestRunning}
	j, err := c.engine.Submit(ctx, kindCleanUp, testSubject(t.Handle), in)
	if err != nil {
		return api.Job{}, &holdfast.Error{Kind: holdfast.KindConflict, Op: "clean up test", Thing: t.Name, Err: err, Hint: "Wait until its job has ended, or cancel it"}
	}
	return c.apiJob(ctx, j), nil
}

func chooseTest(it holdfast.Item, wanted string) (holdfast.Test, error) {
	var names []string
	for _, t := range it.Tests {
		if wanted == t.Handle || wanted == t.Name || wanted == "" && len(it.Tests) == 1 {
			return t, nil
		}
		names = append(names, t.Name)
	}
	e := &holdfast.Error{Kind: holdfast.KindNotFound, Op: "find test", Thing: wanted, Cause: "item " + it.Name + " has no such test", Hint: fmt.Sprintf("It has %q", names)}
	if wanted == "" {
		e.Kind, e.Thing, e.Cause, e.Hint = holdfast.KindInvalid, it.Name, "it has several tests", fmt.Sprintf("Name one of %q", names)
	}
	return holdfast.Test{}, e
}

func (c *Orchestrator) cleanUpKind() job.Kind {
	return job.Kind{
		Name: kindCleanUp, Title: "Clean up a test failover",
		Tasks: []job.Task{
			{Name: "remove", Title: "Remove the test machine", Run: c.cleanUpRemove, NoReturn: true, Retry: job.Retry{Attempts: 3, Delay: time.Second}},
		},
		Finish: &job.Task{Name: "finish", Title: "Record the outcome", Run: c.cleanUpFinish},
	}
}

func (c *Orchestrator) cleanUpRemove(ctx context.Context, step *job.Step) error {
	var in cleanUpInput
	if err := decodeInput(step, &in); err != nil {
		return err
	}
	it, err := c.opts.Store.Item(ctx, in.Item)
	if err != nil {
		return err
	}
	t, ok := testOf(it, in.Handle)
	if !ok {
		return job.Skip("it was removed already")
	}
	if err := c.changeTest(ctx, it.ID, in.Handle, func(t *holdfast.Test) { t.State = holdfast.TestCleaningUp }); err != nil {
		return err
	}
	return c.removeTest(ctx, it, t)
}

func (c *Orchestrator) cleanUpFinish(ctx context.Context, step *job.Step) error {
	var in cleanUpInput
	if err := decodeInput(step, &in); err != nil {
		return err
	}
	if step.Ending().State != job.Succeeded {
		return c.changeTest(ctx, in.Item, in.Handle, func(t *holdfast.Test) { t.State = holdfast.TestFailed })
	}
	_, err := c.updateItem(ctx, in.Item, func(i holdfast.Item) (holdfast.Item, error) {
		t, ok := testOf(i, in.Handle)
		if !ok {
			return i, nil
		}
		last := holdfast.TestRecord{At: c.now(), Passed: in.Passed, Ready: t.Ready, Point: t.Point, Note: in.Note, Job: t.Job}
		if i.LastTest != nil {
			last.Success = i.LastTest.Success
		}
		if in.Passed {
			last.Success = last.At
		}
		i.LastTest = &last
		i.Tests = slices.DeleteFunc(slices.Clone(i.Tests), func(o holdfast.Test) bool { return o.Handle == in.Handle })
		return i, nil
	})
	return errors.Join(err, step.SetResult(ctx, jobResult{Item: in.Item}))
}
