package holdfast

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// AddressingBy is what gives a recovered machine's cards their addresses.
type AddressingBy string

// The ways.
const (
	// ByAgent has the guest agent do it once the machine has booted, and undo it
	// when the machine is home again.
	ByAgent AddressingBy = "agent"
	// ByCloudInit gives the machine a drive from which cloud-init in it takes its
	// network's configuration when it boots. Nothing undoes that at home.
	ByCloudInit AddressingBy = "cloud_init"
)

// DHCP in the place of a NIC's addresses has it ask for them.
const DHCP = "dhcp"

// NIC says how a network card of a machine is addressed.
type NIC struct {
	// Card is the card's MAC address, or the network that it was on at the source;
	// empty: the machine has only one.
	Card string `json:"card,omitempty"`
	// Addresses are DHCP alone, or addresses with the length of their network's
	// prefix, as 10.8.0.12/24.
	Addresses []string `json:"addresses"`
	Gateways  []string `json:"gateways,omitempty"` // at most one of each family
	DNS       []string `json:"dns,omitempty"`      // servers
}

// Addressing is what the cards of a recovered machine are given. Cards that it
// does not name keep what the guest gives them.
type Addressing struct {
	By   AddressingBy `json:"by,omitempty"` // empty: ByAgent
	NICs []NIC        `json:"nics,omitempty"`
}

// Validate says what is wrong with it.
func (a Addressing) Validate() error {
	if a.By != "" && a.By != ByAgent && a.By != ByCloudInit {
		return &Error{Kind: KindInvalid, Op: "give addresses by", Thing: string(a.By), Cause: "that is no way to do it", Hint: "Want agent or cloud_init"}
	}
	seen := map[string]bool{}
	for _, n := range a.NICs {
		if err := n.validate(); err != nil {
			return &Error{Kind: KindInvalid, Op: "give addresses to card", Thing: n.Card, Err: err}
		}
		if seen[n.Card] || n.Card == "" && len(a.NICs) > 1 {
			return &Error{Kind: KindInvalid, Op: "give addresses to card", Thing: n.Card, Cause: "several entries mean the same card", Hint: "Name each card once, by its MAC address or its network"}
		}
		seen[n.Card] = true
	}
	return nil
}

func (n NIC) validate() error {
	if len(n.Addresses) == 0 {
		return fmt.Errorf("it has no address: want %s or addresses like 10.8.0.12/24", DHCP)
	}
	dhcp := slices.Contains(n.Addresses, DHCP)
	if dhcp && (len(n.Addresses) > 1 || len(n.Gateways) > 0) {
		return fmt.Errorf("%s goes with no other address and no gateway", DHCP)
	}
	var nets []netip.Prefix
	for _, s := range n.Addresses {
		if dhcp {
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil || p.Addr().IsUnspecified() || p.Addr().IsMulticast() || p.Addr().Zone() != "" || p.Bits() < p.Addr().BitLen() && p.Addr().Is4() && p.Bits() < 31 && p.Masked().Addr() == p.Addr() {
			return fmt.Errorf("%q is no address of a machine: want one like 10.8.0.12/24 or fd00::12/64", s)
		}
		nets = append(nets, p)
	}
	families := map[bool]bool{}
	for _, s := range n.Gateways {
		g, err := netip.ParseAddr(s)
		if err != nil {
			return fmt.Errorf("gateway %q is no address", s)
		}
		if families[g.Is4()] {
			return fmt.Errorf("there are several gateways of one family")
		}
		families[g.Is4()] = true
		if !slices.ContainsFunc(nets, func(p netip.Prefix) bool { return p.Contains(g) || g.IsLinkLocalUnicast() }) {
			return fmt.Errorf("gateway %s is in the network of none of the addresses", s)
		}
	}
	for _, s := range n.DNS {
		if _, err := netip.ParseAddr(s); err != nil {
			return fmt.Errorf("DNS server %q is no address", s)
		}
	}
	return nil
}

// Fixed returns the addresses that are given, without lengths of networks.
func (a Addressing) Fixed() (out []netip.Addr) {
	for _, n := range a.NICs {
		for _, s := range n.Addresses {
			if p, err := netip.ParsePrefix(s); err == nil {
				out = append(out, p.Addr())
			}
		}
	}
	return out
}

// Card is a network card of a machine at its source.
type Card struct{ MAC, Network string }

// For returns the addressing with each card named by its MAC address, in lower
// case. It fails if a name is that of none of the machine's cards, or of several.
func (a Addressing) For(cards []Card) (Addressing, error) {
	out := Addressing{By: a.By}
	used := map[string]bool{}
	for _, n := range a.NICs {
		fail := func(cause string) (Addressing, error) {
			return out, &Error{Kind: KindInvalid, Op: "give addresses to card", Thing: n.Card, Cause: cause,
				Hint: fmt.Sprintf("The machine has %s; name the card by its MAC address", cardList(cards))}
		}
		var found []string
		for _, c := range cards {
			if mac := lowerMAC(c.MAC); mac != "" && (n.Card == "" || n.Card == c.Network || lowerMAC(n.Card) == mac) {
				found = append(found, mac)
			}
		}
		switch {
		case len(found) == 0:
			return fail("the machine has no such card")
		case len(found) > 1:
			return fail("the machine has several such cards")
		case used[found[0]]:
			return fail("several entries mean the same card")
		}
		used[found[0]] = true
		n.Card = found[0]
		out.NICs = append(out.NICs, n)
	}
	return out, nil
}

func lowerMAC(s string) string {
	mac, err := net.ParseMAC(s)
	if err != nil {
		return ""
	}
	return mac.String()
}

func cardList(cards []Card) string {
	text := ""
	for i, c := range cards {
		if i > 0 {
			text += ", "
		}
		text += c.MAC + " on " + c.Network
	}
	if text == "" {
		return "no network card"
	}
	return text
}

// AddressesLeft says that the item's machine is home, and its guest may still have
// the addresses that it was given at the other site.
func (it Item) AddressesLeft() bool {
	return len(it.Addressing.NICs) > 0 && it.ActiveSite() == it.PrimarySite
}
