package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
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
	for _, look := range c.looks(v, site, s, r.test.MachineID) {
		r.Log("waiting for " + look.what)
		if err := untilFound(ctx, look.once); err != nil {
			return fail(look.what+" did not come in time", err)
		}
		r.Log("there is " + look.what)
	}
	if v.Script != "" {
		out, err := c.runScript(ctx, v.Script, r.test)
		r.Log("script says: " + out)
		if err != nil {
			return fail("the script failed", err)
		}
	}
	return nil
}

// look is one sign of life of a machine.
type look struct {
	what string
	once func(ctx context.Context) error // looks for it once
}

// looks returns what is asked for, in the order in which a machine boots.
func (c *Orchestrator) looks(v *api.BootVerification, site holdfast.Site, s *provider.Site, machine string) (all []look) {
	lacks := func(what string) func(context.Context) error {
		return func(context.Context) error {
			return fmt.Errorf("the provider of site %s cannot %s: %w", site.Name, what, provider.ErrNoWay)
		}
	}
	add := func(asked bool, what string, has bool, can string, once func(context.Context) error) {
		if !has {
			once = lacks(can)
		}
		if asked {
			all = append(all, look{what, once})
		}
	}
	add(v.Agent, "an answer of the guest agent", s.Agent != nil, "reach guest agents", func(ctx context.Context) error { return s.Agent.Ping(ctx, machine) })
	add(v.Serial != "", "text like "+v.Serial+" on the serial console", s.Probe != nil, "read consoles", func(ctx context.Context) error { return said(ctx, s.Probe, machine, v.Serial) })
	add(v.Ping, "an answer to a ping", s.Probe != nil, "ping machines", func(ctx context.Context) error { return s.Probe.Ping(ctx, machine) })
	add(v.TCPPort != 0, fmt.Sprintf("a connection to port %d", v.TCPPort), s.Probe != nil, "connect to machines", func(ctx context.Context) error { return s.Probe.Dial(ctx, machine, v.TCPPort) })
	return all
}

func said(ctx context.Context, p provider.Probe, machine, want string) error {
	re, err := regexp.Compile(want)
	if err != nil {
		return err
	}
	text, err := p.Said(ctx, machine)
	if err == nil && !re.Match(text) {
		err = fmt.Errorf("%d bytes were said, and not that", len(text))
	}
	return err
}

// untilFound looks again and again, until it is of no use.
func untilFound(ctx context.Context, once func(context.Context) error) error {
	for {
		err := once(ctx)
		if err == nil || errors.Is(err, provider.ErrNoWay) || !sleep(ctx, 500*time.Millisecond) {
			return err
		}
	}
}

// scriptName is what a verification script may be called: a file of the scripts'
// directory, which its owner alone fills, and no way out of it.
var scriptName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// checkVerification refuses what this version cannot do before anything is begun.
func (c *Orchestrator) checkVerification(v *api.BootVerification) error {
	invalid := func(thing, cause, hint string) error {
		return &holdfast.Error{Kind: holdfast.KindInvalid, Op: "verify boot", Thing: thing, Cause: cause, Hint: hint}
	}
	switch {
	case v == nil:
	case badPattern(v.Serial):
		return invalid(v.Serial, "it is no regular expression", "Give one as of Go, such as login:")
	case v.Script == "":
	case c.opts.Scripts == "":
		return invalid(v.Script, "this server runs no scripts", "Leave the script out")
	case !scriptName.MatchString(v.Script):
		return invalid(v.Script, "it is no name of a file in the server's directory of scripts", "Put the script into "+c.opts.Scripts+" on the server and give its name")
	}
	return nil
}

func badPattern(text string) bool {
	_, err := regexp.Compile(text)
	return err != nil
}

// runScript runs a program of the scripts' directory, with the test in its
// environment and nothing else of the server's. Its output is bounded.
func (c *Orchestrator) runScript(ctx context.Context, name string, t holdfast.Test) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(c.opts.Scripts, name))
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOLDFAST_TEST_NAME=" + t.Name,
		"HOLDFAST_TEST_MACHINE=" + t.MachineID, "HOLDFAST_TEST_POINT=" + t.Point.Time.UTC().Format(time.RFC3339Nano)}
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return string(out[:min(len(out), maxScriptOutput)]), err
}

// maxScriptOutput is how much of what a script says is kept, in bytes.
const maxScriptOutput = 4096

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
