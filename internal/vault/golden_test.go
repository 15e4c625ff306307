package vault_test

import (
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

var add = flag.Bool("add", false, "write golden files that are missing; those that are there never change")

// goldenKey opens the golden vaults, and nothing else.
const goldenKey = "AGE-SECRET-KEY-1QN9L6LD4JHNT4WKSQ8EHHEXVUD7CUDHNEYCCW6HGPLM6FK0JVTVSHGZPLL"

func mustKey(t testing.TB, text string) vault.Key {
	t.Helper()
	key, err := vault.ParseKey(text)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestGoldenVault reads vaults that were written once and never change.
func TestGoldenVault(t *testing.T) {
	t.Parallel()
	key := mustKey(t, goldenKey)
	root := filepath.Join("testdata", fmt.Sprintf("v%d", vault.FormatVersion))
	if _, err := os.Stat(root); *add && errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(root, 0o755); err != nil {
			t.Fatal(err)
		}
		writeGolden(t, root, key)
		v := openDir(t, root, key)
		if err := os.WriteFile(root+".txt", []byte(describe(t, v)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	vaults, err := filepath.Glob("testdata/v*.txt")
	if err != nil || len(vaults) == 0 {
		t.Fatalf("no golden vaults: %v", err)
	}
	for _, name := range vaults {
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		v := openDir(t, strings.TrimSuffix(name, ".txt"), key)
		if diff := cmp.Diff(string(want), describe(t, v)); diff != "" {
			t.Errorf("%s reads otherwise (-want +got):\n%s", name, diff)
		}
		verify(t, v)
	}
}

func openDir(t *testing.T, root string, key vault.Key) *vault.Vault {
	t.Helper()
	store, err := objstore.NewDir(vfs.OS, root)
	if err != nil {
		t.Fatal(err)
	}
	v, err := vault.Open(t.Context(), store, key, vault.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// writeGolden makes a vault with an object of each kind.
func writeGolden(t *testing.T, root string, key vault.Key) {
	t.Helper()
	store, err := objstore.NewDir(vfs.OS, root)
	if err != nil {
		t.Fatal(err)
	}
	v, err := vault.Create(t.Context(), store, vault.CreateOptions{Key: key, Now: start})
	if err != nil {
		t.Fatal(err)
	}
	id, err := holdfast.ParseStreamID("00112233445566778899aabbccddeeff")
	if err != nil {
		t.Fatal(err)
	}
	s, err := v.CreateStream(t.Context(), vault.StreamOptions{ID: id, Name: "golden", Now: start,
		Disks: []vault.Disk{{ID: "vda", Size: 1 << 20}, {ID: "vdb", Size: 8 << 10}}})
	if err != nil {
		t.Fatal(err)
	}
	w := openWriter(t, s)
	must := func(_ holdfast.Position, err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(w.Write("vda", 512, []byte(strings.Repeat("text ", 1<<11)[:8<<10]), start))
	must(w.Mark(vault.Mark{Kind: vault.MarkConsistent}, start.Add(time.Second)))
	seal(t, w)
	must(w.Zero("vda", block.Extent{Offset: 4096, Length: 512}, true, start.Add(2*time.Second)))
	must(w.Write("vdb", 0, []byte(strings.Repeat("b", 512)), start.Add(2*time.Second)))
	must(w.Mark(vault.Mark{Kind: vault.MarkPoint, Name: "first", Consistency: vault.AppConsistent}, start.Add(3*time.Second)))
	seal(t, w)
	tail := w.Tail()
	if err := s.PutCanary(t.Context(), vault.Canary{Time: start.Add(4 * time.Second), Timeline: 1, Seq: tail.Seq, Position: tail.Position}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.End(t.Context(), 1, vault.EndOptions{Generation: 2, Now: start.Add(5 * time.Second)}); err != nil {
		t.Fatal(err)
	}
	tl, err := s.Fork(t.Context(), vault.ForkOptions{From: 1, At: 3, Generation: 2, Reason: "failover", Now: start.Add(5 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	w, err = s.Writer(t.Context(), vault.WriterOptions{Timeline: tl, Generation: 2})
	if err != nil {
		t.Fatal(err)
	}
	must(w.Write("vda", 0, make([]byte, 4096), start.Add(6*time.Second)))
	seal(t, w)
	_, lease, err := v.AcquireLease(t.Context(), vault.LeaseOptions{Owner: "golden", Host: "host"})
	if err != nil {
		t.Fatal(err)
	}
	lease.Release()
}

// describe says in words what is in a vault.
func describe(t *testing.T, v *vault.Vault) string {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "vault %s format %d created %s\n", v.ID(), v.FormatVersion(), v.CreatedAt().Format(time.RFC3339Nano))
	ids, err := v.Streams(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		s, err := v.OpenStream(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "stream %s %q disks %v\n", id, s.Name(), s.Disks(1))
		if c, err := s.Canary(t.Context()); err == nil {
			fmt.Fprintf(&b, "canary %s timeline %s seq %d position %s\n", c.Time.UTC().Format(time.RFC3339Nano), c.Timeline, c.Seq, c.Position)
		}
		for _, tl := range s.Timelines() {
			fmt.Fprintf(&b, "timeline %s parent %s at %s generation %d ended %v reason %q tail %d %s %s %x\n", tl.ID, tl.Parent, tl.ForkAt, tl.Generation,
				tl.Ended, tl.Reason, tl.Tail.Seq, tl.Tail.Position, tl.Tail.Time.UTC().Format(time.RFC3339Nano), tl.Tail.Hash)
			for _, p := range s.Points(tl.ID) {
				fmt.Fprintf(&b, "  point %s %q %s %s %s\n", p.ID, p.Name, p.Position, p.Time.UTC().Format(time.RFC3339Nano), p.Consistency)
			}
			for _, r := range s.Ranges(tl.ID) {
				fmt.Fprintf(&b, "  range %s to %s, %s to %s\n", r.From, r.To, r.FromTime.UTC().Format(time.RFC3339Nano), r.ToTime.UTC().Format(time.RFC3339Nano))
			}
			for pos := holdfast.Position(0); pos <= tl.Tail.Position; pos++ {
				fmt.Fprintf(&b, "  view %s", pos)
				for _, d := range s.Disks(tl.ID) {
					fmt.Fprintf(&b, " %s %x", d.ID, sha256.Sum256(content(t, s, tl.ID, pos, d.ID)))
				}
				b.WriteByte('\n')
			}
		}
	}
	return b.String()
}

// content reads a disk at a position.
func content(t testing.TB, s *vault.Stream, tl holdfast.TimelineID, pos holdfast.Position, disk string) []byte {
	t.Helper()
	view, err := s.View(t.Context(), tl, pos)
	if err != nil {
		t.Fatal(err)
	}
	image, err := view.Disk(disk)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, image.Size())
	if err := image.ReadAt(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}
