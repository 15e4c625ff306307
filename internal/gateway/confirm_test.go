package gateway

import (
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/gateway/clock"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

func (r *rig) inSync(s *stream, conn uint64) map[string]uint64 {
	r.t.Helper()
	r.connect(s, conn)
	epochs := map[string]uint64{}
	for id, d := range s.status().Disks {
		epochs[id] = d.Epoch
		if err := s.synced(id, d.Epoch); err != nil {
			r.t.Fatal(err)
		}
	}
	return epochs
}

// TestConfirm takes a confirmation of the connections of now only, and has the
// vault know it where the stretch ends, also if the process has died.
func TestConfirm(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open(Tuning{})
	stop := r.run(s)
	epochs := r.inSync(s, 1)
	at := s.status().Clock.Truncate(time.Microsecond)
	old := maps.Clone(epochs)
	old["vda"]--
	if err := s.confirm(at, old); !errors.Is(err, ErrStaleEpoch) {
		t.Errorf("an epoch of before: %v", err)
	}
	if err := s.confirm(at.Add(time.Hour), epochs); err != nil || !s.lastConfirmed().IsZero() {
		t.Errorf("a time to come: %v, %s", err, s.lastConfirmed())
	}
	if err := s.confirm(at, epochs); err != nil || !s.lastConfirmed().Equal(at) {
		t.Errorf("confirmed is %s, %v, want %s", s.lastConfirmed(), err, at)
	}
	if err := s.confirm(at.Add(-time.Second), epochs); err != nil || !s.lastConfirmed().Equal(at) {
		t.Errorf("an earlier time: %s, %v", s.lastConfirmed(), err)
	}
	r.eventually("the canary knows", func() bool {
		c, err := s.opts.Stream.Canary(t.Context())
		return err == nil && c.Confirmed.Equal(at)
	})
	s.disks["vdb"].disconnected(1)
	if err := s.confirm(s.status().Clock, epochs); !errors.Is(err, ErrStaleEpoch) {
		t.Errorf("after a disk has lost its source: %v", err)
	}
	r.eventually("vdb takes a source again", func() bool { return s.disks["vdb"].connected(2, func(error) {}) == nil })
	if err := s.synced("vdb", s.status().Disks["vdb"].Epoch); err != nil {
		t.Fatal(err)
	}
	epochs["vdb"] = s.status().Disks["vdb"].Epoch
	later := s.status().Clock
	if err := s.confirm(later, epochs); err != nil {
		t.Fatal(err)
	}
	stop()
	s = r.open(Tuning{}) // a new process, which closes the stretch of the old one
	defer r.run(s)()
	r.eventually("the vault has both stretches", func() bool {
		st, err := r.vault.OpenStream(t.Context(), r.id)
		if err != nil || st.Refresh(t.Context()) != nil {
			return false
		}
		var got []time.Time
		for _, x := range st.Ranges(1) {
			got = append(got, x.Confirmed.UTC())
		}
		return slices.Equal(got, []time.Time{at.Truncate(time.Microsecond).UTC(), later.Truncate(time.Microsecond).UTC()})
	})
}

// TestMarkAll marks several streams at once, or none.
func TestMarkAll(t *testing.T) {
	t.Parallel()
	cl, err := clock.Open(vfs.NewMem(), "/g", clock.OfHost())
	if err != nil {
		t.Fatal(err)
	}
	g := &Ingest{streams: map[holdfast.StreamID]*served{}, clock: cl}
	var ids []holdfast.StreamID
	var all []*stream
	for range 3 {
		r := newRig(t)
		s := r.open(Tuning{})
		defer r.run(s)()
		ids, all = append(ids, r.id), append(all, s)
		g.streams[r.id] = &served{stream: s, done: make(chan struct{})}
		if len(all) < 3 {
			r.inSync(s, 1)
		}
	}
	mark := vault.Mark{Kind: vault.MarkPoint, Name: "noon", Group: "g1", Consistency: vault.CrashConsistent}
	next := func() (n []holdfast.Position) {
		for _, s := range all {
			n = append(n, s.opts.Writer.Next())
		}
		return n
	}
	before := next()
	if _, err := g.markAll(groupRequest{Streams: ids, Mark: mark}); err == nil || !slices.Equal(before, next()) {
		t.Errorf("one of them is not in sync: %v, positions %v, before %v", err, next(), before)
	}
	if _, err := g.markAll(groupRequest{Streams: append(ids[:2:2], holdfast.NewStreamID()), Mark: mark}); err == nil || !slices.Equal(before, next()) {
		t.Errorf("one of them is not served: %v", err)
	}
	at, err := g.markAll(groupRequest{Streams: []holdfast.StreamID{ids[1], ids[0], ids[1]}, Mark: mark})
	if err != nil || at.IsZero() {
		t.Fatal(err)
	}
	for i, want := range []holdfast.Position{1, 1, 0} {
		if got := next()[i] - before[i]; got != want {
			t.Errorf("stream %d has %d marks more, want %d", i, got, want)
		}
	}
}
