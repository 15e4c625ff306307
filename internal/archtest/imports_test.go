package archtest_test

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var importRules = []rule{
	{"imports", checkImports},
	{"test packages", checkTestPackages},
	{"modules", checkModules},
	{"dependencies", checkDependencies},
}

// onlyThere are modules that may be imported in one place only, and what does
// not appear here may be imported anywhere. SDKs stay with their provider, so
// that their types cannot leak into the core.
var onlyThere = map[string][]string{
	"github.com/digitalocean/go-libvirt":    {"internal/provider/libvirt", "internal/capture"},
	"github.com/beevik/etree":               {"internal/provider/libvirt"},
	"github.com/danielgtaylor/huma/v2":      {"internal/httpd"},
	"github.com/spf13/cobra":                {"internal/cli", "cmd/holdfast"},
	"github.com/spf13/pflag":                {"internal/cli", "cmd/holdfast"},
	"github.com/vbauerster/mpb/v8":          {"internal/cli"},
	"modernc.org/sqlite":                    {"internal/store"},
	"github.com/pressly/goose/v3":           {"internal/store"},
	"filippo.io/age":                        {"internal/vault", "tools/hfread"},
	"github.com/klauspost/compress":         {"internal/vault", "tools/hfread"},
	"github.com/minio/minio-go/v7":          {"internal/objstore"},
	"github.com/Azure/azure-sdk-for-go/sdk": {"internal/objstore", "internal/provider/azure"},
	"github.com/vmware/govmomi":             {"internal/provider/vsphere"},
	"github.com/cilium/ebpf":                {"internal/capture/bpf"},
	"github.com/rogpeppe/go-internal":       {}, // tests
	"github.com/google/go-cmp":              {}, // tests
	"pgregory.net/rapid":                    {}, // tests
	"go.uber.org/goleak":                    {}, // tests
	"github.com/digitalocean/go-qemu":       {}, // nowhere: it is not kept up
	"github.com/stretchr/testify":           {}, // nowhere: standard testing and go-cmp
	"golang.org/x/exp":                      {}, // nowhere: the standard library has what was good
	"github.com/pkg/errors":                 {}, // nowhere: fmt.Errorf with %w
}

// own returns the directory of a package of this module.
func own(importPath string) (dir string, ok bool) {
	if importPath == module {
		return ".", true
	}
	return strings.CutPrefix(importPath, module+"/")
}

func (s *source) imports() []string {
	var paths []string
	for _, i := range s.ast.Imports {
		if p, err := strconv.Unquote(i.Path.Value); err == nil {
			paths = append(paths, p)
		}
	}
	return paths
}

var tableRow = regexp.MustCompile("^\\| `([^`]+)` \\|([^|]*)\\|")
var backticked = regexp.MustCompile("`([^`]+)`")

// importTable reads the table in ARCHITECTURE.md whose head is
// "| package | may import |": the document is the rule.
func importTable(text string) map[string][]string {
	table := make(map[string][]string)
	inside := false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "| package | may import |") {
			inside = true
		} else if !strings.HasPrefix(line, "|") {
			inside = false
		}
		if m := tableRow.FindStringSubmatch(line); inside && m != nil {
			table[m[1]] = []string{}
			for _, allowed := range backticked.FindAllStringSubmatch(m[2], -1) {
				table[m[1]] = append(table[m[1]], allowed[1])
			}
		}
	}
	return table
}

// checkImports holds every package to its row. Commands wire everything and
// have no row, nor have packages for tests.
func checkImports(t *tree) []violation {
	var found []violation
	table := importTable(t.texts["ARCHITECTURE.md"])
	for dir, allowed := range table {
		for _, d := range append([]string{dir}, allowed...) {
			if t.packs[d] == nil {
				found = append(found, violation{where: "ARCHITECTURE.md", text: fmt.Sprintf("the row of %s names %s, which is not there", dir, d)})
			}
		}
	}
	for _, p := range t.sorted() {
		if command(p.dir) || forTests(p.dir) || len(p.production()) == 0 {
			continue
		}
		allowed, ok := table[p.dir]
		if !ok {
			found = append(found, violation{where: p.dir, text: "has no row in the import table of ARCHITECTURE.md"})
		}
		for _, s := range p.production() {
			for _, i := range s.imports() {
				if dir, ours := own(i); ours && ok && !slices.Contains(allowed, dir) {
					found = append(found, violation{where: s.name, text: fmt.Sprintf("%s may not import %s", p.dir, dir)})
				}
			}
		}
	}
	return found
}

// checkTestPackages keeps what serves tests out of the product.
func checkTestPackages(t *tree) []violation {
	var found []violation
	for _, p := range t.sorted() {
		if forTests(p.dir) {
			continue
		}
		for _, s := range p.production() {
			for _, i := range s.imports() {
				if dir, ours := own(i); i == "testing" || ours && forTests(dir) {
					found = append(found, violation{where: s.name, text: "imports " + i + ", which is for tests"})
				}
			}
		}
	}
	return found
}

// moduleOf returns the module of a foreign import: the longest of those given
// that is a prefix.
func moduleOf(importPath string, modules []string) string {
	best := ""
	for _, m := range modules {
		if (importPath == m || strings.HasPrefix(importPath, m+"/")) && len(m) > len(best) {
			best = m
		}
	}
	return best
}

func checkModules(t *tree) []violation {
	var found []violation
	var names []string
	for m := range onlyThere {
		names = append(names, m)
	}
	for _, p := range t.sorted() {
		for _, s := range p.production() {
			for _, i := range s.imports() {
				m := moduleOf(i, names)
				within := slices.ContainsFunc(onlyThere[m], func(dir string) bool { return p.dir == dir || strings.HasPrefix(p.dir, dir+"/") })
				if m != "" && !within && !(forTests(p.dir) && len(onlyThere[m]) == 0) {
					found = append(found, violation{where: s.name, text: fmt.Sprintf("imports %s, which belongs to %v alone", i, onlyThere[m])})
				}
			}
		}
	}
	return found
}

var requirement = regexp.MustCompile(`(?m)^\s*(?:require )?([a-z0-9.-]+\.[a-z]+/\S+) v\S+`)

// checkDependencies compares what the code imports, go.mod and
// docs/dependencies.md, in which each direct module has a row.
func checkDependencies(t *tree) []violation {
	var found []violation
	var modules []string
	for _, m := range requirement.FindAllStringSubmatch(t.texts["go.mod"], -1) {
		modules = append(modules, m[1])
	}
	direct := make(map[string]string)
	for _, p := range t.sorted() {
		for _, s := range p.files {
			for _, i := range s.imports() {
				if m := moduleOf(i, modules); m != "" {
					direct[m] = s.name
				} else if _, ours := own(i); !ours && strings.Contains(strings.Split(i, "/")[0], ".") {
					found = append(found, violation{where: s.name, text: "imports " + i + ", of which go.mod has no module"})
				}
			}
		}
	}
	const doc = "docs/dependencies.md"
	rows := make(map[string]bool)
	for line := range strings.Lines(t.texts[doc]) {
		if m := tableRow.FindStringSubmatch(line); m != nil {
			rows[m[1]] = true
			if direct[m[1]] == "" {
				found = append(found, violation{where: doc, text: m[1] + " is imported nowhere"})
			}
		}
	}
	for m, by := range direct {
		if !rows[m] {
			found = append(found, violation{where: doc, text: fmt.Sprintf("has no row for %s, which %s imports", m, by)})
		}
	}
	if strings.Contains(t.texts["go.mod"], "\nreplace ") {
		found = append(found, violation{where: "go.mod", text: "replaces a module: nobody could install the command from it"})
	}
	return found
}

func TestImportRules(t *testing.T) {
	t.Parallel()
	const table = "text\n\n| package | may import |\n| --- | --- |\n"
	file := func(name string, imports ...string) string {
		text := "package " + path.Base(name) + "\n"
		for _, i := range imports {
			text += "import _ " + strconv.Quote(i) + "\n"
		}
		return text
	}
	checkFixtures(t, importRules, []fixture{
		{"imports", map[string]string{
			"ARCHITECTURE.md":         table + "| `internal/a` | `internal/b` |\n| `internal/b` | nothing |\n| `internal/gone` | |\n\n| `internal/c` | not in the table |\n",
			"internal/a/a.go":         file("a", module+"/internal/b", "fmt"),
			"internal/b/b.go":         file("b", module+"/internal/a"),
			"internal/b/b_test.go":    file("b", module+"/internal/a"),
			"internal/c/c.go":         file("c"),
			"internal/btest/btest.go": file("btest", module+"/internal/a"),
			"cmd/x/x.go":              file("main", module+"/internal/a"),
		}, []string{"ARCHITECTURE.md", "internal/b/b.go", "internal/c"}},
		{"test packages", map[string]string{
			"internal/a/a.go":         file("a", "testing"),
			"internal/b/b.go":         file("b", module+"/internal/atest"),
			"internal/c/c.go":         file("c", module+"/internal/systest/guest"),
			"internal/a/a_test.go":    file("a", "testing"),
			"internal/atest/a.go":     file("atest", "testing"),
			"internal/attestation.go": file("internal", module+"/internal/attestation"),
		}, []string{"internal/a/a.go", "internal/b/b.go", "internal/c/c.go"}},
		{"modules", map[string]string{
			"internal/vault/a.go":            file("vault", "github.com/klauspost/compress/zstd"),
			"internal/vault/segment/a.go":    file("segment", "github.com/klauspost/compress/zstd"),
			"internal/vaults/a.go":           file("vaults", "github.com/klauspost/compress/zstd"),
			"internal/a/a.go":                file("a", "github.com/google/go-cmp/cmp"),
			"internal/a/a_test.go":           file("a", "github.com/google/go-cmp/cmp"),
			"internal/a/atest/a.go":          file("atest", "github.com/google/go-cmp/cmp"),
			"internal/provider/azure/a.go":   file("azure", "github.com/Azure/azure-sdk-for-go/sdk/storage"),
			"internal/provider/vsphere/a.go": file("vsphere", "github.com/Azure/azure-sdk-for-go/sdk/storage"),
		}, []string{"internal/a/a.go", "internal/provider/vsphere/a.go", "internal/vaults/a.go"}},
		{"dependencies", map[string]string{
			"go.mod":               "module m\n\nrequire (\n\texample.com/a v1.0.0\n\texample.com/a/v2 v2.0.0 // indirect\n\texample.com/b v1.0.0\n)\n\nreplace example.com/b => ../b\n",
			"docs/dependencies.md": "| module | why |\n| --- | --- |\n| `example.com/a` | x |\n| `example.com/b` | x |\n",
			"a.go":                 file("m", "example.com/a/sub", "example.com/a/v2/sub", "example.com/none", "fmt"),
		}, []string{"a.go", "docs/dependencies.md", "docs/dependencies.md", "go.mod"}},
	})
}
