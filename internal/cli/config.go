package cli

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/holdfast-dr/holdfast/api"
)

// connection is how to reach a server; the configuration file is one.
type connection struct {
	Server string `yaml:"server"`
	Token  string `yaml:"token"`
	CA     string `yaml:"ca,omitempty"` // PEM
}

// configFile returns the path of the configuration file.
func (a *app) configFile() (string, error) {
	dir := a.Getenv("XDG_CONFIG_HOME")
	if dir == "" {
		home := a.Getenv("HOME")
		if home == "" {
			return "", &api.Problem{Code: api.CodeInvalid, Detail: "there is no home directory for the configuration",
				Hint: "Set HOME, or HOLDFAST_SERVER and HOLDFAST_TOKEN"}
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "holdfast", "config.yaml"), nil
}

// connection returns what the environment and the configuration file say.
func (a *app) connection() (connection, error) {
	saved, err := a.savedConnection()
	if err != nil && a.Getenv("HOLDFAST_SERVER") == "" {
		return connection{}, err
	}
	conn := saved
	if server := a.Getenv("HOLDFAST_SERVER"); server != "" {
		if server, err = normalServer(server); err != nil {
			return connection{}, err
		}
		if server != saved.Server {
			// What is saved is another server's: it must not see that token.
			conn = connection{Server: server}
		}
	}
	if token := strings.TrimSpace(a.Getenv("HOLDFAST_TOKEN")); token != "" {
		conn.Token = token
	}
	if name := a.Getenv("HOLDFAST_CA"); name != "" {
		pem, err := os.ReadFile(name)
		if err != nil {
			return connection{}, &api.Problem{Code: api.CodeInvalid, Detail: "the file that HOLDFAST_CA names cannot be read", Cause: err.Error()}
		}
		conn.CA = string(pem)
	}
	if conn.Server == "" {
		return connection{}, &api.Problem{Code: api.CodeUnauthorized, Detail: "no server is known", Hint: "Log in first: holdfast login https://SERVER:8443"}
	}
	if err := safeScheme(conn.Server); err != nil {
		return connection{}, err
	}
	return conn, nil
}

// savedConnection returns what the configuration file says; nothing if there is
// none.
func (a *app) savedConnection() (connection, error) {
	var conn connection
	name, err := a.configFile()
	if err != nil {
		return conn, err
	}
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return conn, nil
	}
	if err == nil {
		decoder := yaml.NewDecoder(bytes.NewReader(data))
		decoder.KnownFields(true)
		err = decoder.Decode(&conn)
	}
	if err != nil {
		return connection{}, &api.Problem{Code: api.CodeInvalid, Detail: "the configuration " + name + " cannot be read", Cause: err.Error(),
			Hint: "Mend it, or remove it and log in again: holdfast login"}
	}
	if info, err := os.Stat(name); err == nil && info.Mode().Perm()&0o077 != 0 {
		fmt.Fprintf(a.Stderr, "%s others can read the token in %s: chmod 600 %s\n", a.err.yellow("warning:"), name, name)
	}
	return conn, nil
}

// saveConnection writes the configuration file, whole or not at all, for its
// owner's eyes alone.
func (a *app) saveConnection(conn connection) (name string, err error) {
	name, err = a.configFile()
	if err != nil {
		return "", err
	}
	data, err := yaml.Marshal(conn)
	if err != nil {
		return "", fmt.Errorf("encode configuration: %w", err)
	}
	dir := filepath.Dir(name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("write configuration: %w", err)
	}
	f, err := os.CreateTemp(dir, ".config-*") // made with 0600
	if err != nil {
		return "", fmt.Errorf("write configuration: %w", err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("write configuration: %w", err), os.Remove(f.Name()))
	}
	return name, nil
}

// normalServer returns a server's address as it is kept: with a scheme, without
// a path.
func normalServer(server string) (string, error) {
	if !strings.Contains(server, "://") {
		server = "https://" + server
	}
	u, err := url.Parse(server)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http" {
		return "", usagef("%q is not a server's address: want one like https://dr.example.org:8443", server)
	}
	return u.Scheme + "://" + u.Host, nil
}

// safeScheme refuses to send a token over a network in the clear.
func safeScheme(server string) error {
	u, err := url.Parse(server)
	if err != nil || u.Scheme == "https" {
		return err
	}
	if host := u.Hostname(); host == "localhost" || net.ParseIP(host).IsLoopback() {
		return nil
	}
	return &api.Problem{Code: api.CodeInvalid, Detail: server + " would send the token over the network in the clear", Hint: "Use https://"}
}

// connectionProblem explains why a server cannot be reached, or returns nil.
func connectionProblem(err error) *api.Problem {
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var where *url.Error
	if !errors.As(err, &where) {
		return nil
	}
	server := where.URL
	if u, perr := url.Parse(where.URL); perr == nil {
		server = u.Scheme + "://" + u.Host
	}
	p := &api.Problem{Code: api.CodeUnavailable, Detail: "cannot reach the server " + server, Cause: where.Err.Error()}
	switch {
	case errors.As(err, &unknown):
		p.Detail = "the server " + server + " is not trusted"
		p.Cause = "Its certificate is of an authority that is not known here"
		p.Hint = "Log in again: holdfast login " + server + ". If you did not expect this, somebody may be in between"
	case errors.As(err, &host):
		p.Detail = "the server " + server + " is not trusted"
		p.Cause = "Its certificate is not for " + host.Host
		p.Hint = "Use a name that the server was told of, or add this one to its host names"
	case errors.As(err, &invalid):
		p.Detail = "the server " + server + " is not trusted"
		p.Hint = "Check the clocks here and there"
	case errors.Is(err, context.DeadlineExceeded):
		p.Cause = "It did not answer in time"
		p.Hint = "Check whether it runs, and the network"
	default:
		p.Hint = "Check the address, whether the server runs, and the network"
	}
	return p
}
