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
