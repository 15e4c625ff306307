package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// style colours text, or leaves it as it is.
type style struct{ on bool }

func newStyle(on bool) style { return style{on: on} }

func (s style) paint(code, text string) string {
	if !s.on || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (s style) bold(text string) string   { return s.paint("1", text) }
func (s style) dim(text string) string    { return s.paint("2", text) }
func (s style) red(text string) string    { return s.paint("31", text) }
func (s style) green(text string) string  { return s.paint("32", text) }
func (s style) yellow(text string) string { return s.paint("33", text) }

// grade colours text by how bad a word is.
func (s style) grade(word, text string) string {
	switch word {
	case "healthy", "protected", "succeeded", "ok", "running", "continuous", "yes":
		return s.green(text)
	case "critical", "failed", "stalled", "disconnected", "down":
		return s.red(text)
	case "warning", "backlog", "rescan", "paused", "cancelling", "cancelled", "degraded", "suspended":
		return s.yellow(text)
	}
	return text
}

// printJSON prints a value of the api as it is.
func printJSON(w io.Writer, v any) {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // whoever closed the stream does not want it
}

// plain returns text without what a terminal would take for a command: names
// of machines and texts of errors come from elsewhere.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if unicode.IsControl(r) || r == utf8.RuneError || unicode.Is(unicode.Bidi_Control, r) {
			return '?'
		}
		return r
	}, text)
}

// words makes a name of the api readable: commit_pending → commit pending.
func words(name string) string { return strings.ReplaceAll(name, "_", " ") }

// table prints rows in aligned columns. A header that begins with > is of a
// column aligned to the right. colour, if not nil, is given the row, the column
// and the padded text of each cell.
type table struct {
	header []string
	rows   [][]string
	colour func(row, column int, text string) string
}

func (t *table) add(cells ...string) {
	for i := range cells {
		cells[i] = plain(cells[i])
	}
	t.rows = append(t.rows, cells)
}

func (t *table) print(w io.Writer, s style) {
	widths := make([]int, len(t.header))
	for i, h := range t.header {
		widths[i] = utf8.RuneCountInString(strings.TrimPrefix(h, ">"))
	}
	for _, row := range t.rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	line := func(row int, cells []string) {
		var b strings.Builder
		for i, cell := range cells {
			space := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			text := cell
			switch {
			case row < 0:
				text = s.bold(cell)
			case t.colour != nil:
				text = t.colour(row, i, cell)
			}
			if strings.HasPrefix(t.header[i], ">") {
				text = space + text
			} else if i < len(cells)-1 {
				text += space
			}
			if i > 0 {
				b.WriteString("  ")
			}
			b.WriteString(text)
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
	titles := make([]string, len(t.header))
	for i, h := range t.header {
		titles[i] = strings.TrimPrefix(h, ">")
	}
	line(-1, titles)
	for i, row := range t.rows {
		line(i, row)
	}
}

// fields prints names and values in two columns, leaving out empty values.
func fields(w io.Writer, s style, pairs ...string) {
	width := 0
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			width = max(width, utf8.RuneCountInString(pairs[i]))
		}
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			fmt.Fprintf(w, "  %s  %s\n", s.dim(fmt.Sprintf("%-*s", width, pairs[i])), pairs[i+1])
		}
	}
}

// size returns a number of bytes with a binary unit and three digits or so.
func size(n int64) string {
	if n < 1024 && n > -1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/1024, 0
	for ; math.Abs(value) >= 1023.5 && unit < 4; unit++ {
		value /= 1024
	}
	digits := 1
	if math.Abs(value) >= 99.95 {
		digits = 0
	}
	return fmt.Sprintf("%.*f %s", digits, value, []string{"KiB", "MiB", "GiB", "TiB", "PiB"}[unit])
}

// span returns a number of seconds in units that people use, never rounded to
// nothing.
func span(seconds float64) string {
	switch {
	case math.IsNaN(seconds) || math.IsInf(seconds, 0):
		return "unknown"
	case seconds < 0:
		return "-" + span(-seconds)
	case seconds == 0:
		return "0 s"
	case seconds < 0.0995:
		return fmt.Sprintf("%.0f ms", math.Max(1, math.Round(seconds*1000)))
	case seconds < 9.95:
		return fmt.Sprintf("%.1f s", seconds)
	case seconds < 59.5:
		return fmt.Sprintf("%.0f s", seconds)
	}
	whole := int64(math.Round(seconds))
	two := func(big int64, bigUnit string, small int64, smallUnit string) string {
		text := fmt.Sprintf("%d %s", whole/big, bigUnit)
		if rest := whole % big / small; rest > 0 {
			text += fmt.Sprintf(" %d %s", rest, smallUnit)
		}
		return text
	}
	switch {
	case whole < 3600:
		return two(60, "min", 1, "s")
	case whole < 86400:
		return two(3600, "h", 60, "min")
	}
	return two(86400, "d", 3600, "h")
}

// optionalSpan returns a span, or a word for one that is not known.
func optionalSpan(seconds *float64, otherwise string) string {
	if seconds == nil {
		return otherwise
	}
	return span(*seconds)
}

// ago returns how long before now a time is.
func (a *app) ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := a.Now().Sub(t).Seconds()
	switch {
	case d < -1:
		return "in " + coarse(-d)
	case d < 1:
		return "just now"
	}
	return coarse(d) + " ago"
}

// coarse returns a number of seconds in its largest unit.
func coarse(seconds float64) string {
	whole := int64(seconds)
	switch {
	case whole < 60:
		return fmt.Sprintf("%d s", whole)
	case whole < 3600:
		return fmt.Sprintf("%d min", whole/60)
	case whole < 2*86400:
		return fmt.Sprintf("%d h", whole/3600)
	}
	return fmt.Sprintf("%d d", whole/86400)
}

// moment returns a time to the second, in UTC, so that it can be given back to
// a command on any machine.
func moment(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02T15:04:05Z")
}

// percent returns done as a part of total, rounded down, so that 100 % is all.
func percent(done, total int64) string {
	if total <= 0 {
		return "-"
	}
	return fmt.Sprintf("%d%%", int64(float64(min(done, total))/float64(total)*100))
}

// count returns a number with the word for what is counted.
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func orElse(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}
