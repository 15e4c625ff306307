package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/holdfast-dr/holdfast/api"
)

// lineEvery is how often at most progress is printed where it cannot be drawn
// over.
const lineEvery = 2 * time.Second

// waiting is whether a command that starts a job waits for its end.
type waiting struct{ wait, noWait bool }

func (o *waiting) flags(fs *pflag.FlagSet) {
	fs.BoolVar(&o.wait, "wait", true, "wait for the job's end and show its progress")
	fs.BoolVar(&o.noWait, "no-wait", false, "print the job and return at once")
}

// finish waits for a job that was started, if it is to, and says what came of
// it.
func (a *app) finish(cmd *cobra.Command, client *api.Client, job api.Job, o waiting) error {
	if o.noWait || !o.wait {
		if a.json {
			printJSON(a.Stdout, job)
			return nil
		}
		fmt.Fprintf(a.Stdout, "Started job %s: %s.\n", job.ID, jobTitle(job))
		fmt.Fprintf(a.Stdout, "Follow it with: holdfast job watch %s\n", job.ID)
		return nil
	}
	return a.watch(cmd.Context(), client, job.ID, nil)
}

// watch shows a job's progress until it has ended, and says what came of it.
// each, if not nil, is called with the job at each change instead.
func (a *app) watch(ctx context.Context, client *api.Client, id string, each func(api.Job)) error {
	view := &jobView{app: a, printed: map[string]bool{}}
	if each == nil {
		each = view.update
		if a.json {
			each = func(api.Job) {}
		}
	}
	job, err := client.WatchJob(ctx, id, func(j api.Job) error { each(j); return nil })
	view.clear()
	if err != nil {
		if ctx.Err() != nil && errors.Is(err, context.Canceled) && !a.json {
			fmt.Fprintf(a.Stderr, "The job goes on without this command. Follow it: holdfast job watch %s; stop it: holdfast job cancel %s\n", id, id)
		}
		return err
	}
	return a.outcome(job)
}

// outcome says what came of a job that has ended.
func (a *app) outcome(job api.Job) error {
	if a.json {
		printJSON(a.Stdout, job)
	} else if job.State == api.JobSucceeded {
		a.printResult(a.Stdout, job)
	}
	if job.State != api.JobSucceeded && !a.json {
		a.printProblem(jobProblem(job))
	}
	return a.verdict(job)
}

// verdict returns the error that a job's end is for the exit code; it was told
// already.
func (a *app) verdict(job api.Job) error {
	switch {
	case job.State != api.JobSucceeded:
		return errSaid
	case job.Result != nil && job.Result.Verify != nil && len(job.Result.Verify.Damaged) > 0:
		return errSaid
	case len(job.Warnings) > 0:
		return errPart
	}
	return nil
}

// jobProblem returns why a job did not succeed.
func jobProblem(job api.Job) *api.Problem {
	p := &api.Problem{Detail: fmt.Sprintf("job %s (%s) %s", job.ID, jobTitle(job), words(job.State))}
	switch {
	case job.Error != nil:
		if job.Error.Task != "" {
			p.Detail += " at " + taskTitle(job, job.Error.Task)
		}
		p.Cause, p.Hint = joinText(job.Error.Message, job.Error.Cause), job.Error.Hint
	case job.State == api.JobCancelled:
		p.Detail = fmt.Sprintf("job %s (%s) was cancelled", job.ID, jobTitle(job))
	}
	return p
}

// joinText joins a message and its cause, unless one tells the other already.
func joinText(message, cause string) string {
	switch {
	case cause == "" || strings.Contains(message, cause):
		return message
	case message == "" || strings.Contains(cause, message):
		return cause
	}
	return message + ": " + cause
}

// printResult says what a job that succeeded has brought.
func (a *app) printResult(w io.Writer, job api.Job) {
	state, grade := "Done", "ok"
	if len(job.Warnings) > 0 {
		state, grade = "Done in part", "warning"
	}
	line := a.out.grade(grade, state)
	if !job.StartedAt.IsZero() && !job.FinishedAt.IsZero() {
		line += " in " + span(job.FinishedAt.Sub(job.StartedAt).Seconds())
	}
	fmt.Fprintf(w, "%s: %s.\n", line, jobTitle(job))
	for _, warning := range job.Warnings {
		fmt.Fprintf(w, "%s %s\n", a.out.yellow("warning:"), plain(warning))
	}
	r := job.Result
	if r == nil {
		return
	}
	point := ""
	if r.Point != nil {
		point = a.pointText(*r.Point)
	}
	machine := plain(r.MachineName)
	if machine != "" && r.Site != "" {
		machine += " at " + plain(r.Site)
	}
	proof, moved, after := "", "", ""
	if r.Proved {
		proof = "source and vault were compared and are equal: nothing was lost"
	}
	if r.MovedBytes != nil {
		moved = size(*r.MovedBytes) + " written to disks that were there already"
	}
	if r.Test != "" {
		after = plain("remove it with: holdfast test-failover clean-up " + job.ItemName + " --test " + r.MachineName)
	}
	fields(w, a.out,
		"Machine", machine,
		"Recovered", point,
		"RPO", optionalSpan(r.RPOSeconds, ""),
		"RTO", optionalSpan(r.RTOSeconds, ""),
		"Proof", proof,
		"Moved", moved,
		"Test", after,
	)
	if r.Verify != nil {
		a.printVerify(w, *r.Verify)
	}
}

func jobTitle(job api.Job) string {
	title := job.Title
	if title == "" {
		title = words(job.Kind)
		if job.ItemName != "" {
			title += " " + job.ItemName
		}
	}
	return plain(title)
}

func taskTitle(job api.Job, name string) string {
	for _, t := range job.Tasks {
		if t.Name == name && t.Title != "" {
			return "“" + plain(t.Title) + "”"
		}
	}
	return plain(words(name))
}

// jobView shows a job while it goes on: a line for each task that has ended,
// and below it the present one, drawn over on a terminal.
type jobView struct {
	*app
	printed map[string]bool // ended tasks that were shown, and the heading
	drawn   bool            // whether the present line is on the screen
	last    time.Time       // when a line of progress was printed
	lastRow string
}

// update shows the job as it now stands.
func (v *jobView) update(job api.Job) {
	if !v.printed[""] {
		v.printed[""] = true
		fmt.Fprintf(v.Stderr, "Job %s: %s\n", job.ID, jobTitle(job))
	}
	current := ""
	for i, task := range job.Tasks {
		switch task.State {
		case api.JobSucceeded, api.JobFailed, api.JobCancelled, api.TaskSkipped:
			if key := fmt.Sprint(i, task.Name); !v.printed[key] {
				v.printed[key] = true
				v.clear()
				fmt.Fprintln(v.Stderr, v.taskLine(task))
			}
		case api.JobInProgress, api.JobCancelling, api.JobSuspended:
			progress := task.Progress
			if progress == nil {
				progress = job.Progress
			}
			current = v.presentLine(task, progress)
			if task.State == api.JobSuspended && !v.printed[job.Waiting+task.Name] {
				v.printed[job.Waiting+task.Name] = true
				v.clear()
				fmt.Fprintf(v.Stderr, "  %s %s\n  Answer with: holdfast job answer %s ANSWER; see holdfast plan result %s\n", v.err.yellow("asks:"), plain(job.Waiting), job.ID, job.ID)
			}
		}
	}
	if current == "" || job.Ended() {
		v.clear()
		return
	}
	v.draw(current)
}

// taskLine is the line of a task that has ended.
func (v *jobView) taskLine(task api.Task) string {
	mark := words(task.State)
	if task.State == api.JobSucceeded {
		mark = "done"
	}
	took := ""
	if !task.StartedAt.IsZero() && !task.FinishedAt.IsZero() {
		took = span(task.FinishedAt.Sub(task.StartedAt).Seconds())
	}
	line := "  " + v.err.grade(task.State, fmt.Sprintf("%-9s", mark)) + "  " + plain(task.Title)
	if took != "" {
		line += v.err.dim(" (" + took + ")")
	}
	return line
}

// presentLine is the line of the task that is being done: on a terminal, as
// much of it as fits.
func (v *jobView) presentLine(task api.Task, p *api.Progress) string {
	mark := "now"
	if task.State != api.JobInProgress {
		mark = words(task.State)
	}
	head := fmt.Sprintf("  %-9s  %s", mark, plain(task.Title))
	text := progressText(p)
	if text == "" {
		return head
	}
	full := head + "  " + text
	if !v.IsTerminal(v.Stderr) {
		return full
	}
	choices := []string{full}
	if p.Total > 0 {
		brief := strings.TrimPrefix(rateText(p), ", ")
		choices = []string{
			head + "  " + bar(p.Done, p.Total, 20) + "  " + text, full,
			head + "  " + bar(p.Done, p.Total, 10) + " " + percent(p.Done, p.Total) + "  " + brief,
			head + "  " + percent(p.Done, p.Total) + "  " + brief,
		}
	}
	width := v.Width() - 1 // the last column makes some terminals wrap
	for _, line := range choices {
		if utf8.RuneCountInString(line) <= width {
			return line
		}
	}
	last := []rune(choices[len(choices)-1])
	return string(last[:max(0, min(len(last), width-1))]) + "…"
}

// progressText tells progress in numbers: how much, how fast, how long yet.
func progressText(p *api.Progress) string {
	if p == nil || p.Done == 0 && p.Total == 0 {
		return ""
	}
	text := amount(p, p.Done)
	if p.Total > 0 {
		text += " of " + amount(p, p.Total)
	}
	if p.Unit != "bytes" && p.Unit != "" {
		text += " " + plain(p.Unit)
	}
	if p.Total > 0 {
		text += " (" + percent(p.Done, p.Total) + ")"
	}
	return text + rateText(p)
}

// rateText tells how fast, and how long yet, each led by a comma.
func rateText(p *api.Progress) string {
	text := ""
	if p.Rate > 0 {
		text = ", " + amount(p, int64(p.Rate)) + "/s"
	}
	if p.ETASeconds != nil {
		text += ", " + span(*p.ETASeconds) + " left"
	}
	return text
}

// amount tells a number in the unit of p.
func amount(p *api.Progress, n int64) string {
	if p.Unit == "bytes" {
		return size(n)
	}
	return fmt.Sprint(n)
}

func bar(done, total int64, width int) string {
	full := int(float64(min(done, total)) / float64(total) * float64(width))
	return strings.Repeat("█", full) + strings.Repeat("░", width-full)
}

// draw shows the present line: over the one before on a terminal, otherwise as
// a line of its own now and then.
func (v *jobView) draw(line string) {
	if v.IsTerminal(v.Stderr) {
		fmt.Fprint(v.Stderr, "\r\x1b[K"+line)
		v.drawn = true
		return
	}
	if now := v.Now(); line != v.lastRow && now.Sub(v.last) >= lineEvery {
		v.last, v.lastRow = now, line
		fmt.Fprintln(v.Stderr, line)
	}
}

// clear takes the present line off the screen.
func (v *jobView) clear() {
	if v.drawn {
		fmt.Fprint(v.Stderr, "\r\x1b[K")
		v.drawn = false
	}
}

// confirm asks on a terminal whether to go on. Where nobody can be asked, it
// takes the command for the answer.
func (a *app) confirm(yes bool, question string) error {
	if yes || !a.IsTerminal(a.Stdin) || !a.IsTerminal(a.Stderr) {
		return nil
	}
	fmt.Fprintf(a.Stderr, "%s [y/N] ", question)
	answer, err := readLine(a.Stdin)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the answer: %w", err)
	}
	if answer = strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
		fmt.Fprintln(a.Stderr, "Nothing was done.")
		return errSaid
	}
	return nil
}

// readLine reads up to the end of a line, and no byte more.
func readLine(r io.Reader) (string, error) {
	var line []byte
	for one := make([]byte, 1); len(line) < 64<<10; {
		n, err := r.Read(one)
		if n > 0 {
			if one[0] == '\n' {
				break
			}
			line = append(line, one[0])
		}
		if err != nil {
			return string(line), err
		}
	}
	return strings.TrimSuffix(string(line), "\r"), nil
}
