package holdfast_test

import (
	"strings"
	"testing"

	holdfast "github.com/holdfast-dr/holdfast"
)

func TestAddressing(t *testing.T) {
	cards := []holdfast.Card{{MAC: "52:54:00:AA:00:01", Network: "lan"}, {MAC: "52:54:00:aa:00:02", Network: "san"}, {MAC: "52:54:00:aa:00:03", Network: "san"}}
	nic := func(card string, addresses ...string) holdfast.NIC {
		return holdfast.NIC{Card: card, Addresses: addresses}
	}
	with := func(n holdfast.NIC, gateways, dns []string) holdfast.NIC {
		n.Gateways, n.DNS = gateways, dns
		return n
	}
	for name, tt := range map[string]struct {
		nics  []holdfast.NIC
		by    holdfast.AddressingBy
		wrong string // in the error
		macs  string // of what is found
	}{
		"by network":         {nics: []holdfast.NIC{nic("lan", "10.8.0.12/24")}, macs: "52:54:00:aa:00:01"},
		"by address":         {nics: []holdfast.NIC{nic("52:54:00:aa:00:01", "dhcp"), nic("52:54:00:AA:00:03", "10.8.0.12/24", "fd00::1/64")}, macs: "52:54:00:aa:00:01 52:54:00:aa:00:03"},
		"two of a network":   {nics: []holdfast.NIC{nic("san", "dhcp")}, wrong: "several such cards"},
		"none is named":      {nics: []holdfast.NIC{nic("", "dhcp")}, wrong: "several such cards"},
		"no such card":       {nics: []holdfast.NIC{nic("dmz", "dhcp")}, wrong: "no such card"},
		"one card, two ways": {nics: []holdfast.NIC{nic("lan", "dhcp"), nic("52:54:00:aa:00:01", "dhcp")}, wrong: "same card"},
		"one card twice":     {nics: []holdfast.NIC{nic("lan", "dhcp"), nic("lan", "dhcp")}, wrong: "same card"},
		"no address":         {nics: []holdfast.NIC{nic("lan")}, wrong: "no address"},
		"dhcp and more":      {nics: []holdfast.NIC{nic("lan", "dhcp", "10.8.0.12/24")}, wrong: "goes with no other"},
		"no length":          {nics: []holdfast.NIC{nic("lan", "10.8.0.12")}, wrong: "no address of a machine"},
		"a network":          {nics: []holdfast.NIC{nic("lan", "10.8.0.0/24")}, wrong: "no address of a machine"},
		"a pair":             {nics: []holdfast.NIC{nic("lan", "10.8.0.0/31")}, macs: "52:54:00:aa:00:01"},
		"gateway":            {nics: []holdfast.NIC{with(nic("lan", "10.8.0.12/24", "fd00::2/64"), []string{"10.8.0.1", "fe80::1"}, []string{"9.9.9.9"})}, macs: "52:54:00:aa:00:01"},
		"gateway elsewhere":  {nics: []holdfast.NIC{with(nic("lan", "10.8.0.12/24"), []string{"10.9.0.1"}, nil)}, wrong: "in the network of none"},
		"two gateways":       {nics: []holdfast.NIC{with(nic("lan", "10.8.0.12/24"), []string{"10.8.0.1", "10.8.0.2"}, nil)}, wrong: "several gateways"},
		"no DNS server":      {nics: []holdfast.NIC{with(nic("lan", "10.8.0.12/24"), nil, []string{"dns.example"})}, wrong: "DNS server"},
		"no such way":        {by: "magic", nics: []holdfast.NIC{nic("lan", "dhcp")}, wrong: "no way to do it"},
	} {
		t.Run(name, func(t *testing.T) {
			a := holdfast.Addressing{By: tt.by, NICs: tt.nics}
			err := a.Validate()
			if err == nil {
				a, err = a.For(cards)
			}
			if tt.wrong != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wrong) {
					t.Fatalf("error is %v, want one with %q", err, tt.wrong)
				}
				return
			}
			var macs []string
			for _, n := range a.NICs {
				macs = append(macs, n.Card)
			}
			if got := strings.Join(macs, " "); err != nil || got != tt.macs {
				t.Errorf("cards are %q, %v; want %q", got, err, tt.macs)
			}
		})
	}
}
