// Package job runs durable jobs of named tasks. A job is recorded before
// anything of it is done, each task is recorded before it begins, and after a
// crash at any point a new engine on the same store takes every job up at its
// first unfinished task.
//
// So a task may run more than once: when the process died, or the store could
// not record its end. Each must be safe to repeat. What it needs to find its
// own traces again (a name, a handle) it decides first, saves with
// Step.SaveState, and then uses.
//
// The package knows nothing of what the jobs do and imports nothing of this
// module.
package job
