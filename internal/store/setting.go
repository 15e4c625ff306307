package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/auth"
)

// Setting returns the value of a setting, "" if it was never set.
func (s *Store) Setting(ctx context.Context, name string) (string, error) {
	var value string
	err := s.reader.QueryRowContext(ctx, "SELECT value FROM settings WHERE name = ?", name).Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return value, s.explain("read setting", name, err)
}

// SetSetting gives a setting a value; "" takes it away.
func (s *Store) SetSetting(ctx context.Context, name, value string) error {
	return s.write(ctx, "change setting", name, func(tx *sql.Tx) error {
		if value == "" {
			_, err := tx.ExecContext(ctx, "DELETE FROM settings WHERE name = ?", name)
			return err
		}
		_, err := tx.ExecContext(ctx, "INSERT INTO settings (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", name, value)
		return err
	})
}

var _ auth.Store = (*Store)(nil)

// PutToken adds a token. It fails with kind conflict if its id or name is taken.
func (s *Store) PutToken(ctx context.Context, t auth.Token) error {
	return s.write(ctx, "add token", t.Name, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO tokens (id, name, role, hash, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)",
			t.ID, t.Name, string(t.Role), t.Hash[:], formatTime(t.CreatedAt), formatTime(t.ExpiresAt))
		if uniqueViolation(err) {
			return &holdfast.Error{Kind: holdfast.KindConflict, Op: "add token", Thing: t.Name, Cause: "there is a token of this name already",
				Hint: "Choose another name", Err: ErrConflict}
		}
		return err
	})
}

// ListTokens returns all tokens, sorted by name.
func (s *Store) ListTokens(ctx context.Context) ([]auth.Token, error) {
	tokens := []auth.Token{}
	err := s.query(ctx, func(scan func(...any) error) error {
		var t auth.Token
		var hash []byte
		var created, expires string
		if err := scan(&t.ID, &t.Name, &t.Role, &hash, &created, &expires); err != nil {
			return err
		}
		if copy(t.Hash[:], hash) != len(t.Hash) || len(hash) != len(t.Hash) {
			return fmt.Errorf("%w: token %s: its hash has %d bytes", ErrCorrupt, t.ID, len(hash))
		}
		var err1, err2 error
		t.CreatedAt, err1 = parseTime(created)
		t.ExpiresAt, err2 = parseTime(expires)
		tokens = append(tokens, t)
		return errors.Join(err1, err2)
	}, "SELECT id, name, role, hash, created_at, expires_at FROM tokens ORDER BY name")
	return tokens, s.explain("list", "tokens", err)
}

// DeleteToken removes the token of that id, if there is one.
func (s *Store) DeleteToken(ctx context.Context, id string) error {
	return s.write(ctx, "remove token", id, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "DELETE FROM tokens WHERE id = ?", id)
		return err
	})
}

// formatTime writes a time as text, the zero one as "".
func formatTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

func parseTime(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return t, fmt.Errorf("%w: time %q", ErrCorrupt, text)
	}
	return t, nil
}
