package cli

import (
	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

func (a *app) itemCompare() *cobra.Command {
	var o operating
	cmd := &cobra.Command{
		Use: "compare ITEM", Short: "Compare a running machine's disks with the vault", Args: cobra.ExactArgs(1),
		Long: `Read all disks of a running machine on its host, at 64 MiB/s at most, and compare them with what the
vault has, so that a change that never arrived there is found. The server does it by itself, a little at a
time: all of each machine within a week. Nothing is asked of the machine. What it writes at the very
moment is left to the next time. If anything differs, and still does a minute later, the disk is read by
the machine's own mirror and what differs is sent, and a finding tells what was lost, where, and since when.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.operate(cmd, args[0], o, operation{name: "compare", path: "compare", body: api.CompareItem{}})
		},
	}
	o.waiting.flags(cmd.Flags())
	return cmd
}
