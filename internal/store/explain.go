package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/holdfast-dr/holdfast"
)

// explain makes of an error one that says what to do; nil for nil. An error
// that does so already, and the end of a context, stay as they are.
func (s *Store) explain(op, thing string, err error) error {
	var known *holdfast.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s %s: %w", op, thing, err)
	}
	e := &holdfast.Error{Kind: holdfast.KindInternal, Op: op, Thing: thing, Err: err,
		Hint: "Please report this with the server's log"}
	set := func(kind holdfast.Kind, cause, hint string) {
		e.Kind, e.Cause, e.Hint = kind, cause, hint
	}
	code := 0
	var se *sqlite.Error
	if errors.As(err, &se) {
		code = se.Code() & 0xff
	}
	const restore = "Stop the server and put a copy of the file from before the damage in its place; keep the damaged one"
	switch {
	case errors.Is(err, ErrForeign):
		set(holdfast.KindInvalid, "the file "+s.path+" belongs to something else", "Name another state directory")
	case code == sqlite3.SQLITE_NOTADB:
		e.Err = fmt.Errorf("%w: %w", ErrForeign, err)
		set(holdfast.KindInvalid, "the file "+s.path+" is not a database", "Name another state directory, or put a copy of the database in its place")
	case errors.Is(err, ErrNewerSchema):
		set(holdfast.KindInvalid, "a newer version of Holdfast has worked with "+s.path, "Use that version or a newer one")
	case errors.Is(err, ErrCorrupt):
		set(holdfast.KindCorrupt, "the file "+s.path+" is damaged", restore)
	case code == sqlite3.SQLITE_CORRUPT:
		e.Err = fmt.Errorf("%w: %w", ErrCorrupt, err)
		set(holdfast.KindCorrupt, "the file "+s.path+" is damaged", restore)
	case code == sqlite3.SQLITE_FULL, errors.Is(err, syscall.ENOSPC):
		set(holdfast.KindUnavailable, "there is no space left for "+s.path, "Make space on its file system; nothing that was recorded is lost")
	case code == sqlite3.SQLITE_READONLY:
		set(holdfast.KindUnavailable, s.path+" cannot be written to", "Make the file and its directory writable for the user that runs the server")
	case code == sqlite3.SQLITE_BUSY, code == sqlite3.SQLITE_LOCKED:
		set(holdfast.KindUnavailable, "another process has "+s.path+" open and keeps it locked", "Close what works with the file, such as a database browser or a backup")
	case code == sqlite3.SQLITE_IOERR, code == sqlite3.SQLITE_CANTOPEN:
		set(holdfast.KindUnavailable, "the file system of "+s.path+" gives an error", "Look at the disk and the system's log, and at the rights of the file and its directory")
	}
	return e
}

// explainFile is explain for what goes wrong before SQLite is there.
func (s *Store) explainFile(err error) error {
	e := &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "open database", Thing: s.path, Err: err}
	switch {
	case errors.Is(err, ErrLocked):
		e.Kind, e.Cause = holdfast.KindConflict, "another server works with this state directory"
		e.Hint = "Stop the other server, or name another state directory"
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		e.Cause, e.Hint = "its directory cannot be written to", "Make the directory writable for the user that runs the server, or name another state directory"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		e.Cause, e.Hint = "there is no space left on its file system", "Make space, or name another state directory"
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR):
		e.Kind, e.Cause, e.Hint = holdfast.KindInvalid, "its place is not what it should be: a file in a directory", "Name another state directory"
	default:
		e.Cause, e.Hint = "its file cannot be opened", "Look at the directory and the file system, or name another state directory"
	}
	return e
}

// uniqueViolation reports whether an insert or update met a value that has to
// be unique, or an id that is taken.
func uniqueViolation(err error) bool {
	var se *sqlite.Error
	return errors.As(err, &se) &&
		(se.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || se.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
}

// idTaken reports whether an insert met an id that is taken.
func idTaken(err error) bool {
	var se *sqlite.Error
	return errors.As(err, &se) && se.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY
}

// foreignKeyViolation reports whether a write met a reference that does not
// hold.
func foreignKeyViolation(err error) bool {
	var se *sqlite.Error
	return errors.As(err, &se) && se.Code() == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY
}
