package cli

import (
	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

func (a *app) tokenList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "All tokens, without their secrets", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(func(c *api.Client) error {
				list, err := c.Tokens(cmd.Context())
				if err != nil {
					return err
				}
				if a.json {
					printJSON(a.Stdout, list)
					return nil
				}
				t := table{header: []string{"NAME", "ROLE", "MADE", "ENDS", "ID"}}
				for _, k := range list.Tokens {
					ends := "never"
					if !k.ExpiresAt.IsZero() {
						ends = a.ago(k.ExpiresAt)
					}
					t.add(k.Name, k.Role, a.ago(k.CreatedAt), ends, k.ID)
				}
				t.print(a.Stdout, a.out)
				return nil
			})
		},
	}
}
