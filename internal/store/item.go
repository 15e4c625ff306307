package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"

	"github.com/holdfast-dr/holdfast"
)

// CreateItem adds an item, and returns it with version 1. Status is not kept.
// It fails with kind conflict if the id or the name is taken or the machine is
// an item already, and invalid if a site does not exist.
func (s *Store) CreateItem(ctx context.Context, it holdfast.Item) (holdfast.Item, error) {
	it.Version = 1
	err := s.write(ctx, "add item", it.Name, func(tx *sql.Tx) error {
		body, err := json.Marshal(it)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "INSERT INTO items (id, name, primary_site, recovery_site, machine_id, version, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
			it.ID, it.Name, it.PrimarySite, it.RecoverySite, it.MachineID, it.Version, string(body))
		return itemRefused(ctx, tx, it, err)
	})
	if err != nil {
		return holdfast.Item{}, err
	}
	return it, nil
}

// itemRefused says what in the item the database did not take.
func itemRefused(ctx context.Context, tx *sql.Tx, it holdfast.Item, err error) error {
	e := &holdfast.Error{Op: "record item", Thing: it.Name}
	switch {
	case uniqueViolation(err):
		e.Kind, e.Err = holdfast.KindConflict, ErrConflict
		e.Cause, e.Hint = "there is an item of this name already", "Choose another name"
		var other string
		err := tx.QueryRowContext(ctx, "SELECT name FROM items WHERE primary_site = ? AND machine_id = ? AND id <> ?", it.PrimarySite, it.MachineID, it.ID).Scan(&other)
		switch {
		case err == nil:
			e.Cause, e.Hint = "machine "+it.MachineName+" is protected already, as item "+other, "Look at it with holdfast item show, or disable its protection first"
		case !errors.Is(err, sql.ErrNoRows):
			return err
		}
	case foreignKeyViolation(err):
		e.Kind, e.Err = holdfast.KindInvalid, ErrNotFound
		e.Cause, e.Hint = "its primary or its recovery site does not exist", "Add the site first; see the sites with holdfast site list"
	default:
		return err
	}
	return e
}

// Item returns the item of that id or, if there is none, of that name.
func (s *Store) Item(ctx context.Context, idOrName string) (holdfast.Item, error) {
	var it holdfast.Item
	err := s.one(ctx, &it, "SELECT body FROM items WHERE id = ?1 OR name = ?1 ORDER BY id = ?1 DESC LIMIT 1", idOrName)
	if errors.Is(err, sql.ErrNoRows) {
		err = notFound("item", idOrName, "item list")
	}
	return it, s.explain("read item", idOrName, err)
}

// Items returns all items, sorted by name.
func (s *Store) Items(ctx context.Context) ([]holdfast.Item, error) {
	items := []holdfast.Item{}
	err := s.query(ctx, func(scan func(...any) error) error {
		it, err := decode[holdfast.Item](scan)
		items = append(items, it)
		return err
	}, "SELECT body FROM items ORDER BY name")
	return items, s.explain("list", "items", err)
}

// UpdateItem replaces the item whose stored version is the given one's, and
// returns it with the next version. Status is not kept. It fails with kind
// not_found, and conflict if the version is another or the name is taken.
func (s *Store) UpdateItem(ctx context.Context, it holdfast.Item) (holdfast.Item, error) {
	expected := it.Version
	it.Version++
	err := s.write(ctx, "change item", it.Name, func(tx *sql.Tx) error {
		body, err := json.Marshal(it)
		if err != nil {
			return err
		}
		res, err := tx.ExecContext(ctx, `UPDATE items SET name = ?, primary_site = ?, recovery_site = ?, machine_id = ?, version = ?, body = ?
			WHERE id = ? AND version = ?`, it.Name, it.PrimarySite, it.RecoverySite, it.MachineID, it.Version, string(body), it.ID, expected)
		if err != nil {
			return itemRefused(ctx, tx, it, err)
		}
		return changedOne(ctx, tx, res, changed{"items", "item", it.ID, it.Name})
	})
	if err != nil {
		return holdfast.Item{}, err
	}
	return it, nil
}

// DeleteItem removes an item, or fails with kind not_found. Its jobs stay.
func (s *Store) DeleteItem(ctx context.Context, id string) error {
	return s.write(ctx, "remove item", id, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, "DELETE FROM items WHERE id = ?", id)
		if err != nil {
			return err
		}
		return removedOne(res, "item", id)
	})
}
