package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

type itemDisableOptions struct {
	deleteHistory, yes bool
	waiting
}

func (a *app) itemDisable() *cobra.Command {
	var o itemDisableOptions
	cmd := &cobra.Command{
		Use:   "disable ITEM",
		Short: "End the protection of an item; its machine stays as it is",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(func(c *api.Client) error {
				item, err := c.Item(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				question := fmt.Sprintf("End the protection of %s? Its history stays in the vault.", plain(item.Name))
				if o.deleteHistory {
					question = fmt.Sprintf("End the protection of %s and delete all its history?", plain(item.Name))
				}
				if err := a.confirm(o.yes, question); err != nil {
					return err
				}
				job, err := c.Disable(cmd.Context(), item.ID, api.Disable{DeleteHistory: o.deleteHistory})
				if err != nil {
					return err
				}
				return a.finish(cmd, c, job, o.waiting)
			})
		},
	}
	cmd.Flags().BoolVar(&o.deleteHistory, "delete-history", false, "also delete what the vault keeps of it")
	cmd.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	o.flags(cmd.Flags())
	return cmd
}
