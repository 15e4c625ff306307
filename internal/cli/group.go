package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

// groups are the commands of replication groups.
func (a *app) groups() *cobra.Command {
	return group("group", "Replication groups: items that are recovered to one moment",
		a.groupAdd(), a.groupRemove(), a.groupList(), a.groupShow(), a.groupPoint())
}

func (a *app) groupAdd() *cobra.Command {
	return a.groupChange("add GROUP ITEM...", "Have items join a group, while they replicate; the group is made if there is none",
		func(items []string) api.ChangeGroup { return api.ChangeGroup{Add: items} })
}

func (a *app) groupRemove() *cobra.Command {
	return a.groupChange("remove GROUP ITEM...", "Have items leave a group, while they replicate; a group without items is none",
		func(items []string) api.ChangeGroup { return api.ChangeGroup{Remove: items} })
}

func (a *app) groupChange(use, short string, request func([]string) api.ChangeGroup) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: cobra.MinimumNArgs(2), RunE: func(cmd *cobra.Command, args []string) error {
		return a.with(func(c *api.Client) error {
			g, err := c.ChangeGroup(cmd.Context(), args[0], request(args[1:]))
			if err != nil {
				return err
			}
			if a.json {
				printJSON(a.Stdout, g)
				return nil
			}
			fmt.Fprintf(a.Stdout, "Group %s has %s: %s\n", plain(g.Name), count(len(g.Items), "item", "items"), plain(orElse(strings.Join(g.Items, ", "), "none")))
			return nil
		})
	}}
}

func (a *app) groupList() *cobra.Command {
	return &cobra.Command{Use: "list", Short: "All replication groups", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return a.with(func(c *api.Client) error {
			list, err := c.Groups(cmd.Context())
			if err != nil {
				return err
			}
			if a.json {
				printJSON(a.Stdout, list)
				return nil
			}
			if len(list.Groups) == 0 {
				fmt.Fprintln(a.Stdout, "There is no group. Make one: holdfast group add GROUP ITEM ITEM")
				return nil
			}
			t := table{header: []string{"GROUP", "ITEMS"}}
			for _, g := range list.Groups {
				t.add(g.Name, strings.Join(g.Items, ", "))
			}
			t.print(a.Stdout, a.out)
			return nil
		})
	}}
}

func (a *app) groupShow() *cobra.Command {
	return &cobra.Command{Use: "show GROUP", Short: "One group: its items, and the moments that they have in common", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(func(c *api.Client) error {
				g, err := c.Group(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if a.json {
					printJSON(a.Stdout, g)
					return nil
				}
				newest := "none: " + g.Problem
				if g.Newest != nil {
					newest = moment(*g.Newest) + ", " + a.ago(*g.Newest)
				}
				fmt.Fprintf(a.Stdout, "%s\n", a.out.bold(plain(g.Name)))
				fields(a.Stdout, a.out, "Items", plain(strings.Join(g.Items, ", ")), "Newest common moment", plain(newest))
				if len(g.Points) > 0 {
					fmt.Fprintln(a.Stdout)
					t := table{header: []string{"POINT", "NAME", "TIME", "CONSISTENCY"}}
					for _, p := range g.Points {
						t.add(p.ID, orElse(p.Name, "-"), moment(p.Time), p.Consistency)
					}
					t.print(a.Stdout, a.out)
				}
				return nil
			})
		}}
}

func (a *app) groupPoint() *cobra.Command {
	var req api.MakePoint
	var o waiting
	cmd := &cobra.Command{
		Use: "point GROUP", Short: "Make a recovery point that is one moment for all items of a group", Args: cobra.ExactArgs(1),
		Long: `Make a recovery point that is one moment for all items of a group. With --app-consistent the file
systems of all guests are frozen for it: only if all are, in time, it is application-consistent.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(func(c *api.Client) error {
				job, err := c.MakeGroupPoint(cmd.Context(), args[0], req)
				if err != nil {
					return err
				}
				return a.finish(cmd, c, job, o)
			})
		},
	}
	cmd.Flags().StringVar(&req.Name, "name", "", "its name")
	cmd.Flags().BoolVar(&req.AppConsistent, "app-consistent", false, "freeze the file systems of all guests for it")
	o.flags(cmd.Flags())
	return cmd
}
