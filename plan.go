package holdfast

import "time"

// RecoveryPlan is a plan as it is kept: its text, and how its last runs went.
// What the text means is package plan's.
type RecoveryPlan struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	Text string `json:"text"`
	// Revision counts the texts: 1 for the first. Version counts every change of
	// the record.
	Revision  int64     `json:"revision"`
	AppliedAt time.Time `json:"applied_at"`
	AppliedBy string    `json:"applied_by,omitempty"` // name of a token
	Runs      []PlanRun `json:"runs,omitempty"`       // the last of each kind
	Record
}

// PlanRun is how a run of a plan went.
type PlanRun struct {
	Job       string    `json:"job"`
	Kind      string    `json:"kind"`
	Direction string    `json:"direction"`
	Revision  int64     `json:"revision"` // of the plan
	StartedAt time.Time `json:"started_at"`
	EndedAt   time.Time `json:"ended_at"`
	Outcome   string    `json:"outcome"` // succeeded, partial, failed or cancelled
	Drill     bool      `json:"drill,omitempty"`
}

// WithRun returns the plan with a run in place of the last of its kind.
func (p RecoveryPlan) WithRun(r PlanRun) RecoveryPlan {
	runs := []PlanRun{r}
	for _, o := range p.Runs {
		if o.Kind != r.Kind {
			runs = append(runs, o)
		}
	}
	p.Runs = runs
	return p
}

// PlanText is one revision of a plan's text.
type PlanText struct {
	Revision  int64
	AppliedAt time.Time
	Text      string
}
