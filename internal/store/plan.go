package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"time"

	"github.com/holdfast-dr/holdfast"
)

// CreatePlan adds a recovery plan and the first revision of its text, and returns
// it with version 1. It fails with kind conflict if the id or the name is taken.
func (s *Store) CreatePlan(ctx context.Context, p holdfast.RecoveryPlan) (holdfast.RecoveryPlan, error) {
	p.Version = 1
	err := s.write(ctx, "add plan", p.Name, func(tx *sql.Tx) error {
		body, err := json.Marshal(p)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "INSERT INTO plans (id, name, version, body) VALUES (?, ?, ?, ?)", p.ID, p.Name, p.Version, string(body)); err != nil {
			return planTaken(p, err)
		}
		return keepText(ctx, tx, p)
	})
	if err != nil {
		return holdfast.RecoveryPlan{}, err
	}
	return p, nil
}

func planTaken(p holdfast.RecoveryPlan, err error) error {
	if uniqueViolation(err) {
		return &holdfast.Error{Kind: holdfast.KindConflict, Op: "record plan", Thing: p.Name, Cause: "there is a plan of this name already",
			Hint: "Look at it with holdfast plan show", Err: ErrConflict}
	}
	return err
}

// keepText keeps the text's revision; it is no error if it is kept already.
func keepText(ctx context.Context, tx *sql.Tx, p holdfast.RecoveryPlan) error {
	_, err := tx.ExecContext(ctx, "INSERT INTO plan_texts (plan, version, applied_at, text) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
		p.ID, p.Revision, p.AppliedAt.UnixNano(), p.Text)
	return err
}

// Plan returns the plan of that id or, if there is none, of that name.
func (s *Store) Plan(ctx context.Context, idOrName string) (holdfast.RecoveryPlan, error) {
	var p holdfast.RecoveryPlan
	err := s.one(ctx, &p, "SELECT body FROM plans WHERE id = ?1 OR name = ?1 ORDER BY id = ?1 DESC LIMIT 1", idOrName)
	if errors.Is(err, sql.ErrNoRows) {
		err = notFound("plan", idOrName, "plan list")
	}
	return p, s.explain("read plan", idOrName, err)
}

// Plans returns all plans, sorted by name.
func (s *Store) Plans(ctx context.Context) ([]holdfast.RecoveryPlan, error) {
	plans := []holdfast.RecoveryPlan{}
	err := s.query(ctx, func(scan func(...any) error) error {
		p, err := decode[holdfast.RecoveryPlan](scan)
		plans = append(plans, p)
		return err
	}, "SELECT body FROM plans ORDER BY name")
	return plans, s.explain("list", "plans", err)
}

// UpdatePlan replaces the plan whose stored version is the given one's, keeps a
// text of a new revision beside those before it, and returns it with the next
// version. It fails with kind not_found, and conflict if the version is another or
// the name is taken.
func (s *Store) UpdatePlan(ctx context.Context, p holdfast.RecoveryPlan) (holdfast.RecoveryPlan, error) {
	expected := p.Version
	p.Version++
	err := s.write(ctx, "change plan", p.Name, func(tx *sql.Tx) error {
		body, err := json.Marshal(p)
		if err != nil {
			return err
		}
		res, err := tx.ExecContext(ctx, "UPDATE plans SET name = ?, version = ?, body = ? WHERE id = ? AND version = ?", p.Name, p.Version, string(body), p.ID, expected)
		if err != nil {
			return planTaken(p, err)
		}
		if err := changedOne(ctx, tx, res, changed{"plans", "plan", p.ID, p.Name}); err != nil {
			return err
		}
		return keepText(ctx, tx, p)
	})
	if err != nil {
		return holdfast.RecoveryPlan{}, err
	}
	return p, nil
}

// DeletePlan removes a plan with all its texts, or fails with kind not_found. Its
// jobs stay.
func (s *Store) DeletePlan(ctx context.Context, id string) error {
	return s.write(ctx, "remove plan", id, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, "DELETE FROM plans WHERE id = ?", id)
		if err != nil {
			return err
		}
		return removedOne(res, "plan", id)
	})
}

// PlanTexts returns the revisions of a plan's text, the newest first.
func (s *Store) PlanTexts(ctx context.Context, id string) ([]holdfast.PlanText, error) {
	texts := []holdfast.PlanText{}
	err := s.query(ctx, func(scan func(...any) error) error {
		var t holdfast.PlanText
		var at int64
		if err := scan(&t.Revision, &at, &t.Text); err != nil {
			return err
		}
		t.AppliedAt = time.Unix(0, at).UTC()
		texts = append(texts, t)
		return nil
	}, "SELECT version, applied_at, text FROM plan_texts WHERE plan = ? ORDER BY version DESC", id)
	return texts, s.explain("list", "texts of plan", err)
}
