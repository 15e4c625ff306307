package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/gateway"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// location is where a vault is, and a file with what opens its store.
type location struct{ at, credentials string }

// name is the location for people.
func (l location) name() string { return objstore.Location(l.at).Name() }

// absolute makes a directory's path absolute, and refuses what is no location.
func (l *location) absolute() error {
	at, err := objstore.Location(l.at).Absolute()
	l.at = string(at)
	return err
}

// open opens the store there.
func (l location) open(ctx context.Context) (objstore.Store, error) {
	known, err := readCredentials(l.credentials)
	if err != nil {
		return nil, err
	}
	s, err := objstore.Open(ctx, objstore.Location(l.at), objstore.Options{Credentials: known})
	if err != nil {
		hint := "Mount the file system, or name the vault's directory with --vault"
		if _, dir := objstore.Location(l.at).Directory(); !dir {
			hint = "Check the location, that the bucket or container is there, and the credentials: --vault-credentials FILE, or " + strings.Join(objstore.CredentialNames(), ", ") + " in the environment"
		}
		return nil, startError("open vault", l.name(), err, hint)
	}
	return s, nil
}

// free returns what says how much room there is; nil where nobody knows.
func (l location) free() func() (int64, error) {
	dir, ok := objstore.Location(l.at).Directory()
	if !ok {
		return nil
	}
	return func() (int64, error) { return vfs.OS.Free(dir) }
}

// readCredentials reads lines NAME=VALUE from a file; without one, the environment.
func readCredentials(file string) (map[string]string, error) {
	out := map[string]string{}
	if file == "" {
		for _, name := range objstore.CredentialNames() {
			if v := os.Getenv(name); v != "" {
				out[name] = v
			}
		}
		return out, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, startError("read credentials", file, err, "Name the file with --vault-credentials or --gateway-credentials")
	}
	for i, line := range strings.Split(string(b), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if name = strings.TrimSpace(name); !ok || !slices.Contains(objstore.CredentialNames(), name) {
			return nil, &holdfast.Error{Kind: holdfast.KindInvalid, Op: "read credentials", Thing: fmt.Sprintf("%s, line %d", file, i+1), // not the line itself: it may be the secret
				Cause: "it is not NAME=VALUE with a known name", Hint: "Known are " + strings.Join(objstore.CredentialNames(), ", ")}
		}
		out[name] = strings.Trim(strings.TrimSpace(value), `"'`)
	}
	return out, nil
}

// vaultRef is what gateways are told of the vault.
func (o *serverOptions) vaultRef(key vault.Key) (gateway.VaultRef, error) {
	file := o.vault.credentials
	if o.gatewayCredentials != "" {
		file = o.gatewayCredentials
	}
	r := gateway.VaultRef{Location: objstore.Location(o.vault.at), Key: key.String()}
	if _, dir := r.Location.Directory(); dir {
		return r, nil
	}
	var err error
	r.Credentials, err = readCredentials(file)
	return r, err
}
