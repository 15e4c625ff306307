// Package capture controls how a running machine's disks get into a gateway.
//
// Mirror is the continuous way for QEMU: one block job per disk copies the disk
// into the gateway's NBD export and passes every further write on before the
// guest's write completes. QEMU keeps the job; a Mirror only looks after it,
// and may come and go without the guest noticing. It polls and needs no events,
// so it works over any monitor that can run commands.
//
// The commands used, those never used, and why, are in docs/capture.md.
package capture
