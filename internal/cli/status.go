package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

// status is how the server and what it protects fare.
type status struct {
	Server api.ServerHealth `json:"server"`
	Items  int              `json:"items"`
	// Ailing are the items whose health is warning or critical.
	Ailing []api.Item `json:"ailing"`
}

func (a *app) status() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "How the server, its vault and what it protects fare", Args: cobra.NoArgs,
		Long: `How the server, its vault and what it protects fare. It exits with 1 if a part of the server does not
do its work, or an item is in a critical state: something for a monitor to run.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(func(c *api.Client) error {
				s := status{Ailing: []api.Item{}}
				var err error
				if s.Server, err = c.Health(cmd.Context()); err != nil {
					return err
				}
				list, err := c.Items(cmd.Context())
				if err != nil {
					return err
				}
				s.Items = len(list.Items)
				bad := s.Server.Status != "ok"
				for _, i := range list.Items {
					if i.Health.Level == api.HealthWarning || i.Health.Level == api.HealthCritical {
						s.Ailing = append(s.Ailing, i)
					}
					bad = bad || i.Health.Level == api.HealthCritical
				}
				if a.json {
					printJSON(a.Stdout, s)
				} else {
					a.printStatus(s)
				}
				if bad {
					return errSaid
				}
				return nil
			})
		},
	}
}

func (a *app) printStatus(s status) {
	w := a.Stdout
	fmt.Fprintf(w, "%s %s\n", a.out.bold("Server:"), a.out.grade(s.Server.Status, words(s.Server.Status)))
	for _, c := range s.Server.Components {
		text := a.out.grade(c.Status, words(c.Status))
		if c.Detail != "" {
			text += ": " + plain(c.Detail)
		}
		fmt.Fprintf(w, "  %s: %s\n", plain(c.Name), text)
		if c.Advice != "" {
			fmt.Fprintf(w, "    %s\n", plain(c.Advice))
		}
	}
	fmt.Fprintf(w, "%s %s, %d healthy\n", a.out.bold("Items:"), count(s.Items, "item", "items"), s.Items-len(s.Ailing))
	for _, i := range s.Ailing {
		fmt.Fprintf(w, "  %s: %s, %s\n", plain(i.Name), words(i.State), a.out.grade(i.Health.Level, words(i.Health.Level)))
		for _, f := range i.Health.Findings {
			fmt.Fprintf(w, "    %s %s\n", plain(f.Code), plain(f.Summary))
		}
	}
}
