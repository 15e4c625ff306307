package cli

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

func (a *app) itemPause() *cobra.Command {
	var (
		o    operating
		wait time.Duration
	)
	cmd := &cobra.Command{
		Use: "pause ITEM", Short: "Leave a machine alone for a time, so that its disks can be resized, backed up or snapshotted", Args: cobra.ExactArgs(1),
		Long: `Take replication out of a running machine for a time. While a machine is replicated, QEMU refuses
to resize its disks and to run backups and snapshots of others on them. When the command ends,
nothing of Holdfast is in the machine. Replication goes on by itself when the time is over, also
without the server, or with holdfast item resume: then source and vault are compared, and what
differs is sent. Recovery points from before stay usable; until then there are no new ones.`,
		Example: "  holdfast item pause web1 --for 20m && virsh blockresize web1 vda 40G && holdfast item resume web1",
		RunE: func(cmd *cobra.Command, args []string) error {
			if wait < time.Minute || wait > 7*24*time.Hour {
				return usagef("--for %s: want 1m to 168h", wait)
			}
			return a.operate(cmd, args[0], o, operation{name: "pause", path: "pause", body: api.Pause{Duration: int64(wait / time.Second)}})
		},
	}
	cmd.Flags().DurationVar(&wait, "for", time.Hour, "for how long")
	o.waiting.flags(cmd.Flags())
	return cmd
}

func (a *app) itemResume() *cobra.Command {
	var o operating
	cmd := &cobra.Command{
		Use: "resume ITEM", Short: "End a pause", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.operate(cmd, args[0], o, operation{name: "resume", path: "resume", body: api.Resume{}})
		},
	}
	o.waiting.flags(cmd.Flags())
	return cmd
}
