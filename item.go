package holdfast

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// Record is what every stored thing carries. The store raises Version with
// each change and refuses a change that was made from an older one.
type Record struct {
	Version   int64     `json:"version"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

// Site is a place with machines, seen through a provider. Whether it is the
// primary or the recovery site is a role that it has for one item.
type Site struct {
	ID       string          `json:"id"`
	Name     string          `json:"name"`
	Provider string          `json:"provider"`           // the adapter: "libvirt", "qemu", …
	Settings json.RawMessage `json:"settings,omitempty"` // the provider's own
	Gateway  string          `json:"gateway,omitempty"`  // address; empty for the server's own
	Record
}

// Disk is a protected disk of an item.
type Disk struct {
	ID   string `json:"id"`   // stable for the machine, [a-z0-9-]{1,32}
	Size int64  `json:"size"` // bytes
	Boot bool   `json:"boot,omitempty"`
}

// Direction is which way an item replicates. It is an attribute of the item,
// not part of its state.
type Direction string

// The directions.
const (
	// Forward is from the primary to the recovery site.
	Forward Direction = "forward"
	// Reverse is from the recovery site back to the primary.
	Reverse Direction = "reverse"
)

// Opposite returns the other direction.
func (d Direction) Opposite() Direction {
	if d == Reverse {
		return Forward
	}
	return Reverse
}

// Mode is what the copying of an item is doing.
type Mode string

// The modes of replication, in the vocabulary that users of such systems know.
const (
	// ModeInitialSync copies the disks for the first time.
	ModeInitialSync Mode = "initial_sync"
	// ModeContinuous sends every write as it is made.
	ModeContinuous Mode = "continuous"
	// ModeBacklog sends writes later than they are made, because the way to the
	// vault is slower than the machine writes.
	ModeBacklog Mode = "backlog"
	// ModeRescan sends the blocks that changed while it could not send writes.
	ModeRescan Mode = "rescan"
	// ModePaused sends nothing because somebody asked for that or the machine is off.
	ModePaused Mode = "paused"
	// ModeStalled is connected, and nothing moves although there is something to send.
	ModeStalled Mode = "stalled"
	// ModeDisconnected has no connection between source and gateway.
	ModeDisconnected Mode = "disconnected"
)

// TestState is how a test failover of an item stands. It is orthogonal to the
// item's state: the item goes on being protected while it is tested.
type TestState string

// The states of a test failover.
const (
	// TestNone says that there is no test failover.
	TestNone TestState = ""
	// TestStarting says that a test machine is being made.
	TestStarting TestState = "starting"
	// TestRunning says that the test machine waits for somebody to look at it and clean up.
	TestRunning TestState = "running"
	// TestFailed says that making the test machine failed; what is there of it waits for clean-up.
	TestFailed TestState = "failed"
	// TestCleaningUp says that the test machine is being removed.
	TestCleaningUp TestState = "cleaning_up"
)

// Test is one test failover: a copy of the machine, apart from the world. An
// item may have several at a time; none stands in the way of anything but the
// end of protection.
type Test struct {
	Handle    string        `json:"handle"`
	Name      string        `json:"name"` // of the test machine
	State     TestState     `json:"state"`
	Site      string        `json:"site"`              // site id
	Network   string        `json:"network,omitempty"` // empty: isolated
	Point     RecoveryPoint `json:"point"`
	Job       string        `json:"job"` // that started it
	MachineID string        `json:"machine_id,omitempty"`
	StartedAt time.Time     `json:"started_at"`
	// Ready is how long it took from the request until the machine ran, and was
	// verified if that was asked for; 0: it does not yet.
	Ready time.Duration `json:"ready,omitempty"`
	// Verified says how the boot verification ended; empty: none was asked for.
	Verified string `json:"verified,omitempty"`
}

// TestRecord is what is kept of the last test failover that was cleaned up.
type TestRecord struct {
	At      time.Time     `json:"at"` // when it was cleaned up
	Passed  bool          `json:"passed"`
	Ready   time.Duration `json:"ready"`
	Point   RecoveryPoint `json:"point"`
	Note    string        `json:"note,omitempty"` // the tester's
	Job     string        `json:"job"`            // that started it
	Success time.Time     `json:"success"`        // when one last passed, this one or one before it
}

// Copy is the machine of an item at one of its two sites.
type Copy struct {
	MachineID string `json:"machine_id,omitempty"` // at the site
	Name      string `json:"name,omitempty"`       // at the site
	// Handle is that of the recovery that made the machine; empty: it was there
	// before, and is nobody's to remove.
	Handle string `json:"handle,omitempty"`
	// Equal is the position of the stream that its disks are equal to, known only
	// while it is off and guarded.
	Equal *StreamPosition `json:"equal,omitempty"`
}

// StreamPosition is a position on a timeline.
type StreamPosition struct {
	Timeline TimelineID `json:"timeline"`
	Position Position   `json:"position"`
}

// Status is what is known of an item's replication just now. It is observed,
// not recorded: whoever hands out an Item fills it in, and the store leaves it
// out.
type Status struct {
	Mode    Mode           // empty: does not replicate in this state
	Newest  *RecoveryPoint // the newest position that one can recover to; nil: none
	RPO     time.Duration  // how far Newest is behind now
	Backlog int64          // bytes written at the source and not yet in the vault
	// NeedsView says that the machine, which a recovery has made, still reads
	// from the vault.
	NeedsView bool
	// TooLate says that the running job can no longer be cancelled.
	TooLate  bool
	Findings []Finding
}

// Tested is what is known of an item's test failovers.
type Tested struct {
	Tests    []Test      `json:"tests,omitempty"` // those that are open
	LastTest *TestRecord `json:"last_test,omitempty"`
}

// Machines are what CopyAt and WithCopy show of an item, besides MachineID and
// MachineName.
type Machines struct {
	Handle string `json:"handle,omitempty"` // of the machine at the recovery site; empty: there is none
	// RecoveryMachine and RecoveryName are the machine at the recovery site.
	RecoveryMachine string `json:"recovery_machine,omitempty"`
	RecoveryName    string `json:"recovery_name,omitempty"`
	// PrimaryHandle is the handle of the machine at the primary site if a failback
	// has made it anew there.
	PrimaryHandle string `json:"primary_handle,omitempty"`
	// PrimaryEqual is what the disks of the machine at the primary site are equal
	// to; nil: not known, or it works.
	PrimaryEqual *StreamPosition `json:"primary_equal,omitempty"`
	// Networks are what the last failover was told to put in the place of networks.
	Networks map[string]string `json:"networks,omitempty"`
	// Addressing is what the guest was told that its disks bring home with them.
	Addressing Addressing `json:"addressing,omitzero"`
}

// Replication is what an item's machine is replicated as.
type Replication struct {
	Stream     StreamID   `json:"stream"`
	Timeline   TimelineID `json:"timeline"`
	Generation Generation `json:"generation"`
	// Former is what the machine was while it had other disks: recovery points
	// from then bring it back so.
	Former []Shape `json:"former,omitempty"`
	// Group is the replication group that the item is in; empty: none.
	Group string `json:"group,omitempty"`
	// Pinned are recovery points that are kept until somebody unpins them.
	Pinned []RecoveryPoint `json:"pinned,omitempty"`
	// Hold says that nothing of the history is removed; nil: there is no hold.
	Hold *Hold `json:"hold,omitempty"`
	// PausedUntil is until when the machine is left alone; zero: it is not.
	PausedUntil time.Time `json:"paused_until,omitzero"`
}

// Hold is a legal hold on an item's history.
type Hold struct {
	Reason string    `json:"reason"`
	By     string    `json:"by"` // the name of who asked for it
	Since  time.Time `json:"since"`
}

// CheckHold refuses to remove anything of a history that is held.
func (i Item) CheckHold(op string) error {
	if i.Hold == nil {
		return nil
	}
	return &Error{Kind: KindNotAllowed, Op: op, Thing: i.Name,
		Cause: fmt.Sprintf("its history is held since %s, by %s: %s", i.Hold.Since.UTC().Format(time.RFC3339), i.Hold.By, i.Hold.Reason),
		Hint:  "Do it without deleting anything, or release the hold with holdfast item hold --release"}
}

// Item is a machine under protection. State, Direction and health are three
// separate things; health is derived from Status.Findings and never changes
// the state. An Item is a value: its methods return a changed copy.
type Item struct {
	ID   string `json:"id"`
	Name string `json:"name"`

	MachineID    string          `json:"machine_id"`        // at the primary site
	MachineName  string          `json:"machine_name"`      // at the primary site
	Machine      json.RawMessage `json:"machine,omitempty"` // as its provider describes it
	PrimarySite  string          `json:"primary_site"`      // site id
	RecoverySite string          `json:"recovery_site"`     // site id
	Disks        []Disk          `json:"disks"`
	Policy       Policy          `json:"policy"`

	State      State     `json:"state"`
	Direction  Direction `json:"direction"`
	CurrentJob string    `json:"current_job,omitempty"` // id of the job that works on it

	Tested

	Replication

	RecoveryPoint *RecoveryPoint `json:"recovery_point,omitempty"` // what it was failed over to
	Machines

	Status Status `json:"-"`
	Record
}

// Shape is a machine's disks, and how it is described.
type Shape struct {
	Disks   []Disk          `json:"disks"`
	Machine json.RawMessage `json:"machine,omitempty"`
}

// maxFormer is how many shapes of before are remembered.
const maxFormer = 64

// WithDisks returns the item with its machine as it is, or was, with disks of
// these ids and sizes. What it was until now is remembered. Of disks that it
// never had it is not known that any is one to boot from.
func (it Item) WithDisks(disks []Disk) Item {
	if SameDisks(it.Disks, disks) {
		return it
	}
	now := Shape{it.Disks, it.Machine}
	next := Shape{slices.Clone(disks), it.Machine}
	for i, d := range next.Disks {
		if at := slices.IndexFunc(it.Disks, func(o Disk) bool { return o.ID == d.ID }); at >= 0 {
			next.Disks[i].Boot = it.Disks[at].Boot
		}
	}
	var former []Shape
	for _, s := range it.Former {
		if SameDisks(s.Disks, disks) {
			next = s
		} else if !SameDisks(s.Disks, now.Disks) {
			former = append(former, s)
		}
	}
	if former = append(former, now); len(former) > maxFormer {
		former = former[len(former)-maxFormer:]
	}
	it.Disks, it.Machine, it.Former = next.Disks, next.Machine, former
	return it
}

// SameDisks says whether two lists have disks of the same ids and sizes, in any
// order.
func SameDisks(a, b []Disk) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(d Disk) bool {
		return !slices.ContainsFunc(b, func(o Disk) bool { return o.ID == d.ID && o.Size == d.Size })
	})
}

// ActiveSite returns the id of the site where the machine works in the item's
// state and direction. While a failover is on its way that is the site which
// it leaves.
func (it Item) ActiveSite() string {
	if it.activeIsSource() == (it.Direction == Reverse) {
		return it.RecoverySite
	}
	return it.PrimarySite
}

// TargetSite returns the id of the other site.
func (it Item) TargetSite() string {
	if it.ActiveSite() == it.PrimarySite {
		return it.RecoverySite
	}
	return it.PrimarySite
}

// CopyAt returns the machine of the item at one of its sites.
func (it Item) CopyAt(site string) Copy {
	if site == it.PrimarySite {
		return Copy{MachineID: it.MachineID, Name: it.MachineName, Handle: it.PrimaryHandle, Equal: it.PrimaryEqual}
	}
	return Copy{MachineID: it.RecoveryMachine, Name: it.RecoveryName, Handle: it.Handle}
}

// WithCopy returns the item with another machine at one of its sites.
func (it Item) WithCopy(site string, c Copy) Item {
	if site == it.PrimarySite {
		it.MachineID, it.MachineName, it.PrimaryHandle, it.PrimaryEqual = c.MachineID, c.Name, c.Handle, c.Equal
		return it
	}
	it.RecoveryMachine, it.RecoveryName, it.Handle = c.MachineID, c.Name, c.Handle
	return it
}

// TestState returns the state of the item's test failovers: of several, the one
// that most wants somebody's attention.
func (it Item) TestState() TestState {
	for _, want := range []TestState{TestFailed, TestRunning, TestStarting, TestCleaningUp} {
		for _, t := range it.Tests {
			if t.State == want {
				return want
			}
		}
	}
	return TestNone
}

// activeIsSource says whether the side that the direction leads away from is
// the one that works.
func (it Item) activeIsSource() bool {
	switch it.State {
	case StateDisabling, StateDisablingFailed, StateUnprotected:
		// Protection may end before and after a failover, and the recovered
		// machine stays.
		return it.RecoveryPoint == nil
	default:
		return !failedOver(it.State)
	}
}
