package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

func (a *app) tokenCreate() *cobra.Command {
	var role string
	var ttl time.Duration
	cmd := &cobra.Command{
		Use: "create NAME --role ROLE", Short: "Make a token and show it, this once", Args: cobra.ExactArgs(1),
		Example: "  holdfast token create monitoring --role viewer --ttl 2160h",
		RunE: func(cmd *cobra.Command, args []string) error {
			switch role {
			case api.RoleAdmin, api.RoleOperator, api.RoleViewer:
			case "":
				return usagef("token create needs --role: admin, operator or viewer")
			default:
				return usagef("--role %s is not known: want admin, operator or viewer", role)
			}
			if ttl < 0 || ttl%time.Second != 0 {
				return usagef("--ttl %s is not a number of whole seconds", ttl)
			}
			return a.with(func(c *api.Client) error {
				created, err := c.CreateToken(cmd.Context(), api.CreateToken{Name: args[0], Role: role, TTLSeconds: int64(ttl / time.Second)})
				if err != nil {
					return err
				}
				if a.json {
					printJSON(a.Stdout, created)
					return nil
				}
				fmt.Fprintln(a.Stdout, created.Secret)
				fmt.Fprintf(a.Stderr, "Made token %s (%s). It is shown this once: keep it safe.\n", plain(created.Token.Name), created.Token.Role)
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&role, "role", "", "admin, operator or viewer")
	cmd.Flags().DurationVar(&ttl, "ttl", 0, "how long it is valid, like 720h; for ever if not given")
	return cmd
}
