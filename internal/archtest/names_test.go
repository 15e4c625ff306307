package archtest_test

import (
	"fmt"
	"go/ast"
	"go/token"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

var nameRules = []rule{
	{"package name", checkPackageNames},
	{"type name", checkTypeNames},
	{"package comment", checkPackageComments},
	{"documented", checkDocumented},
	{"glossary", checkGlossary},
}

var (
	forbiddenPackages = []string{"util", "utils", "common", "helper", "helpers", "types", "models", "misc", "base", "shared"}
	forbiddenSuffixes = []string{"Manager", "Impl", "Info", "Data", "Helper"}
	// knownMethods need no comment: everybody knows what they do.
	knownMethods = []string{"Error", "Unwrap", "Is", "String", "Close", "MarshalText", "UnmarshalText", "MarshalJSON", "UnmarshalJSON"}
)

func checkPackageNames(t *tree) []violation {
	var found []violation
	for _, p := range t.sorted() {
		for _, part := range strings.Split(p.dir, "/") {
			if slices.Contains(forbiddenPackages, part) {
				found = append(found, violation{where: p.dir, text: part + " says nothing: name it for what it has"})
			}
		}
		for _, s := range p.files {
			name := strings.TrimSuffix(s.ast.Name.Name, "_test")
			if want := path.Base(p.dir); p.dir != "." && name != "main" && name != want {
				found = append(found, violation{where: s.name, text: fmt.Sprintf("package %s in directory %s", name, want)})
			}
		}
	}
	return found
}

func checkTypeNames(t *tree) []violation {
	var found []violation
	for _, p := range t.sorted() {
		for _, s := range p.production() {
			each(s, func(_ ast.Decl, n ast.Node) {
				spec, ok := n.(*ast.TypeSpec)
				if !ok {
					return
				}
				for _, suffix := range forbiddenSuffixes {
					if strings.HasSuffix(spec.Name.Name, suffix) {
						found = append(found, violation{where: s.name + " " + spec.Name.Name, text: suffix + " says nothing: name the thing"})
					}
				}
			})
		}
	}
	return found
}

// checkPackageComments wants one comment in each package, in one file, that
// begins "Package name" or, for a command, "Command name".
func checkPackageComments(t *tree) []violation {
	var found []violation
	for _, p := range t.sorted() {
		var files []string
		production := p.production()
		for _, s := range production {
			if s.ast.Doc == nil || strings.TrimSpace(s.ast.Doc.Text()) == "" {
				continue
			}
			files = append(files, s.name)
			want := "Package " + s.ast.Name.Name + " "
			if s.ast.Name.Name == "main" {
				want = "Command " + path.Base(p.dir) + " "
			}
			if !strings.HasPrefix(s.ast.Doc.Text(), want) {
				found = append(found, violation{where: s.name, text: fmt.Sprintf("the package comment does not begin with %q", want)})
			}
		}
		if len(production) > 0 && len(files) != 1 {
			found = append(found, violation{where: p.dir, text: fmt.Sprintf("has %d package comments, want one: %v", len(files), files)})
		}
	}
	return found
}

// sentence says whether a comment is one about the name: it begins with it and
// has an end.
func sentence(doc *ast.CommentGroup, name string) bool {
	if doc == nil {
		return false
	}
	text := doc.Text()
	return strings.HasPrefix(text, name) && strings.ContainsAny(text, ".:") &&
		!strings.HasPrefix(strings.TrimPrefix(text, name), "_") && strings.TrimSpace(strings.TrimPrefix(text, name)) != "."
}

// checkDocumented wants a sentence about every exported name, beginning with
// the name. A group of constants or variables may have one sentence for all.
func checkDocumented(t *tree) []violation {
	var found []violation
	for _, p := range t.sorted() {
		for _, s := range p.production() {
			if s.ast.Name.Name == "main" {
				continue
			}
			complain := func(name string) {
				found = append(found, violation{where: s.name + " " + name, text: "wants a comment that is a sentence and begins with the name"})
			}
			for _, decl := range s.ast.Decls {
				switch d := decl.(type) {
				case *ast.FuncDecl:
					method := d.Recv != nil
					name := symbol(d)
					visible := d.Name.IsExported() && (!method || ast.IsExported(strings.Split(name, ".")[0]))
					if visible && !(method && slices.Contains(knownMethods, d.Name.Name)) && !sentence(d.Doc, d.Name.Name) {
						complain(name)
					}
				case *ast.GenDecl:
					undocumented(d, complain)
				}
			}
		}
	}
	return found
}

func undocumented(d *ast.GenDecl, complain func(name string)) {
	grouped := d.Lparen.IsValid() && d.Doc != nil
	for _, spec := range d.Specs {
		switch s := spec.(type) {
		case *ast.TypeSpec:
			doc := s.Doc
			if doc == nil {
				doc = d.Doc
			}
			if !s.Name.IsExported() {
				continue
			}
			if !sentence(doc, s.Name.Name) {
				complain(s.Name.Name)
			}
			// An interface of one method says with its own comment what that does.
			if i, ok := s.Type.(*ast.InterfaceType); ok && len(i.Methods.List) > 1 {
				for _, m := range i.Methods.List {
					if len(m.Names) == 1 && m.Names[0].IsExported() && !slices.Contains(knownMethods, m.Names[0].Name) && !sentence(m.Doc, m.Names[0].Name) {
						complain(s.Name.Name + "." + m.Names[0].Name)
					}
				}
			}
		case *ast.ValueSpec:
			for _, n := range s.Names {
				documented := grouped || s.Comment != nil || sentence(s.Doc, s.Names[0].Name) || !d.Lparen.IsValid() && sentence(d.Doc, s.Names[0].Name)
				if n.IsExported() && !documented {
					complain(n.Name)
				}
			}
		}
	}
}

var synonymRow = regexp.MustCompile(`^\| ([^|]+) \| not ([^|]+) \|`)

// synonyms reads from the glossary the words that are not used, and what is
// said in their place.
func synonyms(glossary string) map[string]string {
	words := make(map[string]string)
	for line := range strings.Lines(glossary) {
		if m := synonymRow.FindStringSubmatch(line); m != nil {
			for _, w := range strings.Split(m[2], ",") {
				words[strings.ToLower(strings.TrimSpace(w))] = strings.TrimSpace(m[1])
			}
		}
	}
	return words
}

// parts splits a Go name at its capitals: "NewVMDisk" is new, vm, disk.
func parts(name string) []string {
	var out []string
	runes := []rune(name)
	start := 0
	for i := 1; i <= len(runes); i++ {
		if i == len(runes) || unicode.IsUpper(runes[i]) && (!unicode.IsUpper(runes[i-1]) || i+1 < len(runes) && unicode.IsLower(runes[i+1])) {
			out = append(out, strings.ToLower(string(runes[start:i])))
			start = i
		}
	}
	return out
}

// checkGlossary looks for the glossary's forbidden words in exported names.
func checkGlossary(t *tree) []violation {
	var found []violation
	words := synonyms(t.texts["docs/glossary.md"])
	look := func(s *source, id *ast.Ident) {
		if !id.IsExported() {
			return
		}
		split := parts(id.Name)
		for i := range split {
			candidates := []string{split[i]}
			if i+1 < len(split) {
				candidates = append(candidates, split[i]+" "+split[i+1])
			}
			for _, w := range candidates {
				if right, ok := words[w]; ok {
					found = append(found, violation{where: s.name + " " + id.Name, text: fmt.Sprintf("the glossary says %q, not %q", right, w)})
				}
			}
		}
	}
	for _, p := range t.sorted() {
		for _, s := range p.production() {
			for _, decl := range s.ast.Decls {
				switch d := decl.(type) {
				case *ast.FuncDecl:
					look(s, d.Name)
				case *ast.GenDecl:
					if d.Tok != token.IMPORT {
						ast.Inspect(d, func(n ast.Node) bool {
							switch n := n.(type) {
							case *ast.TypeSpec:
								look(s, n.Name)
							case *ast.Field:
								for _, id := range n.Names {
									look(s, id)
								}
							case *ast.ValueSpec:
								for _, id := range n.Names {
									look(s, id)
								}
							}
							return true
						})
					}
				}
			}
		}
	}
	return found
}

func TestNameRules(t *testing.T) {
	t.Parallel()
	checkFixtures(t, nameRules, []fixture{
		{"package name", map[string]string{
			"internal/util/a.go":      "package util",
			"internal/a/helpers/a.go": "package helpers",
			"internal/utility/a.go":   "package other",
			"internal/b/b_test.go":    "package b_test",
			"cmd/b/main.go":           "package main",
			"root.go":                 "package holdfast",
		}, []string{"internal/a/helpers", "internal/util", "internal/utility/a.go"}},
		{"type name", map[string]string{
			"a/a.go":      "package a\ntype DiskManager struct{}\ntype info int\ntype diskInfo int\ntype Database int",
			"a/a_test.go": "package a\ntype xImpl int",
		}, []string{"a/a.go DiskManager", "a/a.go diskInfo"}},
		{"package comment", map[string]string{
			"a/a.go":      "// Package a is good.\npackage a",
			"a/b.go":      "package a",
			"b/a.go":      "// Package b is one.\npackage b",
			"b/b.go":      "// Package b is two.\npackage b",
			"c/a.go":      "package c",
			"d/a.go":      "// Something else.\npackage d",
			"cmd/e/e.go":  "// Command e does it.\npackage main",
			"f/f_test.go": "package f_test",
		}, []string{"b", "c", "d/a.go"}},
		{"documented", map[string]string{
			"a/a.go": `package a
// Good is.
type Good struct{}
type Bad struct{}
// It is wrong.
type Wrong int
// Error says nothing
func (Good) Error() string { return "" }
func (Good) Size() int { return 0 }
func (small) Size() int { return 0 }
type small int
// Face has methods.
type Face interface {
	// Do does.
	Do()
	Undo()
}
// Two in one.
const (
	A = 1
	B = 2
)
const C = 3
const (
	D = 1 // D counts.
	E = 2
)
// Half
func Half() {}
`,
			"cmd/a/main.go": "package main\nfunc Exported() {}",
		}, []string{"a/a.go Bad", "a/a.go C", "a/a.go E", "a/a.go Face.Undo", "a/a.go Good.Size", "a/a.go Half", "a/a.go Wrong"}},
		{"glossary", map[string]string{
			"docs/glossary.md": "| word | not |\n| machine | not VM, virtual machine |\n| recovery point | not restore point, snapshot id |\n",
			"a/a.go": `package a
type VMDisk struct { RestorePoint int; restorePoint int; Point int }
func NewVM(vm int) {}
var Restore, Pointer, SnapshotID, Snapshot int
func (VMDisk) ListVMs() {}
`,
		}, []string{"a/a.go NewVM", "a/a.go RestorePoint", "a/a.go SnapshotID", "a/a.go VMDisk"}},
	})
}

func TestParts(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"NewVMDisk": "new vm disk", "ID": "id", "AtRPO": "at rpo", "x": "x", "HTTPServer": "http server"} {
		if got := strings.Join(parts(name), " "); got != want {
			t.Errorf("parts of %s: %q, want %q", name, got, want)
		}
	}
}
