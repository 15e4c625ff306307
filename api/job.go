package api

import "time"

// The states of jobs and tasks.
const (
	JobNotStarted = "not_started"
	JobInProgress = "in_progress"
	JobSucceeded  = "succeeded"
	JobFailed     = "failed"
	JobCancelling = "cancelling"
	JobCancelled  = "cancelled"
	JobSuspended  = "suspended"
	// TaskSkipped is a task's alone: there was nothing to do, or no way to.
	TaskSkipped = "skipped"
)

// Job is a durable piece of work: named tasks, done in order, taken up again
// after a crash of the server.
type Job struct {
	ID          string     `json:"id" doc:"The job's id"`
	Kind        string     `json:"kind" doc:"What it does: protect, failover, disable, vault_verify"`
	Title       string     `json:"title,omitempty" doc:"What it does, in words"`
	State       string     `json:"state" enum:"not_started,in_progress,succeeded,failed,cancelling,cancelled,suspended" doc:"How it stands"`
	Item        string     `json:"item,omitempty" doc:"The item it works on"`
	ItemName    string     `json:"item_name,omitempty" doc:"That item's name"`
	Tasks       []Task     `json:"tasks" nullable:"false" doc:"Its tasks, in order"`
	Progress    *Progress  `json:"progress,omitempty" doc:"How far the present task is, if it can tell"`
	Error       *JobError  `json:"error,omitempty" doc:"Why it failed"`
	Warnings    []string   `json:"warnings" nullable:"false" doc:"What was left undone though the job went on; if it succeeded with any, it is done in part"`
	Result      *JobResult `json:"result,omitempty" doc:"What came of it"`
	Cancellable bool       `json:"cancellable" doc:"Whether it can be cancelled now"`
	Waiting     string     `json:"waiting,omitempty" doc:"What it waits for, if it is suspended"`
	CreatedAt   time.Time  `json:"created_at" doc:"When it was asked for"`
	StartedAt   time.Time  `json:"started_at,omitzero" doc:"When it began"`
	FinishedAt  time.Time  `json:"finished_at,omitzero" doc:"When it ended"`
}

// Ended reports whether the job will not change any more.
func (j Job) Ended() bool {
	return j.State == JobSucceeded || j.State == JobFailed || j.State == JobCancelled
}

// Task is one step of a job.
type Task struct {
	Name       string    `json:"name" doc:"Its name, stable"`
	Title      string    `json:"title" doc:"What it does, in words"`
	State      string    `json:"state" enum:"not_started,in_progress,succeeded,failed,cancelling,cancelled,suspended,skipped" doc:"How it stands"`
	Attempt    int       `json:"attempt,omitempty" doc:"How often it was begun"`
	Progress   *Progress `json:"progress,omitempty" doc:"How far it is, if it can tell"`
	Error      *JobError `json:"error,omitempty" doc:"Why it failed"`
	Log        []string  `json:"log,omitempty" nullable:"false" doc:"What it had to say"`
	StartedAt  time.Time `json:"started_at,omitzero" doc:"When it began"`
	FinishedAt time.Time `json:"finished_at,omitzero" doc:"When it ended"`
}

// Progress is how far something is.
type Progress struct {
	Done       int64    `json:"done" doc:"How much is done"`
	Total      int64    `json:"total" doc:"How much there is; 0 if not known"`
	Unit       string   `json:"unit" doc:"bytes, or what else is counted"`
	Rate       float64  `json:"rate_per_second" doc:"How much is done in a second now"`
	ETASeconds *float64 `json:"eta_seconds,omitempty" doc:"Until it is done; missing if not known"`
}

// JobError is why a job or a task failed.
type JobError struct {
	Task    string `json:"task,omitempty" doc:"The task that failed"`
	Code    string `json:"code,omitempty" doc:"The kind of problem, as in Problem"`
	Message string `json:"message" doc:"What went wrong, with what"`
	Cause   string `json:"cause,omitempty" doc:"Why"`
	Hint    string `json:"hint,omitempty" doc:"What to do about it"`
}

// JobResult is what came of a job; which fields there are depends on its kind.
type JobResult struct {
	Item        string        `json:"item,omitempty" doc:"The item that was made"`
	RPOSeconds  *float64      `json:"rpo_seconds,omitempty" doc:"What was lost, as a time"`
	RTOSeconds  *float64      `json:"rto_seconds,omitempty" doc:"From the request until the machine ran"`
	Point       *Point        `json:"point,omitempty" doc:"What was recovered"`
	MachineID   string        `json:"machine_id,omitempty" doc:"The recovered machine's id"`
	MachineName string        `json:"machine_name,omitempty" doc:"The recovered machine's name"`
	Site        string        `json:"site,omitempty" doc:"Where it runs"`
	Proved      bool          `json:"proved,omitempty" doc:"Source and vault were compared and are equal: nothing was lost"`
	MovedBytes  *int64        `json:"moved_bytes,omitempty" doc:"What was written to disks that were there already"`
	Test        string        `json:"test,omitempty" doc:"The test failover that was started"`
	Verify      *VerifyReport `json:"verify,omitempty" doc:"What verifying the vault found"`
}

// JobQuery chooses jobs. Zero values choose all.
type JobQuery struct {
	Item  string `json:"item,omitempty"`  // an item's id or name
	State string `json:"state,omitempty"` // a state, or "active" for all that have not ended
	Limit int    `json:"limit,omitempty"` // at most this many, newest first; 0 for the server's default
}

// JobList is jobs, newest first.
type JobList struct {
	Jobs []Job `json:"jobs" nullable:"false" doc:"Newest first"`
}
