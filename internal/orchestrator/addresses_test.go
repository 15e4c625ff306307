package orchestrator_test

import (
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/providertest"
)

// addressed are guests that note which addresses they were told to set.
type addressed struct {
	mu     sync.Mutex
	told   []string
	refuse error
}

func (a *addressed) command(_, command string, args map[string]any) (any, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch command {
	case "guest-exec":
		if a.refuse != nil {
			return nil, a.refuse
		}
		b, _ := json.Marshal(args["arg"])
		a.told = append(a.told, strings.TrimPrefix(strings.NewReplacer(`"`, "", ",", " ", "[", "", "]", "").Replace(string(b)), "-s -- "))
		return map[string]any{"pid": 7}, nil
	case "guest-exec-status":
		return map[string]any{"exited": true, "exitcode": 0}, nil
	}
	return nil, errors.New("unknown command")
}

func (a *addressed) was() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := strings.Join(a.told, "; ")
	a.told = nil
	return out
}

// TestAddresses gives a guest addresses where it is brought up, in a test too,
// keeps them with a change of point, and gives it its own again at home, later if
// it refuses.
func TestAddresses(t *testing.T) {
	inBubble(t, "life", func(t *testing.T) {
		r := newRigAt(t, time.Second)
		ctx := t.Context()
		guests := &addressed{}
		stop := make(chan struct{})
		defer close(stop)
		agents := func() { // in all machines
			for _, f := range []*providertest.Fake{r.primary, r.recovery} {
				all, _ := f.Site().Inventory.Machines(ctx)
				for _, m := range all {
					f.SetAgent(m.ID, 1)
				}
			}
		}
		for _, f := range []*providertest.Fake{r.primary, r.recovery} {
			f.SetCommands(guests.command)
		}
		withAgents := func(j api.Job, err error) api.Job {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
			r.eventually("job "+j.Title+" ends", func() bool {
				agents()
				j, err = r.GetJob(ctx, j.ID)
				return err == nil && j.Ended()
			})
			if j.State != "succeeded" {
				t.Fatalf("job %s: %+v", j.Title, j.Error)
			}
			return j
		}
		card := func(address string) api.Addressing {
			return api.Addressing{NICs: []api.NIC{{Card: "default", Addresses: []string{address}}}}
		}
		r.protect()
		for _, bad := range []api.Addressing{card("10.8.0.12"), card("10.8.0.0/24"), {By: "magic", NICs: card("dhcp").NICs}, {NICs: []api.NIC{{Card: "lan", Addresses: []string{"dhcp"}}}}} {
			if _, err := r.FailoverItem(ctx, machine, api.Failover{Option: "latest", Addressing: bad}); err == nil {
				t.Errorf("addressing %+v was taken", bad)
			}
			if _, err := r.TestFailover(ctx, machine, api.TestFailover{Option: "latest", Addressing: bad}); err == nil {
				t.Errorf("addressing %+v was taken for a test", bad)
			}
		}
		r.isIn("protected")
		withAgents(r.TestFailover(ctx, machine, api.TestFailover{Option: "latest", Addressing: card("10.9.0.12/24")}))
		if got := guests.was(); got != "set 52:54:00:00:00:01 static 10.9.0.12/24 - -" {
			t.Errorf("the test machine was told %q", got)
		}
		r.done(r.CleanUpTest(ctx, machine, api.CleanUpTest{}))

		withAgents(r.FailoverItem(ctx, machine, api.Failover{Option: "latest", Addressing: card("10.8.0.12/24")}))
		if got := guests.was(); got != "set 52:54:00:00:00:01 static 10.8.0.12/24 - -" {
			t.Errorf("the machine was told %q", got)
		}
		if a := r.item().Recovery.Addresses; len(a) != 1 || a[0] != "10.8.0.12" {
			t.Errorf("the item has %q", a)
		}
		withAgents(r.ChangePoint(ctx, machine, api.ChangePoint{Option: "latest"}))
		if got := guests.was(); got != "set 52:54:00:00:00:01 static 10.8.0.12/24 - -" {
			t.Errorf("after the change of point it was told %q", got)
		}
		r.eventually("nothing is read from the vault", func() bool { return !r.item().Recovery.NeedsView })
		r.done(r.Commit(ctx, machine, api.Commit{}))
		r.done(r.Reprotect(ctx, machine, api.Reprotect{}))

		guests.refuse = errors.New("not now")
		j := withAgents(r.Failback(ctx, machine, api.Failback{Option: "latest"}))
		if len(j.Warnings) == 0 || !strings.Contains(strings.Join(j.Warnings, " "), "not now") {
			t.Errorf("a guest that refused left the warnings %q", j.Warnings)
		}
		left := func() bool {
			for _, f := range r.item().Health.Findings {
				if f.Code == "HF1505" {
					return true
				}
			}
			return false
		}
		r.eventually("it is known that the addresses are left", left)
		guests.mu.Lock()
		guests.refuse = nil
		guests.mu.Unlock()
		r.eventually("they are taken back", func() bool { return !left() })
		if got := guests.was(); got != "restore" {
			t.Errorf("at home it was told %q", got)
		}
		r.done(r.Commit(ctx, machine, api.Commit{}))
		r.done(r.Reprotect(ctx, machine, api.Reprotect{}))

		// A guest without an agent is brought up all the same.
		j, err := r.FailoverItem(ctx, machine, api.Failover{Option: "latest", Addressing: card("10.8.0.12/24")})
		for _, h := range r.recovery.Handles() {
			if st, serr := r.recovery.Site().Target.Status(ctx, h); serr == nil {
				r.recovery.SetAgent(st.MachineID, 0)
			}
		}
		all, _ := r.recovery.Site().Inventory.Machines(ctx)
		for _, m := range all {
			r.recovery.SetAgent(m.ID, 0)
		}
		j = r.done(j, err)
		if len(j.Warnings) == 0 {
			t.Error("nobody is told that the guest has no agent")
		}
		if _, m := r.active(); m.Power != provider.PowerRunning {
			t.Error("it does not run")
		}
	})
}
