package holdfast_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast"
)

const hour, day = time.Hour, 24 * time.Hour

// asr is the retention of 15 days that the founding documents describe.
func asr() holdfast.Retention {
	return holdfast.Retention{Window: 2 * hour, Tiers: []holdfast.Tier{{Until: 7 * day, Every: 2 * hour}, {Until: 15 * day, Every: 4 * hour}}}
}

// series returns a point every step for a span that ends at t0.
func series(span, step time.Duration) []holdfast.RecoveryPoint {
	var points []holdfast.RecoveryPoint
	for d := time.Duration(0); d <= span; d += step {
		points = append(points, holdfast.RecoveryPoint{ID: fmt.Sprint("p", d), Timeline: 1,
			Position: holdfast.Position(1_000_000 - d/time.Minute), Time: t0.Add(-d), Consistency: holdfast.ConsistencyCrash})
	}
	return points
}

func kept(verdicts []holdfast.Verdict) []holdfast.RecoveryPoint {
	var points []holdfast.RecoveryPoint
	for _, v := range verdicts {
		if v.Keep {
			points = append(points, v.Point)
		}
	}
	return points
}

func TestRetentionTiers(t *testing.T) {
	t.Parallel()
	points := series(20*day, 5*time.Minute)
	verdicts := asr().Decide(points, nil, t0)
	if len(verdicts) != len(points) {
		t.Fatalf("%d verdicts on %d points", len(verdicts), len(points))
	}
	count := map[string]int{}
	for _, v := range verdicts {
		if v.Reason == "" {
			t.Fatalf("point %s: no reason", v.Point.ID)
		}
		age := t0.Sub(v.Point.Time)
		switch {
		case !v.Keep:
		case age <= 2*hour:
			count["window"]++
		case age <= 7*day:
			count["tier 1"]++
		case age <= 15*day:
			count["tier 2"]++
		default:
			count["beyond"]++
		}
	}
	// 24 in two hours and the newest; then 166 h and 192 h in stretches of two
	// and four hours, of which one more can be cut in two by a tier's edge.
	want := map[string]int{"window": 25, "tier 1": 83, "tier 2": 48}
	for k, n := range want {
		if d := count[k] - n; d < 0 || d > 1 {
			t.Errorf("%s: kept %d, want %d or one more", k, count[k], n)
		}
	}
	if count["beyond"] != 0 {
		t.Errorf("kept %d beyond the last tier", count["beyond"])
	}
}

func TestRetentionCases(t *testing.T) {
	t.Parallel()
	window := holdfast.Retention{Window: hour}
	crash := func(id string, ago time.Duration) holdfast.RecoveryPoint {
		return holdfast.RecoveryPoint{ID: id, Timeline: 1, Time: t0.Add(-ago), Consistency: holdfast.ConsistencyCrash}
	}
	app := func(id string, ago time.Duration) holdfast.RecoveryPoint {
		p := crash(id, ago)
		p.Consistency = holdfast.ConsistencyApp
		return p
	}
	tests := []struct {
		name      string
		retention holdfast.Retention
		points    []holdfast.RecoveryPoint
		pins      map[string]string
		now       time.Time
		want      string // kept, newest first
	}{
		{"nothing", window, nil, nil, t0, ""},
		{"the newest stays however old", window, []holdfast.RecoveryPoint{crash("a", 100*day)}, nil, t0, "a"},
		{"none expires while none is made", window, []holdfast.RecoveryPoint{crash("a", 10*day), crash("b", 10*day+30*time.Minute), crash("c", 10*day+2*hour)}, nil, t0, "a b"},
		{"a point from the future expires none", window, []holdfast.RecoveryPoint{crash("f", -50*day), crash("a", 0), crash("b", 30*time.Minute), crash("c", 2*hour)}, nil, t0, "f a b"},
		{"the edge of the window is in it", window, []holdfast.RecoveryPoint{crash("a", 0), crash("b", hour), crash("c", hour+1)}, nil, t0, "a b"},
		{"a pin holds", window, []holdfast.RecoveryPoint{crash("a", 0), crash("b", 9*day)}, map[string]string{"b": "a failover uses it"}, t0, "a b"},
		{"a point without id is not pinned by \"\"", window, []holdfast.RecoveryPoint{crash("a", 0), crash("", 9*day)}, map[string]string{"": "x"}, t0, "a"},
		{"application-consistent points stand for their stretch", asr(),
			[]holdfast.RecoveryPoint{crash("new", 0), crash("a", 24*hour+10*time.Minute), app("b", 24*hour+20*time.Minute), crash("c", 24*hour+40*time.Minute)}, nil, t0.Add(hour), "new b"},
		{"of equals the first does", asr(), []holdfast.RecoveryPoint{crash("new", 0), crash("a", 25*hour), crash("b", 25*hour+20*time.Minute)}, nil, t0, "new b"},
		{"the zero value keeps a day", holdfast.Retention{}, []holdfast.RecoveryPoint{crash("a", 0), crash("b", 23*hour), crash("c", 25*hour)}, nil, t0, "a b"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var got []string
			for _, p := range kept(tt.retention.Decide(tt.points, tt.pins, tt.now)) {
				got = append(got, p.ID)
			}
			if diff := cmp.Diff(tt.want, strings.Join(got, " ")); diff != "" {
				t.Errorf("kept (-want +got):\n%s", diff)
			}
		})
	}
}

// TestRetentionProperties: deciding again changes nothing; a gap among what is
// kept is never longer than two stretches; input is not changed.
func TestRetentionProperties(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 50 {
		var points []holdfast.RecoveryPoint
		for d := time.Duration(0); d < 16*day; d += time.Duration(rng.Int64N(int64(40 * time.Minute))) {
			c := []holdfast.Consistency{holdfast.ConsistencyCrash, holdfast.ConsistencyFilesystem, holdfast.ConsistencyApp}[rng.IntN(3)]
			points = append(points, holdfast.RecoveryPoint{ID: fmt.Sprint(d), Timeline: 1, Time: t0.Add(-d), Consistency: c})
		}
		rng.Shuffle(len(points), func(i, j int) { points[i], points[j] = points[j], points[i] })
		before := append([]holdfast.RecoveryPoint{}, points...)
		once := kept(asr().Decide(points, nil, t0))
		if diff := cmp.Diff(before, points); diff != "" {
			t.Fatalf("round %d: input was changed", round)
		}
		if twice := kept(asr().Decide(once, nil, t0)); len(twice) != len(once) {
			t.Fatalf("round %d: kept %d, then %d", round, len(once), len(twice))
		}
		for i := 1; i < len(once); i++ {
			every := 40 * time.Minute
			switch age := t0.Sub(once[i].Time); {
			case age > 7*day:
				every = 4 * hour
			case age > 2*hour:
				every = 2 * hour
			}
			if gap := once[i-1].Time.Sub(once[i].Time); gap > 2*every+40*time.Minute {
				t.Fatalf("round %d: gap of %s at an age of %s", round, gap, t0.Sub(once[i].Time))
			}
		}
	}
}

func TestPolicyValidate(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		policy holdfast.Policy
		field  string // "": valid
	}{
		{"zero", holdfast.Policy{}, ""},
		{"default", holdfast.DefaultPolicy(), ""},
		{"tiers", holdfast.Policy{Retention: asr()}, ""},
		{"rpo too short", holdfast.Policy{RPOThreshold: time.Millisecond}, "rpo_threshold"},
		{"rpo negative", holdfast.Policy{RPOThreshold: -5}, "rpo_threshold"},
		{"points never", holdfast.Policy{PointInterval: holdfast.Never}, "point_interval"},
		{"app never", holdfast.Policy{AppPointInterval: holdfast.Never}, ""},
		{"app rarer than history", holdfast.Policy{AppPointInterval: 3 * day}, "app_point_interval"},
		{"app within history", holdfast.Policy{AppPointInterval: 3 * day, Retention: asr()}, ""},
		{"stall too long", holdfast.Policy{StallLimit: hour}, "stall_limit"},
		{"tests never", holdfast.Policy{TestEvery: holdfast.Never}, ""},
		{"window too long", holdfast.Policy{Retention: holdfast.Retention{Window: 400 * day}}, "retention window"},
		{"window negative", holdfast.Policy{Retention: holdfast.Retention{Window: holdfast.Never}}, "retention window"},
		{"tier within window", holdfast.Policy{Retention: holdfast.Retention{Window: day, Tiers: []holdfast.Tier{{Until: hour, Every: hour}}}}, "retention tier 1"},
		{"tiers out of order", holdfast.Policy{Retention: holdfast.Retention{Window: hour, Tiers: []holdfast.Tier{{Until: 3 * day, Every: hour}, {Until: 2 * day, Every: hour}}}}, "retention tier 2"},
		{"tier gets denser", holdfast.Policy{Retention: holdfast.Retention{Window: hour, Tiers: []holdfast.Tier{{Until: 2 * day, Every: 2 * hour}, {Until: 3 * day, Every: hour}}}}, "retention tier 2"},
		{"tier without step", holdfast.Policy{Retention: holdfast.Retention{Window: hour, Tiers: []holdfast.Tier{{Until: day}}}}, "retention tier 1"},
		{"tier for ever", holdfast.Policy{Retention: holdfast.Retention{Window: hour, Tiers: []holdfast.Tier{{Until: 1 << 62, Every: hour}}}}, "retention tier 1"},
		{"too many tiers", holdfast.Policy{Retention: holdfast.Retention{Tiers: make([]holdfast.Tier, 17)}}, "retention tiers"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			err := tt.policy.Validate()
			if tt.field == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if holdfast.KindOf(err) != holdfast.KindInvalid || !strings.Contains(err.Error(), tt.field) || holdfast.HintOf(err) == "" {
				t.Errorf("got %v, want invalid %s", err, tt.field)
			}
		})
	}
}

func TestPolicyJSON(t *testing.T) {
	t.Parallel()
	p := holdfast.Policy{RPOThreshold: 90 * time.Second, AppPointInterval: holdfast.Never, Retention: asr()}
	data, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"rpo_threshold":"1m30s","app_point_interval":"never","retention":{"window":"2h0m0s","tiers":[{"until":"168h0m0s","every":"2h0m0s"},{"until":"360h0m0s","every":"4h0m0s"}]}}`
	if string(data) != want {
		t.Errorf("got  %s\nwant %s", data, want)
	}
	var back holdfast.Policy
	if err := json.Unmarshal(data, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p, back); diff != "" {
		t.Errorf("round trip (-want +got):\n%s", diff)
	}
	for _, bad := range []string{`{"rpo_threshold":"soon"}`, `{"rpo_threshold":7}`, `{"retention":{"window":"x"}}`, `{"retention":{"tiers":[{"until":"x"}]}}`, `{"retention":{"tiers":[{"until":"1h","every":"x"}]}}`} {
		if err := json.Unmarshal([]byte(bad), &back); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
}
