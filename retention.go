package holdfast

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// Retention is what is kept of an item's past: every position in the recent
// window, then points thinned by tiers. The zero value means the default.
type Retention struct {
	// Window is for how long every position, hence every point, is kept.
	// Default 24 h.
	Window time.Duration
	// Tiers thin the points older than Window, in rising order of Until. Points
	// older than the last tier are removed. Default none: nothing is kept
	// beyond the window.
	Tiers []Tier
}

// Tier keeps one point for each Every among those not older than Until.
type Tier struct {
	Until time.Duration
	Every time.Duration
}

// WithDefaults returns the retention with a zero window set to its default.
func (r Retention) WithDefaults() Retention {
	if r.Window == 0 {
		r.Window = 24 * time.Hour
	}
	return r
}

// Reach returns how far back points are kept.
func (r Retention) Reach() time.Duration {
	r = r.WithDefaults()
	if n := len(r.Tiers); n > 0 {
		return max(r.Window, r.Tiers[n-1].Until)
	}
	return r.Window
}

// Validate reports the first thing wrong with it, as an *Error of kind invalid.
func (r Retention) Validate() error {
	r = r.WithDefaults()
	if r.Window < time.Minute || r.Window > maxHistory {
		return invalidPolicy("retention window", fmt.Sprintf("%s is outside of %s to %s", r.Window, time.Minute, maxHistory),
			fmt.Sprintf("Give a duration from %s to %s", time.Minute, maxHistory))
	}
	if len(r.Tiers) > 16 {
		return invalidPolicy("retention tiers", fmt.Sprintf("there are %d tiers", len(r.Tiers)), "Give at most 16")
	}
	last, every := r.Window, time.Duration(0)
	for i, t := range r.Tiers {
		name := fmt.Sprintf("retention tier %d", i+1)
		switch {
		case t.Until <= last:
			return invalidPolicy(name, fmt.Sprintf("it ends at %s, not after what comes before it, %s", t.Until, last), "List tiers in rising order, the first ending after the window")
		case t.Until > 10*maxHistory:
			return invalidPolicy(name, fmt.Sprintf("%s is longer than %s", t.Until, 10*maxHistory), "Give a shorter duration")
		case t.Every < time.Minute || t.Every < every || t.Every > t.Until:
			return invalidPolicy(name, fmt.Sprintf("it keeps a point for every %s", t.Every), "Give at least one minute, not less than the tier before it, and not more than the tier's own end")
		}
		last, every = t.Until, t.Every
	}
	return nil
}

// Verdict is what retention decides for one point, and why.
type Verdict struct {
	Point  RecoveryPoint
	Keep   bool
	Reason string
}

// Decide says of each point whether it is kept, newest first, with the reason.
// Pins are points that something needs, by id, with the reason.
//
// Age counts from the newest point, not from now, unless that lies in the
// future: if no new point can be made, none of the old ones expires. The newest
// point is always kept. In a tier the stretches of time are fixed, not counted
// from now, and the first of the most consistent points in each is kept, so
// that deciding again about what was kept removes nothing more until time
// has gone on.
func (r Retention) Decide(points []RecoveryPoint, pins map[string]string, now time.Time) []Verdict {
	r = r.WithDefaults()
	sorted := slices.Clone(points)
	slices.SortStableFunc(sorted, func(a, b RecoveryPoint) int {
		return cmp.Or(b.Time.Compare(a.Time), cmp.Compare(b.Timeline, a.Timeline), cmp.Compare(b.Position, a.Position))
	})
	if len(sorted) == 0 {
		return nil
	}
	reference := sorted[0].Time
	if reference.After(now) {
		reference = now
	}
	chosen := r.chooseInTiers(sorted, reference)
	verdicts := make([]Verdict, len(sorted))
	for i, p := range sorted {
		v := Verdict{Point: p}
		age := reference.Sub(p.Time)
		tier, slot, inTier := r.slot(p, reference)
		switch pin, pinned := pins[p.ID]; {
		case i == 0:
			v.Keep, v.Reason = true, "it is the newest point"
		case pinned && p.ID != "":
			v.Keep, v.Reason = true, "it is needed: "+pin
		case age <= r.Window:
			v.Keep, v.Reason = true, fmt.Sprintf("it is within the window of %s", r.Window)
		case !inTier:
			v.Reason = fmt.Sprintf("it is older than %s", r.Reach())
		case chosen[slot] == i:
			v.Keep, v.Reason = true, fmt.Sprintf("it stands for its stretch of %s", r.Tiers[tier].Every)
		default:
			v.Reason = fmt.Sprintf("another point stands for its stretch of %s", r.Tiers[tier].Every)
		}
		verdicts[i] = v
	}
	return verdicts
}

// slotKey names one stretch of time of one tier.
type slotKey struct {
	tier  int
	start int64
}

// slot returns the tier and the stretch that a point falls in.
func (r Retention) slot(p RecoveryPoint, reference time.Time) (tier int, key slotKey, ok bool) {
	age := reference.Sub(p.Time)
	if age <= r.Window {
		return 0, slotKey{}, false
	}
	for i, t := range r.Tiers {
		if age <= t.Until {
			return i, slotKey{i, p.Time.Truncate(t.Every).UnixNano()}, true
		}
	}
	return 0, slotKey{}, false
}

// chooseInTiers returns for each stretch the index of the point that stands
// for it. Points come newest first.
func (r Retention) chooseInTiers(points []RecoveryPoint, reference time.Time) map[slotKey]int {
	chosen := map[slotKey]int{}
	for i, p := range points {
		_, key, ok := r.slot(p, reference)
		if !ok {
			continue
		}
		if j, taken := chosen[key]; !taken || p.Consistency.rank() >= points[j].Consistency.rank() {
			chosen[key] = i
		}
	}
	return chosen
}

type retentionJSON struct {
	Window string     `json:"window,omitempty"`
	Tiers  []tierJSON `json:"tiers,omitempty"`
}

type tierJSON struct {
	Until string `json:"until"`
	Every string `json:"every"`
}

// MarshalJSON writes durations as "24h0m0s".
func (r Retention) MarshalJSON() ([]byte, error) {
	j := retentionJSON{Window: formatDuration(r.Window)}
	for _, t := range r.Tiers {
		j.Tiers = append(j.Tiers, tierJSON{formatDuration(t.Until), formatDuration(t.Every)})
	}
	return json.Marshal(j)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (r *Retention) UnmarshalJSON(data []byte) error {
	var j retentionJSON
	if err := json.Unmarshal(data, &j); err != nil {
		return err
	}
	var out Retention
	if err := parseDuration(j.Window, &out.Window); err != nil {
		return fmt.Errorf("retention: window: %w", err)
	}
	for i, t := range j.Tiers {
		var tier Tier
		if err := parseDuration(t.Until, &tier.Until); err != nil {
			return fmt.Errorf("retention: tier %d: %w", i+1, err)
		}
		if err := parseDuration(t.Every, &tier.Every); err != nil {
			return fmt.Errorf("retention: tier %d: %w", i+1, err)
		}
		out.Tiers = append(out.Tiers, tier)
	}
	*r = out
	return nil
}
