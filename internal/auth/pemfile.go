package auth

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// readPair reads a certificate and its key from one PEM file.
func readPair(name string) (keyPair, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return keyPair{}, err
	}
	var pair keyPair
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		switch block.Type {
		case "CERTIFICATE":
			if pair.cert, err = x509.ParseCertificate(block.Bytes); err != nil {
				return keyPair{}, fmt.Errorf("parse certificate: %w", err)
			}
		case "PRIVATE KEY":
			key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return keyPair{}, fmt.Errorf("parse key: %w", err)
			}
			ec, ok := key.(*ecdsa.PrivateKey)
			if !ok {
				return keyPair{}, errors.New("parse key: want an ECDSA key")
			}
			pair.key = ec
		}
	}
	if pair.cert == nil || pair.key == nil {
		return keyPair{}, errors.New("want a certificate and a key")
	}
	if public, ok := pair.cert.PublicKey.(*ecdsa.PublicKey); !ok || !pair.key.PublicKey.Equal(public) {
		return keyPair{}, errors.New("certificate and key do not belong together")
	}
	return pair, nil
}

// writePair writes a certificate and its key into one file, which therefore
// always belong together, readable by its owner alone.
func writePair(name string, pair keyPair) error {
	key, err := x509.MarshalPKCS8PrivateKey(pair.key)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	var buf bytes.Buffer
	buf.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.cert.Raw}))
	buf.Write(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
	return writeFile(name, buf.Bytes(), 0o600)
}

// writeFile replaces a file as a whole, durably when it returns.
func writeFile(name string, data []byte, mode os.FileMode) (err error) {
	dir := filepath.Dir(name)
	f, err := os.CreateTemp(dir, ".new-*") // made with 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // the first error is the one that counts
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), name); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
