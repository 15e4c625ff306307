package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

func (a *app) vaultShow() *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "The state of the vault", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(func(c *api.Client) error {
				vault, err := c.Vault(cmd.Context())
				if err != nil {
					return err
				}
				if a.json {
					printJSON(a.Stdout, vault)
					return nil
				}
				a.printVault(vault)
				return nil
			})
		},
	}
}

func (a *app) printVault(v api.Vault) {
	w := a.Stdout
	free := ""
	if v.FreeBytes != nil {
		free = size(*v.FreeBytes)
	}
	verified := "never"
	if r := v.LastVerify; r != nil {
		verified = fmt.Sprintf("%s, %s, %s", a.ago(r.FinishedAt), size(r.Bytes), damageText(*r))
	}
	fmt.Fprintf(w, "Vault %s: %s\n", a.out.bold(plain(v.ID)), a.out.grade(v.Health.Level, words(v.Health.Level)))
	fields(w, a.out,
		"Location", plain(v.Location),
		"Format", fmt.Sprint(v.FormatVersion),
		"Made", a.ago(v.CreatedAt),
		"Holds", size(v.Bytes),
		"Free", free,
		"Verified", verified,
		"Copy", a.copyText(v.Copy),
	)
	if len(v.Health.Findings) > 0 {
		fmt.Fprintf(w, "\n%s\n", a.out.bold("Findings"))
		a.printFindings(w, v.Health.Findings)
	}
	if len(v.Streams) > 0 {
		fmt.Fprintln(w)
		t := table{header: []string{"STREAM", "NAME", ">TIMELINES", ">SEGMENTS", ">SIZE", "OLDEST", "NEWEST"}}
		for _, s := range v.Streams {
			t.add(s.ID, s.Name, fmt.Sprint(s.Timelines), fmt.Sprint(s.Segments), size(s.Bytes), a.ago(s.Oldest), a.ago(s.Newest))
		}
		t.print(w, a.out)
	}
}

// copyText tells where the copy is, and how far.
func (a *app) copyText(c *api.VaultCopy) string {
	if c == nil {
		return ""
	}
	state := "not whole yet"
	if !c.AsOf.IsZero() {
		state = fmt.Sprintf("%s in %s, has all of %s", size(c.Bytes), count(int(c.Objects), "object", "objects"), a.ago(c.AsOf))
	}
	if c.Total > 0 {
		state += fmt.Sprintf(", copies %s of %s", size(c.Done), size(c.Total))
	}
	if len(c.Damaged) > 0 {
		state += ", " + a.out.red(count(len(c.Damaged), "object not copied because it is damaged", "objects not copied because they are damaged"))
	}
	if c.Problem != "" {
		state += ", " + a.out.red("fails: "+plain(c.Problem))
	}
	return plain(c.Location) + ": " + state
}

func damageText(r api.VerifyReport) string {
	if len(r.Damaged) == 0 {
		return "no damage"
	}
	return count(len(r.Damaged), "object damaged", "objects damaged")
}

// printVerify tells what a verification found.
func (a *app) printVerify(w io.Writer, r api.VerifyReport) {
	result := a.out.green("no damage")
	if len(r.Damaged) > 0 {
		result = a.out.red(damageText(r))
	}
	fmt.Fprintf(w, "Read %d segments, %s: %s.\n", r.Segments, size(r.Bytes), result)
	for _, d := range r.Damaged {
		fmt.Fprintf(w, "  %s: %s\n", plain(d.Object), plain(d.Detail))
		if d.First != "" {
			fmt.Fprintf(w, "    touches positions %s to %s of timeline %d\n", plain(d.First), plain(d.Last), d.Timeline)
		}
		for _, p := range d.Points {
			fmt.Fprintf(w, "    touches recovery point %s\n", plain(p))
		}
	}
	if len(r.Healed) > 0 {
		fmt.Fprintf(w, "Healed from the copy: %s.\n", count(len(r.Healed), "object", "objects"))
	}
	for _, name := range r.Healed {
		fmt.Fprintf(w, "  %s\n", plain(name))
	}
}
