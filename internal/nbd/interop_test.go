package nbd_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/block"
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

// start runs a server of others until the test ends, and returns the path of
// its socket, which the arguments name as SOCKET.
func start(t testing.TB, name string, args ...string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "SOCKET", path)
	}
	cmd := exec.Command(name, args...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s %s: %s", name, strings.Join(args, " "), said.String())
		}
	})
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		nc, err := net.Dial("unix", path)
		if err == nil {
			_ = nc.Close()
			return path
		}
		if time.Now().After(end) {
			t.Fatalf("%s does not listen: %v", name, err)
		}
	}
}

func unixURI(path, export string) string { return "nbd+unix:///" + export + "?socket=" + path }

// sparseFile makes an image of random data and holes, and returns its content.
func sparseFile(t testing.TB, size int64) (path string, content []byte) {
	t.Helper()
	path, content = filepath.Join(t.TempDir(), "disk"), make([]byte, size)
	f, err := os.Create(path)
	if err == nil {
		err = f.Truncate(size)
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	for off := int64(0); err == nil && off < size; off += (64 << 10) * (1 + rnd.Int64N(8)) {
		p := content[off:min(off+64<<10, size)]
		for i := range p {
			p[i] = byte(rnd.Uint32())
		}
		_, err = f.WriteAt(p, off)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return path, content
}

func wantFile(t testing.TB, path string, want []byte) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not as it should be: %v", path, err)
	}
}

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

func TestInteropQemuImg(t *testing.T) {
	t.Parallel()
	need(t, "qemu-img")
	file, content := sparseFile(t, 16<<20)
	for _, backend := range []func(*disk) nbd.Backend{
		func(d *disk) nbd.Backend { return d }, func(d *disk) nbd.Backend { return plain{d} },
	} {
		d := newDisk(16 << 20)
		e := &nbd.Export{Name: "d", Backend: backend(d), MinBlock: 512, FastZero: true}
		_, path := serve(t, nbd.ServerOptions{}, e)
		uri := unixURI(path, "d")
		var about struct {
			Size int64 `json:"virtual-size"`
		}
		out := run(t, "qemu-img", "info", "--output=json", uri)
		if err := json.Unmarshal([]byte(out), &about); err != nil || about.Size != 16<<20 {
			t.Errorf("info: %v\n%s", err, out)
		}
		run(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", file, uri)
		if !bytes.Equal(d.content(), content) {
			t.Error("converted to the disk it is another")
		}
		run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", file, uri)
		var extents []struct {
			Start, Length int64
			Zero          bool
		}
		out = run(t, "qemu-img", "map", "-f", "raw", "--output=json", uri)
		if err := json.Unmarshal([]byte(out), &extents); err != nil {
			t.Errorf("map: %v\n%s", err, out)
		}
		at, zeroes := int64(0), int64(0)
		for _, x := range extents {
			if x.Start != at {
				t.Errorf("map has a gap at %d", at)
			}
			if at += x.Length; x.Zero {
				zeroes += x.Length
				if len(bytes.Trim(content[x.Start:at], "\x00")) > 0 {
					t.Errorf("map has zeroes at %d, where data is", x.Start)
				}
			}
		}
		if _, mapped := e.Backend.(nbd.StatusMapper); at != 16<<20 || (zeroes > 0) != mapped {
			t.Errorf("map reaches to %d with %d of zeroes", at, zeroes)
		}
		back := filepath.Join(t.TempDir(), "back")
		run(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", uri, back)
		wantFile(t, back, content)
	}
}

// TestInteropTCP has QEMU's and libnbd's tools over TCP.
func TestInteropTCP(t *testing.T) {
	t.Parallel()
	need(t, "qemu-img", "nbdcopy")
	file, content := sparseFile(t, 8<<20)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := newDisk(8 << 20)
	serveListener(t, l, nbd.ServerOptions{}, &nbd.Export{Backend: d, MultiConn: true})
	uri := "nbd://" + l.Addr().String()
	run(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", file, uri)
	back := filepath.Join(t.TempDir(), "back")
	run(t, "nbdcopy", uri, back)
	wantFile(t, back, content)
	c, err := nbd.Dial(t.Context(), "tcp", l.Addr().String(), nbd.DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	checkClient(t, c)
	_ = c.Close()
}

func TestInteropLibnbd(t *testing.T) {
	t.Parallel()
	need(t, "nbdinfo", "nbdcopy")
	file, content := sparseFile(t, 32<<20)
	d := newDisk(32 << 20)
	_, path := serve(t, nbd.ServerOptions{}, &nbd.Export{Name: "d", Description: "the disk", Backend: d, MultiConn: true, PreferredBlock: 64 << 10},
		&nbd.Export{Name: "ro", Backend: d, ReadOnly: true})
	uri := unixURI(path, "d")
	run(t, "nbdcopy", "--connections=4", "--requests=16", "--flush", file, uri)
	if !bytes.Equal(d.content(), content) {
		t.Error("copied to the disk it is another")
	}
	for _, how := range [][]string{{"--connections=4"}, {"--synchronous"}, {"--no-extents", "--request-size=1048576"}} {
		back := filepath.Join(t.TempDir(), "back")
		run(t, "nbdcopy", append(how, uri, back)...)
		wantFile(t, back, content)
	}
	out := run(t, "nbdinfo", "--json", uri)
	var about struct {
		Protocol   string
		Structured bool
		Exports    []struct {
			Name     string `json:"export-name"`
			About    string `json:"description"`
			Contexts []string
			Size     int64 `json:"export-size"`
			Multi    bool  `json:"can_multi_conn"`
			Fast     bool  `json:"can_fast_zero"`
			DF       bool  `json:"can_df"`
			Best     int64 `json:"block_size_preferred"`
		}
	}
	if err := json.Unmarshal([]byte(out), &about); err != nil || len(about.Exports) != 1 {
		t.Fatalf("nbdinfo: %v\n%s", err, out)
	}
	if e := about.Exports[0]; about.Protocol != "newstyle-fixed" || !about.Structured || e.Name != "d" || e.About != "the disk" || e.Size != 32<<20 ||
		!e.Multi || e.Fast || !e.DF || e.Best != 64<<10 || len(e.Contexts) != 1 {
		t.Errorf("nbdinfo: %s", out)
	}
	if out := run(t, "nbdinfo", "--map", uri); !strings.Contains(out, "hole,zero") || !strings.Contains(out, "data") {
		t.Errorf("nbdinfo --map: %s", out)
	}
	if out := run(t, "nbdinfo", "--list", unixURI(path, "")); strings.Count(out, "export=") != 2 {
		t.Errorf("nbdinfo --list: %s", out)
	}
	if err := exec.Command("nbdinfo", "--is", "read-only", unixURI(path, "ro")).Run(); err != nil {
		t.Errorf("nbdinfo --is read-only: %v", err)
	}
	if err := exec.Command("nbdinfo", "--size", unixURI(path, "none")).Run(); err == nil {
		t.Error("nbdinfo finds an export that is not there")
	}
}

func TestInteropFio(t *testing.T) {
	t.Parallel()
	need(t, "fio")
	d := newDisk(16 << 20)
	_, path := serve(t, nbd.ServerOptions{}, &nbd.Export{Name: "d", Backend: d})
	run(t, "fio", "--name=verify", "--ioengine=nbd", "--uri="+unixURI(path, "d"), "--rw=randrw", "--bsrange=512-128k", "--size=16M",
		"--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--fsync=32", "--randseed=1", "--aux-path="+t.TempDir())
}

// checkClient writes, zeroes, reads and maps through a client and compares
// with a model.
func checkClient(t testing.TB, c *nbd.Client) {
	t.Helper()
	ctx := t.Context()
	model := make([]byte, c.Size())
	for off := int64(0); off < c.Size(); off += 1 << 20 {
		if err := c.ReadAt(ctx, model[off:min(off+1<<20, c.Size())], off); err != nil {
			t.Fatal(err)
		}
	}
	rnd := rand.New(rand.NewPCG(5, 6))
	for i := range 60 {
		off := rnd.Int64N(c.Size()/4096-64) * 4096
		n := 4096 * (1 + rnd.Int64N(64))
		var err error
		switch i % 4 {
		case 0, 1:
			for j := off; j < off+n; j++ {
				model[j] = byte(rnd.Uint32())
			}
			if err = c.WriteAt(ctx, model[off:off+n], off); i%4 == 1 {
				err = errors.Join(err, c.WriteThrough(ctx, model[off:off+4096], off))
			}
		case 2:
			clear(model[off : off+n])
			err = c.Zero(ctx, block.Extent{Offset: off, Length: n}, i%8 == 2)
		case 3:
			p := make([]byte, n-100)
			if err = c.ReadAt(ctx, p, off+50); err == nil && !bytes.Equal(p, model[off+50:off+n-50]) {
				err = errors.New("read differs")
			}
		}
		if err != nil {
			t.Fatalf("step %d at %d+%d: %v", i, off, n, err)
		}
	}
	if err := c.Flush(ctx); err != nil {
		t.Error(err)
	}
	if err := checkMap(ctx, c, block.Extent{Length: c.Size()}, model); err != nil {
		t.Error(err)
	}
	got := make([]byte, c.Size())
	if err := c.ReadAt(ctx, got, 0); err != nil || !bytes.Equal(got, model) {
		t.Errorf("read all: %v", err)
	}
}

func TestInteropQemuNbd(t *testing.T) {
	t.Parallel()
	need(t, "qemu-nbd", "qemu-img")
	file, content := sparseFile(t, 8<<20)
	path := start(t, "qemu-nbd", "-f", "raw", "-x", "d", "-D", "a disk", "-t", "-e", "4", "--discard=unmap", "-k", "SOCKET", file)
	c := dial(t, path, nbd.DialOptions{Export: "d"})
	if !c.HasMap() || c.Size() != 8<<20 || c.Description() != "a disk" || c.Flags()&nbd.FlagSendWriteZeroes == 0 {
		t.Errorf("map %t, %d bytes, %q", c.HasMap(), c.Size(), c.Description())
	}
	p := make([]byte, 8<<20)
	if err := c.ReadAt(t.Context(), p, 0); err != nil || !bytes.Equal(p, content) {
		t.Errorf("read: %v", err)
	}
	checkClient(t, c)
	if err := c.Trim(t.Context(), block.Extent{Length: 1 << 20}); err != nil {
		t.Error(err)
	}
	if list, err := nbd.List(t.Context(), "unix", path, nbd.DialOptions{}); err != nil || len(list) != 1 || list[0].Name != "d" {
		t.Errorf("list: %v, %v", list, err)
	}
	qcow := filepath.Join(t.TempDir(), "q")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", qcow, "8M")
	checkClient(t, dial(t, start(t, "qemu-nbd", "-f", "qcow2", "-t", "-k", "SOCKET", qcow), nbd.DialOptions{}))
}

// TestInteropNbdkit has servers that lack one thing each.
func TestInteropNbdkit(t *testing.T) {
	t.Parallel()
	need(t, "nbdkit")
	tests := []struct {
		name string
		args []string
		dial nbd.DialOptions
		flag nbd.Flags // that must not be there
		maps bool
	}{
		{name: "all", maps: true},
		{name: "no structured replies", args: []string{"--no-sr"}},
		{name: "no structured replies here", dial: nbd.DialOptions{SimpleReplies: true}},
		{name: "zeroes after the export", args: []string{"--mask-handshake=1"}, maps: true},
		{name: "no write zeroes", args: []string{"--filter=nozero"}, flag: nbd.FlagSendWriteZeroes, maps: true},
		{name: "write zeroes by the server", args: []string{"--filter=nozero", "zeromode=emulate"}, maps: true},
		{name: "no map", args: []string{"--filter=noextents"}, maps: true},
		{name: "no fua", args: []string{"--filter=fua"}, flag: nbd.FlagSendFUA, maps: true},
		{name: "blocks of 4096", args: []string{"--filter=blocksize-policy", "blocksize-minimum=4096", "blocksize-maximum=32K", "blocksize-preferred=16K", "blocksize-error-policy=error"}, maps: true},
		{name: "odd sizes", args: []string{"--filter=truncate", "truncate=8388099"}, maps: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			args := []string{"-f", "-U", "SOCKET", "memory", "8M"}
			for _, a := range tt.args { // options go before the plugin, its settings after it
				if strings.HasPrefix(a, "-") {
					args = append([]string{a}, args...)
				} else {
					args = append(args, a)
				}
			}
			c := dial(t, start(t, "nbdkit", args...), tt.dial)
			if c.HasMap() != tt.maps || c.Flags()&tt.flag != 0 {
				t.Errorf("map %t, flags %b", c.HasMap(), c.Flags())
			}
			checkClient(t, c)
		})
	}
}

func TestInteropNbdkitRefuses(t *testing.T) {
	t.Parallel()
	need(t, "nbdkit")
	path := start(t, "nbdkit", "-f", "-U", "SOCKET", "--mask-handshake=0", "memory", "1M")
	if _, err := nbd.Dial(t.Context(), "unix", path, nbd.DialOptions{}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("plain newstyle: %v", err)
	}
	path = start(t, "nbdkit", "-f", "-U", "SOCKET", "--oldstyle", "memory", "1M")
	if _, err := nbd.Dial(t.Context(), "unix", path, nbd.DialOptions{}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("oldstyle: %v", err)
	}
	path = start(t, "nbdkit", "-f", "-U", "SOCKET", "-r", "memory", "1M")
	if c := dial(t, path, nbd.DialOptions{}); !errors.Is(c.WriteAt(t.Context(), make([]byte, 512), 0), syscall.EPERM) {
		t.Error("write to a read-only export")
	}
	path = start(t, "nbdkit", "-f", "-U", "SOCKET", "--filter=error", "memory", "1M", "error-pwrite=ENOSPC", "error-pwrite-rate=100%")
	c := dial(t, path, nbd.DialOptions{})
	if err := c.WriteAt(t.Context(), make([]byte, 512), 0); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("no space: %v", err)
	}
	if err := c.ReadAt(t.Context(), make([]byte, 512), 0); err != nil {
		t.Errorf("after an error: %v", err)
	}
}

func TestInteropTLS(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	file, content := sparseFile(t, 4<<20)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := newDisk(4 << 20)
	serveListener(t, l, nbd.ServerOptions{TLS: p.server, RequireTLS: true}, &nbd.Export{Name: "d", Backend: d, MultiConn: true})
	port := l.Addr().(*net.TCPAddr).Port

	t.Run("libnbd", func(t *testing.T) {
		need(t, "nbdcopy", "nbdinfo")
		uri := fmt.Sprintf("nbds://localhost:%d/d?tls-certificates=%s", port, p.dir)
		run(t, "nbdcopy", file, uri)
		if !bytes.Equal(d.content(), content) {
			t.Error("copied to the disk it is another")
		}
		if out := run(t, "nbdinfo", uri); !strings.Contains(out, "with TLS") && !strings.Contains(out, "using TLS") {
			t.Errorf("nbdinfo: %s", out)
		}
		if err := exec.Command("nbdinfo", fmt.Sprintf("nbd://localhost:%d/d", port)).Run(); err == nil {
			t.Error("nbdinfo gets in without TLS")
		}
	})
	t.Run("qemu-img", func(t *testing.T) {
		need(t, "qemu-img")
		back := filepath.Join(t.TempDir(), "back")
		image := fmt.Sprintf("driver=nbd,host=localhost,port=%d,export=d,tls-creds=t", port)
		creds := "tls-creds-x509,id=t,endpoint=client,dir=" + p.dir
		run(t, "qemu-img", "convert", "--object", creds, "--image-opts", "-O", "raw", image, back)
		wantFile(t, back, d.content())
	})
	t.Run("client of nbdkit", func(t *testing.T) {
		need(t, "nbdkit")
		path := start(t, "nbdkit", "-f", "-U", "SOCKET", "--tls=require", "--tls-verify-peer", "--tls-certificates="+p.dir, "memory", "8M")
		checkClient(t, dial(t, path, nbd.DialOptions{TLS: p.client}))
		if _, err := nbd.Dial(t.Context(), "unix", path, nbd.DialOptions{}); !errors.Is(err, nbd.ErrTLSRequired) {
			t.Errorf("without TLS: %v", err)
		}
	})
	t.Run("client of a server without TLS", func(t *testing.T) {
		need(t, "nbdkit")
		path := start(t, "nbdkit", "-f", "-U", "SOCKET", "memory", "8M")
		if _, err := nbd.Dial(t.Context(), "unix", path, nbd.DialOptions{TLS: p.client}); err == nil {
			t.Error("the client went on in clear text")
		}
	})
}
