package qemutool

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// maxSaid is how much of the end of a console's log is read, in bytes.
const maxSaid = 1 << 20

// Tail returns the end of a console's log, at most 1 MiB.
func Tail(path string) (text []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("serial console: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("serial console: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("serial console: %s is no file", path)
	}
	return io.ReadAll(io.NewSectionReader(f, max(0, info.Size()-maxSaid), maxSaid))
}
