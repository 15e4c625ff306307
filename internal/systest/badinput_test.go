package systest

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/systest/lab"
)

// fails runs a command that must fail with the exit code, say all of the words,
// and give advice.
func (w *world) fails(code int, words []string, args ...string) {
	w.t.Helper()
	cmd := exec.CommandContext(w.t.Context(), w.Binary, args...)
	cmd.Env = w.Env()
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != code {
		w.t.Errorf("holdfast %s: %v, want exit code %d\n%s", strings.Join(args, " "), err, code, out)
		return
	}
	for _, word := range append(words, "hint: ") {
		if !strings.Contains(string(out), word) {
			w.t.Errorf("holdfast %s does not say %q:\n%s", strings.Join(args, " "), word, out)
		}
	}
}

// finding returns the finding of a code that the item has now, or nil.
func (w *world) finding(code string) *api.Finding {
	w.t.Helper()
	it := w.item()
	i := slices.IndexFunc(it.Health.Findings, func(f api.Finding) bool { return f.Code == code })
	if i < 0 {
		return nil
	}
	return &it.Health.Findings[i]
}

// goesOn waits until replication is continuous and up to date.
func (w *world) goesOn() {
	w.t.Helper()
	w.eventually("replication is continuous again", func() bool {
		r := w.item().Replication
		return r != nil && r.Mode == "continuous" && r.RPOSeconds != nil && *r.RPOSeconds < 2
	})
}

// writesOn waits until the guest has had more records acknowledged.
func (w *world) writesOn(while string) {
	w.t.Helper()
	acked := w.acknowledged()
	w.eventually("the guest writes on "+while, func() bool { return w.acknowledged() > acked+3 })
}

// TestBadInput asks for what cannot be done, with a running machine: each gets
// an error with cause and advice, and none of it disturbs the replication.
func TestBadInput(t *testing.T) {
	w := newWorld(t, worldOptions{})
	w.must(w.AddMachine(lab.Machine{Name: "off", Disk: w.disk, Format: w.format}))
	w.define(w.Primary, "bare")
	w.must(os.WriteFile(filepath.Join(w.Primary, "torn.json"), []byte(`{"name":"torn","disks":[{"id":`), 0o644))
	sites := []string{"--site", "primary", "--to", "recovery"}
	with := func(args ...string) []string { return append(args, sites...) }
	w.fails(1, []string{"torn"}, with("protect", "torn")...)
	w.fails(10, []string{"nobody", "primary"}, with("protect", "nobody")...)
	w.fails(11, []string{"off", "off"}, with("protect", "off")...)
	w.fails(11, []string{"bare", "no disks"}, with("protect", "bare")...)
	w.fails(10, []string{"nowhere"}, "protect", machine, "--site", "primary", "--to", "nowhere")
	w.fails(1, []string{"same"}, "protect", machine, "--site", "primary", "--to", "primary")
	w.fails(10, []string{machine}, "failover", machine)
	w.fails(10, []string{machine}, "item", "show", machine)
	w.protect()
	w.fails(11, []string{machine, "protected already"}, with("protect", machine)...)
	w.fails(2, []string{"time"}, "failover", machine, "--time", "yesterday")
	w.fails(10, []string{"reach back"}, "failover", machine, "--time", "2001-01-01T00:00:00Z")
	w.define(w.Recovery, "taken")
	w.fails(1, []string{"taken"}, "failover", machine, "--name", "taken")
	if it := w.item(); it.State != "protected" {
		t.Errorf("after a failover that could not be, the item is %s", it.State)
	}
	w.garbage()
	w.goesOn()
	w.pause()
	w.equalToSource(w.drained())
	w.checkVault()
}

// define writes a machine without disks into a site.
func (w *world) define(site, name string) {
	w.t.Helper()
	path := filepath.Join(site, name)
	w.must(os.WriteFile(path+".json", fmt.Appendf(nil, `{"name":%q,"id":"11111111-2222-4333-8444-0000000000aa","cpus":1,"memory":268435456,
"disks":[],"nics":[],"qmp":%q,"pidfile":%q}`, name, path+".qmp", path+".pid"), 0o644))
}

// garbage says what is no NBD to every socket of the gateway.
func (w *world) garbage() {
	w.t.Helper()
	sockets, err := filepath.Glob(filepath.Join(w.State, "gateway", "*.sock"))
	w.must(err)
	views, _ := filepath.Glob(filepath.Join(w.State, "run", "*.sock"))
	sockets = append(sockets, views...)
	if len(sockets) < 3 {
		w.t.Fatalf("sockets are %v", sockets)
	}
	hello := append([]byte{0, 0, 0, 3}, "IHAVEOPT\x00\x00\x00\x07\xff\xff\xff\xff"...) // an option of 4 GiB
	for _, s := range sockets {
		for _, said := range [][]byte{nil, {0}, []byte("GET / HTTP/1.1\r\n\r\n"), hello, bytes.Repeat([]byte{0xff}, 1<<16), bytes.Repeat([]byte("{"), 1<<16)} {
			c, err := net.DialTimeout("unix", s, time.Second)
			if err != nil {
				w.t.Errorf("%s: %v", s, err)
				continue
			}
			_, _ = c.Write(said)
			_ = c.Close()
		}
	}
	w.writesOn("while garbage comes")
}

// TestVaultFull fills the vault's file system under a running replication, then
// makes it read-only: sealing stops, never the guest, and goes on by itself.
func TestVaultFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it mounts a small file system, in a namespace of its own: that needs root")
	}
	w := newWorld(t, worldOptions{vaultSize: "200m"})
	w.protect()
	fill := filepath.Join(w.vaultDir, "fill")
	full := func() error {
		f, err := os.OpenFile(fill, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		for err == nil {
			_, err = f.Write(make([]byte, 4096))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			return err
		}
		return nil
	}
	w.must(full())
	w.eventually("the full vault is a finding", func() bool {
		w.must(full()) // what a rejected upload gave back
		f := w.finding("HF1201")
		return f != nil && f.Advice != "" && f.Severity == "critical"
	})
	w.writesOn("while the vault is full")
	w.must(os.Remove(fill))
	w.goesOn()
	w.eventually("the finding is gone", func() bool { return w.finding("HF1201") == nil })

	remount := func(how string) {
		out, err := exec.Command("nsenter", "--mount", "--target", fmt.Sprint(w.ServerPID()), "mount", "-o", "remount,"+how, w.Vault).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	remount("ro")
	w.eventually("the read-only vault is a finding", func() bool {
		f := w.finding("HF1202")
		return f != nil && f.Advice != ""
	})
	w.writesOn("while the vault is read-only")
	remount("rw")
	w.goesOn()
	w.pause()
	w.equalToSource(w.drained())
	w.checkVault()
}

// TestDamagedVault damages a segment of a protected machine's stream: verify
// names it, a failover that needs it is refused with the machine still
// protected, and one to before it works.
func TestDamagedVault(t *testing.T) {
	w := newWorld(t, worldOptions{})
	w.protect()
	w.eventually("there are segments after the first point", func() bool { return w.acknowledged() > 20 })
	first := w.item().Replication.Newest
	time.Sleep(3 * time.Second) // load
	w.must(w.KillMachine(machine))
	segments, err := filepath.Glob(filepath.Join(w.Vault, "streams", "*", "00000001", "*.seg"))
	w.must(err)
	if len(segments) < 5 || first == nil {
		t.Fatalf("%d segments", len(segments))
	}
	victim := segments[len(segments)-2]
	b, err := os.ReadFile(victim)
	w.must(err)
	b[40] ^= 1
	w.must(os.Chmod(victim, 0o600))
	w.must(os.WriteFile(victim, b, 0o600))
	w.fails(1, []string{filepath.Base(victim)}, "vault", "verify")
	w.must(w.KillServer()) // the new one knows nothing of what was read before
	w.must(w.StartServer(t.Context()))
	w.fails(1, []string{"damage", filepath.Base(victim), "--time "}, "failover", machine)
	if it := w.item(); it.State != "protected" {
		t.Errorf("after a failover that could not be, the item is %s", it.State)
	}
	w.cli("failover", machine, "--time", first.Time.Format(time.RFC3339Nano))
	serial, err := w.RecoveredSerial()
	w.must(err)
	w.waitSerial(serial, `VERIFY .*gaps=0 bad=0`)
}
