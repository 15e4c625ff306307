// Command hfread reads a Holdfast vault in a directory, with nothing of Holdfast: it
// was written from docs/format alone, and shows that those pages are enough. Who has
// lost everything but the vault and a key can build it, or write another.
//
//	hfread VAULT KEYFILE                                   what there is
//	hfread VAULT KEYFILE STREAM TIMELINE POSITION DISK OUT  a disk as it was
//
// TIMELINE and POSITION are numbers in hexadecimal, as the first form prints them.
package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "hfread:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	if len(args) != 2 && len(args) != 7 {
		return fmt.Errorf("want VAULT KEYFILE, or VAULT KEYFILE STREAM TIMELINE POSITION DISK OUT")
	}
	v, err := openVault(args[0], args[1])
	if err != nil {
		return err
	}
	if len(args) == 2 {
		return v.list(out)
	}
	timeline, err := strconv.ParseUint(args[3], 16, 32)
	if err != nil {
		return err
	}
	position, err := strconv.ParseUint(args[4], 16, 63)
	if err != nil {
		return err
	}
	s, err := v.stream(args[2])
	if err != nil {
		return err
	}
	f, err := os.OpenFile(args[6], os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := s.write(uint32(timeline), position, args[5], f); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}
