package planner

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/internal/plan"
	"github.com/holdfast-dr/holdfast/internal/script"
)

// actionState is what an action's task remembers.
type actionState struct {
	// Begun says that the action was about to be done, and that nothing is known
	// of how that went.
	Begun   bool   `json:"begun,omitempty"`
	Attempt int    `json:"attempt,omitempty"`
	Output  string `json:"output,omitempty"`
	Failed  string `json:"failed,omitempty"` // why; the run went on
	Skipped bool   `json:"skipped,omitempty"`
	// Over says that nothing is left to be done but to record that.
	Over bool `json:"over,omitempty"`
	asking
}

// maxOutput is how much of what an action says is kept, in bytes.
const maxOutput = script.MaxOutput

// action does one action, once.
func (r *run) action(ctx context.Context) error {
	var st actionState
	if err := r.State(&st); err != nil {
		return err
	}
	if st.Over {
		return nil // the server was stopped just then
	}
	given, err := r.answered(&st.asking)
	if err != nil {
		return err
	}
	switch given.Answer {
	case answerFail:
		st.Failed = orElse(st.Failed, "answered so")
		return fmt.Errorf("action %s: %s", r.at.Action.Name, orElse(given.Note, st.Failed))
	case answerSkip:
		st.Skipped = true
		return r.over(ctx, st)
	case answerDone:
		st.Failed = ""
		return r.over(ctx, st)
	case answerRetry:
		st.Failed, st.Begun = "", false
	}
	a := r.at.Action
	switch {
	case a.Manual != nil && r.in.Drill:
		st.Skipped, st.Output = true, "nobody is there in a drill: "+a.Manual.Instructions
		return r.over(ctx, st)
	case a.Manual != nil:
		return r.ask(ctx, &st, &st.asking, a.Manual.Instructions, answerDone, answerFail, answerSkip)
	case st.Begun && !a.Repeatable:
		st.Failed = "the server was stopped while it ran, and it is not known how far it came"
		if a.Stops(r.in.Kind) {
			return r.ask(ctx, &st, &st.asking, "action "+a.Name+": "+st.Failed+"; was it done?", answerDone, answerRetry, answerSkip, answerFail)
		}
		r.Warn("action " + a.Name + ": " + st.Failed + "; it is not run again")
		return r.over(ctx, st)
	}
	return r.perform(ctx, st)
}

// over records that the action is not to be done any more.
func (r *run) over(ctx context.Context, st actionState) error {
	st.Over = true
	return r.SaveState(ctx, st)
}

// perform does what the action is and records how that went.
func (r *run) perform(ctx context.Context, st actionState) error {
	a := r.at.Action
	st.Begun, st.Attempt = true, st.Attempt+1
	if err := r.SaveState(ctx, st); err != nil {
		return err
	}
	bound, cancel := context.WithTimeout(ctx, a.Bound())
	defer cancel()
	out, err := r.perform1(bound, a, st.Attempt)
	if ctx.Err() != nil && err != nil {
		return errors.Join(context.Cause(ctx), err) // cancelled, or the server stops: what it did is not known
	}
	if err != nil && bound.Err() != nil {
		err = fmt.Errorf("it took longer than %s: %w", a.Bound(), err)
	}
	st.Begun, st.Output = false, clip(out)
	if st.Output != "" {
		r.Log(st.Output)
	}
	if err == nil {
		return r.over(ctx, st)
	}
	st.Failed = err.Error()
	if a.Stops(r.in.Kind) {
		return r.ask(ctx, &st, &st.asking, "action "+a.Name+" failed: "+st.Failed, answerRetry, answerSkip, answerFail)
	}
	r.Warn("action " + a.Name + " failed: " + st.Failed)
	return r.over(ctx, st)
}

func clip(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) > maxOutput {
		s = strings.ToValidUTF8(s[:maxOutput], "") + "\n… (more was said)"
	}
	return strings.TrimRight(s, "\n")
}

// perform1 does it, and returns what it said.
func (r *run) perform1(ctx context.Context, a *plan.Action, attempt int) (string, error) {
	told, err := r.told(ctx, attempt)
	if err != nil {
		return "", err
	}
	switch {
	case a.Script != nil:
		return r.p.script(ctx, a.Script, told)
	case a.Webhook != nil:
		return r.p.webhook(ctx, a.Webhook, told)
	case a.Guest != nil:
		return r.guest(ctx, a.Guest, told)
	default:
		return r.wait(ctx, a.Wait)
	}
}

// script runs a program of the server's directory of scripts, or of that of the
// gateway of a site, with the run's context as its input.
func (p *Planner) script(ctx context.Context, s *plan.Script, told []byte) (string, error) {
	call := p.call(s)
	call.Input = told
	if s.Site == "" {
		return p.opts.Host.Run(ctx, call)
	}
	if p.opts.Remote == nil {
		return "", errors.New("this server runs no scripts at sites")
	}
	return p.opts.Remote.RunScript(ctx, s.Site, call)
}

func (p *Planner) call(s *plan.Script) script.Call {
	return script.Call{Path: s.Path, Args: s.Args, Env: s.Env, Secrets: secretsOf(s.Secrets)}
}

func secretsOf(from map[string]plan.Secret) map[string]script.Secret {
	out := map[string]script.Secret{}
	for k, v := range from {
		out[k] = script.Secret{File: v.File, Env: v.Env}
	}
	return out
}

// webhook sends the run's context. An answer of 200 to 299 is success.
func (p *Planner) webhook(ctx context.Context, w *plan.Webhook, told []byte) (string, error) {
	secrets, err := p.opts.Host.Read(secretsOf(w.Secrets))
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, orElse(w.Method, http.MethodPost), w.URL, bytes.NewReader(told))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "holdfast")
	for k, v := range w.Headers {
		req.Header.Set(k, v)
	}
	for k, v := range secrets {
		req.Header.Set(k, v)
	}
	res, err := p.opts.Client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxOutput))
	said := script.Redact(res.Status+"\n"+string(body), secrets)
	if err == nil && (res.StatusCode < 200 || res.StatusCode > 299) {
		err = fmt.Errorf("%s answers %s", w.URL, res.Status)
	}
	return said, err
}

// guest runs a command in a machine of the plan: in the test machine if the run
// is a test.
func (r *run) guest(ctx context.Context, g *plan.Guest, told []byte) (string, error) {
	item, test, err := r.machineOf(g.Item)
	if err != nil {
		return "", err
	}
	if r.p.opts.Guests == nil {
		return "", errors.New("this server reaches no guest agents")
	}
	return r.p.opts.Guests.RunInGuest(ctx, item, test, g.Command, told)
}

// machineOf returns a member's item, and its test in a test run.
func (r *run) machineOf(listed string) (item, test string, err error) {
	members, outcomes, err := standing(r.Job(), r.plan)
	if err != nil {
		return "", "", err
	}
	for _, m := range members {
		if m.Listed != listed {
			continue
		}
		o := outcomes[m.ID]
		if r.in.Kind == plan.Test && o.Test == "" {
			return "", "", fmt.Errorf("item %s has no test machine in this run", m.Item)
		}
		if m.ID == "" {
			return "", "", fmt.Errorf("there is no item %s", m.Item)
		}
		return m.ID, o.Test, nil
	}
	return "", "", fmt.Errorf("item %s is not in the plan", listed)
}

// waitEvery is how often it is looked whether something answers.
const waitEvery = time.Second

// wait waits until something answers.
func (r *run) wait(ctx context.Context, w *plan.Wait) (string, error) {
	began := r.p.now()
	for {
		what, err := r.look(ctx, w)
		if err == nil {
			return fmt.Sprintf("%s after %s", what, r.p.now().Sub(began).Round(time.Millisecond)), nil
		}
		t := time.NewTimer(waitEvery)
		select {
		case <-ctx.Done():
			t.Stop()
			return "", err
		case <-t.C:
		}
	}
}

func (r *run) look(ctx context.Context, w *plan.Wait) (string, error) {
	once, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	switch {
	case w.TCP != "":
		conn, err := new(net.Dialer).DialContext(once, "tcp", w.TCP)
		if err == nil {
			err = conn.Close()
		}
		return w.TCP + " accepts a connection", err
	case w.HTTP != "":
		req, err := http.NewRequestWithContext(once, http.MethodGet, w.HTTP, nil)
		if err != nil {
			return "", err
		}
		res, err := r.p.opts.Client.Do(req)
		if err != nil {
			return "", err
		}
		if err = res.Body.Close(); err == nil && (res.StatusCode < 200 || res.StatusCode > 399) {
			err = fmt.Errorf("%s answers %s", w.HTTP, res.Status)
		}
		return w.HTTP + " answers " + res.Status, err
	case w.Ping != "":
		return w.Ping + " answers a ping", ping(once, w.Ping)
	default:
		item, test, err := r.machineOf(w.Agent)
		if err == nil && r.p.opts.Guests == nil {
			err = errors.New("this server reaches no guest agents")
		}
		if err == nil {
			err = r.p.opts.Guests.PingGuest(once, item, test)
		}
		return "the guest agent of " + w.Agent + " answers", err
	}
}

// ping asks the system's own ping, which needs no rights that the server lacks.
func ping(ctx context.Context, host string) error {
	out, err := exec.CommandContext(ctx, "ping", "-n", "-c", "1", "-W", "3", "--", host).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s does not answer a ping: %w: %s", host, err, bytes.TrimSpace(out))
	}
	return nil
}

// addressWait bounds how long guest agents are waited for, to tell addresses.
const addressWait = 3 * time.Second

// addresses are those of the machines that were brought up, by item, as far as
// their guest agents answer.
func (r *run) addresses(ctx context.Context, outcomes map[string]outcome) map[string][]string {
	out := map[string][]string{}
	if r.p.opts.Guests == nil {
		return out
	}
	ctx, cancel := context.WithTimeout(ctx, addressWait)
	defer cancel()
	var mu sync.Mutex
	wait := new(errgroup.Group)
	wait.SetLimit(r.plan.Bounded())
	for id, o := range outcomes {
		if o.State != outSucceeded || o.MachineID == "" {
			continue
		}
		wait.Go(func() error {
			if found, err := r.p.opts.Guests.GuestAddresses(ctx, id, o.Test); err == nil {
				mu.Lock()
				defer mu.Unlock()
				out[id] = found
			}
			return nil
		})
	}
	_ = wait.Wait() // never fails: a guest without an agent has no addresses to tell
	return out
}

// told is the run's context, as JSON.
func (r *run) told(ctx context.Context, attempt int) ([]byte, error) {
	members, outcomes, err := standing(r.Job(), r.plan)
	if err != nil {
		return nil, err
	}
	c := plan.Context{RecoveryPlanName: r.in.Name, FailoverType: r.in.Kind.ASR(), FailoverDirection: r.in.Direction.ASR(), GroupID: r.at.Group,
		Members: map[string]plan.Member{},
		Holdfast: plan.Details{Run: r.JobID(), Version: r.in.Revision, Kind: r.in.Kind, Direction: r.in.Direction, Group: r.at.Group,
			Action: r.at.Action.Name, Attempt: attempt, Machines: []plan.MachineDetail{}}}
	addresses := r.addresses(ctx, outcomes)
	for _, m := range members {
		o := outcomes[m.ID]
		d := plan.MachineDetail{Item: m.Item, ID: m.ID, Group: m.Group, State: stateOf(m, o), Addresses: addresses[m.ID]}
		item := plan.Member{}
		point := m.Point
		if o.Point != nil {
			point = o.Point
		}
		if point != nil {
			d.Point, d.PointTime = orElse(point.ID, point.Position), point.Time
			item.RecoveryPointID = d.Point
		}
		if o.State == outSucceeded {
			d.Site, d.Machine, d.MachineID = orElse(o.Site, m.Site), o.Machine, o.MachineID
			item.ResourceGroupName, item.RoleName = d.Site, d.Machine
		}
		c.Holdfast.Machines = append(c.Holdfast.Machines, d)
		if m.ID != "" && (r.at.Group == "" || m.Group == r.at.Group) {
			c.Members[m.ID] = item
		}
	}
	return json.MarshalIndent(c, "", "  ")
}

// stateOf says how a machine stands.
func stateOf(m member, o outcome) string {
	switch {
	case m.Fate == memberFail:
		return outFailed
	case m.Fate == memberSkip:
		return outSkipped
	case o.State == "":
		return "waiting"
	}
	return o.State
}
