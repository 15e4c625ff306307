package provider

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strings"

	holdfast "github.com/holdfast-dr/holdfast"
)

//go:embed addresses.sh
var addressScript []byte

// SetAddresses has the guest of a running machine give its cards addresses, which
// last over restarts and which RestoreAddresses takes back. Cards are named by
// their MAC addresses. What the guest cannot do is undone and an error; said tells
// of each card what gives it its addresses there.
func SetAddresses(ctx context.Context, a Agent, machineID string, nics []holdfast.NIC) (said string, err error) {
	args := []string{"set"}
	for _, n := range nics {
		mode, addresses := "static", n.Addresses
		if slices.Contains(addresses, holdfast.DHCP) {
			mode, addresses = "dhcp", nil
		}
		args = append(args, n.Card, mode, orDash(addresses), orDash(n.Gateways), orDash(n.DNS))
	}
	return runAddresses(ctx, a, machineID, args)
}

// RestoreAddresses has the guest give its cards again what its own configuration
// says; nothing is done if they have that.
func RestoreAddresses(ctx context.Context, a Agent, machineID string) (said string, err error) {
	return runAddresses(ctx, a, machineID, []string{"restore"})
}

func runAddresses(ctx context.Context, a Agent, machineID string, args []string) (string, error) {
	var os struct {
		ID string `json:"id"`
	}
	if err := a.Ask(ctx, machineID, "guest-get-osinfo", nil, &os); err == nil && os.ID == "mswindows" {
		return "", fmt.Errorf("the guest is Windows, whose addresses are not set here: %w; set them with a guest action of the plan", errors.ErrUnsupported)
	}
	res, err := RunInGuest(ctx, a, machineID, GuestCommand{Path: "/bin/sh", Args: append([]string{"-s", "--"}, args...), Input: addressScript})
	said := strings.TrimSpace(string(res.Stdout))
	if err == nil && (res.ExitCode != 0 || res.Signal != 0) {
		err = fmt.Errorf("the guest said: %s", strings.TrimSpace(string(res.Stderr)))
	}
	return said, err
}

func orDash(list []string) string {
	if len(list) == 0 {
		return "-"
	}
	return strings.Join(list, ",")
}
