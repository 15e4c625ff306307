package lab

import (
	"context"
	"fmt"
	"os"
	"strings"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// Export says which disk at which position goes into which file.
type Export struct {
	Vault    string // directory
	KeyFile  string
	Stream   string
	Timeline uint32
	Position string
	Disk     string
	Path     string // of the raw image, made anew
}

// ExportPoint reads a position from a vault, with nothing but its key, into a
// raw image.
func ExportPoint(ctx context.Context, e Export) error {
	s, err := OpenStream(ctx, e.Vault, e.KeyFile, e.Stream)
	if err != nil {
		return err
	}
	pos, err := holdfast.ParsePosition(e.Position)
	if err != nil {
		return err
	}
	view, err := s.View(ctx, holdfast.TimelineID(e.Timeline), pos)
	if err != nil {
		return err
	}
	return ExportView(ctx, view, e.Disk, e.Path)
}

// OpenStream opens a stream of the vault in a directory.
func OpenStream(ctx context.Context, dir, keyFile, stream string) (*vault.Stream, error) {
	store, err := objstore.NewDir(vfs.OS, dir)
	if err != nil {
		return nil, err
	}
	return OpenStreamIn(ctx, store, keyFile, stream)
}

// OpenStreamIn opens a stream of the vault in a store.
func OpenStreamIn(ctx context.Context, store objstore.Store, keyFile, stream string) (*vault.Stream, error) {
	b, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, err
	}
	key, err := vault.ParseKey(strings.TrimSpace(string(b)))
	if err != nil {
		return nil, err
	}
	v, err := vault.Open(ctx, store, key, vault.Options{})
	if err != nil {
		return nil, err
	}
	id, err := holdfast.ParseStreamID(stream)
	if err != nil {
		return nil, err
	}
	s, err := v.OpenStream(ctx, id)
	if err != nil {
		return nil, err
	}
	return s, s.Refresh(ctx)
}

// ExportView writes one disk of a view into a sparse raw image.
func ExportView(ctx context.Context, view *vault.View, disk, path string) error {
	image, err := view.Disk(disk)
	if err != nil {
		return err
	}
	defer image.Close()
	sink, err := block.CreateFileDisk(path, image.Size())
	if err != nil {
		return err
	}
	if _, err := block.Copy(ctx, sink, image, block.CopyOptions{SkipZero: true}); err != nil {
		return fmt.Errorf("export disk %s: %w", disk, err)
	}
	if err := sink.Flush(ctx); err != nil {
		return err
	}
	return sink.Close()
}
