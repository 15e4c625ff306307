package plan

import (
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// mappings are the types that a text's mappings are read into.
var mappings = []any{Plan{}, Objectives{}, NetworkMap{}, Around{}, Group{}, machineFields{}, Verify{}, Drill{}, Action{}, Script{}, Secret{}, Guest{}, Webhook{}, Manual{}, Wait{}}

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
		if n.Content[i].Value == "verify" {
			if err := knownOnly(n.Content[i+1], fields("Verify")); err != nil {
				return err
			}
		}
	}
	return n.Decode((*machineFields)(m))
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
