package orchestrator_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/gateway"
	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/providertest"
	"github.com/holdfast-dr/holdfast/internal/script"
	"github.com/holdfast-dr/holdfast/internal/scrub"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// fakeGateway is a gateway that replicates machines of fake sites into the real
// vault, every write at once.
type fakeGateway struct {
	rig *rig

	mu     sync.Mutex // guards the fields below
	orders map[string]*fakeReplication
	down   error // what every call returns
	refuse error // what Put returns
	hang   bool  // every call waits for its context
	lag    bool  // nothing comes into the vault but by Point
	copies bool  // the first copy goes on and on
	puts   int
	holds  map[string][]string // items by address and hold
	// forgetful is the address at which holds do not last.
	forgetful string
}

// addressedGateway is the gateway at an address: what it holds is its own.
type addressedGateway struct {
	*fakeGateway
	address string
}

// fakeReplication is one order at work.
type fakeReplication struct {
	order  gateway.Order
	stream *vault.Stream
	writer *vault.Writer
	sent   int64
	fenced bool
	rounds int
}

func (g *fakeGateway) ready(ctx context.Context) error {
	g.mu.Lock()
	down, hang := g.down, g.hang
	g.mu.Unlock()
	if hang {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return down
}

func (g *fakeGateway) fake(o gateway.Order) *providertest.Fake {
	if o.Site.Provider == "primary" {
		return g.rig.primary
	}
	return g.rig.recovery
}

// Put opens the stream and brings over what differs, as a rescan does.
func (g *fakeGateway) Put(ctx context.Context, o gateway.Order) error {
	if err := g.ready(ctx); err != nil {
		return err
	}
	if err := o.Validate(); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.refuse != nil {
		return g.refuse
	}
	g.puts++
	if old := g.orders[o.Item]; old != nil && old.order.Timeline == o.Timeline && old.order.MachineID == o.MachineID && old.order.PausedUntil.Equal(o.PausedUntil) {
		return nil
	}
	s, err := g.rig.vault.OpenStream(ctx, o.Stream)
	if err != nil {
		return err
	}
	w, err := s.Writer(ctx, vault.WriterOptions{Timeline: o.Timeline, Generation: o.Generation})
	if err != nil {
		return err
	}
	r := &fakeReplication{order: o, stream: s, writer: w}
	if !o.PausedUntil.After(time.Now()) {
		if err := r.rescan(ctx, g.fake(o)); err != nil {
			return err
		}
	}
	g.orders[o.Item] = r
	return nil
}

func (r *fakeReplication) rescan(ctx context.Context, f *providertest.Fake) error {
	view, err := r.stream.Base(ctx, r.order.Timeline, r.writer.Next()-1)
	if err != nil {
		return err
	}
	if _, err := r.writer.Mark(vault.Mark{Kind: vault.MarkInconsistent}, time.Now()); err != nil {
		return err
	}
	for _, d := range r.order.Disks {
		disk := f.Disk(r.order.MachineID, d.ID)
		if disk == nil {
			return fmt.Errorf("machine %s has no disk %s", r.order.MachineID, d.ID)
		}
		set, err := view.Differs(ctx, d.ID, disk, nil)
		if err != nil {
			return err
		}
		for e := range set.Extents() {
			if err := r.send(ctx, disk, d.ID, e); err != nil {
				return err
			}
		}
	}
	for _, m := range []vault.Mark{{Kind: vault.MarkConsistent}, {Kind: vault.MarkPoint, Name: "in sync", Consistency: vault.CrashConsistent}} {
		if _, err := r.writer.Mark(m, time.Now()); err != nil {
			return err
		}
	}
	return r.commit(ctx)
}

func (r *fakeReplication) send(ctx context.Context, disk *block.MemDisk, id string, e block.Extent) error {
	p := make([]byte, e.Length)
	if err := disk.ReadAt(ctx, p, e.Offset); err != nil {
		return err
	}
	r.sent += e.Length
	_, err := r.writer.Write(id, e.Offset, p, time.Now())
	return err
}

func (r *fakeReplication) commit(ctx context.Context) error {
	sealed, err := r.writer.Seal(time.Now())
	if err != nil || sealed == nil {
		return err
	}
	// Like a gateway, it does not forget a segment because somebody hangs up.
	return r.writer.Commit(context.WithoutCancel(ctx), sealed)
}

// write is a write of a machine; only one that is replicated brings it anywhere.
func (g *fakeGateway) write(machine, disk string, off int64, p []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.orders {
		if r.order.MachineID != machine || r.fenced || r.order.PausedUntil.After(time.Now()) {
			continue
		}
		_, err := r.writer.Write(disk, off, p, time.Now())
		r.sent += int64(len(p))
		if err == nil && !g.lag {
			err = r.commit(context.Background())
		}
		r.fenced = err != nil
	}
}

// Withdraw takes an order back.
func (g *fakeGateway) Withdraw(ctx context.Context, item string) error {
	if err := g.ready(ctx); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.orders[item] == nil {
		return gateway.ErrUnknownOrder
	}
	delete(g.orders, item)
	return nil
}

// Status says that all is well.
func (g *fakeGateway) Status(ctx context.Context, item string) (gateway.Status, error) {
	if err := g.ready(ctx); err != nil {
		return gateway.Status{}, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.orders[item]
	if r == nil {
		return gateway.Status{}, gateway.ErrUnknownOrder
	}
	st := gateway.Status{Item: item, Mode: string(holdfast.ModeContinuous), Consistent: !g.copies, Timeline: r.order.Timeline, Vault: r.order.Vault.Digest(), AsOf: time.Now(), Scrub: scrub.State{Rounds: r.rounds, Total: 1, Done: 1}}
	if m, err := g.fake(r.order).Site().Inventory.Machine(ctx, r.order.MachineID); err == nil {
		st.Machine, _ = gateway.MachineHash(m)
		for _, d := range m.Disks {
			if slices.ContainsFunc(r.order.Disks, func(o gateway.DiskRef) bool { return o.ID == d.ID && o.Size != d.Size }) {
				st.Code, st.Problem, st.Consistent, st.Mode = gateway.CodeDiskResized, "disk "+d.ID+" has another size", false, string(holdfast.ModePaused)
			}
		}
	}
	if r.order.PausedUntil.After(time.Now()) {
		st.Mode, st.Code, st.Problem, st.Quiet, st.Consistent = string(holdfast.ModePaused), gateway.CodePaused, "paused", true, false
	}
	return st, nil
}

// Machine looks at the machine.
func (g *fakeGateway) Machine(ctx context.Context, item string) (provider.Machine, error) {
	if err := g.ready(ctx); err != nil {
		return provider.Machine{}, err
	}
	g.mu.Lock()
	r := g.orders[item]
	g.mu.Unlock()
	if r == nil {
		return provider.Machine{}, gateway.ErrUnknownOrder
	}
	return g.fake(r.order).Site().Inventory.Machine(ctx, r.order.MachineID)
}

// Point makes a recovery point, in the vault.
func (g *fakeGateway) Point(ctx context.Context, item, name string) (gateway.PointReply, error) {
	return g.mark(ctx, item, name, holdfast.ConsistencyCrash)
}

// Mark makes a recovery point.
func (g *fakeGateway) Mark(ctx context.Context, item, name string, c holdfast.Consistency) (gateway.PointReply, error) {
	if deadline, ok := ctx.Deadline(); c == holdfast.ConsistencyApp && (!ok || time.Until(deadline) > 10*time.Second) {
		g.rig.t.Error("a guest may stay frozen for as long as a gateway does not answer")
	}
	return g.mark(ctx, item, name, c)
}

// GroupPoint makes a recovery point of several items, and the vault know that
// nothing was missed until then.
func (g *fakeGateway) GroupPoint(ctx context.Context, p gateway.GroupPoint) (gateway.GroupPointReply, error) {
	if err := g.ready(ctx); err != nil {
		return gateway.GroupPointReply{}, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	at := time.Now().Truncate(time.Microsecond)
	for _, item := range p.Items {
		r := g.orders[item]
		if r == nil {
			return gateway.GroupPointReply{}, gateway.ErrUnknownOrder
		}
		pos, err := r.writer.Mark(vault.Mark{Kind: vault.MarkPoint, Name: p.Name, Group: p.Group, Consistency: vault.Consistency(p.Consistency)}, at)
		if err == nil {
			err = r.commit(ctx)
		}
		if err == nil {
			err = r.stream.PutCanary(ctx, vault.Canary{Time: at, Timeline: r.order.Timeline, Position: pos, Confirmed: at})
		}
		if err != nil {
			return gateway.GroupPointReply{}, err
		}
	}
	return gateway.GroupPointReply{Time: at}, nil
}

func (g *fakeGateway) mark(ctx context.Context, item, name string, c holdfast.Consistency) (gateway.PointReply, error) {
	if err := g.ready(ctx); err != nil {
		return gateway.PointReply{}, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.orders[item]
	if r == nil {
		return gateway.PointReply{}, gateway.ErrUnknownOrder
	}
	pos, err := r.writer.Mark(vault.Mark{Kind: vault.MarkPoint, Name: name, Consistency: vault.Consistency(c)}, time.Now())
	if err == nil {
		err = r.commit(ctx)
	}
	return gateway.PointReply{Position: pos, Consistent: true}, err
}

// sent returns what an item's replication has sent.
func (g *fakeGateway) sentBytes(item string) int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r := g.orders[item]; r != nil {
		return r.sent
	}
	return 0
}

// Hold remembers what it is asked to hold.
func (g addressedGateway) Hold(ctx context.Context, h gateway.Hold) error {
	if err := g.ready(ctx); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.holds == nil {
		g.holds = map[string][]string{}
	}
	g.holds[g.address+h.ID] = h.Items
	return nil
}

// MarkHeld makes a recovery point of what is held.
func (g addressedGateway) MarkHeld(ctx context.Context, m gateway.HeldMark) (gateway.GroupPointReply, error) {
	g.mu.Lock()
	items := g.holds[g.address+m.ID]
	over := items == nil || g.address == g.forgetful
	g.mu.Unlock()
	if over {
		return gateway.GroupPointReply{}, gateway.ErrNotHeld
	}
	return g.GroupPoint(ctx, gateway.GroupPoint{Items: items, Name: m.Name, Group: m.Group, Consistency: m.Consistency})
}

// Release forgets it.
func (g addressedGateway) Release(_ context.Context, id string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.holds, g.address+id)
	return nil
}

// scripts is where the gateway at the address has its scripts.
func (g addressedGateway) scripts() script.Host {
	return script.Host{Scripts: filepath.Join(g.rig.scripts, "gateway"+strings.ReplaceAll(g.address, "/", "_"))}
}

// RunScript runs a script of that directory.
func (g addressedGateway) RunScript(ctx context.Context, call script.Call) (out gateway.ScriptReply, err error) {
	if err := g.ready(ctx); err != nil {
		return out, err
	}
	if out.Output, err = g.scripts().Run(ctx, call); err != nil {
		out.Failed = err.Error()
	}
	return out, nil
}

// CheckScript looks for it there.
func (g addressedGateway) CheckScript(ctx context.Context, call script.Call) error {
	return errors.Join(g.ready(ctx), g.scripts().Check(call))
}

// Scrub compares at once, and finds nothing.
func (g *fakeGateway) Scrub(ctx context.Context, item string) (gateway.ScrubReply, error) {
	if err := g.ready(ctx); err != nil {
		return gateway.ScrubReply{}, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.orders[item]
	if r == nil {
		return gateway.ScrubReply{}, gateway.ErrUnknownOrder
	}
	r.rounds++
	return gateway.ScrubReply{Rounds: r.rounds - 1}, nil
}
