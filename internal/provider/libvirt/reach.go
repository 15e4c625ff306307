package libvirt

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/internal/provider"
)

// A test machine often has the address of the one that it is a copy of. So it is
// only ever reached over the bridge of this host that its card is on, whatever
// the host's routes say, and what answers must have the card's hardware address.

// reachWait bounds one try to reach a machine.
const reachWait = 3 * time.Second

// way is how a machine can be reached.
type way struct {
	bridge string
	mac    string
	addr   netip.Addr
}

// ways returns how a machine can be reached: ErrNoWay if it cannot, another error
// if not yet.
func (s *site) ways(ctx context.Context, machineID string) ([]way, error) {
	d, err := s.running(ctx, machineID)
	if err != nil {
		return nil, err
	}
	bridges, err := s.bridges(d)
	if err != nil {
		return nil, err
	}
	var out []way
	for _, source := range []golibvirt.DomainInterfaceAddressesSource{golibvirt.DomainInterfaceAddressesSrcAgent, golibvirt.DomainInterfaceAddressesSrcLease, golibvirt.DomainInterfaceAddressesSrcArp} {
		if len(out) > 0 {
			break // who knows best has answered
		}
		cards, err := s.l.DomainInterfaceAddresses(d, uint32(source), 0)
		if err != nil {
			continue // no agent, or no leases: another source may know
		}
		for _, card := range cards {
			if len(card.Hwaddr) == 0 || bridges[strings.ToLower(card.Hwaddr[0])] == "" {
				continue
			}
			mac := strings.ToLower(card.Hwaddr[0])
			for _, a := range card.Addrs {
				if addr, err := netip.ParseAddr(a.Addr); err == nil && !addr.IsLoopback() && !addr.IsLinkLocalUnicast() {
					out = append(out, way{bridges[mac], mac, addr})
				}
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("machine %s has no address yet that its guest agent, libvirt or the host knows", d.Name)
	}
	return out, nil
}

// bridges returns the bridges of this host that a domain's cards are on, by their
// hardware addresses.
func (s *site) bridges(d golibvirt.Domain) (map[string]string, error) {
	doc, err := s.xml(d, 0)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	why := "it has no card on a bridge"
	for _, e := range doc.Root().FindElements("devices/interface") {
		bridge, mac := attr(e, "source", "bridge"), strings.ToLower(attr(e, "mac", "address"))
		switch _, err := net.InterfaceByName(bridge); {
		case bridge == "" || mac == "":
		case attr(e, "link", "state") == "down":
			why = "its cards are unplugged; name a network for the test to reach it over"
		case err != nil:
			why = "bridge " + bridge + " is not one of this host"
		default:
			out[mac] = bridge
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("machine %s: %w: %s", d.Name, provider.ErrNoWay, why)
	}
	return out, nil
}

// over makes a socket use a bridge and nothing else.
func over(bridge string) func(string, string, syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), bridge) }); cerr != nil {
			return cerr
		}
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("%w: the server may not use bridge %s directly (it needs root, or CAP_NET_RAW)", provider.ErrNoWay, bridge)
		}
		return err
	}
}

// reach tries every way to a machine.
func (s *site) reach(ctx context.Context, machineID string, try func(context.Context, way) error) error {
	ways, err := s.ways(ctx, machineID)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, reachWait)
	defer cancel()
	var errs []error
	for _, w := range ways {
		err := try(ctx, w)
		if err == nil {
			err = w.answered()
		}
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// answered fails if it was another machine that has answered at the address.
func (w way) answered() error {
	if !w.addr.Is4() {
		return nil // the agent has said that the address is this machine's
	}
	f, err := os.Open("/proc/net/arp")
	if err != nil {
		return nil
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		x := strings.Fields(lines.Text()) // address, type, flags, hardware address, mask, device
		if len(x) == 6 && x[0] == w.addr.String() && x[5] == w.bridge && x[3] != w.mac {
			return fmt.Errorf("another machine, %s, has answered at %s on bridge %s", x[3], w.addr, w.bridge)
		}
	}
	return nil
}

// Dial connects to a TCP port of a machine, over the bridge that it is on.
func (p probe) Dial(ctx context.Context, machineID string, port int) error {
	return p.s.reach(ctx, machineID, func(ctx context.Context, w way) error {
		dialer := net.Dialer{Control: over(w.bridge)}
		c, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(w.addr, uint16(port)).String())
		if err != nil {
			if errors.Is(err, unix.ECONNREFUSED) {
				return fmt.Errorf("port %d of %s on bridge %s refuses connections", port, w.addr, w.bridge)
			}
			return fmt.Errorf("reach port %d over bridge %s: %w", port, w.bridge, err)
		}
		return c.Close()
	})
}

// Ping sends a machine an ICMP echo request, over the bridge that it is on.
func (p probe) Ping(ctx context.Context, machineID string) error {
	return p.s.reach(ctx, machineID, func(ctx context.Context, w way) error {
		if err := w.ping(ctx); err != nil {
			return fmt.Errorf("ping %s over bridge %s: %w", w.addr, w.bridge, err)
		}
		return nil
	})
}

// ping sends echo requests until one is answered.
func (w way) ping(ctx context.Context) error {
	network, any, proto := "ip4:icmp", "0.0.0.0", 1
	var request, answer icmp.Type = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
	if w.addr.Is6() {
		network, any, proto = "ip6:ipv6-icmp", "::", 58
		request, answer = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	listen := net.ListenConfig{Control: over(w.bridge)}
	c, err := listen.ListenPacket(ctx, network, any)
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: the server may not send pings (it needs root, or CAP_NET_RAW)", provider.ErrNoWay)
	}
	if err != nil {
		return err
	}
	defer c.Close()
	id := os.Getpid() & 0xffff
	for seq := 1; ; seq++ {
		m := icmp.Message{Type: request, Body: &icmp.Echo{ID: id, Seq: seq, Data: []byte("holdfast")}}
		b, err := m.Marshal(nil)
		if err != nil {
			return err
		}
		if _, err := c.WriteTo(b, &net.IPAddr{IP: w.addr.AsSlice()}); err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
			return err
		}
		if w.echoed(c, proto, answer, id) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return errors.New("no answer")
		}
	}
}

// echoed waits for the answer to a ping until the deadline of the connection.
func (w way) echoed(c net.PacketConn, proto int, answer icmp.Type, id int) bool {
	b := make([]byte, 1500)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return false
		}
		m, err := icmp.ParseMessage(proto, b[:n])
		if err != nil || m.Type != answer || from.String() != w.addr.String() {
			continue
		}
		if echo, ok := m.Body.(*icmp.Echo); ok && echo.ID == id {
			return true
		}
	}
}
