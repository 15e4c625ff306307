package guest_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/systest/guest"
)

// TestPostgresGuestSeesDamage loses one page of an index, as a replica would that
// missed a write: the database starts with it, and only the guest's check tells.
func TestPostgresGuestSeesDamage(t *testing.T) {
	needGuest(t)
	t.Parallel()
	disk := filepath.Join(t.TempDir(), "disk.raw")
	if err := guest.Build(t.Context(), guest.Options{Path: disk, SizeMB: 640, Postgres: true}); errors.Is(err, guest.ErrUnsupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const page = 8192
	if _, err := f.WriteAt(make([]byte, page), 1<<20+pageOffset(t, disk, 10)); err != nil {
		t.Fatal(err)
	}
	_, console := boot(t, disk, guest.FormatRaw)
	c := waitFor(t, console, "judgement on the database", func(c guest.Console) bool { return c.Verified })
	text, err := os.ReadFile(console)
	if err != nil {
		t.Fatal(err)
	}
	if c.Bad == 0 || c.Gaps != 0 || !strings.Contains(string(text), "pgbench_accounts_pkey") {
		t.Errorf("the guest found %+v in a database that misses a page of an index; it said:\n%s", c, text)
	}
}

// pageOffset returns where in the partition a page of pgbench_accounts_pkey is,
// which is known by its size.
func pageOffset(t *testing.T, disk string, page int) int64 {
	t.Helper()
	debugfs := func(command string) string {
		t.Helper()
		out, err := exec.Command("debugfs", "-R", command, disk+"?offset=1048576").Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	list := debugfs("ls -p /data/pg/base/16384")
	m := regexp.MustCompile(`(?m)^/(\d+)/\d+/\d+/\d+/\d+/2260992/`).FindStringSubmatch(list)
	if m == nil {
		t.Fatalf("no index of 276 pages in the database:\n%s", list)
	}
	const block = 4096
	n, err := strconv.ParseInt(strings.TrimSpace(debugfs(fmt.Sprintf("bmap <%s> %d", m[1], page*2))), 10, 64)
	if err != nil || n == 0 {
		t.Fatalf("page %d of inode %s is at block %d: %v", page, m[1], n, err)
	}
	return n * block
}
