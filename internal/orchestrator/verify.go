package orchestrator

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// verifyInput is what verifying was asked for.
type verifyInput struct {
	Stream string `json:"stream,omitempty"`
	Rate   int64  `json:"rate,omitempty"` // bytes per second; 0: no limit
}

// verified is what verifications have found.
type verified struct {
	last *api.VerifyReport // the last one; nil: none
	full time.Time         // when the last one of everything ended
	at   time.Time         // when the first one of late found damage
	// damage is what is known to be damaged, by stream.
	damage map[string]string
}

// add takes what a verification found; stream is empty for one of everything.
func (v *verified) add(stream string, r api.VerifyReport) {
	v.last = &r
	if len(v.damage) == 0 {
		v.at = r.FinishedAt
	}
	if stream == "" {
		v.full = r.FinishedAt
		clear(v.damage)
	}
	delete(v.damage, stream)
	for _, d := range r.Damaged {
		rest, _ := strings.CutPrefix(d.Object, "streams/")
		id, _, _ := strings.Cut(rest, "/")
		if _, known := v.damage[id]; !known {
			v.damage[id] = d.Object + ": " + d.Detail
		}
	}
}

// loadVerified takes what verifications have found before the server's start.
func (c *Orchestrator) loadVerified(ctx context.Context) error {
	jobs, err := c.opts.Jobs.ListJobs(ctx, job.Filter{Kind: kindVerify})
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.verified = verified{damage: map[string]string{}}
	for _, j := range slices.Backward(jobs) { // the newest is first
		var in verifyInput
		if r := apiResult(j.Result); r != nil && r.Verify != nil && json.Unmarshal(j.Input, &in) == nil {
			c.verified.add(in.Stream, *r.Verify)
		}
	}
	return nil
}

// damageOf returns what is known to be damaged of a stream, or "".
func (c *Orchestrator) damageOf(id holdfast.StreamID) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.verified.damage[id.String()]
}

// Scrub says how the vault is verified in the background.
type Scrub struct {
	Every time.Duration // 0: never
	Rate  int64         // bytes per second; 0: no limit
	// Sources is the time in which all disks of each machine are compared with the
	// vault once, while it runs; 0: only when asked.
	Sources time.Duration
}

// scrubLook is how often it is looked whether to verify.
const scrubLook = 30 * time.Second

// scrubLoop verifies all of the vault when it was not for long.
func (c *Orchestrator) scrubLoop(ctx context.Context) error {
	if c.opts.Scrub.Every <= 0 {
		return nil
	}
	for look := min(scrubLook, c.opts.Scrub.Every); sleep(ctx, look); {
		c.mu.Lock()
		last := c.verified.full
		c.mu.Unlock()
		if last.IsZero() {
			last = c.opts.Vault.CreatedAt()
		}
		if c.now().Sub(last) < c.opts.Scrub.Every {
			continue
		}
		if _, err := c.engine.Submit(ctx, kindVerify, "vault", verifyInput{Rate: c.opts.Scrub.Rate}); err != nil && !errors.Is(err, job.ErrBusy) && ctx.Err() == nil {
			c.log.Error("vault is not verified", "error", err)
		}
	}
	return nil
}

// VerifyVault starts the job that reads the vault as a whole and checks it.
func (c *Orchestrator) VerifyVault(ctx context.Context, req api.VerifyVault) (api.Job, error) {
	if req.Stream != "" {
		if _, err := holdfast.ParseStreamID(req.Stream); err != nil {
			return api.Job{}, &holdfast.Error{Kind: holdfast.KindInvalid, Op: "verify vault", Thing: req.Stream, Err: err}
		}
	}
	j, err := c.engine.Submit(ctx, kindVerify, "vault", verifyInput{Stream: req.Stream})
	if err != nil {
		return api.Job{}, err
	}
	return c.apiJob(ctx, j), nil
}

func (c *Orchestrator) verifyKind() job.Kind {
	return job.Kind{
		Name: kindVerify, Title: "Verify the vault",
		Tasks: []job.Task{{Name: "verify", Title: "Read everything and check it", Run: c.verify}},
	}
}

func (c *Orchestrator) verify(ctx context.Context, step *job.Step) error {
	var in verifyInput
	if err := decodeInput(step, &in); err != nil {
		return err
	}
	opts := vault.VerifyOptions{Rate: in.Rate, Progress: func(done, total int64) { step.Progress(done, total, "bytes") }}
	if in.Stream != "" {
		id, err := holdfast.ParseStreamID(in.Stream)
		if err != nil {
			return err
		}
		opts.Stream = &id
	}
	rep, healed, err := c.verifyAndHeal(ctx, opts)
	if err != nil {
		return vaultError("verify vault", c.opts.VaultLocation, err)
	}
	out := apiVerify(rep, c.now())
	out.Healed = healed
	c.mu.Lock()
	c.verified.add(in.Stream, out)
	c.mu.Unlock()
	if err := step.SetResult(ctx, jobResult{Verify: &out}); err != nil {
		return err
	}
	if n := len(out.Damaged); n > 0 {
		return &holdfast.Error{Kind: holdfast.KindCorrupt, Op: "verify vault", Thing: c.opts.VaultLocation,
			Cause: "damaged objects were found: " + out.Damaged[0].Object + ": " + out.Damaged[0].Detail,
			Hint:  "Recovery points named in the report cannot be used; others can. Restore the objects from a copy of the vault, with holdfast vault heal"}
	}
	return nil
}

func (c *Orchestrator) verifyAndHeal(ctx context.Context, o vault.VerifyOptions) (rep *vault.Report, healed []string, err error) {
	if c.opts.VaultCopy != nil {
		return c.opts.VaultCopy.Verify(ctx, o)
	}
	rep, err = c.opts.Vault.Verify(ctx, o)
	return rep, nil, err
}
