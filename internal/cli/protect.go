package cli

import (
	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

type protectOptions struct {
	site, to, name string
	policy         policyOptions
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
			var policy api.Policy
			if err := o.policy.into(cmd.Flags(), &policy); err != nil {
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
	o.policy.flags(fs)
	o.waiting.flags(fs)
	return cmd
}
