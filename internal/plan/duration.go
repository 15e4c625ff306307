package plan

import (
	"fmt"
	"time"

	"go.yaml.in/yaml/v3"
)

// Duration is a time span, written like 90s, 10m or 24h, or in days: 7d.
type Duration time.Duration

// UnmarshalYAML reads it.
func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	text := n.Value
	var days int
	if rest, err := fmt.Sscanf(text, "%dd", &days); err == nil && rest == 1 && text == fmt.Sprintf("%dd", days) && days >= 0 && days <= 3650 {
		*d = Duration(time.Duration(days) * 24 * time.Hour)
		return nil
	}
	v, err := time.ParseDuration(text)
	if err != nil || v < 0 || n.Kind != yaml.ScalarNode {
		return wrong(n.Line, "%q is not a time span: want one like 90s, 10m, 24h or 7d", text)
	}
	*d = Duration(v)
	return nil
}

// MarshalYAML writes it.
func (d Duration) MarshalYAML() (any, error) { return time.Duration(d).String(), nil }

// String returns it as Go writes time spans.
func (d Duration) String() string { return time.Duration(d).String() }
