package cli

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

func (a *app) pointList() *cobra.Command {
	return &cobra.Command{
		Use: "list ITEM", Short: "What an item can be recovered to", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(func(c *api.Client) error {
				points, err := c.Points(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if a.json {
					printJSON(a.Stdout, points)
					return nil
				}
				a.printPoints(points)
				return nil
			})
		},
	}
}

func (a *app) printPoints(p api.Points) {
	if p.Newest == nil {
		fmt.Fprintln(a.Stdout, "Nothing can be recovered yet: the first copy is not finished.")
		return
	}
	fmt.Fprintf(a.Stdout, "Newest: %s\n", a.pointText(*p.Newest))
	// Single moments of which the rest is not kept are among the points.
	p.Ranges = slices.DeleteFunc(p.Ranges, func(r api.PointRange) bool { return r.From == r.To })
	if len(p.Ranges) > 0 {
		fmt.Fprintf(a.Stdout, "\n%s (holdfast failover ITEM --time TIME)\n", a.out.bold("Any moment"))
		t := table{header: []string{"FROM", "TO", ">LENGTH", ">TIMELINE"}}
		for _, r := range p.Ranges {
			t.add(moment(r.FromTime), moment(r.ToTime), span(r.ToTime.Sub(r.FromTime).Seconds()), fmt.Sprint(r.Timeline))
		}
		t.print(a.Stdout, a.out)
	}
	if len(p.Points) > 0 {
		fmt.Fprintf(a.Stdout, "\n%s (holdfast failover ITEM --point POINT)\n", a.out.bold("Points"))
		t := table{header: []string{"POINT", "TIME", ">AGE", "CONSISTENCY", "NAME", ">TIMELINE"}}
		if slices.ContainsFunc(p.Points, func(p api.Point) bool { return p.Pinned }) {
			t.header = append(t.header, "KEPT")
		}
		for _, point := range p.Points {
			id := point.ID
			if id == "" {
				id = point.Position
			}
			row := []string{id, moment(point.Time), coarse(a.Now().Sub(point.Time).Seconds()), point.Consistency, point.Name, fmt.Sprint(point.Timeline)}
			if point.Pinned {
				row = append(row, "pinned")
			}
			t.add(row...)
		}
		t.print(a.Stdout, a.out)
	}
}

// pointText tells a recovery point in one line.
func (a *app) pointText(p api.Point) string {
	text := fmt.Sprintf("%s, %s, %s-consistent", moment(p.Time), a.ago(p.Time), plain(p.Consistency))
	if p.Name != "" {
		text = plain(p.Name) + ", " + text
	}
	return text
}
