package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

// removed is what commands that remove something print with --json.
type removed struct {
	Removed string `json:"removed"`
}

func (a *app) siteRemove() *cobra.Command {
	return &cobra.Command{
		Use: "remove SITE", Short: "Remove a site that no item needs; its machines stay as they are", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(func(c *api.Client) error {
				if err := c.RemoveSite(cmd.Context(), args[0]); err != nil {
					return err
				}
				if a.json {
					printJSON(a.Stdout, removed{Removed: args[0]})
					return nil
				}
				fmt.Fprintf(a.Stdout, "Removed site %s.\n", plain(args[0]))
				return nil
			})
		},
	}
}
