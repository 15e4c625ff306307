package libvirt

import (
	"context"
	"fmt"

	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/qemutool"
)

// probe is the site as provider.Probe; its Ping is not the agent's.
type probe struct{ s *site }

// Said reads the file that the domain's serial console goes to, or is logged in.
func (p probe) Said(ctx context.Context, machineID string) ([]byte, error) {
	d, err := p.s.running(ctx, machineID)
	if err != nil {
		return nil, err
	}
	doc, err := p.s.xml(d, 0)
	if err != nil {
		return nil, err
	}
	for _, e := range doc.Root().FindElements("devices/serial") {
		for _, path := range []string{attr(e, "log", "file"), attr(e, "source", "path")} {
			if path != "" && (e.SelectAttrValue("type", "") == "file" || e.SelectElement("log") != nil) {
				return qemutool.Tail(path)
			}
		}
	}
	return nil, fmt.Errorf("machine %s: %w: its definition has no serial console in a file, nor one with a log", d.Name, provider.ErrNoWay)
}
