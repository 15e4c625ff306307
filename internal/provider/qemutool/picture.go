package qemutool

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/png"
)

const maxSide = 16384 // pixels

// PNG returns a picture of QEMU as PNG, which is what it is, or PPM where QEMU or
// libvirt knows no other. One of more than 16384 pixels a side is an error.
func PNG(b []byte) ([]byte, error) {
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
