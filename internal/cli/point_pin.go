package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

func (a *app) pointPin() *cobra.Command {
	return a.pinning(false, "pin ITEM POINT", "Keep a recovery point, whatever the policy says",
		`Keep a recovery point until you unpin it: neither its age nor holdfast commit --delete-points removes
it. POINT is an id or a name of holdfast point list, or a position of 16 hexadecimal digits, which
keeps that moment.`)
}

func (a *app) pointUnpin() *cobra.Command {
	return a.pinning(true, "unpin ITEM POINT", "Leave a recovery point to the policy again", "")
}

func (a *app) pinning(unpin bool, use, short, long string) *cobra.Command {
	req := api.PinPoint{Unpin: unpin}
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long, Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(func(c *api.Client) error {
				req.Point = args[1]
				p, err := c.PinPoint(cmd.Context(), args[0], req)
				if err != nil {
					return err
				}
				if a.json {
					printJSON(a.Stdout, p)
					return nil
				}
				what := "kept until it is unpinned"
				if !p.Pinned {
					what = "left to the policy"
				}
				fmt.Fprintf(a.Stdout, "%s is %s.\n", a.pointText(p), what)
				return nil
			})
		},
	}
	cmd.Flags().Uint32Var(&req.Timeline, "timeline", 0, "the timeline of a position; the present one if not given")
	return cmd
}
