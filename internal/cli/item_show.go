package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

func (a *app) itemShow() *cobra.Command {
	return &cobra.Command{
		Use: "show ITEM", Short: "One replicated item: state, health, replication, and what can be done with it", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(func(c *api.Client) error {
				item, err := c.Item(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if a.json {
					printJSON(a.Stdout, item)
					return nil
				}
				a.printItem(a.Stdout, item)
				return nil
			})
		},
	}
}

func (a *app) printItem(w io.Writer, i api.Item) {
	fmt.Fprintf(w, "%s: %s, %s\n", a.out.bold(plain(i.Name)), a.out.grade(i.State, words(i.State)), a.out.grade(i.Health.Level, words(i.Health.Level)))
	var total int64
	for _, d := range i.Machine.Disks {
		total += d.Size
	}
	job := ""
	if i.CurrentJob != "" {
		job = i.CurrentJob + " (holdfast job watch " + i.CurrentJob + ")"
	}
	fields(w, a.out,
		"Machine", plain(fmt.Sprintf("%s at %s, %s of %s", i.Machine.Name, i.PrimarySite, count(len(i.Machine.Disks), "disk", "disks"), size(total))),
		"Direction", plain(directionText(i)+", active at "+i.ActiveSite),
		"Kept", keptText(i.Policy),
		"Held", plain(heldText(i.Stream.Hold)),
		"Tested", plain(a.testedText(i)),
		"Job", job,
		"Timeline", fmt.Sprintf("%d, generation %d", i.Stream.Timeline, i.Stream.Generation),
		"Protected", a.ago(i.CreatedAt),
	)
	if i.Replication != nil {
		a.printReplication(w, i)
	}
	if i.Recovery != nil {
		a.printRecovery(w, *i.Recovery)
	}
	if len(i.Test.Open) > 0 {
		fmt.Fprintf(w, "\n%s\n", a.out.bold("Test machines"))
		a.printTests(w, []api.Item{i}, false)
	}
	if len(i.Health.Findings) > 0 {
		fmt.Fprintf(w, "\n%s\n", a.out.bold("Findings"))
		a.printFindings(w, i.Health.Findings)
	}
	fmt.Fprintf(w, "\n%s\n", a.out.bold("Operations"))
	allowed := "nothing now"
	if len(i.Allowed) > 0 {
		allowed = words(strings.Join(i.Allowed, ", "))
	}
	fmt.Fprintf(w, "  allowed: %s\n", plain(allowed))
	var missing []string
	for _, b := range i.Blocked {
		if b.Missing {
			missing = append(missing, words(b.Operation))
			continue
		}
		fmt.Fprintf(w, "  not allowed: %s: %s\n", plain(words(b.Operation)), plain(b.Reason))
		if b.NextStep != "" {
			fmt.Fprintf(w, "    next: %s\n", plain(b.NextStep))
		}
	}
	if len(missing) > 0 {
		fmt.Fprintf(w, "  not in this version: %s\n", plain(strings.Join(missing, ", ")))
	}
}

func heldText(h *api.Hold) string {
	if h == nil {
		return ""
	}
	return fmt.Sprintf("nothing is removed since %s, by %s: %s", moment(h.Since), h.By, h.Reason)
}

func (a *app) printReplication(w io.Writer, i api.Item) {
	r := *i.Replication
	rpo := optionalSpan(r.RPOSeconds, "nothing can be recovered yet")
	if overRPO(i) {
		rpo = a.out.yellow(rpo)
	}
	if i.Policy.RPOThreshold > 0 {
		rpo += fmt.Sprintf(" (warning above %s)", span(float64(i.Policy.RPOThreshold)))
	}
	backlog := "none"
	if r.BacklogBytes > 0 {
		backlog = size(r.BacklogBytes)
	}
	newest := ""
	if r.Newest != nil {
		newest = fmt.Sprintf("%s, %s (timeline %d, position %s)", moment(r.Newest.Time), a.ago(r.Newest.Time), r.Newest.Timeline, plain(r.Newest.Position))
	}
	heard := ""
	if !r.LastReceivedAt.IsZero() {
		heard = a.ago(r.LastReceivedAt)
	}
	fmt.Fprintf(w, "\n%s\n", a.out.bold("Replication"))
	fields(w, a.out,
		"Mode", a.out.grade(r.Mode, modeText(r)),
		"RPO", rpo,
		"Backlog", backlog,
		"Newest", newest,
		"Source heard", heard,
		"Arriving", size(int64(r.Rate))+"/s",
		"Compared", a.comparison(r.Comparison),
		"Bytes", fmt.Sprintf("%s received, %s sent, %s stored", size(r.ReceivedBytes), size(r.SentBytes), size(r.StoredBytes)),
	)
	if done, total := syncTotal(r); total > 0 && done < total {
		for _, d := range r.Disks {
			fmt.Fprintf(w, "  disk %s: %s of %s (%s)\n", plain(d.ID), size(d.Done), size(d.Total), percent(d.Done, d.Total))
		}
	}
}

// comparison says how far the machine's disks are compared with the vault.
func (a *app) comparison(c *api.Comparison) string {
	if c == nil {
		return ""
	}
	text := "never yet as a whole"
	if !c.CompletedAt.IsZero() {
		text = "all of it, without a difference, " + a.ago(c.CompletedAt)
	}
	if c.Done < c.Total {
		text += fmt.Sprintf("; %s of this round", percent(c.Done, c.Total))
	}
	for _, l := range c.Lost {
		if l.FoundAt.After(c.CompletedAt) {
			return a.out.red(fmt.Sprintf("%s of disk %s were not in the vault, found %s", size(l.Bytes), plain(l.Disk), a.ago(l.FoundAt)))
		}
	}
	if c.Problem != "" {
		text += "; it waits: " + plain(c.Problem)
	}
	return text
}

func (a *app) printRecovery(w io.Writer, r api.Recovery) {
	local := "all on local disks: nothing depends on the vault any more"
	if r.NeedsView {
		local = fmt.Sprintf("%s of %s (%s) on local disks; the rest is read from the vault", size(r.HydratedBytes), size(r.TotalBytes), percent(r.HydratedBytes, r.TotalBytes))
	}
	started := ""
	if !r.StartedAt.IsZero() {
		started = a.ago(r.StartedAt)
	}
	fmt.Fprintf(w, "\n%s\n", a.out.bold("Recovered machine"))
	fields(w, a.out,
		"Machine", plain(fmt.Sprintf("%s at %s, %s", r.MachineName, r.Site, r.Power)),
		"From", a.pointText(r.Point),
		"Started", started,
		"Data", local,
		"RPO", optionalSpan(r.RPOSeconds, ""),
		"RTO", optionalSpan(r.RTOSeconds, ""),
	)
}

func (a *app) printFindings(w io.Writer, findings []api.Finding) {
	for _, f := range findings {
		since := ""
		if !f.Since.IsZero() {
			since = ", since " + a.ago(f.Since)
		}
		code := ""
		if f.Code != "" {
			code = " " + plain(f.Code)
		}
		fmt.Fprintf(w, "  %s%s: %s%s\n", a.out.grade(f.Severity, f.Severity), code, plain(f.Summary), since)
		if f.Cause != "" {
			fmt.Fprintf(w, "    cause: %s\n", plain(f.Cause))
		}
		if f.Advice != "" {
			fmt.Fprintf(w, "    advice: %s\n", plain(f.Advice))
		}
	}
}
