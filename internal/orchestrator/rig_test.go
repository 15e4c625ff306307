package orchestrator_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/gateway"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/orchestrator"
	"github.com/holdfast-dr/holdfast/internal/planner"
	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/providertest"
	"github.com/holdfast-dr/holdfast/internal/report"
	"github.com/holdfast-dr/holdfast/internal/script"
	"github.com/holdfast-dr/holdfast/internal/store"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

const (
	diskSize = 1 << 20
	machine  = "shop"
)

// rig is two fake sites, a gateway and a vault that outlive the server, and a
// server that can be killed.
type rig struct {
	t                 *testing.T
	world             *providertest.World
	primary, recovery *providertest.Fake
	vault             *vault.Vault
	gw                *fakeGateway
	db, scripts       string
	confirm           error
	ticks             atomic.Int64
	gate              gate
	tick              time.Duration // between two looks at something

	*orchestrator.Orchestrator
	plans *planner.Planner
	views *memViews
	scrub orchestrator.Scrub
	store objstore.Store // the vault's
	kill  func()
}

// memViews serves views in memory.
type memViews struct {
	mu     sync.Mutex
	images map[string]block.Image
}

func (v *memViews) Socket() string { return "/nowhere" }

func (v *memViews) Add(name string, image block.Image) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.images[name] = image
	return nil
}

func (v *memViews) Has(name string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.images[name] != nil
}

func (v *memViews) Remove(name string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.images, name)
	return nil
}

// inBubble runs a test in which time passes only while everybody waits: what
// waits for an hour is over at once.
func inBubble(t *testing.T, name string, f func(t *testing.T)) bool {
	t.Helper()
	return t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}

func newRig(t *testing.T) *rig {
	t.Helper()
	return newRigAt(t, 5*time.Millisecond)
}

// bubbleRig is a rig for a bubble, where waiting costs nothing and looking does.
func bubbleRig(t *testing.T) *rig {
	t.Helper()
	return newRigAt(t, 50*time.Millisecond)
}

func newRigAt(t *testing.T, tick time.Duration) *rig {
	t.Helper()
	w := providertest.NewWorld()
	r := &rig{t: t, tick: tick, world: w, primary: providertest.NewFake("primary", w), recovery: providertest.NewFake("recovery", w),
		db: filepath.Join(memDir(t), "holdfast.db"), scripts: t.TempDir()}
	m := providertest.FakeMachine("m1", machine)
	m.Disks = []provider.Disk{{ID: "vda", Size: diskSize, Format: "raw", Boot: true}, {ID: "vdb", Size: 64 << 10, Format: "raw"}}
	r.primary.AddMachine(m)
	for _, f := range []*providertest.Fake{r.primary, r.recovery} {
		f.SetViews(r.openView)
	}
	mem := vfs.NewMem()
	if err := mem.MkdirAll("/v"); err != nil {
		t.Fatal(err)
	}
	objects, err := objstore.NewDir(mem, "/v")
	if err != nil {
		t.Fatal(err)
	}
	key, err := vault.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	r.store = objects
	if r.vault, err = vault.Create(t.Context(), objects, vault.CreateOptions{Key: key, Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	r.gw = &fakeGateway{rig: r, orders: map[string]*fakeReplication{}, forgetful: "none"}
	r.start(nil)
	for _, s := range []string{"primary", "recovery"} {
		if _, err := r.AddSite(t.Context(), api.AddSite{Name: s, Provider: s}); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(r.close)
	return r
}

// memDir is a directory in memory where there is such a place: these tests kill
// servers, not hosts, and would otherwise mostly wait for the disk.
func memDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "holdfast-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// now is the time, never the same twice: in a bubble it would stand still.
func (r *rig) now() time.Time {
	return time.Now().Add(time.Duration(r.ticks.Add(1)) * time.Microsecond)
}

// openView is how a fake site reads a view.
func (r *rig) openView(_ context.Context, s provider.DiskSource) (block.Image, error) {
	r.views.mu.Lock()
	defer r.views.mu.Unlock()
	if img := r.views.images[s.Export]; img != nil {
		return img, nil
	}
	return nil, fmt.Errorf("export %s is not served", s.Export)
}

// start starts a server, as after the death of an earlier one.
func (r *rig) start(hook func(string, job.Job) error) {
	r.t.Helper()
	db, err := store.Open(r.t.Context(), r.db)
	if err != nil {
		r.t.Fatal(err)
	}
	r.views = &memViews{images: map[string]block.Image{}}
	r.Orchestrator, err = orchestrator.New(orchestrator.Options{
		Store: gatedStore{db, &r.gate}, Jobs: db, Vault: r.vault, VaultRef: gateway.VaultRef{Location: "/v", Key: "k"}, Views: r.views, Pictures: &memPictures{}, Scripts: r.scripts, Scrub: r.scrub,
		Gateway: func(address string) (orchestrator.Gateway, error) { return addressedGateway{r.gw, address}, nil }, Observe: r.tick, JobHook: hook, Now: r.now,
		Confirm: func(context.Context) error { return r.confirm },
		OpenSite: func(_ context.Context, name string, _ json.RawMessage) (*provider.Site, error) {
			if name == "primary" {
				return r.primary.Site(), nil
			}
			return r.recovery.Site(), nil
		},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.plans, err = planner.New(planner.Options{Store: db, Engine: r.Engine(), Items: r.Orchestrator, Operations: r.Orchestrator, Tests: r.Orchestrator,
		Switches: r.Orchestrator, Groups: r.Orchestrator, Guests: r.Orchestrator, Evidence: planner.Evidence{PublicKey: report.EncodePublic(testKey.Public().(ed25519.PublicKey)),
			Sign: func(ctx context.Context, rep report.Report) ([]byte, error) { return report.Sign(ctx, rep, testKey) }},
		Host: script.Host{Scripts: r.scripts, Secrets: r.scripts}, Remote: r.Orchestrator, Now: r.now})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func(o *orchestrator.Orchestrator) { done <- o.Run(ctx) }(r.Orchestrator)
	r.kill = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, errKilled) {
			r.t.Errorf("server: %v", err)
		}
		if err := db.Close(); err != nil {
			r.t.Error(err)
		}
	})
}

// errKilled is how the hook of a test kills the server.
var errKilled = errors.New("killed here")

// close ends the server and looks at what no test may leave behind.
func (r *rig) close() {
	r.kill()
	r.world.RequireOneLive(r.t)
	rep, err := r.vault.Verify(context.Background(), vault.VerifyOptions{})
	if err != nil || len(rep.Damaged) > 0 {
		r.t.Errorf("verify: %+v, %v", rep, err)
	}
}

type memPictures struct{ png []byte }

func (p *memPictures) Keep(_ string, png []byte) error { p.png = png; return nil }
func (p *memPictures) Picture(string) ([]byte, error)  { return p.png, nil }

// eventually waits until f is true.
func (r *rig) eventually(what string, f func() bool) {
	r.t.Helper()
	for range 4000 {
		if f() {
			return
		}
		time.Sleep(r.tick)
	}
	it, _ := r.GetItem(r.t.Context(), machine)
	jobs, _ := r.ListJobs(r.t.Context(), api.JobQuery{})
	r.t.Fatalf("it does not come to pass that %s; the item is %+v, the jobs %+v", what, it, jobs)
}

// ended waits for a job's end.
func (r *rig) ended(j api.Job, err error) api.Job {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
	r.eventually("job "+j.Title+" ends", func() bool {
		j, err = r.GetJob(r.t.Context(), j.ID)
		return err == nil && j.Ended()
	})
	return j
}

// done waits for a job, which must succeed.
func (r *rig) done(j api.Job, err error) api.Job {
	r.t.Helper()
	j = r.ended(j, err)
	if j.State != "succeeded" {
		r.t.Fatalf("job %s: %s: %+v", j.Title, j.State, j.Error)
	}
	return j
}

func (r *rig) item() api.Item {
	r.t.Helper()
	it, err := r.GetItem(r.t.Context(), machine)
	if err != nil {
		r.t.Fatal(err)
	}
	return it
}

func (r *rig) isIn(state string) {
	r.t.Helper()
	if it := r.item(); it.State != state {
		r.t.Fatalf("the item is %s, want %s", it.State, state)
	}
}

func (r *rig) protect() {
	r.t.Helper()
	r.done(r.ProtectMachine(r.t.Context(), api.Protect{Machine: machine, Site: "primary", RecoverySite: "recovery"}))
	r.isIn("protected")
}

// active returns the one machine that lives, and its site.
func (r *rig) active() (*providertest.Fake, provider.Machine) {
	r.t.Helper()
	var at *providertest.Fake
	var found provider.Machine
	for _, f := range []*providertest.Fake{r.primary, r.recovery} {
		all, err := f.Site().Inventory.Machines(r.t.Context())
		if err != nil {
			continue
		}
		for _, m := range all {
			if m.Power != provider.PowerRunning || m.Name != machine {
				continue
			}
			if at != nil {
				r.t.Fatalf("machine %s runs at both sites", machine)
			}
			at, found = f, m
		}
	}
	if at == nil {
		r.t.Fatalf("machine %s runs nowhere", machine)
	}
	return at, found
}

// write has the machine that lives write to its disk, and its replication, if
// there is one, bring that to the vault.
func (r *rig) write(off int64, fill byte) {
	r.t.Helper()
	at, m := r.active()
	p := bytes.Repeat([]byte{fill}, 4096)
	if err := at.Disk(m.ID, "vda").WriteAt(r.t.Context(), p, off); err != nil {
		r.t.Fatal(err)
	}
	r.gw.write(m.ID, "vda", off, p)
}

// reads looks at a byte of the machine that lives.
func (r *rig) reads(off int64, want byte) {
	r.t.Helper()
	at, m := r.active()
	var p [1]byte
	if err := at.Disk(m.ID, "vda").ReadAt(r.t.Context(), p[:], off); err != nil {
		r.t.Fatal(err)
	}
	if p[0] != want {
		r.t.Errorf("machine %s reads %d at %d, want %d", m.Name, p[0], off, want)
	}
}
