package nbd_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/nbd"
)

// pki is an authority with a certificate for the server and one for a client,
// in memory and in a directory of the names that QEMU, libnbd and nbdkit want.
type pki struct {
	dir            string
	server, client *tls.Config
}

func newPKI(t testing.TB) *pki {
	t.Helper()
	dir := t.TempDir()
	pool := x509.NewCertPool()
	template := func(name string, serial int64) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		}
	}
	var ca *x509.Certificate
	var caKey *ecdsa.PrivateKey
	issue := func(c *x509.Certificate, file string) tls.Certificate {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if ca == nil {
			ca, caKey = c, key
		}
		der, err := x509.CreateCertificate(rand.Reader, c, ca, &key.PublicKey, caKey)
		if err != nil {
			t.Fatal(err)
		}
		keyDER, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
		for name, data := range map[string][]byte{file + "-cert.pem": certPEM, file + "-key.pem": keyPEM} {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		pair, err := tls.X509KeyPair(certPEM, keyPEM)
		if err != nil {
			t.Fatal(err)
		}
		return pair
	}
	root := template("test authority", 1)
	root.IsCA, root.KeyUsage = true, x509.KeyUsageCertSign
	issue(root, "ca")
	pem, err := os.ReadFile(filepath.Join(dir, "ca-cert.pem"))
	if err != nil || !pool.AppendCertsFromPEM(pem) {
		t.Fatal("authority is not usable", err)
	}
	s := template("localhost", 2)
	s.DNSNames, s.IPAddresses = []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}
	s.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	c := template("a client", 3)
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	return &pki{
		dir: dir,
		server: &tls.Config{
			Certificates: []tls.Certificate{issue(s, "server")}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		},
		client: &tls.Config{Certificates: []tls.Certificate{issue(c, "client")}, RootCAs: pool, ServerName: "localhost"},
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	d := newDisk(4 << 20)
	_, path := serve(t, nbd.ServerOptions{TLS: p.server, RequireTLS: true}, &nbd.Export{Name: "x", Backend: d})

	c := dial(t, path, nbd.DialOptions{Export: "x", TLS: p.client})
	data := bytes.Repeat([]byte("holdfast"), 100<<10)
	if err := c.WriteAt(t.Context(), data, 4096); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(data)+8192)
	if err := c.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, d.content()[:len(got)]) || !bytes.Equal(got[4096:][:len(data)], data) {
		t.Errorf("read back: %v", err)
	}
	if list, err := nbd.List(t.Context(), "unix", path, nbd.DialOptions{TLS: p.client}); err != nil || len(list) != 1 {
		t.Errorf("list: %v, %v", list, err)
	}

	if _, err := nbd.Dial(t.Context(), "unix", path, nbd.DialOptions{Export: "x"}); !errors.Is(err, nbd.ErrTLSRequired) {
		t.Errorf("without TLS: %v", err)
	}
	stranger := p.client.Clone()
	stranger.Certificates = nil
	if c, err := nbd.Dial(t.Context(), "unix", path, nbd.DialOptions{Export: "x", TLS: stranger}); err == nil {
		_ = c.Close()
		t.Error("a client without certificate was let in")
	}
	elsewhere := p.client.Clone()
	elsewhere.ServerName = "elsewhere"
	if c, err := nbd.Dial(t.Context(), "unix", path, nbd.DialOptions{Export: "x", TLS: elsewhere}); err == nil {
		_ = c.Close()
		t.Error("a server of another name was taken")
	}
}

func TestTLSRequired(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	_, path := serve(t, nbd.ServerOptions{TLS: p.server, RequireTLS: true}, &nbd.Export{Backend: newDisk(4096)})
	w := dialWire(t, path, 3)
	for opt, payload := range map[uint32][]byte{
		optList: nil, optGo: goBytes(""), optInfo: goBytes(""), optStructured: nil, optListMeta: metaBytes(""), optSetMeta: metaBytes(""), 99: nil,
	} {
		w.send(optionBytes(opt, payload))
		w.wantReply(opt, repTLSReqd)
	}
	w.send(optionBytes(optExportName, nil))
	w.wantEnd()
}

// TestTLSForgetsClearText: what was negotiated or sent ahead in clear text does
// not count over TLS.
func TestTLSForgetsClearText(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	_, path := serve(t, nbd.ServerOptions{TLS: p.server}, &nbd.Export{Backend: newDisk(4096)})

	w := dialWire(t, path, 3)
	w.send(optionBytes(optStartTLS, nil), optionBytes(optList, nil)) // in one write
	w.wantEnd()

	w = dialWire(t, path, 3)
	w.send(optionBytes(optStructured, nil), optionBytes(optSetMeta, metaBytes("", "base:allocation")))
	w.wantReply(optStructured, repAck)
	w.wantReply(optSetMeta, repMeta)
	w.wantReply(optSetMeta, repAck)
	w.send(optionBytes(optStartTLS, nil))
	w.wantReply(optStartTLS, repAck)
	tc := tls.Client(w.Conn, p.client)
	w = &wire{t, tc}
	w.send(optionBytes(optStartTLS, nil))
	w.wantReply(optStartTLS, repInvalid)
	w.send(optionBytes(optSetMeta, metaBytes("", "base:allocation")))
	w.wantReply(optSetMeta, repInvalid) // structured replies are forgotten
	w.send(optionBytes(optGo, goBytes("")))
	w.wantReply(optGo, repInfo)
	w.wantReply(optGo, repAck)
	w.send(requestBytes(0, cmdRead, 1, 0, 512))
	w.wantSimple(0, 1)
}
