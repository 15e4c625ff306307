package vault_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// life is what a vault was asked to do until its file system crashed, and what it
// acknowledged.
type life struct {
	t      *testing.T
	key    vault.Key
	stream holdfast.StreamID
	disks  []vault.Disk

	created, streamed, ended, done bool
	fork                           holdfast.TimelineID // acknowledged, or 0
	forkAt                         holdfast.Position
	acked                          map[holdfast.TimelineID]holdfast.Position
	spool                          map[holdfast.TimelineID][][]byte // sealed, in order
	logs                           map[holdfast.TimelineID]*history
}

func newLife(t *testing.T, key vault.Key) *life {
	return &life{
		t: t, key: key, stream: holdfast.StreamID{7}, disks: []vault.Disk{{ID: "vda", Size: 64 << 10}, {ID: "vdb", Size: 8 << 10}},
		acked: map[holdfast.TimelineID]holdfast.Position{}, spool: map[holdfast.TimelineID][][]byte{}, logs: map[holdfast.TimelineID]*history{},
	}
}

// run does it all: create, append, seal, commit, end, fork, go on. It stops at
// the first error.
func (l *life) run(fsys vfs.FS) error {
	ctx := l.t.Context()
	store, err := objstore.NewDir(fsys, "/v")
	if err != nil {
		return err
	}
	v, err := vault.Create(ctx, store, vault.CreateOptions{Key: l.key, Now: start})
	if err != nil {
		return err
	}
	l.created = true
	_, lease, err := v.AcquireLease(ctx, vault.LeaseOptions{Owner: "before"})
	if err != nil {
		return err
	}
	defer lease.Release()
	s, err := v.CreateStream(ctx, vault.StreamOptions{ID: l.stream, Name: "crash", Disks: l.disks, Now: start})
	if err != nil {
		return err
	}
	l.streamed = true
	l.logs[1] = newHistory(l.disks)
	if err := l.write(s, 1, 1, 3); err != nil {
		return err
	}
	last, err := s.End(ctx, 1, vault.EndOptions{Generation: 2, Reason: "test", Now: start})
	if err != nil {
		return err
	}
	if l.ended = true; last != l.acked[1] {
		l.t.Errorf("End says that the last position is %d, committed was %d", last, l.acked[1])
	}
	l.forkAt = last - 2
	l.logs[2] = newHistory(l.disks)
	l.logs[2].log = append(l.logs[2].log, l.logs[1].log[:l.forkAt]...)
	tl, err := s.Fork(ctx, vault.ForkOptions{From: 1, At: l.forkAt, Generation: 2, Reason: "test", Now: start})
	if err != nil {
		return err
	}
	if l.fork = tl; tl != 2 {
		l.t.Errorf("the first fork is timeline %d", tl)
	}
	err = l.write(s, 2, 2, 2)
	l.done = err == nil // what is left is to give the lease back, which may fail
	return err
}

// write commits n segments.
func (l *life) write(s *vault.Stream, tl holdfast.TimelineID, g holdfast.Generation, n int) error {
	ctx := l.t.Context()
	w, err := s.Writer(ctx, vault.WriterOptions{Timeline: tl, Generation: g})
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(uint64(tl), 5))
	for i := range n {
		for range 4 {
			l.logs[tl].step(l.t, rng, w, l.disks, start.Add(time.Duration(i)*time.Second))
		}
		sealed, err := w.Seal(start)
		if err != nil {
			return err
		}
		l.spool[tl] = append(l.spool[tl], bytes.Clone(sealed.Encoded))
		if err := w.Commit(ctx, sealed); err != nil {
			return err
		}
		l.acked[tl] = sealed.Last
		if err := s.PutCanary(ctx, vault.Canary{Time: start, Timeline: tl, Seq: sealed.Seq, Position: sealed.Last}); err != nil {
			return err
		}
	}
	return nil
}

// TestCrashEverywhere cuts the power before every change to the file system,
// several times each, and goes on with what is left.
func TestCrashEverywhere(t *testing.T) {
	t.Parallel()
	key, err := vault.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	newFS := func() *vfs.Mem {
		m := vfs.NewMem()
		if err := m.MkdirAll("/v"); err != nil {
			t.Fatal(err)
		}
		return m
	}
	var count vfs.Faults
	if err := newLife(t, key).run(vfs.WithFaults(newFS(), &count)); err != nil {
		t.Fatal(err)
	}
	for at := 1; at <= count.Changes(); at++ {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			t.Parallel()
			mem := newFS()
			var faults vfs.Faults
			faults.CrashBefore(at)
			l := newLife(t, key)
			if err := l.run(vfs.WithFaults(mem, &faults)); !errors.Is(err, vfs.ErrCrashed) && !l.done {
				t.Errorf("the crash is not visible in %v", err)
			}
			l.goOn(mem.CrashClone(nil))
			l.goOn(mem.KillClone())
			for seed := range uint64(3) {
				l.goOn(mem.CrashClone(rand.New(rand.NewPCG(seed, uint64(at)))))
			}
		})
	}
}

// goOn opens what is left, compares it with what was acknowledged, and writes on.
func (l *life) goOn(fsys vfs.FS) {
	l.t.Helper()
	ctx := l.t.Context()
	store, err := objstore.NewDir(fsys, "/v")
	if err != nil {
		l.t.Fatal(err)
	}
	v, err := vault.Open(ctx, store, l.key, vault.Options{})
	if errors.Is(err, vault.ErrNotVault) && !l.created {
		v, err = vault.Create(ctx, store, vault.CreateOptions{Key: l.key, Now: start})
	}
	if err != nil {
		l.t.Fatalf("open: %v", err)
	}
	defer verify(l.t, v)
	_, lease, err := v.AcquireLease(ctx, vault.LeaseOptions{Owner: "before"})
	if err != nil {
		l.t.Fatalf("lease: %v", err)
	}
	defer lease.Release()
	s, err := v.OpenStream(ctx, l.stream)
	if err != nil && !l.streamed {
		s, err = v.CreateStream(ctx, vault.StreamOptions{ID: l.stream, Name: "crash", Disks: l.disks, Now: start})
	}
	if err == nil {
		err = s.Refresh(ctx)
	}
	if err != nil {
		l.t.Fatalf("open stream: %v", err)
	}
	tls := s.Timelines()
	if l.ended && !tls[0].Ended {
		l.t.Error("the end of timeline 1 is lost")
	}
	if l.fork != 0 && len(tls) != 2 {
		l.t.Errorf("there are %d timelines, want the fork, too", len(tls))
	}
	for _, tl := range tls {
		l.check(s, tl)
	}
	l.append(s, tls[len(tls)-1])
}

// check compares a timeline with the model.
func (l *life) check(s *vault.Stream, tl vault.Timeline) {
	l.t.Helper()
	if tl.Tail.Position < l.acked[tl.ID] {
		l.t.Errorf("timeline %d ends at %d, acknowledged was %d", tl.ID, tl.Tail.Position, l.acked[tl.ID])
	}
	h := l.logs[tl.ID]
	if h == nil { // the stream, or the fork, was under way
		h = newHistory(l.disks)
	}
	for pos := holdfast.Position(0); pos <= tl.Tail.Position; pos++ {
		h.check(l.t, s, tl.ID, pos, l.disks)
	}
}

// append gives the writer what was sealed and may not be in the vault, and
// writes on.
func (l *life) append(s *vault.Stream, tl vault.Timeline) {
	l.t.Helper()
	ctx := l.t.Context()
	if tl.Ended {
		if _, err := s.Writer(ctx, vault.WriterOptions{Timeline: tl.ID, Generation: 2}); !errors.Is(err, vault.ErrFenced) {
			l.t.Errorf("writer of a closed timeline: %v, want ErrFenced", err)
		}
		return
	}
	w, err := s.Writer(ctx, vault.WriterOptions{Timeline: tl.ID, Generation: tl.Generation})
	if err != nil {
		l.t.Fatalf("writer: %v", err)
	}
	for i, encoded := range l.spool[tl.ID] {
		sealed, err := w.Adopt(bytes.Clone(encoded))
		if errors.Is(err, vault.ErrAlreadyCommitted) {
			continue
		}
		if err == nil {
			err = w.Commit(ctx, sealed)
		}
		if err != nil {
			l.t.Fatalf("adopt segment %d: %v", i+1, err)
		}
	}
	before := w.Tail().Position
	if n := holdfast.Position(4 * len(l.spool[tl.ID])); before != tl.ForkAt+n {
		l.t.Errorf("after adoption the tail is at %d, want %d", before, tl.ForkAt+n)
	}
	pos, err := w.Write("vdb", 0, bytes.Repeat([]byte{0xee}, 4096), start)
	if err != nil || pos != before+1 {
		l.t.Fatalf("write behind %d: position %d, %v", before, pos, err)
	}
	if _, err := w.Zero("vda", block.Extent{Length: 512}, true, start); err != nil {
		l.t.Fatal(err)
	}
	seal(l.t, w)
	if err := s.Refresh(ctx); err != nil {
		l.t.Fatal(err)
	}
	view, err := s.View(ctx, tl.ID, pos+1)
	if err != nil {
		l.t.Fatal(err)
	}
	got := make([]byte, 1)
	image, err := view.Disk("vdb")
	if err == nil {
		err = image.ReadAt(ctx, got, 4095)
	}
	if err != nil || got[0] != 0xee {
		l.t.Errorf("what was written after the crash reads as %x (%v)", got, err)
	}
}
