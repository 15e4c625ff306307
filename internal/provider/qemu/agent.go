package qemu

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/holdfast-dr/holdfast/internal/provider"
)

const (
	// agentChannel is the name of the serial port that a guest agent opens.
	agentChannel = "org.qemu.guest_agent.0"
	// agentPatience is how long an agent that is there may take for its first answer.
	agentPatience = 5 * time.Second
	// thawPatience is how long a thaw after a freeze that failed is waited for.
	thawPatience = 15 * time.Second
	// maxAnswer bounds what is read of an agent in one connection. The guest is
	// not trusted.
	maxAnswer = 1 << 20
)

// agentConn is a connection to a machine's guest agent. There is one at a time:
// QEMU serves one, and a lock keeps the others of this program waiting.
type agentConn struct {
	net.Conn
	r    *bufio.Reader
	left int // of maxAnswer
}

// agentError is the agent's own answer that a command failed.
type agentError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

// Error returns the agent's words.
func (e *agentError) Error() string { return "guest agent: " + e.Desc }

// Ping asks the agent for an answer.
func (s *site) Ping(ctx context.Context, machineID string) error {
	d, err := s.find(machineID)
	if err != nil {
		return err
	}
	return d.withAgent(ctx, func(ctx context.Context, c *agentConn) error {
		return c.execute(ctx, "guest-ping", nil)
	})
}

// Ask gives the agent one command.
func (s *site) Ask(ctx context.Context, machineID, command string, arguments, result any) error {
	d, err := s.find(machineID)
	if err != nil {
		return err
	}
	return d.withAgent(ctx, func(ctx context.Context, c *agentConn) error {
		return c.ask(ctx, command, arguments, result)
	})
}

// Freeze has the agent run the guest's hooks and freeze its file systems.
func (s *site) Freeze(ctx context.Context, machineID string) (fileSystems int, err error) {
	d, err := s.find(machineID)
	if err != nil {
		return 0, err
	}
	asked := false
	err = d.withAgent(ctx, func(ctx context.Context, c *agentConn) error {
		asked = true
		return c.execute(ctx, "guest-fsfreeze-freeze", &fileSystems)
	})
	if err == nil {
		return fileSystems, nil
	}
	err = fmt.Errorf("freeze machine %s: %w", d.Name, err)
	if !asked {
		return 0, err // the agent knows of nothing
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), thawPatience)
	defer cancel()
	thawed, terr := d.thaw(ctx)
	if !thawed && !errors.Is(terr, provider.ErrNotRunning) {
		terr = fmt.Errorf("%w: %w", provider.ErrFrozen, terr)
	}
	return 0, errors.Join(err, terr)
}

// Thaw has the agent thaw the file systems and run the hooks.
func (s *site) Thaw(ctx context.Context, machineID string) error {
	d, err := s.find(machineID)
	if err != nil {
		return err
	}
	_, err = d.thaw(ctx)
	return err
}

// thaw sends its command without waiting for the agent to say that it listens:
// an agent that hangs in a hook, and would freeze when that ends, finds the
// command then. If nobody waits for it any more it does so once anybody is
// connected, because it first gets rid of its answer to the freeze. An error of
// a hook leaves the guest thawed.
func (d Definition) thaw(ctx context.Context) (thawed bool, err error) {
	err = d.connectAgent(ctx, func(ctx context.Context, c *agentConn) error {
		id, err := c.sendSync(`{"execute":"guest-fsfreeze-thaw"}` + "\n")
		if err != nil {
			return err
		}
		if err := c.awaitSync(id); err != nil {
			return fmt.Errorf("%w: %w", provider.ErrNoAgent, err)
		}
		err = c.answer(nil)
		var refused *agentError
		if err != nil && !errors.As(err, &refused) {
			return err
		}
		var state string
		if serr := c.execute(ctx, "guest-fsfreeze-status", &state); serr != nil {
			return errors.Join(err, serr)
		}
		if thawed = state == "thawed"; !thawed {
			return errors.Join(err, fmt.Errorf("the file systems are %s", state))
		}
		return err
	})
	if err != nil {
		return thawed, fmt.Errorf("thaw machine %s: %w", d.Name, err)
	}
	return thawed, nil
}

// withAgent runs f with an agent that has answered.
func (d Definition) withAgent(ctx context.Context, f func(context.Context, *agentConn) error) error {
	return d.connectAgent(ctx, func(ctx context.Context, c *agentConn) error {
		soon, cancel := context.WithTimeout(ctx, agentPatience)
		defer cancel()
		stop := c.bound(soon)
		id, err := c.sendSync("")
		if err == nil {
			err = c.awaitSync(id)
		}
		stop()
		if ctx.Err() != nil {
			return fmt.Errorf("machine %s: %w: %w", d.Name, provider.ErrNoAgent, context.Cause(ctx))
		}
		if err != nil {
			return fmt.Errorf("machine %s: %w: %w", d.Name, provider.ErrNoAgent, err)
		}
		return f(ctx, c)
	})
}

// connectAgent runs f with the connection to the machine's agent, or to where
// it should be. Nothing in f waits longer than ctx, nor than 30 s if that has
// no deadline.
func (d Definition) connectAgent(ctx context.Context, f func(context.Context, *agentConn) error) (err error) {
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	switch pid, err := d.pid(); {
	case err != nil:
		return err
	case pid == 0:
		return fmt.Errorf("machine %s: %w", d.Name, provider.ErrNotRunning)
	case d.Agent == "":
		return fmt.Errorf("machine %s: %w: %w: its definition names no \"agent\" socket", d.Name, provider.ErrNoAgent, provider.ErrNoWay)
	}
	lock, err := os.OpenFile(d.Agent+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }() // unlocks
	if err := flock(ctx, lock); err != nil {
		return fmt.Errorf("agent of machine %s is used by another call: %w", d.Name, err)
	}
	conn, err := connect(ctx, d.Agent)
	if err != nil {
		return fmt.Errorf("machine %s: %w: %w", d.Name, provider.ErrNoAgent, err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	c := &agentConn{Conn: conn, r: bufio.NewReaderSize(conn, 4<<10), left: maxAnswer}
	defer c.bound(ctx)()
	if err := f(ctx, c); err != nil {
		if ctx.Err() != nil && !errors.Is(err, context.Cause(ctx)) {
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		return err
	}
	return nil
}

// bound ends all reading and writing when ctx ends, until the function that it
// returns is called.
func (c *agentConn) bound(ctx context.Context) func() {
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	return func() { stop() }
}

// sendSync sends a delimiter, with which the agent drops what an earlier client
// has left half said, and a number to be answered, and what shall follow.
func (c *agentConn) sendSync(then string) (id int64, err error) {
	var b [7]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand aborts the program instead
	for _, v := range b {
		id = id<<8 | int64(v)
	}
	_, err = fmt.Fprintf(c, "\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%d}}\n%s", id, then)
	return id, err
}

// awaitSync drops what an earlier client has not read, up to the answer to sendSync.
func (c *agentConn) awaitSync(id int64) error {
	for {
		line, err := c.line()
		if err != nil {
			return err
		}
		i := bytes.LastIndexByte(line, 0xff)
		if i < 0 {
			continue
		}
		var m struct {
			Return *int64 `json:"return"`
		}
		if err := json.Unmarshal(line[i+1:], &m); err == nil && m.Return != nil && *m.Return == id {
			return nil
		}
	}
}

// execute runs one command of an agent that is in step.
func (c *agentConn) execute(ctx context.Context, command string, result any) error {
	return c.ask(ctx, command, nil, result)
}

// agentCommand is a command as the agent reads it.
type agentCommand struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
}

// ask runs one command with arguments.
func (c *agentConn) ask(ctx context.Context, command string, arguments, result any) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	text, err := json.Marshal(agentCommand{command, arguments})
	if err != nil {
		return err
	}
	if _, err := c.Write(append(text, '\n')); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	if err := c.answer(result); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return nil
}

// answer reads the answer to a command and decodes it into result, if not nil.
func (c *agentConn) answer(result any) error {
	line, err := c.line()
	if err != nil {
		return err
	}
	var m struct {
		Return json.RawMessage `json:"return"`
		Error  *agentError     `json:"error"`
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return fmt.Errorf("answer of the guest agent: %w", err)
	}
	switch {
	case m.Error != nil:
		return m.Error
	case m.Return == nil:
		return errors.New("answer of the guest agent has neither result nor error")
	case result == nil:
		return nil
	}
	return json.Unmarshal(m.Return, result)
}

// line reads a line, without its end.
func (c *agentConn) line() ([]byte, error) {
	var line []byte
	for {
		part, err := c.r.ReadSlice('\n')
		line = append(line, part...)
		if c.left -= len(part); c.left < 0 {
			return nil, fmt.Errorf("the guest agent says more than %d bytes", maxAnswer)
		}
		if err == nil {
			return line[:len(line)-1], nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
	}
}
