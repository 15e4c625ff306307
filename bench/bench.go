package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/gateway"
	"github.com/holdfast-dr/holdfast/internal/nbd"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/recovery"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// bench has a disk of one kind of content, and the vault that it goes into.
type bench struct {
	dir, kind string
	size      int64
	source    string // raw file
	qcow2     string
	key       vault.Key
	vault     *vault.Vault
	gateway   *gateway.Ingest
	control   *http.Client
	cancel    context.CancelFunc
	done      chan error
	last      holdfast.StreamID // the newest stream that has the whole disk
}

func newBench(ctx context.Context, o options, kind string) (*bench, error) {
	b := &bench{dir: filepath.Join(o.dir, kind), kind: kind, size: int64(o.sizeMB) << 20, done: make(chan error, 1)}
	b.source, b.qcow2 = filepath.Join(b.dir, "source.raw"), filepath.Join(b.dir, "source.qcow2")
	if err := os.MkdirAll(filepath.Join(b.dir, "vault"), 0o755); err != nil {
		return nil, err
	}
	if err := b.fill(); err != nil {
		return nil, err
	}
	if err := command(ctx, "qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", b.source, b.qcow2); err != nil {
		return nil, err
	}
	store, err := objstore.NewDir(vfs.OS, filepath.Join(b.dir, "vault"))
	if err != nil {
		return nil, err
	}
	if b.key, err = vault.NewKey(); err != nil {
		return nil, err
	}
	if b.vault, err = vault.Create(ctx, store, vault.CreateOptions{Key: b.key, Now: time.Now()}); err != nil {
		return nil, err
	}
	return b, b.start(ctx)
}

// fill writes the source's content.
func (b *bench) fill() error {
	rng := rand.New(rand.NewPCG(1, 1))
	words := []string{"recovery ", "of a machine ", "at another site, ", "in seconds; ", "0123456789 ", "lost and found\n"}
	f, err := os.Create(b.source)
	if err != nil {
		return err
	}
	buf := make([]byte, 0, 1<<20)
	for off := int64(0); off < b.size; off += 1 << 20 {
		buf = buf[:0]
		if b.kind == "zeros" {
			buf = append(buf, make([]byte, 1<<20)...)
		}
		for len(buf) < 1<<20 {
			if b.kind == "text" {
				buf = fmt.Appendf(buf, "%s%x ", words[rng.IntN(len(words))], rng.Uint32())
				continue
			}
			buf = append(buf, byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32()))
		}
		if _, err := f.Write(buf[:1<<20]); err != nil {
			return err
		}
	}
	return f.Close()
}

// start starts a gateway's ingest, with its control socket.
func (b *bench) start(ctx context.Context) error {
	sock := filepath.Join(b.dir, "control.sock")
	l, err := net.Listen("unix", sock)
	if err != nil {
		return err
	}
	ctx, b.cancel = context.WithCancel(ctx)
	b.gateway = gateway.NewIngest(gateway.IngestOptions{Dir: filepath.Join(b.dir, "gw"), SocketDir: filepath.Join(b.dir, "nbd")})
	go func() { b.done <- b.gateway.Run(ctx, l) }()
	b.control = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", sock)
	}}}
	for range 100 { // until it runs
		if _, err := b.ask(ctx, "GET", "/heartbeat"); err == nil {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.New("the ingest does not answer")
}

func (b *bench) close() error {
	b.cancel()
	return <-b.done
}

func (b *bench) ask(ctx context.Context, method, path string) (st gateway.StreamStatus, err error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://ingest"+path, strings.NewReader("{}"))
	if err != nil {
		return st, err
	}
	resp, err := b.control.Do(req)
	if err != nil {
		return st, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return st, fmt.Errorf("%s %s: %s", method, path, resp.Status)
	}
	return st, json.NewDecoder(resp.Body).Decode(&st)
}

func (b *bench) contests() []contest {
	return []contest{
		{"copy " + b.kind + " data in", "MiB/s", []side{
			{"gateway, in the vault", b.ingest}, {"nbdcopy to qemu-nbd, raw, flushed", b.peerIn}, {"cp and sync", b.copyFile}}},
		{"read " + b.kind + " data out, 1 MiB", "MiB/s", []side{{"view of the vault", b.viewOut}, {"qemu-nbd, qcow2", b.peerOut}}},
		{"read " + b.kind + " data out, 4 KiB at random", "reads/s", []side{{"view of the vault", b.viewRandom}, {"qemu-nbd, qcow2", b.peerRandom}}},
	}
}

// ingest copies the disk into a new stream, and counts until the vault has all.
func (b *bench) ingest(ctx context.Context) (float64, error) {
	id := holdfast.NewStreamID()
	if _, err := b.vault.CreateStream(ctx, vault.StreamOptions{ID: id, Disks: []vault.Disk{{ID: "vda", Size: b.size}}, Now: time.Now()}); err != nil {
		return 0, err
	}
	rep, err := b.gateway.Open(ctx, gateway.OpenRequest{
		Stream: id, Timeline: 1, Generation: 1, Disks: []gateway.DiskRef{{ID: "vda", Size: b.size}},
		Vault: gateway.VaultRef{Location: objstore.Location(filepath.Join(b.dir, "vault")), Key: b.key.String()},
	})
	if err != nil {
		return 0, err
	}
	defer b.gateway.Close(id)
	if _, err := b.ask(ctx, "POST", "/streams/"+id.String()+"/begin"); err != nil {
		return 0, err
	}
	time.Sleep(300 * time.Millisecond) // until it takes a source
	began := time.Now()
	if err := command(ctx, "nbdcopy", "--connections=1", b.source, "nbd+unix:///vda?socket="+rep.Socket); err != nil {
		return 0, err
	}
	// It answers once the vault has everything that has arrived.
	if _, err := b.ask(ctx, "POST", "/streams/"+id.String()+"/point"); err != nil {
		return 0, err
	}
	b.last = id
	return perSecond(b.size, time.Since(began)), nil
}

func (b *bench) peerIn(ctx context.Context) (float64, error) {
	out := filepath.Join(b.dir, "peer.raw")
	defer os.Remove(out)
	if err := os.WriteFile(out, nil, 0o644); err != nil {
		return 0, err
	}
	if err := os.Truncate(out, b.size); err != nil {
		return 0, err
	}
	sock, stop, err := b.qemuNBD(ctx, "raw", out)
	if err != nil {
		return 0, err
	}
	defer stop()
	began := time.Now()
	err = command(ctx, "nbdcopy", "--flush", "--connections=1", b.source, "nbd+unix:///?socket="+sock)
	return perSecond(b.size, time.Since(began)), err
}

func (b *bench) copyFile(ctx context.Context) (float64, error) {
	out := filepath.Join(b.dir, "copy.raw")
	defer os.Remove(out)
	began := time.Now()
	if err := command(ctx, "cp", b.source, out); err != nil {
		return 0, err
	}
	err := command(ctx, "sync", out)
	return perSecond(b.size, time.Since(began)), err
}

// qemuNBD serves a file as the peer does.
func (b *bench) qemuNBD(ctx context.Context, format, file string) (sock string, stop func(), err error) {
	sock = filepath.Join(b.dir, "peer.sock")
	_ = os.Remove(sock)
	cmd := exec.CommandContext(ctx, "qemu-nbd", "-t", "-e", "8", "-f", format, "-k", sock, file)
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	stop = func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
	for range 200 {
		if c, err := net.Dial("unix", sock); err == nil {
			return sock, stop, c.Close()
		}
		time.Sleep(10 * time.Millisecond)
	}
	stop()
	return "", nil, errors.New("qemu-nbd does not come up")
}

// withView serves the newest stream's view as a failover does.
func (b *bench) withView(ctx context.Context, f func(*nbd.Client) (float64, error)) (float64, error) {
	s, err := b.vault.OpenStream(ctx, b.last)
	if err != nil {
		return 0, err
	}
	if err := s.Refresh(ctx); err != nil {
		return 0, err
	}
	view, err := s.View(ctx, 1, s.Timelines()[0].Tail.Position)
	if err != nil {
		return 0, err
	}
	image, err := view.Disk("vda")
	if err != nil {
		return 0, err
	}
	sock := filepath.Join(b.dir, "views.sock")
	e := recovery.NewExports(recovery.Options{Socket: sock})
	if err := e.Add("vda", image); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	defer func() { cancel(); <-done }()
	return b.withClient(ctx, sock, "vda", f)
}

func (b *bench) withClient(ctx context.Context, sock, export string, f func(*nbd.Client) (float64, error)) (float64, error) {
	var c *nbd.Client
	var err error
	for range 100 {
		if c, err = nbd.Dial(ctx, "unix", sock, nbd.DialOptions{Export: export}); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		return 0, err
	}
	v, err := f(c)
	return v, errors.Join(err, c.Close())
}

func (b *bench) withPeer(ctx context.Context, f func(*nbd.Client) (float64, error)) (float64, error) {
	sock, stop, err := b.qemuNBD(ctx, "qcow2", b.qcow2)
	if err != nil {
		return 0, err
	}
	defer stop()
	return b.withClient(ctx, sock, "", f)
}

// sink takes data and drops it, after having compared its beginning.
type sink struct{ size int64 }

func (s sink) Size() int64                                    { return s.size }
func (s sink) WriteAt(context.Context, []byte, int64) error   { return nil }
func (s sink) Zero(context.Context, block.Extent, bool) error { return nil }
func (s sink) Flush(context.Context) error                    { return nil }
func (s sink) Close() error                                   { return nil }

func (b *bench) sequential(ctx context.Context) func(*nbd.Client) (float64, error) {
	return func(c *nbd.Client) (float64, error) {
		began := time.Now()
		_, err := block.Copy(ctx, sink{b.size}, c, block.CopyOptions{})
		return perSecond(b.size, time.Since(began)), err
	}
}

// random reads 4 KiB blocks, one after the other, and checks a few of them.
func (b *bench) random(ctx context.Context) func(*nbd.Client) (float64, error) {
	return func(c *nbd.Client) (float64, error) {
		f, err := os.Open(b.source)
		if err != nil {
			return 0, err
		}
		defer f.Close()
		rng := rand.New(rand.NewPCG(2, 2))
		p, want := make([]byte, 4096), make([]byte, 4096)
		const reads = 5000
		began := time.Now()
		for i := range reads {
			off := rng.Int64N(b.size/4096) * 4096
			if err := c.ReadAt(ctx, p, off); err != nil {
				return 0, err
			}
			if i%500 != 0 {
				continue
			}
			if _, err := f.ReadAt(want, off); err != nil || !bytes.Equal(p, want) {
				return 0, errors.Join(err, fmt.Errorf("what was read at %d is not what was written", off))
			}
		}
		return reads / time.Since(began).Seconds(), nil
	}
}

func (b *bench) viewOut(ctx context.Context) (float64, error) {
	return b.withView(ctx, b.sequential(ctx))
}
func (b *bench) peerOut(ctx context.Context) (float64, error) {
	return b.withPeer(ctx, b.sequential(ctx))
}
func (b *bench) viewRandom(ctx context.Context) (float64, error) {
	return b.withView(ctx, b.random(ctx))
}
func (b *bench) peerRandom(ctx context.Context) (float64, error) {
	return b.withPeer(ctx, b.random(ctx))
}

func command(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}
