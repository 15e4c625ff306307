package store_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/store"
)

func contextCancelled(t *testing.T) (context.Context, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx, cancel
}

func isCancelled(err error) bool {
	return errors.Is(err, context.Canceled) && holdfast.KindOf(err) == holdfast.KindInternal && holdfast.HintOf(err) == ""
}

// raw runs statements on a database past the store.
func raw(t *testing.T, path string, statements ...string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, text := range statements {
		if _, err := db.ExecContext(t.Context(), text); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
}

// filled returns the path of a closed database with something in it.
func filled(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "holdfast.db")
	s := open(t, path)
	sites(t, s)
	for i := range 200 {
		if err := s.SetSetting(t.Context(), fmt.Sprint("s", i), strings.Repeat("x", 500)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func refuses(t *testing.T, path string, kind holdfast.Kind, sentinel error, text string) {
	t.Helper()
	s, err := store.Open(t.Context(), path)
	if err == nil {
		_ = s.Close()
		t.Fatal("it was opened")
	}
	if holdfast.KindOf(err) != kind || sentinel != nil && !errors.Is(err, sentinel) || !strings.Contains(err.Error(), text) || holdfast.HintOf(err) == "" {
		t.Errorf("got %v (%s, hint %q), want %s, %v, with %q", err, holdfast.KindOf(err), holdfast.HintOf(err), kind, sentinel, text)
	}
}

func TestModes(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "state")
	s := open(t, filepath.Join(dir, "holdfast.db"))
	sites(t, s)
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", st.Mode(), err)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) < 3 { // database, lock, and the log at least
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, f := range files {
		if st, err := f.Info(); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f.Name(), st.Mode(), err)
		}
	}
}

func TestOddPath(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a?b=c&d #%41 ü", "hold fast.db")
	sites(t, open(t, path))
	if st, err := os.Stat(path); err != nil || st.Size() == 0 {
		t.Errorf("the file is not where it was asked for: %v", err)
	}
}

func TestLocked(t *testing.T) {
	t.Parallel()
	path := filled(t)
	s := open(t, path)
	refuses(t, path, holdfast.KindConflict, store.ErrLocked, fmt.Sprintf("by process %d", os.Getpid()))
	if _, err := s.Sites(t.Context()); err != nil {
		t.Errorf("the first server is disturbed: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, path)
}

func TestForeignDatabase(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	other := filepath.Join(dir, "other.db")
	raw(t, other, "CREATE TABLE cats (name TEXT)", "INSERT INTO cats VALUES ('Minka')")
	before, err := os.ReadFile(other)
	if err != nil {
		t.Fatal(err)
	}
	refuses(t, other, holdfast.KindInvalid, store.ErrForeign, "belongs to something else")
	marked := filepath.Join(dir, "marked.db")
	raw(t, marked, "PRAGMA application_id = 77", "CREATE TABLE x (y)", "DROP TABLE x")
	refuses(t, marked, holdfast.KindInvalid, store.ErrForeign, "77")
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte(strings.Repeat("this is no database\n", 500)), 0o600); err != nil {
		t.Fatal(err)
	}
	refuses(t, text, holdfast.KindInvalid, store.ErrForeign, "not a database")
	if after, err := os.ReadFile(other); err != nil || string(after) != string(before) {
		t.Errorf("the foreign database was changed: %v", err)
	}
}

func TestNewerSchema(t *testing.T) {
	t.Parallel()
	path := filled(t)
	raw(t, path, "INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, 1)")
	refuses(t, path, holdfast.KindInvalid, store.ErrNewerSchema, "999")
}

// TestDamaged overwrites pages here and there: what Open accepts can be read.
func TestDamaged(t *testing.T) {
	t.Parallel()
	path := filled(t)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const page = 4096
	pages := len(whole) / page
	found := 0
	for n := range pages {
		bad := filepath.Join(t.TempDir(), "holdfast.db")
		data := append([]byte{}, whole...)
		for i := range page {
			data[n*page+i] = 0xa5
		}
		if err := os.WriteFile(bad, data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := store.Open(t.Context(), bad)
		if err == nil {
			_, err1 := s.Sites(t.Context())
			_, err2 := s.Items(t.Context())
			_, err3 := s.ListTokens(t.Context())
			if err := errors.Join(err1, err2, err3, s.Close()); err != nil {
				t.Errorf("page %d: opened, and then %v", n, err)
			}
			continue
		}
		found++
		kind := holdfast.KindOf(err)
		if !(kind == holdfast.KindCorrupt && errors.Is(err, store.ErrCorrupt) || kind == holdfast.KindInvalid && errors.Is(err, store.ErrForeign)) || holdfast.HintOf(err) == "" {
			t.Errorf("page %d: got %v (%s)", n, err, kind)
		}
	}
	if found < pages-2 {
		t.Errorf("%d of %d damaged pages were found", found, pages)
	}
	short := filepath.Join(t.TempDir(), "holdfast.db")
	if err := os.WriteFile(short, whole[:len(whole)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	refuses(t, short, holdfast.KindCorrupt, store.ErrCorrupt, "damaged")
}

func TestBadPlace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refuses(t, filepath.Join(file, "holdfast.db"), holdfast.KindInvalid, nil, "not what it should be")
	if err := os.Mkdir(filepath.Join(dir, "folder.db"), 0o700); err != nil {
		t.Fatal(err)
	}
	refuses(t, filepath.Join(dir, "folder.db"), holdfast.KindInvalid, nil, "not what it should be")
	if os.Geteuid() == 0 {
		return // root may write anywhere; the file system below is what it may not write to
	}
	locked := filepath.Join(dir, "locked")
	if err := os.Mkdir(locked, 0o500); err != nil {
		t.Fatal(err)
	}
	refuses(t, filepath.Join(locked, "holdfast.db"), holdfast.KindUnavailable, nil, "cannot be written to")
}

// TestReadOnlyFileSystem needs one; /proc is one that is always there, where
// nobody, root included, can make a file.
func TestReadOnlyFileSystem(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/proc/self"); err != nil {
		t.Skip("no /proc")
	}
	refuses(t, "/proc/self/holdfast.db", holdfast.KindUnavailable, nil, "open database")
}

// TestFull: what does not fit is refused with advice, what was recorded stays,
// and it goes on once there is space.
func TestFull(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "holdfast.db")
	s, ctx := open(t, path), t.Context()
	if err := s.LimitSize(ctx, 20); err != nil {
		t.Fatal(err)
	}
	kept := 0
	var err error
	for kept < 1000 {
		if err = s.SetSetting(ctx, fmt.Sprint("s", kept), strings.Repeat("x", 1000)); err != nil {
			break
		}
		kept++
	}
	if kept == 0 || holdfast.KindOf(err) != holdfast.KindUnavailable || !strings.Contains(err.Error(), "no space left") || holdfast.HintOf(err) == "" {
		t.Fatalf("after %d: %v", kept, err)
	}
	if got, err := s.Setting(ctx, fmt.Sprint("s", kept)); got != "" || err != nil {
		t.Errorf("the refused one is there: %v", err)
	}
	if err := s.LimitSize(ctx, 1000); err != nil {
		t.Fatal(err)
	}
	if err := s.SetSetting(ctx, fmt.Sprint("s", kept), "x"); err != nil {
		t.Errorf("with space again: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	for i := range kept + 1 {
		if got, err := s.Setting(ctx, fmt.Sprint("s", i)); got == "" || err != nil {
			t.Fatalf("%d of %d is gone: %v", i, kept, err)
		}
	}
}

// TestSomebodyWrites: a database browser that holds a transaction open makes
// writes fail with advice, and does not keep them waiting for ever.
func TestSomebodyWrites(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("waits for the busy timeout")
	}
	path := filled(t)
	s := open(t, path)
	db, err := sql.Open("sqlite", path+"?_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	err = s.SetSetting(t.Context(), "a", "b")
	if holdfast.KindOf(err) != holdfast.KindUnavailable || !strings.Contains(err.Error(), "another process") || holdfast.HintOf(err) == "" {
		t.Errorf("while another process writes: %v", err)
	}
	if _, err := s.Sites(t.Context()); err != nil {
		t.Errorf("reading meanwhile: %v", err)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := s.SetSetting(t.Context(), "a", "b"); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}
