package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/png"
	"io"
	"os"
	"path/filepath"

	"github.com/holdfast-dr/holdfast/internal/provider"
)

const (
	maxPicture = 64 << 20 // bytes of a file that QEMU writes
	maxSide    = 16384    // pixels
)

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
	if bytes.HasPrefix(b, []byte("P6")) {
		return pngOfPPM(b)
	}
	cfg, err := png.DecodeConfig(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("head of QEMU's picture: %w", err)
	}
	if cfg.Width > maxSide || cfg.Height > maxSide {
		return nil, fmt.Errorf("QEMU's picture has %d by %d pixels: want at most %d by %d", cfg.Width, cfg.Height, maxSide, maxSide)
	}
	return b, nil
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

// pngOfPPM converts QEMU's other format: "P6", width and height, "255", each on
// a line, then three bytes a pixel.
func pngOfPPM(b []byte) ([]byte, error) {
	var width, height, most int
	head := 0
	for range 3 { // lines
		n := bytes.IndexByte(b[head:], '\n')
		if n < 0 {
			return nil, errors.New("QEMU's picture has no head")
		}
		head += n + 1
	}
	if _, err := fmt.Sscanf(string(b[:head]), "P6\n%d %d\n%d\n", &width, &height, &most); err != nil {
		return nil, fmt.Errorf("head of QEMU's picture: %w", err)
	}
	b = b[head:]
	if width < 1 || height < 1 || width > maxSide || height > maxSide || most != 255 || len(b) != width*height*3 {
		return nil, fmt.Errorf("QEMU's picture of %d by %d pixels, up to %d, does not fit %d bytes", width, height, most, len(b))
	}
	img := image.NewNRGBA(image.Rect(0, 0, width, height))
	for i := range width * height {
		copy(img.Pix[4*i:], []byte{b[3*i], b[3*i+1], b[3*i+2], 255})
	}
	var out bytes.Buffer
	err := png.Encode(&out, img)
	return out.Bytes(), err
}
