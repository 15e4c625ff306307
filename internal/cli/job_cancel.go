package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

func (a *app) jobCancel() *cobra.Command {
	return &cobra.Command{
		Use: "cancel JOB", Short: "Ask a job to stop", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(func(c *api.Client) error {
				job, err := c.CancelJob(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				switch {
				case a.json:
					printJSON(a.Stdout, job)
				case job.Ended():
					fmt.Fprintf(a.Stdout, "Job %s (%s) is %s.\n", job.ID, jobTitle(job), words(job.State))
				default:
					fmt.Fprintf(a.Stdout, "Job %s (%s) is asked to stop. Follow it: holdfast job watch %s\n", job.ID, jobTitle(job), job.ID)
				}
				return nil
			})
		},
	}
}
