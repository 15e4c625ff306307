// Package objstoretest has the suite that every object store must pass. Only
// tests import it.
package objstoretest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/internal/objstore"
)

// Run tests the stores that open returns: each call a new, empty one.
func Run(t *testing.T, open func(t *testing.T) objstore.Store) {
	for name, test := range map[string]func(*testing.T, objstore.Store){
		"Put":            testPut,
		"PutIfAbsent":    testPutIfAbsent,
		"CompareAndSwap": testCompareAndSwap,
		"GetRange":       testGetRange,
		"List":           testList,
		"Delete":         testDelete,
		"Names":          testNames,
		"Race":           testRace,
		"Cancelled":      testCancelled,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open(t))
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// has checks the content of an object, and returns its version.
func has(t *testing.T, s objstore.Store, name, want string) string {
	t.Helper()
	b, etag, err := s.Get(t.Context(), name)
	if err != nil || string(b) != want {
		t.Fatalf("object %s has %q (%v), want %q", name, b, err, want)
	}
	if etag == "" {
		t.Fatalf("object %s has no version", name)
	}
	return etag
}

func testPut(t *testing.T, s objstore.Store) {
	ctx := t.Context()
	if _, _, err := s.Get(ctx, "a/b"); !errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("get of nothing: %v, want ErrNotFound", err)
	}
	for _, content := range []string{"one", "", strings.Repeat("long", 100_000), "two"} {
		must(t, s.Put(ctx, "a/b", []byte(content)))
		has(t, s, "a/b", content)
	}
}

func testPutIfAbsent(t *testing.T, s objstore.Store) {
	ctx := t.Context()
	must(t, s.PutIfAbsent(ctx, "a/b", []byte("one")))
	if err := s.PutIfAbsent(ctx, "a/b", []byte("two")); !errors.Is(err, objstore.ErrExists) {
		t.Errorf("second put: %v, want ErrExists", err)
	}
	has(t, s, "a/b", "one")
	must(t, s.Delete(ctx, "a/b"))
	must(t, s.PutIfAbsent(ctx, "a/b", []byte("three")))
	has(t, s, "a/b", "three")
}

func testCompareAndSwap(t *testing.T, s objstore.Store) {
	ctx := t.Context()
	one, err := s.CompareAndSwap(ctx, "lease", []byte("one"), "")
	must(t, err)
	if got := has(t, s, "lease", "one"); got != one {
		t.Errorf("version %q, CompareAndSwap said %q", got, one)
	}
	if _, err := s.CompareAndSwap(ctx, "lease", []byte("x"), ""); !errors.Is(err, objstore.ErrChanged) {
		t.Errorf("swap of what must be absent: %v, want ErrChanged", err)
	}
	two, err := s.CompareAndSwap(ctx, "lease", []byte("two"), one)
	must(t, err)
	if two == one {
		t.Error("two contents have the same version")
	}
	if _, err := s.CompareAndSwap(ctx, "lease", []byte("x"), one); !errors.Is(err, objstore.ErrChanged) {
		t.Errorf("swap of an old version: %v, want ErrChanged", err)
	}
	must(t, s.Delete(ctx, "lease"))
	if _, err := s.CompareAndSwap(ctx, "lease", []byte("x"), two); !errors.Is(err, objstore.ErrChanged) {
		t.Errorf("swap of what is gone: %v, want ErrChanged", err)
	}
}

func testGetRange(t *testing.T, s objstore.Store) {
	ctx := t.Context()
	must(t, s.Put(ctx, "o", []byte("0123456789")))
	for _, c := range []struct {
		off, length int64
		want        string
	}{
		{0, 10, "0123456789"}, {0, 100, "0123456789"}, {3, 4, "3456"}, {8, 4, "89"}, {10, 1, ""}, {11, 1, ""}, {1 << 40, 1, ""},
		{-3, 3, "789"}, {-3, 100, "789"}, {-3, 1, "7"}, {-100, 5, "01234"}, {0, 0, ""}, {4, 0, ""}, {0, objstore.MaxObjectSize * 1000, "0123456789"},
	} {
		b, err := s.GetRange(ctx, "o", c.off, c.length)
		if err != nil || string(b) != c.want {
			t.Errorf("GetRange(%d, %d) = %q, %v; want %q", c.off, c.length, b, err, c.want)
		}
	}
	must(t, s.Put(ctx, "empty", nil))
	if b, err := s.GetRange(ctx, "empty", -5, 5); err != nil || len(b) > 0 {
		t.Errorf("GetRange of an empty object = %q, %v", b, err)
	}
	if _, err := s.GetRange(ctx, "none", 0, 1); !errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("GetRange of nothing: %v, want ErrNotFound", err)
	}
}

func testList(t *testing.T, s objstore.Store) {
	ctx := t.Context()
	all := []string{"a/1", "a/1.x", "a/10", "a/2", "a/b/1", "a/b/2", "a/b-c", "ab", "b/1"}
	for i := range all { // not in order
		name := all[(i*4+3)%len(all)]
		must(t, s.Put(ctx, name, []byte(name)))
	}
	list := func(prefix, after string) []string {
		entries, err := s.List(ctx, prefix, after)
		must(t, err)
		out := []string{}
		for _, e := range entries {
			if e.Size != int64(len(e.Name)) || e.ModTime.IsZero() {
				t.Errorf("entry %s has %d bytes, time %s", e.Name, e.Size, e.ModTime)
			}
			out = append(out, e.Name)
		}
		return out
	}
	for _, c := range []struct{ prefix, after string }{
		{"", ""}, {"a", ""}, {"a/", ""}, {"a/1", ""}, {"a/b", ""}, {"a/b/", ""}, {"a/", "a/1"}, {"a/", "a/1.w"}, {"a/", "a/b"}, {"a/", "a/b/1"}, {"a/", "a/b-d"},
		{"", "a/b/2"}, {"", "a"}, {"", "b"}, {"", "b/1"}, {"b/1", ""}, {"b/2", ""}, {"c/", ""}, {"a/b/1/", ""}, {"a/", "zzz"}, {"b/", "a/2"},
	} {
		want := []string{}
		for _, name := range []string{"a/1", "a/1.x", "a/10", "a/2", "a/b-c", "a/b/1", "a/b/2", "ab", "b/1"} {
			if strings.HasPrefix(name, c.prefix) && name > c.after {
				want = append(want, name)
			}
		}
		if diff := cmp.Diff(want, list(c.prefix, c.after)); diff != "" {
			t.Errorf("List(%q, %q) (-want +got):\n%s", c.prefix, c.after, diff)
		}
	}
}

func testDelete(t *testing.T, s objstore.Store) {
	ctx := t.Context()
	must(t, s.Delete(ctx, "a/b"))
	must(t, s.Put(ctx, "a/b", []byte("x")))
	must(t, s.Delete(ctx, "a/b"))
	must(t, s.Delete(ctx, "a/b"))
	if _, _, err := s.Get(ctx, "a/b"); !errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("get of what was deleted: %v, want ErrNotFound", err)
	}
}

func testNames(t *testing.T, s objstore.Store) {
	ctx := t.Context()
	for _, name := range []string{"", "/", "a/", "/a", "a//b", "..", "a/../b", ".hidden", "a/.b", "A", "a b", "a\x00", "ä"} {
		if err := s.Put(ctx, name, nil); err == nil {
			t.Errorf("put of %q succeeded", name)
		}
		if _, _, err := s.Get(ctx, name); err == nil || errors.Is(err, objstore.ErrNotFound) {
			t.Errorf("get of %q: %v, want a refusal", name, err)
		}
		if err := s.Delete(ctx, name); err == nil {
			t.Errorf("delete of %q succeeded", name)
		}
		if _, err := s.CompareAndSwap(ctx, name, nil, ""); err == nil {
			t.Errorf("swap of %q succeeded", name)
		}
	}
	entries, err := s.List(ctx, "", "")
	if err != nil || len(entries) > 0 {
		t.Errorf("refused names left %v (%v)", entries, err)
	}
}

// testRace has many put one object, and swap another: exactly one must win each
// time, and nobody may see a part of an object.
func testRace(t *testing.T, s objstore.Store) {
	ctx := t.Context()
	const racers, rounds = 8, 10
	content := func(i int) []byte { return bytes.Repeat([]byte{byte('a' + i)}, 10_000) }
	for round := range rounds {
		name := fmt.Sprintf("put/%d", round)
		var wg sync.WaitGroup
		// mu guards what won.
		var mu sync.Mutex
		var put, swapped []int
		_, etag, err := s.Get(ctx, "swap")
		if err != nil && !errors.Is(err, objstore.ErrNotFound) {
			t.Fatal(err)
		}
		for i := range racers {
			wg.Go(func() {
				err := s.PutIfAbsent(ctx, name, content(i))
				_, swapErr := s.CompareAndSwap(ctx, "swap", append(content(i), name...), etag)
				b, _, getErr := s.Get(ctx, name)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					put = append(put, i)
				} else if !errors.Is(err, objstore.ErrExists) {
					t.Errorf("put by %d: %v", i, err)
				}
				if swapErr == nil {
					swapped = append(swapped, i)
				} else if !errors.Is(swapErr, objstore.ErrChanged) {
					t.Errorf("swap by %d: %v", i, swapErr)
				}
				if getErr != nil || len(b) != 10_000 || !bytes.Equal(b, bytes.Repeat(b[:1], 10_000)) {
					t.Errorf("racer %d reads %d bytes (%v)", i, len(b), getErr)
				}
			})
		}
		wg.Wait()
		if len(put) != 1 || len(swapped) != 1 {
			t.Fatalf("round %d: puts won by %v, swaps by %v; want one each", round, put, swapped)
		}
		has(t, s, name, string(content(put[0])))
		has(t, s, "swap", string(append(content(swapped[0]), name...)))
	}
}

func testCancelled(t *testing.T, s objstore.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, getErr := s.Get(ctx, "a")
	_, listErr := s.List(ctx, "", "")
	for name, err := range map[string]error{
		"put": s.Put(ctx, "a", nil), "put if absent": s.PutIfAbsent(ctx, "a", nil), "get": getErr, "list": listErr, "delete": s.Delete(ctx, "a"),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s with a cancelled context: %v", name, err)
		}
	}
}
