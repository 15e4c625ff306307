package provider

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// GuestCommand is a command inside a guest.
type GuestCommand struct {
	Path  string
	Args  []string
	Env   []string // KEY=value
	Input []byte   // its standard input
}

// GuestResult is what became of it.
type GuestResult struct {
	ExitCode int // of one that was not ended by a signal
	Signal   int // 0: none
	Stdout   []byte
	Stderr   []byte
	// Truncated says that the guest agent has kept only a part of what was said.
	Truncated bool
}

// GuestNIC is a network interface as the guest sees it.
type GuestNIC struct {
	Name      string
	MAC       string
	Addresses []netip.Prefix
}

// RunInGuest runs a command inside a running machine, through its guest agent, and
// waits for its end. It fails with ErrNoAgent if no agent answers, and if the agent
// may not run commands, which some distributions forbid it. When ctx ends, the
// command is not waited for any longer; it may go on in the guest.
func RunInGuest(ctx context.Context, a Agent, machineID string, c GuestCommand) (GuestResult, error) {
	args := map[string]any{"path": c.Path, "capture-output": true}
	if len(c.Args) > 0 {
		args["arg"] = c.Args
	}
	if len(c.Env) > 0 {
		args["env"] = c.Env
	}
	if len(c.Input) > 0 {
		args["input-data"] = c.Input // base64, as JSON has bytes
	}
	var started struct{ PID int64 }
	if err := a.Ask(ctx, machineID, "guest-exec", args, &started); err != nil {
		if !errors.Is(err, ErrNoAgent) && !errors.Is(err, ErrNotRunning) && ctx.Err() == nil {
			err = fmt.Errorf("%w; the command must be there, and guest-exec allowed to the guest agent (block-rpcs in its configuration)", err)
		}
		return GuestResult{}, fmt.Errorf("run %s: %w", c.Path, err)
	}
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		var st struct {
			Exited       bool   `json:"exited"`
			ExitCode     int    `json:"exitcode"`
			Signal       int    `json:"signal"`
			Out          []byte `json:"out-data"`
			Err          []byte `json:"err-data"`
			OutTruncated bool   `json:"out-truncated"`
			ErrTruncated bool   `json:"err-truncated"`
		}
		if err := a.Ask(ctx, machineID, "guest-exec-status", map[string]any{"pid": started.PID}, &st); err != nil {
			return GuestResult{}, fmt.Errorf("%s was started in the guest, and may run there still: %w", c.Path, err)
		}
		if st.Exited {
			return GuestResult{ExitCode: st.ExitCode, Signal: st.Signal, Stdout: st.Out, Stderr: st.Err, Truncated: st.OutTruncated || st.ErrTruncated}, nil
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return GuestResult{}, fmt.Errorf("%s runs in the guest still: %w", c.Path, context.Cause(ctx))
		case <-t.C:
		}
	}
}

// GuestNICs returns the network interfaces of a running machine as its guest agent
// sees them.
func GuestNICs(ctx context.Context, a Agent, machineID string) ([]GuestNIC, error) {
	var said []struct {
		Name      string `json:"name"`
		MAC       string `json:"hardware-address"`
		Addresses []struct {
			Address string `json:"ip-address"`
			Prefix  int    `json:"prefix"`
		} `json:"ip-addresses"`
	}
	if err := a.Ask(ctx, machineID, "guest-network-get-interfaces", nil, &said); err != nil {
		return nil, fmt.Errorf("addresses of machine %s: %w", machineID, err)
	}
	var out []GuestNIC
	for _, n := range said {
		nic := GuestNIC{Name: n.Name, MAC: n.MAC}
		for _, x := range n.Addresses {
			if addr, err := netip.ParseAddr(x.Address); err == nil { // the guest is not trusted
				nic.Addresses = append(nic.Addresses, netip.PrefixFrom(addr.WithZone(""), x.Prefix))
			}
		}
		out = append(out, nic)
	}
	return out, nil
}
