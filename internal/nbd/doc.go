// Package nbd speaks the Network Block Device protocol, fixed newstyle, as
// server and as client. It knows nothing of what it serves: a Backend is any
// disk that can be read and written.
//
// What sets this server apart is its promise about order. For one connection
// the writes, zeroes and flushes reach the Backend one at a time, in the order
// in which they arrived, so that a Backend may keep a log of what a client
// did; reads run beside them. A Backend that cannot take a request may have
// the connection cut instead of answering with an error (ErrDrop), which is
// what clients like QEMU's mirror need in order to try again later.
//
// docs/nbd.md lists what is supported. The package imports only block of this
// module, and may be lifted out.
package nbd
