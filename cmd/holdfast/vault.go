package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/store"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// startError is why a server cannot start.
func startError(op, thing string, err error, hint string) error {
	e := &holdfast.Error{Kind: holdfast.KindUnavailable, Op: op, Thing: thing, Err: err, Hint: hint}
	switch {
	case errors.Is(err, vault.ErrInUse):
		e.Kind = holdfast.KindConflict
	case errors.Is(err, vault.ErrCorrupt):
		e.Kind = holdfast.KindCorrupt
	case errors.Is(err, vault.ErrWrongKey), errors.Is(err, vault.ErrNotVault), errors.Is(err, vault.ErrNewerFormat):
		e.Kind = holdfast.KindInvalid
	}
	return e
}

// openVault opens the vault, or makes one at the server's first start. A vault
// that has gone missing is never made anew.
func openVault(ctx context.Context, o serverOptions, db *store.Store, out io.Writer, log *slog.Logger) (*vault.Vault, vault.Key, error) {
	known, err := db.Setting(ctx, settingVault)
	if err != nil {
		return nil, vault.Key{}, err
	}
	if err := vaultDirectory(o.vault, known); err != nil {
		return nil, vault.Key{}, err
	}
	objects, err := o.vault.open(ctx)
	if err != nil {
		return nil, vault.Key{}, err
	}
	key, err := vaultKey(ctx, o, objects, known)
	if err != nil {
		return nil, key, err
	}
	v, err := vault.Open(ctx, objects, key, vault.Options{Logger: log})
	if errors.Is(err, vault.ErrNotVault) && known == "" {
		v, err = createVault(ctx, objects, key, out)
	}
	if err != nil {
		return nil, key, startError("open vault", o.vault.name(), err, vaultHint(err, o, known))
	}
	if known != "" && v.ID() != known {
		return nil, key, &holdfast.Error{Kind: holdfast.KindInvalid, Op: "open vault", Thing: o.vault.name(),
			Cause: "it is vault " + v.ID() + ", and this server works with vault " + known,
			Hint:  "Mount the right one there, or use another state directory"}
	}
	return v, key, db.SetSetting(ctx, settingVault, v.ID())
}

// vaultDirectory makes the directory at the first start, and never again. A bucket or
// container must be there.
func vaultDirectory(at location, known string) error {
	dir, ok := objstore.Location(at.at).Directory()
	if !ok {
		return nil
	}
	if known == "" {
		return wrapStart("make vault directory", dir, os.MkdirAll(dir, 0o700), "Name a directory that can be written with --vault")
	}
	_, err := os.Stat(dir)
	return wrapStart("find vault directory", dir, err, "Mount the file system that holds vault "+known+", or name its place with --vault")
}

func wrapStart(op, thing string, err error, hint string) error {
	if err == nil {
		return nil
	}
	return startError(op, thing, err, hint)
}

// vaultHint says what to do about a vault that does not open.
func vaultHint(err error, o serverOptions, known string) string {
	switch {
	case errors.Is(err, vault.ErrNotVault):
		return "Mount the file system that holds vault " + known + " there, or name its place with --vault"
	case errors.Is(err, vault.ErrWrongKey):
		return "Put the key that belongs to this vault in " + o.keyFile + ", or name it with --vault-key"
	case errors.Is(err, vault.ErrNewerFormat):
		return "Use the version of Holdfast that wrote it, or a newer one"
	case errors.Is(err, vault.ErrCorrupt):
		return "Restore that object from a copy of the vault, with holdfast vault heal"
	}
	return "Check that it can be reached, that it can be written, and that it has room"
}

// vaultKey reads the vault's key, or makes one at the first start.
func vaultKey(ctx context.Context, o serverOptions, objects objstore.Store, known string) (vault.Key, error) {
	key, err := readKey(o.keyFile)
	if errors.Is(err, os.ErrNotExist) && known == "" {
		return makeKey(ctx, objects, o)
	}
	if err != nil {
		return key, startError("read vault key", o.keyFile, err, "Put the key of the vault back from its copy, or name its place with --vault-key")
	}
	return key, nil
}

func readKey(file string) (vault.Key, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return vault.Key{}, err
	}
	return vault.ParseKey(strings.TrimSpace(string(b)))
}

// makeKey makes the key of a new vault; never beside a vault that exists, whose
// key this cannot be.
func makeKey(ctx context.Context, objects objstore.Store, o serverOptions) (vault.Key, error) {
	entries, err := objects.List(ctx, "", "")
	if err != nil {
		return vault.Key{}, startError("list vault", o.vault.name(), err, "Check that it can be read")
	}
	if len(entries) > 0 {
		return vault.Key{}, &holdfast.Error{Kind: holdfast.KindInvalid, Op: "make vault", Thing: o.vault.name(),
			Cause: "it is not empty, and there is no key at " + o.keyFile,
			Hint:  "Name the key of the vault that is there with --vault-key, or an empty place with --vault"}
	}
	key, err := vault.NewKey()
	if err != nil {
		return key, err
	}
	err = vfs.WriteFileAtomic(vfs.OS, o.keyFile, []byte(key.String()+"\n"))
	return key, wrapStart("keep vault key", o.keyFile, err, "Name a file that can be written with --vault-key")
}
