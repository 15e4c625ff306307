package api

import "time"

// The kinds of run of a recovery plan.
const (
	RunTest      = "test"
	RunPlanned   = "planned"
	RunUnplanned = "unplanned"
	RunReprotect = "reprotect"
	RunCommit    = "commit"
	RunCleanUp   = "clean_up"
)

// The directions of a run.
const (
	ToRecovery = "primary_to_recovery"
	ToPrimary  = "recovery_to_primary"
)

// Plan is a recovery plan.
type Plan struct {
	ID          string           `json:"id" doc:"The plan's id"`
	Name        string           `json:"name" doc:"Its name"`
	Description string           `json:"description,omitempty" doc:"What it is for"`
	Text        string           `json:"text,omitempty" doc:"As it was written, in YAML; missing in lists"`
	Revision    int64            `json:"revision" doc:"Counts the texts that were applied"`
	Digest      string           `json:"digest" doc:"SHA-256 of the text"`
	AppliedAt   time.Time        `json:"applied_at" doc:"When this text was applied"`
	AppliedBy   string           `json:"applied_by,omitempty" doc:"The token that applied it"`
	Groups      []PlanGroup      `json:"groups" nullable:"false" doc:"Its groups, in the order of the text"`
	Machines    int              `json:"machines" doc:"How many machines it has"`
	Runs        []PlanRunSummary `json:"runs" nullable:"false" doc:"The last run of each kind"`
	CurrentJob  string           `json:"current_job,omitempty" doc:"The job of the run that goes on"`
	Findings    []Finding        `json:"findings" nullable:"false" doc:"What wants attention: items that are gone, tests that are old"`
	Drill       *PlanDrill       `json:"drill,omitempty" doc:"Its drills"`
}

// PlanDrill is when a plan is tested by itself.
type PlanDrill struct {
	EverySeconds float64   `json:"every_seconds" doc:"How often"`
	NextAt       time.Time `json:"next_at" doc:"When next"`
}

// PlanGroup is a group of a plan.
type PlanGroup struct {
	Name     string   `json:"name" doc:"Its name"`
	Stage    int      `json:"stage" doc:"1 for the groups that come up first; groups of one stage come up together"`
	Machines []string `json:"machines" nullable:"false" doc:"Its items"`
	Actions  []string `json:"actions" nullable:"false" doc:"Its actions: before or after, kind, name"`
}

// PlanRunSummary is how a run went.
type PlanRunSummary struct {
	Job       string    `json:"job" doc:"The run's job"`
	Kind      string    `json:"kind" enum:"test,planned,unplanned,reprotect,commit,clean_up" doc:"What it was"`
	Direction string    `json:"direction" doc:"Which way"`
	Revision  int64     `json:"revision" doc:"Of which text"`
	StartedAt time.Time `json:"started_at" doc:"When it began"`
	EndedAt   time.Time `json:"ended_at,omitzero" doc:"When it ended"`
	Outcome   string    `json:"outcome" enum:"succeeded,partial,failed,cancelled" doc:"How it ended; partial: some machines or actions failed"`
	Drill     bool      `json:"drill,omitempty" doc:"Whether it was a drill"`
}

// PlanList is plans, and the items that are in none.
type PlanList struct {
	Plans     []Plan   `json:"plans" nullable:"false" doc:"Sorted by name"`
	Unplanned []string `json:"unplanned" nullable:"false" doc:"Items that no plan brings up"`
}

// ApplyPlan gives a plan its text. The plan's name is in the text.
type ApplyPlan struct {
	Text       string `json:"text" maxLength:"1048576" doc:"The plan, in YAML"`
	IfRevision *int64 `json:"if_revision,omitempty" minimum:"0" doc:"Refuse if the plan has another revision now; 0: if there is one already. The header If-Match says the same"`
	DryRun     bool   `json:"dry_run,omitempty" doc:"Change nothing: say how the text differs from what there is"`
}

// PlanChanges is what applying a text did, or would do.
type PlanChanges struct {
	Plan     string   `json:"plan" doc:"The plan's name"`
	Created  bool     `json:"created,omitempty" doc:"There was no such plan"`
	Applied  bool     `json:"applied" doc:"Whether the text is the plan's now"`
	From     int64    `json:"from_revision" doc:"The revision before; 0: none"`
	Revision int64    `json:"revision" doc:"The plan's revision now"`
	Changes  []string `json:"changes" nullable:"false" doc:"How the plans differ, in words"`
	Warnings []string `json:"warnings" nullable:"false" doc:"What the plan names and there is not"`
}

// PlanTexts is the history of a plan's text.
type PlanTexts struct {
	Texts []PlanText `json:"texts" nullable:"false" doc:"Newest first"`
}

// PlanText is one revision of a plan's text.
type PlanText struct {
	Revision  int64     `json:"revision" doc:"Its revision"`
	AppliedAt time.Time `json:"applied_at" doc:"When it was applied"`
	Text      string    `json:"text" doc:"The text"`
}

// RunPlan asks for a run of a plan, or for a check of what it would do.
type RunPlan struct {
	Kind           string    `json:"kind" enum:"test,planned,unplanned,reprotect,commit,clean_up" doc:"What to do"`
	Direction      string    `json:"direction,omitempty" enum:",primary_to_recovery,recovery_to_primary" doc:"Which way; needed if the plan's machines are on both sides"`
	Option         string    `json:"option,omitempty" enum:",latest,latest_processed,latest_app,time,latest_multi_vm,latest_multi_vm_app" doc:"Which recovery points; latest if empty"`
	Time           time.Time `json:"time,omitzero" doc:"With option time: the newest consistent position at or before this, for each machine"`
	PerMachine     bool      `json:"per_machine,omitempty" doc:"With an option for replication groups: where a group has no common point, take each machine's own"`
	ShutdownSource bool      `json:"shutdown_source,omitempty" doc:"Unplanned: try to shut the sources down first"`
	DiscardWrites  bool      `json:"discard_writes,omitempty" doc:"Reprotect and commit: do not keep what the machines that were left behind wrote and the vault has not"`
	DeletePoints   bool      `json:"delete_points,omitempty" doc:"Commit: also delete the recovery points"`
	Note           string    `json:"note,omitempty" maxLength:"4096" doc:"Why, or what the tester has to say; kept with the run"`
	IfRevision     int64     `json:"if_revision,omitempty" minimum:"0" doc:"Refuse if the plan has another revision; 0 for any"`
}

// PlanCheck is what a run would do, and what stands in its way.
type PlanCheck struct {
	Plan        string        `json:"plan" doc:"The plan's name"`
	Revision    int64         `json:"revision" doc:"Of which text"`
	Kind        string        `json:"kind" doc:"What would be done"`
	Direction   string        `json:"direction" doc:"Which way"`
	OK          bool          `json:"ok" doc:"Whether nothing was found that would make it fail"`
	Machines    []PlanMachine `json:"machines" nullable:"false" doc:"What would become of each machine"`
	Steps       []PlanStep    `json:"steps" nullable:"false" doc:"What would be done, in order"`
	Findings    []Finding     `json:"findings" nullable:"false" doc:"What the checks found"`
	RPOSeconds  *float64      `json:"rpo_seconds,omitempty" doc:"The worst of the machines'"`
	RTOSeconds  *float64      `json:"rto_seconds,omitempty" doc:"How long the whole would take, from how long it took before; missing if not known"`
	NeedsPerson bool          `json:"needs_person,omitempty" doc:"Whether a manual step waits for an answer"`
}

// PlanMachine is a machine in a run.
type PlanMachine struct {
	Item       string   `json:"item" doc:"The item's name"`
	ID         string   `json:"id,omitempty" doc:"The item's id"`
	Group      string   `json:"group" doc:"Its group"`
	State      string   `json:"state" enum:"waiting,running,succeeded,failed,skipped" doc:"How it stands"`
	Reason     string   `json:"reason,omitempty" doc:"Why it is skipped, or failed"`
	NextStep   string   `json:"next_step,omitempty" doc:"What to do about it"`
	Point      *Point   `json:"point,omitempty" doc:"The recovery point; missing if it is chosen when the machine's turn comes"`
	Site       string   `json:"site,omitempty" doc:"Where it runs, or would"`
	Machine    string   `json:"machine,omitempty" doc:"How it is called there"`
	Job        string   `json:"job,omitempty" doc:"Its job"`
	RPOSeconds *float64 `json:"rpo_seconds,omitempty" doc:"What is lost, as a time"`
	RTOSeconds *float64 `json:"rto_seconds,omitempty" doc:"From the request for this machine until it ran"`
}

// PlanStep is a step of a run.
type PlanStep struct {
	Name       string    `json:"name" doc:"Its name, stable"`
	Title      string    `json:"title" doc:"What it does, in words"`
	What       string    `json:"what" enum:"resolve,shut_down,machines,script,guest,webhook,manual,wait" doc:"What sort of step it is"`
	Group      string    `json:"group,omitempty" doc:"Its group"`
	State      string    `json:"state,omitempty" enum:",not_started,in_progress,succeeded,failed,cancelled,suspended,skipped" doc:"How it stands"`
	Attempts   int       `json:"attempts,omitempty" doc:"How often it was begun"`
	Output     string    `json:"output,omitempty" doc:"What it said"`
	Error      string    `json:"error,omitempty" doc:"Why it failed"`
	Waiting    string    `json:"waiting,omitempty" doc:"What it waits for"`
	Answers    []string  `json:"answers,omitempty" nullable:"false" doc:"What may be answered"`
	Answer     string    `json:"answer,omitempty" doc:"What was answered last"`
	AnsweredBy string    `json:"answered_by,omitempty" doc:"Who answered"`
	Note       string    `json:"note,omitempty" doc:"What who answered had to say"`
	StartedAt  time.Time `json:"started_at,omitzero" doc:"When it began"`
	FinishedAt time.Time `json:"finished_at,omitzero" doc:"When it ended"`
}

// PlanRun is a run of a plan in full.
type PlanRun struct {
	PlanRunSummary
	Plan        string        `json:"plan" doc:"The plan's name"`
	PlanID      string        `json:"plan_id" doc:"The plan's id"`
	RequestedBy string        `json:"requested_by,omitempty" doc:"The token that asked for it"`
	RequestedAt time.Time     `json:"requested_at" doc:"When it was asked for"`
	Note        string        `json:"note,omitempty" doc:"Why"`
	State       string        `json:"state" doc:"The job's state"`
	Waiting     string        `json:"waiting,omitempty" doc:"What it waits for"`
	Machines    []PlanMachine `json:"machines" nullable:"false" doc:"Its machines"`
	Steps       []PlanStep    `json:"steps" nullable:"false" doc:"Its steps, in order"`
	Warnings    []string      `json:"warnings" nullable:"false" doc:"What went wrong though it went on"`
	Error       *JobError     `json:"error,omitempty" doc:"Why it failed"`
}

// Answer answers what a suspended job asks.
type Answer struct {
	Answer string `json:"answer" enum:"done,fail,retry,skip" doc:"One of what it asks for: done and fail for a manual step; retry, skip and fail for what has failed"`
	Note   string `json:"note,omitempty" maxLength:"4096" doc:"Kept with the step"`
}
