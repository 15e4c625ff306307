package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

func (a *app) tokenRevoke() *cobra.Command {
	return &cobra.Command{
		Use: "revoke TOKEN", Short: "Make a token invalid, by its id or name", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(func(c *api.Client) error {
				if err := c.RevokeToken(cmd.Context(), args[0]); err != nil {
					return err
				}
				if a.json {
					printJSON(a.Stdout, removed{Removed: args[0]})
					return nil
				}
				fmt.Fprintf(a.Stdout, "Token %s is not valid any more.\n", plain(args[0]))
				return nil
			})
		},
	}
}
