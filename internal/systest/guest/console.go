package guest

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Console is what a guest has said on its serial console so far.
type Console struct {
	Up      bool // GUEST-UP: the root file system is mounted and the init runs
	Ready   bool // GUEST-READY: the load has been started
	LastAck uint64
	// Verified says that the guest has judged the logs it found at boot; the
	// four numbers and Ordered are its judgement.
	Verified               bool
	First, Last, Gaps, Bad uint64
	Ordered                bool
	// Done says that the program given by exec= has ended, with status Status.
	Done   bool
	Status int
	// Errors are the lines in which the load complained.
	Errors []string
	// Lines are the figures of seqdev, seqcheck and bench, as they were said.
	Lines []string
}

// ParseConsole reads a serial console's output. A line that is not yet whole
// does not count. Of several boots in one output the last one counts.
func ParseConsole(text string) Console {
	var c Console
	for line := range strings.Lines(text) {
		if !strings.HasSuffix(line, "\n") {
			break
		}
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch word {
		case "GUEST-UP":
			c = Console{Up: true}
		case "GUEST-READY":
			c.Ready = true
		case "GUEST-DONE":
			c.Done = true
			c.Status, _ = strconv.Atoi(rest)
		case "ACK":
			if n, err := strconv.ParseUint(rest, 10, 64); err == nil {
				c.LastAck = n
			}
		case "VERIFY":
			c.verify(rest)
		case "BENCH", "SEQ-START", "SEQ", "SEQ-DONE", "SEQ-CHECK", "SEQ-VIOLATION":
			c.Lines = append(c.Lines, word+" "+rest)
		case "WRITER-ERROR", "ROOT-MOUNT-FAILED":
			c.Errors = append(c.Errors, word+" "+rest)
		}
	}
	return c
}

func (c *Console) verify(rest string) {
	c.Verified = true
	for _, field := range strings.Fields(rest) {
		name, value, _ := strings.Cut(field, "=")
		n, _ := strconv.ParseUint(value, 10, 64)
		switch name {
		case "first":
			c.First = n
		case "last":
			c.Last = n
		case "gaps":
			c.Gaps = n
		case "bad":
			c.Bad = n
		case "ordered":
			c.Ordered = value == "true"
		}
	}
}

// ReadConsole is ParseConsole of a file that QEMU writes (-serial file:NAME).
// A file that is not there yet is a console that has said nothing.
func ReadConsole(name string) (Console, error) {
	text, err := os.ReadFile(name)
	if os.IsNotExist(err) {
		return Console{}, nil
	}
	if err != nil {
		return Console{}, fmt.Errorf("read the guest's console: %w", err)
	}
	return ParseConsole(string(text)), nil
}
