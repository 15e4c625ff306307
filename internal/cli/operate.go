package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/holdfast-dr/holdfast/api"
)

// operating are the flags that every operation on an item has.
type operating struct {
	yes, dryRun bool
	waiting
}

func (o *operating) flags(fs *pflag.FlagSet) {
	fs.BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	fs.BoolVar(&o.dryRun, "dry-run", false, "say what would be done, and do nothing")
	o.waiting.flags(fs)
}

// operation is one that is asked for of an item.
type operation struct {
	name     string // in the server's words
	path     string // the last part of the route
	body     any
	question func(api.Item) string // nil: nobody is asked
	check    api.CheckOperation
}

// operate asks for an operation, or with --dry-run what it would do.
func (a *app) operate(cmd *cobra.Command, item string, o operating, op operation) error {
	return a.with(func(c *api.Client) error {
		it, err := c.Item(cmd.Context(), item)
		if err != nil {
			return err
		}
		if o.dryRun {
			op.check.Operation = op.name
			return a.dryRun(cmd.Context(), c, it, op.check)
		}
		if !a.json {
			a.warn(cmd.Context(), c, it, op)
		}
		if op.question != nil {
			if err := a.confirm(o.yes, plain(op.question(it))); err != nil {
				return err
			}
		}
		job, err := c.Ask(cmd.Context(), it.ID, op.path, op.body)
		if err != nil {
			return err
		}
		return a.finish(cmd, c, job, o.waiting)
	})
}

// warnWait is for how long an operation waits for what speaks against it.
const warnWait = 5 * time.Second

// warn says what speaks against an operation before it begins: that it was never
// tried, and what it gives up. It holds up nothing: of a server that does not
// answer soon, nothing is said.
func (a *app) warn(ctx context.Context, c *api.Client, it api.Item, op operation) {
	if !slices.Contains(it.Allowed, op.name) {
		return // the server will say so
	}
	say := func(text string) { fmt.Fprintf(a.Stderr, "%s %s\n", a.err.yellow("warning:"), plain(text)) }
	if op.path == "failover" && !tested(it) {
		say("no test failover of " + it.Name + " has ever passed; with time to spare, run holdfast test-failover start " + it.Name + " first")
	}
	if op.question == nil {
		return // it takes nothing away
	}
	switch op.check.Option {
	case api.OptionLatestApp, api.OptionPoint, api.OptionTime:
	default:
		return
	}
	ctx, cancel := context.WithTimeout(ctx, warnWait)
	defer cancel()
	check := op.check
	check.Operation = op.name
	if out, err := c.CheckOperation(ctx, it.ID, check); err == nil && out.Warning != "" {
		say(out.Warning)
	}
}

// dryRun shows what an operation would do. It fails as the operation would if it
// were not allowed.
func (a *app) dryRun(ctx context.Context, c *api.Client, item api.Item, check api.CheckOperation) error {
	out, err := c.CheckOperation(ctx, item.ID, check)
	if err != nil {
		return err
	}
	if a.json {
		printJSON(a.Stdout, out)
	} else {
		a.printCheck(item, out)
	}
	if !out.Allowed {
		return &api.Problem{Status: 409, Code: api.CodeNotAllowed, Detail: words(out.Operation) + " of " + item.Name + " would not begin",
			Cause: out.Reason, Hint: out.NextStep}
	}
	return nil
}

func (a *app) printCheck(item api.Item, c api.OperationCheck) {
	fmt.Fprintf(a.Stdout, "%s\n", a.out.bold(plain("Dry run: "+words(c.Operation)+" of "+item.Name+". Nothing is done.")))
	machine, point := "", ""
	if c.Site != "" {
		machine = c.MachineName + " at " + c.Site
	}
	if c.Point != nil {
		point = a.pointText(*c.Point)
	}
	expected := ""
	if c.ExpectedRTOSeconds != nil {
		expected = span(*c.ExpectedRTOSeconds) + ", the median of " + words(c.Basis)
	}
	fields(a.Stdout, a.out, "Machine", plain(machine), "From", plain(point), "RPO", optionalSpan(c.RPOSeconds, ""), "RTO", plain(expected), "Gives up", plain(c.Warning))
	if len(c.Steps) > 0 {
		fmt.Fprintf(a.Stdout, "\n%s\n", a.out.bold("Steps"))
		for i, s := range c.Steps {
			fmt.Fprintf(a.Stdout, "  %d. %s\n", i+1, plain(s))
		}
	}
	if len(c.Findings) > 0 {
		fmt.Fprintf(a.Stdout, "\n%s\n", a.out.bold("Checks"))
		for _, f := range c.Findings {
			fmt.Fprintf(a.Stdout, "  %s: %s\n", a.out.grade(f.Severity, f.Severity), plain(f.Summary))
			if f.Advice != "" {
				fmt.Fprintf(a.Stdout, "    next: %s\n", plain(f.Advice))
			}
		}
	}
}

// choosing are the flags that choose a recovery point.
type choosing struct {
	option, point, at string
	timeline          uint32
}

func (o *choosing) flags(fs *pflag.FlagSet) {
	fs.StringVar(&o.option, "option", "", "latest, latest_processed or latest_app")
	fs.StringVar(&o.point, "point", "", "a point's id or name, or a position")
	fs.Uint32Var(&o.timeline, "timeline", 0, "choose from this timeline, of holdfast timeline list; the present one if not given")
	fs.StringVar(&o.at, "time", "", "a time, or how long ago")
}

// request returns the choice as a failover asks for it.
func (o *choosing) request(a *app) (api.Failover, error) {
	return (&failoverOptions{choosing: *o}).request(a.Now())
}

func (o *choosing) check(f api.Failover) api.CheckOperation {
	return api.CheckOperation{Option: f.Option, Point: f.Point, Timeline: f.Timeline, Time: f.Time, Name: f.TargetName, Networks: f.Networks, Addressing: f.Addressing}
}

// simple returns the command of an operation that needs nothing but the item.
func (a *app) simple(use, short, long string, op operation) *cobra.Command {
	var o operating
	cmd := &cobra.Command{Use: use + " ITEM", Short: short, Long: short + ".\n\n" + strings.TrimSpace(long), Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.operate(cmd, args[0], o, op) }}
	o.flags(cmd.Flags())
	return cmd
}
