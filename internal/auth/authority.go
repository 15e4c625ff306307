package auth

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// ErrAuthority says that the authority's own files are there but cannot be
// used. It is never made anew silently: every client trusts the old one.
var ErrAuthority = errors.New("certificate authority is not usable")

// The files of an Authority in its directory.
const (
	authorityFile   = "ca-key.pem" // the authority's certificate and key, 0600
	authorityPublic = "ca.pem"     // its certificate alone, for clients
	serverFile      = "server.pem" // the server's certificate and key, 0600
)

const (
	authorityLife = 20 * 365 * 24 * time.Hour
	serverLife    = 365 * 24 * time.Hour
	// renewBefore is how long before its end a certificate is renewed.
	renewBefore = 90 * 24 * time.Hour
	// clockSkew is how far a client's clock may be behind the server's.
	clockSkew = 24 * time.Hour
)

// AuthorityOptions say where an Authority lives and what for.
type AuthorityOptions struct {
	Dir    string           // of the server's state; made with 0700 if missing
	Hosts  []string         // names and addresses of the server, besides localhost
	Now    func() time.Time // nil: time.Now
	Logger *slog.Logger     // nil: discard
}

// Authority is a certificate authority of one server, and the certificate that
// it issued to that server, which is renewed by itself before it ends while the
// authority stays. Safe for concurrent use.
type Authority struct {
	opts AuthorityOptions
	ca   keyPair
	// mu guards server.
	mu     sync.Mutex
	server keyPair
}

// keyPair is a certificate and its key.
type keyPair struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// OpenAuthority opens the authority in opts.Dir, or makes one there if there is
// none, and makes sure that there is a server certificate for opts.Hosts. What
// it writes is durable when it returns. It fails with ErrAuthority if there are
// files that cannot be used.
func OpenAuthority(opts AuthorityOptions) (*Authority, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	opts.Hosts = normalHosts(opts.Hosts)
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open certificate authority: %w", err)
	}
	a := &Authority{opts: opts}
	if err := a.openCA(); err != nil {
		return nil, err
	}
	pair, err := readPair(filepath.Join(opts.Dir, serverFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		// Unlike the authority, this one nobody remembers: a new one is as good.
		opts.Logger.Warn("server certificate is not readable and is made anew", "file", serverFile, "error", err)
	}
	a.server = pair
	if _, err := a.current(); err != nil {
		return nil, err
	}
	return a, nil
}

// normalHosts returns hosts and those of the machine itself, sorted, without
// ports, repetitions and addresses that mean "any".
func normalHosts(hosts []string) []string {
	out := []string{"localhost", "127.0.0.1", "::1"}
	for _, h := range hosts {
		if host, _, err := net.SplitHostPort(h); err == nil {
			h = host
		}
		h = strings.Trim(h, "[]")
		if ip := net.ParseIP(h); ip != nil {
			if ip.IsUnspecified() {
				continue
			}
			h = ip.String()
		}
		if h != "" {
			out = append(out, h)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// openCA reads the authority, or makes it if there is none.
func (a *Authority) openCA() error {
	name := filepath.Join(a.opts.Dir, authorityFile)
	pair, err := readPair(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Stat(filepath.Join(a.opts.Dir, authorityPublic)); err == nil {
			return fmt.Errorf("open %s: %w: its key is missing while %s is there; restore it from a backup, or remove %s too to make a new authority, which every client must then trust anew",
				name, ErrAuthority, authorityPublic, authorityPublic)
		}
		if pair, err = a.makeCA(); err != nil {
			return fmt.Errorf("make certificate authority: %w", err)
		}
		if err := writePair(name, pair); err != nil {
			return fmt.Errorf("make certificate authority: %w", err)
		}
		a.opts.Logger.Info("made a certificate authority", "dir", a.opts.Dir, "fingerprint", Fingerprint(pair.cert))
	case err != nil:
		return fmt.Errorf("open %s: %w: %w; restore it from a backup", name, ErrAuthority, err)
	case !pair.cert.IsCA:
		return fmt.Errorf("open %s: %w: its certificate is not an authority's", name, ErrAuthority)
	case a.opts.Now().After(pair.cert.NotAfter):
		return fmt.Errorf("open %s: %w: it ended on %s; check the clock, or remove %s and %s to make a new one, which every client must then trust anew",
			name, ErrAuthority, pair.cert.NotAfter.Format(time.DateOnly), authorityFile, authorityPublic)
	}
	a.ca = pair
	public := filepath.Join(a.opts.Dir, authorityPublic)
	if old, err := os.ReadFile(public); err == nil && bytes.Equal(old, a.CertificatePEM()) {
		return nil
	}
	if err := writeFile(public, a.CertificatePEM(), 0o644); err != nil {
		return fmt.Errorf("write %s: %w", public, err)
	}
	return nil
}

func (a *Authority) makeCA() (keyPair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return keyPair{}, fmt.Errorf("generate key: %w", err)
	}
	serial := newSerial()
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{Organization: []string{"Holdfast"}, CommonName: "Holdfast authority " + serial.Text(16)[:8]},
		NotBefore:    a.opts.Now().Add(-clockSkew), NotAfter: a.opts.Now().Add(authorityLife),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true,
		IsCA: true, MaxPathLenZero: true,
	}
	return issue(template, keyPair{cert: template, key: key}, key)
}

// makeServer issues a certificate to the server.
func (a *Authority) makeServer() (keyPair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return keyPair{}, fmt.Errorf("generate key: %w", err)
	}
	now := a.opts.Now()
	end := now.Add(serverLife)
	if end.After(a.ca.cert.NotAfter) {
		end = a.ca.cert.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber: newSerial(),
		Subject:      pkix.Name{Organization: []string{"Holdfast"}, CommonName: "holdfast server"},
		NotBefore:    now.Add(-clockSkew), NotAfter: end,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, h := range a.opts.Hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	return issue(template, a.ca, key)
}

func issue(template *x509.Certificate, issuer keyPair, key *ecdsa.PrivateKey) (keyPair, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, issuer.cert, key.Public(), issuer.key)
	if err != nil {
		return keyPair{}, fmt.Errorf("create certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return keyPair{}, fmt.Errorf("create certificate: %w", err)
	}
	return keyPair{cert: cert, key: key}, nil
}

// newSerial returns a random positive number of 127 bits.
func newSerial() *big.Int {
	var raw [16]byte
	_, _ = rand.Read(raw[:])
	raw[0] = raw[0]&0x7f | 0x40 // positive and of full length
	return new(big.Int).SetBytes(raw[:])
}

// current returns the server's certificate, renewed first if that is due.
func (a *Authority) current() (keyPair, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.server.cert != nil && a.good(a.server.cert) {
		return a.server, nil
	}
	pair, err := a.makeServer()
	if err == nil {
		err = writePair(filepath.Join(a.opts.Dir, serverFile), pair)
	}
	if err != nil {
		if a.server.cert != nil && a.opts.Now().Before(a.server.cert.NotAfter) && a.covers(a.server.cert) {
			// It still serves; what keeps it from being renewed may pass.
			a.opts.Logger.Error("server certificate cannot be renewed", "ends", a.server.cert.NotAfter, "error", err)
			return a.server, nil
		}
		return keyPair{}, fmt.Errorf("issue server certificate: %w", err)
	}
	a.server = pair
	a.opts.Logger.Info("issued a server certificate", "hosts", a.opts.Hosts, "ends", pair.cert.NotAfter)
	return pair, nil
}

// good reports whether cert can be served for a good while yet.
func (a *Authority) good(cert *x509.Certificate) bool {
	now := a.opts.Now()
	due := cert.NotAfter.Add(-renewBefore)
	if cert.NotAfter.Equal(a.ca.cert.NotAfter) {
		due = cert.NotAfter // nothing longer can be had
	}
	return !now.Before(cert.NotBefore) && now.Before(due) && a.covers(cert)
}

// covers reports whether cert is this authority's and for all hosts.
func (a *Authority) covers(cert *x509.Certificate) bool {
	if cert.CheckSignatureFrom(a.ca.cert) != nil {
		return false
	}
	return !slices.ContainsFunc(a.opts.Hosts, func(h string) bool { return cert.VerifyHostname(h) != nil })
}

// ServerTLS returns a configuration that serves the present server certificate,
// renewing it when a client connects and that is due.
func (a *Authority) ServerTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			pair, err := a.current()
			if err != nil {
				return nil, err
			}
			// The authority's own is sent too: a client that trusts nothing yet
			// compares its fingerprint with the one it was told.
			return &tls.Certificate{Certificate: [][]byte{pair.cert.Raw, a.ca.cert.Raw}, PrivateKey: pair.key, Leaf: pair.cert}, nil
		},
	}
}

// CertificatePEM returns the authority's certificate, which clients trust.
func (a *Authority) CertificatePEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.ca.cert.Raw})
}

// Fingerprint returns the SHA-256 of the authority's certificate, as "sha256:"
// and 64 hexadecimal digits.
func (a *Authority) Fingerprint() string { return Fingerprint(a.ca.cert) }

// Fingerprint returns the SHA-256 of a certificate, as "sha256:" and 64
// hexadecimal digits.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}
