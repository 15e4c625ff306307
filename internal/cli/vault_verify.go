package cli

import (
	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

func (a *app) vaultVerify() *cobra.Command {
	var o waiting
	var stream string
	cmd := &cobra.Command{
		Use: "verify", Short: "Read the vault as a whole and check it", Args: cobra.NoArgs,
		Long: "Read the vault as a whole, recompute all its checksums, and name what is damaged and\nwhich recovery points it touches. The exit code is 1 if anything is.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(func(c *api.Client) error {
				job, err := c.VerifyVault(cmd.Context(), api.VerifyVault{Stream: stream})
				if err != nil {
					return err
				}
				return a.finish(cmd, c, job, o)
			})
		},
	}
	cmd.Flags().StringVar(&stream, "stream", "", "only this stream")
	o.flags(cmd.Flags())
	return cmd
}
