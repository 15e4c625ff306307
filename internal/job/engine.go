package job

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Options are the choices of an engine. The zero value is usable.
type Options struct {
	Logger *slog.Logger
	// Now is the clock for what is recorded; nil means time.Now.
	Now func() time.Time
	// NewID makes ids of jobs; nil means random text.
	NewID func() string
	// MaxRunning bounds the jobs that run at the same time; 0 means 64.
	MaxRunning int
	// RetryDelay is waited before a record is tried again that the store did
	// not take; it doubles up to 30 s. 0 means 500 ms.
	RetryDelay time.Duration
	// Hook is for tests. It is called with "before" and "after" around every
	// record; if it returns an error, the engine writes and starts nothing
	// more, as if the process had died there.
	Hook func(when string, j Job) error
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.NewID == nil {
		o.NewID = rand.Text
	}
	if o.MaxRunning <= 0 {
		o.MaxRunning = 64
	}
	if o.RetryDelay <= 0 {
		o.RetryDelay = 500 * time.Millisecond
	}
	if o.Hook == nil {
		o.Hook = func(string, Job) error { return nil }
	}
	return o
}

// Engine runs jobs. Jobs can be submitted, cancelled, listed and watched
// whether or not it runs. Only one engine may work on a store at a time. Every
// method is safe for concurrent use.
type Engine struct {
	store  Store
	opts   Options
	events *Broadcaster[Event]
	wake   chan struct{} // has room for one: something may be to be started

	// mu guards what is below. It is taken before a job's own.
	mu      sync.Mutex
	kinds   map[string]Kind
	jobs    map[string]*live // the unfinished jobs that it has seen
	running bool

	// deadMu guards dead, the hook's error. It is the innermost of all.
	deadMu sync.Mutex
	dead   error
}

// live is an unfinished job in memory.
type live struct {
	active bool // a goroutine works on it; guarded by the engine's mu
	waits  bool // it takes no slot; guarded by the engine's mu

	// mu guards what is below; it is held while the job is recorded.
	mu     lock
	job    Job
	doubt  int64                   // the highest version that the store refused, and may have taken all the same
	cancel context.CancelCauseFunc // of the task that runs, or nil
	meter  meter
	told   time.Time // when the last progress event was published
}

// lock is a mutex that may be held for as long as a disk takes. Unlike at a
// sync.Mutex, whoever waits at it counts as waiting in a bubble of synctest, so
// that time passes there, for which the database may be waiting.
type lock chan struct{}

func newLock() lock    { return make(lock, 1) }
func (l lock) Lock()   { l <- struct{}{} }
func (l lock) Unlock() { <-l }

func (l *live) snapshot() Job {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.job.clone()
}

// change changes what goes into the next record.
func (l *live) change(f func(*Job)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := l.job.clone()
	f(&next)
	l.job = next
}

// New returns an engine on a store. It starts nothing.
func New(store Store, opts Options) *Engine {
	return &Engine{
		store: store, opts: opts.withDefaults(), wake: make(chan struct{}, 1),
		events: NewBroadcaster(func(e *Event) *int { return &e.Lost }),
		kinds:  map[string]Kind{}, jobs: map[string]*live{},
	}
}

// Register makes kinds of jobs known. All kinds of which there may be
// unfinished jobs must be registered before Run.
func (e *Engine) Register(kinds ...Kind) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, k := range kinds {
		if _, taken := e.kinds[k.Name]; taken || k.Name == "" || (len(k.Tasks) == 0) == (k.Expand == nil) {
			return fmt.Errorf("register kind of job %q: needs a name of its own and tasks", k.Name)
		}
		if err := checkTasks(k.Tasks); err != nil {
			return fmt.Errorf("register kind of job %s: %w", k.Name, err)
		}
		if k.Finish != nil && k.Finish.Run == nil {
			return fmt.Errorf("register kind of job %s: Finish needs a Run", k.Name)
		}
		e.kinds[k.Name] = k
	}
	return nil
}

func checkTasks(tasks []Task) error {
	seen := map[string]bool{}
	for _, t := range tasks {
		if t.Name == "" || seen[t.Name] || t.Run == nil {
			return fmt.Errorf("task %q needs a name of its own and a Run", t.Name)
		}
		seen[t.Name] = true
	}
	return nil
}

// tasks returns the tasks of a job of the kind with that input.
func (k Kind) tasks(input json.RawMessage) ([]Task, error) {
	if k.Expand == nil {
		return k.Tasks, nil
	}
	tasks, err := k.Expand(input)
	if err == nil {
		err = checkTasks(tasks)
	}
	return tasks, err
}

// parentKey is the context's key of a parent.
type parentKey struct{}

// WithParent returns a context with which Submit notes in the job for what it is
// submitted: any text, by which Filter.Parent finds it again, also after a crash
// between Submit and whatever its caller would have recorded.
func WithParent(ctx context.Context, parent string) context.Context {
	return context.WithValue(ctx, parentKey{}, parent)
}

// Submit records a new job; it is durable when Submit returns, and begins as
// soon as the engine runs. Subject is what it works on: while it has not
// ended, another job for the same subject is refused with a *BusyError, which
// is ErrBusy. Empty subjects are never busy. Input is kept as JSON.
func (e *Engine) Submit(ctx context.Context, kind, subject string, input any) (Job, error) {
	raw, err := json.Marshal(input)
	if err != nil {
		return Job{}, fmt.Errorf("submit job %s: encode input: %w", kind, err)
	}
	e.mu.Lock()
	k, known := e.kinds[kind]
	e.mu.Unlock()
	if !known {
		return Job{}, fmt.Errorf("submit job %s: %w", kind, ErrUnknownKind)
	}
	tasks, err := k.tasks(raw)
	if err != nil {
		return Job{}, fmt.Errorf("submit job %s: %w", kind, err)
	}
	j := Job{ID: e.opts.NewID(), Kind: kind, Title: k.Title, Subject: subject, State: NotStarted, Input: raw,
		CreatedAt: e.opts.Now(), Version: 1}
	j.Parent, _ = ctx.Value(parentKey{}).(string)
	for _, t := range tasks {
		j.Tasks = append(j.Tasks, TaskRecord{Name: t.Name, Title: t.Title, State: NotStarted, NoReturn: t.NoReturn})
	}
	l := &live{mu: newLock(), job: j}
	l.mu.Lock() // nobody sees it until it is recorded
	e.mu.Lock()
	e.jobs[j.ID] = l // before it is recorded, so that Run does not load it a second time
	e.mu.Unlock()
	if err := e.create(ctx, j); err != nil {
		l.job.State = Failed // whoever has found it meanwhile does not start it
		l.mu.Unlock()
		e.mu.Lock()
		delete(e.jobs, j.ID)
		e.mu.Unlock()
		return Job{}, fmt.Errorf("submit job %s: %w", kind, err)
	}
	e.events.Publish(Event{Type: EventJob, Time: j.CreatedAt, Job: j.clone()})
	l.mu.Unlock()
	e.poke()
	return j.clone(), nil
}

func (e *Engine) create(ctx context.Context, j Job) error {
	if err := e.hook("before", j); err != nil {
		return err
	}
	err := e.store.CreateJob(ctx, j)
	if errors.Is(err, ErrBusy) {
		busy := &BusyError{Subject: j.Subject}
		if others, listErr := e.store.ListJobs(ctx, Filter{Subject: j.Subject, Unfinished: true, Limit: 1}); listErr == nil && len(others) == 1 {
			busy.JobID, busy.Kind = others[0].ID, others[0].Kind
		}
		return busy
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotRecorded, err)
	}
	return e.hook("after", j)
}

// BusyError says which job keeps a subject busy. It is ErrBusy.
type BusyError struct {
	Subject string
	JobID   string // empty if it ended meanwhile
	Kind    string
}

// Error names the subject and the job.
func (e *BusyError) Error() string {
	if e.JobID == "" {
		return e.Subject + ": " + ErrBusy.Error()
	}
	return fmt.Sprintf("%s: %v: %s %s", e.Subject, ErrBusy, e.Kind, e.JobID)
}

// Unwrap returns ErrBusy.
func (e *BusyError) Unwrap() error { return ErrBusy }

// Describe says what to do about it.
func (e *BusyError) Describe() (code, cause, hint string) {
	return "conflict", "another job has not ended", "Wait for job " + e.JobID + " to end, or cancel it"
}

var _ Describer = (*BusyError)(nil)

// Get returns a job, with the progress of the present moment.
func (e *Engine) Get(ctx context.Context, id string) (Job, error) {
	e.mu.Lock()
	l := e.jobs[id]
	e.mu.Unlock()
	if l != nil {
		return l.snapshot(), nil
	}
	j, err := e.store.GetJob(ctx, id)
	if err != nil {
		return Job{}, fmt.Errorf("get job %s: %w", id, err)
	}
	return j, nil
}

// List returns jobs, the newest first, with the progress of the present moment.
func (e *Engine) List(ctx context.Context, f Filter) ([]Job, error) {
	jobs, err := e.store.ListJobs(ctx, f)
	if err != nil {
		return nil, fmt.Errorf("list jobs: %w", err)
	}
	for i := range jobs {
		e.mu.Lock()
		l := e.jobs[jobs[i].ID]
		e.mu.Unlock()
		if l != nil {
			jobs[i] = l.snapshot()
		}
	}
	return jobs, nil
}

// Cancel asks a job to stop. The wish is durable when Cancel returns. A task
// that runs sees its context end with ErrCancelled as the cause; then, or
// between tasks, the job ends as cancelled, after its kind's Finish. A job
// whose last task completes all the same has succeeded. It fails with ErrEnded
// or ErrTooLate, and is no error if the job is being cancelled already.
func (e *Engine) Cancel(ctx context.Context, id, reason string) (Job, error) {
	l, err := e.find(ctx, id)
	if err != nil {
		return Job{}, fmt.Errorf("cancel job %s: %w", id, err)
	}
	err = e.record(ctx, l, func(j *Job) error {
		switch {
		case j.State.Ended():
			return ErrEnded
		case j.Cancel != nil:
			return errUnchanged
		case j.Ending != nil:
			return ErrTooLate
		case !j.Cancellable():
			return ErrTooLate
		}
		j.Cancel = &CancelRequest{Reason: reason, At: e.opts.Now()}
		j.State, j.Waiting = Cancelling, ""
		return nil
	})
	if err != nil && !errors.Is(err, errUnchanged) {
		return Job{}, fmt.Errorf("cancel job %s: %w", id, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cancel != nil {
		l.cancel(ErrCancelled)
	}
	e.poke()
	return l.job.clone(), nil
}

// Resume takes up a suspended job: the task that laid it aside runs again and
// finds the answer, which is kept as JSON. It fails with ErrNotSuspended.
func (e *Engine) Resume(ctx context.Context, id string, answer any) (Job, error) {
	raw, err := json.Marshal(answer)
	if err != nil {
		return Job{}, fmt.Errorf("resume job %s: encode answer: %w", id, err)
	}
	l, err := e.find(ctx, id)
	if err != nil {
		return Job{}, fmt.Errorf("resume job %s: %w", id, err)
	}
	err = e.record(ctx, l, func(j *Job) error {
		if j.State != Suspended {
			return ErrNotSuspended
		}
		j.State, j.Waiting = InProgress, ""
		for i := range j.Tasks {
			if j.Tasks[i].State == Suspended {
				j.Tasks[i].State, j.Tasks[i].Answer = InProgress, raw
			}
		}
		return nil
	})
	if err != nil {
		return Job{}, fmt.Errorf("resume job %s: %w", id, err)
	}
	e.poke()
	return l.snapshot(), nil
}

// find returns an unfinished job, from memory or from the store.
func (e *Engine) find(ctx context.Context, id string) (*live, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if l := e.jobs[id]; l != nil {
		return l, nil
	}
	// The store is read with mu held: a job leaves e.jobs only under mu and
	// after its end is recorded, so that none is brought back from an old record.
	j, err := e.store.GetJob(ctx, id)
	if err != nil {
		return nil, err
	}
	if j.State.Ended() {
		return nil, ErrEnded
	}
	l := &live{mu: newLock(), job: j}
	e.jobs[id] = l
	return l, nil
}

// Subscribe returns a channel of all events from now on, closed when ctx ends.
// A subscriber that is too slow loses the oldest and is told how many.
func (e *Engine) Subscribe(ctx context.Context) <-chan Event {
	return e.events.Subscribe(ctx, Subscription[Event]{Buffer: 256})
}

// Watch returns a channel of one job's events: first how it stands now, last
// how it ended; then, or when ctx ends, the channel is closed.
func (e *Engine) Watch(ctx context.Context, id string) (<-chan Event, error) {
	sub := Subscription[Event]{
		Filter: func(ev Event) bool { return ev.Job.ID == id },
		Last:   func(ev Event) bool { return ev.Job.State.Ended() },
	}
	l, err := e.find(ctx, id)
	if errors.Is(err, ErrEnded) {
		j, err := e.store.GetJob(ctx, id)
		if err != nil {
			return nil, fmt.Errorf("watch job %s: %w", id, err)
		}
		sub.First = []Event{{Type: EventJob, Time: e.opts.Now(), Job: j}}
		return e.events.Subscribe(ctx, sub), nil
	}
	if err != nil {
		return nil, fmt.Errorf("watch job %s: %w", id, err)
	}
	l.mu.Lock() // events of this job are published with it held: none is missed
	defer l.mu.Unlock()
	sub.First = []Event{{Type: EventJob, Time: e.opts.Now(), Job: l.job.clone()}}
	return e.events.Subscribe(ctx, sub), nil
}

// poke lets Run look for what is to be started.
func (e *Engine) poke() {
	select {
	case e.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// hook calls the hook of the tests, and nothing any more once that has failed.
func (e *Engine) hook(when string, j Job) error {
	e.deadMu.Lock()
	defer e.deadMu.Unlock()
	if e.dead != nil {
		return e.dead
	}
	if err := e.opts.Hook(when, j); err != nil {
		e.dead = fmt.Errorf("%w: %w", errDead, err)
		e.poke()
	}
	return e.dead
}
