package capture

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/holdfast-dr/holdfast/internal/provider"
)

// plain are the drivers above a disk's file that do not change what it has.
var plain = []string{"raw", "qcow2", "file", "host_device", "mirror_top", "throttle", "copy-on-read"}

// Backed returns nil if the machine writes a disk to the very file or block device
// that its definition names, in a way that others can read: not to a snapshot's
// overlay, and not encrypted.
func Backed(ctx context.Context, mon provider.Monitor, d provider.Disk) error {
	if d.Path == "" || d.Format != "raw" && d.Format != "qcow2" {
		return fmt.Errorf("disk %s is no file or block device of the host of a format that can be read", d.ID)
	}
	var nodes []blockNode
	if err := mon.Execute(ctx, "query-named-block-nodes", map[string]any{"flat": true}, &nodes); err != nil {
		return err
	}
	written := false
	for _, n := range nodes {
		if !samePath(n.File, d.Path) {
			continue
		}
		if !slices.Contains(plain, n.Driver) {
			return fmt.Errorf("disk %s cannot be read beside the machine: %s has driver %s", d.ID, d.Path, n.Driver)
		}
		written = written || !n.RO
	}
	if !written {
		return fmt.Errorf("disk %s: the machine does not write to %s, as its definition says; it may have a snapshot", d.ID, d.Path)
	}
	return nil
}

// samePath says whether two names are of the same file.
func samePath(a, b string) bool {
	if strings.HasPrefix(a, "json:") {
		return false
	}
	resolve := func(p string) string {
		if r, err := filepath.EvalSymlinks(p); err == nil {
			return r
		}
		return filepath.Clean(p)
	}
	return a == b || resolve(a) == resolve(b)
}
