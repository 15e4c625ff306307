package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

var (
	// ErrTokenInvalid says that a token is malformed or not known.
	ErrTokenInvalid = errors.New("token is not valid")
	// ErrTokenExpired says that a token was valid once.
	ErrTokenExpired = errors.New("token has expired")
	// ErrTokenNotFound says that no token has that id or name.
	ErrTokenNotFound = errors.New("token not found")
	// ErrTokenExists says that another token has that name.
	ErrTokenExists = errors.New("token name is taken")
	// ErrLastAdmin says that no admin token would be left.
	ErrLastAdmin = errors.New("last admin token")
	// ErrTokenOptions says that a token cannot be made as asked.
	ErrTokenOptions = errors.New("token options are not valid")
)

// Role is what the bearer of a token may do.
type Role string

// The roles. Each may do what the ones after it may.
const (
	RoleAdmin    Role = "admin"    // everything, tokens and sites included
	RoleOperator Role = "operator" // protect, fail over, cancel
	RoleViewer   Role = "viewer"   // look, change nothing
)

// Allows reports whether a bearer of role r may do what needs the given role.
// An unknown role allows nothing and is allowed by none.
func (r Role) Allows(needed Role) bool {
	return r.rank() > 0 && needed.rank() > 0 && r.rank() >= needed.rank()
}

func (r Role) rank() int {
	switch r {
	case RoleAdmin:
		return 3
	case RoleOperator:
		return 2
	case RoleViewer:
		return 1
	}
	return 0
}

// Token is what is kept of a token: enough to recognise it, not to use it.
type Token struct {
	ID        string   // 16 hexadecimal digits
	Name      string   // unique
	Role      Role     //
	Hash      [32]byte // SHA-256 of the secret
	CreatedAt time.Time
	ExpiresAt time.Time // zero: never
}

// Store keeps tokens. Safe for concurrent use.
type Store interface {
	// PutToken adds a token, durably when it returns.
	PutToken(ctx context.Context, token Token) error
	// ListTokens returns all tokens, in any order.
	ListTokens(ctx context.Context) ([]Token, error)
	// DeleteToken removes the token of that id, durably when it returns. It is
	// no error if there is none.
	DeleteToken(ctx context.Context, id string) error
}

// Tokens makes, recognises and revokes tokens. Safe for concurrent use.
type Tokens struct {
	store Store
	// mu makes "look whether one may, then do it" one step.
	mu sync.Mutex
}

// NewTokens returns the tokens that store keeps.
func NewTokens(store Store) *Tokens { return &Tokens{store: store} }

// CreateOptions say what a new token shall be.
type CreateOptions struct {
	Name string        // unique, 1 to 64 printable characters
	Role Role          //
	TTL  time.Duration // 0: for ever
	Now  time.Time
}

// secretPrefix begins every secret, so that one that leaked can be recognised.
const secretPrefix = "hf_"

// secretDigits is how many base62 digits 32 bytes need.
const secretDigits = 43

var namePattern = regexp.MustCompile(`^[\pL\pN][\pL\pN ._@:/-]{0,63}$`)

// Create makes a token and returns what is kept of it, and its secret, which is
// kept nowhere. It fails with ErrTokenExists or ErrTokenOptions.
func (t *Tokens) Create(ctx context.Context, opts CreateOptions) (Token, string, error) {
	switch {
	case !namePattern.MatchString(opts.Name):
		return Token{}, "", fmt.Errorf("create token %q: %w: want a name of 1 to 64 letters, digits and . _ @ : / -", opts.Name, ErrTokenOptions)
	case opts.Role.rank() == 0:
		return Token{}, "", fmt.Errorf("create token %q: %w: role %q is not admin, operator or viewer", opts.Name, ErrTokenOptions, opts.Role)
	case opts.TTL < 0:
		return Token{}, "", fmt.Errorf("create token %q: %w: negative lifetime %s", opts.Name, ErrTokenOptions, opts.TTL)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	all, err := t.store.ListTokens(ctx)
	if err != nil {
		return Token{}, "", fmt.Errorf("create token %q: %w", opts.Name, err)
	}
	if slices.ContainsFunc(all, func(o Token) bool { return o.Name == opts.Name }) {
		return Token{}, "", fmt.Errorf("create token %q: %w", opts.Name, ErrTokenExists)
	}
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails: crypto/rand aborts the program instead
	secret := newSecret()
	token := Token{
		ID: hex.EncodeToString(id[:]), Name: opts.Name, Role: opts.Role,
		Hash: sha256.Sum256([]byte(secret)), CreatedAt: opts.Now.UTC(),
	}
	if opts.TTL > 0 {
		token.ExpiresAt = token.CreatedAt.Add(opts.TTL)
	}
	if err := t.store.PutToken(ctx, token); err != nil {
		return Token{}, "", fmt.Errorf("create token %q: %w", opts.Name, err)
	}
	return token, secret, nil
}

// newSecret returns the prefix and 32 random bytes in base62.
func newSecret() string {
	var raw [32]byte
	_, _ = rand.Read(raw[:])
	digits := new(big.Int).SetBytes(raw[:]).Text(62)
	return secretPrefix + strings.Repeat("0", secretDigits-len(digits)) + digits
}

// Authenticate returns the token whose secret is given. It fails with
// ErrTokenInvalid, ErrTokenExpired, or the store's error.
func (t *Tokens) Authenticate(ctx context.Context, secret string, now time.Time) (Token, error) {
	if len(secret) != len(secretPrefix)+secretDigits || !strings.HasPrefix(secret, secretPrefix) {
		return Token{}, fmt.Errorf("authenticate: %w", ErrTokenInvalid)
	}
	hash := sha256.Sum256([]byte(secret))
	all, err := t.store.ListTokens(ctx)
	if err != nil {
		return Token{}, fmt.Errorf("authenticate: %w", err)
	}
	for _, token := range all {
		if subtle.ConstantTimeCompare(token.Hash[:], hash[:]) != 1 {
			continue
		}
		if token.expired(now) {
			return Token{}, fmt.Errorf("authenticate with token %q: %w", token.Name, ErrTokenExpired)
		}
		return token, nil
	}
	return Token{}, fmt.Errorf("authenticate: %w", ErrTokenInvalid)
}

func (t Token) expired(now time.Time) bool {
	return !t.ExpiresAt.IsZero() && !now.Before(t.ExpiresAt)
}

// List returns all tokens, expired ones too, sorted by name.
func (t *Tokens) List(ctx context.Context) ([]Token, error) {
	all, err := t.store.ListTokens(ctx)
	if err != nil {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	slices.SortFunc(all, func(a, b Token) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// Revoke removes the token of that id or name; it is refused from then on. It
// fails with ErrTokenNotFound, and with ErrLastAdmin if no admin token that is
// still valid would be left, for then nobody could make another.
func (t *Tokens) Revoke(ctx context.Context, idOrName string, now time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	all, err := t.store.ListTokens(ctx)
	if err != nil {
		return fmt.Errorf("revoke token %q: %w", idOrName, err)
	}
	i := slices.IndexFunc(all, func(o Token) bool { return o.ID == idOrName })
	if i < 0 {
		i = slices.IndexFunc(all, func(o Token) bool { return o.Name == idOrName })
	}
	if i < 0 {
		return fmt.Errorf("revoke token %q: %w", idOrName, ErrTokenNotFound)
	}
	admins := func(o Token) bool { return o.Role == RoleAdmin && !o.expired(now) && o.ID != all[i].ID }
	if all[i].Role == RoleAdmin && !all[i].expired(now) && !slices.ContainsFunc(all, admins) {
		return fmt.Errorf("revoke token %q: %w", idOrName, ErrLastAdmin)
	}
	if err := t.store.DeleteToken(ctx, all[i].ID); err != nil {
		return fmt.Errorf("revoke token %q: %w", idOrName, err)
	}
	return nil
}
