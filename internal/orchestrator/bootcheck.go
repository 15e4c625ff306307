package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/provider"
)

// bootWait is for how long a boot verification waits if nobody says.
const bootWait = 5 * time.Minute

// testVerify looks whether the test machine has booted, as far as that was asked
// for, and keeps a picture of its console.
func (c *Orchestrator) testVerify(ctx context.Context, r *testRun) error {
	v := r.in.Verify
	if v == nil {
		return job.Skip("it was not asked for")
	}
	wait := bootWait
	if v.TimeoutSeconds > 0 {
		wait = time.Duration(v.TimeoutSeconds) * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	err := c.withSite(ctx, r.test.Site, func(site holdfast.Site, s *provider.Site) error {
		err := c.bootChecks(ctx, r, site, s)
		c.keepScreenshot(context.WithoutCancel(ctx), r, s)
		return err
	})
	said := "passed"
	if err != nil {
		said = "failed: " + err.Error()
	}
	ready := c.now().Sub(r.in.RequestedAt)
	changed := c.changeTest(context.WithoutCancel(ctx), r.item.ID, r.in.Handle, func(t *holdfast.Test) {
		if t.Verified = said; err == nil {
			t.Ready = ready
		}
	})
	return errors.Join(err, changed)
}

func (c *Orchestrator) bootChecks(ctx context.Context, r *testRun, site holdfast.Site, s *provider.Site) error {
	v := r.in.Verify
	fail := func(what string, err error) error {
		return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "verify boot of machine", Thing: r.test.Name, Cause: what, Err: err,
			Hint: "Look at the picture of its console with holdfast job screenshot, and at the machine, then clean the test up"}
	}
	if v.Serial != "" || v.Ping || v.TCPPort != 0 {
		return &holdfast.Error{Kind: holdfast.KindInvalid, Op: "verify boot of machine", Thing: r.test.Name,
			Cause: "this version can wait for the guest agent and run a script", Hint: "Ask for these two only"}
	}
	if v.Agent {
		if s.Agent == nil {
			return fail("the provider of site "+site.Name+" cannot reach guest agents", nil)
		}
		r.Log("waiting for the guest agent")
		if err := pollAgent(ctx, s.Agent, r.test.MachineID); err != nil {
			return fail("its guest agent did not answer in time", err)
		}
		r.Log("the guest agent answers")
	}
	if v.Script != "" {
		out, err := runScript(ctx, v.Script, r.test)
		r.Log("script says: " + out)
		if err != nil {
			return fail("the script failed", err)
		}
	}
	return nil
}

func pollAgent(ctx context.Context, a provider.Agent, machine string) error {
	for {
		err := a.Ping(ctx, machine)
		if err == nil {
			return nil
		}
		if !sleep(ctx, 500*time.Millisecond) {
			return err
		}
	}
}

// runScript runs a program on the server, with the test in its environment. Its
// output is bounded.
func runScript(ctx context.Context, path string, t holdfast.Test) (string, error) {
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = append(cmd.Environ(), "HOLDFAST_TEST_NAME="+t.Name, "HOLDFAST_TEST_MACHINE="+t.MachineID,
		"HOLDFAST_TEST_POINT="+t.Point.Time.UTC().Format(time.RFC3339Nano))
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if len(out) > 4096 {
		out = out[:4096]
	}
	return string(out), err
}

// keepScreenshot keeps a picture of the console with the job. That none could be
// made fails nothing.
func (c *Orchestrator) keepScreenshot(ctx context.Context, r *testRun, s *provider.Site) {
	if !r.in.Verify.Screenshot {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if s.Console == nil {
		r.Warn("the site's provider makes no pictures of consoles")
		return
	}
	png, err := s.Console.Screenshot(ctx, r.test.MachineID)
	if err == nil {
		err = c.opts.Pictures.Keep(r.JobID(), png)
	}
	if err != nil {
		r.Warn("no picture of the console was kept: " + err.Error())
	}
}

// Pictures keeps pictures of consoles by job.
type Pictures interface {
	// Keep keeps a PNG picture, durably.
	Keep(jobID string, png []byte) error
	// Picture returns it; an error that is os.ErrNotExist if there is none.
	Picture(jobID string) ([]byte, error)
}

// Screenshot returns the picture that was kept with a job, as PNG.
func (c *Orchestrator) Screenshot(ctx context.Context, id string) ([]byte, error) {
	if _, err := c.GetJob(ctx, id); err != nil {
		return nil, err
	}
	png, err := c.opts.Pictures.Picture(id)
	if errors.Is(err, os.ErrNotExist) {
		return nil, &holdfast.Error{Kind: holdfast.KindNotFound, Op: "find picture of job", Thing: id, Cause: "none was kept",
			Hint: "Ask for one with test-failover start --screenshot"}
	}
	if err != nil {
		return nil, fmt.Errorf("read picture of job %s: %w", id, err)
	}
	return png, nil
}
