package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/holdfast-dr/holdfast"
)

var (
	// ErrNotFound says that there is no such thing.
	ErrNotFound = errors.New("not found")
	// ErrConflict says that a thing was changed meanwhile, that its name is
	// taken, or that something else needs it.
	ErrConflict = errors.New("conflict")
	// ErrLocked says that another server works with the database.
	ErrLocked = errors.New("database is in use")
	// ErrForeign says that the file is a database of something else, or none.
	ErrForeign = errors.New("not a Holdfast database")
	// ErrCorrupt says that the database is damaged.
	ErrCorrupt = errors.New("database is damaged")
	// ErrNewerSchema says that a newer version of Holdfast has written the database.
	ErrNewerSchema = errors.New("database is of a newer version")
)

// applicationID marks a database as Holdfast's in its header: "HFDB".
const applicationID = 0x48464442

// readers is how many connections read at the same time.
const readers = 4

//go:embed migrations
var migrations embed.FS

// Store is an open control database. Its methods are safe for concurrent use.
// They fail with an *holdfast.Error, which wraps this package's sentinels.
type Store struct {
	path   string
	lock   *os.File
	writer *sql.DB // one connection
	reader *sql.DB
	closed atomic.Bool
}

// Open opens the database in the file path, and creates it, and its directory,
// if there is none: for its owner only. It takes a lock beside the file, held
// until Close or the end of the process, checks the file and brings it to the
// newest schema. It fails with ErrLocked, ErrForeign, ErrCorrupt or
// ErrNewerSchema, or because the place cannot be written to; the *holdfast.Error
// says what to do. Nothing is changed in a file that it refuses.
func Open(ctx context.Context, path string) (_ *Store, err error) {
	s := &Store{path: path}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, s.explainFile(err)
	}
	if s.lock, err = lockFile(path + ".lock"); err != nil {
		return nil, s.explainFile(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	// SQLite would create it for everybody, and gives its companions the mode
	// of the file itself. Nobody else has it open: closing it drops no lock.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, s.explainFile(err)
	}
	if err := f.Close(); err != nil {
		return nil, s.explainFile(err)
	}
	if err := s.connect(); err != nil {
		return nil, s.explain("open database", path, err)
	}
	if err := s.check(ctx); err != nil {
		return nil, s.explain("open database", path, err)
	}
	if err := s.migrate(ctx); err != nil {
		return nil, s.explain("bring database to the newest schema", path, err)
	}
	return s, nil
}

// connect opens the connections; the file is first touched by check.
func (s *Store) connect() (err error) {
	dsn := func(more ...string) string {
		abs, absErr := filepath.Abs(s.path)
		if absErr != nil {
			abs = s.path
		}
		q := url.Values{"_txlock": {"immediate"}}
		for _, p := range append([]string{"busy_timeout(5000)", "foreign_keys(1)", "synchronous(FULL)"}, more...) {
			q.Add("_pragma", p)
		}
		return (&url.URL{Scheme: "file", Path: abs, RawQuery: q.Encode()}).String()
	}
	if s.writer, err = sql.Open("sqlite", dsn()); err != nil {
		return err
	}
	s.writer.SetMaxOpenConns(1)
	if s.reader, err = sql.Open("sqlite", dsn("query_only(1)")); err != nil {
		return err
	}
	s.reader.SetMaxOpenConns(readers)
	s.reader.SetMaxIdleConns(readers)
	return nil
}

// check refuses what is not a sound Holdfast database, before anything is
// written to it.
func (s *Store) check(ctx context.Context) error {
	var id, tables int64
	if err := s.writer.QueryRowContext(ctx, "PRAGMA application_id").Scan(&id); err != nil {
		return err
	}
	if err := s.writer.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_schema").Scan(&tables); err != nil {
		return err
	}
	switch {
	case id == applicationID:
	case id == 0 && tables == 0: // new
		if _, err := s.writer.ExecContext(ctx, fmt.Sprintf("PRAGMA application_id = %d", applicationID)); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%w: its application id is %d", ErrForeign, id)
	}
	// WAL only from here on: the mode is written into the file.
	var mode string
	if err := s.writer.QueryRowContext(ctx, "PRAGMA journal_mode = WAL").Scan(&mode); err != nil {
		return err
	}
	if mode != "wal" {
		return fmt.Errorf("journal mode is %s, not wal", mode)
	}
	rows, err := s.writer.QueryContext(ctx, "PRAGMA quick_check(3)")
	if err != nil {
		return err
	}
	defer rows.Close()
	var damage []string
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			return err
		}
		if line != "ok" {
			damage = append(damage, line)
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	if len(damage) > 0 {
		return fmt.Errorf("%w: %s", ErrCorrupt, strings.Join(damage, "; "))
	}
	return nil
}

// migrate brings the schema to the newest version, each step in a transaction.
func (s *Store) migrate(ctx context.Context) error {
	dir, err := fs.Sub(migrations, "migrations/sqlite")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, s.writer, dir, goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return err
	}
	has, err := p.GetDBVersion(ctx)
	if err != nil {
		return err
	}
	sources := p.ListSources()
	if newest := sources[len(sources)-1].Version; has > newest {
		return fmt.Errorf("%w: its schema is %d, and this version of Holdfast knows %d", ErrNewerSchema, has, newest)
	}
	_, err = p.Up(ctx)
	return err
}

// Close closes the database and gives up the lock. Closing twice is no error.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	var errs []error
	if s.reader != nil {
		errs = append(errs, s.reader.Close())
	}
	if s.writer != nil {
		errs = append(errs, s.writer.Close())
	}
	if s.lock != nil {
		errs = append(errs, unlockFile(s.lock))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close database %s: %w", s.path, err)
	}
	return nil
}

// write runs f in a transaction of its own, which is durable when write
// returns nil and leaves no trace otherwise.
func (s *Store) write(ctx context.Context, op, thing string, f func(*sql.Tx) error) error {
	tx, err := s.writer.BeginTx(ctx, nil)
	if err != nil {
		return s.explain(op, thing, err)
	}
	if err := f(tx); err != nil {
		// A rollback that fails has nothing to add: the transaction is gone with
		// its connection.
		_ = tx.Rollback()
		return s.explain(op, thing, err)
	}
	return s.explain(op, thing, tx.Commit())
}

// query calls each for every row.
func (s *Store) query(ctx context.Context, each func(scan func(...any) error) error, text string, args ...any) error {
	rows, err := s.reader.QueryContext(ctx, text, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := each(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}

// notFound is the error for a thing that does not exist.
func notFound(kind, name, list string) error {
	return &holdfast.Error{Kind: holdfast.KindNotFound, Op: "find " + kind, Thing: name, Cause: "there is no " + kind + " of this id or name",
		Hint: "See what there is with holdfast " + list, Err: ErrNotFound}
}
