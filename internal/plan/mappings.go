package plan

import (
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// mappings are the types that a text's mappings are read into.
var mappings = []any{Plan{}, Objectives{}, NetworkMap{}, Around{}, Group{}, machineFields{}, NIC{}, TestNIC{}, Verify{}, Drill{}, Action{}, Script{}, Secret{}, Guest{}, Webhook{}, Manual{}, Wait{}}

func typeOf(v any) reflect.Type { return reflect.TypeOf(v) }

// machineFields is Machine without its own reader.
type machineFields Machine

// UnmarshalYAML reads a machine: the name of an item, or a mapping.
func (m *Machine) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		m.Item = n.Value
		return nil
	}
	if n.Kind != yaml.MappingNode {
		return wrong(n.Line, "a machine is the name of an item, or a mapping with item")
	}
	// A node's Decode forgets that what is not known is an error.
	if err := knownOnly(n, fields("machineFields")); err != nil {
		return err
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if err := knownIn(n.Content[i].Value, n.Content[i+1]); err != nil {
			return err
		}
	}
	return n.Decode((*machineFields)(m))
}

// knownIn fails if what a key of a machine has is not known.
func knownIn(key string, n *yaml.Node) error {
	switch key {
	case "verify":
		return knownOnly(n, fields("Verify"))
	case "test":
		return knownOnly(n, fields("TestNIC"))
	case "nics":
		for _, nic := range n.Content {
			if err := knownOnly(nic, fields("NIC")); err != nil {
				return err
			}
			for i := 0; nic.Kind == yaml.MappingNode && i+1 < len(nic.Content); i += 2 {
				if err := knownIn(nic.Content[i].Value, nic.Content[i+1]); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// UnmarshalYAML reads a list, or a text for a list of one.
func (l *List) UnmarshalYAML(n *yaml.Node) error {
	switch n.Kind {
	case yaml.ScalarNode:
		*l = List{n.Value}
		return nil
	case yaml.SequenceNode:
		return n.Decode((*[]string)(l))
	}
	return wrong(n.Line, "this is a mapping, want text or a list of texts")
}

// MarshalYAML writes a list of one as a text.
func (l List) MarshalYAML() (any, error) {
	if len(l) == 1 {
		return l[0], nil
	}
	return []string(l), nil
}

// knownOnly fails if a mapping has a key that is not known.
func knownOnly(n *yaml.Node, known []string) error {
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if !slices.Contains(known, key.Value) {
			return wrong(key.Line, "%s is not known here: want one of %s", key.Value, strings.Join(known, ", "))
		}
	}
	return nil
}
