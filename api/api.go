// Package api is the public contract of the Holdfast server: the request and
// response types of its REST interface and a Go client for it. The command
// line, the portal and foreign programs speak to the server through it and
// nothing else.
//
// It imports nothing else of this module. Names in JSON are snake_case, sizes
// are in bytes, rates in bytes per second, durations in seconds, times in RFC
// 3339. A field that is missing is not known or does not apply; zero is zero.
package api

// Version is the number of the interface below /v1. It is raised when a change
// could break a client: 1 is the first.
const Version = 1
