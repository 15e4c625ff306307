package auth_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/auth"
)

func open(t *testing.T, opts auth.AuthorityOptions) *auth.Authority {
	t.Helper()
	a, err := auth.OpenAuthority(opts)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func at(when time.Time) func() time.Time { return func() time.Time { return when } }

// leaf returns the certificate that a client is shown, verified for host.
func leaf(t *testing.T, a *auth.Authority, host string, when time.Time) *x509.Certificate {
	t.Helper()
	server, client := net.Pipe()
	done := make(chan error, 1)
	go func() {
		conn := tls.Server(server, a.ServerTLS())
		done <- errors.Join(conn.Handshake(), server.Close())
	}()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(a.CertificatePEM())
	conn := tls.Client(client, &tls.Config{RootCAs: pool, ServerName: host, Time: at(when)})
	err := conn.Handshake()
	_ = client.Close()
	if serr := <-done; err != nil {
		t.Fatalf("handshake as %s: %v (server: %v)", host, err, serr)
	}
	chain := conn.ConnectionState().PeerCertificates
	if len(chain) != 2 || auth.Fingerprint(chain[1]) != a.Fingerprint() {
		t.Fatalf("chain of %d certificates does not end in the authority", len(chain))
	}
	return chain[0]
}

func TestAuthorityServesItsHosts(t *testing.T) {
	t.Parallel()
	a := open(t, auth.AuthorityOptions{Dir: t.TempDir(), Hosts: []string{"dr.example.org", "192.0.2.7:8443", "[2001:db8::1]:8443", "0.0.0.0:8443", ""}, Now: at(now)})
	for _, host := range []string{"localhost", "127.0.0.1", "::1", "dr.example.org", "192.0.2.7", "2001:db8::1"} {
		leaf(t, a, host, now)
	}
	if cert := leaf(t, a, "localhost", now); slices.ContainsFunc(cert.IPAddresses, net.IP.IsUnspecified) {
		t.Errorf("certificate names the unspecified address: %v", cert.IPAddresses)
	}
}

func TestAuthorityFiles(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	a := open(t, auth.AuthorityOptions{Dir: dir, Now: at(now)})
	for name, want := range map[string]os.FileMode{"ca-key.pem": 0o600, "server.pem": 0o600, "ca.pem": 0o644} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want mode %o", name, info, err, want)
		}
	}
	public, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil || string(public) != string(a.CertificatePEM()) {
		t.Errorf("ca.pem is not the authority's certificate: %v", err)
	}
	if block, rest := pem.Decode(public); block.Type != "CERTIFICATE" || len(rest) != 0 {
		t.Errorf("ca.pem has more than a certificate: %q", rest)
	}
	if names, _ := os.ReadDir(dir); len(names) != 3 {
		t.Errorf("%d files, want 3: %v", len(names), names)
	}
}

func TestAuthorityRenewsServerAndStays(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := open(t, auth.AuthorityOptions{Dir: dir, Now: at(now)})
	cert := leaf(t, first, "localhost", now)

	again := open(t, auth.AuthorityOptions{Dir: dir, Now: at(now.AddDate(0, 1, 0))})
	if got := leaf(t, again, "localhost", now); !got.Equal(cert) {
		t.Error("certificate changed though nothing was due")
	}
	clock := now
	running := open(t, auth.AuthorityOptions{Dir: dir, Now: func() time.Time { return clock }})
	clock = now.AddDate(0, 0, 300) // within 90 days of its end, while the server runs
	renewed := leaf(t, running, "localhost", clock)
	if renewed.Equal(cert) || !renewed.NotAfter.After(clock.AddDate(0, 11, 0)) {
		t.Errorf("certificate ends %s, want it renewed at %s", renewed.NotAfter, clock)
	}
	if running.Fingerprint() != first.Fingerprint() {
		t.Error("the authority changed with the certificate")
	}
	more := open(t, auth.AuthorityOptions{Dir: dir, Hosts: []string{"new.example.org"}, Now: at(clock)})
	leaf(t, more, "new.example.org", clock)
	if more.Fingerprint() != first.Fingerprint() {
		t.Error("the authority changed with the hosts")
	}
}

func TestAuthorityDamage(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		damage func(dir string) error
		when   time.Time
		want   error
	}{
		{"server certificate garbled", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "server.pem"), []byte("garbage"), 0o600)
		}, now, nil},
		{"server certificate of another authority", func(dir string) error {
			other := filepath.Join(dir, "other")
			if _, err := auth.OpenAuthority(auth.AuthorityOptions{Dir: other, Now: at(now)}); err != nil {
				return err
			}
			return os.Rename(filepath.Join(other, "server.pem"), filepath.Join(dir, "server.pem"))
		}, now, nil},
		{"public file missing", func(dir string) error { return os.Remove(filepath.Join(dir, "ca.pem")) }, now, nil},
		{"authority garbled", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "ca-key.pem"), []byte("garbage"), 0o600)
		}, now, auth.ErrAuthority},
		{"authority empty", func(dir string) error { return os.Truncate(filepath.Join(dir, "ca-key.pem"), 0) }, now, auth.ErrAuthority},
		{"authority's key missing", func(dir string) error { return os.Remove(filepath.Join(dir, "ca-key.pem")) }, now, auth.ErrAuthority},
		{"authority is a server certificate", func(dir string) error {
			return os.Rename(filepath.Join(dir, "server.pem"), filepath.Join(dir, "ca-key.pem"))
		}, now, auth.ErrAuthority},
		{"authority ended", func(string) error { return nil }, now.AddDate(21, 0, 0), auth.ErrAuthority},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			before := open(t, auth.AuthorityOptions{Dir: dir, Now: at(now)})
			if err := tt.damage(dir); err != nil {
				t.Fatal(err)
			}
			after, err := auth.OpenAuthority(auth.AuthorityOptions{Dir: dir, Now: at(tt.when)})
			if !errors.Is(err, tt.want) {
				t.Fatalf("OpenAuthority: %v, want %v", err, tt.want)
			}
			if tt.want == nil {
				leaf(t, after, "localhost", tt.when)
				if after.Fingerprint() != before.Fingerprint() {
					t.Error("the authority changed")
				}
			}
		})
	}
}
