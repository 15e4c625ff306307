package capture_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/capture"
	"github.com/holdfast-dr/holdfast/internal/nbd"
)

var errStale = errors.New("stale epoch")

// ingest is a gateway's ingest in memory.
type ingest struct {
	t      *testing.T
	socket string
	stop   func()

	// mu guards what follows.
	mu        sync.Mutex
	disks     map[string]*memory
	confirmed time.Time
	thawed    chan struct{} // closed unless frozen
	dieAt     int64         // ends all connections after so many bytes; 0: never
}

// memory is one disk of it.
type memory struct {
	in       *ingest
	data     []byte
	conn     *nbd.Conn
	epoch    uint64
	synced   bool
	received int64 // bytes written and zeroed since the last call of counted
	written  int64 // of these, written
}

var _ capture.Ingest = (*ingest)(nil)

func newIngest(t *testing.T, dir string, disks ...capture.Disk) *ingest {
	t.Helper()
	in := &ingest{t: t, socket: filepath.Join(dir, "ingest.sock"), disks: map[string]*memory{}, thawed: make(chan struct{})}
	close(in.thawed)
	for _, d := range disks {
		m := &memory{in: in, data: make([]byte, d.Size)}
		for i := range m.data {
			m.data[i] = 0xee // so that zeroes must be sent as well
		}
		in.disks[d.ID] = m
	}
	in.start()
	t.Cleanup(func() { in.thaw(); in.kill() })
	return in
}

// gated accepts nothing while the ingest is frozen.
type gated struct {
	net.Listener
	in *ingest
}

func (g gated) Accept() (net.Conn, error) {
	conn, err := g.Listener.Accept()
	if err == nil {
		<-g.in.gate()
	}
	return conn, err
}

func (in *ingest) gate() <-chan struct{} {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.thawed
}

// start begins to serve; kill ends it, as the death of the process would.
func (in *ingest) start() {
	in.t.Helper()
	_ = os.Remove(in.socket)
	l, err := net.Listen("unix", in.socket)
	if err != nil {
		in.t.Fatal(err)
	}
	srv := nbd.NewServer(nbd.ServerOptions{
		Lookup: func(_ context.Context, name string, _ *nbd.Conn) (*nbd.Export, error) {
			if m, ok := in.disks[name]; ok {
				return &nbd.Export{Name: name, Backend: m}, nil
			}
			return nil, nbd.ErrUnknownExport
		},
		Hooks: nbd.Hooks{OnConnect: in.connected, OnDisconnect: in.disconnected},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ctx, gated{l, in})
	}()
	in.stop = func() { cancel(); <-done }
}

func (in *ingest) kill() {
	if in.stop != nil {
		in.stop()
		in.stop = nil
	}
}

func (in *ingest) connected(_ context.Context, c *nbd.Conn) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	m := in.disks[c.Export]
	if m.conn != nil {
		return errors.New("connected already")
	}
	m.epoch++
	m.conn, m.synced = c, false
	return nil
}

func (in *ingest) disconnected(c *nbd.Conn, _ error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if m := in.disks[c.Export]; m.conn == c {
		m.epoch++
		m.conn, m.synced = nil, false
	}
}

// freeze makes the ingest answer nothing, as if its process were stopped.
func (in *ingest) freeze() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.thawed = make(chan struct{})
}

func (in *ingest) thaw() {
	in.mu.Lock()
	defer in.mu.Unlock()
	select {
	case <-in.thawed:
	default:
		close(in.thawed)
	}
}

func (in *ingest) Endpoint(disk string) (socket, export string) { return in.socket, disk }

func (in *ingest) Connection(_ context.Context, disk string) (capture.Connection, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	m := in.disks[disk]
	return capture.Connection{Epoch: m.epoch, Connected: m.conn != nil, Ready: true, At: time.Now()}, nil
}

func (in *ingest) lastConfirmed() time.Time {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.confirmed
}

func (in *ingest) Confirm(_ context.Context, at time.Time, epochs map[string]uint64) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	for disk, epoch := range epochs {
		if m := in.disks[disk]; m.epoch != epoch || m.conn == nil || !m.synced {
			return errStale
		}
	}
	in.confirmed = at
	return nil
}

func (in *ingest) Synced(_ context.Context, disk string, epoch uint64) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	m := in.disks[disk]
	if m.epoch != epoch || m.conn == nil {
		return errStale
	}
	m.synced = true
	return nil
}

func (in *ingest) Cut(_ context.Context, disk string) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	m := in.disks[disk]
	if m.conn != nil {
		m.conn.Drop(errors.New("cut"))
		m.epoch++
		m.conn, m.synced = nil, false
	}
	return nil
}

func (in *ingest) isSynced(disk string) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.disks[disk].synced
}

// counted returns the bytes received since the last call, and those of them
// that were not zeroes.
func (in *ingest) counted(disk string) (received, written int64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	m := in.disks[disk]
	received, written = m.received, m.written
	m.received, m.written = 0, 0
	return received, written
}

// content returns a copy of a part of a disk.
func (in *ingest) content(disk string, off, n int64) []byte {
	in.mu.Lock()
	defer in.mu.Unlock()
	return append([]byte(nil), in.disks[disk].data[off:off+n]...)
}

func (m *memory) Size() int64 { return int64(len(m.data)) }

// enter waits while the ingest is frozen, and dies where it shall.
func (m *memory) enter(ctx context.Context, n int64) error {
	select {
	case <-m.in.gate():
	case <-ctx.Done():
		return ctx.Err()
	}
	m.in.mu.Lock()
	defer m.in.mu.Unlock()
	if m.conn == nil || nbd.ConnID(ctx) != m.conn.ID {
		return nbd.ErrDrop
	}
	m.received += n
	if m.in.dieAt > 0 && m.received > m.in.dieAt {
		return nbd.ErrDrop
	}
	return nil
}

func (m *memory) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := m.enter(ctx, 0); err != nil {
		return err
	}
	m.in.mu.Lock()
	defer m.in.mu.Unlock()
	copy(p, m.data[off:])
	return nil
}

func (m *memory) WriteAt(ctx context.Context, p []byte, off int64, _ bool) error {
	if err := m.enter(ctx, int64(len(p))); err != nil {
		return err
	}
	m.in.mu.Lock()
	defer m.in.mu.Unlock()
	m.written += int64(len(p))
	copy(m.data[off:], p)
	return nil
}

func (m *memory) Zero(ctx context.Context, off, n int64, _, _ bool) error {
	if err := m.enter(ctx, n); err != nil {
		return err
	}
	m.in.mu.Lock()
	defer m.in.mu.Unlock()
	clear(m.data[off : off+n])
	return nil
}

func (m *memory) Flush(ctx context.Context) error { return m.enter(ctx, 0) }
