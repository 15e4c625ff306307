package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/gateway"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/scrub"
)

// kindCompare is the job that compares an item's disks with the vault.
const kindCompare = "compare"

// compareInput is whose disks are compared.
type compareInput struct {
	Item string `json:"item"`
}

// CompareItem starts the job that compares an item's disks with the vault while its
// machine runs. It stands in the way of no other job, and fails when one ends the
// replication.
func (c *Orchestrator) CompareItem(ctx context.Context, idOrName string, _ api.CompareItem) (api.Job, error) {
	if err := c.awaitSettled(ctx); err != nil {
		return api.Job{}, err
	}
	it, err := c.opts.Store.Item(ctx, idOrName)
	if err != nil {
		return api.Job{}, err
	}
	if err := comparable(it); err != nil {
		return api.Job{}, err
	}
	j, err := c.engine.Submit(ctx, kindCompare, "compare/"+it.ID, compareInput{it.ID})
	if errors.Is(err, job.ErrBusy) {
		return api.Job{}, &holdfast.Error{Kind: holdfast.KindConflict, Op: "compare disks of", Thing: it.Name, Err: err, Hint: "Wait until that job has ended"}
	}
	if err != nil {
		return api.Job{}, err
	}
	return c.apiJob(ctx, j), nil
}

// comparable says why an item's disks cannot be compared.
func comparable(it holdfast.Item) error {
	if it.State == holdfast.StateProtected {
		return nil
	}
	return &holdfast.Error{Kind: holdfast.KindNotAllowed, Op: "compare disks of", Thing: it.Name, Cause: "it is not protected but in state " + string(it.State),
		Hint: "Ask again when it is protected"}
}

func (c *Orchestrator) compareKind() job.Kind {
	return job.Kind{
		Name: kindCompare, Title: "Compare disks with the vault",
		Tasks: []job.Task{
			{Name: "begin", Title: "Tell the gateway", Run: bound(c.compareTask(c.compareBegin)), Retry: job.Retry{Attempts: 3, Delay: time.Second}},
			{Name: "compare", Title: "Read the disks and compare them", Run: c.compareTask(c.compareWait)},
		},
	}
}

func (c *Orchestrator) compareTask(f func(context.Context, *job.Step, holdfast.Item) error) func(context.Context, *job.Step) error {
	return func(ctx context.Context, step *job.Step) error {
		var in compareInput
		if err := decodeInput(step, &in); err != nil {
			return err
		}
		it, err := c.opts.Store.Item(ctx, in.Item)
		if err != nil {
			return err
		}
		if err := comparable(it); err != nil {
			return err
		}
		return f(ctx, step, it)
	}
}

func (c *Orchestrator) compareBegin(ctx context.Context, step *job.Step, it holdfast.Item) error {
	g, _, err := c.gatewayOf(ctx, it)
	if err != nil {
		return err
	}
	began, err := g.Scrub(ctx, it.ID)
	if err != nil {
		return err
	}
	return step.SaveJobState(ctx, began)
}

// gatewayPatience is for how long a gateway may be away while it compares.
const gatewayPatience = 2 * time.Minute

// compareWait waits until the round that was begun has ended. Nothing is compared
// while the machine is off or cut off; that is told, and waited for.
func (c *Orchestrator) compareWait(ctx context.Context, step *job.Step, it holdfast.Item) error {
	var began gateway.ScrubReply
	if err := step.JobState(&began); err != nil {
		return err
	}
	for heard := c.now(); ; {
		it, err := c.opts.Store.Item(ctx, it.ID)
		if err == nil {
			err = comparable(it)
		}
		if err != nil {
			return err
		}
		st, err := c.gatewayStatus(ctx, it)
		switch {
		case err == nil:
			heard = c.now()
		case c.now().Sub(heard) > gatewayPatience:
			return err
		case !sleep(ctx, time.Second):
			return context.Cause(ctx)
		default:
			continue
		}
		step.Progress(st.Scrub.Done, st.Scrub.Total, "bytes")
		if lost := describeLosses(st.Scrub.Losses()); st.Scrub.Rounds > began.Rounds {
			if lost != "" {
				return &holdfast.Error{Kind: holdfast.KindCorrupt, Op: "compare disks of", Thing: it.Name, Cause: lost,
					Hint: holdfast.NewFinding(holdfast.CodeChangeLost, "", time.Time{}).Advice}
			}
			return nil
		}
		if !sleep(ctx, 500*time.Millisecond) {
			return errors.Join(context.Cause(ctx), errors.New(st.Scrub.Problem))
		}
	}
}

func (c *Orchestrator) gatewayStatus(ctx context.Context, it holdfast.Item) (gateway.Status, error) {
	g, _, err := c.gatewayOf(ctx, it)
	if err != nil {
		return gateway.Status{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return g.Status(ctx, it.ID)
}

// describeLosses says in words what was lost; nothing: "".
func describeLosses(lost []scrub.Loss) string {
	var out []string
	for _, l := range lost {
		text := fmt.Sprintf("disk %s, %d bytes from %d on, found %s", l.Disk, l.Bytes, l.Parts[0].Offset, l.Found.UTC().Format(time.DateTime))
		if !l.Since.IsZero() {
			text += ", lost since " + l.Since.UTC().Format(time.DateTime)
		}
		if !l.Healed {
			text += ", not in the vault yet"
		}
		out = append(out, text)
	}
	return strings.Join(out, "; ")
}

// apiComparison is nil where the gateway has not told.
func apiComparison(s scrub.State) *api.Comparison {
	if s.Total == 0 {
		return nil
	}
	out := &api.Comparison{BeganAt: s.Began, Done: s.Done, Total: s.Total, Skipped: s.Skipped, CompletedAt: s.Completed, Rounds: s.Rounds, Problem: s.Problem}
	for _, l := range s.Lost {
		out.Lost = append(out.Lost, api.LostChange{Disk: l.Disk, Offset: l.Parts[0].Offset, Bytes: l.Bytes, FoundAt: l.Found, Healed: l.Healed, Since: l.Since})
	}
	return out
}
