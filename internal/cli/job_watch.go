package cli

import (
	"encoding/json"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

func (a *app) jobWatch() *cobra.Command {
	return &cobra.Command{
		Use: "watch JOB", Short: "Follow a job to its end", Args: cobra.ExactArgs(1),
		Long: "Follow a job to its end, and say what came of it; the exit code is the job's.\n\nWith --json, print the job as one line at each change.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(func(c *api.Client) error {
				if !a.json {
					return a.watch(cmd.Context(), c, args[0], nil)
				}
				enc := json.NewEncoder(a.Stdout)
				job, err := c.WatchJob(cmd.Context(), args[0], func(j api.Job) error { return enc.Encode(j) })
				if err != nil {
					return err
				}
				return a.verdict(job)
			})
		},
	}
}
