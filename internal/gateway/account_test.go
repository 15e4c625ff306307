package gateway

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/gateway/journal"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// reopen opens the stream as an ingest process does, damaged account or not.
func (r *rig) reopen(tuning Tuning) *stream {
	r.t.Helper()
	st, err := r.vault.OpenStream(r.t.Context(), r.id)
	if err != nil {
		r.t.Fatal(err)
	}
	s, err := openAccount(r.t.Context(), OpenRequest{Stream: r.id, Timeline: 1, Generation: 1}, StreamOptions{
		Stream: st, Disks: r.disks, FS: vfs.OS, Dir: r.dir, Tuning: tuning, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// damage flips a bit in the middle of the newest file that matches.
func (r *rig) damage(pattern string, at func(size int64) int64) {
	r.t.Helper()
	names, err := filepath.Glob(filepath.Join(r.dir, pattern))
	if err != nil || len(names) == 0 {
		r.t.Fatalf("%s: %v, %v", pattern, names, err)
	}
	name := names[len(names)-1]
	b, err := os.ReadFile(name)
	if err != nil {
		r.t.Fatal(err)
	}
	b[at(int64(len(b)))] ^= 4
	if err := os.WriteFile(name, b, 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// TestDamagedAccount damages what the gateway has kept: it never goes on as if
// all were well, and never stays closed. The stream begins anew, so that source
// and vault are compared.
func TestDamagedAccount(t *testing.T) {
	t.Parallel()
	half := func(size int64) int64 { return size / 2 }
	for _, tt := range []struct {
		name, pattern string
		at            func(int64) int64
		spool         bool
		fresh         bool
	}{
		{"a write in the journal", "journal/*", half, false, true},
		{"the length of a record", "journal/*", func(int64) int64 { return journal.HeaderSize + 4096 + 5 }, false, true},
		{"the last record", "journal/*", func(size int64) int64 { return size - 1 }, false, true},
		{"a segment in the spool", "spool/*", half, true, true},
		{"nothing", "", nil, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			s := r.open(Tuning{SealInterval: time.Hour})
			d := s.disks["vda"]
			for _, d := range s.disks {
				d.ready = true // no loop runs that would find out
			}
			ctx := r.connect(s, 1)["vda"]
			for i := range 20 {
				if err := d.WriteAt(ctx, bytes.Repeat([]byte{byte(i + 1)}, 4096), int64(i)*4096, false); err != nil {
					t.Fatal(err)
				}
				if !tt.spool {
					continue
				}
				if err := s.seal(); err != nil {
					t.Fatal(err)
				}
			}
			for _, q := range s.queue { // nothing commits; the journal does not have what the spool has
				if !q.spooled {
					s.spool(q)
				}
			}
			s.release()
			if tt.pattern != "" {
				r.damage(tt.pattern, tt.at)
			}
			again := r.reopen(Tuning{SealInterval: 10 * time.Millisecond})
			if again.isFresh() != tt.fresh {
				t.Errorf("the stream begins anew: %v, want %v", again.isFresh(), tt.fresh)
			}
			aside, _ := filepath.Glob(r.dir + ".damaged-*")
			if (len(aside) == 1) != tt.fresh {
				t.Errorf("set aside: %v", aside)
			}
			stop := r.run(again)
			r.eventually("what is there comes into the vault", func() bool { return again.backlog() == 0 })
			stop()
		})
	}
}

// TestDamagedOrder damages orders: the gateway starts all the same, carries out
// the others, and says of a damaged one that there is none, so that the server
// gives it again.
func TestDamagedOrder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open := func() (*Supervisor, error) {
		return NewSupervisor(SupervisorOptions{Dir: dir, Command: func(string, string) *exec.Cmd { return exec.Command("sleep", "60") }})
	}
	if _, err := open(); err != nil {
		t.Fatal(err)
	}
	r := newRig(t)
	good := strings.NewReplacer("STREAM", r.id.String()).Replace(`{"item":"ITEM","stream":"STREAM","timeline":1,"generation":1,"vault":{"location":"/v","key":"k"},
"site":{"provider":"p","settings":{}},"machine_id":"m","disks":[{"id":"vda","size":1048576}],"tuning":{}}`)
	for name, content := range map[string]string{"good": strings.ReplaceAll(good, "ITEM", "good"), "torn": good[:60], "empty": "", "zeroes": "\x00\x00\x00",
		"other": strings.ReplaceAll(good, "ITEM", "another"), "disks": strings.ReplaceAll(strings.ReplaceAll(good, "ITEM", "disks"), "1048576", "7")} {
		if err := os.WriteFile(filepath.Join(dir, "orders", name+".json"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := open()
	if err != nil {
		t.Fatal(err)
	}
	if len(s.jobs) != 1 || s.jobs["good"] == nil {
		t.Errorf("orders are %v", s.jobs)
	}
	if _, err := s.lookup("torn"); !errors.Is(err, ErrUnknownOrder) {
		t.Errorf("a damaged order: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "orders", "*.damaged")); len(left) != 5 {
		t.Errorf("set aside are %v", left)
	}
}
