package cli

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

// maxPlan is how large a plan's text may be, in bytes; the server wants no more.
const maxPlan = 1 << 20

// plans are the commands of recovery plans.
func (a *app) plans() *cobra.Command {
	return group("plan", "Recovery plans: machines in order, with what is to be done between them",
		a.planApply(), a.planDiff(), a.planList(), a.planShow(), a.planHistory(), a.planRemove(), a.planCheck(), a.planRun(), a.planDrill(), a.planResult())
}

// readPlan reads a plan's text from a file, or from Stdin for "-".
func (a *app) readPlan(name string) (string, error) {
	var r io.Reader = a.Stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return "", &usageError{message: err.Error(), hint: "Name the file with the plan, or - to read it from standard input"}
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, maxPlan+1))
	if err != nil {
		return "", fmt.Errorf("read plan: %w", err)
	}
	if len(b) > maxPlan {
		return "", usagef("%s has more than %d bytes: that is no plan", name, maxPlan)
	}
	return string(b), nil
}

func (a *app) planApply() *cobra.Command {
	var yes bool
	revision := int64(-1)
	cmd := &cobra.Command{
		Use: "apply FILE", Short: "Make a text the plan that it names", Args: cobra.ExactArgs(1),
		Long: `Make a text the plan that it names: as a whole, or not at all. It shows first how the two differ.
If somebody else changes the plan meanwhile, nothing is done. With --if-revision nothing is done
either if the plan has another revision than the one from which the text was made.`,
		Example: "  holdfast plan apply shop.yaml\n  holdfast plan apply shop.yaml --if-revision 3 --yes",
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := a.readPlan(args[0])
			if err != nil {
				return err
			}
			req := api.ApplyPlan{Text: text}
			if revision >= 0 {
				req.IfRevision = &revision
			}
			return a.with(func(c *api.Client) error {
				diff, err := c.DiffPlan(cmd.Context(), req)
				if err != nil {
					return err
				}
				if !a.json {
					a.printChanges(diff, false)
				}
				if !diff.Created && len(diff.Changes) > 0 {
					if err := a.confirm(yes, fmt.Sprintf("Change plan %s?", plain(diff.Plan))); err != nil {
						return err
					}
				}
				req.IfRevision = &diff.From
				out, err := c.ApplyPlan(cmd.Context(), req)
				if err != nil {
					return err
				}
				if a.json {
					printJSON(a.Stdout, out)
				} else if out.Applied {
					fmt.Fprintf(a.Stdout, "Plan %s has revision %d. Look what it would do: holdfast plan check %s\n", plain(out.Plan), out.Revision, plain(out.Plan))
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().Int64Var(&revision, "if-revision", -1, "refuse if the plan has another revision now; 0: if there is one")
	return cmd
}

func (a *app) planDiff() *cobra.Command {
	return &cobra.Command{
		Use: "diff FILE", Short: "How a text differs from the plan that it names", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := a.readPlan(args[0])
			if err != nil {
				return err
			}
			return a.with(func(c *api.Client) error {
				diff, err := c.DiffPlan(cmd.Context(), api.ApplyPlan{Text: text})
				if err != nil {
					return err
				}
				if a.json {
					printJSON(a.Stdout, diff)
					return nil
				}
				a.printChanges(diff, true)
				return nil
			})
		},
	}
}

// printChanges says how a text differs from a plan.
func (a *app) printChanges(d api.PlanChanges, always bool) {
	for _, w := range d.Warnings {
		fmt.Fprintf(a.Stderr, "%s %s\n", a.err.yellow("warning:"), plain(w))
	}
	switch {
	case d.Created:
		fmt.Fprintf(a.Stdout, "There is no plan %s yet.\n", plain(d.Plan))
		if !always {
			return
		}
	case len(d.Changes) == 0:
		fmt.Fprintf(a.Stdout, "Plan %s, revision %d, says the same.\n", plain(d.Plan), d.From)
	default:
		fmt.Fprintf(a.Stdout, "Plan %s, revision %d, would change:\n", plain(d.Plan), d.From)
	}
	for _, c := range d.Changes {
		fmt.Fprintf(a.Stdout, "  %s\n", plain(c))
	}
}

func (a *app) planList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "All recovery plans, and the items in none", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(func(c *api.Client) error {
				list, err := c.Plans(cmd.Context())
				if err != nil {
					return err
				}
				if a.json {
					printJSON(a.Stdout, list)
					return nil
				}
				if len(list.Plans) == 0 {
					fmt.Fprintln(a.Stdout, "There is no plan yet. Write one (docs/plans.md) and give it with: holdfast plan apply FILE")
				} else {
					a.printPlans(list.Plans)
				}
				if len(list.Unplanned) > 0 {
					fmt.Fprintf(a.Stdout, "\nIn no plan: %s\n", plain(strings.Join(list.Unplanned, ", ")))
				}
				return nil
			})
		},
	}
}

func (a *app) printPlans(plans []api.Plan) {
	t := table{header: []string{"PLAN", ">REVISION", ">GROUPS", ">MACHINES", "LAST TEST", "LAST FAILOVER", "NOW", "FINDINGS"}}
	for _, p := range plans {
		now := "-"
		if p.CurrentJob != "" {
			now = "runs: " + p.CurrentJob
		}
		t.add(p.Name, fmt.Sprint(p.Revision), fmt.Sprint(len(p.Groups)), fmt.Sprint(p.Machines), a.lastRun(p, api.RunTest), a.lastRun(p, api.RunPlanned, api.RunUnplanned), now, count(len(p.Findings), "finding", "findings"))
	}
	t.print(a.Stdout, a.out)
}

// lastRun says how the last run of some kinds went, and when.
func (a *app) lastRun(p api.Plan, kinds ...string) string {
	var last *api.PlanRunSummary
	for i, r := range p.Runs {
		for _, k := range kinds {
			if r.Kind == k && (last == nil || r.EndedAt.After(last.EndedAt)) {
				last = &p.Runs[i]
			}
		}
	}
	if last == nil {
		return "never"
	}
	return last.Outcome + " " + a.ago(last.EndedAt)
}

func (a *app) planShow() *cobra.Command {
	var text bool
	cmd := &cobra.Command{
		Use: "show PLAN", Short: "One plan: its groups in order, its last runs", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(func(c *api.Client) error {
				p, err := c.Plan(cmd.Context(), args[0])
				switch {
				case err != nil:
					return err
				case a.json:
					printJSON(a.Stdout, p)
				case text:
					fmt.Fprint(a.Stdout, p.Text) // byte for byte: it is to be given back
				default:
					a.printPlan(p)
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&text, "text", false, "print the text as it was applied, and nothing else")
	return cmd
}

func (a *app) printPlan(p api.Plan) {
	fmt.Fprintf(a.Stdout, "%s, revision %d\n", a.out.bold(plain(p.Name)), p.Revision)
	applied := a.ago(p.AppliedAt)
	if p.AppliedBy != "" {
		applied += " by " + p.AppliedBy
	}
	drills := ""
	if d := p.Drill; d != nil {
		drills = "every " + span(d.EverySeconds) + ", next " + moment(d.NextAt)
	}
	fields(a.Stdout, a.out, "For", plain(p.Description), "Applied", plain(applied), "Machines", fmt.Sprint(p.Machines), "Drills", drills, "Runs now", p.CurrentJob)
	fmt.Fprintln(a.Stdout)
	t := table{header: []string{">STAGE", "GROUP", "MACHINES", "ACTIONS"}}
	for _, g := range p.Groups {
		t.add(fmt.Sprint(g.Stage), g.Name, orElse(strings.Join(g.Machines, ", "), "-"), orElse(strings.Join(g.Actions, "; "), "-"))
	}
	t.print(a.Stdout, a.out)
	if len(p.Runs) > 0 {
		fmt.Fprintln(a.Stdout)
		t := table{header: []string{"LAST RUN", "OUTCOME", "WHEN", ">TOOK", ">REVISION", "JOB"}}
		for _, r := range p.Runs {
			t.add(words(r.Kind), r.Outcome, a.ago(r.EndedAt), span(r.EndedAt.Sub(r.StartedAt).Seconds()), fmt.Sprint(r.Revision), r.Job)
		}
		t.colour = func(row, column int, text string) string {
			if column == 1 {
				return a.out.grade(p.Runs[row].Outcome, text)
			}
			return text
		}
		t.print(a.Stdout, a.out)
	}
	a.printFindings(a.Stdout, p.Findings)
}

func (a *app) planHistory() *cobra.Command {
	var revision int64
	cmd := &cobra.Command{
		Use: "history PLAN", Short: "The revisions of a plan's text", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(func(c *api.Client) error {
				texts, err := c.PlanTexts(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if revision != 0 {
					for _, t := range texts.Texts {
						if t.Revision == revision {
							fmt.Fprint(a.Stdout, t.Text)
							return nil
						}
					}
					return &api.Problem{Code: api.CodeNotFound, Detail: fmt.Sprintf("plan %s has no revision %d", args[0], revision), Hint: "See holdfast plan history " + args[0]}
				}
				if a.json {
					printJSON(a.Stdout, texts)
					return nil
				}
				t := table{header: []string{">REVISION", "APPLIED", ">SIZE"}}
				for _, x := range texts.Texts {
					t.add(fmt.Sprint(x.Revision), a.ago(x.AppliedAt), size(int64(len(x.Text))))
				}
				t.print(a.Stdout, a.out)
				return nil
			})
		},
	}
	cmd.Flags().Int64Var(&revision, "revision", 0, "print the text of this revision")
	return cmd
}

func (a *app) planRemove() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "remove PLAN", Short: "Remove a plan; its machines and their protection stay as they are", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(func(c *api.Client) error {
				p, err := c.Plan(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if err := a.confirm(yes, fmt.Sprintf("Remove plan %s with all its revisions?", plain(p.Name))); err != nil {
					return err
				}
				if err := c.RemovePlan(cmd.Context(), p.ID); err != nil {
					return err
				}
				if !a.json {
					fmt.Fprintf(a.Stdout, "Plan %s is removed.\n", plain(p.Name))
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}
