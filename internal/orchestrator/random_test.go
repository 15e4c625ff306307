package orchestrator_test

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/providertest"
)

// content is what a machine's disks have.
type content map[string][]byte

// life is a machine whose life goes on at random, with what its disks should
// have: now, at each named point, and where it would go back to.
type life struct {
	*rig
	rng    *rand.Rand
	points map[string]content
	home   content // of the source, while a failover can be undone
	log    []string
	n      int
}

// disks returns what the disks of a machine have that are listed.
func (l *life) disks(at *providertest.Fake, m provider.Machine) content {
	l.t.Helper()
	out := content{}
	for _, d := range m.Disks {
		p := make([]byte, d.Size)
		if err := at.Disk(m.ID, d.ID).ReadAt(l.t.Context(), p, 0); err != nil {
			l.t.Fatal(err)
		}
		out[d.ID] = p
	}
	return out
}

func (l *life) now() content {
	l.t.Helper()
	at, m := l.active()
	return l.disks(at, m)
}

// has compares the machine that lives with what it should have.
func (l *life) has(what string, want content) {
	l.t.Helper()
	l.equal(what, l.now(), want)
}

func (l *life) equal(what string, got, want content) {
	l.t.Helper()
	for id, p := range want {
		if !bytes.Equal(got[id], p) {
			at := 0
			for at < min(len(p), len(got[id])) && p[at] == got[id][at] {
				at++
			}
			l.t.Fatalf("%s: disk %s has %d bytes, want %d; they differ at %d; before:\n%s", what, id, len(got[id]), len(p), at, strings.Join(l.log, "\n"))
		}
	}
	if len(got) < len(want) {
		l.t.Fatalf("%s: it has disks %v, want %v; before:\n%s", what, slices.Collect(maps.Keys(got)), slices.Collect(maps.Keys(want)), strings.Join(l.log, "\n"))
	}
}

func (l *life) did(format string, args ...any) {
	l.log = append(l.log, fmt.Sprintf(format, args...))
}

// listed returns a point of those that are listed and known, or "".
func (l *life) listed() string {
	l.t.Helper()
	all, err := l.ListPoints(l.t.Context(), machine)
	if err != nil {
		l.t.Fatal(err)
	}
	var names []string
	for _, p := range all.Points {
		if l.points[p.Name] != nil {
			names = append(names, p.Name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return names[l.rng.IntN(len(names))]
}

// writes has the machine write to one of its disks.
func (l *life) writes() {
	l.t.Helper()
	at, m := l.active()
	d := m.Disks[l.rng.IntN(len(m.Disks))]
	p := bytes.Repeat([]byte{byte(1 + l.rng.IntN(255))}, 512*(1+l.rng.IntN(8)))
	off := 512 * l.rng.Int64N((d.Size-int64(len(p)))/512+1)
	if err := at.Disk(m.ID, d.ID).WriteAt(l.t.Context(), p, off); err != nil {
		l.t.Fatal(err)
	}
	l.gw.write(m.ID, d.ID, off, p)
}

// changesDisks has the owner change the machine's disks, and waits until the item
// has taken that over, if it replicates.
func (l *life) changesDisks() {
	l.t.Helper()
	at, m := l.active()
	d := m.Disks[l.rng.IntN(len(m.Disks))]
	switch op := l.rng.IntN(3); {
	case op == 0 && len(m.Disks) < 4:
		l.n++
		m.Disks = append(slices.Clone(m.Disks), provider.Disk{ID: fmt.Sprintf("vd%c", 'c'+rune(l.n%20)), Size: 512 * (16 + l.rng.Int64N(64)), Format: "raw"})
		at.AddMachine(m)
	case op == 1 && len(m.Disks) > 1 && d.ID != "vda":
		m.Disks = slices.DeleteFunc(slices.Clone(m.Disks), func(o provider.Disk) bool { return o.ID == d.ID })
		at.AddMachine(m)
	default:
		if err := at.GrowDisk(m.ID, d.ID, d.Size+512*(1+l.rng.Int64N(64))); err != nil {
			l.t.Fatal(err)
		}
	}
	_, m = l.active()
	l.did("disks %+v", m.Disks)
	if state := l.item().State; state != "protected" {
		return
	}
	l.eventually("the disks are taken over", func() bool {
		it := l.item()
		for _, d := range m.Disks {
			if sizeOf(it, d.ID) != d.Size {
				return false
			}
		}
		return len(it.Machine.Disks) == len(m.Disks) && it.CurrentJob == ""
	})
	l.idle()
}

// refuses says whether a job was refused because the machine that was there before
// has no disk of that name; then its first task has said so, and nothing was done.
func (l *life) refuses(j api.Job) bool {
	l.t.Helper()
	if j.State != "failed" || !strings.Contains(j.Error.Cause+j.Error.Message, "has no disk") {
		return false
	}
	if j.Error.Task != "check" || j.Error.Hint == "" {
		l.t.Errorf("job %s fails late, or without a hint: %+v", j.Kind, j.Error)
	}
	l.did("  refused: %s", j.Error.Cause)
	l.idle()
	return true
}

// operates asks for one of the operations that are allowed, and looks at what
// comes of it.
func (l *life) operates() {
	l.t.Helper()
	it := l.item()
	ctx := l.t.Context()
	op := it.Allowed[l.rng.IntN(len(it.Allowed))]
	before := l.now()
	l.did("%s (%s, %s)", op, it.State, it.Direction)
	switch op {
	case "failover", "planned_failover", "failback":
		want, req := before, api.Failover{Option: "latest", Planned: op == "planned_failover", ShutdownSource: l.rng.IntN(2) == 0}
		if name := l.listed(); name != "" && op == "failover" && l.rng.IntN(2) == 0 {
			want, req.Option, req.Point = l.points[name], "point", name
			l.did("  to point %s", name)
		}
		start := func() (api.Job, error) { return l.FailoverItem(ctx, machine, req) }
		if op == "failback" {
			start = func() (api.Job, error) { return l.Failback(ctx, machine, api.Failback{Option: "latest"}) }
		}
		j := l.ended(start())
		if l.refuses(j) {
			return
		}
		l.done(j, nil)
		l.has(op, want)
		l.home = before
	case "change_point":
		name := l.listed()
		if name == "" {
			return
		}
		l.did("  to point %s", name)
		j := l.ended(l.ChangePoint(ctx, machine, api.ChangePoint{Option: "point", Point: name, KeepWrites: l.rng.IntN(2) == 0}))
		if l.refuses(j) {
			l.has(op+", refused", before)
			l.isIn(it.State)
			return
		}
		l.done(j, nil)
		l.has(op, l.points[name])
	case "undo_failover":
		l.done(l.UndoFailover(ctx, machine, api.UndoFailover{KeepWrites: l.rng.IntN(2) == 0}))
		l.has(op, l.home)
	case "commit":
		l.done(l.Commit(ctx, machine, api.Commit{DeletePoints: l.rng.IntN(3) == 0}))
		l.has(op, before)
	case "reprotect":
		l.done(l.Reprotect(ctx, machine, api.Reprotect{}))
		l.has(op, before)
	case "resync":
		l.done(l.Resync(ctx, machine, api.Resync{}))
	case "test_failover":
		name := l.listed()
		if name == "" {
			return
		}
		l.did("  of point %s", name)
		j := l.done(l.TestFailover(ctx, machine, api.TestFailover{Option: "point", Point: name}))
		l.looksAtTest(j.Result.Test, l.points[name])
		l.done(l.CleanUpTest(ctx, machine, api.CleanUpTest{Test: j.Result.Test}))
	}
	l.idle()
}

func (l *life) looksAtTest(handle string, want content) {
	l.t.Helper()
	for _, at := range []*providertest.Fake{l.primary, l.recovery} {
		if rec, ok := at.Recovered(handle); ok {
			m, err := at.Site().Inventory.Machine(l.t.Context(), rec.MachineID)
			if err != nil {
				l.t.Fatal(err)
			}
			l.equal("test failover", l.disks(at, m), want)
			return
		}
	}
	l.t.Fatalf("there is no test %s", handle)
}

// step does one random thing.
func (l *life) step() {
	l.t.Helper()
	switch l.rng.IntN(12) {
	case 0, 1, 2, 3:
		l.writes()
	case 4:
		if l.item().State == "protected" {
			l.n++
			name := fmt.Sprintf("p%d", l.n)
			l.points[name] = l.now()
			l.done(l.MakePoint(l.t.Context(), machine, api.MakePoint{Name: name}))
			l.did("point %s", name)
		}
	case 5:
		l.changesDisks()
	case 6:
		d := time.Duration(l.rng.IntN(180)) * time.Minute
		l.did("%s pass", d)
		time.Sleep(d)
		l.writes()
	case 7:
		l.did("the server is killed")
		l.kill()
		l.start(nil)
	case 8:
		if l.item().State == "protected" {
			l.did("pause")
			l.done(l.Pause(l.t.Context(), machine, api.Pause{Duration: 600}))
			l.writes()
			l.done(l.Resume(l.t.Context(), machine, api.Resume{}))
		}
	default:
		l.operates()
	}
}

// TestRandomLife leads items through random lives: writes, disks that come, go and
// grow, every operation that is allowed, days that pass and servers that are killed.
// Whatever is brought up has what it had at the moment that was asked for.
func TestRandomLife(t *testing.T) {
	t.Parallel()
	for seed := range uint64(10) {
		inBubble(t, fmt.Sprint(seed), func(t *testing.T) {
			l := &life{rig: newRigAt(t, time.Minute), rng: rand.New(rand.NewPCG(seed, 21)), points: map[string]content{}}
			l.done(l.ProtectMachine(t.Context(), api.Protect{Machine: machine, Site: "primary", RecoverySite: "recovery", Policy: api.Policy{HistoryWindow: 12 * 3600}}))
			l.eventually("it is protected", func() bool { return l.item().State == "protected" })
			for range 60 {
				l.step()
			}
		})
	}
}
