package main

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"

	holdfast "github.com/holdfast-dr/holdfast"
)

// TestMain lets the test's binary be the processes of a round, too.
func TestMain(m *testing.M) {
	if slices.Contains(os.Args, "-role") {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestSoak(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := soak(t.Context(), options{kills: 120, dir: t.TempDir(), seed: 2, out: &out}); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	if !strings.Contains(out.String(), "120 of 120 processes killed in 30 rounds") {
		t.Errorf("it says\n%s", &out)
	}
}

func TestDamage(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := damage(t.Context(), options{dir: t.TempDir(), seed: 3, out: &out}, 90); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	if want := "90 of 90 objects damaged, all noticed and healed: map[canary:15 kept:15 segment:15 stream:15 timelines:15 vault:15]"; !strings.Contains(out.String(), want) {
		t.Errorf("it says\n%s", &out)
	}
}

// TestSoakSees has soak look at a vault that lacks what it believes to be
// acknowledged.
func TestSoakSees(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := &sum{}
	if err := create(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	var acked holdfast.Position
	for acked == 0 {
		var err error
		if acked, err = killAll(t.Context(), dir, 100e6, s); err != nil {
			t.Fatal(err)
		}
	}
	o, err := open(t.Context(), dir, "vault")
	if err != nil {
		t.Fatal(err)
	}
	tail := o.tail()
	if err := compare(t.Context(), o, tail); err != nil {
		t.Error(err)
	}
	if bytes.Equal(image(tail), image(tail-1)) {
		t.Error("two positions are the same: nothing would be seen")
	}
	if err := look(t.Context(), dir, tail+1, nil, s); err == nil {
		t.Error("that the newest acknowledged position is missing goes unnoticed")
	}
}
