package cli_test

import (
	"math"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/cli"
)

func TestSize(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 102297: "99.9 KiB", 102350: "100 KiB", 1048575: "1.0 MiB",
		1 << 30: "1.0 GiB", 999 << 40: "999 TiB", math.MaxInt64: "8192 PiB", -2048: "-2.0 KiB",
	} {
		if got := cli.Size(n); got != want {
			t.Errorf("Size(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestSpan(t *testing.T) {
	t.Parallel()
	for seconds, want := range map[float64]string{
		0: "0 s", 0.0001: "1 ms", 0.043: "43 ms", 0.0996: "0.1 s", 0.43: "0.4 s", 9.94: "9.9 s", 9.96: "10 s", 59.4: "59 s", 59.6: "1 min",
		61: "1 min 1 s", 3599.6: "1 h", 3660: "1 h 1 min", 86400: "1 d", 93600: "1 d 2 h", -5: "-5.0 s",
		math.Inf(1): "unknown", math.NaN(): "unknown",
	} {
		if got := cli.Span(seconds); got != want {
			t.Errorf("Span(%g) = %q, want %q", seconds, got, want)
		}
	}
}

func TestPercentIsHundredOnlyWhenAllIsDone(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		done, total int64
		want        string
	}{{0, 0, "-"}, {0, 5, "0%"}, {999999, 1000000, "99%"}, {5, 5, "100%"}, {9, 5, "100%"}, {1 << 60, 1 << 61, "50%"}} {
		if got := cli.Percent(tt.done, tt.total); got != tt.want {
			t.Errorf("Percent(%d, %d) = %q, want %q", tt.done, tt.total, got, tt.want)
		}
	}
}

// Names come from elsewhere and must not command the terminal.
func TestPlain(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"web1": "web1", "a\x1b[2Jb": "a?[2Jb", "a\nb\tc": "a b c", "a\u202eb": "a?b", "a\u009bb": "a?b", "\xff": "?", "Büro → ✓": "Büro → ✓",
	} {
		if got := cli.Plain(text); got != want {
			t.Errorf("Plain(%q) = %q, want %q", text, got, want)
		}
	}
}
