package holdfast

import "slices"

// table is the item's state machine, all of it.
func table() []row {
	return slices.Concat(replicationRows(), failoverRows(), commitRows())
}

const (
	waitForJob    = "Wait until its job has ended; watch it with holdfast job watch"
	again         = "Mend what its job names as the cause and "
	waitProtected = "Wait until the item is protected; holdfast item show tells how far the copy is"
)

// replicationRows are the states in which an item replicates or is about to.
func replicationRows() []row {
	return []row{
		{StateUnprotected, "There is no item, or none any more.",
			[]move{on(OpEnable, StateEnabling)},
			[]refusal{no("", "the machine is not protected", "Protect it first, with holdfast protect")}},

		{StateEnabling, "The source is being prepared: stream, gateway, and the connection between them.",
			[]move{
				on(OpCancel, StateEnabling), on(OpDisable, StateDisabling),
				after(OutcomeSucceeded, StateInitialReplication), after(OutcomeFailed, StateEnablingFailed), after(OutcomeCancelled, StateUnprotected)},
			[]refusal{
				no(OpEnable, "the machine is being protected already", waitForJob),
				no("", "protection is still being enabled", waitForJob+", or cancel it")}},

		{StateEnablingFailed, "Preparing the source failed; nothing is replicated.",
			[]move{on(OpEnable, StateEnabling), on(OpDisable, StateDisabling)},
			[]refusal{
				no(OpCancel, "no job is running", "Enable protection again, or disable it"),
				no("", "enabling protection failed, so nothing is replicated", "Mend what its job names as the cause and enable protection again")}},

		{StateInitialReplication, "The disks are being copied for the first time in this direction; there is no recovery point yet.",
			[]move{
				on(OpResync, StateInitialReplication), on(OpChangePolicy, StateInitialReplication), on(OpSwitchGateway, StateInitialReplication),
				on(OpCancel, StateInitialReplication), on(OpDisable, StateDisabling),
				after(OutcomeReady, StateProtected), after(OutcomeBroken, StateReplicationBroken)},
			[]refusal{
				no(OpEnable, "the machine is protected already", "Disable its protection first if it shall begin anew"),
				no(OpCommit, "there was no failover that could be committed", waitProtected),
				no(OpReprotect, "the item replicates already", waitProtected),
				no("", "the initial replication has not finished", waitProtected)}},

		{StateProtected, "Source and vault agree but for what is on its way; the item can be recovered.",
			[]move{
				on(OpTestFailover, StateProtected),
				on(OpFailover, StateFailingOver), on(OpPlannedFailover, StateFailingOver), on(OpFailback, StateFailingOver).reverse(),
				on(OpResync, StateProtected), on(OpChangePolicy, StateProtected), on(OpSwitchGateway, StateProtected),
				on(OpCancel, StateProtected), on(OpDisable, StateDisabling),
				after(OutcomeBroken, StateReplicationBroken)},
			append(notFailedOver(),
				no(OpFailback, "the machine works at its primary site already", "Use failover or planned failover to bring it to the recovery site").forward())},

		{StateReplicationBroken, "Replication cannot go on by itself. What the vault has can still be recovered.",
			[]move{
				on(OpResync, StateReplicationBroken), on(OpTestFailover, StateReplicationBroken), on(OpFailover, StateFailingOver), on(OpChangePolicy, StateReplicationBroken),
				on(OpSwitchGateway, StateReplicationBroken), on(OpCancel, StateReplicationBroken), on(OpDisable, StateDisabling),
				after(OutcomeReady, StateProtected)},
			append(notFailedOver(),
				no(OpPlannedFailover, "replication is broken, so the last changes cannot be brought over", "Resynchronise first, or use failover with what the vault has"),
				no(OpFailback, "replication is broken, so the last changes cannot be brought home", "Resynchronise first, or use failover with what the vault has"))},

		{StateDisabling, "Protection is being taken away.",
			[]move{after(OutcomeSucceeded, StateUnprotected), after(OutcomeFailed, StateDisablingFailed)},
			[]refusal{
				no(OpCancel, "taking protection away cannot be stopped half-way", waitForJob),
				no("", "protection is being disabled", waitForJob+", then protect the machine anew")}},

		{StateDisablingFailed, "Taking protection away failed; parts of it may be left.",
			[]move{on(OpDisable, StateDisabling)},
			[]refusal{
				no(OpCancel, "no job is running", "Disable protection again"),
				no("", "disabling protection was begun and has not finished", "Mend what its job names as the cause and disable protection again")}},
	}
}

// notFailedOver are the refusals of what only makes sense after a failover.
func notFailedOver() []refusal {
	return []refusal{
		no(OpEnable, "the machine is protected already", "Disable its protection first if it shall begin anew"),
		no(OpCommit, "there is no failover that could be committed", "Fail over first"),
		no(OpChangePoint, "the item is not failed over", "Choose the recovery point when you fail over"),
		no(OpUndoFailover, "there is no failover that could be undone", "Nothing is to be done"),
		no(OpReprotect, "the item replicates already", "Fail over and commit first if it shall replicate the other way round"),
		no(OpCompleteMigration, "the item is not failed over to its recovery site", "Fail over first"),
	}
}

// failoverRows are the states from the beginning of a failover until its
// commit.
func failoverRows() []row {
	const recovered = "the machine is failed over and waits for commit"
	const fencedOff = "the failover that failed has fenced the source off, so nothing more can be brought over from it"
	const commitFirst = "Commit the failover first, or undo it"
	return []row{
		{StateFailingOver, "The machine is being brought up at the other side.",
			[]move{
				on(OpCancel, StateFailingOver),
				after(OutcomeSucceeded, StateCommitPending), after(OutcomeFailed, StateFailoverFailed),
				after(OutcomeCancelled, StateProtected), after(OutcomeBroken, StateReplicationBroken)},
			[]refusal{
				no(OpFailover, "a failover is running already", waitForJob),
				no("", "a failover is running", waitForJob+", or cancel it")}},

		{StateFailoverFailed, "Bringing the machine up failed; nothing in the vault is lost.",
			[]move{
				on(OpFailover, StateFailingOver), on(OpUndoFailover, StateUndoingFailover), on(OpDisable, StateDisabling)},
			[]refusal{
				no(OpPlannedFailover, fencedOff, "Fail over again, unplanned, or undo the failover"),
				no(OpFailback, fencedOff, "Fail back again with --unplanned, or undo the failover"),
				no(OpCancel, "no job is running", "Fail over again, or undo the failover"),
				no("", "the last failover failed", again+"fail over again, or undo the failover")}},

		{StateUndoingFailover, "The recovered machine is being removed, and replication begins again as before the failover, with a resync.",
			[]move{after(OutcomeSucceeded, StateProtected), after(OutcomeFailed, StateFailoverFailed)},
			[]refusal{
				no(OpCancel, "undoing a failover cannot be stopped half-way", waitForJob),
				no("", "a failover is being undone", waitForJob)}},

		{StateCommitPending, "The machine runs at the other side, and its recovery point can still be changed.",
			[]move{
				on(OpChangePoint, StateChangingPoint), on(OpCommit, StateCommitting), on(OpUndoFailover, StateUndoingFailover),
				on(OpCompleteMigration, StateMigrating).forward(), on(OpDisable, StateDisabling)},
			[]refusal{
				no(OpCompleteMigration, "the machine is back at its primary site", "Commit, then reprotect or disable protection").reverse(),
				no(OpReprotect, "the failover is not committed", "Look whether the recovered machine is as you want it, commit the failover, then reprotect"),
				no(OpFailback, "the failover is not committed", "Commit the failover, reprotect, and fail back when the item is protected; or undo the failover"),
				no(OpFailover, "the machine is failed over already", commitFirst+"; to go to another recovery point, change the point"),
				no(OpPlannedFailover, "the machine is failed over already", commitFirst),
				no(OpTestFailover, "the machine is failed over", "Commit, reprotect, fail back and reprotect, then test"),
				no(OpCancel, "no job is running", "Undo the failover if you want to go back to before it"),
				no(OpResync, "replication stopped at the failover", "Commit, then reprotect; or undo the failover"),
				no("", recovered, commitFirst)}},

		{StateChangingPoint, "The recovered machine is being rebuilt from another recovery point.",
			[]move{after(OutcomeSucceeded, StateCommitPending), after(OutcomeFailed, StateChangingPointFailed), after(OutcomeCancelled, StateCommitPending)},
			[]refusal{
				no(OpCancel, "changing the recovery point cannot be stopped half-way", waitForJob+", then change the point again"),
				no("", "the recovery point is being changed", waitForJob)}},

		{StateChangingPointFailed, "Rebuilding the recovered machine failed; it may not run.",
			[]move{on(OpChangePoint, StateChangingPoint), on(OpUndoFailover, StateUndoingFailover), on(OpDisable, StateDisabling)},
			[]refusal{
				no(OpCommit, "the recovered machine is not complete", again+"change the recovery point again, then commit"),
				no(OpCancel, "no job is running", "Change the recovery point again"),
				no("", "changing the recovery point failed", again+"change the recovery point again")}},
	}
}

// commitRows are the states from a commit until the item replicates again.
func commitRows() []row {
	return []row{
		{StateCommitting, "The failover is being made final.",
			[]move{after(OutcomeSucceeded, StateCommitted), after(OutcomeFailed, StateCommitFailed)},
			[]refusal{
				no(OpCommit, "the failover is being committed already", waitForJob),
				no(OpCancel, "a commit cannot be stopped half-way", waitForJob),
				no("", "the failover is being committed", waitForJob)}},

		{StateCommitFailed, "Making the failover final failed half-way.",
			[]move{on(OpCommit, StateCommitting), on(OpDisable, StateDisabling)},
			[]refusal{
				no(OpChangePoint, "a commit has begun, and recovery points may be gone", again+"commit again"),
				no(OpCancel, "no job is running", "Commit again"),
				no("", "the last commit failed", again+"commit again")}},

		{StateCommitted, "The machine works at the other side for good, and does not replicate.",
			[]move{on(OpReprotect, StateReprotecting), on(OpCompleteMigration, StateMigrating).forward(), on(OpDisable, StateDisabling)},
			committedRefusals()},

		{StateReprotecting, "Replication the other way round is being prepared.",
			[]move{
				on(OpCancel, StateReprotecting),
				after(OutcomeSucceeded, StateInitialReplication).turning(), after(OutcomeFailed, StateReprotectFailed), after(OutcomeCancelled, StateCommitted)},
			[]refusal{
				no(OpReprotect, "the item is being reprotected already", waitForJob),
				no("", "the item is being reprotected", waitForJob+", or cancel it")}},

		{StateReprotectFailed, "Preparing replication the other way round failed; the machine works and does not replicate.",
			[]move{on(OpReprotect, StateReprotecting), on(OpDisable, StateDisabling)},
			[]refusal{
				no(OpCancel, "no job is running", "Reprotect again"),
				no("", "the last reprotect failed", again+"reprotect again")}},

		{StateMigrating, "The migration is being completed: commit, then end of protection.",
			[]move{after(OutcomeSucceeded, StateMigrated), after(OutcomeFailed, StateMigrationFailed)},
			[]refusal{
				no(OpCancel, "completing a migration cannot be stopped half-way", waitForJob),
				no("", "the migration is being completed", waitForJob)}},

		{StateMigrationFailed, "Completing the migration failed half-way.",
			[]move{on(OpCompleteMigration, StateMigrating), on(OpDisable, StateDisabling)},
			[]refusal{
				no(OpCancel, "no job is running", "Complete the migration again"),
				no("", "completing the migration failed", again+"complete the migration again")}},

		{StateMigrated, "The machine stays where it is; the item is only a record of that.",
			nil,
			[]refusal{no("", "the migration is complete, and there is no way back from that", "Protect the machine anew, at the site where it is now")}},
	}
}

// committedRefusals are the refusals after a commit, which say what the next
// step of the cycle is.
func committedRefusals() []refusal {
	return []refusal{
		no(OpCommit, "the failover is committed already", "Reprotect, so that the machine is protected again"),
		no(OpChangePoint, "the failover is committed, which ended the choice of recovery point", "Reprotect, and choose a point at the next failover"),
		no(OpUndoFailover, "the failover is committed, which made it final", "Reprotect, then fail back"),
		no(OpFailback, "the item does not replicate back yet", "Reprotect, and fail back when the item is protected").forward(),
		no(OpFailback, "the machine is back at its primary site", "Reprotect, so that the machine is protected again").reverse(),
		no(OpCompleteMigration, "the machine is back at its primary site", "Disable protection if it is no longer wanted").reverse(),
		no(OpCancel, "no job is running", "Nothing is to be done"),
		no("", "the machine works at the other site and does not replicate", "Reprotect, and wait until the item is protected"),
	}
}
