package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

// versions is what `holdfast version --json` prints.
type versions struct {
	Client api.ServerVersion  `json:"client"`
	Server *api.ServerVersion `json:"server,omitempty"`
}

func (a *app) version() *cobra.Command {
	var clientOnly bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "What this program is, and the server if one is logged in to",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versions{Client: a.Version}
			v.Client.API = api.Version
			var err error
			if _, cerr := a.connection(); cerr == nil && !clientOnly {
				err = a.with(func(c *api.Client) error {
					server, err := c.ServerVersion(cmd.Context())
					if err == nil {
						v.Server = &server
					}
					return err
				})
			}
			if a.json {
				printJSON(a.Stdout, v)
				return err
			}
			fmt.Fprintf(a.Stdout, "holdfast %s\n", versionText(v.Client))
			if v.Server != nil {
				fmt.Fprintf(a.Stdout, "server   %s\n", versionText(*v.Server))
				if v.Server.API != api.Version {
					fmt.Fprintf(a.Stderr, "%s the server speaks interface %d and this program %d: use the same version of both\n", a.err.yellow("warning:"), v.Server.API, api.Version)
				}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&clientOnly, "client", false, "do not ask the server")
	return cmd
}

func versionText(v api.ServerVersion) string {
	text := plain(v.Version)
	if v.Commit != "" {
		text += " (" + plain(v.Commit) + ")"
	}
	return text
}
