// Package qemu is the provider for machines that are plain QEMU processes,
// without libvirt. Only main imports it, and tests.
//
// A site is a directory, named by the settings {"directory": "/path"}. Each
// machine is a file NAME.json in it:
//
//	{
//	  "name": "web",                      the file's name without .json
//	  "id": "9f4c…",                      UUID, stable
//	  "cpus": 2,
//	  "memory": 536870912,                bytes
//	  "machine": "q35",                   or "pc"
//	  "accel": "kvm:tcg",                 tried in this order; the default
//	  "disks": [{
//	    "id": "vda",                      [a-z0-9-]{1,32}; the device's id in QEMU
//	    "path": "/images/web.qcow2",
//	    "format": "qcow2",                or "raw"
//	    "size": 10737418240,              bytes; only informative
//	    "read_only": false
//	  }],
//	  "nics": [{"id": "net0", "mac": "52:54:00:…", "network": "user"}],
//	  "serial": "/logs/web.log",          appended to
//	  "qmp": "/run/web.qmp",              monitor socket, Holdfast's own
//	  "agent": "/run/web.qga",            guest agent's socket, Holdfast's own; "" is none
//	  "display": true,                    a screen, of which pictures can be taken
//	  "pidfile": "/run/web.pid",
//	  "extra": ["-device", "…"]           more arguments for QEMU
//	}
//
// Networks are "user" (QEMU's own NAT), "restricted" (the same without a way
// out) and "none" (unplugged). Whoever starts such a machine by other means
// than StartMachine must give QEMU the same monitor socket, pid file and device
// ids, and must not start it while NAME.guard lies beside its definition: that is
// a guarded machine, and the file has the reason.
//
// A recovered machine has a directory recovered/HANDLE with its state, overlays
// and hydrated disks, and a machine file like any other, which has a "handle"
// and, until it is hydrated, a "view" for each disk. Its QEMU is a session of
// its own and survives whoever started it.
//
// QEMU's monitor socket serves one client at a time, so nothing here keeps a
// connection longer than a command takes.
package qemu
