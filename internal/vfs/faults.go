package vfs

import (
	"errors"
	"path"
	"strings"
	"sync"
	"time"
)

// ErrCrashed is what every operation returns after a simulated crash.
var ErrCrashed = errors.New("the file system has crashed")

// Fault says which operations fail or wait.
type Fault struct {
	Kind OpKind // which kind; empty means any
	// Path is a pattern of path.Match: for the whole name if it has a slash,
	// else for its last part; empty means any. Of rename and link either name
	// will do. A bad pattern makes operations fail with path.ErrBadPattern.
	Path string
	// Nth is the first of the operations that match that has the fault, from 1,
	// counted since Inject; 0 means 1. Count is how many have it from there; 0
	// means 1, less means all.
	Nth, Count int
	// Err is what the operation fails with, instead of being done; nil for a
	// delay only. With Partial a write is half done first. What fails to close
	// is closed nevertheless.
	Err     error
	Partial bool
	// Delay passes before the operation is done or fails.
	Delay time.Duration
}

// Faults are what WithFaults does to a file system. The zero value does nothing.
// Safe for concurrent use, also while operations are under way.
type Faults struct {
	// mu guards what follows.
	mu              sync.Mutex
	faults          []*injected
	hook            func(Op) error
	number, changes int
	crashBefore     int
	crashed         bool
}

// injected is a fault and how often it matched.
type injected struct {
	Fault
	matched int
}

// Inject adds a fault. Where several match an operation, the delays add up and
// the first error counts.
func (f *Faults) Inject(x Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = append(f.faults, &injected{Fault: x})
}

// Clear removes all faults and the hook. It neither undoes a crash nor begins
// to count anew.
func (f *Faults) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults, f.hook = nil, nil
}

// SetHook has a function called before each operation. If it returns an error,
// the operation fails with it; if that is ErrCrashed, so do all that follow.
// The hook may be called by several goroutines at once, and may use the file
// system that WithFaults was given, for example to take a CrashClone.
func (f *Faults) SetHook(hook func(Op) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = hook
}

// CrashBefore makes the operation with that Op.Change, and all operations that
// follow, fail with ErrCrashed. 0 means none. To crash a scenario everywhere,
// run it once, ask Changes, and run it again with 1, 2, … Changes(); crashing
// before an operation that changes nothing would show nothing new.
func (f *Faults) CrashBefore(change int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.crashBefore = change
}

// Changes returns how many operations there were that change something, failed
// ones included.
func (f *Faults) Changes() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changes
}

// WithFaults returns fsys with the faults. After a crash files and locks are
// still closed in fsys, but Close says ErrCrashed, too.
func WithFaults(fsys FS, f *Faults) FS { return intercepted{fsys, f.around} }

func (f *Faults) around(op *Op, do func() error) error {
	hook, crashed := f.begin(op)
	if hook != nil && !crashed {
		if err := hook(*op); errors.Is(err, ErrCrashed) {
			crashed = true
			f.mu.Lock()
			f.crashed = true
			f.mu.Unlock()
		} else if err != nil {
			return failing(op, err, do)
		}
	}
	if crashed {
		return failing(op, ErrCrashed, do)
	}
	delay, partial, err := f.match(*op)
	if delay > 0 {
		<-time.After(delay)
	}
	if err == nil {
		return do()
	}
	if partial && op.Kind == OpWrite {
		op.Length /= 2
		return errors.Join(err, do())
	}
	return failing(op, err, do)
}

// failing has an operation fail. What closes does so all the same, as close(2) does.
func failing(op *Op, err error, do func() error) error {
	if op.Kind == OpClose || op.Kind == OpUnlock {
		return errors.Join(err, do())
	}
	return err
}

// begin gives an operation its numbers.
func (f *Faults) begin(op *Op) (hook func(Op) error, crashed bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.number++
	op.Number = f.number
	if op.Kind.Changes() {
		f.changes++
		op.Change = f.changes
	}
	if f.crashBefore > 0 && op.Change >= f.crashBefore {
		f.crashed = true
	}
	return f.hook, f.crashed
}

// match says what the faults do to an operation.
func (f *Faults) match(op Op) (delay time.Duration, partial bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range f.faults {
		hit, bad := x.matches(op)
		if bad != nil {
			return 0, false, bad
		}
		if !hit {
			continue
		}
		x.matched++
		first, count := max(x.Nth, 1), x.Count
		if count == 0 {
			count = 1
		}
		if x.matched < first || count > 0 && x.matched >= first+count {
			continue
		}
		delay += x.Delay
		if err == nil {
			partial, err = x.Partial, x.Err
		}
	}
	return delay, partial, err
}

func (x *injected) matches(op Op) (bool, error) {
	if x.Kind != "" && x.Kind != op.Kind {
		return false, nil
	}
	if x.Path == "" {
		return true, nil
	}
	for _, name := range []string{op.Name, op.NewName} {
		if !strings.Contains(x.Path, "/") {
			name = path.Base(name)
		}
		if hit, err := path.Match(x.Path, name); hit || err != nil {
			return hit, err
		}
	}
	return false, nil
}
