package vault_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// faultyVault is a vault in memory whose file system can be made to fail.
func faultyVault(t *testing.T, wrap func(vfs.FS) vfs.FS) (*vfs.Mem, *vault.Vault, *vault.Stream) {
	t.Helper()
	mem := vfs.NewMem()
	if err := mem.MkdirAll("v"); err != nil {
		t.Fatal(err)
	}
	store, err := objstore.NewDir(wrap(mem), "v")
	if err != nil {
		t.Fatal(err)
	}
	key, err := vault.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	v, err := vault.Create(t.Context(), store, vault.CreateOptions{Key: key, Now: start})
	if err != nil {
		t.Fatal(err)
	}
	s, err := v.CreateStream(t.Context(), vault.StreamOptions{ID: holdfast.StreamID{1}, Disks: []vault.Disk{{ID: "vda", Size: 1 << 20}}, Now: start})
	if err != nil {
		t.Fatal(err)
	}
	return mem, v, s
}

// sealOne writes a block of b and seals it.
func sealOne(t *testing.T, w *vault.Writer, b byte, now time.Time) *vault.Sealed {
	t.Helper()
	if _, err := w.Write("vda", int64(b)*512, bytes.Repeat([]byte{b}, 512), now); err != nil {
		t.Error(err)
		return nil
	}
	sealed, err := w.Seal(now)
	if err != nil {
		t.Error(err)
	}
	return sealed
}

// TestCommitOperations fixes what a commit does to the file system, and in which
// order: see docs/format/vault.md.
func TestCommitOperations(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	_, _, s := faultyVault(t, func(fsys vfs.FS) vfs.FS { return vfs.WithLog(fsys, &log) })
	w := openWriter(t, s)
	if err := w.Commit(t.Context(), sealOne(t, w, 1, start)); err != nil {
		t.Fatal(err)
	}
	second := sealOne(t, w, 2, start)
	log.Reset()
	if err := w.Commit(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(log.String()) {
		f := strings.Fields(line)
		for i, x := range f {
			if strings.Contains(x, "/.tmp/") {
				f[i] = "TEMP"
			} else if strings.HasPrefix(x, "+") {
				f[i] = "ALL"
			}
		}
		switch {
		case f[0] == "stat": // reads only
		case f[1] == "v/vault":
			if f[0] == "open" { // to see that it is still this vault
				got = append(got, "look")
			}
		default:
			got = append(got, strings.Join(f, " "))
		}
	}
	dir := "v/streams/" + s.ID().String() + "/00000001"
	want := []string{"look", "create TEMP", "write TEMP ALL", "sync TEMP", "close TEMP", "link TEMP " + dir + "/0000000000000002.seg", "sync-dir " + dir, "look", "remove TEMP"}
	if !slices.Equal(got, want) {
		t.Errorf("a commit does\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// TestBadPlaces works with stores that are read-only, missing or something else.
func TestBadPlaces(t *testing.T) {
	t.Parallel()
	var faults vfs.Faults
	mem, _, s := faultyVault(t, func(fsys vfs.FS) vfs.FS { return vfs.WithFaults(fsys, &faults) })
	w := openWriter(t, s)
	sealed := sealOne(t, w, 1, start)
	faults.Inject(vfs.Fault{Kind: vfs.OpCreate, Count: -1, Err: syscall.EROFS})
	if err := w.Commit(t.Context(), sealed); !errors.Is(err, syscall.EROFS) {
		t.Errorf("commit to a read-only vault: %v, want EROFS", err)
	}
	if err := s.Refresh(t.Context()); err != nil {
		t.Errorf("refresh of a read-only vault: %v", err)
	}
	if _, err := objstore.NewDir(mem, "missing"); err == nil {
		t.Error("a store in a directory that is not there opens")
	}
	key, err := vault.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vault.Open(t.Context(), memStore(t, nil), key, vault.Options{}); !errors.Is(err, vault.ErrNotVault) {
		t.Errorf("open an empty store: %v, want ErrNotVault", err)
	}
	_, golden := goldenObjects(t)
	if _, err := vault.Open(t.Context(), memStore(t, golden), key, vault.Options{}); !errors.Is(err, vault.ErrWrongKey) {
		t.Errorf("open with another key: %v, want ErrWrongKey", err)
	}
	if _, err := vault.Create(t.Context(), memStore(t, golden), vault.CreateOptions{Key: key, Now: start}); !errors.Is(err, vault.ErrExists) {
		t.Errorf("create over a vault: %v, want ErrExists", err)
	}
	golden["vault"] = bytes.Replace(golden["vault"], []byte(`"format": 1`), []byte(`"format": 2`), 1)
	if _, err := vault.Open(t.Context(), memStore(t, golden), mustKey(t, goldenKey), vault.Options{}); !errors.Is(err, vault.ErrNewerFormat) {
		t.Errorf("open a vault of format 2: %v, want ErrNewerFormat", err)
	}
}

// TestClockBackAcrossFork sets the clock back: times do not go back in another
// opening, across a fork, and in an end.
func TestClockBackAcrossFork(t *testing.T) {
	t.Parallel()
	_, v, s := faultyVault(t, func(fsys vfs.FS) vfs.FS { return fsys })
	hour := start.Add(time.Hour)
	w := openWriter(t, s)
	if _, err := w.Mark(vault.Mark{Kind: vault.MarkConsistent}, hour); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context(), sealOne(t, w, 1, start)); err != nil {
		t.Fatal(err)
	}
	w = openWriter(t, s)
	if err := w.Commit(t.Context(), sealOne(t, w, 2, start)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.End(t.Context(), 1, vault.EndOptions{Generation: 2, Now: start}); err != nil {
		t.Fatal(err)
	}
	tl, err := s.Fork(t.Context(), vault.ForkOptions{From: 1, At: 3, Generation: 2, Now: start})
	if err != nil {
		t.Fatal(err)
	}
	w, err = s.Writer(t.Context(), vault.WriterOptions{Timeline: tl, Generation: 2})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context(), sealOne(t, w, 3, start)); err != nil {
		t.Fatal(err)
	}
	if err := s.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, x := range s.Timelines() {
		if x.Tail.Time.Before(hour) {
			t.Errorf("timeline %s ends at %s, before %s", x.ID, x.Tail.Time, hour)
		}
	}
	if pos, err := s.Resolve(tl, hour); err != nil || pos != 4 {
		t.Errorf("Resolve = %d, %v, want 4", pos, err)
	}
	if _, err := s.Resolve(tl, start); !errors.Is(err, vault.ErrNoPosition) {
		t.Errorf("Resolve before the beginning: %v, want ErrNoPosition", err)
	}
	verify(t, v)
}

// TestAdopt takes spooled segments over: those that the vault has, those that
// come next, and none that belong elsewhere.
func TestAdopt(t *testing.T) {
	t.Parallel()
	_, v, s := faultyVault(t, func(fsys vfs.FS) vfs.FS { return fsys })
	_, _, foreign := faultyVault(t, func(fsys vfs.FS) vfs.FS { return fsys })
	w := openWriter(t, s)
	var spool []*vault.Sealed
	for i := range byte(4) {
		spool = append(spool, sealOne(t, w, i+1, start))
	}
	for _, sealed := range spool[:2] {
		if err := w.Commit(t.Context(), sealed); err != nil {
			t.Fatal(err)
		}
	}
	fw := openWriter(t, foreign)
	alien := sealOne(t, fw, 1, start)
	w = openWriter(t, s)
	for _, sealed := range spool[:2] {
		if _, err := w.Adopt(sealed.Encoded); !errors.Is(err, vault.ErrAlreadyCommitted) {
			t.Errorf("adopt what the vault has: %v, want ErrAlreadyCommitted", err)
		}
	}
	if _, err := w.Adopt(spool[3].Encoded); !errors.Is(err, vault.ErrForeign) {
		t.Errorf("adopt with a gap: %v, want ErrForeign", err)
	}
	if _, err := w.Adopt(alien.Encoded); !isDamage(err) {
		t.Errorf("adopt of another vault: %v, want damage, as its key is another", err)
	}
	if _, err := w.Adopt(spool[2].Encoded[:100]); !isDamage(err) {
		t.Errorf("adopt a part: %v, want ErrCorrupt", err)
	}
	for _, old := range spool[2:] {
		sealed, err := w.Adopt(old.Encoded)
		if err != nil || sealed.Last != old.Last || sealed.Hash != old.Hash {
			t.Fatalf("adopt segment %d: %+v, %v", old.Seq, sealed, err)
		}
		if err := w.Commit(t.Context(), sealed); err != nil {
			t.Fatal(err)
		}
	}
	// Another writer took the place of what a spool holds.
	late := openWriter(t, s)
	spooled := sealOne(t, late, 5, start)
	if err := w.Commit(t.Context(), sealOne(t, w, 6, start)); err != nil {
		t.Fatal(err)
	}
	if _, err := openWriter(t, s).Adopt(spooled.Encoded); !errors.Is(err, vault.ErrFenced) {
		t.Errorf("adopt what another has written: %v, want ErrFenced", err)
	}
	verify(t, v)
}
