package nbd_test

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/nbd"
)

// need skips the test if a tool is not installed.
func need(t testing.TB, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
}

// run runs a command and returns its output; it fails the test if the command
// does.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func unixURI(path, export string) string { return "nbd+unix:///" + export + "?socket=" + path }

func TestInteropQemuIO(t *testing.T) {
	t.Parallel()
	need(t, "qemu-io")
	d := newDisk(64 << 20)
	s, path := serve(t, nbd.ServerOptions{}, &nbd.Export{Name: "d0", Backend: d})
	out := run(t, "qemu-io", "-f", "raw", "-d", "unmap", "-t", "none", unixURI(path, "d0"),
		"-c", "write -P 0x5a 0 1M", "-c", "write -P 0x33 -f 1M 4k", "-c", "read -P 0x5a 0 1M", "-c", "write -z 64k 64k",
		"-c", "write -z -u 192k 64k", "-c", "discard 320k 64k", "-c", "flush", "-c", "read -P 0 64k 64k",
		"-c", "read -P 0x5a 128k 64k", "-c", "read -P 0x33 1M 4k", "-c", "map")
	if strings.Contains(out, "fail") {
		t.Errorf("qemu-io: %s", out)
	}
	want := bytes.Repeat([]byte{0x5a}, 1<<20)
	clear(want[64<<10 : 128<<10])
	clear(want[192<<10 : 256<<10])
	clear(want[320<<10 : 384<<10])
	if got := d.content()[:1<<20]; !bytes.Equal(got, want) {
		t.Error("the disk has not what was written")
	}
	log := strings.Join(d.log(), "\n")
	for _, call := range []string{"write-fua 1048576+4096", "zero 65536+65536", "punch 196608+65536", "punch 327680+65536", "flush"} {
		if !strings.Contains(log, call) {
			t.Errorf("no call %q in\n%s", call, log)
		}
	}
	if st := s.ExportStats("d0"); st.Connections != 0 || st.BytesIn != 1<<20+4096 || st.Unanswered != 0 {
		t.Errorf("stats: %+v", st)
	}
}
