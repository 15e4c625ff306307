// Package plan is the recovery plan: what people write, as YAML, what is wrong
// with it, in what it differs from another, and which steps a run of it takes.
//
// It is pure: it knows no store, no job and no machine. Its text is kept as it
// was given, comments included; what it means is read from the text each time.
package plan
