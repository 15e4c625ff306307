package report

import (
	"bytes"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"time"

	"github.com/holdfast-dr/holdfast/api"
)

//go:embed page.html
var pageText string

// bar is a step or a machine on the time axis, in percent of the whole.
type bar struct {
	Label, State string
	Left, Width  float64
	Took         string
}

// printed is what the page shows.
type printed struct {
	Report
	Signed  Signed
	Bars    []bar
	Whole   string
	Verdict string
}

// Page writes the report as one page that needs nothing else: for the screen and
// for paper. Who signed is shown as it was found by Open.
func Page(w io.Writer, r Report, who Signed) error {
	t, err := template.New("page").Funcs(template.FuncMap{
		"clock": clock,
		"when":  func(t time.Time) string { return moment(t) },
		"span":  func(s *float64) string { return span(s) },
		"data": func(p *Picture) template.URL {
			return template.URL("data:image/png;base64," + base64.StdEncoding.EncodeToString(p.PNG))
		}, //nolint:gosec // our own encoding of bytes
		"point": pointText, "words": words,
	}).Parse(pageText)
	if err != nil {
		return err
	}
	d := printed{Report: r, Signed: who, Verdict: r.Run.Outcome}
	d.Bars, d.Whole = bars(r.Run)
	var page bytes.Buffer
	if err := t.Execute(&page, d); err != nil {
		return err
	}
	_, err = w.Write(bytes.Map(visible, page.Bytes()))
	return err
}

// visible replaces characters that show nothing, or change how others are shown.
func visible(r rune) rune {
	switch {
	case r == '\n' || r == '\t':
		return r
	case r < ' ' || r >= 0x7f && r < 0xa0, r >= 0x200b && r <= 0x200f, r >= 0x202a && r <= 0x202e, r >= 0x2060 && r <= 0x2069, r == 0xfeff:
		return '\uFFFD'
	}
	return r
}

// bars lays the steps out on the time of the run.
func bars(r api.PlanRun) (out []bar, whole string) {
	begin, end := r.StartedAt, r.EndedAt
	total := end.Sub(begin).Seconds()
	if total <= 0 {
		return nil, ""
	}
	for _, s := range r.Steps {
		if s.StartedAt.IsZero() || s.FinishedAt.IsZero() {
			continue
		}
		took := s.FinishedAt.Sub(s.StartedAt).Seconds()
		out = append(out, bar{Label: s.Title, State: s.State, Left: 100 * s.StartedAt.Sub(begin).Seconds() / total, Width: max(0.4, 100*took/total), Took: span(&took)})
	}
	return out, span(&total)
}

func moment(t time.Time) string {
	if t.IsZero() {
		return "–"
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC")
}

func clock(t time.Time) string {
	if t.IsZero() {
		return "–"
	}
	return t.UTC().Format("15:04:05")
}

func span(s *float64) string {
	switch {
	case s == nil:
		return "–"
	case *s < 1:
		return fmt.Sprintf("%.0f ms", *s*1000)
	case *s < 120:
		return fmt.Sprintf("%.1f s", *s)
	default:
		return time.Duration(*s * float64(time.Second)).Round(time.Second).String()
	}
}

func pointText(p *api.Point) string {
	if p == nil {
		return "–"
	}
	name := p.Name
	if name != "" {
		name += ", "
	}
	return fmt.Sprintf("%s%s, %s-consistent", name, p.Time.UTC().Format("2006-01-02 15:04:05.000 UTC"), p.Consistency)
}

func words(s string) string {
	out := []byte(s)
	for i, c := range out {
		if c == '_' {
			out[i] = ' '
		}
	}
	return string(out)
}
