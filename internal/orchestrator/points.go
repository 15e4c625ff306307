package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/gateway"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/provider"
)

const (
	// kindPoint is the job that makes a recovery point.
	kindPoint = "point"
	// freezeWait bounds for how long the file systems of a guest may be frozen,
	// with all that belongs to it.
	freezeWait = 10 * time.Second
	// thawWait is for how long a thaw is tried again, whatever happened before;
	// thawOnce bounds one try.
	thawWait = 10 * time.Minute
	thawOnce = 5 * time.Second
)

// pointInput is what a recovery point was asked for.
type pointInput struct {
	Item string `json:"item"`
	Name string `json:"name,omitempty"`
	App  bool   `json:"app,omitempty"`
}

// MakePoint starts the job that makes a recovery point of the present moment.
func (c *Orchestrator) MakePoint(ctx context.Context, idOrName string, req api.MakePoint) (api.Job, error) {
	it, err := c.opts.Store.Item(ctx, idOrName)
	if err != nil {
		return api.Job{}, err
	}
	if !replicates(it.State) || it.State == holdfast.StateEnabling {
		return api.Job{}, &holdfast.Error{Kind: holdfast.KindNotAllowed, Op: "make recovery point of", Thing: it.Name,
			Cause: "it does not replicate in state " + string(it.State), Hint: "Wait until it is protected"}
	}
	j, err := c.engine.Submit(ctx, kindPoint, "point/"+it.ID, pointInput{Item: it.ID, Name: req.Name, App: req.AppConsistent})
	if err != nil {
		return api.Job{}, &holdfast.Error{Kind: holdfast.KindConflict, Op: "make recovery point of", Thing: it.Name, Err: err, Hint: "Wait until that job has ended"}
	}
	return c.apiJob(ctx, j), nil
}

func (c *Orchestrator) pointKind() job.Kind {
	return job.Kind{
		Name: kindPoint, Title: "Make a recovery point",
		Tasks: []job.Task{{Name: "point", Title: "Mark the present moment", Run: c.makePoint}},
	}
}

// makePoint marks the present moment. If the guest cannot be frozen, a
// crash-consistent point is made in its place.
func (c *Orchestrator) makePoint(ctx context.Context, step *job.Step) error {
	var in pointInput
	if err := decodeInput(step, &in); err != nil {
		return err
	}
	it, err := c.opts.Store.Item(ctx, in.Item)
	if err != nil {
		return err
	}
	consistency := holdfast.ConsistencyCrash
	mark := func(ctx context.Context, consistency holdfast.Consistency) error {
		g, site, err := c.gatewayOf(ctx, it)
		var at gateway.PointReply
		if err == nil {
			at, err = g.Mark(ctx, it.ID, in.Name, consistency)
		}
		if err == nil && !at.Consistent {
			err = errors.New("the copy in the vault is not in sync with the machine at the moment")
		}
		if err != nil {
			return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "make recovery point at gateway of site", Thing: site.Name, Err: err}
		}
		return nil
	}
	if in.App {
		frozen, err := c.whileFrozen(ctx, it, step, func(ctx context.Context) error { return mark(ctx, holdfast.ConsistencyApp) })
		if err == nil {
			step.Log(fmt.Sprintf("file systems were frozen for %s", frozen.Round(time.Millisecond)))
			c.noteAppPoint(it.ID, "")
			return step.SetResult(ctx, jobResult{Item: it.ID})
		}
		step.Warn("the point is crash-consistent only: " + err.Error())
		c.noteAppPoint(it.ID, err.Error())
	}
	if err := mark(ctx, consistency); err != nil {
		return err
	}
	return step.SetResult(ctx, jobResult{Item: it.ID})
}

// whileFrozen runs f while the guest's file systems are frozen, and says for how
// long they were. They are thawed whatever happens, and f's context ends when
// they have been frozen for long enough.
func (c *Orchestrator) whileFrozen(ctx context.Context, it holdfast.Item, step *job.Step, f func(context.Context) error) (frozen time.Duration, err error) {
	machine := it.CopyAt(it.ActiveSite()).MachineID
	err = c.withSite(ctx, it.ActiveSite(), func(site holdfast.Site, s *provider.Site) (err error) {
		if s.Agent == nil {
			return fmt.Errorf("the provider of site %s cannot reach guest agents", site.Name)
		}
		bound, cancel := context.WithTimeoutCause(ctx, freezeWait, errNoAnswer)
		defer cancel()
		began := c.now()
		defer func() {
			err = errors.Join(err, thaw(context.WithoutCancel(ctx), s.Agent, machine))
			frozen = c.now().Sub(began)
		}()
		n, err := s.Agent.Freeze(bound, machine)
		if err != nil {
			return fmt.Errorf("freeze: %w", err)
		}
		step.Log(fmt.Sprintf("%d file systems are frozen", n))
		if err := bound.Err(); err != nil {
			return fmt.Errorf("freezing took longer than %s", freezeWait)
		}
		return f(bound)
	})
	return frozen, err
}

// thaw tries until the guest is thawed, has no agent, or is off.
func thaw(ctx context.Context, a provider.Agent, machine string) error {
	for end := time.Now().Add(thawWait); ; {
		once, cancel := context.WithTimeout(ctx, thawOnce)
		err := a.Thaw(once, machine)
		cancel()
		if err == nil || errors.Is(err, provider.ErrNoAgent) || errors.Is(err, provider.ErrNotRunning) {
			return nil
		}
		if time.Now().After(end) || !sleep(ctx, time.Second) {
			return fmt.Errorf("thaw: %w", err)
		}
	}
}

// noteAppPoint keeps why the last application-consistent point was not made.
func (c *Orchestrator) noteAppPoint(item, problem string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.appPoints[item] = appPoint{at: c.now(), problem: problem}
}

// lastAppPoint returns why the last application-consistent point was not made.
func (c *Orchestrator) lastAppPoint(item string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.appPoints[item].problem
}

// appPoint is how the last try of an application-consistent point went.
type appPoint struct {
	at      time.Time
	problem string
}

// scheduleAppPoint makes an application-consistent point when one is due.
func (c *Orchestrator) scheduleAppPoint(ctx context.Context, it holdfast.Item, ob observation) {
	if it.Group != "" {
		c.scheduleGroupPoint(ctx, it, ob)
		return
	}
	every := it.Policy.WithDefaults().AppPointInterval
	if every <= 0 || it.State != holdfast.StateProtected || !ob.ready() || it.CurrentJob != "" {
		return
	}
	c.mu.Lock()
	last := c.appPoints[it.ID].at
	c.mu.Unlock()
	for _, p := range ob.history.Points {
		if p.Consistency == holdfast.ConsistencyApp && p.Time.After(last) {
			last = p.Time
		}
	}
	if c.now().Sub(last) < every {
		return
	}
	_, err := c.engine.Submit(ctx, kindPoint, "point/"+it.ID, pointInput{Item: it.ID, App: true})
	if err != nil && !errors.Is(err, job.ErrBusy) {
		c.log.Error("application-consistent point is not made", "item", it.Name, "error", err)
	}
}
