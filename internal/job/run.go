package job

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

var (
	// errUnchanged says that there is nothing to record.
	errUnchanged = errors.New("nothing to record")
	// errDead says that the hook has stopped the engine.
	errDead = errors.New("job engine was stopped by its hook")
)

const maxDelay = 30 * time.Second

// Run runs jobs until ctx ends: first those that are unfinished in the store,
// each from its first unfinished task, then those that are submitted. Then it
// ends the context of what runs, with ErrStopped as the cause, and returns nil
// once all tasks have returned; their jobs go on with the next Run. It fails if
// it runs already or the store cannot be read.
func (e *Engine) Run(ctx context.Context) error {
	if err := e.begin(ctx); err != nil {
		return fmt.Errorf("run jobs: %w", err)
	}
	runCtx, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer context.AfterFunc(ctx, func() { stop(ErrStopped) })()
	defer stop(ErrStopped)
	var wg sync.WaitGroup
	slots := make(chan struct{}, e.opts.MaxRunning)
	for ctx.Err() == nil && e.death() == nil {
		for {
			l := e.next(slots)
			if l == nil {
				break
			}
			wg.Go(func() {
				err := e.work(runCtx, l)
				if e.leave(l, err) {
					<-slots
				}
				e.poke()
			})
		}
		select {
		case <-ctx.Done():
		case <-e.wake:
		}
	}
	stop(ErrStopped)
	wg.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.running = false
	return e.death()
}

// begin loads what is unfinished.
func (e *Engine) begin(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.running {
		return errors.New("the engine runs already")
	}
	unfinished, err := e.store.ListJobs(ctx, Filter{Unfinished: true})
	if err != nil {
		return err
	}
	for _, j := range unfinished {
		if e.jobs[j.ID] == nil {
			e.jobs[j.ID] = &live{mu: newLock(), job: j}
		}
	}
	e.running = true
	return nil
}

// death returns the hook's error, nil while the engine lives.
func (e *Engine) death() error {
	e.deadMu.Lock()
	defer e.deadMu.Unlock()
	return e.dead
}

// next takes a slot and the oldest job that can run; nil if there is none of
// either.
func (e *Engine) next(slots chan struct{}) *live {
	e.mu.Lock()
	defer e.mu.Unlock()
	var oldest *live
	var age time.Time
	for _, l := range e.jobs {
		if l.active {
			continue
		}
		j := l.snapshot()
		if j.State.Ended() || j.State == Suspended {
			continue
		}
		if l.waits = e.kinds[j.Kind].Waits; l.waits {
			oldest = l
			break // it has no slot to wait for
		}
		if oldest == nil || j.CreatedAt.Before(age) {
			oldest, age = l, j.CreatedAt
		}
	}
	switch {
	case oldest == nil:
		return nil
	case oldest.waits:
		oldest.active = true
		return oldest
	}
	select {
	case slots <- struct{}{}:
		oldest.active = true
		return oldest
	default:
		return nil
	}
}

// leave notes that nobody works on the job any more, and says whether it had a
// slot.
func (e *Engine) leave(l *live, err error) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	l.active = false
	j := l.snapshot()
	if err != nil && !errors.Is(err, errDead) && !errors.Is(err, ErrStopped) {
		// The record is not ours any more: leave it alone until the next start.
		e.opts.Logger.Error("job left alone until the next start", "job", j.ID, "kind", j.Kind, "err", err)
		l.active = true
	}
	if j.State.Ended() {
		delete(e.jobs, j.ID)
	}
	return !l.waits
}

// work does what is next for a job until it has ended, is suspended, or the
// engine stops. What the store does not take is tried again.
func (e *Engine) work(ctx context.Context, l *live) error {
	delay := e.opts.RetryDelay
	for {
		j := l.snapshot()
		if j.State.Ended() || j.State == Suspended {
			return nil
		}
		err := e.advance(ctx, l, j)
		switch {
		case err == nil:
			delay = e.opts.RetryDelay
			continue
		case errors.Is(err, errDead), errors.Is(err, ErrStopped), errors.Is(err, ErrConflict):
			return err
		}
		e.opts.Logger.Warn("job was not recorded; trying again", "job", j.ID, "kind", j.Kind, "in", delay, "err", err)
		if err := pause(ctx, delay); err != nil {
			return err
		}
		delay = min(2*delay, maxDelay)
	}
}

// advance takes one job one step on.
func (e *Engine) advance(ctx context.Context, l *live, j Job) error {
	if stopping(ctx) {
		return ErrStopped
	}
	e.mu.Lock()
	kind, known := e.kinds[j.Kind]
	e.mu.Unlock()
	switch {
	case j.Ending != nil:
		return e.finish(ctx, l, kind, *j.Ending)
	case j.CurrentTask() == nil:
		return e.end(ctx, l, Ending{State: Succeeded})
	case j.Cancel != nil:
		return e.end(ctx, l, Ending{State: Cancelled})
	case !known:
		return e.end(ctx, l, Ending{State: Failed, Failure: &Failure{Code: "internal",
			Message: fmt.Sprintf("job of kind %s: %v", j.Kind, ErrUnknownKind), Cause: "it was submitted to another version of Holdfast",
			Hint: "Run that version until the job has ended"}})
	}
	current := j.CurrentTask()
	tasks, err := kind.tasks(j.Input)
	if err != nil {
		return e.end(ctx, l, Ending{State: Failed, Failure: FailureOf(err, current.Name)})
	}
	for _, t := range tasks {
		if t.Name == current.Name {
			return e.runTask(ctx, l, t)
		}
	}
	return e.end(ctx, l, Ending{State: Failed, Failure: &Failure{Task: current.Name, Code: "internal",
		Message: fmt.Sprintf("task %s is not known to this version", current.Name), Cause: "the job was submitted to another version of Holdfast",
		Hint: "Run that version until the job has ended"}})
}

// runTask runs one task to its end, retries included, and records that.
func (e *Engine) runTask(ctx context.Context, l *live, t Task) error {
	taskCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	step := &Step{engine: e, live: l, task: t.Name, record: func(j *Job) *TaskRecord { return taskOf(j, t.Name) }}
	l.mu.Lock()
	l.cancel, l.meter = cancel, meter{}
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.cancel = nil
	}()
	for try := 1; ; try++ {
		err := e.record(ctx, l, func(j *Job) error {
			if j.Cancel != nil {
				return errUnchanged // asked for since: nothing more is begun
			}
			now := e.opts.Now()
			j.State = InProgress
			if j.StartedAt.IsZero() {
				j.StartedAt = now
			}
			begin(step.record(j), now)
			return nil
		})
		if errors.Is(err, errUnchanged) {
			return nil
		}
		if err != nil {
			return err
		}
		err = e.call(taskCtx, t, step)
		if again, delay := t.Retry.next(try, err); again && worthAnother(taskCtx, err) {
			step.Log(fmt.Sprintf("attempt %d: %v; next in %s", try, err, delay))
			if pause(taskCtx, delay) == nil {
				continue
			}
		}
		return e.taskEnded(ctx, l, t, err)
	}
}

// worthAnother reports whether a failed attempt is a failure of the task, and
// not its way of stopping.
func worthAnother(ctx context.Context, err error) bool {
	var skip *skipError
	var suspend *suspendError
	return ctx.Err() == nil && !errors.As(err, &skip) && !errors.As(err, &suspend) && !errors.Is(err, ErrNotRecorded) &&
		!errors.Is(err, errDead)
}

// taskEnded records how a task came out, and with what the job goes on.
func (e *Engine) taskEnded(ctx context.Context, l *live, t Task, err error) error {
	switch {
	case err == nil:
	case errors.Is(err, errDead):
		return err
	case stopping(ctx):
		return ErrStopped // whatever it says, it was disturbed: it runs again
	case errors.Is(err, ErrNotRecorded):
		return err
	}
	var skip *skipError
	var suspend *suspendError
	return e.record(ctx, l, func(j *Job) error {
		now := e.opts.Now()
		rec := taskOf(j, t.Name)
		rec.EndedAt = now
		switch {
		case err == nil:
			rec.State, rec.Failure = Succeeded, nil
		case errors.As(err, &skip):
			rec.State, rec.Failure = Skipped, nil
			rec.Log = append(rec.Log[:len(rec.Log):len(rec.Log)], LogLine{now, skip.Error()})
		case j.Cancel != nil:
			rec.State, rec.Failure = Cancelled, FailureOf(err, t.Name)
			j.Ending = &Ending{State: Cancelled}
		case errors.As(err, &suspend):
			rec.State, rec.EndedAt = Suspended, time.Time{}
			j.State, j.Waiting = Suspended, suspend.reason
		case t.Optional:
			rec.State, rec.Failure = Skipped, FailureOf(err, t.Name)
			j.Warnings = append(j.Warnings, fmt.Sprintf("%s: %v", titleOf(t), err))
		default:
			rec.State, rec.Failure = Failed, FailureOf(err, t.Name)
			j.Ending = &Ending{State: Failed, Failure: rec.Failure}
		}
		return nil
	})
}

// end records the outcome; what is left is the kind's Finish.
func (e *Engine) end(ctx context.Context, l *live, ending Ending) error {
	return e.record(ctx, l, func(j *Job) error {
		j.Ending = &ending
		return nil
	})
}

// finish runs the kind's Finish and records that the job has ended.
func (e *Engine) finish(ctx context.Context, l *live, kind Kind, ending Ending) error {
	var failure *Failure
	if kind.Finish != nil {
		err := e.runFinish(ctx, l, *kind.Finish)
		switch {
		case err == nil:
		case errors.Is(err, errDead), errors.Is(err, ErrNotRecorded), errors.Is(err, ErrConflict):
			return err
		case stopping(ctx):
			return ErrStopped
		}
		failure = FailureOf(err, finishName)
	}
	return e.record(ctx, l, func(j *Job) error {
		now := e.opts.Now()
		j.State, j.Failure, j.EndedAt = ending.State, ending.Failure, now
		if f := &j.Ending.Finish; kind.Finish != nil {
			f.State, f.EndedAt, f.Failure = Succeeded, now, failure
			if failure != nil {
				f.State = Failed
			}
		}
		switch {
		case failure == nil:
		case ending.State == Succeeded:
			j.State, j.Failure = Failed, failure
		default:
			j.Warnings = append(j.Warnings, finishName+": "+failure.Message)
		}
		for i := range j.Tasks { // what an ended job did not come to
			if !j.Tasks[i].State.Ended() {
				j.Tasks[i].State = Skipped
			}
		}
		return nil
	})
}

// finishName is the name of a kind's Finish in records.
const finishName = "finish"

// runFinish runs it, retries included, and returns how it came out, or why it
// was not recorded.
func (e *Engine) runFinish(ctx context.Context, l *live, t Task) error {
	t.Name = finishName
	step := &Step{engine: e, live: l, task: t.Name, record: func(j *Job) *TaskRecord { return &j.Ending.Finish }}
	l.mu.Lock()
	l.meter = meter{}
	l.mu.Unlock()
	for try := 1; ; try++ {
		err := e.record(ctx, l, func(j *Job) error {
			j.Ending.Finish.Name, j.Ending.Finish.Title = t.Name, t.Title
			begin(&j.Ending.Finish, e.opts.Now())
			return nil
		})
		if err != nil {
			return err
		}
		err = e.call(ctx, t, step)
		again, delay := t.Retry.next(try, err)
		if !again || !worthAnother(ctx, err) {
			return err
		}
		step.Log(fmt.Sprintf("attempt %d: %v; next in %s", try, err, delay))
		if pause(ctx, delay) != nil {
			return err
		}
	}
}

// call runs a task's code. A panic is an error of the task: one job's fault
// must not end the protection of all machines.
func (e *Engine) call(ctx context.Context, t Task, step *Step) (err error) {
	defer func() {
		if v := recover(); v != nil {
			p := &panicError{value: v, stack: string(debug.Stack())}
			step.Log(p.Error() + "\n" + p.stack)
			e.opts.Logger.Error("task panicked", "job", step.JobID(), "task", t.Name, "panic", v, "stack", p.stack)
			err = p
		}
	}()
	return t.Run(ctx, step)
}

// record applies f to a copy of the job and stores it, durably, before anybody
// sees it. f's error stops that. It is not interrupted by ctx: what was done
// is worth its record though the engine stops.
func (e *Engine) record(ctx context.Context, l *live, f func(*Job) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := l.job.clone()
	if err := f(&next); err != nil {
		return err
	}
	next.Version++
	if err := e.hook("before", next); err != nil {
		return err
	}
	if err := e.update(context.WithoutCancel(ctx), l, &next); err != nil {
		return err
	}
	l.job = next
	e.events.Publish(Event{Type: EventJob, Time: e.opts.Now(), Job: next.clone()})
	return e.hook("after", next)
}

// update stores a record. A conflict with a version in doubt means that an
// earlier try was taken although it was reported as failed; perhaps it had
// another content, so this one is stored over it. Called with l.mu held.
func (e *Engine) update(ctx context.Context, l *live, next *Job) error {
	err := e.store.UpdateJob(ctx, *next)
	if errors.Is(err, ErrConflict) && l.doubt >= next.Version {
		if stored, getErr := e.store.GetJob(ctx, next.ID); getErr == nil && stored.Version >= next.Version && stored.Version <= l.doubt {
			next.Version = stored.Version + 1
			err = e.store.UpdateJob(ctx, *next)
		} else if getErr != nil {
			err = getErr // says nothing about the conflict: to be tried again
		}
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrConflict), errors.Is(err, ErrNotFound):
		return fmt.Errorf("record job %s: %w: %w", next.ID, ErrConflict, err)
	default:
		l.doubt = max(l.doubt, next.Version)
		return fmt.Errorf("%w: job %s: %w", ErrNotRecorded, next.ID, err)
	}
}

// next reports whether a failed attempt is followed by another, and when.
func (r Retry) next(try int, err error) (bool, time.Duration) {
	if err == nil || try >= r.Attempts || r.If != nil && !r.If(err) {
		return false, 0
	}
	limit := r.MaxDelay
	if limit <= 0 {
		limit = maxDelay
	}
	delay := r.Delay
	for range try - 1 {
		delay = min(2*delay, limit)
	}
	return true, min(delay, limit)
}

func begin(t *TaskRecord, now time.Time) {
	t.State, t.EndedAt = InProgress, time.Time{}
	t.Attempts++
	if t.StartedAt.IsZero() {
		t.StartedAt = now
	}
}

func taskOf(j *Job, name string) *TaskRecord {
	for i := range j.Tasks {
		if j.Tasks[i].Name == name {
			return &j.Tasks[i]
		}
	}
	panic("job: record without task " + name) // it was found there before, and tasks are never removed
}

func titleOf(t Task) string {
	if t.Title != "" {
		return t.Title
	}
	return t.Name
}

// pause waits, and fails if ctx ends first.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
