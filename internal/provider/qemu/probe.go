package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/qemutool"
)

// dialOnce is for how long one try waits for the guest to accept a connection.
const dialOnce = 3 * time.Second

// probe is the site as provider.Probe; its Ping is not the agent's.
type probe struct{ s *site }

// Said reads the log of the machine's serial console.
func (p probe) Said(ctx context.Context, machineID string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d, err := p.s.find(machineID)
	if err != nil {
		return nil, err
	}
	if d.Serial == "" {
		return nil, fmt.Errorf("machine %s: %w: its definition names no \"serial\" file", d.Name, provider.ErrNoWay)
	}
	return qemutool.Tail(d.Serial)
}

// Ping cannot be: QEMU's user network passes no echo requests to the guest.
func (p probe) Ping(context.Context, string) error {
	return fmt.Errorf("ping: %w: QEMU's user network passes none to the guest; look for a TCP port", provider.ErrNoWay)
}

// Dial has QEMU's own network forward a port of this host's loopback to the
// guest, connects, and looks in QEMU's list whether the guest has accepted:
// the host's side of the connection is there before that.
func (p probe) Dial(ctx context.Context, machineID string, port int) (err error) {
	d, err := p.s.find(machineID)
	if err != nil {
		return err
	}
	netdev := d.userNetwork()
	if netdev == "" {
		return fmt.Errorf("machine %s: %w: it has no user network", d.Name, provider.ErrNoWay)
	}
	mon, err := d.monitor()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mon.Close()) }()
	ctx, cancel := context.WithTimeout(ctx, dialOnce)
	defer cancel()
	local, err := freePort()
	if err != nil {
		return err
	}
	rule := fmt.Sprintf("%s tcp:127.0.0.1:%d", netdev, local)
	said, err := hmp(ctx, mon, fmt.Sprintf("hostfwd_add %s-:%d", rule, port))
	if err == nil && said != "" { // it says nothing when it has done it
		err = errors.New(said)
	}
	if err != nil {
		return fmt.Errorf("reach port %d of machine %s: %w", port, d.Name, err)
	}
	defer func() {
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), dialOnce)
		defer cancel()
		_, rerr := hmp(after, mon, "hostfwd_remove "+rule)
		err = errors.Join(err, rerr)
	}()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(local)))
	if err != nil {
		return fmt.Errorf("reach port %d of machine %s: %w", port, d.Name, err)
	}
	defer func() { _ = conn.Close() }()
	return d.accepted(ctx, mon, local, port)
}

// userNetwork returns the first of the machine's networks that QEMU itself is.
func (d Definition) userNetwork() string {
	for _, n := range d.NICs {
		if n.Network != networkNone {
			return n.ID + "-b"
		}
	}
	return ""
}

// accepted waits until QEMU lists the connection as established.
func (d Definition) accepted(ctx context.Context, mon provider.Monitor, local, port int) error {
	// Not the line of the forwarding itself, HOST_FORWARD.
	line := regexp.MustCompile(fmt.Sprintf(`TCP\[([A-GI-Z][A-Z_0-9]*)\]\s+\d+\s+127\.0\.0\.1\s+%d\s+\S+\s+%d\b`, local, port))
	for {
		text, err := hmp(ctx, mon, "info usernet")
		if err != nil {
			return fmt.Errorf("reach port %d of machine %s: %w", port, d.Name, err)
		}
		m := line.FindStringSubmatch(text)
		switch {
		case m == nil:
			return fmt.Errorf("port %d of machine %s refuses connections", port, d.Name)
		case m[1] == "ESTABLISHED":
			return nil
		}
		if err := wait(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("port %d of machine %s does not answer: its connection is in state %s", port, d.Name, m[1])
		}
	}
}

func freePort() (port int, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	port = l.Addr().(*net.TCPAddr).Port
	return port, l.Close()
}

// hmp runs a command of the monitor for people, and returns what it says.
func hmp(ctx context.Context, mon provider.Monitor, command string) (said string, err error) {
	err = mon.Execute(ctx, "human-monitor-command", map[string]any{"command-line": command}, &said)
	return strings.TrimSpace(said), err
}
