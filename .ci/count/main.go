// Command count runs the tests given to it as "go test" does and ends with one
// line, "N passed, N failed, N skipped", that counts tests, not packages. Its
// arguments are those of go test, and its standard output is that of a plain
// go test: what a test printed is shown if it failed, and each package has its
// line. It exits as go test does.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
)

// event is one line of go test -json.
type event struct {
	Action, Package, Test, Output string
}

// tally is what the tests came to.
type tally struct {
	passed, failed, skipped int
	reasons                 []string // of skipped tests
}

func main() {
	cmd := exec.Command("go", append([]string{"test", "-json"}, os.Args[1:]...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "count:", err)
		os.Exit(2)
	}
	t, err := follow(out, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "count:", err)
	}
	err = errors.Join(err, cmd.Wait())
	for _, r := range t.reasons {
		fmt.Println("skipped:", r)
	}
	if err != nil && t.failed == 0 {
		t.failed = 1 // a package that did not compile, or a crash between tests
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", t.passed, t.failed, t.skipped)
	if t.failed > 0 {
		os.Exit(1)
	}
}

// follow reads the events and prints what a plain go test would.
func follow(r io.Reader, w io.Writer) (tally, error) {
	var t tally
	held := make(map[[2]string]string)
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				fmt.Fprintf(w, "%s", line) // what the compiler says
			} else {
				t.take(e, held, w)
			}
		}
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return t, fmt.Errorf("read go test's output: %w", err)
		}
	}
}

func (t *tally) take(e event, held map[[2]string]string, w io.Writer) {
	key := [2]string{e.Package, e.Test}
	switch e.Action {
	case "output", "build-output":
		if e.Test == "" && e.Output != "PASS\n" {
			fmt.Fprint(w, e.Output)
		} else {
			held[key] += e.Output
		}
	case "fail":
		if e.Test != "" {
			t.failed++
			fmt.Fprint(w, held[key])
		}
		delete(held, key)
	case "skip":
		if e.Test != "" {
			t.skipped++
			t.reasons = append(t.reasons, e.Package+" "+e.Test)
		}
		delete(held, key)
	case "pass":
		if e.Test != "" {
			t.passed++
		}
		delete(held, key)
	}
}
