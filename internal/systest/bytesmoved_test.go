package systest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/api"
)

// TestBytesMoved writes scattered over a disk of 10 GiB while the machine works
// at the recovery site: what goes to the vault, and from there to the original
// disks, is what was written, not the disk. The original wrote something of its
// own meanwhile, which is kept and rewound.
func TestBytesMoved(t *testing.T) {
	const (
		size   = 10 << 30
		change = 100 << 20
		own    = 8 << 20
		slack  = 10 << 20 // what the guest's own records come to
	)
	w := newWorld(t, worldOptions{second: size, cmdline: "rate=5"})
	w.protect()
	w.cli("failover", machine)
	w.eventually("nothing depends on the vault any more", func() bool { r := w.item().Recovery; return r != nil && !r.NeedsView })
	w.cli("commit", machine)
	// The original ran on for a while after the item had left it.
	scatter(t, filepath.Join(w.Primary, "second.raw"), own, 1<<20, 3)

	began := time.Now()
	w.cli("reprotect", machine)
	t.Logf("reprotect of 10 GiB: %s", time.Since(began).Round(time.Millisecond))
	sent := w.item().Replication.SentBytes
	if sent > slack {
		t.Errorf("reprotect has sent %d bytes, although nothing was written", sent)
	}
	inGuest(t, filepath.Join(filepath.Dir(w.newestRecovered()), "qga.sock"), fmt.Sprintf(`dd if=/dev/urandom of=/tmp/noise bs=256k count=1
for i in $(seq %d); do dd if=/tmp/noise of=/dev/vdb bs=256k count=1 seek=$((i * 97 %% %d)) conv=notrunc,fsync; done 2>/dev/null
echo SCATTERED >/dev/ttyS0`, change/(256<<10), size/(256<<10)))
	w.waitSerial(w.newestRecovered(), "SCATTERED")
	var job api.Job
	w.cli("point", "create", machine)
	if sent = w.item().Replication.SentBytes - sent; sent > change*11/10+slack {
		t.Errorf("%d bytes were sent after %d had been written", sent, change)
	}
	began = time.Now()
	w.must(w.JSON(t.Context(), &job, "failback", machine))
	r := job.Result
	if r == nil || !r.Proved || r.MovedBytes == nil {
		t.Fatalf("the failback: %+v", job)
	}
	if moved := *r.MovedBytes; moved < change || moved > (change+own)*11/10+slack {
		t.Errorf("%d bytes were written at home after %d had been written there and %d here", moved, change, own)
	}
	t.Logf("failback of 10 GiB: %s; %d MiB written there, %d MiB sent, %d MiB written at home", time.Since(began).Round(time.Millisecond), change>>20, sent>>20, *r.MovedBytes>>20)
	w.checkVault()
}

// scatter writes blocks over a file.
func scatter(t *testing.T, path string, total, block, step int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	p := []byte(strings.Repeat("written apart. ", int(block)/15+1))[:block]
	for i := range total / block {
		if _, err := f.WriteAt(p, i*step*block*331%(info.Size()-block)/4096*4096); err != nil {
			t.Fatal(err)
		}
	}
}

// inGuest has a guest's agent run a script.
func inGuest(t *testing.T, socket, script string) {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	args, err := json.Marshal(map[string]any{"path": "/bin/sh", "arg": []string{"-c", script}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(c, "{\"execute\":\"guest-exec\",\"arguments\":%s}\n", args); err != nil {
		t.Fatal(err)
	}
	if answer, err := bufio.NewReader(c).ReadString('\n'); err != nil || !strings.Contains(answer, "pid") {
		t.Fatalf("guest-exec: %q, %v", answer, err)
	}
}
