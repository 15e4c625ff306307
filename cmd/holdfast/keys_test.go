package main

import (
	"bytes"
	"errors"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

var shownWords = regexp.MustCompile(`(?m)^ +(\d+  [a-z ]+)$`)

// opened says whether a vault is opened by words as a person would type them.
func opened(t *testing.T, at location, said string) error {
	t.Helper()
	var typed []string
	for _, m := range shownWords.FindAllStringSubmatch(said, -1) {
		typed = append(typed, m[1])
	}
	if len(typed) != 4 {
		t.Fatalf("no words in %q", said)
	}
	o := offline{vault: at, words: true, in: strings.NewReader(strings.Join(typed, "\n") + "\n"), ask: &bytes.Buffer{}}
	v, err := o.open(t.Context())
	if err == nil {
		err = o.list(t.Context(), v, &bytes.Buffer{})
	}
	return err
}

// TestRecoveryKey has a vault whose server and key are lost, and the words alone.
func TestRecoveryKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := location{at: dir}
	objects, err := objstore.NewDir(vfs.OS, dir)
	if err != nil {
		t.Fatal(err)
	}
	key, err := vault.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "vault.key")
	if err := vfs.WriteFileAtomic(vfs.OS, file, []byte(key.String()+"\n")); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	v, err := createVault(t.Context(), objects, key, &said)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.CreateStream(t.Context(), vault.StreamOptions{ID: [16]byte{1}, Name: "web1", Disks: []vault.Disk{{ID: "vda", Size: 4096}}, Now: time.Unix(1, 0)}); err != nil {
		t.Fatal(err)
	}
	first := said.String()
	if err := opened(t, at, first); err != nil {
		t.Fatal(err)
	}

	var again bytes.Buffer
	r := rekey{offline: offline{vault: at, key: file}}
	if err := r.locked(t.Context(), r.changeTo(&again)); err != nil {
		t.Fatal(err)
	}
	if err := opened(t, at, first); !errors.Is(err, vault.ErrWrongKey) {
		t.Errorf("the words of before: %v", err)
	}
	if err := opened(t, at, again.String()); err != nil {
		t.Error(err)
	}

	var rotated bytes.Buffer
	r.newKey = filepath.Join(t.TempDir(), "new.key")
	for range 2 { // the second time as after an interruption
		rotated.Reset()
		if err := r.rotate(t.Context(), &rotated); err != nil {
			t.Fatal(err)
		}
	}
	if err := opened(t, at, rotated.String()); err != nil {
		t.Error(err)
	}
	old, fresh := offline{vault: at, key: file}, offline{vault: at, key: r.newKey}
	if _, err := old.open(t.Context()); !errors.Is(err, vault.ErrWrongKey) {
		t.Errorf("the old key: %v", err)
	}
	if v, err := fresh.open(t.Context()); err != nil || len(v.Recipients()) != 2 {
		t.Errorf("the new key: %v", err)
	}

	_, lease, err := v.AcquireLease(t.Context(), vault.LeaseOptions{Owner: "server", Host: "here"})
	if err != nil {
		t.Fatal(err)
	}
	defer lease.Release()
	if err := r.rotate(t.Context(), &rotated); !errors.Is(err, vault.ErrInUse) {
		t.Errorf("beside a server: %v", err)
	}
}

func TestAskWords(t *testing.T) {
	t.Parallel()
	for _, in := range []string{"", "one two three\n", strings.Repeat("abandon ", 24) + "\n", strings.Repeat("x ", 10000)} {
		if _, err := askWords(strings.NewReader(in), &bytes.Buffer{}); err == nil {
			t.Errorf("%.40q is taken", in)
		}
	}
}
