package archtest_test

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

const module = "github.com/holdfast-dr/holdfast"

// source is one Go file.
type source struct {
	name string // from the root, with slashes
	test bool   // name ends in _test.go
	ast  *ast.File
	text string
}

// pack is the Go files of one directory; "." is the root.
type pack struct {
	dir   string
	files []*source
}

// tree is a checkout: Go files by directory, and all text files by name.
type tree struct {
	fset  *token.FileSet
	packs map[string]*pack
	texts map[string]string
}

// violation is one place where a rule is broken.
type violation struct {
	rule string
	// where is a file, or the file and the symbol: the key of exceptions.
	where string
	text  string
}

func (v violation) String() string { return fmt.Sprintf("%s: %s: %s", v.rule, v.where, v.text) }

type rule struct {
	name  string
	check func(*tree) []violation
}

// skipped are directories that are not part of the project.
var skipped = map[string]bool{".git": true, "bin": true, "tmp": true, ".demo": true, ".cache": true, "node_modules": true}

func load(fsys fs.FS) (*tree, error) {
	t := &tree{fset: token.NewFileSet(), packs: make(map[string]*pack), texts: make(map[string]string)}
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && skipped[d.Name()]:
			return fs.SkipDir
		case d.IsDir() || !d.Type().IsRegular():
			return nil
		}
		content, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		text := string(content)
		if !strings.Contains(text[:min(len(text), 8000)], "\x00") {
			t.texts[name] = text
		}
		if path.Ext(name) != ".go" || strings.Contains(name, "testdata/") {
			return nil
		}
		file, err := parser.ParseFile(t.fset, name, content, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		dir := path.Dir(name)
		if t.packs[dir] == nil {
			t.packs[dir] = &pack{dir: dir}
		}
		t.packs[dir].files = append(t.packs[dir].files, &source{name, strings.HasSuffix(name, "_test.go"), file, text})
		return nil
	})
	return t, err
}

// sorted returns the packages by directory.
func (t *tree) sorted() []*pack {
	packs := make([]*pack, 0, len(t.packs))
	for _, p := range t.packs {
		packs = append(packs, p)
	}
	slices.SortFunc(packs, func(a, b *pack) int { return cmp.Compare(a.dir, b.dir) })
	return packs
}

// production returns the files that are part of the product: not of tests, and
// not written by a program.
func (p *pack) production() []*source {
	var files []*source
	for _, s := range p.files {
		if !s.test && !ast.IsGenerated(s.ast) {
			files = append(files, s)
		}
	}
	return files
}

// forTests says that a package serves tests only, and may do what tests may.
func forTests(dir string) bool {
	return strings.HasSuffix(path.Base(dir), "test") || strings.HasPrefix(dir+"/", "internal/systest/") ||
		strings.HasPrefix(dir+"/", "bench/") || strings.HasPrefix(dir+"/", ".ci/")
}

func command(dir string) bool {
	return strings.HasPrefix(dir, "cmd/") || strings.HasPrefix(dir, "tools/")
}

func (t *tree) line(pos token.Pos) int { return t.fset.Position(pos).Line }

// apply runs the rules and takes away what is excepted. Exceptions that meet
// nothing are violations.
func apply(t *tree, rules []rule, exceptions map[string]string) []violation {
	var left []violation
	used := make(map[string]bool)
	for _, r := range rules {
		for _, v := range r.check(t) {
			v.rule = r.name
			key := v.rule + " " + v.where
			if exceptions[key] != "" {
				used[key] = true
				continue
			}
			left = append(left, v)
		}
	}
	for key, reason := range exceptions {
		if reason == "" || !used[key] {
			left = append(left, violation{"exception", key, "has no reason, or nothing needs it any more"})
		}
	}
	slices.SortFunc(left, func(a, b violation) int { return cmp.Compare(a.String(), b.String()) })
	return left
}

var allRules = slices.Concat(importRules, nameRules, sizeRules, callRules, docRules)

func TestProject(t *testing.T) {
	t.Parallel()
	project, err := load(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	if project.packs["internal/archtest"] == nil {
		t.Fatal("the project's root was not found")
	}
	for _, v := range apply(project, allRules, exceptions) {
		t.Error(v)
	}
}

func TestAnExceptionNeedsAReasonAndAUse(t *testing.T) {
	t.Parallel()
	found := rule{"r", func(*tree) []violation {
		return []violation{{where: "a.go", text: "bad"}, {where: "b.go", text: "bad"}}
	}}
	left := apply(&tree{}, []rule{found}, map[string]string{"r a.go": "good reason", "r c.go": "not needed", "r b.go": ""})
	var got []string
	for _, v := range left {
		got = append(got, v.rule+" "+v.where)
	}
	want := []string{"exception r b.go", "exception r c.go", "r b.go"}
	if !slices.Equal(got, want) {
		t.Errorf("left %q, want %q", got, want)
	}
}

// fixture is a small tree and what a rule must find in it.
type fixture struct {
	rule  string
	files map[string]string
	want  []string // where of each violation, sorted
}

// check runs the fixtures of a list of rules, and fails if a rule has none
// in which it finds something.
func checkFixtures(t *testing.T, rules []rule, fixtures []fixture) {
	t.Helper()
	bites := make(map[string]bool)
	for _, f := range fixtures {
		fsys := make(fstest.MapFS)
		for name, text := range f.files {
			fsys[name] = &fstest.MapFile{Data: []byte(text)}
		}
		small, err := load(fsys)
		if err != nil {
			t.Errorf("%s: %v", f.rule, err)
			continue
		}
		i := slices.IndexFunc(rules, func(r rule) bool { return r.name == f.rule })
		if i < 0 {
			t.Errorf("no rule %q", f.rule)
			continue
		}
		var got, texts []string
		for _, v := range rules[i].check(small) {
			got, texts = append(got, v.where), append(texts, v.String())
		}
		slices.Sort(got)
		if !slices.Equal(got, f.want) {
			t.Errorf("%s found %q, want %q; it said:\n%s", f.rule, got, f.want, strings.Join(texts, "\n"))
		}
		if len(f.want) > 0 {
			bites[f.rule] = true
		}
	}
	for _, r := range rules {
		if !bites[r.name] {
			t.Errorf("rule %s has no fixture that shows that it can fail", r.name)
		}
	}
}

// each calls f for every node of the file, with the declaration it is in.
func each(s *source, f func(decl ast.Decl, n ast.Node)) {
	for _, decl := range s.ast.Decls {
		ast.Inspect(decl, func(n ast.Node) bool {
			if n != nil {
				f(decl, n)
			}
			return true
		})
	}
}

// symbol names a declaration as exceptions do: Func, or Type.Method.
func symbol(decl ast.Decl) string {
	switch d := decl.(type) {
	case *ast.FuncDecl:
		if d.Recv != nil && len(d.Recv.List) == 1 {
			return receiver(d.Recv.List[0].Type) + "." + d.Name.Name
		}
		return d.Name.Name
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch s := spec.(type) {
			case *ast.TypeSpec:
				return s.Name.Name
			case *ast.ValueSpec:
				return s.Names[0].Name
			}
		}
	}
	return ""
}

func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.IndexListExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}
