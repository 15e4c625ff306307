package holdfast_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast"
)

func at(minutes float64) time.Time { return t0.Add(time.Duration(minutes * float64(time.Minute))) }

func point(id string, tl holdfast.TimelineID, pos holdfast.Position, minutes float64, c holdfast.Consistency) holdfast.RecoveryPoint {
	return holdfast.RecoveryPoint{ID: id, Timeline: tl, Position: pos, Time: at(minutes), Consistency: c}
}

// history is one of a machine that was failed over once: timeline 1 is the old one.
func history() holdfast.History {
	const crash, app = holdfast.ConsistencyCrash, holdfast.ConsistencyApp
	named := point("n", 2, 150, 15, crash)
	named.Name = "before-upgrade"
	twin1, twin2 := point("t1", 2, 160, 16, crash), point("t2", 2, 170, 17, crash)
	twin1.Name, twin2.Name = "nightly", "nightly"
	return holdfast.History{
		Timeline: 2,
		Points: []holdfast.RecoveryPoint{
			point("old", 1, 500, 1, app), point("a", 2, 100, 10, crash), point("b", 2, 140, 14, app), named, twin1, twin2, point("c", 2, 200, 20, crash),
		},
		Ranges: []holdfast.PointRange{
			{Timeline: 1, From: 1, To: 500, FromTime: at(0), ToTime: at(1)},
			{Timeline: 2, From: 90, To: 180, FromTime: at(9), ToTime: at(18)},
			{Timeline: 2, From: 190, To: 230, FromTime: at(19), ToTime: at(23)},
		},
		Lookup: func(t time.Time) (holdfast.Position, bool) { // 10 positions a minute
			return holdfast.Position(t.Sub(t0).Minutes() * 10), true
		},
	}
}

func TestResolvePoint(t *testing.T) {
	t.Parallel()
	h := history()
	noLookup := history()
	noLookup.Lookup = nil
	markedEnd := history()
	markedEnd.Points = append(markedEnd.Points, point("end", 2, 230, 23, holdfast.ConsistencyFilesystem))
	tests := []struct {
		name    string
		req     holdfast.PointRequest
		history holdfast.History
		want    string // id or position
		time    float64
		isNew   bool
		warn    bool
	}{
		{"latest is the end of the last range", holdfast.PointRequest{}, h, "00000000000000e6", 23, true, false},
		{"latest uses a mark that stands there", holdfast.PointRequest{Option: holdfast.PointLatest}, markedEnd, "end", 23, false, false},
		{"latest processed is the newest listed", holdfast.PointRequest{Option: holdfast.PointLatestProcessed}, h, "c", 20, false, true},
		{"latest app, not of the old timeline", holdfast.PointRequest{Option: holdfast.PointLatestApp}, h, "b", 14, false, true},
		{"by id", holdfast.PointRequest{Option: holdfast.PointChosen, Point: "a"}, h, "a", 10, false, true},
		{"by id on the old timeline", holdfast.PointRequest{Option: holdfast.PointChosen, Point: "old"}, h, "old", 1, false, true},
		{"by name", holdfast.PointRequest{Option: holdfast.PointChosen, Point: "before-upgrade"}, h, "n", 15, false, true},
		{"by position of a point", holdfast.PointRequest{Option: holdfast.PointChosen, Point: "0000000000000064"}, h, "a", 10, false, true},
		{"by position within a range", holdfast.PointRequest{Option: holdfast.PointChosen, Point: "00000000000000c8"}, h, "c", 20, false, true},
		{"by position without mark", holdfast.PointRequest{Option: holdfast.PointChosen, Point: "000000000000005f"}, h, "000000000000005f", 9, true, true},
		{"by position on another timeline", holdfast.PointRequest{Option: holdfast.PointChosen, Point: "0000000000000005", Timeline: 1}, h, "0000000000000005", 0, true, true},
		{"time within a range", holdfast.PointRequest{Option: holdfast.PointTime, Time: at(12)}, h, "0000000000000078", 12, true, true},
		{"time in a gap is the end before it", holdfast.PointRequest{Option: holdfast.PointTime, Time: at(18.5)}, h, "00000000000000b4", 18, true, true},
		{"time after the end", holdfast.PointRequest{Option: holdfast.PointTime, Time: at(99)}, h, "00000000000000e6", 23, true, false},
		{"time without lookup falls back to a point", holdfast.PointRequest{Option: holdfast.PointTime, Time: at(14.5)}, noLookup, "b", 14, false, true},
		{"time without lookup nor point is the range's start", holdfast.PointRequest{Option: holdfast.PointTime, Time: at(9.5)}, noLookup, "000000000000005a", 9, true, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := holdfast.ResolvePoint(tt.req, tt.history)
			if err != nil {
				t.Fatal(err)
			}
			name := got.Point.ID
			if name == "" {
				name = got.Point.Position.String()
			}
			if name != tt.want || !got.Point.Time.Equal(at(tt.time)) || got.New != tt.isNew || (got.Warning != "") != tt.warn {
				t.Errorf("got %s at %s new %v warning %q; want %s at %s new %v warning %v",
					name, got.Point.Time, got.New, got.Warning, tt.want, at(tt.time), tt.isNew, tt.warn)
			}
			if want := at(23).Sub(got.Point.Time); got.Behind != want {
				t.Errorf("behind: got %s, want %s", got.Behind, want)
			}
		})
	}
}

func TestResolvePointRefuses(t *testing.T) {
	t.Parallel()
	h := history()
	noApp := history()
	noApp.Points = []holdfast.RecoveryPoint{point("old", 1, 500, 1, holdfast.ConsistencyApp)}
	tests := []struct {
		name    string
		req     holdfast.PointRequest
		history holdfast.History
		kind    holdfast.Kind
		text    string
	}{
		{"nothing there", holdfast.PointRequest{}, holdfast.History{Timeline: 1}, holdfast.KindNotFound, "no recoverable position"},
		{"no listed point", holdfast.PointRequest{Option: holdfast.PointLatestProcessed}, noApp, holdfast.KindNotFound, "no recovery point is listed"},
		{"no app point", holdfast.PointRequest{Option: holdfast.PointLatestApp}, noApp, holdfast.KindNotFound, "application-consistent"},
		{"point gone", holdfast.PointRequest{Option: holdfast.PointChosen, Point: "zz"}, h, holdfast.KindNotFound, "no recovery point of this id"},
		{"position in a gap", holdfast.PointRequest{Option: holdfast.PointChosen, Point: "00000000000000b9"}, h, holdfast.KindNotFound, "no consistent view"},
		{"position too short", holdfast.PointRequest{Option: holdfast.PointChosen, Point: "c8"}, h, holdfast.KindNotFound, "no recovery point of this id"},
		{"two of a name", holdfast.PointRequest{Option: holdfast.PointChosen, Point: "nightly"}, h, holdfast.KindInvalid, "2 points"},
		{"before all", holdfast.PointRequest{Option: holdfast.PointTime, Time: at(8)}, h, holdfast.KindNotFound, "does not reach back"},
		{"no time", holdfast.PointRequest{Option: holdfast.PointTime}, h, holdfast.KindInvalid, "no time"},
		{"no point named", holdfast.PointRequest{Option: holdfast.PointChosen}, h, holdfast.KindInvalid, "names no point"},
		{"point with latest", holdfast.PointRequest{Point: "a"}, h, holdfast.KindInvalid, "neither"},
		{"no such option", holdfast.PointRequest{Option: "best"}, h, holdfast.KindInvalid, "best"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := holdfast.ResolvePoint(tt.req, tt.history)
			if holdfast.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.text) || holdfast.HintOf(err) == "" {
				t.Errorf("got %v (%s, hint %q), want %s with %q", err, holdfast.KindOf(err), holdfast.HintOf(err), tt.kind, tt.text)
			}
		})
	}
	_, err := holdfast.ResolvePoint(holdfast.PointRequest{Option: holdfast.PointTime, Time: at(8)}, h)
	if want := at(9).Format(time.RFC3339); !strings.Contains(holdfast.HintOf(err), want) {
		t.Errorf("hint %q does not name the oldest time %s", holdfast.HintOf(err), want)
	}
}

// TestResolveTimeNeverLater tries every tenth of a minute: what one gets is
// never from after what was asked for, and never gets older as one asks for later.
func TestResolveTimeNeverLater(t *testing.T) {
	t.Parallel()
	h := history()
	var last holdfast.Position
	for m := 9.0; m < 30; m += 0.1 {
		got, err := holdfast.ResolvePoint(holdfast.PointRequest{Option: holdfast.PointTime, Time: at(m)}, h)
		if err != nil {
			t.Fatalf("minute %.1f: %v", m, err)
		}
		if got.Point.Time.After(at(m)) || got.Point.Position < last {
			t.Fatalf("minute %.1f: got %+v after position %s", m, got.Point, last)
		}
		last = got.Point.Position
	}
}

func TestPositionsAndStreamsRoundTrip(t *testing.T) {
	t.Parallel()
	for _, p := range []holdfast.Position{0, 1, 0xfedcba9876543210} {
		text, err := p.MarshalText()
		var back holdfast.Position
		if err != nil || back.UnmarshalText(text) != nil || back != p {
			t.Errorf("position %d: text %s, back %d, %v", p, text, back, err)
		}
	}
	for _, bad := range []string{"", "x", "00000000000000001", "-1"} {
		if _, err := holdfast.ParsePosition(bad); err == nil {
			t.Errorf("position %q was accepted", bad)
		}
	}
	id := holdfast.NewStreamID()
	back, err := holdfast.ParseStreamID(id.String())
	if diff := cmp.Diff(id, back); diff != "" || err != nil {
		t.Errorf("stream id: %v %s", err, diff)
	}
	for _, bad := range []string{"", "00", strings.Repeat("g", 32), strings.Repeat("0", 34)} {
		if _, err := holdfast.ParseStreamID(bad); err == nil {
			t.Errorf("stream id %q was accepted", bad)
		}
	}
}
