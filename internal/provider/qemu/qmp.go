package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/internal/provider"
)

const (
	// maxLine bounds one message of QEMU, in bytes.
	maxLine = 16 << 20
	// maxEvents bounds the events kept by a Client.
	maxEvents = 256
	// defaultTimeout bounds a command whose context has no deadline.
	defaultTimeout = 30 * time.Second
)

// ErrClosed says that the connection to QEMU has ended. The caller opens
// another one; a Client never reconnects by itself.
var ErrClosed = errors.New("connection to QEMU's monitor has ended")

// Event is something that QEMU told without being asked.
type Event struct {
	Name string          `json:"event"`
	Data json.RawMessage `json:"data"`
}

// Client is one connection to QEMU's monitor socket. Safe for concurrent use.
type Client struct {
	conn net.Conn
	done chan struct{} // closed when the reader has ended

	// wmu guards writing to conn.
	wmu sync.Mutex
	enc *json.Encoder

	// mu guards what follows.
	mu      sync.Mutex
	next    uint64
	pending map[uint64]chan message
	events  []Event // oldest first, at most maxEvents
	err     error   // why the reader has ended
}

var _ provider.Monitor = (*Client)(nil)

// message is anything that QEMU sends.
type message struct {
	Greeting json.RawMessage `json:"QMP"`
	ID       *uint64         `json:"id"`
	Return   json.RawMessage `json:"return"`
	Event    string          `json:"event"`
	Data     json.RawMessage `json:"data"`
	Error    *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

// command is what is sent to QEMU.
type command struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments,omitempty"`
	ID        uint64          `json:"id"`
}

// Dial connects to a monitor socket and negotiates capabilities. It fails with
// provider.ErrNotRunning if nobody listens. It waits while QEMU serves another
// client, until ctx ends or 30 s have passed.
func Dial(ctx context.Context, socket string) (*Client, error) {
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	conn, err := connect(ctx, socket)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("connect to monitor %s: %w", socket, provider.ErrNotRunning)
		}
		return nil, fmt.Errorf("connect to monitor %s: %w", socket, err)
	}
	c := &Client{conn: conn, done: make(chan struct{}), enc: json.NewEncoder(conn), pending: map[uint64]chan message{}}
	if err := c.negotiate(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("negotiate with monitor %s: %w", socket, err), conn.Close())
	}
	return c, nil
}

// connect dials, and waits while more clients than QEMU's queue holds do so, too.
func connect(ctx context.Context, socket string) (net.Conn, error) {
	var d net.Dialer
	for {
		conn, err := d.DialContext(ctx, "unix", socket)
		if !errors.Is(err, syscall.EAGAIN) {
			return conn, err
		}
		if err := wait(ctx, 5*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

func withTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, defaultTimeout)
}

// maxStale is how many messages for another client may come before the greeting.
const maxStale = 1000

// negotiate reads the greeting and starts the reader.
func (c *Client) negotiate(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetReadDeadline(time.Unix(1, 0)) })
	r := newLineReader(c.conn)
	hello, err := r.next()
	// What QEMU could not tell the client before, it tells this one, first.
	for stale := 0; err == nil && hello.Greeting == nil && stale < maxStale; stale++ {
		hello, err = r.next()
	}
	if !stop() {
		return fmt.Errorf("no greeting: %w", context.Cause(ctx))
	}
	if err != nil {
		return fmt.Errorf("read greeting: %w", err)
	}
	if hello.Greeting == nil {
		return errors.New("read greeting: not a QEMU monitor in control mode")
	}
	go c.read(r) // ended by Close, which awaits it
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		return errors.Join(err, c.Close())
	}
	return nil
}

// lineReader decodes one message per line, of bounded length.
type lineReader struct{ r *bufio.Reader }

func newLineReader(r io.Reader) *lineReader { return &lineReader{r: bufio.NewReaderSize(r, 64<<10)} }

func (l *lineReader) next() (message, error) {
	var m message
	var line []byte
	for {
		part, err := l.r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxLine {
			return m, fmt.Errorf("message is longer than %d bytes", maxLine)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return m, err
		}
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return m, fmt.Errorf("decode message: %w", err)
	}
	return m, nil
}

// read hands replies to those who wait for them until the connection ends.
func (c *Client) read(r *lineReader) {
	defer close(c.done)
	for {
		m, err := r.next()
		c.mu.Lock()
		switch {
		case err != nil:
			c.err = err
			c.mu.Unlock()
			return
		case m.Event != "":
			if len(c.events) == maxEvents {
				c.events = append(c.events[:0], c.events[1:]...)
			}
			c.events = append(c.events, Event{Name: m.Event, Data: m.Data})
		case m.ID != nil:
			if ch, ok := c.pending[*m.ID]; ok {
				ch <- m // has room for the one reply
				delete(c.pending, *m.ID)
			}
		}
		c.mu.Unlock()
	}
}

// Execute runs one command and decodes its return value into result, which may
// be nil. A refusal is a *provider.MonitorError; a connection that has ended is
// ErrClosed. When ctx ends first (30 s if it has no deadline), the command may
// still be carried out.
func (c *Client) Execute(ctx context.Context, name string, arguments, result any) error {
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	args, err := json.Marshal(arguments)
	if err != nil {
		return fmt.Errorf("%s: encode arguments: %w", name, err)
	}
	if string(args) == "null" {
		args = nil // QEMU wants an object or nothing
	}
	ch := make(chan message, 1)
	c.mu.Lock()
	c.next++
	id := c.next
	c.pending[id] = ch
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.pending, id)
		c.mu.Unlock()
	}()
	if err := c.send(ctx, command{Execute: name, Arguments: args, ID: id}); err != nil {
		return fmt.Errorf("%s: %w: %w", name, ErrClosed, err)
	}
	select {
	case m := <-ch:
		return decodeReply(name, m, result)
	case <-c.done:
	case <-ctx.Done():
		return fmt.Errorf("%s: QEMU does not answer: %w", name, context.Cause(ctx))
	}
	select { // the reply may have come just before the end
	case m := <-ch:
		return decodeReply(name, m, result)
	default:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Errorf("%s: %w: %w", name, ErrClosed, c.err)
}

func (c *Client) send(ctx context.Context, cmd command) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.conn.SetWriteDeadline(deadline); err != nil {
			return err
		}
	}
	return c.enc.Encode(cmd)
}

func decodeReply(name string, m message, result any) error {
	if m.Error != nil {
		return &provider.MonitorError{Command: name, Class: m.Error.Class, Desc: m.Error.Desc}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, result); err != nil {
		return fmt.Errorf("%s: decode reply: %w", name, err)
	}
	return nil
}

// Events returns the events since the last call, oldest first. Only the newest
// 256 are kept.
func (c *Client) Events() []Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	ev := c.events
	c.events = nil
	return ev
}

// Close ends the connection. Commands that wait for a reply fail.
func (c *Client) Close() error {
	err := c.conn.Close()
	<-c.done
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// perCommand is a monitor that connects for each command, because QEMU serves
// one client at a time and others must get their turn.
type perCommand struct{ socket string }

var _ provider.Monitor = perCommand{}

// Execute connects, runs one command and disconnects.
func (m perCommand) Execute(ctx context.Context, name string, arguments, result any) error {
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	c, err := Dial(ctx, m.socket)
	if err != nil {
		return err
	}
	return errors.Join(c.Execute(ctx, name, arguments, result), c.Close())
}

// Close does nothing.
func (perCommand) Close() error { return nil }
