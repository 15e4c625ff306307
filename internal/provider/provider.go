// Package provider declares what Holdfast needs of the adapters to what runs
// machines at a site, as roles: Inventory, Source and Target. A nil role is
// what a site cannot do. Each adapter lives in a folder of its own below this
// one and is imported by main alone, which builds the Registry as a value.
package provider

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/block"
)

var (
	// ErrNotFound says that a machine does not exist at the site.
	ErrNotFound = errors.New("machine not found")
	// ErrNameTaken says that the site has another machine of that name.
	ErrNameTaken = errors.New("machine name is taken")
	// ErrNotRunning says that an operation needs the machine to run.
	ErrNotRunning = errors.New("machine is not running")
	// ErrRunning says that an operation needs the machine to be off.
	ErrRunning = errors.New("machine is running")
	// ErrGuarded says that a machine must not be started: the one that counts is
	// elsewhere.
	ErrGuarded = errors.New("machine is guarded against being started")
	// ErrNoAgent says that no guest agent answers in a machine.
	ErrNoAgent = errors.New("no guest agent answers")
	// ErrNoWay says that there is no way to look at a machine as was asked: it has
	// no console that could be read, or no network over which it could be reached.
	ErrNoWay = errors.New("there is no way to look at the machine like that")
	// ErrFrozen says that a freeze failed and could not be undone either, as when
	// a hook of the guest hangs: its file systems are frozen, or will be when the
	// hook ends. Thaw must be repeated until it succeeds or the machine is off.
	ErrFrozen = errors.New("file systems of the guest may be frozen")
)

// Site is a place with machines, as its provider presents it.
type Site struct {
	Inventory Inventory
	Source    Source  // nil: nothing can be protected here
	Target    Target  // nil: nothing can be recovered here
	Power     Power   // nil: nothing is failed back to where it was
	Replica   Replica // nil: as Power
	Agent     Agent   // nil: recovery points are crash-consistent only
	Console   Console // nil: no pictures of consoles
	Probe     Probe   // nil: nobody looks whether machines answer
	// Fits says why a machine, as another site describes it, cannot be recovered
	// here. Nil: any can.
	Fits func(Machine) error
	// OpenLive opens a disk of a running machine as its host has it, for reading only
	// and without a word to the machine: what the machine writes meanwhile may be seen,
	// or not yet. Nil: that cannot be done here. The caller closes the image.
	OpenLive func(ctx context.Context, d Disk) (block.Image, error)
	Close    func() error
}

// Registry maps the name of a provider to what opens a site from its settings,
// which the provider decodes itself. Unknown settings are errors.
type Registry map[string]func(ctx context.Context, settings json.RawMessage) (*Site, error)

// PowerState is whether a machine runs.
type PowerState string

// The power states.
const (
	PowerRunning PowerState = "running"
	PowerOff     PowerState = "off"
	PowerPaused  PowerState = "paused"
	PowerUnknown PowerState = "unknown"
)

// Machine is what a provider discovers and could be protected.
type Machine struct {
	ID       string     `json:"id"` // stable at the site, opaque to everyone else
	Name     string     `json:"name"`
	Power    PowerState `json:"power"`
	CPUs     int        `json:"cpus"`
	Memory   int64      `json:"memory"`   // bytes
	Firmware string     `json:"firmware"` // "bios" or "uefi"
	Disks    []Disk     `json:"disks"`
	NICs     []NIC      `json:"nics"`
	// Config is the provider's own description of the machine (domain XML, JSON),
	// from which Target can define it again at another site of the same kind.
	Config json.RawMessage `json:"config"`
	// Obstacles are reasons why the machine cannot be protected as it is, each
	// with what to do; empty if it can.
	Obstacles []string `json:"obstacles"`
}

// Disk is a disk of a machine.
type Disk struct {
	ID     string `json:"id"`     // stable for the machine: target device or alias, [a-z0-9-]{1,32}
	Size   int64  `json:"size"`   // bytes; 0 if unknown
	Format string `json:"format"` // "raw", "qcow2", …
	Path   string `json:"path"`
	Boot   bool   `json:"boot"`
}

// NIC is a network interface of a machine.
type NIC struct {
	ID      string `json:"id"`
	MAC     string `json:"mac"`
	Network string `json:"network"`
	Model   string `json:"model"`
}

// Network is a network that a site offers.
type Network struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// Inventory lists what a site has. Safe for concurrent use.
type Inventory interface {
	// Machines returns all machines, sorted by name.
	Machines(ctx context.Context) ([]Machine, error)
	// Machine returns one machine by id or name, or ErrNotFound.
	Machine(ctx context.Context, idOrName string) (Machine, error)
	// Networks returns all networks.
	Networks(ctx context.Context) ([]Network, error)
}

// Source gives capture access to a running machine.
type Source interface {
	// Monitor opens the machine's monitor. It fails with ErrNotRunning if the
	// machine is off. The caller closes it.
	Monitor(ctx context.Context, machineID string) (Monitor, error)
	// Shutdown asks the guest to shut down cleanly and waits until it is off.
	Shutdown(ctx context.Context, machineID string) error
	// Kill takes the power away.
	Kill(ctx context.Context, machineID string) error
}

// Monitor speaks QEMU's machine protocol with one running machine, over its
// own socket or through libvirt. Safe for concurrent use.
type Monitor interface {
	// Execute runs one command and decodes its return value into result, which
	// may be nil. A refusal by QEMU is a *MonitorError.
	Execute(ctx context.Context, command string, arguments, result any) error
	Close() error
}

// MonitorError is QEMU's own answer that a command failed.
type MonitorError struct {
	Command string
	Class   string
	Desc    string
}

// Error says which command failed and QEMU's reason.
func (e *MonitorError) Error() string { return e.Command + ": " + e.Desc }

// DiskSource is where a recovered machine's disk comes from: an NBD export of a
// view, over which the target lays a local overlay.
type DiskSource struct {
	DiskID string `json:"disk_id"`
	Size   int64  `json:"size"`
	Socket string `json:"socket"` // unix socket of the NBD server, or
	Addr   string `json:"addr"`   // its TCP address
	Export string `json:"export"`
}

// Recovered says what machine a target shall make.
type Recovered struct {
	// Handle names this recovery. Define and Start with the same handle are
	// the same machine, however often they are called.
	Handle  string       `json:"handle"`
	Name    string       `json:"name"`
	Machine Machine      `json:"machine"` // as it was at the source
	Disks   []DiskSource `json:"disks"`
	// Network replaces every network; "" keeps the names of the source.
	Network string `json:"network"`
	// Networks replaces those networks of the source that it names, before Network
	// does, also where the machine is isolated.
	Networks map[string]string `json:"networks,omitempty"`
	// Isolated machines have no way out, but for what Networks says.
	Isolated bool `json:"isolated"`
	// Seed is what cloud-init in the machine is told; nil: the machine has no drive
	// for that.
	Seed *Seed `json:"seed,omitempty"`
}

// Seed is what cloud-init in a recovered machine is told, on a drive of
// its own, of its network. Providers make it with qemutool.WriteSeed.
type Seed struct {
	Instance string         `json:"instance"` // cloud-init does its work once for each
	Host     string         `json:"host"`     // the machine's name at the site; its guest keeps its own
	NICs     []holdfast.NIC `json:"nics"`     // by MAC address
}

// NetworkOf returns the network that a card of the machine is connected to, by that
// of the source, and whether it is connected at all.
func (r Recovered) NetworkOf(source string) (name string, connected bool) {
	if to, ok := r.Networks[source]; ok {
		return to, true
	}
	if r.Network != "" {
		return r.Network, !r.Isolated
	}
	return source, !r.Isolated
}

// TargetNetworks are the networks that were asked for by name.
func (r Recovered) TargetNetworks() []string {
	names := slices.Sorted(maps.Values(r.Networks))
	if r.Network != "" && !r.Isolated {
		names = append(names, r.Network)
	}
	return slices.Compact(names)
}

// Status is how a recovered machine fares.
type Status struct {
	Power     PowerState `json:"power"`
	MachineID string     `json:"machine_id"`
	StartedAt time.Time  `json:"started_at"`
	// Hydrated is how much of the disks is local, Total how much there is, in
	// bytes; NeedsView is false once nothing is read from the view any more.
	Hydrated  int64 `json:"hydrated"`
	Total     int64 `json:"total"`
	NeedsView bool  `json:"needs_view"`
}

// Target runs recovered machines. Every method is safe to repeat with the same
// argument and takes up where an earlier, interrupted call stopped.
type Target interface {
	// Define prepares the machine: overlays, definition. It does not start it.
	// ErrNameTaken if the site has another machine of that name.
	Define(ctx context.Context, r Recovered) (machineID string, err error)
	// Start powers the machine on; it is no error if it runs.
	Start(ctx context.Context, handle string) error
	// Status reports power and hydration; ErrNotFound if never defined.
	Status(ctx context.Context, handle string) (Status, error)
	// Hydrate copies, while the machine runs, all that it still reads from the
	// view to local disks, and returns when nothing depends on the view.
	Hydrate(ctx context.Context, handle string, progress func(done, total int64)) error
	// Remove stops the machine and removes every trace of it.
	Remove(ctx context.Context, handle string) error
}

// Power switches machines on, those that the site had of its own and recovered
// ones alike, and keeps a machine from being started while another copy of it is
// the one that counts. Every method is safe to repeat and to call concurrently.
type Power interface {
	// Start powers a machine on; it is no error if it runs. It fails with
	// ErrGuarded if the machine is guarded, and with ErrNotFound.
	Start(ctx context.Context, machineID string) error
	// Guard keeps a machine from being started, by Start and by the site's own
	// tools as far as the site has a way to refuse, until Unguard. It is recorded
	// durably with the reason, one line for whoever tries. A machine that runs
	// goes on: the caller switches it off.
	Guard(ctx context.Context, machineID, reason string) error
	// Unguard ends that; it is no error if the machine is not guarded.
	Unguard(ctx context.Context, machineID string) error
	// Guarded returns the reason, "" if the machine is not guarded.
	Guarded(ctx context.Context, machineID string) (reason string, err error)
}

// Replica opens disks of machines that are off, so that only what differs has to
// be brought to them.
type Replica interface {
	// OpenDisk opens one disk of a machine for reading and writing. It fails with
	// ErrRunning if the machine runs, and with ErrNotFound if there is no such
	// machine or disk. A recovered machine's disk that still needs its view reads
	// from it. While it is open the machine cannot be started. What was written is
	// durable after Flush. The caller closes it.
	OpenDisk(ctx context.Context, machineID, diskID string) (ReplicaDisk, error)
	// ResizeDisk gives a disk another size, in bytes, a multiple of 512: what it has
	// more reads as zero, what it has less is lost. It fails as OpenDisk does, and
	// where the disk is open, or on storage that somebody else must resize.
	ResizeDisk(ctx context.Context, machineID, diskID string, size int64) error
}

// ReplicaDisk is an open disk of a machine that is off.
type ReplicaDisk interface {
	block.Image
	block.Sink
	Close() error
}

// Agent speaks with the guest agent inside a running machine. No call waits
// longer than its context, but for what Freeze undoes; a machine without an
// agent is ErrNoAgent. Whoever freezes and may be killed before it thaws, thaws
// when it is started again.
type Agent interface {
	// Ping returns nil if the agent answers.
	Ping(ctx context.Context, machineID string) error
	// Freeze has the guest run its freeze hooks and freeze its file systems, and
	// returns how many. If it fails, or ctx ends, it has tried to thaw again, for
	// which it may take some seconds more than ctx has; ErrFrozen if that failed.
	Freeze(ctx context.Context, machineID string) (fileSystems int, err error)
	// Thaw thaws them and runs the hooks again; it is no error if none is frozen.
	Thaw(ctx context.Context, machineID string) error
	// Ask gives the agent one of its commands, with its arguments or nil, and decodes
	// what it returns into result, if that is not nil. RunInGuest and GuestNICs are
	// made of it. A refusal by the agent is an error with its words.
	Ask(ctx context.Context, machineID, command string, arguments, result any) error
}

// Console shows what a person in front of the machine would see.
type Console interface {
	// Screenshot returns the picture as PNG. It fails with ErrNotRunning.
	Screenshot(ctx context.Context, machineID string) ([]byte, error)
}

// Probe looks at a running machine as its users would. What it asks once; the
// caller asks again until it is satisfied. Each fails with ErrNoWay where asking
// again is of no use.
type Probe interface {
	// Said returns the end of what the serial console has said since the machine
	// was started, at most 1 MiB.
	Said(ctx context.Context, machineID string) ([]byte, error)
	// Dial returns nil if a TCP port of this very machine accepts a connection,
	// whatever other machines have its address.
	Dial(ctx context.Context, machineID string, port int) error
	// Ping returns nil if this very machine answers an ICMP echo request.
	Ping(ctx context.Context, machineID string) error
}
