package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/internal/bandwidth"
	"github.com/holdfast-dr/holdfast/internal/gateway"
	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/libvirt"
	"github.com/holdfast-dr/holdfast/internal/provider/qemu"
)

// maxSocketPath is what Linux allows for the path of a unix socket.
const maxSocketPath = 107

// providers returns what opens the sites that this program knows.
func providers() provider.Registry {
	return provider.Registry{"libvirt": libvirt.Open, "qemu": qemu.Open}
}

// openSite opens a site through the registry.
func openSite(ctx context.Context, name string, settings json.RawMessage) (*provider.Site, error) {
	open, ok := providers()[name]
	if !ok {
		return nil, fmt.Errorf("provider %q is not known; known are: libvirt, qemu", name)
	}
	return open(ctx, settings)
}

// siteOpener opens the sites that a gateway's orders name.
type siteOpener struct{}

// OpenSite opens the site.
func (siteOpener) OpenSite(ctx context.Context, ref gateway.SiteRef) (*provider.Site, error) {
	return openSite(ctx, ref.Provider, ref.Settings)
}

// gatewayCommand is `holdfast gateway`.
func gatewayCommand() *cobra.Command {
	var dir string
	var bound time.Duration
	var logLevel string
	var limit []string
	cmd := &cobra.Command{
		Use:   "gateway",
		Short: "Run the gateway beside the machines of a site",
		Long: `Run the gateway on the host whose machines are to be protected: it takes their
writes over NBD, keeps them until the vault has them, and never lets a guest
wait longer than --bound. It carries on while the server is away.

A server starts a gateway on its own host; run this command where the machines
are on another one.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := bandwidth.Parse(limit); err != nil {
				return startError("start gateway", "", err, bandwidthHint)
			}
			return runGateway(cmd.Context(), dir, bound, limit, newLogger(cmd.ErrOrStderr(), logLevel))
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "/var/lib/holdfast/gateway", "state: orders, journals, spools and sockets")
	cmd.Flags().DurationVar(&bound, "bound", 2*time.Second, "for how long a guest's write may wait before the ingest process is killed")
	cmd.Flags().StringArrayVar(&limit, "bandwidth", nil, bandwidthHelp)
	cmd.Flags().StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	cmd.AddCommand(ingestCommand())
	return cmd
}

const (
	bandwidthHelp = "what goes to the vault at most, as [DAYS] [FROM-TO] RATE in local time, like \"mon-fri 08:00-18:00 5MiB/s\"; the first rule that holds counts (may be repeated)"
	bandwidthHint = "Want --bandwidth '[DAYS] [FROM-TO] RATE', like 'mon-fri 08:00-18:00 5MiB/s', 'sat,sun none' or 20MiB/s"
)

func runGateway(ctx context.Context, dir string, bound time.Duration, limit []string, log *slog.Logger) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return err
	}
	sup, err := gateway.NewSupervisor(gateway.SupervisorOptions{
		Dir: dir, Bound: bound, Sites: siteOpener{}, Logger: log, Getenv: os.Getenv,
		Command: func(dir, control string) *exec.Cmd {
			cmd := exec.Command(self, append([]string{"gateway", "ingest", "--dir", dir, "--control", control}, bandwidthArgs(limit)...)...)
			cmd.Stderr = os.Stderr
			return cmd
		},
	})
	if err != nil {
		return err
	}
	l, err := listenUnix(gatewaySocket(dir))
	if err != nil {
		return err
	}
	log.Info("gateway is ready", "control", "unix:"+gatewaySocket(dir), "bound", bound)
	return sup.Run(ctx, l)
}

// bandwidthArgs are the arguments that say the same to another process.
func bandwidthArgs(limit []string) []string {
	var args []string
	for _, rule := range limit {
		args = append(args, "--bandwidth", rule)
	}
	return args
}

// gatewaySocket returns the path of a gateway's control socket.
func gatewaySocket(dir string) string { return filepath.Join(dir, "gateway.sock") }

// listenUnix listens on a socket that only this user may use, in place of one
// that a process which has ended left behind.
func listenUnix(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("socket path %s has %d bytes, the system allows %d: choose a shorter directory", path, len(path), maxSocketPath)
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		return nil, errors.Join(fmt.Errorf("socket %s is in use by another process", path), conn.Close())
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// ingestCommand is `holdfast gateway ingest`, the child of a gateway.
func ingestCommand() *cobra.Command {
	var dir, control string
	var limit []string
	cmd := &cobra.Command{
		Use: "ingest", Hidden: true, Args: cobra.NoArgs,
		Short: "Take writes over NBD (started by the gateway, not by hand)",
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := newLogger(cmd.ErrOrStderr(), "info").With("process", "ingest")
			schedule, err := bandwidth.Parse(limit)
			if err != nil {
				return err
			}
			l, err := listenUnix(control)
			if err != nil {
				return err
			}
			g := gateway.NewIngest(gateway.IngestOptions{
				Dir: filepath.Join(dir, "streams"), SocketDir: filepath.Join(dir, "nbd"), Limit: bandwidth.NewLimiter(schedule), Logger: log,
			})
			return g.Run(cmd.Context(), l)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "the gateway's state directory")
	cmd.Flags().StringVar(&control, "control", "", "the control socket")
	cmd.Flags().StringArrayVar(&limit, "bandwidth", nil, bandwidthHelp)
	return cmd
}

// newLogger returns a logger that writes lines of text.
func newLogger(w io.Writer, level string) *slog.Logger {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		l = slog.LevelInfo
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: l}))
}
