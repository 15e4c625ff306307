package systest

import (
	"context"
	"math/rand/v2"
	"os/exec"
	"slices"
	"testing"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/systest/guest"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// prefixes walks through positions of a stream in order, with one raw image that
// Diff brings from each to the next: only what changed is read.
type prefixes struct {
	t    *testing.T
	s    *vault.Stream
	tl   holdfast.TimelineID
	path string
	at   *vault.View
}

func newPrefixes(t *testing.T, s *vault.Stream, tl holdfast.TimelineID, path string) *prefixes {
	return &prefixes{t: t, s: s, tl: tl, path: path}
}

// count returns how many positions are crash-consistent.
func (p *prefixes) count() int64 {
	var n int64
	for _, r := range p.s.Ranges(p.tl) {
		n += int64(r.To-r.From) + 1
	}
	return n
}

// random returns n crash-consistent positions in order.
func (p *prefixes) random(n int) []holdfast.Position {
	var out []holdfast.Position
	for range n {
		k := holdfast.Position(rand.Int64N(p.count()))
		for _, r := range p.s.Ranges(p.tl) {
			if size := r.To - r.From + 1; k >= size {
				k -= size
				continue
			}
			out = append(out, r.From+k)
			break
		}
	}
	slices.Sort(out)
	return out
}

// check brings the image to a position and has a copy of it checked.
func (p *prefixes) check(ctx context.Context, pos holdfast.Position) *guest.Report {
	p.t.Helper()
	must := func(err error) {
		p.t.Helper()
		if err != nil {
			p.t.Fatalf("position %s: %v", pos, err)
		}
	}
	view, err := p.s.View(ctx, p.tl, pos)
	must(err)
	image, err := view.Disk("vda")
	must(err)
	var disk *block.FileDisk
	changed := &block.Set{}
	if p.at == nil {
		disk, err = block.CreateFileDisk(p.path, image.Size())
		changed.Add(block.Extent{Length: image.Size()})
	} else {
		disk, err = block.OpenFileDisk(p.path, true)
		must(err)
		changed, err = p.at.Diff(ctx, view, "vda")
	}
	must(err)
	_, err = block.Copy(ctx, disk, image, block.CopyOptions{Extents: changed, SkipZero: p.at == nil})
	must(err)
	must(disk.Close())
	p.at = view
	work := p.path + ".check"
	must(exec.Command("cp", "--sparse=always", p.path, work).Run())
	rep, err := guest.Check(ctx, work)
	must(err)
	return rep
}
