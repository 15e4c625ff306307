package systest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/systest/guest"
	"github.com/holdfast-dr/holdfast/internal/systest/lab"
	"github.com/holdfast-dr/holdfast/internal/vault"

	holdfast "github.com/holdfast-dr/holdfast"
)

// replicaMoments is how many random moments are looked at.
const replicaMoments = 5

// TestGroupOfDatabases runs PostgreSQL with a streaming replica, and a third guest
// that writes down what it reads from the replica. At random moments of the group
// each database is brought up from its guest's disk as it was: the replica must not
// have a row that the primary has not, and the reader must not have seen one that
// the replica has not.
func TestGroupOfDatabases(t *testing.T) {
	ports := []int{freeTCP(t), freeTCP(t)}
	w := newWorld(t, worldOptions{postgres: true, sizeMB: 640,
		extra: append(nic("n0", fmt.Sprintf("listen=127.0.0.1:%d", ports[0])), option("pg=primary:eth0,10.9.1.1/24")...)})
	w.database("replica", "pg=replica:10.9.1.1:eth0,10.9.1.2/24:eth1,10.9.2.1/24",
		append(nic("n0", fmt.Sprintf("connect=127.0.0.1:%d", ports[0])), nic("n1", fmt.Sprintf("listen=127.0.0.1:%d", ports[1]))...))
	w.database("reader", "pg=reader:10.9.2.1:eth0,10.9.2.2/24", nic("n0", fmt.Sprintf("connect=127.0.0.1:%d", ports[1])))
	w.waitSerial(w.SerialPath(w.Primary, "reader"), `READ \d+`)
	names := []string{machine, "replica", "reader"}
	for _, name := range names {
		w.cli("protect", name, "--site", "primary", "--to", "recovery")
	}
	w.cli("group", "add", "town", names[0], names[1], names[2])
	file := filepath.Join(w.Dir, "town.yaml")
	w.must(os.WriteFile(file, []byte("name: town\ngroups: [{name: all, machines: [shop, replica, reader]}]\n"), 0o600))
	w.cli("plan", "apply", file)
	var g api.Group
	w.eventually("the group has moments in common", func() bool {
		w.must(w.JSON(t.Context(), &g, "group", "show", "town"))
		return g.Newest != nil
	})
	began := *g.Newest
	w.eventually("there are 15 seconds of them", func() bool {
		w.must(w.JSON(t.Context(), &g, "group", "show", "town"))
		return g.Newest != nil && g.Newest.Sub(began) > 15*time.Second
	})
	streams := map[string]*vault.Stream{}
	for _, name := range names {
		var it api.Item
		w.must(w.JSON(t.Context(), &it, "item", "show", name))
		s, err := lab.OpenStream(t.Context(), w.Vault, filepath.Join(w.State, "vault.key"), it.Stream.ID)
		w.must(err)
		streams[name] = s
	}
	ahead, seen := 0, map[int64]bool{}
	for range replicaMoments {
		at := began.Add(3*time.Second + rand.N(g.Newest.Sub(began)-3*time.Second)).UTC()
		points := w.planAt(at)
		rows := []int64{w.rowsAt(streams[machine], points[machine]), w.rowsAt(streams["replica"], points["replica"]), w.readAt(streams["reader"], points["reader"])}
		t.Logf("at %s: primary %d, replica %d, reader %d", at.Format("15:04:05.000"), rows[0], rows[1], rows[2])
		if rows[1] > rows[0] || rows[2] > rows[1] || rows[2] == 0 {
			t.Errorf("at %s the primary has row %d, the replica %d, and %d was read from that", at, rows[0], rows[1], rows[2])
		}
		seen[rows[0]] = true
		if before := w.planAt(at.Add(-3 * time.Second)); rows[2] > w.rowsAt(streams[machine], before[machine]) {
			ahead++ // of the primary three seconds before: this test can fail
		}
	}
	if len(seen) < replicaMoments/2 || ahead < replicaMoments/2 {
		t.Errorf("this shows nothing: %d different rows, %d ahead of a moment before", len(seen), ahead)
	}
	w.checkVault()
}

// option gives an option to a guest whose tree is that of others.
func option(text string) []string {
	return []string{"-fw_cfg", "name=opt/org.holdfast.guest,string=" + strings.ReplaceAll(text, ",", ",,")}
}

// database builds and starts a guest with PostgreSQL and a second disk.
func (w *world) database(name, opt string, extra []string) {
	w.t.Helper()
	disk, second := filepath.Join(w.Primary, name+".qcow2"), filepath.Join(w.Primary, name+".raw")
	w.must(guest.Build(w.t.Context(), guest.Options{Path: disk, SizeMB: 640, Format: "qcow2", Postgres: true}))
	w.must(os.WriteFile(second, nil, 0o644))
	w.must(os.Truncate(second, 1<<20))
	w.must(w.AddMachine(lab.Machine{Name: name, Disk: disk, Format: "qcow2", Second: second, Extra: append(extra, option(opt)...)}))
	w.must(w.StartMachine(w.t.Context(), name))
}

// planAt returns what the plan would bring its machines to at a time.
func (w *world) planAt(at time.Time) map[string]api.Point {
	w.t.Helper()
	var check api.PlanCheck
	w.must(w.JSON(w.t.Context(), &check, "plan", "check", "town", "--as", "unplanned", "--time", at.Format(time.RFC3339Nano)))
	out := map[string]api.Point{}
	for _, m := range check.Machines {
		if m.Point == nil {
			w.t.Fatalf("at %s machine %s has no point: %s", at, m.Item, m.Reason)
		}
		out[m.Item] = *m.Point
	}
	return out
}

// viewOf opens what a machine had at a point.
func (w *world) viewOf(s *vault.Stream, p api.Point) *vault.View {
	w.t.Helper()
	w.must(s.Refresh(w.t.Context()))
	pos, err := holdfast.ParsePosition(p.Position)
	w.must(err)
	v, err := s.View(w.t.Context(), holdfast.TimelineID(p.Timeline), pos)
	w.must(err)
	return v
}

// readAt returns what the reader has written down.
func (w *world) readAt(s *vault.Stream, p api.Point) int64 {
	w.t.Helper()
	d, err := w.viewOf(s, p).Disk("vdb")
	w.must(err)
	var b [512]byte
	w.must(d.ReadAt(w.t.Context(), b[:], 0))
	n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimRight(string(b[:]), "\x00")), 10, 64)
	if err != nil {
		return 0 // nothing yet
	}
	return n
}

var maxRow = regexp.MustCompile(`max = "(\d+)"`)

// rowsAt brings the database of a guest up from its disk, in a directory of its own,
// and returns its highest row.
func (w *world) rowsAt(s *vault.Stream, p api.Point) int64 {
	w.t.Helper()
	dir := w.t.TempDir()
	disk, part, root := filepath.Join(dir, "disk"), filepath.Join(dir, "part"), filepath.Join(dir, "root")
	run := func(ok int, name string, args ...string) string {
		w.t.Helper()
		cmd := exec.CommandContext(w.t.Context(), name, args...)
		cmd.Stdin = strings.NewReader("SELECT max(n) FROM acked\n")
		out, err := cmd.CombinedOutput()
		if err != nil && cmd.ProcessState.ExitCode() != ok {
			w.t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	w.must(lab.ExportView(w.t.Context(), w.viewOf(s, p), "vda", disk))
	run(0, "dd", "if="+disk, "of="+part, "bs=1M", "skip=1", "conv=sparse", "status=none")
	w.must(os.Remove(disk))
	run(1, "e2fsck", "-fy", part)
	w.must(os.Mkdir(root, 0o755))
	run(0, "debugfs", "-R", "rdump / "+root, part)
	w.must(os.Remove(part))
	_ = os.Remove(filepath.Join(root, "data/pg/standby.signal")) // the primary has none
	_ = os.Remove(filepath.Join(root, "data/pg/postmaster.pid"))
	run(0, "mkdir", "-p", filepath.Join(root, "dev/shm"), filepath.Join(root, "run"))
	run(0, "chmod", "1777", filepath.Join(root, "dev/shm"), filepath.Join(root, "run"))
	run(1, "mknod", "-m", "666", filepath.Join(root, "dev/null"), "c", "1", "3")
	out := run(0, "chroot", "--userspec=999:999", root, "/bin/busybox", "env", "-i", "PATH=/usr/bin:/bin", "HOME=/data",
		"/usr/lib/postgresql/15/bin/postgres", "--single", "-D", "/data/pg", "shop")
	w.must(os.RemoveAll(dir))
	m := maxRow.FindStringSubmatch(out)
	if m == nil {
		return 0
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	w.must(err)
	return n
}
