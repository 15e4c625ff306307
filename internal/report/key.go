package report

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// LoadKey returns the key in a file, and makes one if there is no such file:
// durable on return, readable by its owner alone.
func LoadKey(name string) (ed25519.PrivateKey, error) {
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		if key, err := makeKey(name); !errors.Is(err, fs.ErrExist) {
			return key, err
		}
		data, err = os.ReadFile(name) // somebody else was quicker
	}
	if err != nil {
		return nil, fmt.Errorf("read key of reports: %w", err)
	}
	if st, err := os.Stat(name); err != nil || st.Mode().Perm()&0o077 != 0 {
		return nil, errors.Join(err, fmt.Errorf("read key of reports: others may read %s: chmod 600 it, and make a new one if they did", name))
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("read key of reports %s: it is no PEM file with a private key", name)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read key of reports %s: %w", name, err)
	}
	ed, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("read key of reports %s: want an Ed25519 key", name)
	}
	return ed, nil
}

func makeKey(name string) (key ed25519.PrivateKey, err error) {
	if _, key, err = ed25519.GenerateKey(rand.Reader); err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".key-*") // with mode 0600
	if err != nil {
		return nil, fmt.Errorf("make key of reports: %w", err)
	}
	defer os.Remove(f.Name()) // or nothing, once it has its name
	err = pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Link(f.Name(), name) // never over another
	}
	if err == nil {
		err = syncDir(filepath.Dir(name))
	}
	if err != nil {
		return nil, fmt.Errorf("make key of reports: %w", err)
	}
	return key, nil
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// spki encodes a public key.
func spki(public ed25519.PublicKey) []byte {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return public // never: the type is known
	}
	return der
}

// EncodePublic writes a public key as PEM.
func EncodePublic(public ed25519.PublicKey) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki(public)})
}

// ParsePublic reads a public key from PEM.
func ParsePublic(data []byte) (ed25519.PublicKey, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, errors.New("want a PEM file with a public key")
	}
	return parseSPKI(block.Bytes)
}

// parseSPKI reads a public key from DER.
func parseSPKI(der []byte) (ed25519.PublicKey, error) {
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, err
	}
	ed, ok := key.(ed25519.PublicKey)
	if !ok {
		return nil, errors.New("want an Ed25519 key")
	}
	return ed, nil
}
