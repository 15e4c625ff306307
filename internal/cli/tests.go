package cli

import (
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

func (a *app) testList() *cobra.Command {
	return &cobra.Command{
		Use: "list [ITEM]", Short: "Test machines that wait for clean-up, of one item or of all", Args: cobra.MaximumNArgs(1),
		Long: `Test machines that wait for clean-up, of one item or of all. With --json, the items that have any.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(func(c *api.Client) error {
				var items []api.Item
				if len(args) == 1 {
					item, err := c.Item(cmd.Context(), args[0])
					if err != nil {
						return err
					}
					items = []api.Item{item}
				} else {
					list, err := c.Items(cmd.Context())
					if err != nil {
						return err
					}
					items = list.Items
				}
				a.listTests(items)
				return nil
			})
		},
	}
}

func (a *app) listTests(items []api.Item) {
	open := api.ItemList{Items: []api.Item{}}
	for _, i := range items {
		if len(i.Test.Open) > 0 {
			open.Items = append(open.Items, i)
		}
	}
	switch {
	case a.json:
		printJSON(a.Stdout, open)
	case len(open.Items) == 0:
		fmt.Fprintln(a.Stdout, "No test machine waits for clean-up. Start one with: holdfast test-failover start ITEM")
	default:
		a.printTests(a.Stdout, open.Items, true)
	}
}

// printTests prints the open tests of items as a table, with the items' names if
// named.
func (a *app) printTests(w io.Writer, items []api.Item, named bool) {
	t := table{header: []string{"TEST", "STATE", "SITE", "NETWORK", "STARTED", ">READY IN", "BOOT", "FROM"}}
	if named {
		t.header = append([]string{"ITEM"}, t.header...)
	}
	var states []string
	for _, i := range items {
		for _, test := range i.Test.Open {
			from := "-"
			if test.Point != nil {
				from = a.pointText(*test.Point)
			}
			row := []string{test.Name, words(test.State), test.Site, orElse(test.Network, "isolated"), a.ago(test.StartedAt),
				optionalSpan(test.ReadySeconds, "-"), orElse(test.Verified, "-"), from}
			if named {
				row = append([]string{i.Name}, row...)
			}
			t.add(row...)
			states = append(states, test.State)
		}
	}
	state := len(t.header) - 7
	t.colour = func(row, column int, text string) string {
		if column == state {
			return a.out.grade(states[row], text)
		}
		return text
	}
	t.print(w, a.out)
}

// testedText says when an item was last tested, and how that went.
func (a *app) testedText(i api.Item) string {
	last := i.Test.Last
	if last == nil {
		if slices.Contains(i.Allowed, "test_failover") {
			return "never (holdfast test-failover start " + i.Name + ")"
		}
		return "never"
	}
	text := a.ago(last.At) + ", ran after " + span(last.ReadySeconds)
	if !last.Passed {
		text = a.ago(last.At) + ", failed"
		if !last.SuccessAt.IsZero() {
			text += "; last passed " + a.ago(last.SuccessAt)
		}
	}
	if last.Note != "" {
		text += ": “" + last.Note + "”"
	}
	return text
}

// tested reports whether a test failover of the item has ever passed.
func tested(i api.Item) bool { return i.Test.Last != nil && !i.Test.Last.SuccessAt.IsZero() }
