package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

func (a *app) itemList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "All replicated items", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(func(c *api.Client) error {
				list, err := c.Items(cmd.Context())
				if err != nil {
					return err
				}
				if a.json {
					printJSON(a.Stdout, list)
					return nil
				}
				if len(list.Items) == 0 {
					fmt.Fprintln(a.Stdout, "Nothing is protected yet. Protect a machine: holdfast protect MACHINE --site SITE --to SITE")
					return nil
				}
				t := table{header: []string{"NAME", "STATE", "HEALTH", "DIRECTION", "MODE", ">RPO", ">BACKLOG"}}
				for _, i := range list.Items {
					mode, rpo, backlog := "-", "-", "-"
					if r := i.Replication; r != nil {
						mode, rpo, backlog = modeText(*r), optionalSpan(r.RPOSeconds, "none yet"), size(r.BacklogBytes)
					}
					t.add(i.Name, words(i.State), words(i.Health.Level), directionText(i), mode, rpo, backlog)
				}
				t.colour = func(row, column int, text string) string {
					i := list.Items[row]
					switch {
					case column == 1:
						return a.out.grade(i.State, text)
					case column == 2:
						return a.out.grade(i.Health.Level, text)
					case column == 4 && i.Replication != nil:
						return a.out.grade(i.Replication.Mode, text)
					case column == 5 && i.Replication != nil && overRPO(i):
						return a.out.yellow(text)
					}
					return text
				}
				t.print(a.Stdout, a.out)
				return nil
			})
		},
	}
}

// modeText tells what replication does, and how far a copy is.
func modeText(r api.Replication) string {
	text := words(r.Mode)
	if done, total := syncTotal(r); total > 0 && done < total {
		text += " " + percent(done, total)
		if r.ETASeconds != nil {
			text += ", " + span(*r.ETASeconds) + " left"
		}
	}
	return text
}

func syncTotal(r api.Replication) (done, total int64) {
	for _, d := range r.Disks {
		done += d.Done
		total += d.Total
	}
	return done, total
}

// directionText tells from where to where an item goes.
func directionText(i api.Item) string {
	if i.Direction == "reverse" {
		return i.RecoverySite + " → " + i.PrimarySite
	}
	return i.PrimarySite + " → " + i.RecoverySite
}

func overRPO(i api.Item) bool {
	r := i.Replication
	return r.RPOSeconds != nil && i.Policy.RPOThreshold > 0 && *r.RPOSeconds > float64(i.Policy.RPOThreshold)
}
