// Package report is the evidence of a run of a recovery plan: what ran, from which
// recovery points, how long it took and what was seen, as a signed document that
// can be verified without Holdfast and without the server that made it, and as a
// page that a person can print.
package report

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"github.com/holdfast-dr/holdfast/api"
)

const (
	// Schema names this form of a report.
	Schema = "holdfast.report/1"
	// PayloadType is the envelope's.
	PayloadType = "application/vnd.holdfast.report+json"
	// MaxSize is how large an envelope may be, in bytes.
	MaxSize = 64 << 20
)

// Report is the evidence of one run.
type Report struct {
	Schema     string            `json:"schema"`
	MadeAt     time.Time         `json:"made_at"`
	Server     string            `json:"server"` // its name, for people
	Versions   map[string]string `json:"versions"`
	Plan       Plan              `json:"plan"`
	Run        api.PlanRun       `json:"run"`
	CleanUp    *api.PlanRun      `json:"clean_up,omitempty"` // of a test
	Objectives Objectives        `json:"objectives"`
	Evidence   []Evidence        `json:"evidence"` // by machine
	// Key is the public key that has signed the report, as DER: with it a change is
	// noticed, but who vouches is said only by a key that came another way.
	Key []byte `json:"key"`
}

// Plan is the text that ran.
type Plan struct {
	Name     string `json:"name"`
	Revision int64  `json:"revision"`
	Digest   string `json:"digest"` // SHA-256 of the text, in hexadecimal digits
	Text     string `json:"text"`
}

// Objectives are what recovery may cost and what it did, in seconds.
type Objectives struct {
	RPOGoal *float64 `json:"rpo_goal_seconds,omitempty"`
	RTOGoal *float64 `json:"rto_goal_seconds,omitempty"`
	RPO     *float64 `json:"rpo_seconds,omitempty"` // the worst of the machines'
	RTO     *float64 `json:"rto_seconds,omitempty"` // from the request until the last machine was up
	Met     *bool    `json:"met,omitempty"`         // missing: no goals
}

// Evidence is what was seen of a machine.
type Evidence struct {
	Item  string   `json:"item"`
	Job   string   `json:"job,omitempty"`
	Tasks []Task   `json:"tasks"`
	Shot  *Picture `json:"screenshot,omitempty"`
}

// Task is a task of the machine's job.
type Task struct {
	Title   string   `json:"title"`
	State   string   `json:"state"`
	Seconds float64  `json:"seconds"`
	Log     []string `json:"log,omitempty"`
	Error   string   `json:"error,omitempty"`
}

// Picture is a picture of a console, as PNG; of one that was too large for the
// report only the digest.
type Picture struct {
	SHA256 string `json:"sha256"`
	PNG    []byte `json:"png,omitempty"`
}

// maxPictures is how much of pictures a report has, in bytes.
const maxPictures = 24 << 20

// NewPicture returns a picture with its digest.
func NewPicture(png []byte) *Picture {
	sum := sha256.Sum256(png)
	return &Picture{SHA256: hex.EncodeToString(sum[:]), PNG: png}
}

var (
	// ErrUntrusted says that no key that was given has signed the report.
	ErrUntrusted = errors.New("no trusted key has signed this report")
	// ErrInvalid says that a document is no report, or was changed.
	ErrInvalid = errors.New("not a valid report")
)

// KeyID names a public key: SHA256: and the digest of its SubjectPublicKeyInfo.
func KeyID(public ed25519.PublicKey) string {
	sum := sha256.Sum256(spki(public))
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// signer signs and verifies with one key, as package dsse wants it.
type signer struct {
	private ed25519.PrivateKey // nil: only verifies
	public  ed25519.PublicKey
}

// Sign implements dsse.Signer.
func (s signer) Sign(_ context.Context, data []byte) ([]byte, error) {
	return ed25519.Sign(s.private, data), nil
}

// KeyID implements dsse.Signer.
func (s signer) KeyID() (string, error) { return KeyID(s.public), nil }

// Verify implements dsse.Verifier.
func (s signer) Verify(_ context.Context, data, sig []byte) error {
	if !ed25519.Verify(s.public, data, sig) {
		return errors.New("wrong signature")
	}
	return nil
}

// Public implements dsse.Verifier.
func (s signer) Public() crypto.PublicKey { return s.public }

// Sign returns the report in a DSSE envelope.
func Sign(ctx context.Context, r Report, key ed25519.PrivateKey) ([]byte, error) {
	public, ok := key.Public().(ed25519.PublicKey)
	if !ok {
		return nil, errors.New("sign report: no ed25519 key")
	}
	r.Schema, r.Key = Schema, spki(public)
	r.Evidence = within(r.Evidence, maxPictures)
	body, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode report: %w", err)
	}
	s, err := dsse.NewEnvelopeSigner(signer{key, public})
	if err != nil {
		return nil, fmt.Errorf("sign report: %w", err)
	}
	env, err := s.SignPayload(ctx, PayloadType, body)
	if err != nil {
		return nil, fmt.Errorf("sign report: %w", err)
	}
	return encode(env)
}

// within leaves out pictures beyond a limit; their digests stay.
func within(all []Evidence, limit int) []Evidence {
	out := slices.Clone(all)
	for i, e := range out {
		if e.Shot == nil {
			continue
		}
		if limit -= len(e.Shot.PNG); limit < 0 {
			out[i].Shot = &Picture{SHA256: e.Shot.SHA256}
		}
	}
	return out
}

// Signed says who signed a report.
type Signed struct {
	Key     string // id of the key that has signed it, whoever that is
	Trusted bool   // that key is one of those that were given
}

// Open reads a report and says who signed it. It fails with ErrInvalid if it is
// none, or if a byte of it was changed since it was signed; and with ErrUntrusted,
// and the report all the same, if the key that has signed it is none of those that
// are given: then nobody vouches for any of it.
func Open(ctx context.Context, envelope []byte, trusted ...ed25519.PublicKey) (Report, Signed, error) {
	invalid := func(err error) (Report, Signed, error) {
		return Report{}, Signed{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	env, body, err := unwrap(envelope)
	if err != nil {
		return invalid(err)
	}
	var r Report
	if err := strict(body, &r); err != nil {
		return invalid(err)
	}
	if r.Schema != Schema {
		return invalid(fmt.Errorf("it is of schema %q; this version reads %s", r.Schema, Schema))
	}
	key, err := parseSPKI(r.Key)
	if err != nil {
		return invalid(fmt.Errorf("the key in it: %w", err))
	}
	v, err := dsse.NewEnvelopeVerifier(signer{public: key})
	if err == nil {
		_, err = v.Verify(ctx, env)
	}
	if err == nil && env.Signatures[0].KeyID != KeyID(key) {
		err = errors.New("the signature names another key")
	}
	if err != nil {
		return invalid(fmt.Errorf("it was changed since it was signed: %w", err))
	}
	if err := r.check(); err != nil {
		return invalid(err)
	}
	who := Signed{Key: KeyID(key), Trusted: slices.ContainsFunc(trusted, func(k ed25519.PublicKey) bool { return k.Equal(key) })}
	if !who.Trusted {
		return r, who, ErrUntrusted
	}
	return r, who, nil
}

// unwrap reads the envelope, of which there is only one form: that of Sign.
func unwrap(envelope []byte) (*dsse.Envelope, []byte, error) {
	if len(envelope) > MaxSize {
		return nil, nil, fmt.Errorf("it has more than %d bytes", MaxSize)
	}
	env := new(dsse.Envelope)
	if err := strict(envelope, env); err != nil {
		return nil, nil, err
	}
	if env.PayloadType != PayloadType {
		return nil, nil, fmt.Errorf("its payload is %q, not a report", env.PayloadType)
	}
	body, err := base64.StdEncoding.Strict().DecodeString(env.Payload)
	if err != nil {
		return nil, nil, err
	}
	if len(env.Signatures) != 1 {
		return nil, nil, fmt.Errorf("it has %d signatures, want one", len(env.Signatures))
	}
	if _, err := base64.StdEncoding.Strict().DecodeString(env.Signatures[0].Sig); err != nil {
		return nil, nil, err
	}
	again, err := encode(env)
	if err == nil && !bytes.Equal(again, envelope) {
		err = errors.New("it is not written as reports are: it was changed")
	}
	return env, body, err
}

// encode writes an envelope.
func encode(env *dsse.Envelope) ([]byte, error) {
	out, err := json.MarshalIndent(env, "", " ")
	return append(out, '\n'), err
}

// check looks whether the report's parts belong together.
func (r Report) check() error {
	if sum := sha256.Sum256([]byte(r.Plan.Text)); hex.EncodeToString(sum[:]) != r.Plan.Digest {
		return errors.New("the plan's text is not the one of its digest")
	}
	for _, e := range r.Evidence {
		if e.Shot == nil || len(e.Shot.PNG) == 0 {
			continue
		}
		if sum := sha256.Sum256(e.Shot.PNG); hex.EncodeToString(sum[:]) != e.Shot.SHA256 {
			return fmt.Errorf("the picture of %s is not the one of its digest", e.Item)
		}
	}
	return nil
}

// strict decodes one JSON value and nothing after it.
func strict(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows it")
	}
	return nil
}

// DigestOf returns the SHA-256 of a text in hexadecimal digits.
func DigestOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}
