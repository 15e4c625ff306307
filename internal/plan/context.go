package plan

import "time"

// Context is what an action is told, as JSON: the five fields at the top
// are those of Azure Site Recovery's runbook context, by name and meaning, so
// that runbooks can be ported; the rest is under holdfast.
type Context struct {
	RecoveryPlanName  string            `json:"RecoveryPlanName"`
	FailoverType      string            `json:"FailoverType"`      // Test, Planned or Unplanned; also Reprotect, Commit and CleanUp
	FailoverDirection string            `json:"FailoverDirection"` // PrimaryToSecondary or SecondaryToPrimary
	GroupID           string            `json:"GroupId"`           // the group's name; empty around clean-up
	Members           map[string]Member `json:"VmMap"`             // by the item's id
	Holdfast          Details           `json:"holdfast"`
}

// Member is a machine of a Context. ResourceGroupName and RoleName are
// empty until the machine was brought up.
type Member struct {
	SubscriptionID    string `json:"SubscriptionId"`    // always empty
	ResourceGroupName string `json:"ResourceGroupName"` // the site where it runs
	CloudServiceName  string `json:"CloudServiceName"`  // always empty
	RoleName          string `json:"RoleName"`          // the machine's name there
	RecoveryPointID   string `json:"RecoveryPointId"`
}

// Details are what Holdfast tells an action besides.
type Details struct {
	Run       string          `json:"run"` // id of the run's job
	Version   int64           `json:"plan_version"`
	Kind      Kind            `json:"kind"`
	Direction Direction       `json:"direction"`
	Group     string          `json:"group"`
	Action    string          `json:"action"`
	Attempt   int             `json:"attempt"`
	Machines  []MachineDetail `json:"machines"`
}

// MachineDetail is a machine as an action is told of it.
type MachineDetail struct {
	Item      string    `json:"item"` // name
	ID        string    `json:"id"`   // of the item
	Group     string    `json:"group"`
	State     string    `json:"state"` // waiting, running, failed or skipped
	Site      string    `json:"site,omitempty"`
	Machine   string    `json:"machine,omitempty"` // name at that site
	MachineID string    `json:"machine_id,omitempty"`
	Point     string    `json:"point,omitempty"`
	PointTime time.Time `json:"point_time,omitzero"`
	Addresses []string  `json:"addresses,omitempty"`
}

// ASR returns how the runbook context names a kind of run.
func (k Kind) ASR() string {
	switch k {
	case Test:
		return "Test"
	case Planned:
		return "Planned"
	case Unplanned:
		return "Unplanned"
	case Reprotect:
		return "Reprotect"
	case Commit:
		return "Commit"
	default:
		return "CleanUp"
	}
}

// ASR returns how the runbook context names a direction.
func (d Direction) ASR() string {
	if d == ToPrimary {
		return "SecondaryToPrimary"
	}
	return "PrimaryToSecondary"
}
