package holdfast

import "slices"

// AllowedOperation says whether an operation can be asked for now; if not,
// why, and what to do first.
type AllowedOperation struct {
	Operation Operation
	Allowed   bool
	Next      State // the state that it leads to at once; empty if refused
	Reason    string
	Advice    string
}

// Decide says whether the state table and its guards permit an operation on
// the item as it is. It does not ask whether this version has the operation;
// Allowed and Check do.
//
// The guards look at the direction, the test failover, the running job, and
// in Status at the newest recovery point and the findings, which the caller
// has filled in.
func (it Item) Decide(op Operation) AllowedOperation {
	d := AllowedOperation{Operation: op}
	refuse := func(reason, advice string) AllowedOperation {
		d.Reason, d.Advice, d.Next = reason, advice, ""
		return d
	}
	if !slices.Contains(Operations(), op) {
		return refuse("there is no such operation", "See holdfast item show for the operations that there are")
	}
	r := rowOf(it.State)
	if r.state == "" {
		return refuse("the item's state, "+string(it.State)+", is not known to this version", "Use the version of Holdfast that wrote it, or a newer one")
	}
	if reason, advice, done := it.ofTests(op); done {
		d.Allowed, d.Next, d.Reason, d.Advice = reason == "", it.State, reason, advice
		if reason != "" {
			d.Next = ""
		}
		return d
	}
	if it.CurrentJob != "" && op != OpCancel && op != OpTestFailover {
		return refuse("a job is working on the item", "Wait for job "+it.CurrentJob+" to end, or cancel it")
	}
	for _, m := range r.moves {
		if m.op != op || m.only != "" && m.only != it.dir() {
			continue
		}
		if reason, advice := it.guard(op); reason != "" {
			return refuse(reason, advice)
		}
		d.Allowed, d.Next = true, m.to
		return d
	}
	why := r.refusalOf(op, it.dir())
	return refuse(why.reason, why.advice)
}

// dir returns the direction; an item without one is at its beginning.
func (it Item) dir() Direction {
	if it.Direction == "" {
		return Forward
	}
	return it.Direction
}

// ofTests answers what depends on the item's test failovers, which nothing else
// does: done says whether it did.
func (it Item) ofTests(op Operation) (reason, advice string, done bool) {
	switch {
	case op == OpCleanUp && len(it.Tests) == 0:
		return "there is no test failover", "Nothing is to be done", true
	case op == OpCleanUp && it.TestState() == TestStarting:
		return "a test failover is being started", "Wait until its job has ended, or cancel it", true
	case op == OpCleanUp && it.TestState() == TestCleaningUp:
		return "the test failover is being cleaned up already", "Nothing is to be done", true
	case op == OpCleanUp:
		return "", "", true
	case op == OpDisable && len(it.Tests) > 0:
		return "a test failover waits for clean-up", "Clean the test failover up first", true
	}
	return "", "", false
}

// guard looks at what the table does not know.
func (it Item) guard(op Operation) (reason, advice string) {
	switch op {
	case OpCancel:
		if it.CurrentJob == "" {
			return "no job is running", "Nothing is to be done"
		}
		if it.Status.TooLate {
			return "its job can no longer be cancelled", "Let job " + it.CurrentJob + " end; what it did can be undone afterwards"
		}
	case OpDisable:
		if it.Status.NeedsView {
			return "its recovered machine still reads from the vault", "Wait until its hydrate job has ended"
		}
	case OpFailover, OpPlannedFailover, OpFailback, OpTestFailover, OpChangePoint:
		if it.Status.Newest == nil {
			return "the item has no recovery point", "Wait until the first recovery point is listed; if none appears, look at the item's health"
		}
	}
	if op == OpFailback && it.Health() != HealthHealthy {
		return "the item is not healthy, and a failback of such an item may lose data",
			"Do what the item's findings advise; if the recovery site is lost, use failover instead"
	}
	return "", ""
}

// refusalOf returns the refusal that fits best: for the operation in this
// direction, for the operation, for everything.
func (r row) refusalOf(op Operation, dir Direction) refusal {
	for _, want := range []Operation{op, ""} {
		for _, f := range r.refusals {
			if f.op == want && (f.only == "" || f.only == dir) {
				return f
			}
		}
	}
	return refusal{reason: "the item is in state " + string(r.state), advice: waitForJob}
}

// Allowed says of every operation whether it can be asked for now, in the
// order of Operations.
func (it Item) Allowed() []AllowedOperation {
	all := make([]AllowedOperation, 0, len(Operations()))
	for _, op := range Operations() {
		all = append(all, it.allowed(op))
	}
	return all
}

func (it Item) allowed(op Operation) AllowedOperation {
	if !op.Available() && slices.Contains(Operations(), op) {
		return AllowedOperation{Operation: op, Reason: "not available in this version", Advice: "Use a later version of Holdfast for this"}
	}
	return it.Decide(op)
}

// Check returns nil if the operation can be asked for now, and otherwise an
// *Error of kind not_allowed with the reason and what to do first.
func (it Item) Check(op Operation) error {
	d := it.allowed(op)
	if d.Allowed {
		return nil
	}
	return &Error{Kind: KindNotAllowed, Op: string(op), Thing: it.Name, Cause: d.Reason, Hint: d.Advice}
}

// Apply returns the item as it is once the operation has begun, or Check's
// error. Only State is changed.
func (it Item) Apply(op Operation) (Item, error) {
	if err := it.Check(op); err != nil {
		return it, err
	}
	it.State = it.Decide(op).Next
	return it, nil
}

// After returns the item as it is once what goes on in its state has come to
// an outcome. Where a reprotect succeeded the direction turns round and
// RecoveryPoint is cleared. It fails with an *Error of kind not_allowed, and
// returns the item as it was, if the table does not expect the outcome in
// this state; a job that repeats its last step finds itself so, and asks
// whether the item is where it wants it.
func (it Item) After(o Outcome) (Item, error) {
	for _, m := range rowOf(it.State).moves {
		if m.outcome != o || m.op != "" || m.only != "" && m.only != it.dir() {
			continue
		}
		it.State = m.to
		if m.flips {
			it.Direction, it.RecoveryPoint = it.dir().Opposite(), nil
		}
		return it, nil
	}
	return it, &Error{Kind: KindNotAllowed, Op: "record outcome " + string(o), Thing: it.Name,
		Cause: "nothing is going on in state " + string(it.State) + " that could end so",
		Hint:  "This is a fault of Holdfast: please report it with the job's log"}
}
