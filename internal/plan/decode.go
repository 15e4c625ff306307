package plan

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Problem is something wrong with a plan's text.
type Problem struct {
	Line int    // 0: not of one line
	Text string // what is wrong, and what to do
}

// String returns it with its line.
func (p Problem) String() string {
	if p.Line == 0 {
		return p.Text
	}
	return fmt.Sprintf("line %d: %s", p.Line, p.Text)
}

// Error is all that is wrong with a plan's text.
type Error struct{ Problems []Problem }

// Error returns the problems, one after the other.
func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "; ")
}

// wrong is a problem that the reader of a value found, of a kind that lets the
// reader go on: so all are told at once.
func wrong(line int, format string, args ...any) error {
	return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: ", line) + fmt.Sprintf(format, args...)}}
}

// Digest names a plan's text: the SHA-256 of it, in hexadecimal digits.
func Digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// Parse reads a plan. What it does not know is an error, so that nothing that
// somebody wrote is passed over in silence. It fails with an *Error.
func Parse(text string) (*Plan, error) {
	if len(text) > MaxText {
		return nil, &Error{[]Problem{{Text: fmt.Sprintf("the text has %d bytes, at most %d are taken", len(text), MaxText)}}}
	}
	d := yaml.NewDecoder(bytes.NewReader([]byte(text)))
	d.KnownFields(true)
	p := new(Plan)
	switch err := d.Decode(p); {
	case errors.Is(err, io.EOF):
		return nil, &Error{[]Problem{{Text: "the text is empty: want a mapping with name and groups"}}}
	case err != nil:
		return nil, &Error{explain(err)}
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, &Error{[]Problem{{Text: "the text has a second document: one plan is one document"}}}
	}
	var root yaml.Node
	if err := yaml.Unmarshal([]byte(text), &root); err != nil {
		return nil, &Error{explain(err)}
	}
	if problems := (&checker{plan: p, root: &root}).check(); len(problems) > 0 {
		return nil, &Error{problems}
	}
	return p, nil
}

var (
	atLine   = regexp.MustCompile(`^(?:yaml: )?(?:construct errors: )?line (\d+): (.*)$`)
	unknown  = regexp.MustCompile(`^field (\S+) not found in type plan\.(\w+)$`)
	badValue = regexp.MustCompile("^cannot unmarshal !!(\\w+) (?:`(.*)` )?into (\\S+)$")
)

// explain says what the reader of YAML found, in a plan's words.
func explain(err error) []Problem {
	lines := []string{err.Error()}
	var many *yaml.TypeError
	if errors.As(err, &many) {
		lines = many.Errors
	}
	var out []Problem
	for _, text := range lines {
		p := Problem{Text: strings.TrimPrefix(text, "yaml: ")}
		if m := atLine.FindStringSubmatch(p.Text); m != nil {
			_, _ = fmt.Sscan(m[1], &p.Line) // digits
			p.Text = m[2]
		}
		if m := unknown.FindStringSubmatch(p.Text); m != nil {
			p.Text = fmt.Sprintf("%s is not known here: want one of %s", m[1], strings.Join(fields(m[2]), ", "))
		}
		if m := badValue.FindStringSubmatch(p.Text); m != nil {
			p.Text = fmt.Sprintf("this is %s, want %s", kindOf(m[1]), wanted(m[3]))
		}
		out = append(out, p)
	}
	return out
}

func kindOf(tag string) string {
	switch tag {
	case "seq":
		return "a list"
	case "map":
		return "a mapping"
	case "str":
		return "text"
	case "int":
		return "a number"
	}
	return tag
}

func wanted(goType string) string {
	switch {
	case strings.HasPrefix(goType, "[]"):
		return "a list"
	case strings.HasPrefix(goType, "map["), strings.HasPrefix(goType, "plan.") && len(fields(goType[5:])) > 0:
		return "a mapping"
	case goType == "int":
		return "a number"
	case goType == "bool":
		return "true or false"
	}
	return "text"
}

// fields are the names of what may be in a mapping, by the Go type's name.
func fields(name string) []string {
	for _, v := range mappings {
		if t := typeOf(v); t.Name() == name {
			var out []string
			for i := range t.NumField() {
				tag, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
				out = append(out, tag)
			}
			slices.Sort(out)
			return out
		}
	}
	return nil
}
