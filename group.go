package holdfast

import "time"

// MaxGroup is how many items a replication group may have.
const MaxGroup = 64

// Stretch is a time in which a machine can be seen beside others: at each moment
// of it, its position up to that moment and theirs are one moment for all.
type Stretch struct{ From, To time.Time }

// CommonMoment returns the newest moment, not after at, that lies in a stretch of
// every member; false if there is none. Zero at: the newest of all. Each member's
// stretches are in order.
func CommonMoment(members [][]Stretch, at time.Time) (time.Time, bool) {
	if len(members) == 0 {
		return time.Time{}, false
	}
	t := at
	for _, stretches := range members {
		if len(stretches) == 0 {
			return time.Time{}, false
		}
		if newest := stretches[len(stretches)-1].To; t.IsZero() || newest.Before(t) {
			t = newest
		}
	}
	for moved := true; moved; {
		moved = false
		for _, stretches := range members {
			next, ok := atOrBefore(stretches, t)
			if !ok {
				return time.Time{}, false
			}
			if next.Before(t) {
				t, moved = next, true
			}
		}
	}
	return t, true
}

// atOrBefore returns the newest moment of stretches that is not after t.
func atOrBefore(stretches []Stretch, t time.Time) (time.Time, bool) {
	for i := len(stretches) - 1; i >= 0; i-- {
		s := stretches[i]
		switch {
		case s.From.After(t):
		case s.To.Before(t):
			return s.To, true
		default:
			return t, true
		}
	}
	return time.Time{}, false
}
