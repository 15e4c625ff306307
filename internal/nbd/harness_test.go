package nbd_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/holdfast-dr/holdfast/internal/nbd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs a server on a unix socket until the test ends, and returns it and
// the socket's path.
func serve(t testing.TB, o nbd.ServerOptions, exports ...*nbd.Export) (*nbd.Server, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	return serveOn(t, "unix", path, o, exports...), path
}

func serveOn(t testing.TB, network, addr string, o nbd.ServerOptions, exports ...*nbd.Export) *nbd.Server {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	return serveListener(t, l, o, exports...)
}

func serveListener(t testing.TB, l net.Listener, o nbd.ServerOptions, exports ...*nbd.Export) *nbd.Server {
	t.Helper()
	s := nbd.NewServer(o)
	s.SetExports(exports...)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s
}
