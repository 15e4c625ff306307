package api

import "time"

// Item is a replicated item: a machine under protection. Its state, its
// direction and its health are three separate things.
type Item struct {
	ID           string             `json:"id" doc:"The item's id"`
	Name         string             `json:"name" doc:"Its name, unique among items"`
	Machine      MachineRef         `json:"machine" doc:"The protected machine"`
	PrimarySite  string             `json:"primary_site" doc:"Where the machine was when it was protected"`
	RecoverySite string             `json:"recovery_site" doc:"Where it is recovered"`
	ActiveSite   string             `json:"active_site" doc:"Where it works now"`
	State        string             `json:"state" doc:"Where the item is in its life, like protected or commit_pending"`
	Test         ItemTest           `json:"test" doc:"Its test failovers"`
	Direction    string             `json:"direction" enum:"forward,reverse" doc:"forward: from the primary to the recovery site"`
	Health       Health             `json:"health" doc:"How it fares"`
	Policy       Policy             `json:"policy" doc:"Its policy"`
	Replication  *Replication       `json:"replication,omitempty" doc:"How replication fares; missing if the item does not replicate in its state"`
	Allowed      []string           `json:"allowed_operations" nullable:"false" doc:"What may be done now"`
	Blocked      []BlockedOperation `json:"blocked_operations" nullable:"false" doc:"What may not be done now, why, and what to do to get there"`
	Stream       ItemStream         `json:"stream" doc:"Where its history is kept"`
	Recovery     *Recovery          `json:"recovery,omitempty" doc:"The recovered machine; missing before a failover"`
	CurrentJob   string             `json:"current_job,omitempty" doc:"The job that works on it now"`
	Group        string             `json:"group,omitempty" doc:"The replication group that it is in"`
	Version      int64              `json:"version" doc:"Raised with each recorded change; the ETag"`
	CreatedAt    time.Time          `json:"created_at" doc:"When it was protected"`
}

// MachineRef names the protected machine.
type MachineRef struct {
	ID    string        `json:"id" doc:"Its id at its site"`
	Name  string        `json:"name" doc:"Its name at its site"`
	Disks []MachineDisk `json:"disks" nullable:"false" doc:"Its protected disks"`
}

// ItemStream says where in the vault an item's history is, and which part of
// it is the present one.
type ItemStream struct {
	ID         string `json:"id,omitempty" doc:"The stream, 32 hexadecimal digits"`
	Timeline   uint32 `json:"timeline" doc:"The timeline that is written now"`
	Generation uint32 `json:"generation" doc:"Raised by each failover; writers of older ones are fenced off"`
	Hold       *Hold  `json:"hold,omitempty" doc:"That nothing of the history is removed, whatever the policy says; missing: no such hold"`
}

// Hold is a legal hold: nothing of an item's history is removed until it is released.
type Hold struct {
	Reason string    `json:"reason" doc:"Why, in the words of whoever asked for it"`
	By     string    `json:"by" doc:"The name of the token that asked for it"`
	Since  time.Time `json:"since" doc:"Since when"`
}

// HoldItem asks for a legal hold of an item's history, or for its release.
type HoldItem struct {
	Release bool   `json:"release,omitempty" doc:"Release the hold"`
	Reason  string `json:"reason,omitempty" maxLength:"500" doc:"Why the history is held; needed unless it is released"`
}

// ChangePolicy asks for another policy of an item, in force at once.
type ChangePolicy struct {
	Policy    Policy `json:"policy" doc:"The whole policy; defaults where it is silent"`
	IfVersion int64  `json:"if_version,omitempty" minimum:"0" doc:"Refuse unless the item has this version; 0: whatever it has"`
}

// Policy is how an item is replicated and when that counts as trouble.
type Policy struct {
	RPOThreshold     int64 `json:"rpo_threshold_seconds,omitempty" minimum:"0" maximum:"604800" doc:"An RPO above this is a warning; 0 for the server's default"`
	PointInterval    int64 `json:"point_interval_seconds,omitempty" minimum:"0" maximum:"604800" doc:"How often a named recovery point is marked; 0 for the server's default"`
	AppPointInterval int64 `json:"app_point_interval_seconds,omitempty" minimum:"0" maximum:"604800" doc:"How often an app-consistent point is made, at least a minute; 0 for never"`
	HistoryWindow    int64 `json:"history_window_seconds,omitempty" minimum:"0" maximum:"31536000" doc:"For how long any moment can be recovered; 0 for the server's default"`
	// Tiers are in rising order of Until, each at most as fine as the one before.
	Tiers []Tier `json:"tiers,omitempty" nullable:"false" maxItems:"16" doc:"What is kept beyond the history window, in rising order; none: nothing"`
}

// Tier keeps one recovery point for each Every, app-consistent ones first, until it
// is as old as Until.
type Tier struct {
	Every int64 `json:"every_seconds" minimum:"60" doc:"One point for each so many seconds"`
	Until int64 `json:"until_seconds" minimum:"60" doc:"For points that are not older than this"`
}

// Health is a level and the findings that led to it.
type Health struct {
	Level    string    `json:"level" enum:"healthy,warning,critical,not_applicable" doc:"The worst of the findings"`
	Findings []Finding `json:"findings" nullable:"false" doc:"What is not as it should be"`
}

// The levels of health.
const (
	HealthHealthy       = "healthy"
	HealthWarning       = "warning"
	HealthCritical      = "critical"
	HealthNotApplicable = "not_applicable"
)

// Finding is one thing that is not as it should be, with its cause and what to
// do about it.
type Finding struct {
	Code     string    `json:"code" doc:"HF1001 and so on; the meaning of a code never changes"`
	Severity string    `json:"severity" enum:"info,warning,critical" doc:"How bad it is"`
	Summary  string    `json:"summary" doc:"What"`
	Cause    string    `json:"cause,omitempty" doc:"Why"`
	Advice   string    `json:"advice,omitempty" doc:"What to do"`
	Since    time.Time `json:"since,omitzero" doc:"Since when"`
}

// BlockedOperation is what may not be done with an item in its state.
type BlockedOperation struct {
	Operation string `json:"operation" doc:"The operation"`
	Reason    string `json:"reason" doc:"Why it is not allowed"`
	NextStep  string `json:"next_step,omitempty" doc:"What to do so that it becomes allowed"`
	Missing   bool   `json:"missing,omitempty" doc:"This version of the server cannot do it in any state"`
}

// Replication is how the copying of an item fares.
type Replication struct {
	Mode           string        `json:"mode" enum:"initial_sync,continuous,backlog,rescan,paused,stalled,disconnected" doc:"What it is doing"`
	Disks          []DiskSync    `json:"disks" nullable:"false" doc:"For each disk, how far its copy is"`
	Rate           float64       `json:"rate_bytes_per_second" doc:"What arrives now"`
	ETASeconds     *float64      `json:"eta_seconds,omitempty" doc:"Until the copy or the backlog is done; missing if not known"`
	BacklogBytes   int64         `json:"backlog_bytes" doc:"Written at the source, not yet safe in the vault"`
	RPOSeconds     *float64      `json:"rpo_seconds,omitempty" doc:"How far the newest recoverable position in the vault is behind now; missing if nothing can be recovered yet"`
	Newest         *StreamMoment `json:"newest,omitempty" doc:"The newest recoverable position in the vault"`
	ReceivedBytes  int64         `json:"received_bytes" doc:"What the gateway took from the source since protection began"`
	StoredBytes    int64         `json:"stored_bytes" doc:"What it takes in the vault"`
	SentBytes      int64         `json:"sent_bytes" doc:"What went to the vault over the network"`
	LastReceivedAt time.Time     `json:"last_received_at,omitzero" doc:"When the source was last heard of"`
	Comparison     *Comparison   `json:"comparison,omitempty" doc:"How far the machine's disks are compared with the vault, while it runs; missing if that is not known"`
}

// Comparison is how far the disks of a running machine are compared with the vault.
type Comparison struct {
	BeganAt     time.Time    `json:"began_at" doc:"When this round began"`
	Done        int64        `json:"done_bytes" doc:"Compared in this round"`
	Total       int64        `json:"total_bytes" doc:"All disks"`
	Skipped     int64        `json:"skipped_bytes" doc:"Of that, written at that very moment and therefore not compared"`
	CompletedAt time.Time    `json:"completed_at,omitzero" doc:"When the last whole round that found nothing ended; missing: none has"`
	Rounds      int          `json:"rounds" doc:"Rounds that have ended"`
	Lost        []LostChange `json:"lost,omitempty" nullable:"false" doc:"What the vault had not, oldest first"`
	Problem     string       `json:"problem,omitempty" doc:"Why nothing can be compared at the moment"`
}

// LostChange is a change that the vault had not.
type LostChange struct {
	Disk    string    `json:"disk" doc:"The disk"`
	Offset  int64     `json:"offset" doc:"Where the first difference is, in bytes"`
	Bytes   int64     `json:"bytes" doc:"How much differed"`
	FoundAt time.Time `json:"found_at" doc:"When it was found"`
	Healed  bool      `json:"healed" doc:"The vault has it now"`
	Since   time.Time `json:"since,omitzero" doc:"When all was still right; missing: it was never compared before"`
}

// DiskSync is how far the copy of one disk is.
type DiskSync struct {
	ID    string `json:"id" doc:"The disk"`
	Done  int64  `json:"done_bytes" doc:"Copied in this pass"`
	Total int64  `json:"total_bytes" doc:"To be copied in this pass"`
}

// StreamMoment is a position in a stream and its time.
type StreamMoment struct {
	Timeline uint32    `json:"timeline" doc:"The timeline"`
	Position string    `json:"position" doc:"The position, 16 hexadecimal digits"`
	Time     time.Time `json:"time" doc:"The moment of the source's clock that it stands for"`
}

// Recovery is the recovered machine of an item.
type Recovery struct {
	Site          string    `json:"site" doc:"Where it runs"`
	MachineID     string    `json:"machine_id,omitempty" doc:"Its id there"`
	MachineName   string    `json:"machine_name" doc:"Its name there"`
	Power         string    `json:"power" enum:"running,off,paused,unknown" doc:"Whether it runs"`
	Point         Point     `json:"point" doc:"What it was recovered from"`
	StartedAt     time.Time `json:"started_at,omitzero" doc:"When it was started"`
	Addresses     []string  `json:"addresses,omitempty" nullable:"false" doc:"The fixed addresses that its guest was given"`
	HydratedBytes int64     `json:"hydrated_bytes" doc:"How much of its disks is local"`
	TotalBytes    int64     `json:"total_bytes" doc:"How much there is"`
	NeedsView     bool      `json:"needs_view" doc:"Whether it still reads from the vault"`
	RPOSeconds    *float64  `json:"rpo_seconds,omitempty" doc:"What was lost, as a time, when it was failed over"`
	RTOSeconds    *float64  `json:"rto_seconds,omitempty" doc:"From the request until it ran"`
}

// Protect asks for a machine to be replicated.
type Protect struct {
	Machine      string `json:"machine" minLength:"1" maxLength:"256" doc:"The machine's id or name at the source site"`
	Site         string `json:"site" minLength:"1" maxLength:"64" doc:"The source site's id or name"`
	RecoverySite string `json:"recovery_site" minLength:"1" maxLength:"64" doc:"The recovery site's id or name"`
	Name         string `json:"name,omitempty" maxLength:"64" pattern:"^([A-Za-z0-9][A-Za-z0-9._-]*)?$" doc:"The item's name; the machine's if empty"`
	Policy       Policy `json:"policy,omitzero" doc:"The item's policy; defaults where it is silent"`
}

// Failover asks for an item to be brought up at the other site.
type Failover struct {
	Option         string            `json:"option" enum:"latest,latest_processed,latest_app,point,time" doc:"Which recovery point"`
	Point          string            `json:"point,omitempty" maxLength:"128" doc:"With option point: its id or name, or a position of 16 hexadecimal digits"`
	Timeline       uint32            `json:"timeline,omitempty" doc:"With a position: its timeline; 0 for the present one"`
	Time           time.Time         `json:"time,omitzero" doc:"With option time: the newest consistent position at or before this"`
	Planned        bool              `json:"planned,omitempty" doc:"Shut the source down cleanly, bring over the rest, compare, and only then fail over: nothing is lost, or it does not happen"`
	ShutdownSource bool              `json:"shutdown_source" doc:"Ask the source machine to shut down first, so that nothing is lost; it is no error if it does not answer"`
	Networks       map[string]string `json:"networks,omitempty" doc:"By network of the source: the network of the other site that takes its place; others keep their names"`
	Addressing     Addressing        `json:"addressing,omitzero" doc:"Addresses for the recovered machine's cards; without it the guest keeps its own. They are taken back when the machine is home again"`
	TargetName     string            `json:"target_name,omitempty" maxLength:"64" pattern:"^([A-Za-z0-9][A-Za-z0-9._-]*)?$" doc:"The recovered machine's name; the source machine's if empty"`
	IfVersion      int64             `json:"if_version,omitempty" minimum:"0" doc:"Refuse if the item's version is another; 0 for any. The header If-Match says the same"`
}

// Addressing says which addresses the network cards of a machine are given in its
// guest. Cards that it does not name keep what the guest gives them.
type Addressing struct {
	By   string `json:"by,omitempty" enum:"agent,cloud_init" doc:"What does it: the guest agent, once the machine has booted, or cloud-init when it boots; the agent if empty"`
	NICs []NIC  `json:"nics" nullable:"false" maxItems:"64" doc:"The cards"`
}

// NIC says how a network card is addressed.
type NIC struct {
	Card      string   `json:"card,omitempty" maxLength:"128" doc:"Its MAC address, or the network that it is on at the source; empty: the only one"`
	Addresses []string `json:"addresses" nullable:"false" minItems:"1" maxItems:"32" doc:"dhcp alone, or addresses with the length of their network's prefix, like 10.8.0.12/24"`
	Gateways  []string `json:"gateways,omitempty" nullable:"false" maxItems:"2" doc:"At most one of each family"`
	DNS       []string `json:"dns,omitempty" nullable:"false" maxItems:"8" doc:"Addresses of DNS servers"`
}

// The options of a failover.
const (
	OptionLatest          = "latest"
	OptionLatestProcessed = "latest_processed"
	OptionLatestApp       = "latest_app"
	// The options for plans with replication groups.
	OptionLatestMulti    = "latest_multi_vm"
	OptionLatestMultiApp = "latest_multi_vm_app"
	OptionPoint          = "point"
	OptionTime           = "time"
)

// Disable asks for the protection of an item to end.
type Disable struct {
	DeleteHistory bool  `json:"delete_history,omitempty" doc:"Also delete what the vault keeps of it"`
	IfVersion     int64 `json:"if_version,omitempty" minimum:"0" doc:"Refuse if the item's version is another; 0 for any. The header If-Match says the same"`
}

// ItemList is all replicated items.
type ItemList struct {
	Items []Item `json:"items" nullable:"false" doc:"Sorted by name"`
}
