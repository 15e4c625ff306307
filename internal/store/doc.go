// Package store is the control database: sites, items, tokens, settings and
// jobs, in one SQLite file. What a method has written is durable when it
// returns nil: it survives a kill of the process and a power cut.
//
// It draws no ids and asks for no time: both come from the caller. Only the
// server opens it; everybody else goes through the server's interface.
//
// # Reading the source
//
// Open locks the file against other servers, checks what it finds and migrates
// it. Every write goes through Store.write, on the one connection that writes;
// reads go through a pool of their own and never wait for a write. Errors
// become *holdfast.Error in explain.
package store
