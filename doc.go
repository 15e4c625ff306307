// Package holdfast is the domain of Holdfast, self-hosted site recovery: the
// nouns of docs/glossary.md as types, the replicated item's state machine as
// one table, retention and recovery point resolution as pure functions, error
// kinds, and health findings with cause and advice.
//
// It is pure: no I/O, no clock, no randomness but for new ids. Every other
// package may import it; it imports nothing of this module.
package holdfast
