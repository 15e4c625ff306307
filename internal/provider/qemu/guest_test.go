package qemu_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/qemu"
	"github.com/holdfast-dr/holdfast/internal/systest/guest"
)

// liveGuest is a machine with a real operating system and agent in it.
type liveGuest struct {
	*bench
	def qemu.Definition
}

// newLiveGuest starts a test guest whose agent answers.
func newLiveGuest(t *testing.T, change func(*qemu.Definition)) *liveGuest {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a guest")
	}
	if err := guest.Supported(); err != nil {
		t.Skip(err)
	}
	g := &liveGuest{bench: newBench(t)}
	g.def = g.define("live01", func(d *qemu.Definition) {
		d.Memory, d.Accel = 256*mib, guest.Accel()
		d.Agent, d.Display = filepath.Join(g.dir, "qga"), true
		if change != nil {
			change(d)
		}
	})
	g.must(guest.Build(t.Context(), guest.Options{Path: g.def.Disks[0].Path, SizeMB: 128, Format: guest.FormatQCOW2, Cmdline: "rate=50"}))
	g.must(qemu.StartMachine(t.Context(), g.dir, g.def.Name))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for g.site.Agent.Ping(ctx, g.def.ID) != nil {
		if ctx.Err() != nil {
			t.Fatalf("no agent; the console says:\n%s", g.console())
		}
	}
	return g
}

func (g *liveGuest) console() string {
	b, err := os.ReadFile(g.def.Serial)
	g.must(err)
	return string(b)
}

func (g *liveGuest) said(what string) func() bool {
	return func() bool { return strings.Contains(g.console(), what) }
}

func (g *liveGuest) lastAck() uint64 {
	g.t.Helper()
	c, err := guest.ReadConsole(g.def.Serial)
	g.must(err)
	return c.LastAck
}

// raw sends a line to the agent and returns its answer, or "" without waiting.
// An answer to somebody who has hung up waits in the channel for the next, so
// it reads past what comes before the answer to its own guest-sync.
func (g *liveGuest) raw(line string, wait bool) string {
	g.t.Helper()
	c, err := net.Dial("unix", g.def.Agent)
	g.must(err)
	defer c.Close()
	g.must(c.SetDeadline(time.Now().Add(30 * time.Second)))
	if !wait {
		_, err = io.WriteString(c, line+"\n")
		g.must(err)
		return ""
	}
	_, err = io.WriteString(c, "\xff"+`{"execute":"guest-sync-delimited","arguments":{"id":7}}`+"\n"+line+"\n")
	g.must(err)
	r := bufio.NewReader(c)
	for synced := ""; !strings.Contains(synced, `"return": 7`); {
		_, err = r.ReadString(0xff)
		g.must(err)
		synced, err = r.ReadString('\n')
		g.must(err)
	}
	answer, err := r.ReadString('\n')
	g.must(err)
	return answer
}

// sh starts a command in the guest.
func (g *liveGuest) sh(command string) {
	g.t.Helper()
	args, err := json.Marshal(map[string]any{"path": "/bin/sh", "arg": []string{"-c", command}})
	g.must(err)
	if answer := g.raw(fmt.Sprintf(`{"execute":"guest-exec","arguments":%s}`, args), true); !strings.Contains(answer, "pid") {
		g.t.Fatalf("guest-exec: %s", answer)
	}
}

// hook installs a hook that tells the console of each call and then does more.
func (g *liveGuest) hook(name, more string) {
	g.t.Helper()
	path := "/etc/qemu/fsfreeze-hook.d/" + name
	g.sh(fmt.Sprintf("printf '#!/bin/sh\\necho HOOK-%s-$1 >/dev/ttyS0\\n%s\\n' > %s; chmod +x %s; sync; echo INSTALLED-%s > /dev/ttyS0", name, more, path, path, name))
	eventually(g.t, "hook "+name, g.said("INSTALLED-"+name))
}

// TestGuest boots one guest for all that needs a real one. While it tries its
// networks it is frozen.
func TestGuest(t *testing.T) {
	t.Parallel()
	g := newLiveGuest(t, func(d *qemu.Definition) {
		d.NICs = []qemu.NICDef{{ID: "net0", Network: "user"}, {ID: "net1", Network: "restricted"}}
	})
	checkNetworks := g.tryNetworks()
	g.commands()
	g.freezes()
	checkNetworks()
	g.probes()
}

// probes looks at a guest that listens at one port, as its users would.
func (g *liveGuest) probes() {
	t := g.t
	t.Helper()
	ctx := t.Context()
	if said, err := g.site.Probe.Said(ctx, g.def.ID); err != nil || !strings.Contains(string(said), "NET-DONE") {
		t.Errorf("the console has said %d bytes, %v", len(said), err)
	}
	if err := g.site.Probe.Ping(ctx, g.def.ID); !errors.Is(err, provider.ErrNoWay) {
		t.Errorf("ping: %v, want ErrNoWay", err)
	}
	if err := g.site.Probe.Dial(ctx, g.def.ID, 7777); err == nil {
		t.Error("a port of a guest without a network accepts a connection")
	}
	g.sh("for j in 0 1; do ip addr flush dev eth$j; ip link set eth$j down; done; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; echo UP-AGAIN >/dev/ttyS0; while true; do nc -l -p 7777 </dev/null >/dev/null; done")
	eventually(t, "the network is up again", g.said("UP-AGAIN"))
	var err error
	eventually(t, "the open port accepts a connection", func() bool {
		err = g.site.Probe.Dial(ctx, g.def.ID, 7777)
		return err == nil
	})
	if err := g.site.Probe.Dial(ctx, g.def.ID, 7778); err == nil || !strings.Contains(err.Error(), "refuses") {
		t.Errorf("a port where nobody listens: %v", err)
	}
	for name, err := range map[string]error{"Dial": g.site.Probe.Dial(ctx, "nobody", 1), "Said": func() error { _, err := g.site.Probe.Said(ctx, "nobody"); return err }()} {
		if !errors.Is(err, provider.ErrNotFound) {
			t.Errorf("%s of an unknown machine: %v", name, err)
		}
	}
}

// freezes freezes a guest that writes all the time.
func (g *liveGuest) freezes() {
	t := g.t
	ctx, agent := t.Context(), g.site.Agent
	eventually(t, "the writer writes", func() bool { return g.lastAck() > 10 })
	g.hook("one", "")

	n, err := agent.Freeze(ctx, g.def.ID)
	if err != nil || n != 1 {
		t.Fatalf("Freeze: %d, %v, want the one file system", n, err)
	}
	if !g.said("HOOK-one-freeze")() || g.said("HOOK-one-thaw")() {
		t.Error("the hook was not called with freeze alone")
	}
	var before uint64
	eventually(t, "the writer stands still", func() bool {
		before = g.lastAck()
		time.Sleep(200 * time.Millisecond) // ten records' time
		return g.lastAck() == before
	})
	g.must(agent.Ping(ctx, g.def.ID))
	if _, err := agent.Freeze(ctx, g.def.ID); err == nil {
		t.Error("Freeze of a frozen guest succeeded")
	}
	eventually(t, "the writer goes on after a second freeze failed", func() bool { return g.lastAck() > before+10 })
	if !g.said("HOOK-one-thaw")() {
		t.Error("the hook was not called with thaw")
	}
	g.must(agent.Thaw(ctx, g.def.ID))
	picture, err := g.site.Console.Screenshot(ctx, g.def.ID)
	if err != nil || len(picture) < 100 {
		t.Errorf("Screenshot: %d bytes, %v", len(picture), err)
	}

	// A hook that hangs longer than anybody waits.
	g.hook("two", "[ $1 != freeze ] || sleep 2")
	soon, cancel := context.WithTimeout(ctx, time.Second)
	_, err = agent.Freeze(soon, g.def.ID)
	cancel()
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Freeze with a hook that hangs: %v", err)
	}
	before = g.lastAck()
	eventually(t, "the writer goes on after a freeze that hung", func() bool { return g.lastAck() > before+10 })

	// A freeze whose caller died, and a thaw that is given up before the hook ends.
	g.raw(`{"execute":"guest-fsfreeze-freeze"}`, false)
	eventually(t, "the hook runs", func() bool { return strings.Count(g.console(), "HOOK-two-freeze") == 2 })
	soon, cancel = context.WithTimeout(ctx, 300*time.Millisecond)
	err = agent.Thaw(soon, g.def.ID)
	cancel()
	if !errors.Is(err, provider.ErrNoAgent) {
		t.Errorf("Thaw while a hook hangs: %v, want ErrNoAgent", err)
	}
	anybody, err := net.Dial("unix", g.def.Agent)
	g.must(err)
	eventually(t, "the guest thaws by what it was told before", func() bool { return strings.Count(g.console(), "HOOK-two-thaw") == 2 })
	g.must(anybody.Close())
	before = g.lastAck()
	eventually(t, "the writer goes on after all", func() bool { return g.lastAck() > before+10 })
}

// tryNetworks has the guest try to reach this host over an open and over a
// restricted network, and returns what judges that.
func (g *liveGuest) tryNetworks() (check func()) {
	t := g.t
	t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0") // where slirp's gateway leads to
	g.must(err)
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	g.must(err)
	hits := make(chan string, 100)
	srv := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { hits <- r.URL.Path })}
	done := make(chan struct{})
	go func() { _ = srv.Serve(tcp); close(done) }()
	t.Cleanup(func() {
		_ = srv.Close()
		_ = udp.Close()
		<-done
	})
	_, tcpPort, err := net.SplitHostPort(tcp.Addr().String())
	g.must(err)
	_, udpPort, err := net.SplitHostPort(udp.LocalAddr().String())
	g.must(err)
	script := ""
	for i, name := range []string{"open", "shut"} {
		// busybox's static wget crashes for want of a name service, so nc and tftp.
		script += fmt.Sprintf(`for j in 0 1; do ip addr flush dev eth$j; ip link set eth$j down; done
ip link set eth%[1]d up; ip addr add 10.0.2.15/24 dev eth%[1]d; ip route add default via 10.0.2.2
printf 'GET /%[2]s HTTP/1.0\r\n\r\n' | timeout 3 nc -w 2 10.0.2.2 %[3]s
cd /tmp; timeout 2 tftp -g -r %[2]s 10.0.2.2 %[4]s; ping -c 1 -W 2 10.0.2.2 >/dev/null && echo GATEWAY-%[2]s >/dev/ttyS0
`, i, name, tcpPort, udpPort)
	}
	g.sh(script + "echo NET-DONE >/dev/ttyS0")
	return func() {
		t.Helper()
		eventually(t, "the networks were tried", g.said("NET-DONE"))
		if got := len(hits); got != 1 || <-hits != "/open" {
			t.Errorf("%d requests reached the host, want the one of the open network", got)
		}
		if !g.said("GATEWAY-shut")() {
			t.Error("the restricted network is dead, so that nothing is proved")
		}
		g.must(udp.SetReadDeadline(time.Now().Add(200 * time.Millisecond)))
		heard := ""
		for buf := make([]byte, 100); ; {
			n, _, err := udp.ReadFrom(buf)
			if err != nil {
				break
			}
			heard += string(buf[:n])
		}
		if !strings.Contains(heard, "open") || strings.Contains(heard, "shut") {
			t.Errorf("datagrams %q reached the host, want those of the open network", heard)
		}
		if t.Failed() {
			t.Logf("the guest says:\n%s", g.console())
		}
	}
}

// commands runs commands in the guest, and reads its addresses.
func (g *liveGuest) commands() {
	t := g.t
	ctx, agent := t.Context(), g.site.Agent
	run := func(input string, command ...string) (provider.GuestResult, error) {
		return provider.RunInGuest(ctx, agent, g.def.ID, provider.GuestCommand{Path: command[0], Args: command[1:], Input: []byte(input), Env: []string{"WHAT=ever", "PATH=/bin"}})
	}
	big := strings.Repeat("0123456789abcdef", 4096)
	for _, c := range []struct {
		command    []string
		input, out string
		exit       int
	}{
		{[]string{"/bin/busybox", "cat"}, "hello\n", "hello\n", 0},
		{[]string{"/bin/busybox", "cat"}, big, big, 0},
		{[]string{"/bin/busybox", "sh", "-c", "echo $WHAT; exit 3"}, "", "ever\n", 3},
		{[]string{"/bin/busybox", "sh", "-c", "sleep 2; echo slow"}, "", "slow\n", 0},
	} {
		res, err := run(c.input, c.command...)
		if err != nil || string(res.Stdout) != c.out || res.ExitCode != c.exit {
			t.Errorf("%q: %d %.100q, %v", c.command, res.ExitCode, res.Stdout, err)
		}
	}
	if _, err := run("", "/no/such/command"); err == nil || !strings.Contains(err.Error(), "guest-exec") {
		t.Errorf("a command that is not there: %v", err)
	}
	short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	_, err := provider.RunInGuest(short, agent, g.def.ID, provider.GuestCommand{Path: "/bin/busybox", Args: []string{"sleep", "60"}})
	if err == nil || !strings.Contains(err.Error(), "in the guest still") && !strings.Contains(err.Error(), "may run there still") {
		t.Errorf("a command that takes too long: %v", err)
	}
	nics, err := provider.GuestNICs(ctx, agent, g.def.ID)
	if err != nil || len(nics) == 0 || nics[0].Name != "lo" || len(nics[0].Addresses) == 0 || !nics[0].Addresses[0].Addr().IsLoopback() {
		t.Errorf("interfaces are %+v, %v", nics, err)
	}
}
