// Package vault keeps the history of streams in an object store, as immutable
// segments: append, seal, recover after a crash, View of any position, Diff of
// two views, verify. All of its state can be rebuilt from the objects alone;
// docs/format is their specification. It knows neither gateways nor items, and
// must not be imported by package block, nbd or vfs.
package vault

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path"
	"slices"
	"strings"
	"time"

	"filippo.io/age"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault/segment"
)

// FormatVersion is the version of the vault's layout; segments have their own.
//
//	1  the first
const FormatVersion = 1

var (
	// ErrNotVault says that the store holds no vault.
	ErrNotVault = errors.New("there is no vault here")
	// ErrExists says that the store holds a vault already.
	ErrExists = errors.New("there is a vault here already")
	// ErrWrongKey says that the key does not open this vault.
	ErrWrongKey = errors.New("this is not the vault's key")
	// ErrCorrupt says that objects are not as they were written, or missing.
	ErrCorrupt = segment.ErrCorrupt
	// ErrNewerFormat says that newer software wrote here.
	ErrNewerFormat = segment.ErrNewer
	// ErrFenced says that a timeline is closed, or belongs to a newer generation.
	ErrFenced = errors.New("this timeline is fenced off")
	// ErrAlreadyCommitted says of a spooled segment that the vault has it.
	ErrAlreadyCommitted = errors.New("segment is in the vault already")
	// ErrForeign says of a spooled segment that it is not what comes next.
	ErrForeign = errors.New("segment does not belong here")
	// ErrStreamExists says that there is a stream of this id.
	ErrStreamExists = errors.New("stream exists already")
	// ErrNoStream says that there is no stream of this id.
	ErrNoStream = errors.New("there is no such stream")
	// ErrNoPosition says that a timeline has no such position.
	ErrNoPosition = errors.New("there is no such position")
)

// CorruptError names a damaged object.
type CorruptError struct {
	Object string
	Err    error
}

// Error names the object and what is wrong with it.
func (e *CorruptError) Error() string { return "object " + e.Object + ": " + e.Err.Error() }

// Unwrap returns what is wrong.
func (e *CorruptError) Unwrap() error { return e.Err }

// damaged names the object of an error.
func damaged(object string, err error) error { return &CorruptError{Object: object, Err: err} }

// Key opens a vault. It is an age identity; its text form can be kept in a file.
type Key struct{ id *age.X25519Identity }

// NewKey makes a key.
func NewKey() (Key, error) {
	id, err := age.GenerateX25519Identity()
	return Key{id}, err
}

// ParseKey parses what String returns, or Words.
func ParseKey(s string) (Key, error) {
	if words := strings.Fields(s); len(words) == keyWords {
		return parseWords(words)
	}
	id, err := age.ParseX25519Identity(strings.TrimSpace(s))
	if err != nil {
		return Key{}, fmt.Errorf("vault key: want a line that begins with AGE-SECRET-KEY-1, or the %d words of a recovery key: %w", keyWords, err)
	}
	return Key{id}, nil
}

// String returns the key itself, which is secret.
func (k Key) String() string { return k.id.String() }

// Recipient returns to whom things are encrypted that the key opens; it is not
// secret.
func (k Key) Recipient() string { return k.id.Recipient().String() }

// descriptor is the object `vault`.
type descriptor struct {
	Format     int       `json:"format"`
	ID         string    `json:"id"`
	CreatedAt  time.Time `json:"created_at"`
	Recipients []string  `json:"recipients"`
	Secret     []byte    `json:"secret"` // secretSize bytes, encrypted to the recipients
}

const (
	descriptorName = "vault"
	streamsPrefix  = "streams/"
)

// CreateOptions say what vault to make.
type CreateOptions struct {
	Key      Key
	Recovery []string // further age recipients that shall be able to open it
	Now      time.Time
}

// Options are the choices of an open vault. The zero value is usable.
type Options struct {
	Logger *slog.Logger
	// Cache bounds the decoded frames kept for each stream, in bytes. Default 64 MiB.
	Cache int64
}

// Vault is an open vault. Safe for concurrent use.
type Vault struct {
	store objstore.Store
	key   Key
	opts  Options
	desc  descriptor
	// secret authenticates all documents.
	secret secret
	codec  *segment.Codec
}

// Create makes a vault in an empty store. It is durable when it returns. It
// fails with ErrExists if there is one already.
func Create(ctx context.Context, store objstore.Store, o CreateOptions) (*Vault, error) {
	var sec secret
	_, _ = rand.Read(sec[:]) // never fails
	d := descriptor{Format: FormatVersion, ID: sec.id(), CreatedAt: stamp(o.Now),
		Recipients: append([]string{o.Key.Recipient()}, o.Recovery...)}
	var err error
	if d.Secret, err = wrap(d.Recipients, sec[:]); err != nil {
		return nil, fmt.Errorf("create vault: %w", err)
	}
	b, err := sec.document(descriptorName, d)
	if err != nil {
		return nil, fmt.Errorf("create vault: %w", err)
	}
	if err := store.PutIfAbsent(ctx, descriptorName, b); err != nil {
		if errors.Is(err, objstore.ErrExists) {
			err = ErrExists
		}
		return nil, fmt.Errorf("create vault: %w", err)
	}
	return Open(ctx, store, o.Key, Options{})
}

// Open opens a vault. It fails with ErrNotVault, ErrWrongKey, ErrNewerFormat or
// ErrCorrupt.
func Open(ctx context.Context, store objstore.Store, key Key, o Options) (*Vault, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Cache <= 0 {
		o.Cache = 64 << 20
	}
	v := &Vault{store: store, key: key, opts: o}
	b, _, err := store.Get(ctx, descriptorName)
	if missing(err) {
		err = ErrNotVault
	}
	if err == nil {
		err = v.read(b)
	}
	if err != nil {
		return nil, fmt.Errorf("open vault: %w", err)
	}
	if a, ok := store.(objstore.Anchorer); ok {
		a.Anchor(descriptorName, v.isOurs)
	}
	v.codec, err = segment.NewCodec()
	return v, err
}

// isOurs says whether a descriptor is this vault's. One that is damaged may be:
// that is for verify to find.
func (v *Vault) isOurs(b []byte) bool {
	var d descriptor
	body, _, err := splitDocument(descriptorName, b)
	if err != nil || json.Unmarshal(body, &d) != nil || d.ID == v.desc.ID {
		return true
	}
	plain, err := v.unwrap(d.Secret) // its id may be what is damaged
	return err == nil && bytes.Equal(plain, v.secret[:])
}

// read takes the vault's descriptor, which holds the key of its own checksum.
func (v *Vault) read(b []byte) error {
	body, _, err := splitDocument(descriptorName, b)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, &v.desc); err != nil {
		return damaged(descriptorName, fmt.Errorf("%w: %w", ErrCorrupt, err))
	}
	plain, err := v.unwrap(v.desc.Secret)
	if err == nil && len(plain) != secretSize {
		err = ErrCorrupt
	}
	if errors.Is(err, ErrWrongKey) && slices.Contains(v.desc.Recipients, v.key.Recipient()) {
		err = fmt.Errorf("%w: its secret is not for this key, although it says so", ErrCorrupt)
	}
	if err != nil {
		return damaged(descriptorName, err)
	}
	copy(v.secret[:], plain)
	if err := v.secret.open(descriptorName, b, &v.desc); err != nil {
		return err
	}
	if v.desc.ID != v.secret.id() {
		return damaged(descriptorName, fmt.Errorf("%w: its id is not that of its secret", ErrCorrupt))
	}
	return nil
}

// ID returns what names the vault.
func (v *Vault) ID() string { return v.desc.ID }

// CreatedAt returns when it was made.
func (v *Vault) CreatedAt() time.Time { return v.desc.CreatedAt }

// Ping says whether the vault can be reached and is the one that was opened.
func (v *Vault) Ping(ctx context.Context) error {
	b, _, err := v.store.Get(ctx, descriptorName)
	if err == nil && !v.isOurs(b) {
		err = objstore.ErrGone
	}
	return err
}

// FormatVersion returns the version of its layout.
func (v *Vault) FormatVersion() int { return v.desc.Format }

// wrap encrypts to recipients.
func wrap(recipients []string, plain []byte) ([]byte, error) {
	to := make([]age.Recipient, len(recipients))
	for i, r := range recipients {
		x, err := age.ParseX25519Recipient(r)
		if err != nil {
			return nil, fmt.Errorf("recipient %q: %w", r, err)
		}
		to[i] = x
	}
	var out bytes.Buffer
	w, err := age.Encrypt(&out, to...)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(plain); err != nil {
		return nil, err
	}
	err = w.Close()
	return out.Bytes(), err
}

// unwrap decrypts what wrap made.
func (v *Vault) unwrap(b []byte) ([]byte, error) {
	r, err := age.Decrypt(bytes.NewReader(b), v.key.id)
	var none *age.NoIdentityMatchError
	if errors.As(err, &none) {
		return nil, ErrWrongKey
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	plain, err := io.ReadAll(io.LimitReader(r, 4096))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return plain, nil
}

// Disk is a disk of a stream.
type Disk struct {
	ID   string `json:"id"`
	Size int64  `json:"size"` // bytes
}

// StreamOptions say what stream to make.
type StreamOptions struct {
	ID    holdfast.StreamID
	Name  string
	Disks []Disk
	Now   time.Time
}

// streamDescriptor is the object `streams/ID/stream`.
type streamDescriptor struct {
	Format    int               `json:"format"`
	ID        holdfast.StreamID `json:"id"`
	Name      string            `json:"name"`
	Disks     []Disk            `json:"disks"`
	CreatedAt time.Time         `json:"created_at"`
	Key       []byte            `json:"key"` // segment.KeySize bytes, encrypted to the vault's recipients
}

// stamp returns a time as the vault keeps it.
func stamp(t time.Time) time.Time { return t.Round(0).UTC().Truncate(time.Microsecond) }

func streamName(id holdfast.StreamID, rest ...string) string {
	return path.Join(append([]string{"streams", id.String()}, rest...)...)
}

// CreateStream makes a stream with its first timeline, of generation 1. It is
// durable when it returns. A stream whose making was interrupted is completed.
func (v *Vault) CreateStream(ctx context.Context, o StreamOptions) (*Stream, error) {
	if err := checkDisks(o.Disks); err != nil {
		return nil, fmt.Errorf("create stream %s: %w", o.ID, err)
	}
	var key segment.Key
	_, _ = rand.Read(key[:]) // never fails
	d := streamDescriptor{Format: FormatVersion, ID: o.ID, Name: o.Name, Disks: o.Disks, CreatedAt: stamp(o.Now)}
	var err error
	if d.Key, err = wrap(v.desc.Recipients, key[:]); err != nil {
		return nil, fmt.Errorf("create stream %s: %w", o.ID, err)
	}
	// The timeline first: a stream that can be opened has one.
	tl := timelineDescriptor{Format: FormatVersion, ID: 1, Generation: 1, CreatedAt: stamp(o.Now), Reason: "created"}
	if err := v.putNew(ctx, timelineName(o.ID, 1), tl); err != nil && !errors.Is(err, objstore.ErrExists) {
		return nil, fmt.Errorf("create stream %s: %w", o.ID, err)
	}
	if err := v.putNew(ctx, streamName(o.ID, "stream"), d); err != nil {
		if errors.Is(err, objstore.ErrExists) {
			err = ErrStreamExists
		}
		return nil, fmt.Errorf("create stream %s: %w", o.ID, err)
	}
	return v.OpenStream(ctx, o.ID)
}

func checkDisks(disks []Disk) error {
	if len(disks) == 0 || len(disks) > segment.MaxDisks {
		return fmt.Errorf("%d disks, want 1 to %d", len(disks), segment.MaxDisks)
	}
	seen := map[string]bool{}
	for _, d := range disks {
		if d.ID == "" || len(d.ID) > segment.MaxDiskID || seen[d.ID] || d.Size <= 0 || d.Size%512 != 0 {
			return fmt.Errorf("disk %q of %d bytes: want a unique id of at most 64 bytes, and a positive multiple of 512", d.ID, d.Size)
		}
		seen[d.ID] = true
	}
	return nil
}

// deletedName names the document that says of a stream that it is being deleted.
const deletedName = "deleted"

type deletedDocument struct {
	Format int       `json:"format"`
	At     time.Time `json:"at"`
}

// DeleteStream removes a stream with all of its history. It is recorded first, so
// that after an interruption there is no such stream, and another call removes
// the rest. It is no error if there is none. progress, which may be nil, is told
// how many objects are removed.
func (v *Vault) DeleteStream(ctx context.Context, id holdfast.StreamID, now time.Time, progress func(done, total int64)) error {
	fail := func(err error) error { return fmt.Errorf("delete stream %s: %w", id, err) }
	entries, err := v.store.List(ctx, streamName(id)+"/", "")
	if err != nil {
		return fail(err)
	}
	if len(entries) == 0 {
		return nil
	}
	marker := streamName(id, deletedName)
	if err := v.putNew(ctx, marker, deletedDocument{FormatVersion, stamp(now)}); err != nil && !errors.Is(err, objstore.ErrExists) {
		return fail(err)
	}
	for i, e := range entries {
		if e.Name == marker {
			continue
		}
		if err := v.store.Delete(ctx, e.Name); err != nil && !missing(err) {
			return fail(err)
		}
		if progress != nil {
			progress(int64(i+1), int64(len(entries)))
		}
	}
	if err := v.store.Delete(ctx, marker); err != nil && !missing(err) {
		return fail(err)
	}
	return nil
}

// Streams returns the ids of all streams.
func (v *Vault) Streams(ctx context.Context) ([]holdfast.StreamID, error) {
	entries, err := v.store.List(ctx, streamsPrefix, "")
	if err != nil {
		return nil, fmt.Errorf("list streams: %w", err)
	}
	deleted := map[string]bool{}
	for _, e := range entries {
		if dir, base := path.Split(e.Name); base == deletedName {
			deleted[dir] = true
		}
	}
	var ids []holdfast.StreamID
	for _, e := range entries {
		dir, base := path.Split(e.Name)
		if base != "stream" || deleted[dir] {
			continue
		}
		id, err := holdfast.ParseStreamID(strings.TrimSuffix(strings.TrimPrefix(dir, streamsPrefix), "/"))
		if err != nil {
			return nil, damaged(e.Name, fmt.Errorf("%w: %w", ErrCorrupt, err))
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// OpenStream opens a stream; ErrNoStream if there is none. Nothing of its
// history is loaded before Refresh.
func (v *Vault) OpenStream(ctx context.Context, id holdfast.StreamID) (*Stream, error) {
	name := streamName(id, "stream")
	s := &Stream{v: v, timelines: map[holdfast.TimelineID]*timeline{}, cache: newFrameCache(v.opts.Cache)}
	_, err := v.getDocument(ctx, name, &s.desc)
	if missing(err) {
		err = ErrNoStream
	}
	if err == nil {
		var d deletedDocument
		if _, gone := v.getDocument(ctx, streamName(id, deletedName), &d); !missing(gone) {
			err = errors.Join(ErrNoStream, gone)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open stream %s: %w", id, err)
	}
	if s.desc.ID != id {
		return nil, damaged(name, fmt.Errorf("%w: it is of stream %s", ErrCorrupt, s.desc.ID))
	}
	if err := checkDisks(s.desc.Disks); err != nil {
		return nil, damaged(name, fmt.Errorf("%w: %w", ErrCorrupt, err))
	}
	key, err := v.unwrap(s.desc.Key)
	if err == nil && len(key) != segment.KeySize {
		err = ErrCorrupt
	}
	if err != nil {
		return nil, damaged(name, err)
	}
	copy(s.key[:], key)
	return s, nil
}
