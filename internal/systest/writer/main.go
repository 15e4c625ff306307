// Command writer is the load inside the test guest: a static program that
// writes numbered records to files or numbered blocks to a raw disk, tells on
// its standard output what is durable, and checks what it finds after a crash.
// Only chain needs a network.
//
//	writer write  [-a FILE] [-b FILE] [-rate N] [-ratefile FILE]
//	writer verify [-a FILE] [-b FILE]
//	writer seqdev   -dev DISK [-threads N] [-seconds N]
//	writer seqcheck -dev DISK [-threads N]
//	writer chain    -dev DISK [-prev IF,ADDR] [-next IF,ADDR,PEER]
//	writer bench    -dev DISK [-bs BYTES] [-qd N] [-seconds N] [-sequential] [-read]
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Printf("WRITER-ERROR %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	modes := map[string]func(*flag.FlagSet, []string) error{
		"write": runWrite, "verify": runVerify, "seqdev": runSequence, "seqcheck": runCheck, "bench": runBench, "chain": runChain,
	}
	if len(args) == 0 || modes[args[0]] == nil {
		return fmt.Errorf("usage: writer write|verify|seqdev|seqcheck|bench|chain, not %q", strings.Join(args, " "))
	}
	return modes[args[0]](flag.NewFlagSet(args[0], flag.ContinueOnError), args[1:])
}
