// Package cli is the command line: a command per file, each a client of the
// server through package api and nothing else. It reads no environment, opens
// no terminal and ends no process by itself; main gives it what it needs.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

// The exit codes, which are part of the command line's contract.
const (
	ExitDone          = 0   // done
	ExitError         = 1   // an error
	ExitUsage         = 2   // the command line is wrong
	ExitPart          = 3   // done in part
	ExitNotFound      = 10  // the thing does not exist
	ExitNotAllowed    = 11  // not allowed in this state
	ExitNotAuthorised = 12  // no token, or one that may not do this
	ExitInterrupted   = 130 // interrupted by the user
)

const exitHelp = `Exit codes:
  0    done
  1    error
  2    the command line is wrong
  3    done in part
  10   not found
  11   not allowed in this state
  12   not authorised
  130  interrupted

Environment:
  HOLDFAST_SERVER   the server's address, in place of the one logged in to
  HOLDFAST_TOKEN    the token
  HOLDFAST_CA       file with the certificate of the authority to trust
  NO_COLOR          no colours
`

// Env is what the command line has of the world.
type Env struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Getenv returns a variable of the environment.
	Getenv func(string) string
	// IsTerminal reports whether Stdin, Stdout or Stderr, which it is given,
	// is a terminal. Nil: none is.
	IsTerminal func(stream any) bool
	// ReadSecret reads a line that is not shown while it is typed. Nil: a line
	// of Stdin.
	ReadSecret func() (string, error)
	// Width returns the terminal's width in columns. Nil: 80.
	Width func() int
	// Client makes clients. Nil: api.NewClient.
	Client func(api.ClientOptions) (*api.Client, error)
	// ExtraCommands returns commands that are main's, like server and gateway; one
	// with the name of a group has commands for that.
	ExtraCommands func() []*cobra.Command
	// Now returns the time. Nil: time.Now.
	Now func() time.Time
	// Version is the program's.
	Version api.ServerVersion
}

func (e *Env) applyDefaults() {
	if e.IsTerminal == nil {
		e.IsTerminal = func(any) bool { return false }
	}
	if e.Width == nil {
		e.Width = func() int { return 80 }
	}
	if e.Client == nil {
		e.Client = api.NewClient
	}
	if e.Now == nil {
		e.Now = time.Now
	}
	if e.ExtraCommands == nil {
		e.ExtraCommands = func() []*cobra.Command { return nil }
	}
}

// app is one run of the command line.
type app struct {
	Env
	json    bool
	out     style // of Stdout
	err     style // of Stderr
	started bool  // whether the command line was right and a command runs
}

// Run runs one command line, without the program's name, and returns the exit
// code. Everything that is to be said is said on the streams of env. It returns
// soon after ctx ends.
func Run(ctx context.Context, env Env, args []string) int {
	env.applyDefaults()
	a := &app{Env: env}
	a.out = newStyle(env.IsTerminal(env.Stdout) && env.Getenv("NO_COLOR") == "" && env.Getenv("TERM") != "dumb")
	a.err = newStyle(env.IsTerminal(env.Stderr) && env.Getenv("NO_COLOR") == "" && env.Getenv("TERM") != "dumb")
	root := a.root()
	if args == nil {
		args = []string{} // cobra would take the process's own
	}
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err != nil && !a.started {
		err = asUsage(err)
	}
	return a.report(ctx, err)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "holdfast",
		Short:         "Self-hosted site recovery",
		Long:          "Holdfast replicates machines while they run, keeps any moment of their recent\npast, and brings them up at another site in seconds.\n\nFirst: holdfast login https://SERVER:8443",
		SilenceErrors: true, SilenceUsage: true,
		Args:             cobra.ArbitraryArgs,
		PersistentPreRun: func(*cobra.Command, []string) { a.started = true },
	}
	root.RunE, root.SuggestionsMinimumDistance = needSubcommand, 2
	root.SetIn(a.Stdin)
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)
	root.CompletionOptions.HiddenDefaultCmd = true
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print the server's own answer as JSON")
	root.SetUsageTemplate(root.UsageTemplate() + "\n" + exitHelp)
	root.AddCommand(
		a.login(), a.version(), a.status(), a.protect(), a.failover(),
		group("site", "Places with machines", a.siteAdd(), a.siteList(), a.siteRemove()),
		group("machine", "What could be protected", a.machineList()),
		group("item", "Machines under protection", a.itemList(), a.itemShow(), a.itemPolicy(), a.itemHold(), a.itemPause(), a.itemResume(), a.itemCompare(), a.itemDisable()),
		group("timeline", "The timelines of an item's history", a.timelineList()),
		group("point", "What an item can be recovered to", a.pointList(), a.pointCreate(), a.pointPin(), a.pointUnpin()),
		group("job", "Work that goes on or went on", a.jobList(), a.jobShow(), a.jobWatch(), a.jobCancel(), a.jobAnswer(), a.jobScreenshot()),
		group("vault", "Where history is kept", a.vaultShow(), a.vaultVerify()),
		group("token", "Who may speak to the server", a.tokenCreate(), a.tokenList(), a.tokenRevoke()),
	)
	root.AddCommand(a.plans(), a.groups(), a.reports())
	root.AddCommand(a.lifecycle()...)
	for _, extra := range a.ExtraCommands() {
		if mine, _, err := root.Find([]string{extra.Name()}); err == nil && mine != root {
			mine.AddCommand(extra.Commands()...) // more commands of a group
		} else {
			root.AddCommand(extra)
		}
	}
	return root
}

// group returns a command that has only subcommands.
func group(name, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: name, Short: short, Args: cobra.ArbitraryArgs, RunE: needSubcommand, SuggestionsMinimumDistance: 2}
	cmd.AddCommand(commands...)
	return cmd
}

// needSubcommand refuses a command line that stops before it says what to do,
// or says what is not known.
func needSubcommand(cmd *cobra.Command, args []string) error {
	var names []string
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, sub.Name())
		}
	}
	if len(args) == 0 {
		return &usageError{message: cmd.CommandPath() + " needs a command", hint: "Commands are: " + strings.Join(names, ", ")}
	}
	e := &usageError{message: fmt.Sprintf("%s has no command %q", cmd.CommandPath(), args[0]), hint: "Commands are: " + strings.Join(names, ", ")}
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		e.hint = "Did you mean: " + cmd.CommandPath() + " " + near[0]
	}
	return e
}

// usageError says that the command line is wrong.
type usageError struct{ message, hint string }

func (e *usageError) Error() string { return e.message }

func usagef(format string, args ...any) error {
	return &usageError{message: fmt.Sprintf(format, args...)}
}

// asUsage makes an error of the command line's reader a usageError.
func asUsage(err error) error {
	var usage *usageError
	if errors.As(err, &usage) {
		return err
	}
	return &usageError{message: err.Error(), hint: "See --help"}
}

// errPart says that a command did a part of what it was asked for, and has said
// which.
var errPart = errors.New("done in part")

// errSaid says that a command failed and has said why.
var errSaid = errors.New("failed")

// described is an error that can tell a code, a cause and a hint, like those of
// the domain.
type described interface {
	Describe() (code, cause, hint string)
}

// report says what went wrong and returns the exit code.
func (a *app) report(ctx context.Context, err error) int {
	if err == nil {
		return ExitDone
	}
	if errors.Is(err, errPart) {
		return ExitPart
	}
	if errors.Is(err, errSaid) {
		return ExitError
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		fmt.Fprintln(a.Stderr, "interrupted")
		return ExitInterrupted
	}
	p := a.explain(err)
	a.printProblem(p)
	var usage *usageError
	if errors.As(err, &usage) {
		return ExitUsage
	}
	switch p.Code {
	case api.CodeNotFound:
		return ExitNotFound
	case api.CodeNotAllowed, api.CodeConflict:
		return ExitNotAllowed
	case api.CodeUnauthorized, api.CodeForbidden:
		return ExitNotAuthorised
	}
	return ExitError
}

// explain returns err with what is known of its cause and what to do.
func (a *app) explain(err error) *api.Problem {
	var problem *api.Problem
	if errors.As(err, &problem) {
		return problem
	}
	var usage *usageError
	if errors.As(err, &usage) {
		return &api.Problem{Code: api.CodeInvalid, Detail: usage.message, Hint: usage.hint}
	}
	var known described
	if errors.As(err, &known) {
		code, cause, hint := known.Describe()
		if strings.Contains(err.Error(), cause) {
			cause = "" // it is told already
		}
		return &api.Problem{Code: code, Detail: err.Error(), Cause: cause, Hint: hint}
	}
	if p := connectionProblem(err); p != nil {
		return p
	}
	return &api.Problem{Code: api.CodeInternal, Detail: err.Error()}
}

// printProblem says what went wrong, on Stderr.
func (a *app) printProblem(p *api.Problem) {
	if a.json {
		if p.Type == "" {
			told := *p
			told.Type, p = "about:blank", &told
		}
		printJSON(a.Stderr, p)
		return
	}
	fmt.Fprintf(a.Stderr, "%s %s\n", a.err.red("error:"), plain(p.Error()))
	if p.Cause != "" {
		fmt.Fprintf(a.Stderr, "%s %s\n", a.err.bold("cause:"), plain(p.Cause))
	}
	if p.Hint != "" {
		fmt.Fprintf(a.Stderr, "%s %s\n", a.err.bold("hint:"), plain(p.Hint))
	}
	if p.Code == api.CodeInternal && p.Instance != "" {
		fmt.Fprintf(a.Stderr, "%s %s\n", a.err.bold("request:"), p.Instance)
	}
}

// connect returns a client of the server that is logged in to.
func (a *app) connect() (*api.Client, error) {
	conn, err := a.connection()
	if err != nil {
		return nil, err
	}
	return a.Client(api.ClientOptions{BaseURL: conn.Server, Token: conn.Token, CA: []byte(conn.CA), UserAgent: "holdfast/" + a.Version.Version})
}

// with calls f with a client, which it closes afterwards.
func (a *app) with(f func(*api.Client) error) error {
	client, err := a.connect()
	if err != nil {
		return err
	}
	defer client.Close()
	return f(client)
}
