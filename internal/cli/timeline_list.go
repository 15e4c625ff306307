package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

func (a *app) timelineList() *cobra.Command {
	return &cobra.Command{
		Use: "list ITEM", Short: "The timelines of an item's history, with those that were given up", Args: cobra.ExactArgs(1),
		Long: `The timelines of an item's history. A new one begins with each failover. Those that were given up
stay: what a recovered machine wrote before its recovery point was changed with --keep-writes, and
what a machine wrote that ran on, or again, after its item had been failed over. Look into one with
holdfast test-failover start ITEM --timeline N, or go on with it with failover or change-point.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(func(c *api.Client) error {
				timelines, err := c.Timelines(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if a.json {
					printJSON(a.Stdout, timelines)
					return nil
				}
				t := table{header: []string{">TIMELINE", ">FROM", "UNTIL", "", "BEGAN WITH", "NEWEST POINT"}}
				for _, b := range timelines.Timelines {
					t.add(timelineRow(b)...)
				}
				t.print(a.Stdout, a.out)
				return nil
			})
		},
	}
}

func timelineRow(b api.Timeline) []string {
	from, standing, newest := "", "", ""
	if b.Parent != 0 {
		from = fmt.Sprint(b.Parent)
	}
	switch {
	case b.Damaged:
		standing = "damaged"
	case b.Current:
		standing = "current"
	case b.Abandoned:
		standing = "given up"
	default:
		standing = "past"
	}
	if b.Newest != nil {
		if newest = b.Newest.Name; newest == "" {
			newest = b.Newest.ID
		}
	}
	return []string{fmt.Sprint(b.Timeline), from, moment(b.Until), standing, plain(b.Origin), plain(newest)}
}
