package api

import "time"

// Point is a recovery point: a position that one can recover to.
type Point struct {
	ID          string    `json:"id,omitempty" doc:"The point's id; missing for a position without a mark"`
	Name        string    `json:"name,omitempty" doc:"Its name, if it was given one"`
	Timeline    uint32    `json:"timeline" doc:"The timeline it is on"`
	Position    string    `json:"position" doc:"16 hexadecimal digits"`
	Time        time.Time `json:"time" doc:"The moment that it stands for"`
	Consistency string    `json:"consistency" enum:"crash,filesystem,app" doc:"crash: as after a power cut; filesystem: file systems were frozen; app: applications were, too"`
	Pinned      bool      `json:"pinned,omitempty" doc:"It is kept until somebody unpins it"`
}

// PinPoint asks for a recovery point to be kept, whatever the policy says.
type PinPoint struct {
	Point    string `json:"point" minLength:"1" maxLength:"128" doc:"Its id, name, or a position of 16 hexadecimal digits"`
	Timeline uint32 `json:"timeline,omitempty" doc:"With a position: the timeline; the present one if not given"`
	Unpin    bool   `json:"unpin,omitempty" doc:"Leave it to the policy again"`
}

// PointRange is a stretch of history in which every position can be recovered,
// crash-consistent.
type PointRange struct {
	Timeline uint32    `json:"timeline" doc:"The timeline it is on"`
	From     string    `json:"from" doc:"First position, 16 hexadecimal digits"`
	To       string    `json:"to" doc:"Last position, 16 hexadecimal digits"`
	FromTime time.Time `json:"from_time" doc:"Time of the first"`
	ToTime   time.Time `json:"to_time" doc:"Time of the last"`
}

// Points is all that an item can be recovered to.
type Points struct {
	Item   string       `json:"item" doc:"The item's id"`
	Newest *Point       `json:"newest,omitempty" doc:"The newest position that can be recovered; missing if none can"`
	Points []Point      `json:"points" nullable:"false" doc:"The marked points, newest first"`
	Ranges []PointRange `json:"ranges" nullable:"false" doc:"Stretches in which any moment can be recovered, newest first"`
}

// Timeline is one timeline of an item's history. A new one begins with each
// failover, and with what a machine wrote apart from the history.
type Timeline struct {
	Timeline  uint32    `json:"timeline" doc:"Its number"`
	Parent    uint32    `json:"parent,omitempty" doc:"The timeline that it began in; 0 for the first"`
	ForkAt    string    `json:"fork_at,omitempty" doc:"The position of the parent where it began"`
	Origin    string    `json:"origin" doc:"The operation and the job that it began with"`
	Until     time.Time `json:"until" doc:"When the last of it was written"`
	Newest    *Point    `json:"newest,omitempty" doc:"The newest marked point in it"`
	Current   bool      `json:"current" doc:"Replication goes on in it, or will"`
	Abandoned bool      `json:"abandoned" doc:"All of it or its end is not in the past of the current one"`
	Ended     bool      `json:"ended" doc:"Nothing can be added any more"`
	Damaged   bool      `json:"damaged" doc:"A part of it cannot be read"`
}

// Timelines are all timelines of an item's history.
type Timelines struct {
	Item      string     `json:"item" doc:"The item's name"`
	Timelines []Timeline `json:"timelines" nullable:"false" doc:"The newest first"`
}
