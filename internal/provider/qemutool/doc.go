// Package qemutool is what the providers of QEMU's machines have in common: disk
// images of machines that are off, opened through qemu-nbd with all that lies
// under them and with QEMU's own locks, pictures of consoles, and drives that tell
// cloud-init how a guest's network is configured.
package qemutool
