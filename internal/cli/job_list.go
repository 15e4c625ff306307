package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

func (a *app) jobList() *cobra.Command {
	var q api.JobQuery
	var active bool
	cmd := &cobra.Command{
		Use: "list", Short: "Jobs, newest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if active {
				if q.State != "" {
					return usagef("--active and --state exclude each other")
				}
				q.State = "active"
			}
			return a.with(func(c *api.Client) error {
				list, err := c.Jobs(cmd.Context(), q)
				if err != nil {
					return err
				}
				if a.json {
					printJSON(a.Stdout, list)
					return nil
				}
				if len(list.Jobs) == 0 {
					fmt.Fprintln(a.Stdout, "There are no such jobs.")
					return nil
				}
				t := table{header: []string{"JOB", "WHAT", "STATE", "STARTED", ">TOOK", "PROGRESS"}}
				for _, j := range list.Jobs {
					t.add(j.ID, jobTitle(j), jobState(j), a.ago(j.CreatedAt), a.took(j), jobNow(j))
				}
				t.colour = func(row, column int, text string) string {
					if column == 2 {
						grade := list.Jobs[row].State
						if grade == api.JobSucceeded && len(list.Jobs[row].Warnings) > 0 {
							grade = "warning"
						}
						return a.out.grade(grade, text)
					}
					return text
				}
				t.print(a.Stdout, a.out)
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&q.Item, "item", "", "only jobs of this item")
	cmd.Flags().StringVar(&q.State, "state", "", "only jobs in this state")
	cmd.Flags().BoolVar(&active, "active", false, "only jobs that have not ended")
	cmd.Flags().IntVar(&q.Limit, "limit", 0, "at most this many; 50 if not given")
	return cmd
}

func jobState(j api.Job) string {
	if j.State == api.JobSucceeded && len(j.Warnings) > 0 {
		return "succeeded in part"
	}
	return words(j.State)
}

// took tells how long a job took, or has taken so far.
func (a *app) took(j api.Job) string {
	switch {
	case j.StartedAt.IsZero():
		return "-"
	case j.FinishedAt.IsZero():
		return span(a.Now().Sub(j.StartedAt).Seconds())
	}
	return span(j.FinishedAt.Sub(j.StartedAt).Seconds())
}

// jobNow tells what a job is at, or why it failed.
func jobNow(j api.Job) string {
	if j.Error != nil {
		return joinText(j.Error.Message, j.Error.Cause)
	}
	for _, t := range j.Tasks {
		if t.State == api.JobInProgress || t.State == api.JobSuspended || t.State == api.JobCancelling {
			progress := t.Progress
			if progress == nil {
				progress = j.Progress
			}
			if text := progressText(progress); text != "" {
				return t.Title + ": " + text
			}
			return t.Title
		}
	}
	return ""
}
