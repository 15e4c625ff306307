package main

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/internal/provider/libvirt"
)

// hookCommand is `holdfast hook`.
func hookCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "hook", Short: "What hosts of machines run so that a guarded machine stays off"}
	cmd.AddCommand(&cobra.Command{
		Use: "libvirt", Short: "Print the hook of libvirt", Args: cobra.NoArgs,
		Long: `Print the hook with which libvirt refuses to start a machine that is guarded, because its item
works at another site. Install it once on each host with libvirt, as root, and restart libvirt:

  mkdir -p /etc/libvirt/hooks/qemu.d
  holdfast hook libvirt > /etc/libvirt/hooks/qemu.d/holdfast
  chmod 755 /etc/libvirt/hooks/qemu.d/holdfast
  systemctl restart libvirtd`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := io.WriteString(cmd.OutOrStdout(), libvirt.Hook)
			return err
		},
	})
	return cmd
}
