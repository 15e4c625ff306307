package store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/store"
)

// model is what the store should hold.
type model struct {
	sites    map[string]holdfast.Site
	items    map[string]holdfast.Item
	settings map[string]string
}

func (m model) siteUsed(id string) bool {
	for _, it := range m.items {
		if it.PrimarySite == id || it.RecoverySite == id {
			return true
		}
	}
	return false
}

// TestAgainstModel does operations at random on store and model, and compares
// each answer, and everything after reopening. It prints what it did when it fails.
func TestAgainstModel(t *testing.T) {
	t.Parallel()
	for seed := range uint64(3) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "holdfast.db")
			s := open(t, path)
			m := model{map[string]holdfast.Site{}, map[string]holdfast.Item{}, map[string]string{}}
			r := &randomOps{rng: rand.New(rand.NewPCG(seed, 1)), model: m}
			for i := range 300 {
				if i%60 == 59 {
					if err := s.Close(); err != nil {
						t.Fatal(err)
					}
					s = open(t, path)
				}
				if !r.step(t, s) {
					t.Fatalf("after:\n%s", strings.Join(r.history, "\n"))
				}
			}
		})
	}
}

type randomOps struct {
	rng     *rand.Rand
	model   model
	history []string
}

// step does one operation and reports whether store and model agree.
func (r *randomOps) step(t *testing.T, s *store.Store) bool {
	t.Helper()
	ctx := t.Context()
	id := strconv.Itoa(r.rng.IntN(6))
	var got, want holdfast.Kind
	op := r.rng.IntN(9)
	r.history = append(r.history, fmt.Sprintf("op %d on %s", op, id))
	switch op {
	case 0, 1:
		_, taken := r.model.sites[id]
		created, err := s.CreateSite(ctx, site(id, "site"+id))
		if got = holdfast.KindOf(err); taken {
			want = holdfast.KindConflict
		} else {
			r.model.sites[id] = created
		}
	case 2:
		err := s.DeleteSite(ctx, id)
		_, there := r.model.sites[id]
		switch got = holdfast.KindOf(err); {
		case !there:
			want = holdfast.KindNotFound
		case r.model.siteUsed(id):
			want = holdfast.KindConflict
		default:
			delete(r.model.sites, id)
		}
	case 3, 4:
		it := item(id, "item"+id, "m"+id)
		it.PrimarySite, it.RecoverySite = strconv.Itoa(r.rng.IntN(6)), strconv.Itoa(r.rng.IntN(6))
		it.Status = holdfast.Status{}
		created, err := s.CreateItem(ctx, it)
		_, taken := r.model.items[id]
		_, from := r.model.sites[it.PrimarySite]
		_, to := r.model.sites[it.RecoverySite]
		switch got = holdfast.KindOf(err); {
		case taken:
			want = holdfast.KindConflict
		case !from || !to:
			want = holdfast.KindInvalid
		default:
			r.model.items[id] = created
		}
	case 5, 6:
		it, there := r.model.items[id]
		if !there {
			it = item(id, "item"+id, "m"+id)
			if len(r.model.sites) == 0 {
				return true
			}
		}
		stale := there && r.rng.IntN(3) == 0
		if stale {
			it.Version--
		}
		it.Generation++
		updated, err := s.UpdateItem(ctx, it)
		switch got = holdfast.KindOf(err); {
		case !there:
			want = holdfast.KindNotFound
		case stale:
			want = holdfast.KindConflict
		default:
			r.model.items[id] = updated
		}
	case 7:
		if got = holdfast.KindOf(s.DeleteItem(ctx, id)); r.model.items[id].ID == "" {
			want = holdfast.KindNotFound
		}
		delete(r.model.items, id)
	case 8:
		r.model.settings[id] = strconv.Itoa(r.rng.Int())
		got = holdfast.KindOf(s.SetSetting(ctx, id, r.model.settings[id]))
	}
	if got != want {
		t.Errorf("got kind %q, want %q", got, want)
		return false
	}
	return r.same(t, s)
}

// same compares everything.
func (r *randomOps) same(t *testing.T, s *store.Store) bool {
	t.Helper()
	gotSites, err1 := s.Sites(t.Context())
	gotItems, err2 := s.Items(t.Context())
	if err := errors.Join(err1, err2); err != nil {
		t.Error(err)
		return false
	}
	byName := func(a, b holdfast.Item) int { return strings.Compare(a.Name, b.Name) }
	wantSites := slices.SortedFunc(maps.Values(r.model.sites), func(a, b holdfast.Site) int { return strings.Compare(a.Name, b.Name) })
	wantItems := slices.SortedFunc(maps.Values(r.model.items), byName)
	diff := cmp.Diff(append([]holdfast.Site{}, wantSites...), gotSites) + cmp.Diff(append([]holdfast.Item{}, wantItems...), gotItems)
	for name, want := range r.model.settings {
		if got, err := s.Setting(t.Context(), name); got != want || err != nil {
			diff += fmt.Sprintf("setting %s: got %q, %v, want %q\n", name, got, err, want)
		}
	}
	if diff != "" {
		t.Errorf("store (-model +store):\n%s", diff)
	}
	return diff == ""
}

// childEnv names the database that this binary writes to when it runs as a
// child that will be killed.
const childEnv = "HOLDFAST_TEST_STORE"

// runAsChild writes to the database until it is killed, and says what was
// acknowledged.
func runAsChild() bool {
	path := os.Getenv(childEnv)
	if path == "" {
		return false
	}
	ctx := context.Background()
	s, err := store.Open(ctx, path)
	if err != nil {
		fmt.Println("error", err)
		return true
	}
	defer s.Close()
	first, err := s.Setting(ctx, "next")
	if err != nil {
		fmt.Println("error", err)
		return true
	}
	next, _ := strconv.Atoi(first)
	fmt.Println("begin", next)
	for n := next; ; n++ {
		id := fmt.Sprint("job", n)
		j := job.Job{ID: id, Kind: "k", State: job.NotStarted, Version: 1, Title: strings.Repeat("x", n%5000)}
		err := s.CreateJob(ctx, j)
		if errors.Is(err, job.ErrConflict) { // by the one before this, without having said so
			j, err = s.GetJob(ctx, id)
		}
		if err == nil {
			fmt.Println("created", n)
			j.Version++
			j.State = job.Succeeded
			err = s.UpdateJob(ctx, j)
		}
		if err == nil {
			fmt.Println("updated", n)
		}
		if err == nil {
			err = s.SetSetting(ctx, "next", strconv.Itoa(n+1))
		}
		if err != nil {
			fmt.Println("error", err)
			return true
		}
		fmt.Println("set", n)
	}
}

// TestKilled kills a process in the midst of its writes, again and again: what
// it had acknowledged is there, and no lock is left behind.
func TestKilled(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "holdfast.db")
	rng := rand.New(rand.NewPCG(5, 6))
	last := map[string]int{}
	for round := range 8 {
		killAfter(t, path, 20+rng.IntN(200), last)
		s := open(t, path)
		for n := range last["created"] + 1 {
			j, err := s.GetJob(t.Context(), fmt.Sprint("job", n))
			if err != nil {
				t.Fatalf("round %d: job %d of %d: %v", round, n, last["created"], err)
			}
			if n <= last["updated"] && j.State != job.Succeeded || len(j.Title) != n%5000 {
				t.Fatalf("round %d: job %d is %s with %d characters; %d were updated", round, n, j.State, len(j.Title), last["updated"])
			}
		}
		next, err := s.Setting(t.Context(), "next")
		if n, _ := strconv.Atoi(next); err != nil || n <= last["set"] {
			t.Fatalf("round %d: setting is %q, %v; %d was acknowledged", round, next, err, last["set"])
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// killAfter starts the child and kills it after so many lines, whatever it is
// about then. It notes the last of each kind that was acknowledged.
func killAfter(t *testing.T, path string, lines int, last map[string]int) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), childEnv+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	scan := bufio.NewScanner(out)
	for range lines {
		if !scan.Scan() {
			break
		}
		note(t, scan.Text(), last)
	}
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	for scan.Scan() { // what it said before it died was acknowledged, too
		note(t, scan.Text(), last)
	}
	_, _ = io.Copy(io.Discard, out)
	_ = cmd.Wait() // "killed"
}

func note(t *testing.T, line string, last map[string]int) {
	t.Helper()
	what, number, _ := strings.Cut(line, " ")
	n, err := strconv.Atoi(number)
	if err != nil || what == "error" {
		t.Fatalf("the child says %q", line)
	}
	last[what] = n
}
