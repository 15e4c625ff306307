package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/holdfast-dr/holdfast/api"
)

// runOptions are the flags that say which run of a plan.
type runOptions struct {
	kind, direction, option, at, note                       string
	perMachine, shutdownSource, discardWrites, deletePoints bool
	waiting
}

func (o *runOptions) flags(fs *pflag.FlagSet) {
	fs.StringVar(&o.kind, "as", api.RunTest, "test, planned, unplanned, failback, reprotect, commit or clean-up")
	fs.StringVar(&o.direction, "direction", "", "out (to the recovery sites) or home; needed if the plan's machines are on both sides")
	fs.StringVar(&o.option, "option", "", "latest, latest_processed, latest_app, latest_multi_vm or latest_multi_vm_app")
	fs.StringVar(&o.at, "time", "", "for each machine the newest moment at or before a time, or so long ago")
	fs.BoolVar(&o.perMachine, "per-machine", false, "where a replication group has no common point, take each machine's own")
	fs.BoolVar(&o.shutdownSource, "shutdown-source", false, "with unplanned: try to shut the sources down first")
	fs.BoolVar(&o.discardWrites, "discard-writes", false, "with reprotect and commit: do not keep what machines that were left behind wrote and the vault has not")
	fs.BoolVar(&o.deletePoints, "delete-points", false, "with commit: also delete the recovery points")
	fs.StringVar(&o.note, "note", "", "why, or what the tester has to say; kept with the run")
}

// request returns what the flags ask for.
func (o *runOptions) request(a *app) (api.RunPlan, error) {
	r := api.RunPlan{Kind: strings.ReplaceAll(o.kind, "-", "_"), Option: strings.ReplaceAll(o.option, "-", "_"), PerMachine: o.perMachine,
		ShutdownSource: o.shutdownSource, DiscardWrites: o.discardWrites, DeletePoints: o.deletePoints, Note: o.note}
	switch o.direction {
	case "":
	case "out", api.ToRecovery:
		r.Direction = api.ToRecovery
	case "home", api.ToPrimary:
		r.Direction = api.ToPrimary
	default:
		return r, usagef("--direction %s is not known: want out or home", o.direction)
	}
	switch r.Kind {
	case "failback":
		if r.Direction == api.ToRecovery {
			return r, usagef("a failback goes home")
		}
		r.Kind, r.Direction = api.RunPlanned, api.ToPrimary
	case "failover":
		return r, usagef("say which failover: --as planned loses nothing, --as unplanned waits for nobody")
	case api.RunTest, api.RunPlanned, api.RunUnplanned, api.RunReprotect, api.RunCommit, api.RunCleanUp:
	default:
		return r, usagef("--as %s is not known: want test, planned, unplanned, failback, reprotect, commit or clean-up", o.kind)
	}
	if o.at != "" {
		if o.option != "" {
			return r, usagef("--option and --time exclude each other")
		}
		at, err := parseMoment(o.at, a.Now())
		if err != nil {
			return r, err
		}
		r.Option, r.Time = api.OptionTime, at
	}
	return r, nil
}

func (a *app) planCheck() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use: "check PLAN", Short: "What a run would do, from which recovery points, and what stands in its way", Args: cobra.ExactArgs(1),
		Long: `What a run would do, from which recovery points, and what stands in its way. It reaches sites, hosts and
agents, looks for scripts and secrets, and changes nothing. The exit code is 1 if the run would not
succeed.`,
		Example: "  holdfast plan check shop\n  holdfast plan check shop --as unplanned --time 10m",
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := o.request(a)
			if err != nil {
				return err
			}
			return a.with(func(c *api.Client) error {
				out, err := c.CheckPlan(cmd.Context(), args[0], req)
				if err != nil {
					return err
				}
				if a.json {
					printJSON(a.Stdout, out)
				} else {
					a.printPlanCheck(out)
				}
				if !out.OK {
					return errSaid
				}
				return nil
			})
		},
	}
	o.flags(cmd.Flags())
	return cmd
}

func (a *app) printPlanCheck(c api.PlanCheck) {
	fmt.Fprintf(a.Stdout, "%s\n", a.out.bold(plain(fmt.Sprintf("Check of plan %s, revision %d, as %s %s. Nothing is done.", c.Plan, c.Revision, words(c.Kind), way(c.Direction)))))
	person := ""
	if c.NeedsPerson {
		person = "a manual step waits for an answer"
	}
	fields(a.Stdout, a.out, "RPO", optionalSpan(c.RPOSeconds, ""), "RTO", optionalSpan(c.RTOSeconds, "not known: none of its machines was brought up before"), "Person", person)
	fmt.Fprintln(a.Stdout)
	a.printMembers(c.Machines)
	fmt.Fprintf(a.Stdout, "\n%s\n", a.out.bold("Steps"))
	for i, s := range c.Steps {
		fmt.Fprintf(a.Stdout, "  %d. %s\n", i+1, plain(s.Title))
	}
	a.printFindings(a.Stdout, c.Findings)
	verdict := a.out.green("Nothing stands in its way.")
	if !c.OK {
		verdict = a.out.red("It would not succeed.")
	}
	fmt.Fprintf(a.Stdout, "\n%s\n", verdict)
}

// way says a direction in words.
func way(direction string) string {
	if direction == api.ToPrimary {
		return "home"
	}
	return "to the recovery site"
}

// printMembers prints the machines of a run as a table.
func (a *app) printMembers(all []api.PlanMachine) {
	if len(all) == 0 {
		return
	}
	t := table{header: []string{"MACHINE", "GROUP", "STATE", "AT", ">RPO", ">RTO", "FROM"}}
	for _, m := range all {
		from := "-"
		switch {
		case m.Reason != "":
			from = m.Reason
		case m.Point != nil:
			from = a.pointText(*m.Point)
		case m.State == "waiting":
			from = "the newest when its turn comes"
		}
		at := orElse(m.Site, "-")
		if m.Machine != "" && m.Machine != m.Item {
			at = m.Machine + " at " + at
		}
		t.add(m.Item, m.Group, m.State, at, optionalSpan(m.RPOSeconds, "-"), optionalSpan(m.RTOSeconds, "-"), from)
	}
	t.colour = func(row, column int, text string) string {
		if column == 2 {
			return a.out.grade(all[row].State, text)
		}
		return text
	}
	t.print(a.Stdout, a.out)
}

func (a *app) planRun() *cobra.Command {
	var o runOptions
	var yes bool
	cmd := &cobra.Command{
		Use: "run PLAN", Short: "Run a plan: as a test, a failover, a failback, …", Args: cobra.ExactArgs(1),
		Long: `Run a plan:

  --as test        run copies of its machines apart from the world (the default)
  --as clean-up    remove them again
  --as planned     lose nothing: shut machines down in order, bring the rest over, compare;
                   the first failure stops the run, which asks and can go on where it stopped
  --as unplanned   a site is lost: what fails stops nothing else
  --as failback    a planned run home
  --as reprotect   replicate the other way round
  --as commit      make it final

Machines that are there already are left alone. What it asks, holdfast job answer answers.`,
		Example: "  holdfast plan run shop --as test\n  holdfast plan run shop --as unplanned --time 2026-11-23T11:58:30Z",
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := o.request(a)
			if err != nil {
				return err
			}
			return a.with(func(c *api.Client) error {
				p, err := c.Plan(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				req.IfRevision = p.Revision
				if slices.Contains([]string{api.RunPlanned, api.RunUnplanned, api.RunCommit}, req.Kind) {
					question := fmt.Sprintf("Run plan %s with %s as %s?", p.Name, count(p.Machines, "machine", "machines"), o.kind)
					if err := a.confirm(yes, plain(question)); err != nil {
						return err
					}
				}
				job, err := c.RunPlan(cmd.Context(), p.ID, req)
				if err != nil {
					return err
				}
				err = a.finish(cmd, c, job, o.waiting)
				if !a.json && !o.noWait && o.wait {
					if run, got := c.PlanRun(cmd.Context(), job.ID); got == nil {
						fmt.Fprintln(a.Stdout)
						a.printMembers(run.Machines)
					}
				}
				return err
			})
		},
	}
	o.flags(cmd.Flags())
	o.waiting.flags(cmd.Flags())
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func (a *app) planResult() *cobra.Command {
	return &cobra.Command{
		Use: "result JOB", Short: "A run of a plan in full: machines, steps, what they said", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(func(c *api.Client) error {
				run, err := c.PlanRun(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if a.json {
					printJSON(a.Stdout, run)
					return nil
				}
				a.printRun(run)
				return nil
			})
		},
	}
}

func (a *app) printRun(r api.PlanRun) {
	state := orElse(r.Outcome, words(r.State))
	fmt.Fprintf(a.Stdout, "%s: plan %s, revision %d, as %s %s: %s\n", a.out.bold(plain(r.Job)), plain(r.Plan), r.Revision, words(r.Kind), way(r.Direction), a.out.grade(state, state))
	took := ""
	if !r.EndedAt.IsZero() {
		took = span(r.EndedAt.Sub(r.StartedAt).Seconds())
	}
	asked := a.ago(r.RequestedAt)
	if r.RequestedBy != "" {
		asked += " by " + r.RequestedBy
	}
	fields(a.Stdout, a.out, "Asked for", plain(asked), "Took", took, "Note", plain(r.Note), "Waits for", plain(r.Waiting))
	fmt.Fprintln(a.Stdout)
	a.printMembers(r.Machines)
	fmt.Fprintln(a.Stdout)
	t := table{header: []string{"STEP", "STATE", ">TOOK", "SAID"}}
	for _, s := range r.Steps {
		took := "-"
		if !s.StartedAt.IsZero() && !s.FinishedAt.IsZero() {
			took = span(s.FinishedAt.Sub(s.StartedAt).Seconds())
		}
		said := orElse(s.Error, s.Output)
		if s.Answer != "" {
			said = joinComma(said, "answered "+s.Answer)
			if s.AnsweredBy != "" {
				said += " by " + s.AnsweredBy
			}
			if s.Note != "" {
				said += ": " + s.Note
			}
		}
		first, _, _ := strings.Cut(said, "\n")
		t.add(s.Title, words(s.State), took, first)
	}
	t.colour = func(row, column int, text string) string {
		if column == 1 {
			return a.out.grade(r.Steps[row].State, text)
		}
		return text
	}
	t.print(a.Stdout, a.out)
	for _, s := range r.Steps {
		if s.Waiting != "" {
			fmt.Fprintf(a.Stdout, "\n%s %s\n", a.out.yellow("It asks:"), plain(s.Waiting))
			fmt.Fprintf(a.Stdout, "Answer with: holdfast job answer %s %s\n", r.Job, strings.Join(s.Answers, "|"))
		}
	}
	for _, w := range r.Warnings {
		fmt.Fprintf(a.Stdout, "%s %s\n", a.out.yellow("warning:"), plain(w))
	}
	if r.Error != nil {
		fmt.Fprintf(a.Stdout, "%s %s\n", a.out.red("error:"), plain(joinText(r.Error.Message, r.Error.Cause)))
	}
}

func (a *app) jobAnswer() *cobra.Command {
	var note string
	cmd := &cobra.Command{
		Use: "answer JOB done|fail|retry|skip", Short: "Answer what a job asks", Args: cobra.ExactArgs(2),
		Long: `Answer what a job asks: done or fail for a step that a person does; retry, skip or fail where something
has failed. See what it asks with holdfast plan result.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(func(c *api.Client) error {
				job, err := c.AnswerJob(cmd.Context(), args[0], api.Answer{Answer: args[1], Note: note})
				if err != nil {
					return err
				}
				if a.json {
					printJSON(a.Stdout, job)
					return nil
				}
				fmt.Fprintf(a.Stdout, "Answered. Follow it with: holdfast job watch %s\n", job.ID)
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&note, "note", "", "kept with the step")
	return cmd
}
