package qemu_test

import (
	"encoding/json"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/providertest"
	"github.com/holdfast-dr/holdfast/internal/provider/qemu"
)

// TestConformance runs what every provider must pass.
func TestConformance(t *testing.T) {
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
	providertest.Run(t, providertest.Harness{Open: open, Running: "web", DiskSize: 64 << 20})
}
