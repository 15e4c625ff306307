package auth_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/auth"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func TestRoleAllows(t *testing.T) {
	t.Parallel()
	roles := []auth.Role{auth.RoleViewer, auth.RoleOperator, auth.RoleAdmin}
	for i, have := range roles {
		for j, need := range roles {
			if got, want := have.Allows(need), i >= j; got != want {
				t.Errorf("%s.Allows(%s) = %v, want %v", have, need, got, want)
			}
		}
		if have.Allows("") || have.Allows("root") || auth.Role("").Allows(have) || auth.Role("root").Allows(have) {
			t.Errorf("an unknown role allows or is allowed with %s", have)
		}
	}
}

func TestTokenLife(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	store := new(auth.MemoryStore)
	tokens := auth.NewTokens(store)
	token, secret, err := tokens.Create(ctx, auth.CreateOptions{Name: "ci", Role: auth.RoleOperator, TTL: time.Hour, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(secret, "hf_") || len(secret) != 46 {
		t.Errorf("secret %q: want hf_ and 43 digits", secret)
	}
	if token.Hash != sha256.Sum256([]byte(secret)) {
		t.Error("kept hash is not the secret's")
	}
	got, err := tokens.Authenticate(ctx, secret, now.Add(59*time.Minute))
	if err != nil || got.ID != token.ID || got.Role != auth.RoleOperator {
		t.Errorf("Authenticate = %+v, %v; want the token", got, err)
	}
	if _, err := tokens.Authenticate(ctx, secret, now.Add(time.Hour)); !errors.Is(err, auth.ErrTokenExpired) {
		t.Errorf("Authenticate at its end: %v, want ErrTokenExpired", err)
	}
	wrong := secret[:len(secret)-1] + "!"
	for _, s := range []string{"", "hf_", wrong, secret + "0", strings.Repeat("A", 46), "hf_" + strings.Repeat("0", 43)} {
		if _, err := tokens.Authenticate(ctx, s, now); !errors.Is(err, auth.ErrTokenInvalid) {
			t.Errorf("Authenticate(%q): %v, want ErrTokenInvalid", s, err)
		}
	}
	if err := tokens.Revoke(ctx, "ci", now); err != nil {
		t.Fatal(err)
	}
	if _, err := tokens.Authenticate(ctx, secret, now); !errors.Is(err, auth.ErrTokenInvalid) {
		t.Errorf("Authenticate after Revoke: %v, want ErrTokenInvalid", err)
	}
	if err := tokens.Revoke(ctx, "ci", now); !errors.Is(err, auth.ErrTokenNotFound) {
		t.Errorf("second Revoke: %v, want ErrTokenNotFound", err)
	}
}

func TestTokenRefusals(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	tokens := auth.NewTokens(new(auth.MemoryStore))
	for _, opts := range []auth.CreateOptions{
		{Name: "", Role: auth.RoleAdmin}, {Name: "a\nb", Role: auth.RoleAdmin}, {Name: strings.Repeat("a", 65), Role: auth.RoleAdmin},
		{Name: "a", Role: "root"}, {Name: "a", Role: auth.RoleAdmin, TTL: -1},
	} {
		if _, _, err := tokens.Create(ctx, opts); !errors.Is(err, auth.ErrTokenOptions) {
			t.Errorf("Create(%+v): %v, want ErrTokenOptions", opts, err)
		}
	}
	mustCreate := func(opts auth.CreateOptions) string {
		opts.Now = now
		_, secret, err := tokens.Create(ctx, opts)
		if err != nil {
			t.Fatal(err)
		}
		return secret
	}
	mustCreate(auth.CreateOptions{Name: "one", Role: auth.RoleAdmin})
	if _, _, err := tokens.Create(ctx, auth.CreateOptions{Name: "one", Role: auth.RoleViewer}); !errors.Is(err, auth.ErrTokenExists) {
		t.Errorf("second Create: %v, want ErrTokenExists", err)
	}
	mustCreate(auth.CreateOptions{Name: "short", Role: auth.RoleAdmin, TTL: time.Minute})
	if err := tokens.Revoke(ctx, "one", now.Add(time.Hour)); !errors.Is(err, auth.ErrLastAdmin) {
		t.Errorf("Revoke of the last valid admin: %v, want ErrLastAdmin", err)
	}
	mustCreate(auth.CreateOptions{Name: "two", Role: auth.RoleAdmin})
	if err := tokens.Revoke(ctx, "one", now.Add(time.Hour)); err != nil {
		t.Errorf("Revoke with another admin: %v", err)
	}
}

func TestSecretsDiffer(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	tokens := auth.NewTokens(new(auth.MemoryStore))
	seen := map[string]bool{}
	for i := range 200 {
		_, secret, err := tokens.Create(ctx, auth.CreateOptions{Name: "t" + strings.Repeat("x", i%50) + string(rune('0'+i/50)), Role: auth.RoleViewer, Now: now})
		if err != nil {
			t.Fatal(err)
		}
		if len(secret) != 46 || seen[secret] {
			t.Fatalf("secret %q is short or was seen", secret)
		}
		seen[secret] = true
	}
}
