package libvirt_test

import (
	"testing"

	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/providertest"
)

// TestConformance runs what every provider must pass.
func TestConformance(t *testing.T) {
	d, s := newSite(t)
	addDomain(t, d, "web", "qcow2")
	m, err := s.Inventory.Machine(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	providertest.Run(t, providertest.Harness{
		Open:    func(t *testing.T) *provider.Site { return open(t, d) },
		Running: "web", Machine: &m,
	})
}
