// Package archtest is the part of CONTRIBUTING.md and ARCHITECTURE.md that a
// machine can check: who imports whom, names, comments, sizes, calls that only
// a command may make, and documents that name what exists. It has tests only.
// Each rule is a function from the source tree to violations and has a test on
// a small tree in which it must find exactly what is planted there.
//
// A rule is not loosened to get a change through. An exception is a line in
// exceptions_test.go with its reason, so that it is seen in review; one that is
// not needed any more fails as well.
package archtest
