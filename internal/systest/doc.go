// Package systest holds the tests of the whole: two sites on one machine, the
// real program, real guests under QEMU. They run when HOLDFAST_SYSTEST is 1, as
// `make test` sets it; without it they are skipped, since they take minutes.
package systest
