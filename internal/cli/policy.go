package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/holdfast-dr/holdfast/api"
)

// longSpan is a flag for time spans that may be long: 90s, 36h, 7d, 4w, 1y.
type longSpan time.Duration

// String implements pflag.Value.
func (d *longSpan) String() string {
	if *d == 0 {
		return ""
	}
	return time.Duration(*d).String()
}

// Type implements pflag.Value.
func (*longSpan) Type() string { return "duration" }

// Set implements pflag.Value.
func (d *longSpan) Set(text string) error {
	for unit, hours := range map[string]int64{"d": 24, "w": 7 * 24, "y": 365 * 24} {
		if n, err := strconv.ParseInt(strings.TrimSuffix(text, unit), 10, 16); err == nil && strings.HasSuffix(text, unit) && n >= 0 && n*hours <= 100*365*24 {
			*d = longSpan(time.Duration(n*hours) * time.Hour)
			return nil
		}
	}
	v, err := time.ParseDuration(text)
	if err != nil || v < 0 || v%time.Second != 0 {
		return fmt.Errorf("want a time span in whole seconds, like 90s, 36h, 7d, 4w or 1y")
	}
	*d = longSpan(v)
	return nil
}

func (d longSpan) seconds() int64 { return int64(time.Duration(d) / time.Second) }

// policyOptions are the flags of a policy.
type policyOptions struct {
	rpo, pointInterval, appPoints, historyFor longSpan
	keep                                      string
}

func (o *policyOptions) flags(fs *pflag.FlagSet) {
	fs.Var(&o.rpo, "rpo-threshold", "an RPO above this is a warning, like 30s")
	fs.Var(&o.pointInterval, "point-interval", "how often a named point is marked, like 5m")
	fs.Var(&o.appPoints, "app-points", "how often an app-consistent point is made, through the guest agent, like 1h; 0s for never")
	fs.Var(&o.historyFor, "history", "for how long any moment can be recovered, like 72h")
	fs.StringVar(&o.keep, "keep", "", "what is kept beyond that: one point for each EVERY until it is as old as UNTIL, as EVERY:UNTIL, like 1h:7d,1d:30d,1w:1y; none for nothing")
}

// into sets what was given.
func (o *policyOptions) into(fs *pflag.FlagSet, p *api.Policy) error {
	for name, f := range map[string]struct {
		from longSpan
		to   *int64
	}{
		"rpo-threshold": {o.rpo, &p.RPOThreshold}, "point-interval": {o.pointInterval, &p.PointInterval},
		"app-points": {o.appPoints, &p.AppPointInterval}, "history": {o.historyFor, &p.HistoryWindow},
	} {
		if fs.Changed(name) {
			*f.to = f.from.seconds()
		}
	}
	if !fs.Changed("keep") {
		return nil
	}
	p.Tiers = nil
	for text := range strings.SplitSeq(o.keep, ",") {
		if o.keep == "none" {
			break
		}
		var every, until longSpan
		left, right, ok := strings.Cut(text, ":")
		if !ok || every.Set(left) != nil || until.Set(right) != nil {
			return usagef("--keep %s: want EVERY:UNTIL, like 1h:7d,1d:30d, or none", o.keep)
		}
		p.Tiers = append(p.Tiers, api.Tier{Every: every.seconds(), Until: until.seconds()})
	}
	return nil
}

// keptText says what a policy keeps.
func keptText(p api.Policy) string {
	var b strings.Builder
	if p.HistoryWindow > 0 {
		fmt.Fprintf(&b, "any moment of %s", span(float64(p.HistoryWindow)))
	}
	for _, t := range p.Tiers {
		fmt.Fprintf(&b, "; one point each %s until %s", span(float64(t.Every)), span(float64(t.Until)))
	}
	return b.String()
}

func (a *app) itemPolicy() *cobra.Command {
	var o policyOptions
	cmd := &cobra.Command{
		Use: "policy ITEM", Short: "Show or change how an item is replicated, and what is kept of its past", Args: cobra.ExactArgs(1),
		Long: `Show or change how an item is replicated, and what is kept of its past. Without flags it is shown; what
is not given stays as it is. It is in force at once; what is no longer kept is removed within the hour.

The newest 24 hours, or what --history says, can be recovered at any moment. With --keep, one recovery
point remains for each stretch of time before that, an app-consistent one if there is one.`,
		Example: "  holdfast item policy web1 --history 48h --keep 1h:7d,1d:30d,1w:1y",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(func(c *api.Client) error {
				it, err := c.Item(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if p := it.Policy; cmd.Flags().NFlag() > 0 {
					if err := o.into(cmd.Flags(), &p); err != nil {
						return err
					}
					if it, err = c.ChangePolicy(cmd.Context(), args[0], api.ChangePolicy{Policy: p, IfVersion: it.Version}); err != nil {
						return err
					}
				}
				if a.json {
					printJSON(a.Stdout, it.Policy)
					return nil
				}
				p := it.Policy
				app := "never"
				if p.AppPointInterval > 0 {
					app = "every " + span(float64(p.AppPointInterval))
				}
				fmt.Fprintf(a.Stdout, "%s\n", a.out.bold(plain(it.Name)))
				fields(a.Stdout, a.out, "Kept", keptText(p), "Points", "every "+span(float64(p.PointInterval)), "App-consistent", app, "RPO warning", "above "+span(float64(p.RPOThreshold)))
				return nil
			})
		},
	}
	o.flags(cmd.Flags())
	return cmd
}

func (a *app) itemHold() *cobra.Command {
	var req api.HoldItem
	cmd := &cobra.Command{
		Use: "hold ITEM --reason TEXT", Short: "Hold an item's history: nothing of it is removed until the hold is released", Args: cobra.ExactArgs(1),
		Long: `Hold an item's history, for a court or an auditor: neither the policy nor any operation removes anything
of it until the hold is released. It needs an admin token. The vault grows meanwhile.`,
		Example: "  holdfast item hold web1 --reason \"case 4711\"\n  holdfast item hold web1 --release",
		RunE: func(cmd *cobra.Command, args []string) error {
			if req.Release == (req.Reason != "") {
				return usagef("item hold needs either --reason or --release")
			}
			return a.with(func(c *api.Client) error {
				it, err := c.HoldItem(cmd.Context(), args[0], req)
				if err != nil {
					return err
				}
				if a.json {
					printJSON(a.Stdout, it)
					return nil
				}
				if h := it.Stream.Hold; h != nil {
					fmt.Fprintf(a.Stdout, "The history of %s is held: %s. Nothing of it is removed until holdfast item hold %s --release.\n", plain(it.Name), plain(h.Reason), plain(it.Name))
				} else {
					fmt.Fprintf(a.Stdout, "The history of %s is left to its policy.\n", plain(it.Name))
				}
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&req.Reason, "reason", "", "why, in words that an auditor understands")
	cmd.Flags().BoolVar(&req.Release, "release", false, "release the hold")
	return cmd
}
