package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/qemutool"
)

const maxPicture = 64 << 20 // bytes of a file that QEMU writes

// Screenshot has QEMU write the machine's first screen to a file in the site's
// directory, which QEMU sees wherever it was started from.
func (s *site) Screenshot(ctx context.Context, machineID string) (picture []byte, err error) {
	d, err := s.find(machineID)
	if err != nil {
		return nil, err
	}
	mon, err := d.monitor()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(s.dir, ".screen-")
	if err != nil {
		return nil, fmt.Errorf("picture of machine %s: %w", d.Name, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if picture, err = screenshot(ctx, mon, filepath.Join(dir, "screen")); err != nil {
		var refused *provider.MonitorError
		if errors.As(err, &refused) && !d.Display {
			return nil, fmt.Errorf("picture of machine %s: %w; give it a display: \"display\": true in its definition", d.Name, err)
		}
		return nil, fmt.Errorf("picture of machine %s: %w", d.Name, err)
	}
	return picture, nil
}

// screenshot takes the picture as PNG, or as PPM where QEMU was built without.
func screenshot(ctx context.Context, mon provider.Monitor, path string) ([]byte, error) {
	args := map[string]any{"filename": path, "format": "png"}
	err := mon.Execute(ctx, "screendump", args, nil)
	var refused *provider.MonitorError
	if errors.As(err, &refused) {
		delete(args, "format")
		err = mon.Execute(ctx, "screendump", args, nil)
	}
	if err != nil {
		return nil, err
	}
	b, err := readPicture(path)
	if err != nil {
		return nil, err
	}
	return qemutool.PNG(b)
}

func readPicture(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxPicture+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if len(b) > maxPicture {
		return nil, fmt.Errorf("the picture is longer than %d bytes", maxPicture)
	}
	return b, nil
}
