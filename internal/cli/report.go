package cli

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/report"
)

// reports are the commands of reports of runs.
func (a *app) reports() *cobra.Command {
	return group("report", "Signed evidence of what a recovery plan did",
		a.reportGet(), a.reportKey(), a.reportVerify(), a.reportPage())
}

func (a *app) reportGet() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "get JOB", Short: "The signed report of a run that has ended", Args: cobra.ExactArgs(1),
		Long: `The signed report of a run that has ended: what ran, from which recovery points, how long each step took,
what was said and seen. It is verified and read without a server.`,
		Example: "  holdfast report get K2J7… -o drill.json\n  holdfast report verify drill.json --key report-key.pem\n  holdfast report page drill.json -o drill.html",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(func(c *api.Client) error {
				envelope, err := c.Report(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return a.writeOut(output, envelope)
			})
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "-", "the file to write; - for standard output")
	return cmd
}

// writeOut writes to a file, or to Stdout for "-".
func (a *app) writeOut(name string, data []byte) error {
	if name == "-" {
		_, err := a.Stdout.Write(data)
		return err
	}
	if err := os.WriteFile(name, data, 0o644); err != nil {
		return &usageError{message: err.Error(), hint: "Name a file that can be written with --output"}
	}
	fmt.Fprintf(a.Stderr, "%s is written.\n", plain(name))
	return nil
}

func (a *app) reportKey() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "key", Short: "The public key that reports are signed with", Args: cobra.NoArgs,
		Long: `The public key that reports are signed with, as PEM. Give it to whoever verifies reports, by another way than
the reports themselves.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(func(c *api.Client) error {
				key, err := c.ReportKey(cmd.Context())
				if err != nil {
					return err
				}
				return a.writeOut(output, key)
			})
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "-", "the file to write; - for standard output")
	return cmd
}

// openReport reads and verifies a report; a report that nobody vouches for is
// returned with errPart, one that was changed is none.
func (a *app) openReport(ctx context.Context, name string, keys []string) (report.Report, report.Signed, error) {
	var trusted []ed25519.PublicKey
	for _, k := range keys {
		data, err := os.ReadFile(k)
		if err != nil {
			return report.Report{}, report.Signed{}, &usageError{message: err.Error(), hint: "Name the file with the public key, of holdfast report key"}
		}
		key, err := report.ParsePublic(data)
		if err != nil {
			return report.Report{}, report.Signed{}, usagef("%s: %v", k, err)
		}
		trusted = append(trusted, key)
	}
	var r io.Reader = a.Stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return report.Report{}, report.Signed{}, &usageError{message: err.Error(), hint: "Name the file of holdfast report get, or - for standard input"}
		}
		defer f.Close()
		r = f
	}
	envelope, err := io.ReadAll(io.LimitReader(r, report.MaxSize+1))
	if err != nil {
		return report.Report{}, report.Signed{}, fmt.Errorf("read report: %w", err)
	}
	out, who, err := report.Open(ctx, envelope, trusted...)
	switch {
	case err == nil:
		return out, who, nil
	case errors.Is(err, report.ErrUntrusted) && len(trusted) == 0:
		return out, who, errPart
	case errors.Is(err, report.ErrUntrusted):
		return out, who, &api.Problem{Code: api.CodeInvalid, Detail: name + " is not signed by a key that was given", Cause: "it was signed by " + who.Key,
			Hint: "Ask for the report again where it was made, and compare the key with holdfast report key"}
	}
	return out, who, &api.Problem{Code: api.CodeInvalid, Detail: name + " is no report", Cause: err.Error(), Hint: "Ask for the report again where it was made: holdfast report get JOB"}
}

func (a *app) reportVerify() *cobra.Command {
	var keys []string
	cmd := &cobra.Command{
		Use: "verify FILE", Short: "Who signed a report, and what it says; needs no server", Args: cobra.ExactArgs(1),
		Long: `Who signed a report, and what it says; needs no server. The exit code is 0 only if it was signed by a key that is
given, and 3 if no key is given: then nobody vouches for it.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, who, err := a.openReport(cmd.Context(), args[0], keys)
			if err != nil && !errors.Is(err, errPart) {
				return err
			}
			if a.json {
				printJSON(a.Stdout, r)
				return err
			}
			a.printReport(r, who)
			return err
		},
	}
	cmd.Flags().StringArrayVar(&keys, "key", nil, "file with a public key that is trusted; can be repeated")
	return cmd
}

func (a *app) printReport(r report.Report, who report.Signed) {
	signed := a.out.green("signed by " + who.Key + ", which is trusted")
	if !who.Trusted {
		signed = a.out.yellow("nobody vouches for it: give the key with --key; it was signed by " + who.Key)
	}
	met := "none set"
	if r.Objectives.Met != nil {
		if met = a.out.green("met"); !*r.Objectives.Met {
			met = a.out.red("not met")
		}
	}
	a.printRun(r.Run)
	fmt.Fprintln(a.Stdout)
	fields(a.Stdout, a.out, "Made", moment(r.MadeAt)+" by "+plain(r.Server), "Plan", fmt.Sprintf("revision %d, SHA-256 %s", r.Plan.Revision, plain(r.Plan.Digest)),
		"RPO", optionalSpan(r.Objectives.RPO, ""), "RTO", optionalSpan(r.Objectives.RTO, ""), "Objectives", met, "Signature", signed)
}

func (a *app) reportPage() *cobra.Command {
	var output string
	var keys []string
	cmd := &cobra.Command{
		Use: "page FILE", Short: "A report as a page, for a browser and for paper; needs no server", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, who, err := a.openReport(cmd.Context(), args[0], keys)
			if err != nil && !errors.Is(err, errPart) {
				return err
			}
			var page bytes.Buffer
			if err := report.Page(&page, r, who); err != nil {
				return err
			}
			return errors.Join(a.writeOut(output, page.Bytes()), err)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "-", "the file to write; - for standard output")
	cmd.Flags().StringArrayVar(&keys, "key", nil, "file with a public key that is trusted; can be repeated")
	return cmd
}

func (a *app) planDrill() *cobra.Command {
	var o waiting
	cmd := &cobra.Command{
		Use: "drill PLAN", Short: "Test a plan and clean up, with nobody there", Args: cobra.ExactArgs(1),
		Long: `Test a plan and clean up, with nobody there: what the plan's drill does by itself at its time. Manual steps
are passed over. The report of the test is its evidence: holdfast report get.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(func(c *api.Client) error {
				job, err := c.DrillPlan(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return a.finish(cmd, c, job, o)
			})
		},
	}
	o.flags(cmd.Flags())
	return cmd
}
