package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"

	"github.com/holdfast-dr/holdfast"
)

// CreateSite adds a site, and returns it with version 1. It fails with kind
// conflict if the id or the name is taken.
func (s *Store) CreateSite(ctx context.Context, site holdfast.Site) (holdfast.Site, error) {
	site.Version = 1
	err := s.write(ctx, "add site", site.Name, func(tx *sql.Tx) error {
		body, err := json.Marshal(site)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "INSERT INTO sites (id, name, version, body) VALUES (?, ?, ?, ?)", site.ID, site.Name, site.Version, string(body))
		return siteTaken(site, err)
	})
	if err != nil {
		return holdfast.Site{}, err
	}
	return site, nil
}

func siteTaken(site holdfast.Site, err error) error {
	if uniqueViolation(err) {
		return &holdfast.Error{Kind: holdfast.KindConflict, Op: "record site", Thing: site.Name, Cause: "there is a site of this name already",
			Hint: "Choose another name", Err: ErrConflict}
	}
	return err
}

// Site returns the site of that id or, if there is none, of that name.
func (s *Store) Site(ctx context.Context, idOrName string) (holdfast.Site, error) {
	var site holdfast.Site
	err := s.one(ctx, &site, "SELECT body FROM sites WHERE id = ?1 OR name = ?1 ORDER BY id = ?1 DESC LIMIT 1", idOrName)
	if errors.Is(err, sql.ErrNoRows) {
		err = notFound("site", idOrName, "site list")
	}
	return site, s.explain("read site", idOrName, err)
}

// Sites returns all sites, sorted by name.
func (s *Store) Sites(ctx context.Context) ([]holdfast.Site, error) {
	sites := []holdfast.Site{}
	err := s.query(ctx, func(scan func(...any) error) error {
		site, err := decode[holdfast.Site](scan)
		sites = append(sites, site)
		return err
	}, "SELECT body FROM sites ORDER BY name")
	return sites, s.explain("list", "sites", err)
}

// UpdateSite replaces the site whose stored version is the given one's, and
// returns it with the next version. It fails with kind not_found, and conflict
// if the version is another or the name is taken.
func (s *Store) UpdateSite(ctx context.Context, site holdfast.Site) (holdfast.Site, error) {
	expected := site.Version
	site.Version++
	err := s.write(ctx, "change site", site.Name, func(tx *sql.Tx) error {
		body, err := json.Marshal(site)
		if err != nil {
			return err
		}
		res, err := tx.ExecContext(ctx, "UPDATE sites SET name = ?, version = ?, body = ? WHERE id = ? AND version = ?",
			site.Name, site.Version, string(body), site.ID, expected)
		if err != nil {
			return siteTaken(site, err)
		}
		return changedOne(ctx, tx, res, changed{"sites", "site", site.ID, site.Name})
	})
	if err != nil {
		return holdfast.Site{}, err
	}
	return site, nil
}

// DeleteSite removes a site. It fails with kind conflict if an item needs it,
// and not_found.
func (s *Store) DeleteSite(ctx context.Context, id string) error {
	return s.write(ctx, "remove site", id, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, "DELETE FROM sites WHERE id = ?", id)
		if foreignKeyViolation(err) {
			return &holdfast.Error{Kind: holdfast.KindConflict, Op: "remove site", Thing: id, Cause: "items are protected from it or to it",
				Hint: "Disable their protection first; see them with holdfast item list", Err: ErrConflict}
		}
		if err != nil {
			return err
		}
		return removedOne(res, "site", id)
	})
}

// one decodes the body of the row that a query finds.
func (s *Store) one(ctx context.Context, v any, text string, args ...any) error {
	var body string
	if err := s.reader.QueryRowContext(ctx, text, args...).Scan(&body); err != nil {
		return err
	}
	return json.Unmarshal([]byte(body), v)
}

// decode returns the body of a row.
func decode[T any](scan func(...any) error) (v T, err error) {
	var body string
	if err = scan(&body); err != nil {
		return v, err
	}
	return v, json.Unmarshal([]byte(body), &v)
}

// changed says what an update was to change.
type changed struct{ table, kind, id, name string }

// changedOne tells an update that met another version from one that met nothing.
func changedOne(ctx context.Context, tx *sql.Tx, res sql.Result, c changed) error {
	n, err := res.RowsAffected()
	if err != nil || n == 1 {
		return err
	}
	var version int64
	err = tx.QueryRowContext(ctx, "SELECT version FROM "+c.table+" WHERE id = ?", c.id).Scan(&version)
	if errors.Is(err, sql.ErrNoRows) {
		return notFound(c.kind, c.name, c.kind+" list")
	}
	if err != nil {
		return err
	}
	return &holdfast.Error{Kind: holdfast.KindConflict, Op: "change " + c.kind, Thing: c.name, Cause: "somebody else changed it meanwhile",
		Hint: "Look at it again, and repeat what you wanted if that still makes sense", Err: ErrConflict}
}

func removedOne(res sql.Result, kind, id string) error {
	n, err := res.RowsAffected()
	if err == nil && n == 0 {
		return notFound(kind, id, kind+" list")
	}
	return err
}
