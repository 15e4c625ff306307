package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/qemutool"
)

// Settings are a site's settings.
type Settings struct {
	// Directory has the definitions of the site's machines.
	Directory string `json:"directory"`
}

// site is an open site. It keeps nothing in memory but where it is: all state
// is in the directory and in the processes.
type site struct {
	dir       string
	interrupt func(step string) error // see hydration
}

var (
	_ provider.Inventory = (*site)(nil)
	_ provider.Source    = (*site)(nil)
	_ provider.Target    = (*site)(nil)
	_ provider.Replica   = (*site)(nil)
	_ provider.Agent     = (*site)(nil)
	_ provider.Console   = (*site)(nil)
	_ provider.Power     = power{}
)

// Open opens a site from its settings. The directory must exist.
func Open(_ context.Context, settings json.RawMessage) (*provider.Site, error) {
	var s Settings
	dec := json.NewDecoder(bytes.NewReader(settings))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return nil, fmt.Errorf("settings of qemu site: %w; want {\"directory\": \"/path\"}", err)
	}
	if s.Directory == "" {
		return nil, errors.New("settings of qemu site name no directory; want {\"directory\": \"/path\"}")
	}
	dir, err := filepath.Abs(s.Directory)
	if err != nil {
		return nil, fmt.Errorf("settings of qemu site: directory %s: %w", s.Directory, err)
	}
	st, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("open qemu site: %w", err)
	}
	if !st.IsDir() {
		return nil, fmt.Errorf("open qemu site: %s is not a directory", dir)
	}
	sv := &site{dir: dir}
	return &provider.Site{
		Inventory: sv, Source: sv, Target: sv, OpenLive: qemutool.Live, Power: power{sv}, Replica: sv, Agent: sv, Console: sv, Probe: probe{sv},
		Close: func() error { return nil },
	}, nil
}
