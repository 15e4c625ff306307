package vault

import (
	"bytes"
	"context"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/zeebo/blake3"

	"github.com/holdfast-dr/holdfast/internal/objstore"
)

// secretSize is the size of a vault's secret, in bytes.
const secretSize = 32

// The contexts in which keys are derived from the secret.
const (
	idContext  = "holdfast 2026 vault id v1"
	macContext = "holdfast 2026 vault document v1"
)

// macLine begins the last line of a document.
const macLine = "\nblake3-mac "

// maxDocument bounds a document, in bytes.
const maxDocument = 1 << 20

// secret is what all documents of a vault are authenticated with, and what its
// id says: who lacks it can neither change nor exchange a document, and not the
// vault without changing its id.
type secret [secretSize]byte

// derive returns a key for one purpose.
func (s *secret) derive(purpose string) (key [32]byte) {
	blake3.DeriveKey(purpose, s[:], key[:])
	return key
}

// id returns the vault's id.
func (s *secret) id() string {
	sum := s.derive(idContext)
	return hex.EncodeToString(sum[:16])
}

// mac authenticates the body of the document of a name.
func (s *secret) mac(name string, body []byte) []byte {
	key := s.derive(macContext)
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic("vault: a key of 32 bytes is not one: " + err.Error())
	}
	_, _ = h.Write(append([]byte(name), 0)) // never fails; names have no zero byte
	_, _ = h.Write(body)
	return h.Sum(nil)
}

// document returns x as the object of a name holds it: JSON, and a last line
// that authenticates it.
func (s *secret) document(name string, x any) ([]byte, error) {
	body, err := json.MarshalIndent(x, "", "  ")
	if err != nil {
		return nil, err
	}
	if len(body) > maxDocument/2 {
		return nil, fmt.Errorf("object %s would have %d bytes, the limit is %d", name, len(body), maxDocument/2)
	}
	return s.seal(name, body), nil
}

// seal appends the last line to a body.
func (s *secret) seal(name string, body []byte) []byte {
	out := append(bytes.Clone(body), macLine...)
	return append(hex.AppendEncode(out, s.mac(name, body)), '\n')
}

// format is the part of a document that says who can read the rest.
type format struct {
	Format int `json:"format"`
}

// splitDocument takes a document apart, and says whether this software can read
// it. Nothing is authenticated yet.
func splitDocument(name string, b []byte) (body, mac []byte, err error) {
	at := bytes.LastIndex(b, []byte(macLine))
	var f format
	if len(b) > maxDocument || at < 0 || json.Unmarshal(b[:at], &f) != nil || f.Format < 1 {
		return nil, nil, damaged(name, fmt.Errorf("%w: it is not a document of a vault", ErrCorrupt))
	}
	if f.Format > FormatVersion {
		return nil, nil, damaged(name, fmt.Errorf("%w: format %d, this software knows %d", ErrNewerFormat, f.Format, FormatVersion))
	}
	body, line := b[:at], b[at+len(macLine):]
	mac = make([]byte, blakeSize)
	if n := hex.EncodedLen(blakeSize); len(line) != n+1 || line[n] != '\n' || bytes.ContainsAny(line, "ABCDEF") {
		err = ErrCorrupt
	} else {
		_, err = hex.Decode(mac, line[:n])
	}
	if err != nil {
		return nil, nil, damaged(name, fmt.Errorf("%w: its last line is not a checksum", ErrCorrupt))
	}
	return body, mac, nil
}

// blakeSize is the size of a checksum, in bytes.
const blakeSize = 32

// open checks a document and decodes it into x. It fails with ErrCorrupt or
// ErrNewerFormat.
func (s *secret) open(name string, b []byte, x any) error {
	body, mac, err := splitDocument(name, b)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(mac, s.mac(name, body)) != 1 {
		return damaged(name, fmt.Errorf("%w: its checksum does not match", ErrCorrupt))
	}
	if err := json.Unmarshal(body, x); err != nil {
		return damaged(name, fmt.Errorf("%w: %w", ErrCorrupt, err))
	}
	return nil
}

// getDocument reads a document, and its version in the store. It fails with
// objstore.ErrNotFound, ErrCorrupt or ErrNewerFormat.
func (v *Vault) getDocument(ctx context.Context, name string, x any) (etag string, err error) {
	b, etag, err := v.store.Get(ctx, name)
	if err != nil {
		return "", err
	}
	return etag, v.secret.open(name, b, x)
}

// putNew writes a document unless there is one; then it fails with
// objstore.ErrExists.
func (v *Vault) putNew(ctx context.Context, name string, x any) error {
	b, err := v.secret.document(name, x)
	if err != nil {
		return err
	}
	return v.store.PutIfAbsent(ctx, name, b)
}

// missing says whether an error is that an object is not there.
func missing(err error) bool { return errors.Is(err, objstore.ErrNotFound) }
