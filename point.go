package holdfast

import (
	"fmt"
	"slices"
	"time"
)

// Consistency is what a recovered machine finds at a recovery point.
type Consistency string

// The consistencies, in rising order of comfort.
const (
	// ConsistencyCrash is the disks as after a power cut at that moment.
	ConsistencyCrash Consistency = "crash"
	// ConsistencyFilesystem is the disks with their file systems frozen.
	ConsistencyFilesystem Consistency = "filesystem"
	// ConsistencyApp is the disks with applications quiesced, too.
	ConsistencyApp Consistency = "app"
)

// rank orders consistencies.
func (c Consistency) rank() int {
	switch c {
	case ConsistencyApp:
		return 2
	case ConsistencyFilesystem:
		return 1
	default:
		return 0
	}
}

// RecoveryPoint is a position that one can recover to.
type RecoveryPoint struct {
	ID          string      `json:"id,omitempty"` // empty: a position without a mark
	Name        string      `json:"name,omitempty"`
	Timeline    TimelineID  `json:"timeline"`
	Position    Position    `json:"position"`
	Time        time.Time   `json:"time"`
	Consistency Consistency `json:"consistency"`
	// Group is the same for points of several items that are one moment; empty: it
	// is of this item alone.
	Group string `json:"group,omitempty"`
}

// PointRange is a stretch of a timeline in which every position is
// crash-consistent.
type PointRange struct {
	Timeline TimelineID `json:"timeline"`
	From     Position   `json:"from"`
	To       Position   `json:"to"`
	FromTime time.Time  `json:"from_time"`
	ToTime   time.Time  `json:"to_time"`
	// Confirmed is until when the source is known to have missed nothing: up to then
	// the range can be seen beside those of other machines. Zero: not known.
	Confirmed time.Time `json:"confirmed,omitzero"`
}

// PointOption is how the initiator of a failover chooses the recovery point.
type PointOption string

// The options.
const (
	// PointLatest takes everything that has arrived: nothing that was replicated
	// when the failover was asked for is lost. The default.
	PointLatest PointOption = "latest"
	// PointLatestProcessed takes the newest point that is already listed, and
	// spends no time on what arrived after it.
	PointLatestProcessed PointOption = "latest_processed"
	// PointLatestApp takes the newest listed application-consistent point.
	PointLatestApp PointOption = "latest_app"
	// PointChosen takes the point that was named.
	PointChosen PointOption = "point"
	// PointTime takes the newest consistent position at or before a time.
	PointTime PointOption = "time"
)

// PointRequest is a choice of recovery point as it was asked for.
type PointRequest struct {
	Option   PointOption `json:"option"`             // empty means latest
	Point    string      `json:"point,omitempty"`    // PointChosen: id, name, or a position of 16 hexadecimal digits
	Timeline TimelineID  `json:"timeline,omitempty"` // with a position; 0 means the item's present one
	Time     time.Time   `json:"time,omitzero"`      // PointTime
}

// Validate reports what is missing from or contradictory in the request, as an
// *Error of kind invalid.
func (r PointRequest) Validate() error {
	invalid := func(cause, hint string) error {
		return &Error{Kind: KindInvalid, Op: "choose recovery point", Cause: cause, Hint: hint}
	}
	switch r.Option {
	case "", PointLatest, PointLatestProcessed, PointLatestApp:
		if r.Point != "" || !r.Time.IsZero() {
			return invalid("a point or a time was given with an option that takes neither", "Give option point or time, or leave them out")
		}
	case PointChosen:
		if r.Point == "" {
			return invalid("option point names no point", "List the item's recovery points and give the id of one")
		}
	case PointTime:
		if r.Time.IsZero() {
			return invalid("option time gives no time", "Give the moment that you want to go back to")
		}
	default:
		return invalid(fmt.Sprintf("%q is not an option", string(r.Option)), "Give latest, latest_processed, latest_app, point or time")
	}
	return nil
}

// History is what an item can be recovered to: the input of ResolvePoint.
type History struct {
	Timeline TimelineID // the present one
	Points   []RecoveryPoint
	Ranges   []PointRange
	// Lookup finds the newest consistent position of the present timeline at or
	// before a time. Nil: only points and the ends of ranges are known.
	Lookup func(at time.Time) (Position, bool)
	// TimeOf returns the time of a position of the present timeline. Nil: it is
	// estimated.
	TimeOf func(Position) (time.Time, bool)
}

// Resolution is what a PointRequest comes to.
type Resolution struct {
	Point RecoveryPoint `json:"point"`
	// New says that the position bears no mark yet: the failover lists it as a
	// point before it uses it.
	New bool `json:"new"`
	// Behind is how much older the point is than the newest recoverable position.
	Behind time.Duration `json:"behind"`
	// Warning says in words what recovering to it gives up; empty if nothing.
	Warning string `json:"warning,omitempty"`
}

// Newest returns the newest recoverable position of the present timeline:
// the listed point that stands there, or else a crash-consistent one without id.
func (h History) Newest() (RecoveryPoint, bool) {
	best, ok := h.newestPoint(func(RecoveryPoint) bool { return true })
	for _, r := range h.Ranges {
		if r.Timeline == h.Timeline && (!ok || r.To > best.Position) {
			best, ok = RecoveryPoint{Timeline: r.Timeline, Position: r.To, Time: r.ToTime, Consistency: ConsistencyCrash}, true
		}
	}
	return best, ok
}

// newestPoint returns the point of the present timeline with the highest
// position among those that are wanted; of two at one position the more
// consistent.
func (h History) newestPoint(want func(RecoveryPoint) bool) (RecoveryPoint, bool) {
	var best RecoveryPoint
	found := false
	for _, p := range h.Points {
		if p.Timeline != h.Timeline || !want(p) {
			continue
		}
		if !found || p.Position > best.Position ||
			p.Position == best.Position && p.Consistency.rank() > best.Consistency.rank() {
			best, found = p, true
		}
	}
	return best, found
}

// ResolvePoint turns a request into one recovery point. It fails with an
// *Error of kind invalid if the request is wrong, and not_found if there is no
// such point, with what could be taken instead.
func ResolvePoint(req PointRequest, h History) (Resolution, error) {
	if err := req.Validate(); err != nil {
		return Resolution{}, err
	}
	newest, ok := h.Newest()
	if !ok {
		return Resolution{}, &Error{Kind: KindNotFound, Op: "choose recovery point",
			Cause: "the vault holds no recoverable position of this item yet",
			Hint:  "Wait until the initial replication has finished and the first recovery point is listed"}
	}
	point, err := pick(req, h, newest)
	if err != nil {
		return Resolution{}, err
	}
	res := Resolution{Point: point, New: point.ID == ""}
	if d := newest.Time.Sub(point.Time); d > 0 {
		res.Behind = d
		res.Warning = fmt.Sprintf("this point is %s older than the newest recoverable position: what was written since is not in it", d.Round(time.Second))
		if d < time.Second {
			res.Warning = "" // not worth a warning: within what a marker takes
		}
	}
	return res, nil
}

func pick(req PointRequest, h History, newest RecoveryPoint) (RecoveryPoint, error) {
	missing := func(cause, hint string) (RecoveryPoint, error) {
		return RecoveryPoint{}, &Error{Kind: KindNotFound, Op: "choose recovery point", Cause: cause, Hint: hint}
	}
	switch req.Option {
	case PointLatestProcessed:
		p, ok := h.newestPoint(func(RecoveryPoint) bool { return true })
		if !ok {
			return missing("no recovery point is listed yet", "Use option latest, which makes one of what has arrived, or wait for the next point")
		}
		return p, nil
	case PointLatestApp:
		p, ok := h.newestPoint(func(p RecoveryPoint) bool { return p.Consistency == ConsistencyApp })
		if !ok {
			return missing("the item has no application-consistent recovery point", "Use option latest, or switch application-consistent points on in the policy and wait for one")
		}
		return p, nil
	case PointChosen:
		return chosen(req, h)
	case PointTime:
		return atTime(req.Time, h, newest)
	default:
		return newest, nil
	}
}

// chosen finds a point by id, by name, and by position, in that order.
func chosen(req PointRequest, h History) (RecoveryPoint, error) {
	notFound := func(cause string) (RecoveryPoint, error) {
		return RecoveryPoint{}, &Error{Kind: KindNotFound, Op: "choose recovery point", Thing: req.Point, Cause: cause,
			Hint: "List the item's recovery points and choose one of them; points are removed when the policy no longer keeps them"}
	}
	if i := slices.IndexFunc(h.Points, func(p RecoveryPoint) bool { return p.ID == req.Point }); i >= 0 {
		return h.Points[i], nil
	}
	var named []RecoveryPoint
	for _, p := range h.Points {
		if p.Name == req.Point {
			named = append(named, p)
		}
	}
	switch len(named) {
	case 1:
		return named[0], nil
	case 0:
	default:
		return RecoveryPoint{}, &Error{Kind: KindInvalid, Op: "choose recovery point", Thing: req.Point,
			Cause: fmt.Sprintf("%d points have this name", len(named)), Hint: "Give the id of one of them"}
	}
	pos, err := ParsePosition(req.Point)
	if err != nil || len(req.Point) != 16 {
		return notFound("the item has no recovery point of this id or name")
	}
	tl := req.Timeline
	if tl == 0 {
		tl = h.Timeline
	}
	for _, p := range h.Points {
		if p.Timeline == tl && p.Position == pos {
			return p, nil
		}
	}
	for _, r := range h.Ranges {
		if r.Timeline == tl && r.From <= pos && pos <= r.To {
			return RecoveryPoint{Timeline: tl, Position: pos, Time: h.timeWithin(r, pos), Consistency: ConsistencyCrash}, nil
		}
	}
	return notFound("the vault keeps no consistent view of this position")
}

// timeWithin returns the time of a position in a range. Where only the ends are
// known, a position between them is given the time of the range's start, so that a
// recovered machine is never taken for newer than it is.
func (h History) timeWithin(r PointRange, pos Position) time.Time {
	if h.TimeOf != nil && r.Timeline == h.Timeline {
		if t, ok := h.TimeOf(pos); ok {
			return t
		}
	}
	if pos == r.To {
		return r.ToTime
	}
	return r.FromTime
}

func atTime(at time.Time, h History, newest RecoveryPoint) (RecoveryPoint, error) {
	if !at.Before(newest.Time) {
		return newest, nil
	}
	best, ok := h.newestPoint(func(p RecoveryPoint) bool { return !p.Time.After(at) })
	for _, r := range h.Ranges {
		if r.Timeline != h.Timeline || r.FromTime.After(at) {
			continue
		}
		c := RecoveryPoint{Timeline: r.Timeline, Position: r.From, Time: r.FromTime, Consistency: ConsistencyCrash}
		switch pos, found := h.lookup(at); {
		case !r.ToTime.After(at):
			c.Position, c.Time = r.To, r.ToTime
		case found && r.From <= pos && pos <= r.To:
			c.Position, c.Time = pos, at
		}
		if !ok || c.Position > best.Position {
			best, ok = c, true
		}
	}
	if !ok {
		oldest := h.oldest()
		return RecoveryPoint{}, &Error{Kind: KindNotFound, Op: "choose recovery point", Thing: at.UTC().Format(time.RFC3339),
			Cause: "the item's history does not reach back to this time",
			Hint:  "Choose a time from " + oldest.UTC().Format(time.RFC3339) + " on"}
	}
	return best, nil
}

func (h History) lookup(at time.Time) (Position, bool) {
	if h.Lookup == nil {
		return 0, false
	}
	return h.Lookup(at)
}

// oldest returns the time of the oldest thing on the present timeline.
func (h History) oldest() time.Time {
	var t time.Time
	take := func(c time.Time) {
		if t.IsZero() || c.Before(t) {
			t = c
		}
	}
	for _, p := range h.Points {
		if p.Timeline == h.Timeline {
			take(p.Time)
		}
	}
	for _, r := range h.Ranges {
		if r.Timeline == h.Timeline {
			take(r.FromTime)
		}
	}
	return t
}
