package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/job"
)

var _ job.Store = (*Store)(nil)

// CreateJob implements job.Store.
func (s *Store) CreateJob(ctx context.Context, j job.Job) error {
	return s.write(ctx, "record job", j.ID, func(tx *sql.Tx) error {
		body, err := json.Marshal(j)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "INSERT INTO jobs (id, kind, subject, parent, state, unfinished, created_at, version, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
			j.ID, j.Kind, j.Subject, j.Parent, string(j.State), !j.State.Ended(), j.CreatedAt.UnixNano(), j.Version, string(body))
		switch {
		case idTaken(err):
			return jobError(j.ID, holdfast.KindConflict, fmt.Errorf("%w: its id is taken", job.ErrConflict))
		case uniqueViolation(err):
			return jobError(j.ID, holdfast.KindConflict, job.ErrBusy)
		}
		return err
	})
}

// UpdateJob implements job.Store.
func (s *Store) UpdateJob(ctx context.Context, j job.Job) error {
	return s.write(ctx, "record job", j.ID, func(tx *sql.Tx) error {
		body, err := json.Marshal(j)
		if err != nil {
			return err
		}
		res, err := tx.ExecContext(ctx, `UPDATE jobs SET kind = ?, subject = ?, state = ?, unfinished = ?, created_at = ?, version = ?, body = ?
			WHERE id = ? AND version = ?`,
			j.Kind, j.Subject, string(j.State), !j.State.Ended(), j.CreatedAt.UnixNano(), j.Version, string(body), j.ID, j.Version-1)
		if uniqueViolation(err) {
			return jobError(j.ID, holdfast.KindConflict, job.ErrBusy)
		}
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 1 {
			return err
		}
		var version int64
		err = tx.QueryRowContext(ctx, "SELECT version FROM jobs WHERE id = ?", j.ID).Scan(&version)
		if errors.Is(err, sql.ErrNoRows) {
			return jobError(j.ID, holdfast.KindNotFound, job.ErrNotFound)
		}
		if err != nil {
			return err
		}
		return jobError(j.ID, holdfast.KindConflict, fmt.Errorf("%w: version %d is stored, not %d", job.ErrConflict, version, j.Version-1))
	})
}

// GetJob implements job.Store.
func (s *Store) GetJob(ctx context.Context, id string) (job.Job, error) {
	var j job.Job
	err := s.one(ctx, &j, "SELECT body FROM jobs WHERE id = ?", id)
	if errors.Is(err, sql.ErrNoRows) {
		err = jobError(id, holdfast.KindNotFound, job.ErrNotFound)
	}
	return j, s.explain("read job", id, err)
}

// ListJobs implements job.Store.
func (s *Store) ListJobs(ctx context.Context, f job.Filter) ([]job.Job, error) {
	text := "SELECT body FROM jobs WHERE true"
	var args []any
	where := func(when bool, clause string, arg ...any) {
		if when {
			text += " AND " + clause
			args = append(args, arg...)
		}
	}
	where(f.Subject != "", "subject = ?", f.Subject)
	where(f.Parent != "", "parent = ?", f.Parent)
	where(f.Kind != "", "kind = ?", f.Kind)
	where(f.State != "", "state = ?", string(f.State))
	where(f.Unfinished, "unfinished = 1")
	text += " ORDER BY created_at DESC, id DESC"
	if f.Limit > 0 {
		text += " LIMIT ?"
		args = append(args, f.Limit)
	}
	jobs := []job.Job{}
	err := s.query(ctx, func(scan func(...any) error) error {
		j, err := decode[job.Job](scan)
		jobs = append(jobs, j)
		return err
	}, text, args...)
	return jobs, s.explain("list", "jobs", err)
}

// jobError is what job.Store promises, for callers of both worlds.
func jobError(id string, kind holdfast.Kind, err error) error {
	e := &holdfast.Error{Kind: kind, Op: "record job", Thing: id, Err: err}
	switch {
	case kind == holdfast.KindNotFound:
		e.Op, e.Hint = "find job", "See what there is with holdfast job list"
	case errors.Is(err, job.ErrBusy):
		e.Hint = "Wait for the other job to end, or cancel it"
	default:
		e.Hint = "Look at the job again"
	}
	return e
}
