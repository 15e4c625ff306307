package vault_test

import (
	"testing"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// TestConfirmedAcrossForks forks a timeline whose stretch is open: at its end, up to
// where the canary was confirmed counts; earlier, only up to where it forks.
func TestConfirmedAcrossForks(t *testing.T) {
	t.Parallel()
	v, _, _ := newVault(t)
	ctx := t.Context()
	s, err := v.CreateStream(ctx, vault.StreamOptions{ID: holdfast.NewStreamID(), Disks: []vault.Disk{{ID: "vda", Size: 64 << 10}}, Now: start})
	if err != nil {
		t.Fatal(err)
	}
	at := func(n int) time.Time { return start.Add(time.Duration(n) * time.Second) }
	writes := func(tl holdfast.TimelineID, marks ...struct {
		n int
		m vault.Mark
	}) {
		t.Helper()
		w, err := s.Writer(ctx, vault.WriterOptions{Timeline: tl, Generation: 1})
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range marks {
			if _, err := w.Mark(m.m, at(m.n)); err != nil {
				t.Fatal(err)
			}
		}
		seal(t, w)
		if err := s.Refresh(ctx); err != nil {
			t.Fatal(err)
		}
	}
	type marked = struct {
		n int
		m vault.Mark
	}
	writes(1, marked{1, vault.Mark{Kind: vault.MarkConsistent}}, marked{2, vault.Mark{Kind: vault.MarkNote}}, marked{3, vault.Mark{Kind: vault.MarkNote}})
	if r := s.Ranges(1); len(r) != 1 || !r[0].Open || !r[0].Confirmed.IsZero() {
		t.Fatalf("ranges are %+v", r)
	}
	if err := s.PutCanary(ctx, vault.Canary{Time: at(9), Timeline: 1, Position: 3, Confirmed: at(8)}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		fork holdfast.Position
		want time.Time
	}{{3, at(8)}, {2, at(2)}} {
		tl, err := s.Fork(ctx, vault.ForkOptions{From: 1, At: c.fork, Generation: 1, Now: at(10)})
		if err != nil {
			t.Fatal(err)
		}
		for _, closed := range []bool{false, true} {
			if closed {
				writes(tl, marked{11, vault.Mark{Kind: vault.MarkInconsistent}}, marked{12, vault.Mark{Kind: vault.MarkConsistent}})
			}
			r := s.Ranges(tl)
			if !r[0].Confirmed.Equal(c.want) || r[0].Open == closed || closed && (len(r) != 2 || !r[1].Confirmed.IsZero()) {
				t.Errorf("forked at %s, closed %t: %+v, want confirmed %s", c.fork, closed, r, c.want)
			}
		}
	}
}
