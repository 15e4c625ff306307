package systest

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/systest/lab"
)

// TestLostChange compares the disks of a busy machine with the vault, and finds
// nothing; then somebody writes to a disk behind QEMU's back, which no mirror sees:
// that is found, named and sent.
func TestLostChange(t *testing.T) {
	const off, length = 5<<20 + 8192, 12288
	w := newWorld(t, worldOptions{second: 64 << 20, serverFlags: []string{"--compare-every", "0"}})
	w.protect()
	w.writesOn("while it is protected")
	w.cli("item", "compare", machine)
	c := w.item().Replication.Comparison
	if c == nil || c.CompletedAt.IsZero() || c.Done != c.Total || len(c.Lost) > 0 {
		t.Fatalf("after a comparison that found nothing: %+v", c)
	}
	if skipped := c.Skipped; skipped > c.Total/4 {
		t.Errorf("%d of %d bytes were not compared", skipped, c.Total)
	}
	if s := w.item().Replication.Mode; s != "continuous" {
		t.Errorf("a comparison has replication %s", s)
	}

	second := filepath.Join(w.Primary, "second.raw")
	f, err := os.OpenFile(second, os.O_WRONLY, 0)
	w.must(err)
	_, err = f.WriteAt(bytes.Repeat([]byte{0xa5}, length), off)
	w.must(err)
	w.must(f.Close())
	w.fails(1, []string{"disk vdb", "12288 bytes", "holdfast item compare"}, "item", "compare", machine)
	if f := w.finding("HF1204"); f == nil || f.Severity != "critical" {
		t.Errorf("the finding is %+v", f)
	}
	if show := w.cli("item", "show", machine); !strings.Contains(show, "of disk vdb were not in the vault") {
		t.Errorf("item show does not say so:\n%s", show)
	}
	lost := w.item().Replication.Comparison.Lost
	if len(lost) != 1 || lost[0].Disk != "vdb" || lost[0].Offset != off || lost[0].Bytes != length || !lost[0].Healed || lost[0].Since.IsZero() {
		t.Errorf("lost are %+v", lost)
	}
	w.hasOnSecond(second)
	w.writesOn("after the loss")
	w.cli("item", "compare", machine)
	if f := w.finding("HF1204"); f != nil {
		t.Errorf("the finding stays after a comparison that found nothing: %+v", f)
	}
	w.checkVault()
}

// hasOnSecond compares the second disk with the vault.
func (w *world) hasOnSecond(path string) {
	w.t.Helper()
	var it api.Item
	w.eventually("the vault is up to date", func() bool {
		it = w.item()
		return it.Replication != nil && it.Replication.Mode == "continuous" && *it.Replication.RPOSeconds < 1.5
	})
	raw := filepath.Join(w.Dir, "second.view")
	w.must(lab.ExportView(w.t.Context(), w.view(it), "vdb", raw))
	got, err := os.ReadFile(raw)
	w.must(err)
	want, err := os.ReadFile(path)
	w.must(err)
	if !bytes.Equal(got, want) {
		w.t.Error("the vault has not what is on the second disk")
	}
}
