package guest

import (
	"context"
	_ "embed" // for the guest's load
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

//go:embed files/postgres-load.sh
var postgresLoad []byte

// postgresRecipe is this file: a tree made by another one is made anew.
//
//go:embed postgres.go
var postgresRecipe []byte

// postgresPackages are PostgreSQL of Debian 12 and what its programs link with,
// but for LLVM: nothing is compiled at run time.
var postgresPackages = []string{
	"postgresql-15", "postgresql-client-15", "tzdata", "libpq5", "libssl3", "libgssapi-krb5-2", "libkrb5-3", "libk5crypto3",
	"libkrb5support0", "libcom-err2", "libkeyutils1", "libldap-2.5-0", "libsasl2-2", "libgnutls30", "libp11-kit0", "libidn2-0",
	"libunistring2", "libtasn1-6", "libnettle8", "libhogweed6", "libgmp10", "libffi8", "libxml2", "libicu72", "liblzma5", "liblz4-1",
	"libzstd1", "zlib1g", "libpam0g", "libaudit1", "libcap-ng0", "libsystemd0", "libgcrypt20", "libgpg-error0", "libcap2",
	"libselinux1", "libuuid1", "libreadline8", "libtinfo6", "libxslt1.1", "libstdc++6", "libgcc-s1", "libcrypt1", "util-linux", "libsmartcols1",
}

const (
	postgresUser = 999
	postgresBin  = "/usr/lib/postgresql/15/bin/"
)

// postgresSettings change nothing about how safe a commit is.
const postgresSettings = `listen_addresses = ''
unix_socket_directories = '/run'
shared_buffers = 32MB
max_connections = 20
jit = off
checkpoint_timeout = 30s
`

// makePostgres makes a root tree with PostgreSQL in it, from the plain one.
func makePostgres(ctx context.Context, o Options, dir, plain string) error {
	if os.Getuid() != 0 {
		return fmt.Errorf("%w: its database is made in a root directory of its own, which needs root", ErrUnsupported)
	}
	f, err := newFetcher(o)
	if err != nil {
		return err
	}
	if err := f.get(ctx, func() ([]string, error) { return postgresPackages, nil }); err != nil {
		return fmt.Errorf("%w: %w", ErrUnsupported, err) // another release of Debian
	}
	if err := tool(ctx, o.CacheDir, "cp", "-a", plain+"/.", dir); err != nil {
		return err
	}
	if err := f.unpack(ctx, dir, postgresPackages); err != nil {
		return err
	}
	for _, name := range []string{"usr/share/doc", "usr/share/locale", "usr/share/man", "usr/share/postgresql/15/man", "usr/lib/postgresql/15/lib/bitcode"} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	err = errors.Join(
		os.WriteFile(filepath.Join(dir, "load"), postgresLoad, 0o755),
		os.WriteFile(filepath.Join(dir, "etc/passwd"), fmt.Appendf(nil, "root:x:0:0::/:/bin/sh\npostgres:x:%[1]d:%[1]d::/data:/bin/sh\n", postgresUser), 0o644),
		os.WriteFile(filepath.Join(dir, "etc/group"), fmt.Appendf(nil, "root:x:0:\npostgres:x:%d:\n", postgresUser), 0o644),
		os.Chown(filepath.Join(dir, "data"), postgresUser, postgresUser),
		os.RemoveAll(f.debs))
	if err != nil {
		return err
	}
	return makeCluster(ctx, dir)
}

// makeCluster makes the database in the tree, with the tree's own programs.
func makeCluster(ctx context.Context, dir string) error {
	for _, name := range []string{"dev/shm", "run", "tmp"} {
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, name), 0o777), os.Chmod(filepath.Join(dir, name), 0o777)); err != nil {
			return err
		}
	}
	null := filepath.Join(dir, "dev/null")
	if err := tool(ctx, dir, "mknod", "-m", "666", null, "c", "1", "3"); err != nil {
		return fmt.Errorf("%w: %w", ErrUnsupported, err) // a container's root may not
	}
	in := func(args ...string) error {
		return tool(ctx, dir, "chroot", append([]string{fmt.Sprintf("--userspec=%[1]d:%[1]d", postgresUser), dir, "/bin/busybox", "env", "-i", "PATH=/usr/bin:/bin", "HOME=/data", "PGHOST=/run"}, args...)...)
	}
	err := in(postgresBin+"initdb", "-D", "/data/pg", "--no-locale", "--encoding=UTF8", "--auth=trust", "--data-checksums", "--no-sync")
	if err != nil {
		return err
	}
	conf, err := os.OpenFile(filepath.Join(dir, "data/pg/postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = conf.WriteString(postgresSettings)
	if err := errors.Join(err, conf.Close()); err != nil {
		return err
	}
	if err := in(postgresBin+"pg_ctl", "-D", "/data/pg", "-l", "/data/pg.log", "-w", "start"); err != nil {
		return err
	}
	err = in(postgresBin+"psql", "-qd", "postgres", "-c", "CREATE DATABASE shop")
	if err == nil {
		err = in(postgresBin+"psql", "-qd", "shop", "-c", "CREATE TABLE acked (n bigint PRIMARY KEY)", "-c", "CREATE EXTENSION amcheck")
	}
	if err == nil {
		err = in(postgresBin+"pgbench", "-q", "-i", "-s", "1", "shop")
	}
	err = errors.Join(err, in(postgresBin+"pg_ctl", "-D", "/data/pg", "-m", "fast", "-w", "stop"))
	return errors.Join(err, os.Remove(null))
}
