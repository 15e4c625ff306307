package capture

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"regexp"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/internal/provider"
)

// Ingest is the gateway's side of a mirror. Every method answers within a few
// seconds or fails. Safe for concurrent use.
type Ingest interface {
	// Endpoint returns the unix socket and the export of a disk.
	Endpoint(disk string) (socket, export string)
	// Connection returns how a disk's ingest connection stands.
	Connection(ctx context.Context, disk string) (Connection, error)
	// Synced says that everything the disk holds has been sent, and every write
	// is being sent, on the connection of the epoch. It fails if that is not
	// the connection of now.
	Synced(ctx context.Context, disk string, epoch uint64) error
	// Cut ends the disk's connection, if there is one.
	Cut(ctx context.Context, disk string) error
	// Confirm says that nothing that the machine has written until a time, of a
	// Connection, was missed, on the connections of these epochs.
	Confirm(ctx context.Context, at time.Time, epochs map[string]uint64) error
}

// Connection is how the ingest connection of a disk stands.
type Connection struct {
	Epoch     uint64 // raised by every connect and disconnect
	Connected bool
	Ready     bool      // a connection would be taken now
	At        time.Time // the ingest's time at that moment
}

// Mode is what a mirror does with a disk.
type Mode string

// The modes.
const (
	ModeInitialSync  Mode = "initial_sync" // copies everything for the first time
	ModeContinuous   Mode = "continuous"   // in sync: every write is passed on at once
	ModeRescan       Mode = "rescan"       // copies again what may have been missed
	ModePaused       Mode = "paused"       // the machine is off, or something named in Problem
	ModeStalled      Mode = "stalled"      // QEMU or the ingest does not answer
	ModeDisconnected Mode = "disconnected" // the ingest or the monitor is not reached
)

// severity orders modes from best to worst.
var severity = map[Mode]int{
	ModeContinuous: 0, ModeRescan: 1, ModeInitialSync: 2, ModePaused: 3, ModeDisconnected: 4, ModeStalled: 5,
}

// Disk is a disk to be mirrored.
type Disk struct {
	ID   string
	Size int64 // bytes, as the gateway knows it
}

// DiskState is how the mirror of one disk fares.
type DiskState struct {
	ID    string
	Size  int64
	Mode  Mode
	Done  int64   // bytes of the pass at hand
	Total int64   // 0 if no pass is under way
	Rate  float64 // bytes per second
	// Problem says why the disk is not in sync and what to do; empty if it is,
	// or will be by itself.
	Problem string
	// Resized says that Problem is the disk's size: it is not the one of before.
	Resized bool
}

// State is how a mirror fares.
type State struct {
	Disks   []DiskState
	Problem string // the first problem of any disk, or of the machine
	// SourceOff says that the machine does not run.
	SourceOff bool
}

// Mode returns the worst mode of any disk.
func (s State) Mode() Mode {
	worst := ModeContinuous
	if len(s.Disks) == 0 {
		return ModeDisconnected
	}
	for _, d := range s.Disks {
		if severity[d.Mode] > severity[worst] {
			worst = d.Mode
		}
	}
	return worst
}

// MirrorOptions say what a Mirror needs.
type MirrorOptions struct {
	// Open opens the machine's monitor; provider.ErrNotRunning if it is off.
	Open func(context.Context) (provider.Monitor, error)
	// Machine describes the machine as it is now, to find its disks in QEMU.
	Machine func(context.Context) (provider.Machine, error)
	Disks   []Disk
	// Prefix names the mirror among others in the same QEMU, for good.
	Prefix string
	Ingest Ingest
	// Seeded says that the gateway has a whole copy of the disks already, so
	// that a pass over everything is a rescan.
	Seeded bool
	// SpeedLimit bounds a pass over a disk in bytes per second; 0: none.
	SpeedLimit int64
	Poll       time.Duration // default 250 ms
	Timeout    time.Duration // of a monitor command; default 5 s
	Logger     *slog.Logger
	// OnState is called from Run after each poll, one call at a time.
	OnState func(State)
}

func (o MirrorOptions) withDefaults() MirrorOptions {
	if o.Poll <= 0 {
		o.Poll = 250 * time.Millisecond
	}
	if o.Timeout <= 0 {
		o.Timeout = 5 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.OnState == nil {
		o.OnState = func(State) {}
	}
	return o
}

// Mirror looks after the continuous mirror of one machine.
type Mirror struct {
	opts MirrorOptions
	log  *slog.Logger

	// run is held by Run and Detach: only one of them at a time.
	run   sync.Mutex
	disks []*tracked

	// mu guards state.
	mu    sync.Mutex
	state State
}

// NewMirror returns a mirror; it does nothing before Run.
func NewMirror(o MirrorOptions) *Mirror {
	o = o.withDefaults()
	m := &Mirror{opts: o, log: o.Logger}
	for _, d := range o.Disks {
		t := newTracked(o.Prefix, d)
		t.seeded = o.Seeded
		m.disks = append(m.disks, t)
	}
	m.publish()
	return m
}

// State returns how the mirror fared at the last poll.
func (m *Mirror) State() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.state
	s.Disks = append([]DiskState(nil), s.Disks...)
	return s
}

// publish makes the disks' states visible.
func (m *Mirror) publish() { m.publishState(State{}) }

func (m *Mirror) publishState(s State) {
	for _, t := range m.disks {
		s.Disks = append(s.Disks, t.state)
		if s.Problem == "" && t.state.Problem != "" {
			s.Problem = fmt.Sprintf("disk %s: %s", t.disk.ID, t.state.Problem)
		}
	}
	m.mu.Lock()
	changed := m.state.Mode() != s.Mode() || m.state.Problem != s.Problem
	m.state = s
	m.mu.Unlock()
	if changed {
		m.log.Info("mirror", "mode", s.Mode(), "problem", s.Problem)
	}
	m.opts.OnState(s)
}

// Run looks after the mirror until ctx ends, and returns nil then. It leaves
// the block jobs to themselves: the next Run takes them up, and only Detach
// removes them. It survives QEMU and the ingest going away and coming back.
func (m *Mirror) Run(ctx context.Context) error {
	m.run.Lock()
	defer m.run.Unlock()
	c := &controller{Mirror: m}
	defer c.close()
	for {
		err := c.step(ctx)
		if ctx.Err() != nil {
			return nil
		}
		wait := m.opts.Poll
		if err != nil {
			c.close()
			wait = 2 * m.opts.Poll
			m.unreachable(err)
		}
		if !sleep(ctx, wait) {
			return nil
		}
	}
}

// unreachable shows that the machine could not be looked after.
func (m *Mirror) unreachable(err error) {
	mode, problem := ModeDisconnected, fmt.Sprintf("the machine's monitor is not reached: %v", err)
	switch {
	case errors.Is(err, provider.ErrNotRunning):
		mode, problem = ModePaused, "the machine does not run; replication goes on when it is started"
	case errors.Is(err, errUnusable):
		mode, problem = ModePaused, err.Error()
	case errors.Is(err, context.DeadlineExceeded):
		mode = ModeStalled
	}
	for _, t := range m.disks {
		t.lost(mode)
	}
	m.publishState(State{Problem: problem, SourceOff: errors.Is(err, provider.ErrNotRunning)})
}

// sleep waits and says whether ctx still goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// tracked is one disk with what the mirror remembers of it between polls.
type tracked struct {
	disk  Disk
	names names
	state DiskState

	seeded    bool      // a full copy was made at some time
	claimed   bool      // Synced was accepted for epoch
	epoch     uint64    // of claimed
	passTotal int64     // most that was dirty in this catch-up
	retryAt   time.Time // not before: QEMU refused something
	ended     string    // why QEMU ended the last job, until in sync again
	moved     time.Time
	rateAt    time.Time
	rateDone  int64
}

// names are what a disk's objects are called in QEMU. They are the same after
// every restart, so that a mirror can be taken up again.
type names struct {
	job    string
	target string
	filter string
}

var notID = regexp.MustCompile(`[^A-Za-z0-9._-]`)

func newTracked(prefix string, d Disk) *tracked {
	h := fnv.New64a()
	_, _ = h.Write([]byte(prefix + "\x00" + d.ID)) // never fails
	job := "holdfast-" + prefix + "-" + d.ID
	if safe := notID.ReplaceAllString(job, "-"); safe != job || len(job) > 200 {
		job = fmt.Sprintf("holdfast-%.150s-%016x", safe[len("holdfast-"):], h.Sum64())
	}
	return &tracked{
		disk: d,
		// QEMU allows 31 bytes for the name of a node.
		names: names{job: job, target: fmt.Sprintf("hx-%016x", h.Sum64()), filter: fmt.Sprintf("hy-%016x", h.Sum64())},
		state: DiskState{ID: d.ID, Size: d.Size, Mode: ModeDisconnected},
	}
}

// lost shows that nothing is known of the disk at the moment.
func (t *tracked) lost(mode Mode) {
	t.claimed = false
	t.state = DiskState{ID: t.disk.ID, Size: t.disk.Size, Mode: mode}
}
