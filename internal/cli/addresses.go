package cli

import (
	"strings"

	"github.com/spf13/pflag"

	"github.com/holdfast-dr/holdfast/api"
)

// addressing are the flags that give a machine's network cards addresses.
type addressing struct {
	cards []string
	by    string
}

func (o *addressing) flags(fs *pflag.FlagSet) {
	fs.StringArrayVar(&o.cards, "address", nil, "[CARD=]ADDRESS/LENGTH[,ADDRESS/LENGTH][,via=GATEWAY][,dns=SERVER]: what a network card is given in the guest, or dhcp; CARD is its MAC address, or its network at the source, and can be left out if there is one; can be repeated")
	fs.StringVar(&o.by, "address-by", "agent", "what gives the guest its addresses: agent, the guest agent, once it has booted; or cloud-init, when it boots")
}

// request returns what the flags ask for.
func (o *addressing) request() (out api.Addressing, err error) {
	by := strings.ReplaceAll(o.by, "-", "_")
	if by != "agent" && by != "cloud_init" {
		return out, usagef("--address-by %s is not known: want agent or cloud-init", o.by)
	}
	if len(o.cards) == 0 {
		return out, nil
	}
	out.By = by
	for _, text := range o.cards {
		n := api.NIC{Addresses: []string{}}
		for i, word := range strings.Split(text, ",") {
			key, value, named := strings.Cut(word, "=")
			switch {
			case named && key == "via":
				n.Gateways = append(n.Gateways, value)
			case named && key == "dns":
				n.DNS = append(n.DNS, value)
			case named && i == 0:
				n.Card = key
				n.Addresses = append(n.Addresses, value)
			case named:
				return out, usagef("--address %s: %s= is not known: want via= or dns=", text, key)
			default:
				n.Addresses = append(n.Addresses, word)
			}
		}
		out.NICs = append(out.NICs, n)
	}
	return out, nil
}
