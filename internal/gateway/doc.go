// Package gateway takes the writes of protected machines over NBD and turns
// them into segments of a vault.
//
// It runs as two processes on the host of the source. The parent, Supervisor,
// holds the orders that the server gave, controls capture over the machines'
// monitors, and watches the child. The child, Ingest, serves one writable NBD
// export for each protected disk, gives every write its position, keeps it in a
// journal before it acknowledges, seals segments on time, size or mark, and
// commits them to the vault in order, through a spool when the vault is slow.
//
// The rule above all others: a guest must not feel its replication. The child
// never answers a write with an error and never makes it wait for the vault: it
// acknowledges, or it drops the connection, and then the mirror in the guest's
// QEMU pauses and remembers what was missed. A child that does not answer
// within Bound is killed by the parent, because QEMU itself has no time-out.
//
// What survives what: the journal is written, not synced, before a write is
// acknowledged, so it survives the death of either process; the loss of the
// host loses the guest as well, and is answered by a rescan.
package gateway
