package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

func (a *app) machineList() *cobra.Command {
	var site string
	cmd := &cobra.Command{
		Use: "list [--site SITE]", Short: "Machines of a site, or of all, and what keeps them from being protected", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(func(c *api.Client) error {
				list, err := c.Machines(cmd.Context(), site)
				if err != nil {
					return err
				}
				if a.json {
					printJSON(a.Stdout, list)
				} else {
					a.printMachines(list)
				}
				if len(list.Unreachable) > 0 {
					return errPart
				}
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&site, "site", "", "only machines of this site")
	return cmd
}

func (a *app) printMachines(list api.MachineList) {
	for _, p := range list.Unreachable {
		fmt.Fprintf(a.Stderr, "%s site %s does not answer, its machines are missing below\n", a.err.yellow("warning:"), plain(p.Site))
		if p.Cause != "" {
			fmt.Fprintf(a.Stderr, "%s %s\n", a.err.bold("cause:"), plain(p.Cause))
		}
		if p.Hint != "" {
			fmt.Fprintf(a.Stderr, "%s %s\n", a.err.bold("hint:"), plain(p.Hint))
		}
	}
	if len(list.Machines) == 0 {
		fmt.Fprintln(a.Stdout, "There are no machines.")
		return
	}
	t := table{header: []string{"NAME", "SITE", "POWER", ">CPUS", ">MEMORY", ">DISKS", ">SIZE", "PROTECTED"}}
	for _, m := range list.Machines {
		var total int64
		for _, d := range m.Disks {
			total += d.Size
		}
		t.add(m.Name, m.Site, m.Power, fmt.Sprint(m.CPUs), size(m.Memory), fmt.Sprint(len(m.Disks)), size(total), machineProtected(m))
	}
	t.colour = func(row, column int, text string) string {
		switch m := list.Machines[row]; {
		case column == 7 && m.Protected:
			return a.out.green(text)
		case column == 7 && len(m.Obstacles) > 0:
			return a.out.yellow(text)
		}
		return text
	}
	t.print(a.Stdout, a.out)
	for _, m := range list.Machines {
		if m.Protected || len(m.Obstacles) == 0 {
			continue
		}
		fmt.Fprintf(a.Stdout, "\n%s cannot be protected as it is:\n", a.out.bold(plain(m.Name)))
		for _, o := range m.Obstacles {
			fmt.Fprintf(a.Stdout, "  - %s\n", plain(o))
		}
	}
}

func machineProtected(m api.Machine) string {
	switch {
	case m.Protected && m.ItemName != "" && m.ItemName != m.Name:
		return "yes, as " + m.ItemName
	case m.Protected:
		return "yes"
	case len(m.Obstacles) > 0:
		return "no, see below"
	}
	return "no"
}
