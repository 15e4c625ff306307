package providertest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/internal/provider"
)

// ErrUnreachable is what every call to a fake site returns while it is down.
var ErrUnreachable = errors.New("site is unreachable")

// Call is one entry in the log of a fake site.
type Call struct {
	// Method is as in the provider's roles, but "PowerOn" for Power.Start. Also
	// "Execute" of a monitor, "HydrateStep", and of an open disk "ReadDisk",
	// "MapDisk", "WriteDisk", "ZeroDisk", "FlushDisk" and "CloseDisk".
	Method string
	Number int    // 1 for the first call of this method
	Arg    string // machine id, handle, monitor command, or "machine id/disk id"
	Err    error  // what it returned; nil while it runs
}

// String returns "Method(arg)", or "Method(arg): error".
func (c Call) String() string {
	if c.Err != nil {
		return fmt.Sprintf("%s(%s): %v", c.Method, c.Arg, c.Err)
	}
	return fmt.Sprintf("%s(%s)", c.Method, c.Arg)
}

// Fault is what happens in one call, or in all calls, of a method.
type Fault struct {
	Method string
	Call   int           // number of the call, from 1; 0 means every call
	Delay  time.Duration // waited before all else; ends early, with its error, when the context does
	Do     func()        // called next, without any lock held; may be nil
	Err    error         // returned instead of the result, if not nil
	After  bool          // the effect takes place and Err is returned all the same: an answer that was lost
}

// Fake is a site in memory with all roles. It outlives the provider.Site values
// made of it, as a real site outlives the server. Its machines are what a test
// puts there, and what is recovered to it; each has disks in memory. It keeps
// the rules that a real site enforces: a guarded machine does not start, a disk
// of a running machine cannot be opened, and a machine with an open disk does
// not start. Safe for concurrent use.
type Fake struct {
	name  string
	world *World

	mu        sync.Mutex // guards the fields below
	machines  []provider.Machine
	networks  []provider.Network
	commands  func(machineID, command string, arguments map[string]any) (any, error) // see SetCommands
	fits      func(provider.Machine) error
	recovered map[string]*FakeRecovered
	monitor   MonitorFunc
	onStart   func(provider.Recovered) error
	faults    []Fault
	counts    map[string]int
	calls     []Call
	down      bool
	made      int
	guards    map[string]string     // machine id → reason
	disks     map[string]*fakeDisk  // see diskKey
	agents    map[string]*fakeGuest // machine id → its agent; none: no agent
	views     ViewFunc              // nil: recovered disks begin as zeroes
	screen    func(machineID string) ([]byte, error)
}

// MonitorFunc answers a monitor command of a fake machine. The result is
// anything that encodes to the JSON that QEMU would return.
type MonitorFunc func(machineID, command string, arguments any) (result any, err error)

// FakeRecovered is a machine that was recovered to a fake site.
type FakeRecovered struct {
	MachineID string
	Recovered provider.Recovered
	Power     provider.PowerState
	Starts    int // how often it was powered on
	StartedAt time.Time
	Hydrated  int64
	Total     int64
}

// NewFake returns an empty site with one network, "default". Sites that share
// a world see each other's live machines; a nil world is a world of its own.
func NewFake(name string, world *World) *Fake {
	if world == nil {
		world = NewWorld()
	}
	return &Fake{
		name: name, world: world,
		networks:  []provider.Network{{ID: "default", Name: "default"}},
		recovered: map[string]*FakeRecovered{},
		counts:    map[string]int{},
		monitor:   answerVersion,
		guards:    map[string]string{},
		disks:     map[string]*fakeDisk{},
		agents:    map[string]*fakeGuest{},
		screen:    grey,
	}
}

// Site returns the site with all its roles. It may be called any number of
// times; all sites returned are the same place.
func (f *Fake) Site() *provider.Site {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &provider.Site{
		Fits: f.fits, Inventory: fakeInventory{f}, Source: fakeSource{f}, Target: fakeTarget{f}, Power: fakePower{f},
		Replica: fakeReplica{f}, Agent: fakeAgent{f}, Console: fakeConsole{f}, Probe: fakeProbe{f},
		Close: func() error { return nil },
	}
}

// SetFits says which machines the site can run; nil: all.
func (f *Fake) SetFits(fits func(provider.Machine) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fits = fits
}

// FakeMachine returns a running machine with one 64 MiB disk per disk id.
func FakeMachine(id, name string, disks ...string) provider.Machine {
	m := provider.Machine{
		ID: id, Name: name, Power: provider.PowerRunning, CPUs: 1, Memory: 256 << 20, Firmware: "bios",
		NICs:      []provider.NIC{{ID: "net0", MAC: "52:54:00:00:00:01", Network: "default", Model: "virtio"}},
		Disks:     []provider.Disk{},
		Config:    []byte(`{}`),
		Obstacles: []string{},
	}
	for i, d := range disks {
		m.Disks = append(m.Disks, provider.Disk{ID: d, Size: 64 << 20, Format: "raw", Path: "/fake/" + id + "/" + d, Boot: i == 0})
	}
	return m
}

// AddMachine puts a machine at the site, or replaces the one with its id, whose
// disks it keeps where id and size are the same. New disks are zero.
func (f *Fake) AddMachine(m provider.Machine) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.machines = slices.DeleteFunc(f.machines, func(o provider.Machine) bool { return o.ID == m.ID })
	f.machines = append(f.machines, m)
	slices.SortFunc(f.machines, func(a, b provider.Machine) int { return cmp.Compare(a.Name, b.Name) })
	f.makeDisks(m)
	f.power(m.ID, m.Power)
}

// RemoveMachine takes a machine away from the site, as if deleted there.
func (f *Fake) RemoveMachine(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.power(id, provider.PowerOff)
	f.forget(id)
}

// SetPower changes a machine's power behind everyone's back, also if it is
// guarded. A machine with an open disk does not start even so.
func (f *Fake) SetPower(id string, p provider.PowerState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p == provider.PowerRunning && f.openDisk(id) != "" {
		return
	}
	f.power(id, p)
}

// SetDown makes the site unreachable, or reachable again. Its machines go on.
func (f *Fake) SetDown(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = down
}

// LoseHost makes the site unreachable, ends all its machines and closes their
// disks. What a test has written to the disks is kept.
func (f *Fake) LoseHost() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = true
	for _, d := range f.disks {
		d.opening = nil
	}
	for _, m := range f.machines {
		f.power(m.ID, provider.PowerOff)
	}
	for _, r := range f.recovered {
		f.powerRecovered(r, provider.PowerOff)
	}
}

// SetNetworks replaces the site's networks by ones with these names.
func (f *Fake) SetNetworks(names ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.networks = []provider.Network{}
	for _, n := range names {
		f.networks = append(f.networks, provider.Network{ID: n, Name: n})
	}
}

// SetMonitor makes fn answer all monitors. Without it they know only
// query-version.
func (f *Fake) SetMonitor(fn MonitorFunc) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.monitor = fn
}

// OnStart makes fn run each time a recovered machine is powered on, before it
// counts as running, for instance to read its disks; an error fails Start.
func (f *Fake) OnStart(fn func(provider.Recovered) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onStart = fn
}

// Script adds faults. The first one that fits a call is used.
func (f *Fake) Script(faults ...Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = append(f.faults, faults...)
}

// ClearScript removes all faults.
func (f *Fake) ClearScript() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = nil
}

// Calls returns the log of all calls so far, in order of their beginning. With
// methods named, only theirs.
func (f *Fake) Calls(methods ...string) []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []Call
	for _, c := range f.calls {
		if len(methods) == 0 || slices.Contains(methods, c.Method) {
			out = append(out, c)
		}
	}
	return out
}

// Recovered returns the machine with a handle, and false if there is none.
func (f *Fake) Recovered(handle string) (FakeRecovered, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, ok := f.recovered[handle]
	if !ok {
		return FakeRecovered{}, false
	}
	return *r, true
}

// Handles returns the handles of all recovered machines, sorted.
func (f *Fake) Handles() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := []string{}
	for h := range f.recovered {
		out = append(out, h)
	}
	slices.Sort(out)
	return out
}

// call logs a call, lets its fault happen and runs effect with the lock held.
func (f *Fake) call(ctx context.Context, method, arg string, effect func() error) error {
	fault, index := f.begin(method, arg)
	err := f.suffer(ctx, fault)
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case err != nil:
	case ctx.Err() != nil:
		err = ctx.Err()
	case f.down:
		err = fmt.Errorf("site %s: %w", f.name, ErrUnreachable)
	case fault.Err != nil && !fault.After:
		err = fault.Err
	default:
		err = effect()
		if err == nil {
			err = fault.Err
		}
	}
	f.calls[index].Err = err
	return err
}

func (f *Fake) begin(method, arg string) (Fault, int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts[method]++
	n := f.counts[method]
	f.calls = append(f.calls, Call{Method: method, Number: n, Arg: arg})
	for _, fault := range f.faults {
		if fault.Method == method && (fault.Call == 0 || fault.Call == n) {
			return fault, len(f.calls) - 1
		}
	}
	return Fault{}, len(f.calls) - 1
}

func (f *Fake) suffer(ctx context.Context, fault Fault) error {
	if fault.Delay > 0 {
		timer := time.NewTimer(fault.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if fault.Do != nil {
		fault.Do()
	}
	return nil
}

func (f *Fake) find(idOrName string) (int, error) {
	for _, by := range []func(provider.Machine) string{
		func(m provider.Machine) string { return m.ID },
		func(m provider.Machine) string { return m.Name },
	} {
		if i := slices.IndexFunc(f.machines, func(m provider.Machine) bool { return by(m) == idOrName }); i >= 0 {
			return i, nil
		}
	}
	return -1, fmt.Errorf("machine %q at site %s: %w", idOrName, f.name, provider.ErrNotFound)
}

// forget removes a machine with its guard, its agent and its disks.
func (f *Fake) forget(id string) {
	f.machines = slices.DeleteFunc(f.machines, func(m provider.Machine) bool { return m.ID == id })
	delete(f.guards, id)
	delete(f.agents, id)
	maps.DeleteFunc(f.disks, func(_ string, d *fakeDisk) bool { return d.machineID == id })
}

// power sets the power of an original or recovered machine by its id.
func (f *Fake) power(id string, p provider.PowerState) {
	if p == provider.PowerOff {
		f.thaw(id) // a machine that ends holds nothing frozen
	}
	for _, r := range f.recovered {
		if r.MachineID == id {
			f.powerRecovered(r, p)
			return
		}
	}
	i, err := f.find(id)
	if err != nil {
		return
	}
	f.machines[i].Power = p
	if p == provider.PowerRunning {
		f.world.start(id, f.name+"/"+f.machines[i].Name)
	} else {
		f.world.stop(id, f.name+"/"+f.machines[i].Name)
	}
}

func (f *Fake) powerRecovered(r *FakeRecovered, p provider.PowerState) {
	if p == provider.PowerOff {
		f.thaw(r.MachineID)
	}
	r.Power = p
	if i, err := f.find(r.MachineID); err == nil {
		f.machines[i].Power = p
	}
	if r.Recovered.Isolated {
		return
	}
	if p == provider.PowerRunning {
		f.world.start(r.Recovered.Machine.ID, f.name+"/"+r.Recovered.Handle)
	} else {
		f.world.stop(r.Recovered.Machine.ID, f.name+"/"+r.Recovered.Handle)
	}
}
