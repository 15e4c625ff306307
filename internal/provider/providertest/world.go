package providertest

import (
	"fmt"
	"slices"
	"sync"
	"testing"
)

// World knows of all fake sites that share it which copies of a machine are
// live, so that a test sees when a machine ran twice at once. Safe for
// concurrent use. The zero value is not usable; call NewWorld.
type World struct {
	mu sync.Mutex // guards the fields below
	// live has, for each identity, the copies that run, as "site/machine".
	live      map[string][]string
	alias     map[string]string // id of a recovered machine → identity
	conflicts []string
}

// NewWorld returns a world without machines.
func NewWorld() *World { return &World{live: map[string][]string{}, alias: map[string]string{}} }

// Live returns the copies of a machine that run now, as "site/name" for the
// original and "site/handle" for recovered ones, sorted. The identity is the
// machine's id at the site where it was first protected, or the id of any of
// its copies.
func (w *World) Live(identity string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(slices.Values(w.live[w.identity(identity)]))
}

// Conflicts returns a line for each moment at which a second copy of a machine
// was started while another one ran. Isolated copies never conflict.
func (w *World) Conflicts() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.conflicts)
}

// RequireOneLive fails the test if two copies of a machine ever ran at once.
func (w *World) RequireOneLive(t testing.TB) {
	t.Helper()
	for _, c := range w.Conflicts() {
		t.Error(c)
	}
}

func (w *World) start(identity, copy string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	identity = w.identity(identity)
	others := w.live[identity]
	if slices.Contains(others, copy) {
		return
	}
	if len(others) > 0 {
		w.conflicts = append(w.conflicts, fmt.Sprintf("two live copies of machine %s: %s started while %v ran", identity, copy, others))
	}
	w.live[identity] = append(slices.Clone(others), copy)
}

func (w *World) stop(identity, copy string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	identity = w.identity(identity)
	w.live[identity] = slices.DeleteFunc(slices.Clone(w.live[identity]), func(c string) bool { return c == copy })
}

// same records that a recovered machine is a copy of the one it was made from.
func (w *World) same(id, of string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.alias[id] = w.identity(of)
}

func (w *World) identity(id string) string {
	if of, ok := w.alias[id]; ok {
		return of
	}
	return id
}
