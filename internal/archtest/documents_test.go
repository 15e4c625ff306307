package archtest_test

import (
	"fmt"
	"go/ast"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var docRules = []rule{
	{"named in documents", checkNamedSymbols},
	{"architecture size", checkArchitectureSize},
	{"workplace", checkWorkplace},
	{"root files", checkRootFiles},
	{"parity", checkParity},
	{"links", checkLinks},
}

// symbols returns what a package declares: names, and Type.Name for methods,
// fields and the methods of interfaces.
func (p *pack) symbols() map[string]bool {
	names := make(map[string]bool)
	members := func(of string, list *ast.FieldList) {
		for _, f := range list.List {
			for _, n := range f.Names {
				names[of+"."+n.Name] = true
			}
		}
	}
	for _, s := range p.files {
		for _, decl := range s.ast.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				names[symbol(d)] = true
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					switch s := spec.(type) {
					case *ast.TypeSpec:
						names[s.Name.Name] = true
						switch of := s.Type.(type) {
						case *ast.StructType:
							members(s.Name.Name, of.Fields)
						case *ast.InterfaceType:
							members(s.Name.Name, of.Methods)
						}
					case *ast.ValueSpec:
						for _, n := range s.Names {
							names[n.Name] = true
						}
					}
				}
			}
		}
	}
	return names
}

var qualified = regexp.MustCompile("`([a-z][a-z0-9]*)\\.([A-Z][A-Za-z0-9]*(?:\\.[A-Z][A-Za-z0-9]*)?)(?:\\([^`]*\\))?`")

// checkNamedSymbols wants every `package.Name` of the documents for developers
// to be there. Packages are known by their last part; those of the standard
// library and of other modules are passed over.
func checkNamedSymbols(t *tree) []violation {
	byName := make(map[string][]*pack)
	for _, p := range t.sorted() {
		for _, s := range p.files {
			if name := strings.TrimSuffix(s.ast.Name.Name, "_test"); !slices.Contains(byName[name], p) {
				byName[name] = append(byName[name], p)
			}
		}
	}
	var found []violation
	for _, doc := range []string{"ARCHITECTURE.md", "CONTRIBUTING.md", "docs/glossary.md"} {
		for _, m := range qualified.FindAllStringSubmatch(t.texts[doc], -1) {
			packs := byName[m[1]]
			if doc == "ARCHITECTURE.md" && len(packs) == 0 {
				found = append(found, violation{where: doc, text: fmt.Sprintf("names %s.%s, but there is no package %s", m[1], m[2], m[1])})
			}
			if len(packs) > 0 && !slices.ContainsFunc(packs, func(p *pack) bool { return p.symbols()[m[2]] }) {
				found = append(found, violation{where: doc, text: fmt.Sprintf("names %s.%s, which is not there", m[1], m[2])})
			}
		}
	}
	return found
}

func checkArchitectureSize(t *tree) []violation {
	if n := lines(t.texts["ARCHITECTURE.md"]); n > 200 || n == 0 {
		return []violation{{where: "ARCHITECTURE.md", text: fmt.Sprintf("%d lines, want at most 200, and some", n)}}
	}
	return nil
}

// workplace matches what is true only where somebody happens to work.
var workplace = regexp.MustCompile(`(?:^|[^A-Za-z0-9_.\-/])(/` + `work/[a-z.]|/` + `home/[a-z]+/|/` + `root/[a-z.]|/tmp/[a-z_]+` + `\.md\b)`)

func checkWorkplace(t *tree) []violation {
	var found []violation
	for name, text := range t.texts {
		for number, line := range strings.Split(text, "\n") {
			if m := workplace.FindStringSubmatch(line); m != nil {
				found = append(found, violation{where: name, text: fmt.Sprintf("line %d names %s, a place on one machine", number+1, m[1])})
			}
		}
	}
	return found
}

var rootFiles = []string{
	"README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "LICENSE", "Makefile",
	"go.mod", "go.sum", ".gitignore", ".gitattributes",
}

// checkRootFiles keeps the first page of the repository readable.
func checkRootFiles(t *tree) []violation {
	var found []violation
	for name := range t.texts {
		if !strings.Contains(name, "/") && path.Ext(name) != ".go" && !slices.Contains(rootFiles, name) {
			found = append(found, violation{where: name, text: "does not belong into the root"})
		}
	}
	for _, name := range rootFiles[:9] {
		if t.texts[name] == "" {
			found = append(found, violation{where: name, text: "is missing"})
		}
	}
	return found
}

var (
	parityRow = regexp.MustCompile(`(?m)^\| R([0-9]+) \| (.+) \| (.+) \|$`)
	testName  = regexp.MustCompile("`(Test[A-Za-z0-9_]+)`")
)

const lastRequirement = 111

// checkParity wants one row for each of R1 to R111, in order; of what is said to
// hold now the test that shows it, or the word untested; and every test that a
// row names to be there.
func checkParity(t *tree) []violation {
	const doc = "docs/asr-parity.md"
	var found []violation
	tests := make(map[string]bool)
	for _, p := range t.packs {
		for _, s := range p.files {
			for _, decl := range s.ast.Decls {
				if f, ok := decl.(*ast.FuncDecl); ok && s.test {
					tests[f.Name.Name] = true
				}
			}
		}
	}
	next := 1
	for _, m := range parityRow.FindAllStringSubmatch(t.texts[doc], -1) {
		if n, err := strconv.Atoi(m[1]); err != nil || n != next {
			found = append(found, violation{where: doc, text: fmt.Sprintf("R%s stands where R%d is due", m[1], next)})
		}
		next++
		if strings.HasPrefix(m[3], "now") && !testName.MatchString(m[0]) && !strings.Contains(m[3], "untested") {
			found = append(found, violation{where: doc, text: fmt.Sprintf("R%s holds now, but no test is named", m[1])})
		}
		for _, name := range testName.FindAllStringSubmatch(m[0], -1) {
			if !tests[name[1]] {
				found = append(found, violation{where: doc, text: fmt.Sprintf("R%s names %s, which is not there", m[1], name[1])})
			}
		}
	}
	if next != lastRequirement+1 {
		found = append(found, violation{where: doc, text: fmt.Sprintf("ends before R%d, want rows up to R%d", next, lastRequirement)})
	}
	return found
}

var link = regexp.MustCompile(`\]\(([^)#: ]+)(?:#[^)]*)?\)`)

// checkLinks follows the relative links of all documents.
func checkLinks(t *tree) []violation {
	var found []violation
	for name, text := range t.texts {
		if path.Ext(name) != ".md" {
			continue
		}
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target := path.Join(path.Dir(name), m[1])
			isDir := slices.ContainsFunc(t.sorted(), func(p *pack) bool { return p.dir == target }) || hasPrefix(t.texts, target+"/")
			if _, ok := t.texts[target]; !ok && !isDir {
				found = append(found, violation{where: name, text: fmt.Sprintf("links to %s, which is not there", m[1])})
			}
		}
	}
	return found
}

func hasPrefix(texts map[string]string, prefix string) bool {
	for name := range texts {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

func TestDocumentRules(t *testing.T) {
	t.Parallel()
	var parity strings.Builder
	for n := 1; n <= lastRequirement; n++ {
		if n != 7 {
			fmt.Fprintf(&parity, "| R%d | as is | `TestThere` |\n", n)
		}
	}
	unproven := strings.Replace(parity.String(), "| R8 |", "| R7 | new | now |\n| R8 |", 1)
	const there = "package a_test\nfunc TestThere() {}"
	all := map[string]string{"notes.txt": "x", "a.go": "package a"}
	for _, name := range rootFiles[1:] {
		all[name] = "x"
	}
	checkFixtures(t, docRules, []fixture{
		{"named in documents", map[string]string{
			"ARCHITECTURE.md": "`a.Func`, `a.Func(x, y)`, `a.Type.Method`, `a.Type.Field`, `a.Gone`, `a.Type.Gone`, `gone.Func`, `a.lower`",
			"CONTRIBUTING.md": "`a.Gone` and `t.Parallel`, `testing.T`",
			"x/a/a.go":        "package a\nfunc Func() {}\ntype Type struct { Field int }\nfunc (*Type) Method() {}",
		}, []string{"ARCHITECTURE.md", "ARCHITECTURE.md", "ARCHITECTURE.md", "CONTRIBUTING.md"}},
		{"architecture size", map[string]string{"ARCHITECTURE.md": strings.Repeat("x\n", 201)}, []string{"ARCHITECTURE.md"}},
		{"architecture size", map[string]string{"ARCHITECTURE.md": strings.Repeat("x\n", 200)}, nil},
		{"workplace", map[string]string{
			"a.md": "see /" + "work/shared/x", "b.sh": "cd /" + "home/joe/x", "c.go": "package c // net" + "work/x and /" + "works",
			"d.txt": "x\n(/" + "root/.cache)", "e.md": "/var/lib/x and /" + "root", "f.md": "/" + "tmp/notes.md",
		}, []string{"a.md", "b.sh", "d.txt", "f.md"}},
		{"root files", all, []string{"README.md", "notes.txt"}},
		{"parity", map[string]string{"docs/asr-parity.md": parity.String(), "a_test.go": there},
			append(slices.Repeat([]string{"docs/asr-parity.md"}, lastRequirement-7), "docs/asr-parity.md")},
		{"parity", map[string]string{"docs/asr-parity.md": strings.Replace(parity.String(), "| R8 ", "| R7 | new | `TestGone` |\n| R8 ", 1), "a_test.go": there},
			[]string{"docs/asr-parity.md"}},
		{"parity", map[string]string{"docs/asr-parity.md": unproven, "a_test.go": there}, []string{"docs/asr-parity.md"}},
		{"links", map[string]string{
			"README.md":  "[a](docs/a.md#part) [b](docs/gone.md) [c](https://example.com/x) [d](docs) [e](#here)",
			"docs/a.md":  "[up](../README.md) [no](a.txt)",
			"docs/x/y.z": "",
		}, []string{"README.md", "docs/a.md"}},
	})
}
