// Command holdfast is the whole of Holdfast: the command line, the server and
// the gateway. It alone knows the environment, signals and exit codes, and puts
// the parts together.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/cli"
)

// buildVersion is set by the linker.
var buildVersion = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(cli.Run(ctx, cli.Env{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv, Version: version(),
		IsTerminal: isTerminal, Width: width, ReadSecret: readSecret,
		ExtraCommands: extraCommands,
	}, os.Args[1:]))
}

// extraCommands are the commands that are no clients of a server.
func extraCommands() []*cobra.Command {
	return []*cobra.Command{serverCommand(), gatewayCommand(), inspectCommand(), offlineCommands(), hookCommand()}
}

// version says what this program is.
func version() api.ServerVersion {
	v := api.ServerVersion{Version: buildVersion, API: api.Version, GoVersion: runtime.Version()}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				v.Commit = s.Value
			}
		}
	}
	return v
}
