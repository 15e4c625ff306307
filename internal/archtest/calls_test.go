package archtest_test

import (
	"fmt"
	"go/ast"
	"go/token"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var callRules = []rule{
	{"calls", checkCalls},
	{"sleep", checkSleep},
	{"init", checkInit},
	{"context in struct", checkContextFields},
	{"error by text", checkErrorText},
	{"error wording", checkErrorWording},
	{"panic", checkPanic},
	{"todo", checkTodo},
}

// forCommands are calls that only a command, or a test, may make.
var forCommands = map[string][]string{
	"os":                {"Exit", "Getenv", "LookupEnv", "Environ"},
	"log":               {"Fatal", "Fatalf", "Fatalln", "Print", "Printf", "Println", "Panic", "Panicf", "Panicln"},
	"os/signal":         {"Notify", "NotifyContext", "Ignore"},
	"context":           {"Background", "TODO"},
	"log/slog":          {"Default", "SetDefault", "Info", "Warn", "Error", "Debug"},
	"net/http":          {"Handle", "HandleFunc", "ListenAndServe", "Get", "Post"},
	"flag":              {"*"},
	"math/rand":         {"*"}, // math/rand/v2 and crypto/rand are the ones to use
	"io/ioutil":         {"*"},
	"gopkg.in/yaml.v3":  {"*"},
	"golang.org/x/exp":  {"*"},
	"net/http/pprof":    {"*"},
	"runtime/debug":     {"SetGCPercent", "SetMemoryLimit"},
	"google.golang.org": {"*"},
}

// called returns the package path and the function of a call or a use of a
// package's name, as far as the file's own imports tell.
func called(s *source, n ast.Node) (pkg, name string) {
	sel, ok := n.(*ast.SelectorExpr)
	if !ok {
		return "", ""
	}
	id, ok := sel.X.(*ast.Ident)
	if !ok {
		return "", ""
	}
	for _, i := range s.ast.Imports {
		p, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			continue
		}
		local := path.Base(p)
		if i.Name != nil {
			local = i.Name.Name
		}
		if local == id.Name {
			return p, sel.Sel.Name
		}
	}
	return "", ""
}

// product returns the files whose calls are looked at: no tests, no commands.
func product(t *tree) []*source {
	var files []*source
	for _, p := range t.sorted() {
		if !forTests(p.dir) && !command(p.dir) {
			files = append(files, p.production()...)
		}
	}
	return files
}

func checkCalls(t *tree) []violation {
	var found []violation
	for _, s := range product(t) {
		each(s, func(decl ast.Decl, n ast.Node) {
			pkg, name := called(s, n)
			if names := forCommands[pkg]; slices.Contains(names, name) || slices.Equal(names, []string{"*"}) {
				found = append(found, violation{where: s.name + " " + symbol(decl), text: fmt.Sprintf("line %d: %s.%s is for commands", t.line(n.Pos()), pkg, name)})
			}
		})
	}
	return found
}

// checkSleep finds loops that wait by sleeping: they cannot be stopped, where a
// timer in a select with the context can.
func checkSleep(t *tree) []violation {
	var found []violation
	for _, s := range product(t) {
		each(s, func(decl ast.Decl, n ast.Node) {
			if pkg, name := called(s, n); pkg == "time" && name == "Sleep" {
				found = append(found, violation{where: s.name + " " + symbol(decl), text: fmt.Sprintf("line %d: time.Sleep does not end with the context", t.line(n.Pos()))})
			}
		})
	}
	return found
}

// checkInit finds init functions and state that the whole process shares.
func checkInit(t *tree) []violation {
	var found []violation
	for _, p := range t.sorted() {
		if forTests(p.dir) {
			continue
		}
		for _, s := range p.production() {
			for _, decl := range s.ast.Decls {
				switch d := decl.(type) {
				case *ast.FuncDecl:
					if d.Recv == nil && d.Name.Name == "init" {
						found = append(found, violation{where: s.name + " init", text: "nothing may happen by importing a package"})
					}
				case *ast.GenDecl:
					for _, spec := range d.Specs {
						if v, ok := spec.(*ast.ValueSpec); ok && d.Tok == token.VAR && !embedded(d.Doc) && !embedded(v.Doc) && shared(s, v) {
							found = append(found, violation{where: s.name + " " + v.Names[0].Name, text: "state of the whole process; make it a field"})
						}
					}
				}
			}
		}
	}
	return found
}

// shared says whether a package's variable is plainly meant to change: a lock,
// an atomic, a map that is made empty, or one without a value.
func shared(s *source, v *ast.ValueSpec) bool {
	typed := v.Type
	if star, ok := typed.(*ast.StarExpr); ok {
		typed = star.X
	}
	if pkg, _ := called(s, typed); pkg == "sync" || pkg == "sync/atomic" {
		return true
	}
	if array, ok := v.Type.(*ast.ArrayType); ok && array.Len != nil {
		return false // a block of zeroes, which Go cannot call constant
	}
	if len(v.Values) == 0 {
		return true
	}
	for _, value := range v.Values {
		if lit, ok := value.(*ast.CompositeLit); ok && len(lit.Elts) == 0 {
			if _, isMap := lit.Type.(*ast.MapType); isMap {
				return true
			}
		}
		if call, ok := value.(*ast.CallExpr); ok {
			if id, ok := call.Fun.(*ast.Ident); ok && id.Name == "make" {
				return true
			}
			if pkg, name := called(s, call.Fun); pkg == "sync" && name != "OnceValue" && name != "OnceValues" {
				return true
			}
		}
	}
	return false
}

// embedded says whether a variable gets its value from a go:embed directive.
func embedded(doc *ast.CommentGroup) bool {
	if doc == nil {
		return false
	}
	return slices.ContainsFunc(doc.List, func(c *ast.Comment) bool { return strings.HasPrefix(c.Text, "//go:embed") })
}

func checkContextFields(t *tree) []violation {
	var found []violation
	for _, s := range product(t) {
		each(s, func(decl ast.Decl, n ast.Node) {
			st, ok := n.(*ast.StructType)
			if !ok {
				return
			}
			for _, f := range st.Fields.List {
				if pkg, name := called(s, f.Type); pkg == "context" && name == "Context" {
					found = append(found, violation{where: s.name + " " + symbol(decl), text: fmt.Sprintf("line %d: a context belongs in a parameter", t.line(f.Pos()))})
				}
			}
		})
	}
	return found
}

// isErrorText says whether an expression is a call x.Error() of no arguments.
func isErrorText(e ast.Node) bool {
	call, ok := e.(*ast.CallExpr)
	if !ok || len(call.Args) != 0 {
		return false
	}
	sel, ok := call.Fun.(*ast.SelectorExpr)
	return ok && sel.Sel.Name == "Error"
}

// checkErrorText finds decisions by an error's words, which change.
func checkErrorText(t *tree) []violation {
	var found []violation
	for _, p := range t.sorted() {
		if forTests(p.dir) {
			continue
		}
		for _, s := range p.production() {
			complain := func(decl ast.Decl, n ast.Node) {
				found = append(found, violation{where: s.name + " " + symbol(decl), text: fmt.Sprintf("line %d: decides by an error's text; use errors.Is or errors.As", t.line(n.Pos()))})
			}
			each(s, func(decl ast.Decl, n ast.Node) {
				switch n := n.(type) {
				case *ast.CallExpr:
					pkg, name := called(s, n.Fun)
					looks := pkg == "strings" && slices.Contains([]string{"Contains", "HasPrefix", "HasSuffix", "EqualFold", "Index", "Cut"}, name)
					if sel, ok := n.Fun.(*ast.SelectorExpr); ok && sel.Sel.Name == "MatchString" {
						looks = true
					}
					if looks && slices.ContainsFunc(n.Args, func(a ast.Expr) bool { return isErrorText(a) }) {
						complain(decl, n)
					}
				case *ast.BinaryExpr:
					if (n.Op == token.EQL || n.Op == token.NEQ) && (isErrorText(n.X) || isErrorText(n.Y)) {
						complain(decl, n)
					}
				}
			})
		}
	}
	return found
}

var weakStart = regexp.MustCompile(`(?i)^(failed to|error |error:|could not|unable to|cannot )`)

// checkErrorWording looks at the literals of fmt.Errorf with a wrapped error:
// they say what was being done, not that it failed.
func checkErrorWording(t *tree) []violation {
	var found []violation
	for _, s := range product(t) {
		each(s, func(decl ast.Decl, n ast.Node) {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return
			}
			if pkg, name := called(s, call.Fun); pkg != "fmt" || name != "Errorf" {
				return
			}
			lit, ok := call.Args[0].(*ast.BasicLit)
			if !ok {
				return
			}
			text, err := strconv.Unquote(lit.Value)
			if err == nil && weakStart.MatchString(text) && strings.Contains(text, "%w") {
				found = append(found, violation{where: s.name + " " + symbol(decl), text: fmt.Sprintf("line %d: %q: say what was being done and to what", t.line(n.Pos()), text)})
			}
		})
	}
	return found
}

// checkPanic wants panics only for what cannot be, and to name the package.
func checkPanic(t *tree) []violation {
	var found []violation
	for _, s := range product(t) {
		each(s, func(decl ast.Decl, n ast.Node) {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) != 1 {
				return
			}
			if id, ok := call.Fun.(*ast.Ident); !ok || id.Name != "panic" {
				return
			}
			text := ""
			ast.Inspect(call.Args[0], func(n ast.Node) bool {
				if lit, ok := n.(*ast.BasicLit); ok && text == "" {
					text, _ = strconv.Unquote(lit.Value)
				}
				return true
			})
			if !strings.HasPrefix(text, s.ast.Name.Name+": ") {
				found = append(found, violation{where: s.name + " " + symbol(decl), text: fmt.Sprintf("line %d: a panic's text begins with %q", t.line(n.Pos()), s.ast.Name.Name+": ")})
			}
		})
	}
	return found
}

var (
	todoWord   = regexp.MustCompile(`\b(` + "TO" + `DO|FIX` + `ME|X` + `XX)\b`)
	todoNumber = regexp.MustCompile(`\b` + "TO" + `DO\(#[0-9]+\): `)
	silenced   = regexp.MustCompile(`//\s*nolint\b(?:[^/]*// *\S.*)?`)
)

func checkTodo(t *tree) []violation {
	var found []violation
	for _, p := range t.sorted() {
		for _, s := range p.files {
			for _, group := range s.ast.Comments {
				for _, c := range group.List {
					if todoWord.MatchString(c.Text) && !todoNumber.MatchString(c.Text) {
						found = append(found, violation{where: s.name, text: fmt.Sprintf("line %d: %s without an issue's number", t.line(c.Pos()), todoWord.FindString(c.Text))})
					}
					if m := silenced.FindString(c.Text); m != "" && strings.Count(c.Text, "//") < 2 {
						found = append(found, violation{where: s.name, text: fmt.Sprintf("line %d: silences a linter without a reason", t.line(c.Pos()))})
					}
				}
			}
		}
	}
	return found
}

func TestCallRules(t *testing.T) {
	t.Parallel()
	mark := "TO" + "DO"
	checkFixtures(t, callRules, []fixture{
		{"calls", map[string]string{
			"a/a.go": `package a
import ("os"; ctx "context"; "os/signal"; "flag"; "log"; "log/slog")
func a() { os.Exit(1) }
func b() { _ = ctx.Background() }
func c() { signal.Notify(nil) }
func d() { _ = flag.Args() }
func e() { log.Fatal() }
func f(os thing) { f := os.Getpid; _ = slog.New; _ = f }
var g = os.Getenv("X")
`,
			"a/a_test.go":                   "package a\nimport \"os\"\nfunc x() { os.Exit(1) }",
			"internal/systest/demo/main.go": "package main\nimport \"os\"\nfunc x() { os.Exit(1) }",
			"cmd/a/main.go":                 "package main\nimport \"os\"\nfunc x() { os.Exit(1) }",
		}, []string{"a/a.go a", "a/a.go b", "a/a.go c", "a/a.go d", "a/a.go e", "a/a.go g"}},
		{"sleep", map[string]string{
			"a/a.go":      "package a\nimport \"time\"\nfunc a() { for { time.Sleep(1) } }\nfunc b() { time.After(1) }",
			"a/a_test.go": "package a\nimport \"time\"\nfunc a() { for { time.Sleep(1) } }",
		}, []string{"a/a.go a"}},
		{"init", map[string]string{
			"a/a.go": `package a
import ("sync"; "errors"; _ "embed")
func init() {}
func (T) init() {}
var mu sync.Mutex
var once = sync.OnceFunc(nil)
var cache = map[string]int{}
var made = make(map[string]int)
var table = map[string]int{"a": 1}
var ErrX = errors.New("x")
var _ I = (*T)(nil)
//go:embed x
var text string
var later int
var zeroes [512]byte
`,
		}, []string{"a/a.go cache", "a/a.go init", "a/a.go later", "a/a.go made", "a/a.go mu", "a/a.go once"}},
		{"context in struct", map[string]string{
			"a/a.go": "package a\nimport \"context\"\ntype T struct { ctx context.Context }\ntype U struct { f func(context.Context) }",
		}, []string{"a/a.go T"}},
		{"error by text", map[string]string{
			"a/a.go": `package a
import "strings"
func a(err error) bool { return strings.Contains(err.Error(), "x") }
func b(err error) bool { return err.Error() == "x" }
func c(err error) bool { return re.MatchString(err.Error()) }
func d(err error) bool { return strings.Contains(err.Text(), "x") && print(err.Error()) }
`,
			"cmd/a/main.go": "package main\nimport \"strings\"\nfunc a(err error) bool { return strings.HasPrefix(err.Error(), \"x\") }",
		}, []string{"a/a.go a", "a/a.go b", "a/a.go c", "cmd/a/main.go a"}},
		{"error wording", map[string]string{
			"a/a.go": "package a\nimport \"fmt\"\nfunc a() { fmt.Errorf(\"failed to open %s: %w\", 1, 2) }\nfunc b() { fmt.Errorf(\"open %s: %w\", 1, 2) }\nfunc c() { fmt.Errorf(\"cannot be\") }",
		}, []string{"a/a.go a"}},
		{"panic", map[string]string{
			"a/a.go": "package a\nfunc x() { panic(\"a: never\") }\nfunc y() { panic(fmt.Sprintf(\"a: %d\", 1)) }\nfunc z() { panic(err) }",
		}, []string{"a/a.go z"}},
		{"todo", map[string]string{
			"a/a.go":      "package a\n\n// " + mark + ": later\n\n// " + mark + "(#12): later\n\n// todo is a word\n",
			"a/b_test.go": "package a\n\n//" + "nolint:x\n\n//" + "nolint:x // because\n",
		}, []string{"a/a.go", "a/b_test.go"}},
	})
}
