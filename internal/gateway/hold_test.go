package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/gateway/clock"
	"github.com/holdfast-dr/holdfast/internal/nbd"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// island is an ingest with one stream that is in sync, and a clock of its own.
type island struct {
	rig  *rig
	g    *Ingest
	s    *stream
	disk context.Context // of writes
}

func newIsland(t *testing.T, ahead time.Duration) *island {
	t.Helper()
	wall := func() time.Time { return time.Now().Add(ahead) }
	cl, err := clock.Open(vfs.NewMem(), "/g", clock.Host{Wall: wall, Up: func() time.Duration { return time.Hour }})
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t)
	s := r.open(Tuning{})
	t.Cleanup(r.run(s))
	r.inSync(s, 1)
	i := &island{rig: r, s: s, g: &Ingest{streams: map[holdfast.StreamID]*served{r.id: {stream: s, done: make(chan struct{})}}, clock: cl}}
	i.disk = nbd.WithConn(t.Context(), &nbd.Conn{ID: 1, Export: "vda"})
	return i
}

// write has the guest of the island write a number.
func (i *island) write(n uint64) error {
	var b [512]byte
	binary.LittleEndian.PutUint64(b[:], n)
	return i.s.disks["vda"].WriteAt(i.disk, b[:], 0, false)
}

func (i *island) hold(id string, bound time.Duration) error {
	return i.g.hold(holdRequest{ID: id, Streams: []holdfast.StreamID{i.rig.id}, Bound: bound})
}

func (i *island) mark(id, group string) error {
	_, err := i.g.markHeld(markRequest{id, vault.Mark{Kind: vault.MarkPoint, Group: group, Consistency: vault.CrashConsistent}})
	return err
}

// numbers returns the number that the guest had written at each mark.
func (i *island) numbers() map[string]uint64 {
	i.rig.t.Helper()
	i.rig.eventually("all is in the vault", func() bool { return i.s.committed() == i.s.opts.Writer.Next()-1 })
	ctx := i.rig.t.Context()
	st, err := i.rig.vault.OpenStream(ctx, i.rig.id)
	if err == nil {
		err = st.Refresh(ctx)
	}
	if err != nil {
		i.rig.t.Fatal(err)
	}
	out := map[string]uint64{}
	for _, p := range st.Points(1) {
		if p.Group == "" {
			continue
		}
		v, err := st.View(ctx, 1, p.Position)
		if err != nil {
			i.rig.t.Fatal(err)
		}
		d, err := v.Disk("vda")
		if err != nil {
			i.rig.t.Fatal(err)
		}
		var b [8]byte
		if err := d.ReadAt(ctx, b[:], 0); err != nil {
			i.rig.t.Fatal(err)
		}
		out[p.Group] = binary.LittleEndian.Uint64(b[:])
	}
	return out
}

// TestHold marks the streams of two gateways, with clocks an hour apart, while two
// guests write: the second always what the first has written just before. In no
// point of both is the second ahead; where they are marked without being held, it
// is.
func TestHold(t *testing.T) {
	t.Parallel()
	a, b := newIsland(t, 0), newIsland(t, -time.Hour)
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		for n := uint64(1); ; n++ {
			select {
			case <-stop:
				ended <- nil
				return
			default:
			}
			if err := errors.Join(a.write(n), b.write(n)); err != nil {
				ended <- err
				return
			}
			time.Sleep(20 * time.Microsecond)
		}
	}()
	const rounds = 300
	for n := range rounds {
		id := fmt.Sprintf("held%d", n)
		err := errors.Join(a.hold(id, MaxHold), b.hold(id, MaxHold)) // at the same time with a real coordinator: the order does not matter
		if err == nil {
			time.Sleep(100 * time.Microsecond)
			err = errors.Join(a.mark(id, id), b.mark(id, id))
		}
		a.g.release(id)
		b.g.release(id)
		if err != nil {
			t.Fatal(err)
		}
		loose := vault.Mark{Kind: vault.MarkPoint, Group: fmt.Sprintf("loose%d", n), Consistency: vault.CrashConsistent}
		for _, i := range []*island{a, b} {
			if _, err := i.g.markAll(groupRequest{Streams: []holdfast.StreamID{i.rig.id}, Mark: loose}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(200 * time.Microsecond)
		}
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	na, nb := a.numbers(), b.numbers()
	ahead, held, different := 0, 0, map[uint64]bool{}
	for group, n := range nb {
		if group[0] == 'l' {
			if n > na[group] {
				ahead++
			}
			continue
		}
		held++
		different[n] = true
		if n > na[group] {
			t.Errorf("at %s the second guest has %d, the first %d", group, n, na[group])
		}
	}
	if held != rounds || len(na) != 2*rounds || len(different) < rounds/2 || ahead < rounds/2 {
		t.Errorf("%d points held, %d different, %d of %d ahead without being held: this shows nothing", held, len(different), ahead, rounds)
	}
}

// TestHoldEnds has a hold end by itself: guests write on, and nothing is marked.
func TestHoldEnds(t *testing.T) {
	t.Parallel()
	i := newIsland(t, 0)
	if err := i.mark("none", "g"); !errors.Is(err, ErrNotHeld) {
		t.Errorf("mark without a hold: %v", err)
	}
	if err := i.hold("a", 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if err := i.hold("a", 50*time.Millisecond); err == nil {
		t.Error("a hold was begun twice")
	}
	began := time.Now()
	if err := i.write(1); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 20*time.Millisecond || took > time.Second {
		t.Errorf("the guest's write took %s, while it was held for 50ms", took)
	}
	if err := i.mark("a", "g"); !errors.Is(err, ErrNotHeld) {
		t.Errorf("mark after the end: %v", err)
	}
	i.g.release("a")
	if err := i.hold("b", time.Hour); err != nil {
		t.Fatal(err)
	}
	defer i.g.release("b")
	if err := i.write(2); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("a hold lasted %s, at most %s are allowed", took, MaxHold)
	}
	if err := (&island{rig: i.rig, g: &Ingest{streams: map[holdfast.StreamID]*served{}, clock: i.g.clock}}).hold("c", time.Second); err == nil {
		t.Error("a stream that is not served was held")
	}
	if n := i.numbers(); len(n) != 0 {
		t.Errorf("there are points %v", n)
	}
}
