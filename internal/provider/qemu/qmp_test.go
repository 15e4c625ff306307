package qemu_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/qemu"
)

const greeting = `{"QMP": {"version": {}, "capabilities": []}}` + "\n"

// fakeMonitor serves one connection with a script and returns its socket.
func fakeMonitor(t *testing.T, script func(r *bufio.Reader, w io.Writer)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qmp")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		script(bufio.NewReader(conn), conn)
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return path
}

// accept plays the negotiation.
func accept(r *bufio.Reader, w io.Writer) {
	io.WriteString(w, greeting)
	r.ReadString('\n')
	io.WriteString(w, `{"return": {}, "id": 1}`+"\n")
}

func TestClient(t *testing.T) {
	t.Parallel()
	sock := fakeMonitor(t, func(r *bufio.Reader, w io.Writer) {
		accept(r, w)
		r.ReadString('\n')
		for i := range 300 {
			fmt.Fprintf(w, `{"event": "E%d", "data": {}}`+"\n", i)
		}
		io.WriteString(w, `{"return": {"n": 1}, "id": 99}`+"\n"+`{"return": {"n": 7}, "id": 2}`+"\n")
		r.ReadString('\n')
		io.WriteString(w, `{"error": {"class": "GenericError", "desc": "no such thing"}, "id": 3}`+"\n")
		r.ReadString('\n') // no answer
		r.ReadString('\n')
	})
	c, err := qemu.Dial(t.Context(), sock)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var got struct{ N int }
	if err := c.Execute(t.Context(), "query-n", nil, &got); err != nil || got.N != 7 {
		t.Errorf("reply matched by id: got %+v, %v, want 7", got, err)
	}
	if ev := c.Events(); len(ev) != 256 || ev[255].Name != "E299" || len(c.Events()) != 0 {
		t.Errorf("events: got %d, want the newest 256, once", len(ev))
	}
	var refused *provider.MonitorError
	err = c.Execute(t.Context(), "bad", map[string]any{"a": 1}, nil)
	if !errors.As(err, &refused) || refused.Desc != "no such thing" || refused.Command != "bad" {
		t.Errorf("refusal: got %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.Execute(ctx, "slow", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no answer: got %v, want a time-out", err)
	}
	if err := c.Execute(t.Context(), "last", nil, nil); !errors.Is(err, qemu.ErrClosed) {
		t.Errorf("connection ended: got %v, want ErrClosed", err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

func TestDialRefusesStrangers(t *testing.T) {
	t.Parallel()
	for name, hello := range map[string]string{
		"not JSON":      "220 mail.example ESMTP\n",
		"no greeting":   `{"return": {}}` + "\n",
		"closed":        "",
		"torn":          `{"QMP": {`,
		"an array":      "[1]\n",
		"endless":       strings.Repeat("x", 17<<20) + "\n",
		"null":          "null\n",
		"refuses hello": greeting + `{"error": {"class": "GenericError", "desc": "no"}, "id": 1}` + "\n",
		"bad id":        greeting + `{"return": {}, "id": "one"}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sock := fakeMonitor(t, func(_ *bufio.Reader, w io.Writer) { io.WriteString(w, hello) })
			c, err := qemu.Dial(t.Context(), sock)
			if err == nil {
				c.Close()
				t.Error("got no error")
			}
		})
	}
	if _, err := qemu.Dial(t.Context(), filepath.Join(t.TempDir(), "none")); !errors.Is(err, provider.ErrNotRunning) {
		t.Errorf("nobody there: got %v, want ErrNotRunning", err)
	}
	silent := fakeMonitor(t, func(r *bufio.Reader, _ io.Writer) { r.ReadString('\n') })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := qemu.Dial(ctx, silent); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silent monitor: got %v, want a time-out", err)
	}
}

// TestStaleMessages connects to a monitor that first says what the client before
// did not read any more.
func TestStaleMessages(t *testing.T) {
	t.Parallel()
	sock := fakeMonitor(t, func(r *bufio.Reader, w io.Writer) {
		io.WriteString(w, `{"timestamp": {"seconds": 1}, "event": "BLOCK_JOB_READY", "data": {}}`+"\n"+`{"return": {}, "id": 7}`+"\n")
		accept(r, w)
	})
	c, err := qemu.Dial(t.Context(), sock)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
