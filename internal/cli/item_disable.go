package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

func (a *app) itemDisable() *cobra.Command {
	var (
		o   operating
		req api.Disable
	)
	cmd := &cobra.Command{
		Use:   "disable ITEM",
		Short: "End the protection of an item; its machine stays as it is",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.operate(cmd, args[0], o, operation{name: "disable", path: "disable", body: req, question: func(i api.Item) string {
				if req.DeleteHistory {
					return fmt.Sprintf("End the protection of %s and delete all its history?", i.Name)
				}
				return fmt.Sprintf("End the protection of %s? Its history stays in the vault.", i.Name)
			}})
		},
	}
	cmd.Flags().BoolVar(&req.DeleteHistory, "delete-history", false, "also delete what the vault keeps of it")
	o.flags(cmd.Flags())
	return cmd
}
