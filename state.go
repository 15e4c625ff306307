package holdfast

import "slices"

// State is where an item is in its life. Direction, test failover and health
// are separate dimensions of the item. docs/states.md is generated from the
// table in this file.
type State string

// The states.
const (
	StateUnprotected         State = "unprotected"
	StateEnabling            State = "enabling"
	StateEnablingFailed      State = "enabling_failed"
	StateInitialReplication  State = "initial_replication"
	StateProtected           State = "protected"
	StateReplicationBroken   State = "replication_broken"
	StateFailingOver         State = "failing_over"
	StateFailoverFailed      State = "failover_failed"
	StateUndoingFailover     State = "undoing_failover"
	StateCommitPending       State = "commit_pending"
	StateChangingPoint       State = "changing_point"
	StateChangingPointFailed State = "changing_point_failed"
	StateCommitting          State = "committing"
	StateCommitFailed        State = "commit_failed"
	StateCommitted           State = "committed"
	StateReprotecting        State = "reprotecting"
	StateReprotectFailed     State = "reprotect_failed"
	StateMigrating           State = "migrating"
	StateMigrationFailed     State = "migration_failed"
	StateMigrated            State = "migrated"
	StateDisabling           State = "disabling"
	StateDisablingFailed     State = "disabling_failed"
)

// Operation is what a user can ask of an item.
type Operation string

// The operations.
const (
	// OpEnable protects a machine: what makes the item.
	OpEnable Operation = "enable"
	// OpFailover runs the machine at the other site, whether or not the active one still works.
	OpFailover Operation = "failover"
	// OpPlannedFailover shuts the machine down first, so that nothing is lost.
	OpPlannedFailover Operation = "planned_failover"
	// OpFailback is the planned failover home, of a healthy item in reverse direction.
	OpFailback Operation = "failback"
	// OpTestFailover runs a copy of the machine apart from the world.
	OpTestFailover Operation = "test_failover"
	// OpCleanUp removes what a test failover made.
	OpCleanUp Operation = "clean_up"
	// OpChangePoint moves a recovered machine to another recovery point.
	OpChangePoint Operation = "change_point"
	// OpCommit makes a failover final.
	OpCommit Operation = "commit"
	// OpUndoFailover gives up a failover and goes on replicating as before it.
	OpUndoFailover Operation = "undo_failover"
	// OpReprotect replicates the other way round.
	OpReprotect Operation = "reprotect"
	// OpCompleteMigration leaves the machine where it is for good.
	OpCompleteMigration Operation = "complete_migration"
	// OpResync compares source and vault and sends what differs.
	OpResync Operation = "resync"
	// OpChangePolicy gives the item another policy.
	OpChangePolicy Operation = "change_policy"
	// OpSwitchGateway lets another gateway take the item's data.
	OpSwitchGateway Operation = "switch_gateway"
	// OpCancel stops the job that works on the item.
	OpCancel Operation = "cancel"
	// OpDisable ends protection.
	OpDisable Operation = "disable"
)

// Outcome is how what is going on in a state comes to its end.
type Outcome string

// The outcomes.
const (
	// OutcomeSucceeded says that the job did what it was to do.
	OutcomeSucceeded Outcome = "succeeded"
	// OutcomeFailed says that it did not.
	OutcomeFailed Outcome = "failed"
	// OutcomeCancelled says that it was stopped and what it had done is undone.
	OutcomeCancelled Outcome = "cancelled"
	// OutcomeReady says that source and vault agree and a recovery point is listed.
	OutcomeReady Outcome = "ready"
	// OutcomeBroken says that replication cannot go on by itself.
	OutcomeBroken Outcome = "broken"
)

// move is one entry of the table: what leads from a state to another.
type move struct {
	op      Operation // either this
	outcome Outcome   // or this
	to      State
	only    Direction // "": in both directions
	flips   bool      // the direction turns round
}

// refusal says why something is not possible and what to do first.
type refusal struct {
	op     Operation // "": every operation without an entry of its own
	only   Direction // "": in both directions
	reason string
	advice string
}

// row is all that the table says of one state.
type row struct {
	state    State
	meaning  string
	moves    []move
	refusals []refusal
}

func on(op Operation, to State) move { return move{op: op, to: to} }
func after(o Outcome, to State) move { return move{outcome: o, to: to} }
func (m move) forward() move         { m.only = Forward; return m }
func (m move) reverse() move         { m.only = Reverse; return m }
func (m move) turning() move         { m.flips = true; return m }
func no(op Operation, reason, advice string) refusal {
	return refusal{op: op, reason: reason, advice: advice}
}
func (r refusal) forward() refusal { r.only = Forward; return r }
func (r refusal) reverse() refusal { r.only = Reverse; return r }

// available are the operations whose steps this version has. The others are
// in the table, and are refused whatever the state.
func available() []Operation {
	return []Operation{OpEnable, OpTestFailover, OpCleanUp, OpFailover, OpPlannedFailover, OpFailback, OpChangePoint, OpCommit,
		OpUndoFailover, OpReprotect, OpResync, OpCancel, OpDisable}
}

// Operations returns all operations in the order in which people are shown them.
func Operations() []Operation {
	return []Operation{OpEnable, OpTestFailover, OpCleanUp, OpFailover, OpPlannedFailover, OpFailback, OpChangePoint, OpCommit,
		OpUndoFailover, OpReprotect, OpCompleteMigration, OpResync, OpChangePolicy, OpSwitchGateway, OpCancel, OpDisable}
}

// Available reports whether this version has the steps of the operation.
func (op Operation) Available() bool { return slices.Contains(available(), op) }

// States returns all states in the order of an item's life.
func States() []State {
	var states []State
	for _, r := range table() {
		states = append(states, r.state)
	}
	return states
}

// Meaning returns what the state means, in one sentence; "" for an unknown one.
func (s State) Meaning() string { return rowOf(s).meaning }

// Valid reports whether the table has the state.
func (s State) Valid() bool { return rowOf(s).state == s && s != "" }

func rowOf(s State) row {
	for _, r := range table() {
		if r.state == s {
			return r
		}
	}
	return row{}
}

// failedOver says of a state that the machine works at the side which the
// direction leads to.
func failedOver(s State) bool {
	switch s {
	case StateUndoingFailover, StateCommitPending, StateChangingPoint, StateChangingPointFailed, StateCommitting, StateCommitFailed,
		StateCommitted, StateReprotecting, StateReprotectFailed, StateMigrating, StateMigrationFailed, StateMigrated:
		return true
	default:
		return false
	}
}

// Transition is one entry of the state table: in state From and, if Direction
// is not empty, in that direction, Operation or else Outcome leads to To.
// Flips says that the direction turns round.
type Transition struct {
	From      State
	Operation Operation
	Outcome   Outcome
	Direction Direction
	To        State
	Flips     bool
}

// Transitions returns the whole state table.
func Transitions() []Transition {
	var all []Transition
	for _, r := range table() {
		for _, m := range r.moves {
			all = append(all, Transition{From: r.state, Operation: m.op, Outcome: m.outcome, Direction: m.only, To: m.to, Flips: m.flips})
		}
	}
	return all
}
