package cli

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

// lifecycle are the commands of an item's life after it was protected.
func (a *app) lifecycle() []*cobra.Command {
	return []*cobra.Command{
		group("test-failover", "A copy of a machine, apart from the world", a.testStart(), a.testCleanUp(), a.testList()),
		a.failback(), a.changePoint(),
		a.commit(), a.undoFailover(), a.reprotect(),
		a.simple("resync", "Compare source and vault, and send what differs",
			"Recovery points from before stay usable meanwhile.",
			operation{name: "resync", path: "resync", body: api.Resync{}}),
		a.simple("cancel", "Cancel the job that works on an item", "",
			operation{name: "cancel", path: "cancel", body: api.CancelItem{}}),
	}
}

func (a *app) testStart() *cobra.Command {
	var (
		o     operating
		point choosing
		req   api.TestFailover
		v     api.BootVerification
		cards addressing
	)
	cmd := &cobra.Command{
		Use: "start ITEM", Short: "Run a copy of the machine apart from the world, beside it and its replication", Args: cobra.ExactArgs(1),
		Long: `Run a copy of the machine at the other site. It has no way out of its network unless you name one
with --network, and stands in the way of nothing. Several can run at once. Remove it with
holdfast test-failover clean-up. With --timeline you look into another timeline; see holdfast timeline list.`,
		Example: "  holdfast test-failover start web1 --agent --screenshot\n  holdfast test-failover start web1 --time 10m",
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := point.request(a)
			if err != nil {
				return err
			}
			req.Option, req.Point, req.Timeline, req.Time = f.Option, f.Point, f.Timeline, f.Time
			if v != (api.BootVerification{}) {
				req.Verify = &v
			}
			if req.Addressing, err = cards.request(); err != nil {
				return err
			}
			check := point.check(f)
			check.Addressing, check.Name, check.Network, check.Networks = req.Addressing, req.Name, req.Network, req.Networks
			return a.operate(cmd, args[0], o, operation{name: "test_failover", path: "test-failover", body: req, check: check})
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&req.Name, "name", "", "the test machine's name; made from the item's if not given")
	fs.StringVar(&req.Network, "network", "", "a network of the site; without it the machine is isolated")
	fs.StringToStringVar(&req.Networks, "map-network", nil, "FROM=TO: a network of the site for the cards on one of the source; all others have no way out; can be repeated")
	cards.flags(fs)
	fs.BoolVar(&v.Agent, "agent", false, "wait until its guest agent answers")
	fs.StringVar(&v.Serial, "serial", "", "wait until its serial console shows this regular expression")
	fs.BoolVar(&v.Ping, "ping", false, "wait until it answers a ping (under libvirt, with --network)")
	fs.IntVar(&v.TCPPort, "port", 0, "wait until this TCP port accepts a connection (under libvirt, with --network)")
	fs.StringVar(&v.Script, "script", "", "run this script, a file in the directory scripts of the server's state; it must end with 0")
	fs.BoolVar(&v.Screenshot, "screenshot", false, "keep a picture of its console; see holdfast job screenshot")
	fs.Int64Var(&v.TimeoutSeconds, "timeout", 0, "seconds that all of this may take; 300 if not given")
	point.flags(fs)
	o.flags(fs)
	return cmd
}

func (a *app) testCleanUp() *cobra.Command {
	var (
		o   operating
		req api.CleanUpTest
	)
	cmd := &cobra.Command{
		Use: "clean-up ITEM", Short: "Remove a test machine and every trace of it", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.operate(cmd, args[0], o, operation{name: "clean_up", path: "clean-up", body: req})
		},
	}
	cmd.Flags().StringVar(&req.Test, "test", "", "the test's name, if there are several")
	cmd.Flags().StringVar(&req.Note, "note", "", "what you have to say of it; kept with the item")
	o.flags(cmd.Flags())
	return cmd
}

func (a *app) failback() *cobra.Command {
	var (
		o   operating
		req api.Failback
	)
	cmd := &cobra.Command{
		Use: "failback ITEM", Short: "Bring an item's machine home", Args: cobra.ExactArgs(1),
		Long: `Bring an item's machine home: it is shut down at the recovery site, the rest is brought over, both
sides are compared, and the machine starts where it was. If it is still there, only what differs
is written to its disks. With --unplanned the recovery site is taken for lost.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if req.Option != api.OptionLatest && req.Option != api.OptionLatestApp {
				return usagef("--option %s is not known: want latest or latest_app", req.Option)
			}
			op := operation{name: "failback", path: "failback", body: req, check: api.CheckOperation{Option: req.Option}, question: func(i api.Item) string {
				return fmt.Sprintf("Bring %s back to %s? The machine at %s is shut down.", i.Name, i.PrimarySite, i.RecoverySite)
			}}
			if req.Unplanned {
				op.name = "failover"
			}
			return a.operate(cmd, args[0], o, op)
		},
	}
	cmd.Flags().StringVar(&req.Option, "option", api.OptionLatest, "latest or latest_app; the latter loses what was written since")
	cmd.Flags().BoolVar(&req.Unplanned, "unplanned", false, "the recovery site is lost: do not wait for it, nor ask the machine there to shut down")
	cmd.Flags().BoolVar(&req.DiscardWrites, "discard-writes", false, "keep nothing of what the machine at home has on its disks and the vault has not")
	o.flags(cmd.Flags())
	return cmd
}

func (a *app) changePoint() *cobra.Command {
	var (
		o     operating
		point choosing
		keep  bool
	)
	cmd := &cobra.Command{
		Use: "change-point ITEM", Short: "Rebuild a recovered machine from another recovery point", Args: cobra.ExactArgs(1),
		Long: `Rebuild a recovered machine from another recovery point, older or newer, as often as you like before
the commit. What the machine wrote since the failover is lost with it, unless you ask with
--keep-writes to have it kept as a timeline of its own.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := point.request(a)
			if err != nil {
				return err
			}
			req := api.ChangePoint{Option: f.Option, Point: f.Point, Timeline: f.Timeline, Time: f.Time, KeepWrites: keep}
			question := asks("Rebuild the recovered machine of %s? What it wrote since the failover is lost.")
			if keep {
				question = asks("Rebuild the recovered machine of %s? What it wrote since the failover is kept as a timeline of its own.")
			}
			return a.operate(cmd, args[0], o, operation{name: "change_point", path: "change-point", body: req, check: point.check(f), question: question})
		},
	}
	cmd.Flags().BoolVar(&keep, "keep-writes", false, "keep what the machine wrote since the failover as a timeline of its own")
	point.flags(cmd.Flags())
	o.flags(cmd.Flags())
	return cmd
}

func (a *app) commit() *cobra.Command {
	var (
		o   operating
		req api.Commit
	)
	cmd := &cobra.Command{
		Use: "commit ITEM", Short: "Make a failover final", Args: cobra.ExactArgs(1),
		Long: `Make a failover final. Until then the recovery point can be changed and the failover undone. After
a failback it removes the machine that had been recovered; what that wrote and the vault has not
is kept as a timeline of its own first. Recovery points stay as the policy says, unless you delete
those from before the failover with --delete-points; pinned ones stay even then.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			question := asks("Make the failover of %s final?")
			if req.DeletePoints {
				question = asks("Make the failover of %s final, and delete all recovery points from before it?")
			}
			return a.operate(cmd, args[0], o, operation{name: "commit", path: "commit", body: req, question: question})
		},
	}
	cmd.Flags().BoolVar(&req.DeletePoints, "delete-points", false, "also delete the recovery points from before the failover")
	cmd.Flags().BoolVar(&req.DiscardWrites, "discard-writes", false, "keep nothing of a machine that is removed")
	o.flags(cmd.Flags())
	return cmd
}

func (a *app) undoFailover() *cobra.Command {
	var (
		o   operating
		req api.UndoFailover
	)
	cmd := &cobra.Command{
		Use: "undo-failover ITEM", Short: "Give a failover up", Args: cobra.ExactArgs(1),
		Long: `Give a failover up: the recovered machine is removed with all that it wrote, and the machine works
again where it was. With --keep-writes what it wrote stays in the vault, as a timeline of its own.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			question := asks("Remove the recovered machine of %s, with all that it wrote, and go back?")
			if req.KeepWrites {
				question = asks("Remove the recovered machine of %s, keep what it wrote as a timeline of its own, and go back?")
			}
			return a.operate(cmd, args[0], o, operation{name: "undo_failover", path: "undo-failover", body: req, question: question})
		},
	}
	cmd.Flags().BoolVar(&req.KeepWrites, "keep-writes", false, "keep what it wrote as a timeline of its own")
	o.flags(cmd.Flags())
	return cmd
}

func (a *app) reprotect() *cobra.Command {
	var (
		o   operating
		req api.Reprotect
	)
	cmd := &cobra.Command{
		Use: "reprotect ITEM", Short: "Replicate an item the other way round", Args: cobra.ExactArgs(1),
		Long: `Replicate an item the other way round. Only what changed since the failover is sent. A machine that
was left behind at the other site is switched off, guarded, and its disks are brought up to date;
what it has on them and the vault has not is kept as a timeline of its own first.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.operate(cmd, args[0], o, operation{name: "reprotect", path: "reprotect", body: req})
		},
	}
	cmd.Flags().BoolVar(&req.DiscardWrites, "discard-writes", false, "keep nothing of what the machine that was left behind wrote")
	o.flags(cmd.Flags())
	return cmd
}

// asks returns a question about an item.
func asks(format string) func(api.Item) string {
	return func(i api.Item) string { return fmt.Sprintf(format, i.Name) }
}

func (a *app) pointCreate() *cobra.Command {
	var (
		o   operating
		req api.MakePoint
	)
	cmd := &cobra.Command{
		Use: "create ITEM", Short: "Make a recovery point of the present moment", Args: cobra.ExactArgs(1),
		Long: `Make a recovery point of the present moment. With --app-consistent the guest's file systems are
frozen for it through the guest agent, with its freeze hooks; if that fails, the point is
crash-consistent, and the command ends with 3.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.operate(cmd, args[0], o, operation{name: "point", path: "points", body: req})
		},
	}
	cmd.Flags().StringVar(&req.Name, "name", "", "its name")
	cmd.Flags().BoolVar(&req.AppConsistent, "app-consistent", false, "freeze the guest's file systems for it")
	o.waiting.flags(cmd.Flags())
	return cmd
}

func (a *app) jobScreenshot() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "screenshot JOB", Short: "Fetch the picture of a console that was kept with a job, as PNG", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if file == "" {
				return usagef("say with --output where the picture shall go; - is standard output")
			}
			return a.with(func(c *api.Client) error {
				png, err := c.Screenshot(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if file == "-" {
					_, err = io.WriteString(a.Stdout, string(png))
					return err
				}
				return os.WriteFile(file, png, 0o600)
			})
		},
	}
	cmd.Flags().StringVarP(&file, "output", "o", "", "the file")
	return cmd
}
