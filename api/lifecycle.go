package api

import "time"

// TestFailover asks for a copy of an item's machine, apart from the world.
type TestFailover struct {
	Option     string            `json:"option" enum:"latest,latest_processed,latest_app,point,time" doc:"Which recovery point"`
	Point      string            `json:"point,omitempty" maxLength:"128" doc:"With option point: its id or name, or a position of 16 hexadecimal digits"`
	Timeline   uint32            `json:"timeline,omitempty" doc:"With a position: its timeline; 0 for the present one"`
	Time       time.Time         `json:"time,omitzero" doc:"With option time: the newest consistent position at or before this"`
	Name       string            `json:"name,omitempty" maxLength:"64" pattern:"^([A-Za-z0-9][A-Za-z0-9._-]*)?$" doc:"The test machine's name; made from the item's if empty"`
	Network    string            `json:"network,omitempty" maxLength:"64" doc:"A network of the site; empty: the test machine has no way out"`
	Networks   map[string]string `json:"networks,omitempty" doc:"By network of the source: a network of the site that the cards on it are connected to; all others have no way out"`
	Addressing Addressing        `json:"addressing,omitzero" doc:"Addresses for the test machine's cards; without it the guest keeps its own"`
	Verify     *BootVerification `json:"verify,omitempty" doc:"Look whether it has booted"`
	IfVersion  int64             `json:"if_version,omitempty" minimum:"0" doc:"Refuse if the item's version is another; 0 for any. The header If-Match says the same"`
}

// BootVerification says how it is found out whether a test machine has booted.
type BootVerification struct {
	Agent          bool   `json:"agent,omitempty" doc:"Wait until its guest agent answers"`
	Serial         string `json:"serial,omitempty" maxLength:"256" doc:"Wait until its serial console shows this regular expression"`
	Ping           bool   `json:"ping,omitempty" doc:"Wait until it answers a ping"`
	TCPPort        int    `json:"tcp_port,omitempty" minimum:"0" maximum:"65535" doc:"Wait until this port accepts a connection"`
	Script         string `json:"script,omitempty" maxLength:"4096" doc:"Run this script, a file of the server's directory of scripts; it must end with 0"`
	TimeoutSeconds int64  `json:"timeout_seconds,omitempty" minimum:"0" maximum:"86400" doc:"For how long all of it may take; 0: 5 minutes"`
	Screenshot     bool   `json:"screenshot,omitempty" doc:"Keep a picture of the console with the job"`
}

// CleanUpTest asks for a test machine to be removed.
type CleanUpTest struct {
	Test string `json:"test,omitempty" maxLength:"128" doc:"Its name or handle; empty: the only one"`
	Note string `json:"note,omitempty" maxLength:"4096" doc:"What the tester has to say; kept with the item"`
}

// Failback asks for an item's machine to be brought home.
type Failback struct {
	Option        string `json:"option" enum:"latest,latest_app" doc:"Which recovery point"`
	DiscardWrites bool   `json:"discard_writes,omitempty" doc:"Do not keep what the machine there has on its disks and the vault has not as a timeline of its own"`
	Unplanned     bool   `json:"unplanned,omitempty" doc:"The recovery site is lost: take what the vault has"`
	IfVersion     int64  `json:"if_version,omitempty" minimum:"0" doc:"Refuse if the item's version is another; 0 for any. The header If-Match says the same"`
}

// ChangePoint asks for a recovered machine to be rebuilt from another point.
type ChangePoint struct {
	Option     string    `json:"option" enum:"latest,latest_processed,latest_app,point,time" doc:"Which recovery point, of those from before the failover"`
	Point      string    `json:"point,omitempty" maxLength:"128" doc:"With option point: its id or name, or a position of 16 hexadecimal digits"`
	Timeline   uint32    `json:"timeline,omitempty" doc:"With a position: its timeline; 0 for the one of before the failover"`
	Time       time.Time `json:"time,omitzero" doc:"With option time: the newest consistent position at or before this"`
	KeepWrites bool      `json:"keep_writes,omitempty" doc:"Keep what the machine wrote since the failover as a timeline of its own"`
	IfVersion  int64     `json:"if_version,omitempty" minimum:"0" doc:"Refuse if the item's version is another; 0 for any. The header If-Match says the same"`
}

// Commit asks for a failover to be made final.
type Commit struct {
	DiscardWrites bool  `json:"discard_writes,omitempty" doc:"After a failback: do not keep what the recovered machine wrote and the vault has not as a timeline of its own"`
	DeletePoints  bool  `json:"delete_points,omitempty" doc:"Also delete the recovery points, as Azure Site Recovery does; they stay under the policy otherwise"`
	IfVersion     int64 `json:"if_version,omitempty" minimum:"0" doc:"Refuse if the item's version is another; 0 for any. The header If-Match says the same"`
}

// UndoFailover asks for a failover to be given up.
type UndoFailover struct {
	KeepWrites bool  `json:"keep_writes,omitempty" doc:"Keep what the recovered machine wrote as a timeline of its own"`
	IfVersion  int64 `json:"if_version,omitempty" minimum:"0" doc:"Refuse if the item's version is another; 0 for any. The header If-Match says the same"`
}

// Reprotect asks for an item to be replicated the other way round.
type Reprotect struct {
	DiscardWrites bool  `json:"discard_writes,omitempty" doc:"Do not keep what the machine that was left behind wrote and the vault has not as a timeline of its own"`
	IfVersion     int64 `json:"if_version,omitempty" minimum:"0" doc:"Refuse if the item's version is another; 0 for any. The header If-Match says the same"`
}

// Resync asks for source and vault to be compared.
type Resync struct {
	Disks []string `json:"disks,omitempty" nullable:"false" doc:"Only these; empty: all"`
}

// MakePoint asks for a recovery point of the present moment.
type MakePoint struct {
	Name          string `json:"name,omitempty" maxLength:"64" doc:"Its name"`
	AppConsistent bool   `json:"app_consistent,omitempty" doc:"Freeze the file systems in the guest for it; if that fails, the point is crash-consistent"`
}

// Pause asks for an item's machine to be left alone for a time.
type Pause struct {
	Duration int64 `json:"duration,omitempty" minimum:"60" maximum:"604800" doc:"For how many seconds; empty: one hour. Then replication goes on by itself"`
}

// CompareItem asks for an item's disks to be compared with the vault now.
type CompareItem struct{}

// Resume asks for a pause to end.
type Resume struct{}

// CancelItem asks for the job that works on an item to stop.
type CancelItem struct{}

// CheckOperation asks what an operation would do.
type CheckOperation struct {
	Operation  string            `json:"operation" maxLength:"64" doc:"The operation, as in allowed_operations"`
	Option     string            `json:"option,omitempty" enum:"latest,latest_processed,latest_app,point,time" doc:"Which recovery point"`
	Point      string            `json:"point,omitempty" maxLength:"128" doc:"With option point"`
	Timeline   uint32            `json:"timeline,omitempty" doc:"With a position"`
	Time       time.Time         `json:"time,omitzero" doc:"With option time"`
	Name       string            `json:"name,omitempty" maxLength:"64" doc:"The name of the machine that would be made"`
	Network    string            `json:"network,omitempty" maxLength:"128" doc:"Of a test: the network"`
	Networks   map[string]string `json:"networks,omitempty" doc:"By network of the source: the one that takes its place"`
	Addressing Addressing        `json:"addressing,omitzero" doc:"Addresses for the machine's cards"`
}

// OperationCheck is what an operation would do, and what stands in its way.
type OperationCheck struct {
	Operation          string    `json:"operation" doc:"The operation"`
	Allowed            bool      `json:"allowed" doc:"Whether it would begin"`
	Reason             string    `json:"reason,omitempty" doc:"Why not"`
	NextStep           string    `json:"next_step,omitempty" doc:"What to do first"`
	Point              *Point    `json:"point,omitempty" doc:"The recovery point that it would use"`
	Warning            string    `json:"warning,omitempty" doc:"What this gives up"`
	Site               string    `json:"site,omitempty" doc:"Where the machine would run"`
	MachineName        string    `json:"machine_name,omitempty" doc:"How it would be called"`
	RPOSeconds         *float64  `json:"rpo_seconds,omitempty" doc:"What would be lost, as a time"`
	ExpectedRTOSeconds *float64  `json:"expected_rto_seconds,omitempty" doc:"How long it would take until it runs"`
	Basis              string    `json:"basis,omitempty" doc:"What that is derived from"`
	Steps              []string  `json:"steps" nullable:"false" doc:"What its job would do"`
	Findings           []Finding `json:"findings" nullable:"false" doc:"What its checks find"`
}

// ItemTest is what is known of an item's test failovers.
type ItemTest struct {
	State string    `json:"state,omitempty" enum:",starting,running,failed,cleaning_up" doc:"How they stand: of several, the one that most wants attention"`
	Open  []Test    `json:"open" nullable:"false" doc:"Those that wait for clean-up"`
	Last  *LastTest `json:"last,omitempty" doc:"The last that was cleaned up"`
}

// Test is a test failover that has not been cleaned up.
type Test struct {
	Name         string    `json:"name" doc:"The test machine's name"`
	Handle       string    `json:"handle" doc:"The test's id"`
	State        string    `json:"state" enum:"starting,running,failed,cleaning_up" doc:"How it stands"`
	Site         string    `json:"site" doc:"Where it runs"`
	Network      string    `json:"network,omitempty" doc:"Its network; empty: none with a way out"`
	Point        *Point    `json:"point,omitempty" doc:"What it was made from"`
	Job          string    `json:"job,omitempty" doc:"The job that started it"`
	StartedAt    time.Time `json:"started_at" doc:"When it was asked for"`
	ReadySeconds *float64  `json:"ready_seconds,omitempty" doc:"How long it took until it ran, and was verified if that was asked for"`
	Verified     string    `json:"verified,omitempty" doc:"How the boot verification ended; empty: none was asked for"`
}

// LastTest is the last test failover that was cleaned up.
type LastTest struct {
	At           time.Time `json:"at" doc:"When it was cleaned up"`
	Passed       bool      `json:"passed" doc:"Whether the machine ran"`
	Point        *Point    `json:"point,omitempty" doc:"What it was made from"`
	ReadySeconds float64   `json:"ready_seconds" doc:"How long it took until it ran"`
	Note         string    `json:"note,omitempty" doc:"What the tester had to say"`
	Job          string    `json:"job,omitempty" doc:"The job that started it"`
	SuccessAt    time.Time `json:"success_at,omitzero" doc:"When one last passed"`
}
