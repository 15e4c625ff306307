package orchestrator_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/provider/providertest"
	"github.com/holdfast-dr/holdfast/internal/store"
)

// situation is a state of an item with what goes on besides.
type situation struct {
	name      string
	state     holdfast.State
	direction holdfast.Direction
	// special says that something goes on that changes what is allowed, so that
	// it is not what docs/states.md says of the state.
	special bool
	bring   func(*rest) // brings the item there, by real operations
	mend    func(*rest) // takes away what would make an allowed operation fail
	// ends is how jobs end that do not succeed, by the operation asked for.
	ends map[holdfast.Operation]string
	away bool // the site of the machine does not answer
}

// forced are states that nothing leads to in this version: what would is not
// available, or not observed yet.
var forced = []holdfast.State{holdfast.StateReplicationBroken, holdfast.StateMigrating, holdfast.StateMigrationFailed, holdfast.StateMigrated}

// way is one of the two directions, with what an item does in it.
type way struct {
	holdfast.Direction
	protected func(*rest) // brings the item to protected
	leave     func(*rest) (api.Job, error)
	method    string // of the provider, that brings the machine up
}

func ways() []way {
	forward := way{holdfast.Forward, func(*rest) {}, func(s *rest) (api.Job, error) {
		return s.FailoverItem(s.t.Context(), machine, api.Failover{Option: "latest"})
	}, "Define"}
	reverse := way{holdfast.Reverse, func(s *rest) { reversed(s.rig) }, func(s *rest) (api.Job, error) {
		return s.Failback(s.t.Context(), machine, api.Failback{Option: "latest"})
	}, "PowerOn"}
	return []way{forward, reverse}
}

// plan begins a failover that loses nothing.
func (w way) plan(s *rest) (api.Job, error) {
	if w.Direction == holdfast.Reverse {
		return w.leave(s)
	}
	return s.FailoverItem(s.t.Context(), machine, api.Failover{Option: "latest", Planned: true})
}

// from and to are the site where the machine works and the other.
func (w way) from(s *rest) *providertest.Fake {
	if w.Direction == holdfast.Reverse {
		return s.recovery
	}
	return s.primary
}

func (w way) to(s *rest) *providertest.Fake {
	if w.Direction == holdfast.Reverse {
		return s.primary
	}
	return s.recovery
}

// left brings the item to the other site.
func (w way) left(s *rest) {
	w.protected(s)
	s.done(w.leave(s))
	s.eventually("the machine needs no view", func() bool { return !s.item().Recovery.NeedsView })
}

func (w way) committed(s *rest) { w.left(s); commit(s.rig) }

// held has a job stop while it works in a state.
func held(s *rest, state holdfast.State, start func() (api.Job, error)) {
	s.heldAt(works(state), start)
}

func (s *rest) heldAt(at func(holdfast.Item) bool, start func() (api.Job, error)) {
	s.t.Helper()
	wait, release := s.hold(false, at)
	if _, err := start(); err != nil {
		s.t.Fatal(err)
	}
	wait()
	s.release = release
}

// blocks starts a job and has it stop in a method of a site.
func (s *rest) blocks(at *providertest.Fake, method string, start func() (api.Job, error)) {
	s.t.Helper()
	open, reached := make(chan struct{}), make(chan struct{})
	var once sync.Once
	at.Script(providertest.Fault{Method: method, Do: func() {
		once.Do(func() { close(reached) })
		<-open
	}})
	s.release = sync.OnceFunc(func() { at.ClearScript(); close(open) })
	if _, err := start(); err != nil {
		s.t.Fatal(err)
	}
	<-reached
}

// failing has a method of a site fail while f runs.
func failing(at *providertest.Fake, method string, f func()) {
	at.Script(providertest.Fault{Method: method, Err: errors.New("no memory left")})
	f()
	at.ClearScript()
}

func (s *rest) gatewayDown(err error) {
	s.gw.mu.Lock()
	defer s.gw.mu.Unlock()
	s.gw.down = err
}

func (s *rest) enable() (api.Job, error) {
	return s.ProtectMachine(s.t.Context(), api.Protect{Machine: machine, Site: "primary", RecoverySite: "recovery"})
}

func (s *rest) disable() (api.Job, error) {
	return s.DisableItem(s.t.Context(), machine, api.Disable{})
}
func (s *rest) undo() (api.Job, error) {
	return s.UndoFailover(s.t.Context(), machine, api.UndoFailover{})
}
func (s *rest) commit() (api.Job, error) { return s.Commit(s.t.Context(), machine, api.Commit{}) }
func (s *rest) resync() (api.Job, error) { return s.Resync(s.t.Context(), machine, api.Resync{}) }
func (s *rest) reprotect() (api.Job, error) {
	return s.Reprotect(s.t.Context(), machine, api.Reprotect{})
}
func (s *rest) changePoint() (api.Job, error) {
	return s.ChangePoint(s.t.Context(), machine, api.ChangePoint{Option: "latest"})
}
func (s *rest) test() (api.Job, error) {
	return s.TestFailover(s.t.Context(), machine, api.TestFailover{Option: "latest"})
}
func (s *rest) cleanUp() (api.Job, error) {
	return s.CleanUpTest(s.t.Context(), machine, api.CleanUpTest{})
}

// situations are all of them. An item is protected before each but those of the
// beginning, which are named "unprotected, then …".
func situations() []situation {
	all := append(beginnings(), hydrating()...)
	for _, w := range ways() {
		all = append(all, slices.Concat(w.replicating(), w.testing(), w.failingOver(), w.failedOver(), w.committing(), w.forced())...)
	}
	return all
}

// cancels is how the job ends that a cancel cancels.
func cancels(state string) map[holdfast.Operation]string {
	return map[holdfast.Operation]string{holdfast.OpCancel: state}
}

// beginnings are the situations of an item that is not protected yet.
func beginnings() []situation {
	return []situation{
		{name: "enabling", state: holdfast.StateEnabling, direction: holdfast.Forward,
			bring: func(s *rest) { held(s, holdfast.StateEnabling, s.enable) }, ends: cancels("cancelled")},
		{name: "enabling failed", state: holdfast.StateEnablingFailed, direction: holdfast.Forward, bring: func(s *rest) {
			s.gatewayDown(errors.New("no route to host"))
			s.ended(s.enable())
			s.gatewayDown(nil)
		}},
		{name: "enabled again after a cancel", state: holdfast.StateProtected, direction: holdfast.Forward, bring: func(s *rest) {
			held(s, holdfast.StateEnabling, s.enable)
			if _, err := s.CancelItem(s.t.Context(), machine, api.CancelItem{}); err != nil {
				s.t.Fatal(err)
			}
			s.idle()
			s.done(s.enable())
		}},
		{name: "first copy", state: holdfast.StateInitialReplication, direction: holdfast.Forward, special: true,
			bring: func(s *rest) { s.copying(s.enable) }, ends: cancels("cancelled")},
		{name: "first copy, nobody waits for it", state: holdfast.StateInitialReplication, direction: holdfast.Forward,
			bring: func(s *rest) { s.unattended(s.enable) }},
	}
}

// copying starts a job that waits for a copy, which goes on until the release.
func (s *rest) copying(start func() (api.Job, error)) api.Job {
	s.t.Helper()
	copies := func(on bool) {
		s.gw.mu.Lock()
		defer s.gw.mu.Unlock()
		s.gw.copies = on
	}
	copies(true)
	s.release = func() { copies(false) }
	j, err := start()
	if err != nil {
		s.t.Fatal(err)
	}
	s.eventually("the copy has begun", func() bool { return s.item().State == "initial_replication" })
	return j
}

// unattended cancels a job that waits for a copy, which goes on without it.
func (s *rest) unattended(start func() (api.Job, error)) {
	s.t.Helper()
	j := s.copying(start)
	if _, err := s.CancelJob(s.t.Context(), j.ID); err != nil {
		s.t.Fatal(err)
	}
	s.ended(j, nil)
}

// at returns a situation of this direction.
func (w way) at(name string, state holdfast.State, bring func(*rest)) situation {
	return situation{name: fmt.Sprintf("%s, %s", name, w.Direction), state: state, direction: w.Direction, bring: bring}
}

func (w way) replicating() []situation {
	copying := w.at("copy the other way, nobody waits for it", holdfast.StateInitialReplication, func(s *rest) {
		opposite(w).committed(s)
		s.unattended(s.reprotect)
	})
	resync := w.at("protected, resync runs", holdfast.StateProtected, func(s *rest) {
		w.protected(s)
		held(s, holdfast.StateProtected, s.resync)
	})
	resync.special, resync.ends = true, cancels("cancelled")
	ill := w.at("protected, not healthy", holdfast.StateProtected, func(s *rest) {
		w.protected(s)
		s.gatewayDown(errors.New("no route to host"))
		s.eventually("that is a finding", func() bool { return s.item().Health.Level != string(holdfast.HealthHealthy) })
	})
	ill.special, ill.mend = true, func(s *rest) { s.gatewayDown(nil) }
	disabling := w.at("disabling", holdfast.StateDisabling, func(s *rest) {
		w.protected(s)
		held(s, holdfast.StateDisabling, s.disable)
	})
	return []situation{
		copying, resync, ill, disabling,
		w.at("protected", holdfast.StateProtected, w.protected),
		w.at("protected, failover cancelled", holdfast.StateProtected, func(s *rest) {
			w.protected(s)
			held(s, holdfast.StateFailingOver, func() (api.Job, error) { return w.leave(s) })
			if _, err := s.CancelItem(s.t.Context(), machine, api.CancelItem{}); err != nil {
				s.t.Fatal(err)
			}
			s.idle()
		}),
		w.at("protected, failover undone", holdfast.StateProtected, func(s *rest) { w.left(s); s.done(s.undo()) }),
		w.at("disabling failed", holdfast.StateDisablingFailed, func(s *rest) {
			w.protected(s)
			s.gatewayDown(errors.New("no route to host"))
			s.ended(s.disable())
			s.gatewayDown(nil)
		}),
	}
}

// testing are the situations with a test failover.
func (w way) testing() []situation {
	in := func(state holdfast.TestState) func(holdfast.Item) bool {
		return func(it holdfast.Item) bool { return it.TestState() == state && it.Tests[0].Job != "" }
	}
	all := []situation{
		w.at("tested", holdfast.StateProtected, func(s *rest) { w.protected(s); s.done(s.test()) }),
		w.at("tested twice", holdfast.StateProtected, func(s *rest) {
			w.protected(s)
			s.done(s.test())
			s.done(s.test())
			s.done(s.CleanUpTest(s.t.Context(), machine, api.CleanUpTest{Test: s.item().Test.Open[0].Name}))
		}),
		w.at("test failed", holdfast.StateProtected, func(s *rest) {
			w.protected(s)
			failing(w.to(s), "Define", func() { s.ended(s.test()) })
		}),
		w.at("test starts", holdfast.StateProtected, func(s *rest) { w.protected(s); s.heldAt(in(holdfast.TestStarting), s.test) }),
		w.at("test is cleaned up", holdfast.StateProtected, func(s *rest) {
			w.protected(s)
			s.done(s.test())
			s.heldAt(in(holdfast.TestCleaningUp), s.cleanUp)
		}),
		w.at("tested, failed over", holdfast.StateCommitPending, func(s *rest) {
			w.protected(s)
			s.done(s.test())
			s.done(w.leave(s))
			s.eventually("the machine needs no view", func() bool { return !s.item().Recovery.NeedsView })
		}),
	}
	for i := range all {
		all[i].special = true
	}
	return all
}

func (w way) failingOver() []situation {
	leaves := func(s *rest) (api.Job, error) { return w.leave(s) }
	running := w.at("failing over", holdfast.StateFailingOver, func(s *rest) {
		w.protected(s)
		held(s, holdfast.StateFailingOver, func() (api.Job, error) { return leaves(s) })
	})
	running.ends = cancels("cancelled")
	stopping := w.at("failing over, being cancelled", holdfast.StateFailingOver, func(s *rest) {
		w.protected(s)
		s.blocks(w.from(s), "Shutdown", func() (api.Job, error) { return w.plan(s) })
		if _, err := s.CancelItem(s.t.Context(), machine, api.CancelItem{}); err != nil {
			s.t.Fatal(err)
		}
	})
	stopping.ends = cancels("cancelled")
	late := w.at("failing over, the source is fenced off", holdfast.StateFailingOver, func(s *rest) {
		w.protected(s)
		s.blocks(w.to(s), w.method, func() (api.Job, error) { return leaves(s) })
	})
	late.special = true
	return []situation{
		running, stopping, late,
		w.at("failover failed", holdfast.StateFailoverFailed, func(s *rest) {
			w.protected(s)
			failing(w.to(s), w.method, func() { s.ended(leaves(s)) })
		}),
		w.at("undo failed", holdfast.StateFailoverFailed, func(s *rest) {
			w.left(s)
			failing(w.from(s), "PowerOn", func() { s.ended(s.undo()) })
		}),
		w.at("undoing", holdfast.StateUndoingFailover, func(s *rest) {
			w.left(s)
			held(s, holdfast.StateUndoingFailover, s.undo)
		}),
	}
}

// failedOver are the situations between a failover and its commit.
func (w way) failedOver() []situation {
	lost := w.at("failed over, the source is lost", holdfast.StateCommitPending, func(s *rest) {
		w.protected(s)
		w.from(s).LoseHost()
		if w.Direction == holdfast.Forward {
			s.done(w.leave(s))
		} else {
			s.done(s.Failback(s.t.Context(), machine, api.Failback{Option: "latest", Unplanned: true}))
		}
		s.eventually("the machine needs no view", func() bool { return !s.item().Recovery.NeedsView })
	})
	lost.mend, lost.away = func(s *rest) { w.from(s).SetDown(false) }, w.Direction == holdfast.Forward
	returned := w.at("failed over, the source is back and guarded", holdfast.StateCommitPending, func(s *rest) {
		lost.bring(s)
		s.kill()
		w.from(s).SetDown(false)
		s.start(nil) // it looks at once
		s.serve()
		s.eventually("it is guarded", func() bool { s.item(); return len(w.from(s).Guards()) == 1 })
	})
	return []situation{
		lost, returned,
		w.at("failed over", holdfast.StateCommitPending, w.left),
		w.at("changing point", holdfast.StateChangingPoint, func(s *rest) {
			w.left(s)
			held(s, holdfast.StateChangingPoint, s.changePoint)
		}),
		w.at("change of point failed", holdfast.StateChangingPointFailed, func(s *rest) {
			w.left(s)
			failing(w.to(s), w.method, func() { s.ended(s.changePoint()) })
		}),
	}
}

// hydrating are the situations of a machine that still reads from the vault,
// which is so where a failover has made it.
func hydrating() []situation {
	w := ways()[0]
	hydrates := func(s *rest) {
		s.blocks(s.recovery, "HydrateStep", func() (api.Job, error) { return s.done(w.leave(s)), nil })
	}
	all := []situation{
		w.at("failed over, hydrating", holdfast.StateCommitPending, hydrates),
		w.at("committed, hydrating", holdfast.StateCommitted, func(s *rest) { hydrates(s); s.done(s.commit()) }),
	}
	for i := range all {
		all[i].special = true
	}
	return all
}

// opposite is the other way.
func opposite(w way) way {
	return ways()[map[holdfast.Direction]int{holdfast.Forward: 1, holdfast.Reverse: 0}[w.Direction]]
}

func (w way) committing() []situation {
	turning := w.at("reprotecting", holdfast.StateReprotecting, func(s *rest) {
		w.committed(s)
		held(s, holdfast.StateReprotecting, s.reprotect)
	})
	turning.ends = cancels("cancelled")
	turned := opposite(w).at("the other way round, its copy runs", holdfast.StateInitialReplication, func(s *rest) {
		w.committed(s)
		s.copying(s.reprotect)
	})
	turned.special, turned.ends = true, cancels("cancelled")
	return []situation{
		turning, turned,
		w.at("committing", holdfast.StateCommitting, func(s *rest) { w.left(s); held(s, holdfast.StateCommitting, s.commit) }),
		w.at("commit failed", holdfast.StateCommitFailed, func(s *rest) {
			w.left(s)
			s.refuse(errors.New("disk full"), works(holdfast.StateCommitting))
			s.ended(s.commit())
		}),
		w.at("committed", holdfast.StateCommitted, w.committed),
		w.at("reprotect cancelled", holdfast.StateCommitted, func(s *rest) {
			w.committed(s)
			held(s, holdfast.StateReprotecting, s.reprotect)
			if _, err := s.CancelItem(s.t.Context(), machine, api.CancelItem{}); err != nil {
				s.t.Fatal(err)
			}
			s.idle()
		}),
		w.at("reprotect failed", holdfast.StateReprotectFailed, func(s *rest) {
			w.committed(s)
			failing(w.to(s), "Machine", func() { s.ended(s.reprotect()) })
		}),
	}
}

// forced are the situations that nothing leads to in this version.
func (w way) forced() []situation {
	all := []situation{w.at("replication broken", holdfast.StateReplicationBroken, func(s *rest) {
		w.protected(s)
		s.force(holdfast.StateReplicationBroken)
	})}
	if w.Direction == holdfast.Reverse {
		return all // a migration leads to the recovery site alone
	}
	for _, state := range []holdfast.State{holdfast.StateMigrating, holdfast.StateMigrationFailed, holdfast.StateMigrated} {
		all = append(all, w.at(string(state), state, func(s *rest) { w.left(s); s.force(state) }))
	}
	return all
}

// force records that the item is in a state, as if its jobs had brought it there.
func (s *rest) force(state holdfast.State) {
	s.t.Helper()
	s.kill()
	db, err := store.Open(s.t.Context(), s.db)
	if err != nil {
		s.t.Fatal(err)
	}
	it, err := db.Item(s.t.Context(), machine)
	if err == nil {
		it.State = state
		_, err = db.UpdateItem(s.t.Context(), it)
	}
	if err := errors.Join(err, db.Close()); err != nil {
		s.t.Fatal(err)
	}
	s.start(nil)
	s.serve()
}
