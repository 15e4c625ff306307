package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/internal/provider"
)

// monitorPatience is how long a listing waits for a machine's monitor.
const monitorPatience = 2 * time.Second

// Networks returns the networks that QEMU offers by itself.
func (s *site) Networks(context.Context) ([]provider.Network, error) {
	return []provider.Network{
		{ID: networkUser, Name: "QEMU user network"},
		{ID: networkRestricted, Name: "QEMU user network without a way out"},
		{ID: networkNone, Name: "unplugged"},
	}, nil
}

// Machines returns all machines, sorted by name. A definition that cannot be
// read is a machine with an obstacle.
func (s *site) Machines(ctx context.Context) ([]provider.Machine, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	names, err := definitionNames(s.dir)
	if err != nil {
		return nil, err
	}
	machines := make([]provider.Machine, 0, len(names))
	for _, name := range names {
		d, err := loadDefinition(s.dir, name)
		switch {
		case errors.Is(err, provider.ErrNotFound): // removed meanwhile
		case err != nil:
			machines = append(machines, provider.Machine{
				ID: name, Name: name, Power: provider.PowerUnknown, Obstacles: []string{err.Error()}, Disks: []provider.Disk{}, NICs: []provider.NIC{},
			})
		default:
			machines = append(machines, d.describe(ctx))
		}
	}
	slices.SortFunc(machines, func(a, b provider.Machine) int { return strings.Compare(a.Name, b.Name) })
	return machines, nil
}

// Machine returns one machine by id or name.
func (s *site) Machine(ctx context.Context, idOrName string) (provider.Machine, error) {
	d, err := s.find(idOrName)
	if err != nil {
		return provider.Machine{}, err
	}
	return d.describe(ctx), nil
}

// find returns the definition of a machine by id or name; the id goes first.
func (s *site) find(idOrName string) (Definition, error) {
	names, err := definitionNames(s.dir)
	if err != nil {
		return Definition{}, err
	}
	for _, name := range names {
		if d, err := loadDefinition(s.dir, name); err == nil && d.ID == idOrName {
			return d, nil
		}
	}
	return loadDefinition(s.dir, idOrName)
}

// describe returns the machine with its power state, sizes and obstacles.
func (d Definition) describe(ctx context.Context) provider.Machine {
	config, err := json.Marshal(d)
	if err != nil {
		panic("qemu: encode definition: " + err.Error()) // it was decoded from JSON
	}
	m := provider.Machine{
		ID: d.ID, Name: d.Name, Power: provider.PowerOff, CPUs: d.CPUs, Memory: d.Memory,
		Firmware: "bios", Config: config, Obstacles: []string{}, Disks: []provider.Disk{}, NICs: []provider.NIC{},
	}
	for i, disk := range d.Disks {
		size, err := imageSize(ctx, disk)
		if err != nil {
			m.Obstacles = append(m.Obstacles, fmt.Sprintf("disk %s: %v", disk.ID, err))
		}
		m.Obstacles = append(m.Obstacles, disk.obstacles(size)...)
		m.Disks = append(m.Disks, provider.Disk{
			ID: disk.ID, Size: size, Format: disk.Format, Path: disk.Path, Boot: i == 0,
		})
	}
	if len(d.Disks) == 0 {
		m.Obstacles = append(m.Obstacles, "the machine has no disks; add one to its definition")
	}
	for _, n := range d.NICs {
		m.NICs = append(m.NICs, provider.NIC{ID: n.ID, MAC: n.MAC, Network: n.Network, Model: "virtio-net-pci"})
	}
	mon, err := d.monitor()
	switch {
	case errors.Is(err, provider.ErrNotRunning):
	case err != nil:
		m.Power = provider.PowerUnknown
		m.Obstacles = append(m.Obstacles, err.Error())
	default:
		d.inspect(ctx, mon, &m)
	}
	return m
}

func (disk DiskDef) obstacles(size int64) []string {
	var out []string
	if disk.Format != "raw" && disk.Format != "qcow2" {
		out = append(out, fmt.Sprintf("disk %s has format %q; convert it to raw or qcow2 with qemu-img convert", disk.ID, disk.Format))
	}
	if disk.ReadOnly {
		out = append(out, fmt.Sprintf("disk %s is read-only; make it writable or remove it", disk.ID))
	}
	if size%512 != 0 {
		out = append(out, fmt.Sprintf("disk %s has %d bytes, not a multiple of 512; resize it", disk.ID, size))
	}
	return out
}

// imageSize returns the size of a disk as the guest sees it.
func imageSize(ctx context.Context, disk DiskDef) (int64, error) {
	if disk.View != nil && disk.Size > 0 {
		return disk.Size, nil
	}
	cmd := exec.CommandContext(ctx, "qemu-img", "info", "--output=json", "-U", "-f", disk.Format, disk.Path)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return 0, fmt.Errorf("qemu-img info: %s", strings.TrimSpace(string(exit.Stderr)))
		}
		return 0, err
	}
	var info struct {
		VirtualSize int64 `json:"virtual-size"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		return 0, fmt.Errorf("decode answer of qemu-img info: %w", err)
	}
	return info.VirtualSize, nil
}

// inspect adds what the running machine's monitor tells.
func (d Definition) inspect(ctx context.Context, mon provider.Monitor, m *provider.Machine) {
	ctx, cancel := context.WithTimeout(ctx, monitorPatience)
	defer cancel()
	m.Power = provider.PowerRunning
	st, err := queryStatus(ctx, mon)
	if err != nil {
		m.Obstacles = append(m.Obstacles, fmt.Sprintf("the machine's monitor does not answer: %v; check what else uses %s", err, d.QMP))
		return
	}
	m.Power = st.power()
	var version struct {
		QEMU struct{ Major, Minor, Micro int } `json:"qemu"`
	}
	if err := mon.Execute(ctx, "query-version", nil, &version); err == nil {
		if v := version.QEMU; v.Major < 7 || v.Major == 7 && v.Minor < 2 {
			m.Obstacles = append(m.Obstacles, fmt.Sprintf("the machine runs in QEMU %d.%d.%d; 7.2 or newer is needed", v.Major, v.Minor, v.Micro))
		}
	}
	jobs, err := queryBlockJobs(ctx, mon)
	if err != nil {
		return
	}
	for _, j := range jobs {
		if !strings.HasPrefix(j.Device, "holdfast-") && !strings.HasPrefix(j.Device, hydratePrefix) {
			m.Obstacles = append(m.Obstacles, fmt.Sprintf("another block job (%s %q) is running; wait until it ends or cancel it", j.Type, j.Device))
		}
	}
}

// runState is the answer to query-status.
type runState struct {
	Status  string `json:"status"`
	Running bool   `json:"running"`
}

func (r runState) power() provider.PowerState {
	switch {
	case r.Running:
		return provider.PowerRunning
	case r.Status == "shutdown":
		return provider.PowerOff
	default:
		return provider.PowerPaused
	}
}

func queryStatus(ctx context.Context, mon provider.Monitor) (runState, error) {
	var st runState
	err := mon.Execute(ctx, "query-status", nil, &st)
	return st, err
}

// blockJob is an entry of the answer to query-block-jobs.
type blockJob struct {
	Device   string `json:"device"` // the job's id
	Type     string `json:"type"`
	Len      int64  `json:"len"`
	Offset   int64  `json:"offset"`
	Paused   bool   `json:"paused"`
	Ready    bool   `json:"ready"`
	Status   string `json:"status"`
	IOStatus string `json:"io-status"`
	Error    string `json:"error"`
}

func queryBlockJobs(ctx context.Context, mon provider.Monitor) ([]blockJob, error) {
	var jobs []blockJob
	err := mon.Execute(ctx, "query-block-jobs", nil, &jobs)
	return jobs, err
}
