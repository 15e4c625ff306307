package libvirt

import (
	"bytes"
	"context"
	"fmt"

	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/qemutool"
)

const maxPicture = 64 << 20 // bytes

// picture takes what libvirt sends of a screenshot, up to a bound.
type picture struct{ bytes.Buffer }

func (p *picture) Write(b []byte) (int, error) {
	if p.Len()+len(b) > maxPicture {
		return 0, fmt.Errorf("the picture is longer than %d bytes", maxPicture)
	}
	return p.Buffer.Write(b)
}

// Screenshot returns a picture of the domain's first screen.
func (s *site) Screenshot(ctx context.Context, machineID string) ([]byte, error) {
	d, err := s.running(ctx, machineID)
	if err != nil {
		return nil, err
	}
	// The client takes the end of the picture for the answer, and fails for want of
	// one after the whole picture has come; it is whole if it can be decoded.
	var p picture
	_, failed := s.l.DomainScreenshot(d, &p, 0, 0)
	b, err := qemutool.PNG(p.Bytes())
	if err == nil {
		return b, nil
	}
	if now, perr := s.power(d); perr == nil && now == provider.PowerOff {
		return nil, fmt.Errorf("picture of machine %s: %w", d.Name, provider.ErrNotRunning)
	}
	if p.Len() == 0 && failed != nil {
		return nil, fmt.Errorf("picture of machine %s: %w; it needs a video device", d.Name, failed)
	}
	return nil, fmt.Errorf("picture of machine %s: %w", d.Name, err)
}
