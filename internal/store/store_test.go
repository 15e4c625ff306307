package store_test

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/auth"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/job/jobtest"
	"github.com/holdfast-dr/holdfast/internal/store"
)

func TestMain(m *testing.M) {
	if runAsChild() {
		return
	}
	goleak.VerifyTestMain(m)
}

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC)

// open opens a database and closes it when the test ends.
func open(t *testing.T, path string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func empty(t *testing.T) *store.Store {
	t.Helper()
	return open(t, filepath.Join(t.TempDir(), "state", "holdfast.db"))
}

// wants checks kind, sentinel and that there is something to do about it.
func wants(t *testing.T, what string, err error, kind holdfast.Kind, sentinel error) {
	t.Helper()
	if holdfast.KindOf(err) != kind || !errors.Is(err, sentinel) || holdfast.HintOf(err) == "" {
		t.Errorf("%s: got %v (%s, hint %q), want %s, %v", what, err, holdfast.KindOf(err), holdfast.HintOf(err), kind, sentinel)
	}
}

func site(id, name string) holdfast.Site {
	return holdfast.Site{ID: id, Name: name, Provider: "qemu", Settings: json.RawMessage(`{"dir":"/x"}`), Gateway: "gw:1",
		Record: holdfast.Record{CreatedAt: t0, UpdatedAt: t0}}
}

// sites puts two sites into the store.
func sites(t *testing.T, s *store.Store) {
	t.Helper()
	for _, id := range []string{"s1", "s2"} {
		if _, err := s.CreateSite(t.Context(), site(id, "site "+id)); err != nil {
			t.Fatal(err)
		}
	}
}

func item(id, name, machine string) holdfast.Item {
	return holdfast.Item{
		ID: id, Name: name, MachineID: machine, MachineName: "vm " + machine, Machine: json.RawMessage(`{"cpus":2}`),
		PrimarySite: "s1", RecoverySite: "s2", Disks: []holdfast.Disk{{ID: "vda", Size: 1 << 40, Boot: true}}, Policy: holdfast.DefaultPolicy(),
		State: holdfast.StateProtected, Direction: holdfast.Forward, Tested: holdfast.Tested{Tests: []holdfast.Test{{Handle: "t1", State: holdfast.TestRunning, StartedAt: t0}}, LastTest: &holdfast.TestRecord{Success: t0}},
		CurrentJob: "j", Replication: holdfast.Replication{Stream: holdfast.StreamID{1, 2}, Timeline: 3, Generation: 4}, Machines: holdfast.Machines{Handle: "h"},
		RecoveryPoint: &holdfast.RecoveryPoint{ID: "p", Timeline: 2, Position: 1 << 63, Time: t0, Consistency: holdfast.ConsistencyApp},
		Status:        holdfast.Status{RPO: time.Second},
		Record:        holdfast.Record{CreatedAt: t0, UpdatedAt: t0},
	}
}

func TestSites(t *testing.T) {
	t.Parallel()
	s, ctx := empty(t), t.Context()
	if all, err := s.Sites(ctx); err != nil || len(all) != 0 {
		t.Errorf("empty: %v, %v", all, err)
	}
	a, err := s.CreateSite(ctx, site("a", "primary"))
	if err != nil || a.Version != 1 {
		t.Fatalf("version %d, %v", a.Version, err)
	}
	// A site whose name is another's id: ids win.
	b, err := s.CreateSite(ctx, site("b", "a"))
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]holdfast.Site{"a": a, "primary": a, "b": b} {
		got, err := s.Site(ctx, key)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("site %s: %v\n%s", key, err, diff)
		}
	}
	_, err = s.CreateSite(ctx, site("c", "primary"))
	wants(t, "taken name", err, holdfast.KindConflict, store.ErrConflict)
	_, err = s.CreateSite(ctx, site("a", "other"))
	wants(t, "taken id", err, holdfast.KindConflict, store.ErrConflict)
	_, err = s.Site(ctx, "nowhere")
	wants(t, "no such site", err, holdfast.KindNotFound, store.ErrNotFound)

	a.Name = "berlin"
	updated, err := s.UpdateSite(ctx, a)
	if err != nil || updated.Version != 2 || updated.Name != "berlin" {
		t.Errorf("update: %+v, %v", updated, err)
	}
	_, err = s.UpdateSite(ctx, a)
	wants(t, "old version", err, holdfast.KindConflict, store.ErrConflict)
	updated.Name = "a"
	_, err = s.UpdateSite(ctx, updated)
	wants(t, "renamed to a taken name", err, holdfast.KindConflict, store.ErrConflict)
	_, err = s.UpdateSite(ctx, site("zz", "zz"))
	wants(t, "update of nothing", err, holdfast.KindNotFound, store.ErrNotFound)

	all, err := s.Sites(ctx)
	if err != nil || len(all) != 2 || all[0].Name != "a" || all[1].Name != "berlin" {
		t.Errorf("list: %+v, %v", all, err)
	}
	if err := s.DeleteSite(ctx, "b"); err != nil {
		t.Error(err)
	}
	wants(t, "removed twice", s.DeleteSite(ctx, "b"), holdfast.KindNotFound, store.ErrNotFound)
}

func TestItems(t *testing.T) {
	t.Parallel()
	s, ctx := empty(t), t.Context()
	_, err := s.CreateItem(ctx, item("i1", "db01", "m1"))
	wants(t, "item without sites", err, holdfast.KindInvalid, store.ErrNotFound)
	sites(t, s)
	want, err := s.CreateItem(ctx, item("i1", "db01", "m1"))
	if err != nil || want.Version != 1 {
		t.Fatalf("version %d, %v", want.Version, err)
	}
	want.Status = holdfast.Status{} // not kept
	for _, key := range []string{"i1", "db01"} {
		got, err := s.Item(ctx, key)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("item %s: %v\n%s", key, err, diff)
		}
	}
	_, err = s.CreateItem(ctx, item("i2", "db01", "m2"))
	wants(t, "taken name", err, holdfast.KindConflict, store.ErrConflict)
	_, err = s.CreateItem(ctx, item("i2", "db02", "m1"))
	wants(t, "machine protected already", err, holdfast.KindConflict, store.ErrConflict)
	if !strings.Contains(err.Error(), "vm m1 is protected already") {
		t.Errorf("machine protected already: %v", err)
	}
	if _, err := s.CreateItem(ctx, item("i2", "db02", "m2")); err != nil {
		t.Fatal(err)
	}
	want.State = holdfast.StateFailingOver
	updated, err := s.UpdateItem(ctx, want)
	if err != nil || updated.Version != 2 {
		t.Errorf("update: version %d, %v", updated.Version, err)
	}
	_, err = s.UpdateItem(ctx, want)
	wants(t, "old version", err, holdfast.KindConflict, store.ErrConflict)
	if got, err := s.Item(ctx, "i1"); err != nil || got.Version != 2 || got.State != holdfast.StateFailingOver {
		t.Errorf("after the update: %+v, %v", got, err)
	}
	wants(t, "site with items", s.DeleteSite(ctx, "s2"), holdfast.KindConflict, store.ErrConflict)
	all, err := s.Items(ctx)
	if err != nil || len(all) != 2 || all[0].ID != "i1" || all[1].ID != "i2" {
		t.Errorf("list: %+v, %v", all, err)
	}
	for _, id := range []string{"i1", "i2"} {
		if err := s.DeleteItem(ctx, id); err != nil {
			t.Error(err)
		}
	}
	wants(t, "removed twice", s.DeleteItem(ctx, "i1"), holdfast.KindNotFound, store.ErrNotFound)
	_, err = s.UpdateItem(ctx, updated)
	wants(t, "update of a removed one", err, holdfast.KindNotFound, store.ErrNotFound)
	_, err = s.Item(ctx, "i1")
	wants(t, "removed", err, holdfast.KindNotFound, store.ErrNotFound)
	if err := s.DeleteSite(ctx, "s2"); err != nil {
		t.Errorf("site without items: %v", err)
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "holdfast.db")
	s, ctx := open(t, path), t.Context()
	for _, value := range []string{"", "one", "two", "", "three"} {
		if err := s.SetSetting(ctx, "name", value); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Setting(ctx, "name"); got != value || err != nil {
			t.Errorf("got %q, %v, want %q", got, err, value)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := open(t, path).Setting(ctx, "name"); got != "three" || err != nil {
		t.Errorf("reopened: got %q, %v", got, err)
	}
}

func TestTokens(t *testing.T) {
	t.Parallel()
	s, ctx := empty(t), t.Context()
	tokens := auth.NewTokens(s)
	token, secret, err := tokens.Create(ctx, auth.CreateOptions{Name: "admin", Role: auth.RoleAdmin, TTL: time.Hour, Now: t0})
	if err != nil {
		t.Fatal(err)
	}
	got, err := tokens.Authenticate(ctx, secret, t0)
	if diff := cmp.Diff(token, got); diff != "" || err != nil {
		t.Errorf("authenticate: %v\n%s", err, diff)
	}
	if _, err := tokens.Authenticate(ctx, secret, t0.Add(time.Hour)); !errors.Is(err, auth.ErrTokenExpired) {
		t.Errorf("expired: %v", err)
	}
	wants(t, "taken name", s.PutToken(ctx, auth.Token{ID: "x", Name: "admin"}), holdfast.KindConflict, store.ErrConflict)
	for range 2 {
		if err := s.DeleteToken(ctx, token.ID); err != nil {
			t.Error(err)
		}
	}
	if all, err := s.ListTokens(ctx); err != nil || len(all) != 0 {
		t.Errorf("after removal: %v, %v", all, err)
	}
}

func TestJobStore(t *testing.T) {
	t.Parallel()
	jobtest.TestStore(t, func(t *testing.T) job.Store { return empty(t) })
}

func TestDurabilitySettings(t *testing.T) {
	t.Parallel()
	s := empty(t)
	for name, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "busy_timeout": "5000"} {
		if got, err := s.Pragma(t.Context(), name); got != want || err != nil {
			t.Errorf("%s: got %s, %v, want %s", name, got, err, want)
		}
	}
}

// TestEngineOnStore runs a job over a reopening of the database.
func TestEngineOnStore(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "holdfast.db")
	begun := make(chan struct{})
	kind := job.Kind{Name: "k", Tasks: []job.Task{
		{Name: "a", Run: func(ctx context.Context, s *job.Step) error { return s.SaveJobState(ctx, "from a") }},
		{Name: "b", Run: func(ctx context.Context, s *job.Step) error {
			var shared string
			if err := s.JobState(&shared); err != nil {
				return err
			}
			if s.Attempt() == 2 {
				return s.SetResult(ctx, shared)
			}
			close(begun)
			<-ctx.Done()
			return context.Cause(ctx)
		}},
	}}
	id := ""
	for life := range 2 {
		s := open(t, path)
		e := job.New(s, job.Options{})
		if err := e.Register(kind); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- e.Run(ctx) }()
		if life == 0 {
			j, err := e.Submit(ctx, "k", "item", nil)
			if err != nil {
				t.Fatal(err)
			}
			id = j.ID
			<-begun
		} else {
			events, err := e.Watch(ctx, id)
			if err != nil {
				t.Fatal(err)
			}
			for range events {
			}
		}
		stop()
		if err := errors.Join(<-done, s.Close()); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, path)
	if j, err := s.GetJob(t.Context(), id); err != nil || j.State != job.Succeeded || string(j.Result) != `"from a"` {
		t.Errorf("job %s with result %s: %v", j.State, j.Result, err)
	}
}

func TestErrorsKeepTheContext(t *testing.T) {
	t.Parallel()
	s := empty(t)
	ctx, cancel := contextCancelled(t)
	defer cancel()
	if err := s.SetSetting(ctx, "a", "b"); !isCancelled(err) {
		t.Errorf("write: %v", err)
	}
	if _, err := s.Items(ctx); !isCancelled(err) {
		t.Errorf("read: %v", err)
	}
	if err := s.SetSetting(t.Context(), "a", "b"); err != nil {
		t.Errorf("after a cancelled write: %v", err)
	}
}
