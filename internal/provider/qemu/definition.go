package qemu

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/holdfast-dr/holdfast/internal/provider"
)

// The networks that a site of this provider has.
const (
	networkUser       = "user"
	networkRestricted = "restricted"
	networkNone       = "none"
)

const (
	definitionSuffix = ".json"
	maxDefinition    = 1 << 20
	maxSocketPath    = 107 // Linux: sun_path without its final zero
)

var (
	nameRE   = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._ -]{0,99}$`)
	handleRE = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$`)
	diskRE   = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)
	macRE    = regexp.MustCompile(`^([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}$`)
)

// Definition is a machine as its file describes it; see the package comment.
type Definition struct {
	Name    string    `json:"name"`
	ID      string    `json:"id"`
	CPUs    int       `json:"cpus"`
	Memory  int64     `json:"memory"` // bytes
	Machine string    `json:"machine,omitempty"`
	Accel   string    `json:"accel,omitempty"`
	Disks   []DiskDef `json:"disks"`
	NICs    []NICDef  `json:"nics,omitempty"`
	Serial  string    `json:"serial,omitempty"`
	QMP     string    `json:"qmp"`
	Agent   string    `json:"agent,omitempty"`
	PIDFile string    `json:"pidfile"`
	Display bool      `json:"display,omitempty"`
	Seed    string    `json:"seed,omitempty"` // image of a drive for cloud-init
	Extra   []string  `json:"extra,omitempty"`
	Handle  string    `json:"handle,omitempty"` // of the recovery that made it

	dir string // where it was loaded from
}

// DiskDef is a disk in a Definition.
type DiskDef struct {
	ID       string `json:"id"`
	Path     string `json:"path"`
	Format   string `json:"format"`
	Size     int64  `json:"size,omitempty"` // bytes
	ReadOnly bool   `json:"read_only,omitempty"`
	// View is what lies under the file until the disk is hydrated.
	View *View `json:"view,omitempty"`
}

// View is an NBD export of a moment of a stream.
type View struct {
	Socket string `json:"socket,omitempty"`
	Addr   string `json:"addr,omitempty"`
	Export string `json:"export"`
}

// NICDef is a network interface in a Definition.
type NICDef struct {
	ID      string `json:"id"`
	MAC     string `json:"mac,omitempty"`
	Network string `json:"network"`
}

// Validate returns what is wrong with a definition.
func (d Definition) Validate() error {
	switch {
	case !nameRE.MatchString(d.Name):
		return fmt.Errorf("machine name %q: want 1 to 100 letters, digits, spaces, dots, dashes or underscores", d.Name)
	case d.ID == "":
		return fmt.Errorf("machine %s has no id", d.Name)
	case d.CPUs < 1 || d.CPUs > 1024:
		return fmt.Errorf("machine %s has %d cpus: want 1 to 1024", d.Name, d.CPUs)
	case d.Memory < 1<<20:
		return fmt.Errorf("machine %s has %d bytes of memory: want at least 1 MiB", d.Name, d.Memory)
	case d.Machine != "q35" && d.Machine != "pc":
		return fmt.Errorf("machine %s is of type %q: want q35 or pc", d.Name, d.Machine)
	case d.QMP == "" || d.PIDFile == "":
		return fmt.Errorf("machine %s has no qmp socket or pidfile", d.Name)
	case len(d.QMP) > maxSocketPath:
		return fmt.Errorf("monitor socket %s of machine %s: path is longer than %d bytes; use a shorter directory", d.QMP, d.Name, maxSocketPath)
	case len(d.Agent) > maxSocketPath:
		return fmt.Errorf("agent socket %s of machine %s: path is longer than %d bytes; use a shorter directory", d.Agent, d.Name, maxSocketPath)
	}
	seen := map[string]bool{}
	for _, disk := range d.Disks {
		if !diskRE.MatchString(disk.ID) || seen[disk.ID] {
			return fmt.Errorf("machine %s: disk id %q: want 1 to 32 of a-z, 0-9 and dash, each id once", d.Name, disk.ID)
		}
		seen[disk.ID] = true
		if disk.Path == "" {
			return fmt.Errorf("machine %s: disk %s has no path", d.Name, disk.ID)
		}
	}
	for _, n := range d.NICs {
		if !diskRE.MatchString(n.ID) || seen[n.ID] {
			return fmt.Errorf("machine %s: nic id %q: want 1 to 32 of a-z, 0-9 and dash, each id once", d.Name, n.ID)
		}
		seen[n.ID] = true
		if n.MAC != "" && !macRE.MatchString(n.MAC) {
			return fmt.Errorf("machine %s: nic %s has mac %q: want six hexadecimal pairs with colons", d.Name, n.ID, n.MAC)
		}
		if !isNetwork(n.Network) {
			return fmt.Errorf("machine %s: nic %s has network %q: want user, restricted or none", d.Name, n.ID, n.Network)
		}
	}
	return nil
}

func isNetwork(name string) bool {
	return name == networkUser || name == networkRestricted || name == networkNone
}

// applyDefaults fills what may be left out.
func (d *Definition) applyDefaults() {
	if d.Machine == "" {
		d.Machine = "q35"
	}
	if d.Accel == "" {
		d.Accel = "kvm:tcg"
	}
}

// definitionPath returns where the definition of a name is.
func definitionPath(dir, name string) string { return filepath.Join(dir, name+definitionSuffix) }

// loadDefinition reads the definition of a machine by its name.
func loadDefinition(dir, name string) (Definition, error) {
	if !nameRE.MatchString(name) {
		return Definition{}, fmt.Errorf("machine %q: %w", name, provider.ErrNotFound)
	}
	path := definitionPath(dir, name)
	b, err := readBounded(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Definition{}, fmt.Errorf("machine %q: %w in %s", name, provider.ErrNotFound, dir)
	}
	if err != nil {
		return Definition{}, fmt.Errorf("read definition of %s: %w", name, err)
	}
	d, err := parseDefinition(b)
	if err != nil {
		return d, fmt.Errorf("definition %s: %w", path, err)
	}
	if d.Name != name {
		return d, fmt.Errorf("definition %s is of a machine named %q; rename the file or the machine", path, d.Name)
	}
	d.dir = dir
	return d, nil
}

func parseDefinition(b []byte) (Definition, error) {
	var d Definition
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		return d, err
	}
	d.applyDefaults()
	return d, d.Validate()
}

func readBounded(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Size() > maxDefinition {
		return nil, fmt.Errorf("%s is longer than %d bytes", path, maxDefinition)
	}
	return os.ReadFile(path)
}

// definitionNames lists the machines of a site, sorted.
func definitionNames(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list machines of site %s: %w", dir, err)
	}
	var names []string
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), definitionSuffix)
		if ok && !e.IsDir() && nameRE.MatchString(name) {
			names = append(names, name)
		}
	}
	return names, nil
}

// saveJSON and saveFile replace a file as a whole; it is durable when they
// return. With exclusive the file must not exist yet, else fs.ErrExist.
func saveJSON(path string, v any, exclusive bool) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return saveFile(path, append(b, '\n'), exclusive)
}

func saveFile(path string, b []byte, exclusive bool) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if exclusive {
		err = os.Link(f.Name(), path)
	} else {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
