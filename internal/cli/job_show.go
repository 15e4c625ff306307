package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

func (a *app) jobShow() *cobra.Command {
	return &cobra.Command{
		Use: "show JOB", Short: "One job with its tasks", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(func(c *api.Client) error {
				job, err := c.Job(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if a.json {
					printJSON(a.Stdout, job)
					return nil
				}
				a.printJob(job)
				return nil
			})
		},
	}
}

func (a *app) printJob(j api.Job) {
	w := a.Stdout
	fmt.Fprintf(w, "%s: %s, %s\n", a.out.bold(plain(j.ID)), jobTitle(j), a.out.grade(j.State, jobState(j)))
	fields(w, a.out, "Asked for", a.ago(j.CreatedAt), "Took", a.took(j))
	if len(j.Tasks) > 0 {
		fmt.Fprintln(w)
		t := table{header: []string{"TASK", "STATE", ">TOOK", "PROGRESS"}}
		for _, task := range j.Tasks {
			took := a.took(api.Job{StartedAt: task.StartedAt, FinishedAt: task.FinishedAt})
			text := progressText(task.Progress)
			if task.Attempt > 1 {
				text = joinComma(text, fmt.Sprintf("attempt %d", task.Attempt))
			}
			if task.Error != nil {
				text = joinComma(text, joinText(task.Error.Message, task.Error.Cause))
			}
			t.add(task.Title, words(task.State), took, text)
		}
		t.colour = func(row, column int, text string) string {
			if column == 1 {
				return a.out.grade(j.Tasks[row].State, text)
			}
			return text
		}
		t.print(w, a.out)
		for _, task := range j.Tasks {
			for _, line := range task.Log {
				fmt.Fprintf(w, "  %s: %s\n", plain(task.Title), plain(line))
			}
		}
	}
	if j.State == api.JobSucceeded {
		fmt.Fprintln(w)
		a.printResult(w, j)
		return
	}
	for _, warning := range j.Warnings {
		fmt.Fprintf(w, "%s %s\n", a.out.yellow("warning:"), plain(warning))
	}
	if e := j.Error; e != nil {
		fmt.Fprintf(w, "\n%s %s\n", a.out.red("error:"), plain(e.Message))
		if e.Cause != "" {
			fmt.Fprintf(w, "%s %s\n", a.out.bold("cause:"), plain(e.Cause))
		}
		if e.Hint != "" {
			fmt.Fprintf(w, "%s %s\n", a.out.bold("hint:"), plain(e.Hint))
		}
	}
}

func joinComma(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + ", " + b
}
