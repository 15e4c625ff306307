package capture

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/internal/provider"
)

// errUnusable marks reasons for which the machine's QEMU must not be touched.
var errUnusable = errors.New("this machine cannot be mirrored")

// qemuVersion is what query-version tells.
type qemuVersion struct{ Major, Minor, Micro int }

func (v qemuVersion) atLeast(major, minor int) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}

// blockJob is an entry of query-block-jobs.
type blockJob struct {
	ID             string `json:"device"`
	Type           string `json:"type"`
	Len            int64  `json:"len"`
	Offset         int64  `json:"offset"`
	Paused         bool   `json:"paused"`
	Ready          bool   `json:"ready"`
	Status         string `json:"status"`
	IOStatus       string `json:"io-status"`
	Error          string `json:"error"`
	ActivelySynced *bool  `json:"actively-synced"` // since 8.2
}

// failed says whether the job met an error and waits.
func (j blockJob) failed() bool { return j.IOStatus != "" && j.IOStatus != "ok" }

// blockNode is an entry of query-named-block-nodes.
type blockNode struct {
	Name   string `json:"node-name"`
	Driver string `json:"drv"`
	File   string `json:"file"`
	RO     bool   `json:"ro"`
	Image  struct {
		Size int64 `json:"virtual-size"`
	} `json:"image"`
	Bitmaps []struct {
		Name  string `json:"name"`
		Count int64  `json:"count"`
	} `json:"dirty-bitmaps"`
}

// blockDevice is an entry of query-block.
type blockDevice struct {
	Device   string     `json:"device"`
	QDev     string     `json:"qdev"`
	Inserted *blockNode `json:"inserted"`
}

// snapshot is what QEMU told in one poll.
type snapshot struct {
	jobs    []blockJob
	nodes   []blockNode
	devices []blockDevice
}

// execute runs a command with the mirror's time-out.
func (c *controller) execute(ctx context.Context, name string, args map[string]any, result any) error {
	ctx, cancel := context.WithTimeout(ctx, c.opts.Timeout)
	defer cancel()
	if args == nil { // other monitors may not see through a typed nil
		return c.mon.Execute(ctx, name, nil, result)
	}
	return c.mon.Execute(ctx, name, args, result)
}

func (c *controller) query(ctx context.Context) (snapshot, error) {
	var s snapshot
	if err := c.execute(ctx, "query-block", nil, &s.devices); err != nil {
		return s, err
	}
	if err := c.execute(ctx, "query-named-block-nodes", map[string]any{"flat": true}, &s.nodes); err != nil {
		return s, err
	}
	return s, c.execute(ctx, "query-block-jobs", nil, &s.jobs)
}

func (s snapshot) job(id string) *blockJob {
	for i := range s.jobs {
		if s.jobs[i].ID == id {
			return &s.jobs[i]
		}
	}
	return nil
}

func (s snapshot) node(name string) *blockNode {
	for i := range s.nodes {
		if s.nodes[i].Name == name {
			return &s.nodes[i]
		}
	}
	return nil
}

// root returns what the guest's device of a disk reads and writes. A disk is
// known by the id of its device or, as libvirt names devices differently, by
// its file.
func (s snapshot) root(d provider.Disk) *blockNode {
	for _, dev := range s.devices {
		if dev.Inserted != nil && (dev.Device == d.ID || strings.Contains(dev.QDev+"/", "/"+d.ID+"/")) {
			return dev.Inserted
		}
	}
	if d.Path == "" {
		return nil
	}
	for _, dev := range s.devices {
		if dev.Inserted != nil && dev.Inserted.File == d.Path {
			return dev.Inserted
		}
	}
	return nil
}

// dirty returns how much the mirror of a disk has still to copy, and whether
// QEMU tells. The mirror's own bitmap has no name; it is on the node that is
// being mirrored, which has the same file as the filter above it.
func (s snapshot) dirty(root *blockNode) (int64, bool) {
	for _, n := range s.nodes {
		if n.File != root.File {
			continue
		}
		for _, b := range n.Bitmaps {
			if b.Name == "" {
				return b.Count, true
			}
		}
	}
	return 0, false
}

// others names the block jobs that are not ours.
func (s snapshot) others() string {
	var out []string
	for _, j := range s.jobs {
		if !strings.HasPrefix(j.ID, "holdfast-") {
			out = append(out, fmt.Sprintf("%s %q", j.Type, j.ID))
		}
	}
	return strings.Join(out, ", ")
}

// open opens the monitor and looks at what is behind it.
func (c *controller) open(ctx context.Context) error {
	openCtx, cancel := context.WithTimeout(ctx, 2*c.opts.Timeout)
	defer cancel()
	machine, err := c.opts.Machine(openCtx)
	if err != nil {
		return err
	}
	mon, err := c.opts.Open(openCtx)
	if err != nil {
		return err
	}
	c.mon, c.machine, c.openedAt = mon, machine, time.Now()
	var v struct {
		QEMU qemuVersion `json:"qemu"`
	}
	if err := c.execute(ctx, "query-version", nil, &v); err != nil {
		return err
	}
	c.version = v.QEMU
	if !c.version.atLeast(7, 2) {
		return fmt.Errorf("%w: it runs in QEMU %d.%d.%d, and 7.2 is the oldest that is supported; upgrade QEMU and restart the machine",
			errUnusable, c.version.Major, c.version.Minor, c.version.Micro)
	}
	return nil
}

func (c *controller) close() {
	if c.mon == nil {
		return
	}
	if err := c.mon.Close(); err != nil {
		c.log.Debug("close monitor", "error", err)
	}
	c.mon = nil
}

// machineDisk returns how the machine's description names a disk.
func (c *controller) machineDisk(id string) provider.Disk {
	for _, d := range c.machine.Disks {
		if d.ID == id {
			return d
		}
	}
	return provider.Disk{ID: id}
}
