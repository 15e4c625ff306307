package planner

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/plan"
)

// CheckPlan says what a run would do, and does of it what does no harm: it
// resolves recovery points, reaches sites, hosts and agents, and looks for
// scripts and secrets. It changes nothing.
func (p *Planner) CheckPlan(ctx context.Context, idOrName string, req api.RunPlan) (api.PlanCheck, error) {
	in, pl, err := p.prepare(ctx, idOrName, req)
	if err != nil {
		return api.PlanCheck{}, err
	}
	members, err := p.members(ctx, in, pl, looking{checked: true})
	if err != nil {
		return api.PlanCheck{}, err
	}
	out := api.PlanCheck{Plan: in.Name, Revision: in.Revision, Kind: string(in.Kind), Direction: string(in.Direction), Machines: []api.PlanMachine{}, Steps: []api.PlanStep{}, Findings: []api.Finding{}}
	going := 0
	for _, m := range members {
		shown := apiMember(m, outcome{}, "")
		shown.RPOSeconds, shown.RTOSeconds = m.RPO, m.RTO
		out.Machines = append(out.Machines, shown)
		switch m.Fate {
		case memberGo:
			going++
		case memberFail:
			out.Findings = append(out.Findings, found(holdfast.SeverityCritical, m.Item+": "+m.Reason, m.NextStep))
		}
		for _, f := range m.findings {
			if f.Severity != string(holdfast.SeverityCritical) || m.Fate != memberFail {
				f.Summary = m.Item + ": " + f.Summary
				out.Findings = append(out.Findings, f)
			}
		}
		if m.RPO != nil && (out.RPOSeconds == nil || *m.RPO > *out.RPOSeconds) {
			out.RPOSeconds = m.RPO
		}
	}
	if going == 0 {
		out.Findings = append(out.Findings, found(holdfast.SeverityCritical, "no machine of the plan can take part", "See the reason beside each"))
	}
	for _, s := range pl.Steps(in.Kind, in.Direction) {
		shown := apiStep(s, job.TaskRecord{})
		out.Steps = append(out.Steps, shown)
		if s.Action != nil {
			out.NeedsPerson = out.NeedsPerson || s.Action.Manual != nil
			for _, err := range p.checkAction(ctx, s.Action) {
				out.Findings = append(out.Findings, found(holdfast.SeverityCritical, s.Title+": "+err.Error(), "Put that right before the run: "+runHint(*s.Action, in.Kind)))
			}
		}
	}
	out.Findings = append(out.Findings, p.clashes(ctx, in, pl, members)...)
	out.RTOSeconds = expected(pl, in, members)
	out.OK = true
	for _, f := range out.Findings {
		out.OK = out.OK && f.Severity != string(holdfast.SeverityCritical)
	}
	return out, nil
}

func runHint(a plan.Action, k plan.Kind) string {
	if a.Stops(k) {
		return "it would stop there"
	}
	return "it would go on without this action"
}

func found(s holdfast.Severity, summary, advice string) api.Finding {
	return api.Finding{Severity: string(s), Summary: summary, Advice: advice}
}

// expected adds up, stage by stage, the slowest machine of each; nil if one is not
// known.
func expected(pl *plan.Plan, in runInput, members []member) *float64 {
	if !in.Kind.Moves() && in.Kind != plan.Test {
		return nil
	}
	total := 0.0
	for _, stage := range pl.Stages() {
		slowest := 0.0
		for _, g := range stage {
			for _, m := range members {
				if m.Group != g.Name || m.Fate != memberGo {
					continue
				}
				if m.RTO == nil {
					return nil
				}
				slowest = max(slowest, *m.RTO)
			}
		}
		total += slowest
	}
	if total == 0 {
		return nil // nobody takes part
	}
	return &total
}

// checkAction does what of an action does no harm.
func (p *Planner) checkAction(ctx context.Context, a *plan.Action) []error {
	var wrong []error
	add := func(err error) {
		if err != nil {
			wrong = append(wrong, err)
		}
	}
	switch {
	case a.Script != nil:
		add(p.checkScript(ctx, a.Script))
	case a.Webhook != nil:
		add(reach(ctx, a.Webhook.URL))
		_, err := p.opts.Host.Read(secretsOf(a.Webhook.Secrets))
		add(err)
	case a.Guest != nil || a.Wait != nil && a.Wait.Agent != "":
		if p.opts.Guests == nil {
			add(errors.New("this server reaches no guest agents"))
		}
	}
	return wrong
}

func (p *Planner) checkScript(ctx context.Context, s *plan.Script) error {
	if s.Site == "" {
		return p.opts.Host.Check(p.call(s))
	}
	if p.opts.Remote == nil {
		return errors.New("this server runs no scripts at sites")
	}
	return p.opts.Remote.CheckScript(ctx, s.Site, p.call(s))
}

// reach connects to the host of a URL and asks nothing.
func reach(ctx context.Context, text string) error {
	u, err := url.Parse(text)
	if err != nil {
		return err
	}
	port := orElse(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return fmt.Errorf("%s is not reached: %w", u.Host, err)
	}
	return conn.Close()
}
