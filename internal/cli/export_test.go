package cli

// What tests of this package look at from outside.
var (
	Size    = size
	Span    = span
	Percent = percent
	Plain   = plain
)
