package cli

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

type protectOptions struct {
	site, to, name                            string
	rpo, pointInterval, appPoints, historyFor time.Duration
	waiting
}

func (a *app) protect() *cobra.Command {
	var o protectOptions
	cmd := &cobra.Command{
		Use:     "protect MACHINE --site SITE --to SITE",
		Short:   "Protect a machine: replicate it to another site while it runs",
		Long:    "Protect a machine: replicate it to another site while it runs.\n\nThe job ends when the disks were copied for the first time and the first recovery\npoint is there. Cancelling it stops the waiting, not the replication: to stop that,\nuse holdfast item disable.",
		Example: "  holdfast protect web1 --site berlin --to paris --rpo-threshold 30s",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.site == "" || o.to == "" {
				return usagef("protect needs --site, where the machine is, and --to, where it shall be recovered")
			}
			policy, err := o.policy()
			if err != nil {
				return err
			}
			return a.with(func(c *api.Client) error {
				job, err := c.Protect(cmd.Context(), api.Protect{Machine: args[0], Site: o.site, RecoverySite: o.to, Name: o.name, Policy: policy})
				if err != nil {
					return err
				}
				return a.finish(cmd, c, job, o.waiting)
			})
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&o.site, "site", "", "the site that the machine is at")
	fs.StringVar(&o.to, "to", "", "the site that it shall be recovered at")
	fs.StringVar(&o.name, "name", "", "the item's name; the machine's if not given")
	fs.DurationVar(&o.rpo, "rpo-threshold", 0, "an RPO above this is a warning, like 30s; the server's default if not given")
	fs.DurationVar(&o.pointInterval, "point-interval", 0, "how often a named point is marked, like 5m; the server's default if not given")
	fs.DurationVar(&o.appPoints, "app-points", 0, "how often an app-consistent point is made, through the guest agent, like 1h; never if not given")
	fs.DurationVar(&o.historyFor, "history", 0, "for how long any moment can be recovered, like 72h; the server's default if not given")
	o.flags(fs)
	return cmd
}

// policy returns the policy in whole seconds.
func (o *protectOptions) policy() (api.Policy, error) {
	var p api.Policy
	for _, d := range []struct {
		flag string
		from time.Duration
		to   *int64
	}{
		{"--rpo-threshold", o.rpo, &p.RPOThreshold},
		{"--point-interval", o.pointInterval, &p.PointInterval},
		{"--app-points", o.appPoints, &p.AppPointInterval},
		{"--history", o.historyFor, &p.HistoryWindow},
	} {
		if d.from < 0 || d.from%time.Second != 0 {
			return p, usagef("%s %s is not a number of whole seconds", d.flag, d.from)
		}
		*d.to = int64(d.from / time.Second)
	}
	return p, nil
}
