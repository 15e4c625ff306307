package cli

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

type loginOptions struct {
	ca          string
	fingerprint string
}

func (a *app) login() *cobra.Command {
	var o loginOptions
	cmd := &cobra.Command{
		Use:   "login SERVER",
		Short: "Remember a server and a token for it",
		Long: `Check that the server can be trusted and the token is valid, then remember both in
~/.config/holdfast/config.yaml, readable for you alone.

The token is read from HOLDFAST_TOKEN or the standard input, never from the command
line, where others could see it. A server's own authority is trusted if its fingerprint
is the one that the server printed when it started: give that with --ca-fingerprint, or
compare it when asked.`,
		Example: "  holdfast login https://dr.example.org:8443\n  holdfast login dr.example.org:8443 --ca-fingerprint sha256:5f0c… < token",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runLogin(cmd.Context(), o, args[0])
		},
	}
	cmd.Flags().StringVar(&o.ca, "ca", "", "file with the certificate of the authority to trust")
	cmd.Flags().StringVar(&o.fingerprint, "ca-fingerprint", "", "fingerprint of the authority to trust: sha256:…")
	return cmd
}

func (a *app) runLogin(ctx context.Context, o loginOptions, server string) error {
	server, err := normalServer(server)
	if err != nil {
		return err
	}
	if err := safeScheme(server); err != nil {
		return err
	}
	conn := connection{Server: server}
	if conn.CA, err = a.chooseAuthority(ctx, server, o); err != nil {
		return err
	}
	if conn.Token, err = a.readToken(); err != nil {
		return err
	}
	client, err := a.Client(api.ClientOptions{BaseURL: server, Token: conn.Token, CA: []byte(conn.CA), UserAgent: "holdfast/" + a.Version.Version})
	if err != nil {
		return err
	}
	defer client.Close()
	version, err := client.ServerVersion(ctx)
	if err != nil {
		return err
	}
	name, err := a.saveConnection(conn)
	if err != nil {
		return err
	}
	if a.json {
		printJSON(a.Stdout, version)
		return nil
	}
	fmt.Fprintf(a.Stdout, "Logged in to %s (Holdfast %s). Remembered in %s.\n", server, plain(version.Version), name)
	return nil
}

// readToken returns the token from the environment, or asks for it.
func (a *app) readToken() (string, error) {
	if token := strings.TrimSpace(a.Getenv("HOLDFAST_TOKEN")); token != "" {
		return token, nil
	}
	read := a.ReadSecret
	if read == nil {
		read = func() (string, error) { return readLine(a.Stdin) }
	}
	if a.IsTerminal(a.Stdin) {
		fmt.Fprint(a.Stderr, "Token: ")
		defer fmt.Fprintln(a.Stderr)
	}
	token, err := read()
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read the token: %w", err)
	}
	if token = strings.TrimSpace(token); !strings.HasPrefix(token, "hf_") {
		return "", &api.Problem{Code: api.CodeUnauthorized, Detail: "no token was given", Hint: "Pipe it to the command, or set HOLDFAST_TOKEN; it begins with hf_"}
	}
	return token, nil
}

// chooseAuthority returns the certificate of the authority to trust for server,
// or "" if it is one that this system trusts anyway.
func (a *app) chooseAuthority(ctx context.Context, server string, o loginOptions) (string, error) {
	name := o.ca
	if name == "" && o.fingerprint == "" {
		name = a.Getenv("HOLDFAST_CA")
	}
	if name != "" {
		data, err := os.ReadFile(name)
		if err != nil {
			return "", &api.Problem{Code: api.CodeInvalid, Detail: "the authority's certificate cannot be read", Cause: err.Error()}
		}
		return string(data), nil
	}
	if strings.HasPrefix(server, "http://") {
		return "", nil
	}
	chain, trusted, err := shownChain(ctx, server)
	if err != nil {
		return "", err
	}
	top := chain[len(chain)-1]
	shown := fingerprint(top)
	if o.fingerprint != "" {
		wanted := "sha256:" + strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(strings.ToLower(o.fingerprint), "sha256:"), ":", ""))
		if shown != wanted || !top.IsCA {
			return "", &api.Problem{Code: api.CodeForbidden, Detail: "the server " + server + " is not the one that is meant",
				Cause: "Its authority's fingerprint is " + shown, Hint: "Compare with what the server printed when it started. If it differs, somebody may be in between"}
		}
		return encodeCertificate(top), nil
	}
	if trusted {
		return "", nil
	}
	if !top.IsCA {
		return "", &api.Problem{Code: api.CodeForbidden, Detail: "the server " + server + " is not trusted", Cause: "It does not show the authority that its certificate is of",
			Hint: "Give that authority's certificate: --ca FILE"}
	}
	if !a.IsTerminal(a.Stdin) || !a.IsTerminal(a.Stderr) {
		return "", &api.Problem{Code: api.CodeForbidden, Detail: "the server " + server + " is not trusted yet", Cause: "Its certificate is of an authority that is not known here",
			Hint: "If this is the fingerprint that the server printed when it started, add: --ca-fingerprint " + shown}
	}
	fmt.Fprintf(a.Stderr, "The server's authority is not known here. Its fingerprint is\n  %s\nThe server printed it when it started.\n", shown)
	if err := a.confirm(false, "Is it the same?"); err != nil {
		return "", err
	}
	return encodeCertificate(top), nil
}

// shownChain returns the certificates that a server shows, and whether this
// system trusts them. Nothing is sent to it.
func shownChain(ctx context.Context, server string) ([]*x509.Certificate, bool, error) {
	u, err := url.Parse(server)
	if err != nil {
		return nil, false, err
	}
	host := u.Host
	if u.Port() == "" {
		host = net.JoinHostPort(u.Hostname(), "443")
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	// Whom the server is is what is to be found out here; the token is sent
	// later, over a connection that is verified against what was chosen.
	dialer := tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}}
	raw, err := dialer.DialContext(ctx, "tcp", host)
	if err != nil {
		return nil, false, &url.Error{Op: "connect", URL: server, Err: err}
	}
	defer raw.Close()
	conn, ok := raw.(*tls.Conn)
	if !ok {
		return nil, false, errors.New("connection is not TLS")
	}
	chain := conn.ConnectionState().PeerCertificates
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, verr := chain[0].Verify(x509.VerifyOptions{DNSName: u.Hostname(), Intermediates: between})
	return chain, verr == nil, nil
}

func fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func encodeCertificate(cert *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
}
