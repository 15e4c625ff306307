package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/nbd"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// rig is a vault with one stream, and a gateway's directory.
type rig struct {
	t     *testing.T
	store *moodyStore
	vault *vault.Vault
	id    holdfast.StreamID
	dir   string
	disks []vault.Disk
}

// moodyStore is an object store that can be made to fail.
type moodyStore struct {
	objstore.Store
	mu  sync.Mutex
	err error
}

func (m *moodyStore) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

// PutIfAbsent fails as long as it was told to.
func (m *moodyStore) PutIfAbsent(ctx context.Context, name string, data []byte) error {
	m.mu.Lock()
	err := m.err
	m.mu.Unlock()
	if err != nil {
		return fmt.Errorf("put object %s: %w", name, err)
	}
	return m.Store.PutIfAbsent(ctx, name, data)
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dirStore, err := objstore.NewDir(vfs.OS, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	key, err := vault.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, store: &moodyStore{Store: dirStore}, id: holdfast.NewStreamID(), dir: filepath.Join(t.TempDir(), "gw"),
		disks: []vault.Disk{{ID: "vda", Size: 1 << 20}, {ID: "vdb", Size: 100 * 512}}}
	if r.vault, err = vault.Create(t.Context(), r.store, vault.CreateOptions{Key: key, Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.vault.CreateStream(t.Context(), vault.StreamOptions{ID: r.id, Disks: r.disks, Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		rep, err := r.vault.Verify(context.Background(), vault.VerifyOptions{})
		if err != nil || len(rep.Damaged) > 0 {
			t.Errorf("verify: %+v, %v", rep, err)
		}
	})
	return r
}

// open opens the stream as a new process would.
func (r *rig) open(tuning Tuning) *stream {
	r.t.Helper()
	st, err := r.vault.OpenStream(r.t.Context(), r.id)
	if err != nil {
		r.t.Fatal(err)
	}
	w, err := st.Writer(r.t.Context(), vault.WriterOptions{Timeline: 1, Generation: 1})
	if err != nil {
		r.t.Fatal(err)
	}
	s, err := newStream(r.t.Context(), StreamOptions{Stream: st, Writer: w, Disks: r.disks, FS: vfs.OS, Dir: r.dir, Tuning: tuning})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := s.begin(); err != nil {
		r.t.Fatal(err)
	}
	return s
}

// run runs the stream's loops until stop.
func (r *rig) run(s *stream) (stop func()) {
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.run(ctx); err != nil {
			r.t.Error(err)
		}
	}()
	return func() { cancel(); <-done }
}

// eventually waits until f is true.
func (r *rig) eventually(what string, f func() bool) {
	r.t.Helper()
	for range 2000 {
		if f() {
			return
		}
		if !sleep(r.t.Context(), 5*time.Millisecond) {
			break
		}
	}
	r.t.Fatalf("it does not come to pass that %s", what)
}

// connect connects a source to every disk, as soon as that is allowed.
func (r *rig) connect(s *stream, conn uint64) map[string]context.Context {
	r.t.Helper()
	ctxs := map[string]context.Context{}
	for id, d := range s.disks {
		r.eventually("disk "+id+" takes a source", func() bool { return d.connected(conn, func(error) {}) == nil })
		ctxs[id] = nbd.WithConn(r.t.Context(), &nbd.Conn{ID: conn, Export: id})
	}
	return ctxs
}

// newest returns a disk as the newest position of the vault has it.
func (r *rig) newest(id string) []byte {
	r.t.Helper()
	st, err := r.vault.OpenStream(r.t.Context(), r.id)
	if err == nil {
		err = st.Refresh(r.t.Context())
	}
	if err != nil {
		r.t.Fatal(err)
	}
	view, err := st.View(r.t.Context(), 1, st.Timelines()[0].Tail.Position)
	if err != nil {
		r.t.Fatal(err)
	}
	image, err := view.Disk(id)
	if err != nil {
		r.t.Fatal(err)
	}
	p := make([]byte, image.Size())
	if err := image.ReadAt(r.t.Context(), p, 0); err != nil {
		r.t.Fatal(err)
	}
	return p
}

// TestAcknowledgedSurvives abandons the process again and again, with writes
// acknowledged that were not sealed, sealed and not committed, or spooled: each
// next process has all of them.
func TestAcknowledgedSurvives(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	model := map[string][]byte{}
	for _, d := range r.disks {
		model[d.ID] = make([]byte, d.Size)
	}
	rng := rand.New(rand.NewPCG(7, 7))
	for life := range uint64(25) {
		s := r.open(Tuning{SealSize: 64 << 10})
		stop := r.run(s)
		ctxs := r.connect(s, life+1)
		if rng.IntN(3) == 0 {
			r.store.fail(syscall.EIO) // what follows is sealed and cannot be committed
		}
		for range rng.IntN(120) {
			d := r.disks[rng.IntN(len(r.disks))]
			off := rng.Int64N(d.Size/512) * 512
			p := make([]byte, min(512*(1+rng.Int64N(40)), d.Size-off))
			if rng.IntN(4) > 0 {
				for i := range p {
					p[i] = byte(rng.Uint32())
				}
			}
			if err := s.disks[d.ID].WriteAt(ctxs[d.ID], p, off, false); err != nil {
				t.Fatal(err)
			}
			copy(model[d.ID][off:], p)
			if rng.IntN(30) == 0 {
				wake(s.kick)
			}
		}
		stop() // without sealing: what is not in the vault is in journal and spool
		r.store.fail(nil)
	}
	s := r.open(Tuning{})
	stop := r.run(s)
	last := s.opts.Writer.Next() - 1
	r.eventually("everything is committed", func() bool { return s.committed() >= last })
	stop()
	for id, want := range model {
		if !bytes.Equal(r.newest(id), want) {
			t.Errorf("disk %s differs from what was acknowledged", id)
		}
	}
	if n := s.journal.Size(); n > 1<<10 {
		t.Errorf("the journal still has %d bytes", n)
	}
}

// TestRescanStoresOnlyChanges writes the same again through a new connection.
func TestRescanStoresOnlyChanges(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open(Tuning{})
	defer r.run(s)()
	data := bytes.Repeat([]byte("abcdefgh"), 64<<10/8)
	d := s.disks["vda"]
	ctxs := r.connect(s, 1)
	if err := d.WriteAt(ctxs["vda"], data, 0, false); err != nil {
		t.Fatal(err)
	}
	for _, d := range s.disks {
		d.disconnected(1)
	}
	ctxs = r.connect(s, 2)
	before := s.opts.Writer.Next()
	changed := bytes.Clone(data)
	changed[5000]++
	if err := d.WriteAt(ctxs["vda"], changed, 0, false); err != nil {
		t.Fatal(err)
	}
	if err := d.Zero(ctxs["vda"], 512<<10, 256<<10, false, false); err != nil {
		t.Fatal(err)
	}
	if n := s.opts.Writer.Next() - before; n != 1 {
		t.Errorf("%d writes were stored, want the one block that changed", n)
	}
	if got := s.status().Counts.Skipped; got != int64(len(data))-blockSize {
		t.Errorf("%d bytes were skipped, want %d", got, len(data)-blockSize)
	}
}

// TestSynced has consistency follow the connections of all disks.
func TestSynced(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open(Tuning{})
	defer r.run(s)()
	r.connect(s, 1)
	epochs := map[string]uint64{}
	for id, d := range s.status().Disks {
		epochs[id] = d.Epoch
	}
	if err := s.synced("vda", epochs["vda"]+1); !errors.Is(err, ErrStaleEpoch) {
		t.Errorf("a stale epoch: %v", err)
	}
	if err := s.synced("nix", 1); !errors.Is(err, ErrUnknownDisk) {
		t.Errorf("an unknown disk: %v", err)
	}
	if err := s.synced("vda", epochs["vda"]); err != nil || s.status().Consistent {
		t.Errorf("with one of two disks in sync: %v, consistent %t", err, s.status().Consistent)
	}
	if err := s.synced("vdb", epochs["vdb"]); err != nil || !s.status().Consistent {
		t.Errorf("with both disks in sync: %v, consistent %t", err, s.status().Consistent)
	}
	if err := s.disks["vda"].connected(9, nil); err == nil {
		t.Error("a second source was let in")
	}
	s.disks["vdb"].disconnected(1)
	if s.status().Consistent {
		t.Error("consistent although a disk has lost its source")
	}
	r.eventually("the disk takes a source again", func() bool { return s.disks["vdb"].connected(2, func(error) {}) == nil })
	if err := s.synced("vdb", s.status().Disks["vdb"].Epoch); err != nil {
		t.Fatal(err)
	}
	before := s.status()
	if err := s.cutOff("vdb"); err != nil || !before.Consistent || s.status().Consistent {
		t.Errorf("a disk is cut off: %v; consistent before %t, after %t", err, before.Consistent, s.status().Consistent)
	}
	if err := s.synced("vdb", epochs["vdb"]); !errors.Is(err, ErrStaleEpoch) {
		t.Errorf("the epoch before: %v", err)
	}
}

// TestFullVaultNeverHurts fills the vault: writes stay quick, are cut off at the
// bound, never answered with an error, and all is well when there is room again.
func TestFullVaultNeverHurts(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open(Tuning{SpoolLimit: 2 << 20, SealSize: 128 << 10, SealInterval: 20 * time.Millisecond})
	defer r.run(s)()
	ctx := r.connect(s, 1)["vda"]
	r.store.fail(syscall.ENOSPC)
	rng := rand.New(rand.NewPCG(9, 9))
	p := make([]byte, 32<<10)
	var slowest time.Duration
	var err error
	for n := 0; n < 2000 && err == nil; n++ {
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		began := time.Now()
		err = s.disks["vda"].WriteAt(ctx, p, int64(n%32)*int64(len(p)), false)
		slowest = max(slowest, time.Since(began))
	}
	if !errors.Is(err, nbd.ErrDrop) {
		t.Fatalf("at the bound a write gives %v, want the connection dropped", err)
	}
	if slowest > time.Second {
		t.Errorf("a write took %s", slowest)
	}
	// A segment that is just being sealed is counted twice; then all that waits is
	// the bound, one request, and what the format adds.
	r.eventually("no more waits than the bound allows", func() bool { return s.status().Backlog < 2<<20+int64(len(p))+64<<10 })
	r.eventually("the status names the full vault", func() bool { return s.status().Code == CodeVaultFull })
	r.store.fail(nil)
	last := s.opts.Writer.Next() - 1
	r.eventually("everything is committed", func() bool { return s.committed() >= last })
	r.connect(s, 2)
	r.eventually("the problem is gone", func() bool { return s.status().Code != CodeVaultFull })
}

// TestFenced closes the timeline under the gateway.
func TestFenced(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open(Tuning{SealInterval: 10 * time.Millisecond})
	defer r.run(s)()
	ctx := r.connect(s, 1)["vda"]
	st, err := r.vault.OpenStream(t.Context(), r.id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.End(t.Context(), 1, vault.EndOptions{Generation: 2, Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	p := bytes.Repeat([]byte{1}, 4096)
	r.eventually("the gateway finds itself fenced off", func() bool {
		return errors.Is(s.disks["vda"].WriteAt(ctx, p, 0, false), nbd.ErrDrop)
	})
	if st := s.status(); st.Code != CodeFenced {
		t.Errorf("status is %+v", st)
	}
	if err := s.disks["vda"].connected(2, nil); !errors.Is(err, vault.ErrFenced) {
		t.Errorf("a source that comes back: %v", err)
	}
}
