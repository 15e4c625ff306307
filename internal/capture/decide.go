package capture

import (
	"fmt"
	"time"
)

// action is what is to be done for a disk next.
type action int

const (
	actNothing action = iota
	actStart          // add the target and begin a full pass
	actCut            // end the ingest connection: it is no longer mirrored
	actDismiss        // forget a job that has ended
	actDelete         // delete the target node
	actResume         // let the job go on
	actWake           // make QEMU connect to the ingest again
	actClaim          // tell the ingest that the disk is in sync
)

func (a action) String() string {
	return [...]string{"nothing", "start", "cut", "dismiss", "delete", "resume", "wake", "claim"}[a]
}

// situation is all that the next action for a disk depends on.
type situation struct {
	disk Disk
	root *blockNode // nil: QEMU has no such disk
	job  *blockJob  // nil: there is none
	// target says whether our target node exists.
	target bool
	dirty  int64 // bytes that the job has still to copy
	known  bool  // whether dirty is
	others string

	epoch     uint64
	connected bool
	ingest    error     // why the ingest is not reached
	ready     bool      // the ingest takes connections
	asked     time.Time // the ingest's time, before QEMU was asked

	claimed bool // in sync was claimed for this epoch
	seeded  bool
}

// decision is what to do, and what to show meanwhile.
type decision struct {
	act     action
	mode    Mode
	problem string
	resized bool // the problem is the disk's size
}

// decide chooses what to do for one disk. It is pure.
func decide(s situation) decision {
	switch {
	case s.root == nil:
		return decision{mode: ModePaused, problem: "the running machine has no such disk; was it detached? Attach it again, or protect the machine anew without it"}
	case s.job == nil:
		return decideWithoutJob(s)
	case s.job.Status == "concluded" || s.job.Status == "aborting" || s.job.Status == "null":
		return decideEnded(s)
	case s.job.Paused || s.job.failed():
		return decidePaused(s)
	case !s.job.Ready:
		return decision{mode: s.pass()}
	default:
		return decideReady(s)
	}
}

// pass is the mode of a pass over the whole disk.
func (s situation) pass() Mode {
	if s.seeded {
		return ModeRescan
	}
	return ModeInitialSync
}

func decideWithoutJob(s situation) decision {
	switch {
	case s.ingest != nil:
		return decision{mode: ModeDisconnected, problem: fmt.Sprintf("the gateway's ingest does not answer: %v", s.ingest)}
	case s.connected:
		// Somebody ended the job. The connection still stands, and the ingest
		// believes what it was told of it.
		return decision{act: actCut, mode: ModeRescan}
	case s.target:
		return decision{act: actDelete, mode: ModeRescan}
	case s.root.Image.Size != s.disk.Size:
		return decision{mode: ModePaused, resized: true, problem: fmt.Sprintf(
			"the disk has %d bytes now, and had %d; the server has the new size taken over", s.root.Image.Size, s.disk.Size)}
	case s.root.RO:
		return decision{mode: ModePaused, problem: "the disk is read-only; make it writable or protect the machine without it"}
	case !s.ready:
		return decision{mode: ModeDisconnected}
	}
	return decision{act: actStart, mode: s.pass()}
}

func decideEnded(s situation) decision {
	if s.connected {
		return decision{act: actCut, mode: ModeRescan}
	}
	if s.job.Status != "concluded" || s.ingest != nil {
		return decision{mode: ModeRescan}
	}
	return decision{act: actDismiss, mode: ModeRescan}
}

func decidePaused(s situation) decision {
	switch {
	case s.claimed && s.connected && s.job.failed():
		// An error without a lost connection: what was claimed is not true.
		return decision{act: actCut, mode: ModePaused}
	case s.ingest != nil:
		return decision{mode: ModeDisconnected, problem: fmt.Sprintf("the gateway's ingest does not answer: %v", s.ingest)}
	case !s.connected && !s.ready:
		return decision{mode: ModeDisconnected}
	case s.job.IOStatus == "nospace":
		return decision{act: actResume, mode: ModePaused, problem: "the source's storage has no space left; free some"}
	}
	return decision{act: actResume, mode: ModePaused}
}

func decideReady(s situation) decision {
	switch {
	case s.ingest != nil:
		return decision{mode: ModeDisconnected, problem: fmt.Sprintf("the gateway's ingest does not answer: %v", s.ingest)}
	case !s.connected && s.ready:
		return decision{act: actWake, mode: ModeDisconnected}
	case !s.connected:
		return decision{mode: ModeDisconnected}
	case s.claimed && s.inSync():
		return decision{mode: ModeContinuous}
	case s.claimed && s.known && s.dirty > 0:
		return decision{act: actCut, mode: ModeRescan}
	case s.claimed:
		return decision{mode: ModeContinuous} // writes are on their way
	case s.inSync():
		return decision{act: actClaim, mode: ModeRescan}
	}
	return decision{mode: ModeRescan}
}

// inSync says whether the target has everything: the job has nothing left to
// copy, met no error since it was last resumed, and passes writes on.
func (s situation) inSync() bool {
	j := s.job
	if j == nil || !j.Ready || j.Paused || j.failed() || j.Status != "ready" || j.Offset != j.Len {
		return false
	}
	if j.ActivelySynced != nil { // since QEMU 8.2
		return *j.ActivelySynced && s.dirty == 0
	}
	return s.known && s.dirty == 0
}
