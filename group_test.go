package holdfast

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestCommonMoment compares with trying every moment.
func TestCommonMoment(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		day := time.Unix(0, 0)
		members := make([][]Stretch, rapid.IntRange(1, 4).Draw(t, "members"))
		for i := range members {
			at := 0
			for range rapid.IntRange(0, 4).Draw(t, "stretches") {
				from := at + rapid.IntRange(0, 5).Draw(t, "gap")
				to := from + rapid.IntRange(0, 6).Draw(t, "length")
				members[i] = append(members[i], Stretch{day.Add(time.Duration(from)), day.Add(time.Duration(to))})
				at = to + 1
			}
		}
		limit := rapid.IntRange(0, 60).Draw(t, "limit")
		want, found := 0, false
		for n := 0; n <= limit; n++ {
			in := 0
			for _, m := range members {
				for _, s := range m {
					if at := day.Add(time.Duration(n)); !at.Before(s.From) && !at.After(s.To) {
						in++
					}
				}
			}
			if in == len(members) {
				want, found = n, true
			}
		}
		got, ok := CommonMoment(members, day.Add(time.Duration(limit)))
		if ok != found || ok && !got.Equal(day.Add(time.Duration(want))) {
			t.Fatalf("common moment of %v is %v %v, want %d %v", members, got, ok, want, found)
		}
		if newest, ok := CommonMoment(members, time.Time{}); ok && newest.Before(got) {
			t.Fatalf("without a limit it is %v, with one %v", newest, got)
		}
	})
}
