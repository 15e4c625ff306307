package job

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"
)

var (
	// ErrNotFound says that there is no job of that id.
	ErrNotFound = errors.New("job not found")
	// ErrBusy says that the subject has another job that has not ended.
	ErrBusy = errors.New("another job is working on it")
	// ErrConflict says that the stored job is of another version than expected.
	ErrConflict = errors.New("job was changed meanwhile")
	// ErrUnknownKind says that no kind of that name is registered.
	ErrUnknownKind = errors.New("unknown kind of job")
	// ErrEnded says that the job has ended, so that it cannot be cancelled or resumed.
	ErrEnded = errors.New("job has ended")
	// ErrTooLate says that the job has passed its point of no return and cannot be cancelled.
	ErrTooLate = errors.New("job has passed its point of no return")
	// ErrNotSuspended says that the job does not wait for anybody.
	ErrNotSuspended = errors.New("job is not suspended")
	// ErrNotRecorded says that the store did not take a record. A task that
	// fails with it is run again once the store works.
	ErrNotRecorded = errors.New("not recorded")
	// ErrCancelled is the cause with which the context of a task ends when its
	// job is cancelled.
	ErrCancelled = errors.New("job was cancelled")
	// ErrStopped is the cause with which the context of a task ends when the
	// engine stops. The job goes on when an engine runs again.
	ErrStopped = errors.New("job engine is stopping")
)

// State is how a job or a task stands.
type State string

// The states. Skipped is a task's alone: there was nothing to do, or it was
// optional and failed, or the job was cancelled before it began.
const (
	NotStarted State = "not_started"
	InProgress State = "in_progress"
	Succeeded  State = "succeeded"
	Failed     State = "failed"
	Cancelling State = "cancelling"
	Cancelled  State = "cancelled"
	Suspended  State = "suspended"
	Skipped    State = "skipped"
)

// Ended reports whether a job or task in this state will not change any more.
func (s State) Ended() bool {
	return s == Succeeded || s == Failed || s == Cancelled || s == Skipped
}

// Kind is what a job of its name does. It is code; jobs refer to it by name,
// and to its tasks by theirs, so that neither may be renamed while jobs are
// unfinished.
type Kind struct {
	Name  string
	Title string // in words, for people
	Tasks []Task
	// Expand, if it is not nil, makes the tasks from a job's input in place of
	// Tasks. It is called anew whenever a task is to be run, so it must return the
	// same for the same input, in every version that may meet the job.
	Expand func(input json.RawMessage) ([]Task, error)
	// Waits says that its jobs mostly wait for other jobs: they take no slot of
	// Options.MaxRunning, so that those find one.
	Waits bool
	// Finish, if it is not nil, runs once the outcome is known, whatever it is,
	// and before the job is recorded as ended: the place to record the outcome
	// elsewhere and to take away what a failed or cancelled job has left. Like
	// every task it may run twice. Step.Ending tells the outcome. Cancelling
	// does not reach it. If it fails, a job that had succeeded fails, and one
	// that had not gets a warning.
	Finish *Task
}

// Task is one step of a kind of job.
type Task struct {
	Name  string
	Title string // in words, for people
	// Run does it. It returns soon after ctx ends, and is safe to repeat.
	Run func(ctx context.Context, step *Step) error
	// Retry says how often and when Run is called again after an error.
	Retry Retry
	// Optional tasks may fail: the job goes on with a warning.
	Optional bool
	// NoReturn says that the job cannot be cancelled from here on.
	NoReturn bool
}

// Retry is how failures of a task are met. The zero value: not at all.
type Retry struct {
	// Attempts is how often the task is tried in all before its failure counts,
	// anew each time that an engine takes the job up.
	Attempts int
	// Delay is waited before the second attempt and doubled for each further one.
	Delay time.Duration
	// MaxDelay bounds it; 0 means 30 s.
	MaxDelay time.Duration
	// If says which errors are worth another attempt; nil means all.
	If func(error) bool
}

// Job is a job as it is recorded. It is a value; nothing that a caller does to
// one changes what the engine has.
type Job struct {
	ID       string          `json:"id"`
	Kind     string          `json:"kind"`
	Title    string          `json:"title,omitempty"`
	Subject  string          `json:"subject,omitempty"` // one unfinished job for each; empty: any number
	Parent   string          `json:"parent,omitempty"`  // what it was submitted for; see WithParent
	State    State           `json:"state"`
	Input    json.RawMessage `json:"input,omitempty"`
	Shared   json.RawMessage `json:"shared,omitempty"` // state that its tasks share
	Result   json.RawMessage `json:"result,omitempty"`
	Tasks    []TaskRecord    `json:"tasks"`
	Warnings []string        `json:"warnings,omitempty"`
	Failure  *Failure        `json:"failure,omitempty"`
	Cancel   *CancelRequest  `json:"cancel,omitempty"`
	Waiting  string          `json:"waiting,omitempty"` // suspended: for what
	Ending   *Ending         `json:"ending,omitempty"`  // the outcome, from when it is known

	CreatedAt time.Time `json:"created_at"`
	StartedAt time.Time `json:"started_at,omitzero"`
	EndedAt   time.Time `json:"ended_at,omitzero"`
	Version   int64     `json:"version"` // 1 when created, one more with each record
}

// TaskRecord is how a task of a job stands.
type TaskRecord struct {
	Name      string          `json:"name"`
	Title     string          `json:"title,omitempty"`
	State     State           `json:"state"`
	Attempts  int             `json:"attempts,omitempty"` // how often it was begun
	NoReturn  bool            `json:"no_return,omitempty"`
	StartedAt time.Time       `json:"started_at,omitzero"` // first attempt
	EndedAt   time.Time       `json:"ended_at,omitzero"`
	Saved     json.RawMessage `json:"saved,omitempty"` // by Step.SaveState
	Answer    json.RawMessage `json:"answer,omitempty"`
	Progress  *Progress       `json:"progress,omitempty"`
	Failure   *Failure        `json:"failure,omitempty"` // of the last attempt that failed
	Log       []LogLine       `json:"log,omitempty"`     // the last maxLogLines
}

// LogLine is something that a task had to say.
type LogLine struct {
	Time time.Time `json:"time"`
	Text string    `json:"text"`
}

// CancelRequest is who or what wanted the job to stop, in words, and when.
type CancelRequest struct {
	Reason string    `json:"reason,omitempty"`
	At     time.Time `json:"at"`
}

// Ending is the outcome of a job whose tasks are over.
type Ending struct {
	State   State      `json:"state"` // Succeeded, Failed or Cancelled
	Failure *Failure   `json:"failure,omitempty"`
	Finish  TaskRecord `json:"finish,omitzero"` // how the kind's Finish fares
}

// Failure is why a job or a task failed, as it is kept and shown.
type Failure struct {
	Task    string `json:"task,omitempty"`
	Code    string `json:"code,omitempty"`
	Message string `json:"message"`
	Cause   string `json:"cause,omitempty"`
	Hint    string `json:"hint,omitempty"`
}

// Describer is an error that knows its code, its cause and what to do about
// it. The first in an error's tree fills in a Failure.
type Describer interface {
	error
	// Describe returns code, cause and hint; each may be empty.
	Describe() (code, cause, hint string)
}

// FailureOf returns what is kept of an error, nil for nil.
func FailureOf(err error, task string) *Failure {
	if err == nil {
		return nil
	}
	f := &Failure{Task: task, Message: err.Error()}
	var d Describer
	if errors.As(err, &d) {
		f.Code, f.Cause, f.Hint = d.Describe()
	}
	return f
}

// Cancellable reports whether Cancel would be accepted now.
func (j Job) Cancellable() bool {
	if j.State.Ended() || j.Ending != nil {
		return false
	}
	return !slices.ContainsFunc(j.Tasks, func(t TaskRecord) bool { return t.NoReturn && t.State != NotStarted })
}

// CurrentTask returns the first task that has not ended, or nil.
func (j Job) CurrentTask() *TaskRecord {
	for i := range j.Tasks {
		if !j.Tasks[i].State.Ended() {
			t := j.Tasks[i]
			return &t
		}
	}
	return nil
}

// clone copies what the engine changes in place. Raw messages, failures,
// progress and log lines are replaced, never written to.
func (j Job) clone() Job {
	j.Tasks = slices.Clone(j.Tasks)
	j.Warnings = slices.Clone(j.Warnings)
	if j.Ending != nil {
		e := *j.Ending
		j.Ending = &e
	}
	return j
}

// Filter chooses jobs. Its zero value chooses all.
type Filter struct {
	Subject    string
	Parent     string
	Kind       string
	State      State
	Unfinished bool // only those that have not ended
	Limit      int  // the newest so many; 0: all
}

// Matches reports whether the filter chooses the job; Limit is not looked at.
func (f Filter) Matches(j Job) bool {
	return (f.Subject == "" || f.Subject == j.Subject) && (f.Parent == "" || f.Parent == j.Parent) && (f.Kind == "" || f.Kind == j.Kind) &&
		(f.State == "" || f.State == j.State) && (!f.Unfinished || !j.State.Ended())
}

// Store keeps jobs. Every method is safe for concurrent use, and what
// CreateJob and UpdateJob have taken is durable when they return nil.
type Store interface {
	// CreateJob adds a job. It fails with ErrBusy if the job has a subject that
	// another unfinished job has, and with ErrConflict if the id is taken.
	CreateJob(ctx context.Context, j Job) error
	// UpdateJob replaces the job whose stored version is one less than the
	// given one. It fails with ErrConflict if that is another, and ErrNotFound.
	UpdateJob(ctx context.Context, j Job) error
	// GetJob returns a job or ErrNotFound.
	GetJob(ctx context.Context, id string) (Job, error)
	// ListJobs returns jobs, the newest first.
	ListJobs(ctx context.Context, f Filter) ([]Job, error)
}
