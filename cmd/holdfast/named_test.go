package main

import (
	"bytes"
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/cli"
)

var (
	commandNamed = regexp.MustCompile(`\bholdfast((?: [a-z][a-z-]*[a-z])+)`)
	usageLine    = regexp.MustCompile(`(?m)^Usage:\n  holdfast((?: [a-z][a-z-]*)+)`)
)

// noCommands are words after the program's name that name none.
var noCommands = map[string]string{
	" program":  "the program itself",
	" recovery": "seeds the identity of recovered machines",
}

// TestNamedCommands wants every command that a message or a document tells
// people to run to be there.
func TestNamedCommands(t *testing.T) {
	t.Parallel()
	known := map[string]bool{}
	seen := 0
	look := func(where, text string) {
		for _, m := range commandNamed.FindAllStringSubmatch(text, -1) {
			if seen++; noCommands[m[1]] != "" {
				continue
			}
			if _, ok := known[m[1]]; !ok {
				known[m[1]] = isCommand(t, m[1])
			}
			if !known[m[1]] {
				t.Errorf("%s names holdfast%s, which is no command", where, m[1])
			}
		}
	}
	err := filepath.WalkDir("../..", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "testdata"):
			return fs.SkipDir
		case strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go"):
			return inStrings(name, look)
		case strings.HasSuffix(name, ".md"):
			text, err := os.ReadFile(name)
			look(name, string(text))
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 50 {
		t.Errorf("%d names of commands were found: the search is broken", seen)
	}
}

// inStrings calls look with every string of a file.
func inStrings(name string, look func(where, text string)) error {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, nil, parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	ast.Inspect(file, func(n ast.Node) bool {
		lit, ok := n.(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING {
			return true
		}
		if text, err := strconv.Unquote(lit.Value); err == nil {
			look(set.Position(lit.Pos()).String(), text)
		}
		return true
	})
	return nil
}

// isCommand says whether words begin with a command. The name of a group of
// commands is one by itself alone.
func isCommand(t *testing.T, words string) bool {
	t.Helper()
	var out bytes.Buffer
	cli.Run(context.Background(), cli.Env{Stdout: &out, Stderr: &out, Getenv: func(string) string { return "" }, ExtraCommands: extraCommands}, append(strings.Fields(words), "--help"))
	m := usageLine.FindStringSubmatch(out.String())
	return m != nil && (m[1] == words || !strings.Contains(out.String(), "Available Commands:"))
}

func TestIsCommand(t *testing.T) {
	t.Parallel()
	for words, want := range map[string]bool{
		" item show": true, " item show tells how far": true, " item": true, " server": true, " inspect segment": true, " failover": true,
		" item look": false, " nothing": false, " recover": false,
	} {
		if got := isCommand(t, words); got != want {
			t.Errorf("holdfast%s is a command: %v, want %v", words, got, want)
		}
	}
}
