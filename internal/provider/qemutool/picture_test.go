package qemutool_test

import (
	"bytes"
	"image/png"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/provider/qemutool"
)

func TestPNG(t *testing.T) {
	t.Parallel()
	picture, err := qemutool.PNG([]byte("P6\n2 1\n255\n\n \tabc"))
	if err != nil {
		t.Fatal(err)
	}
	img, err := png.Decode(bytes.NewReader(picture))
	if err != nil {
		t.Fatal(err)
	}
	for x, want := range [][3]uint32{{'\n', ' ', '\t'}, {'a', 'b', 'c'}} {
		r, g, b, _ := img.At(x, 0).RGBA()
		if got := [3]uint32{r >> 8, g >> 8, b >> 8}; got != want {
			t.Errorf("pixel %d: %v, want %v", x, got, want)
		}
	}
	for _, bad := range []string{"", "P6\n", "P6\n2 1\n255\n", "P6\n1 1\n255\nabcd", "P6\n0 0\n255\n", "P6\n-1 -1\n255\nabc", "P6\n1 1\n65535\nabc", "P6\n99999 99999\n255\n", "P5\n1 1\n255\nabc"} {
		if _, err := qemutool.PNG([]byte(bad)); err == nil {
			t.Errorf("%q was converted", bad)
		}
	}
}
