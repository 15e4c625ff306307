// Package qemutool is what the providers of QEMU's machines have in common: disk
// images of machines that are off, opened through qemu-nbd with all that lies
// under them and with QEMU's own locks, and pictures of consoles.
package qemutool
