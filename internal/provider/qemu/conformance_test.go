package qemu_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/providertest"
	"github.com/holdfast-dr/holdfast/internal/provider/qemu"
)

// TestConformance runs what every provider must pass.
func TestConformance(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	d := b.define("web", nil)
	b.run("qemu-img", "create", "-q", "-f", "qcow2", d.Disks[0].Path, "16M")
	b.must(qemu.StartMachine(t.Context(), b.dir, "web"))
	open := func(t *testing.T) *provider.Site {
		settings, err := json.Marshal(qemu.Settings{Directory: b.dir})
		if err != nil {
			t.Fatal(err)
		}
		s, err := qemu.Open(t.Context(), settings)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	victims := 0
	victim := func(t *testing.T) string {
		victims++
		d := b.define(fmt.Sprintf("victim%02d", victims), nil)
		b.run("qemu-img", "create", "-q", "-f", "qcow2", d.Disks[0].Path, "16M")
		b.must(qemu.StartMachine(t.Context(), b.dir, d.Name))
		return d.ID
	}
	leftovers := func(t *testing.T) []string {
		var out []string
		b.must(filepath.WalkDir(b.dir, func(path string, _ os.DirEntry, err error) error {
			out = append(out, path)
			return err
		}))
		return out
	}
	providertest.Run(t, providertest.Harness{Open: open, Running: "web", Victim: victim, Leftovers: leftovers, DiskSize: 64 << 20})
}
