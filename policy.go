package holdfast

import (
	"encoding/json"
	"fmt"
	"time"
)

// The bounds of a policy's durations.
const (
	maxRPOThreshold = 7 * 24 * time.Hour
	maxInterval     = 7 * 24 * time.Hour
	maxHistory      = 365 * 24 * time.Hour
)

// Policy is how an item is replicated, for how long its past is kept, and what
// counts as trouble. The zero value of a field means its default.
type Policy struct {
	// RPOThreshold is the RPO above which there is a finding. It changes nothing
	// else. Default 60 s.
	RPOThreshold time.Duration
	// PointInterval is how often a crash-consistent recovery point is marked.
	// Default 5 min.
	PointInterval time.Duration
	// AppPointInterval is how often an application-consistent point is made;
	// Never: not at all. Default Never.
	AppPointInterval time.Duration
	// StallLimit bounds how long a write of the guest may wait for a gateway
	// that does not answer before the gateway is cut off. Default 5 s.
	StallLimit time.Duration
	// TestEvery is how old the last successful test failover may become before
	// there is a finding. Default 90 days.
	TestEvery time.Duration
	// Retention is what is kept of the past.
	Retention Retention
}

// Never is a duration that switches off what it paces.
const Never time.Duration = -1

// DefaultPolicy returns the policy of an item for which nothing was said.
func DefaultPolicy() Policy { return Policy{}.WithDefaults() }

// WithDefaults returns the policy with each zero field set to its default.
func (p Policy) WithDefaults() Policy {
	set := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	set(&p.RPOThreshold, time.Minute)
	set(&p.PointInterval, 5*time.Minute)
	set(&p.AppPointInterval, Never)
	set(&p.StallLimit, 5*time.Second)
	set(&p.TestEvery, 90*24*time.Hour)
	p.Retention = p.Retention.WithDefaults()
	return p
}

// Validate reports the first field that is out of bounds, as an *Error of kind
// invalid. Zero fields are judged by their defaults.
func (p Policy) Validate() error {
	p = p.WithDefaults()
	checks := []struct {
		field    string
		value    time.Duration
		min, max time.Duration
		never    bool
	}{
		{"rpo_threshold", p.RPOThreshold, time.Second, maxRPOThreshold, false},
		{"point_interval", p.PointInterval, time.Second, maxInterval, false},
		{"app_point_interval", p.AppPointInterval, time.Minute, maxInterval, true},
		{"stall_limit", p.StallLimit, 100 * time.Millisecond, time.Minute, false},
		{"test_every", p.TestEvery, time.Hour, maxHistory, true},
	}
	for _, c := range checks {
		if c.never && c.value == Never {
			continue
		}
		if c.value < c.min || c.value > c.max {
			return invalidPolicy(c.field, fmt.Sprintf("%s is outside of %s to %s", c.value, c.min, c.max),
				fmt.Sprintf("Give a duration from %s to %s", c.min, c.max))
		}
	}
	if err := p.Retention.Validate(); err != nil {
		return err
	}
	// A point made less often than history is kept for would always be gone
	// before the next one is there.
	if p.AppPointInterval != Never && p.AppPointInterval > p.Retention.Reach() {
		return invalidPolicy("app_point_interval",
			fmt.Sprintf("%s is longer than history is kept, %s", p.AppPointInterval, p.Retention.Reach()),
			"Make application-consistent points more often, or keep history for longer")
	}
	return nil
}

func invalidPolicy(field, cause, hint string) error {
	return &Error{Kind: KindInvalid, Op: "check policy", Thing: field, Cause: cause, Hint: hint}
}

// policyJSON is a policy with durations as people write them.
type policyJSON struct {
	RPOThreshold     string    `json:"rpo_threshold,omitempty"`
	PointInterval    string    `json:"point_interval,omitempty"`
	AppPointInterval string    `json:"app_point_interval,omitempty"`
	StallLimit       string    `json:"stall_limit,omitempty"`
	TestEvery        string    `json:"test_every,omitempty"`
	Retention        Retention `json:"retention"`
}

// MarshalJSON writes durations as "1m30s", Never as "never", and leaves zero
// ones out.
func (p Policy) MarshalJSON() ([]byte, error) {
	return json.Marshal(policyJSON{
		RPOThreshold: formatDuration(p.RPOThreshold), PointInterval: formatDuration(p.PointInterval),
		AppPointInterval: formatDuration(p.AppPointInterval), StallLimit: formatDuration(p.StallLimit),
		TestEvery: formatDuration(p.TestEvery), Retention: p.Retention,
	})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (p *Policy) UnmarshalJSON(data []byte) error {
	var j policyJSON
	if err := json.Unmarshal(data, &j); err != nil {
		return err
	}
	var out Policy
	out.Retention = j.Retention
	for _, f := range []struct {
		name, text string
		to         *time.Duration
	}{
		{"rpo_threshold", j.RPOThreshold, &out.RPOThreshold},
		{"point_interval", j.PointInterval, &out.PointInterval},
		{"app_point_interval", j.AppPointInterval, &out.AppPointInterval},
		{"stall_limit", j.StallLimit, &out.StallLimit},
		{"test_every", j.TestEvery, &out.TestEvery},
	} {
		if err := parseDuration(f.text, f.to); err != nil {
			return fmt.Errorf("policy: %s: %w", f.name, err)
		}
	}
	*p = out
	return nil
}

func formatDuration(d time.Duration) string {
	switch d {
	case 0:
		return ""
	case Never:
		return "never"
	default:
		return d.String()
	}
}

func parseDuration(text string, to *time.Duration) error {
	switch text {
	case "":
		*to = 0
		return nil
	case "never":
		*to = Never
		return nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return err
	}
	*to = d
	return nil
}
