package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

func (a *app) siteList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "All sites", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(func(c *api.Client) error {
				list, err := c.Sites(cmd.Context())
				if err != nil {
					return err
				}
				if a.json {
					printJSON(a.Stdout, list)
					return nil
				}
				if len(list.Sites) == 0 {
					fmt.Fprintln(a.Stdout, "There are no sites yet. Add one: holdfast site add NAME --provider PROVIDER")
					return nil
				}
				t := table{header: []string{"NAME", "PROVIDER", "CAN", ">ITEMS", "REACHABLE", "GATEWAY"}}
				for _, s := range list.Sites {
					reachable := "yes"
					if !s.Reachable {
						reachable = "no: " + s.Problem
					}
					gateway := s.Gateway
					if gateway == "" {
						gateway = "server's"
					}
					t.add(s.Name, s.Provider, siteUse(s), fmt.Sprint(s.Items), reachable, gateway)
				}
				t.colour = func(row, column int, text string) string {
					if column == 4 && !list.Sites[row].Reachable {
						return a.out.red(text)
					}
					return text
				}
				t.print(a.Stdout, a.out)
				return nil
			})
		},
	}
}
