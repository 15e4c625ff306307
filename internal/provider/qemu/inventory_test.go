package qemu_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/qemu"
)

func TestOpenSettings(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, settings, want string
	}{
		{"good", `{"directory":"` + dir + `"}`, ""},
		{"unknown key", `{"directory":"` + dir + `","dir":"x"}`, `unknown field "dir"`},
		{"empty", `{}`, "name no directory"},
		{"not JSON", `hello`, "settings of qemu site"},
		{"missing", `{"directory":"` + dir + `/none"}`, "no such file"},
		{"a file", `{"directory":"` + file + `"}`, "is not a directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, err := qemu.Open(t.Context(), json.RawMessage(c.settings))
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("Open(%s): got %v, want %q", c.settings, err, c.want)
			}
		})
	}
}

// define writes a machine file.
func (b *bench) define(name string, change func(*qemu.Definition)) qemu.Definition {
	b.t.Helper()
	d := qemu.Definition{
		Name: name, ID: "00000000-0000-4000-8000-0000000000" + name[len(name)-2:], CPUs: 1, Memory: 64 * mib, Accel: "tcg",
		Disks: []qemu.DiskDef{{ID: "vda", Path: filepath.Join(b.dir, name+".qcow2"), Format: "qcow2"}},
		QMP:   filepath.Join(b.dir, name+".qmp"), PIDFile: filepath.Join(b.dir, name+".pid"), Serial: filepath.Join(b.dir, name+".log"),
	}
	if change != nil {
		change(&d)
	}
	raw, err := json.Marshal(d)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.dir, name+".json"), raw, 0o644); err != nil {
		b.t.Fatal(err)
	}
	return d
}

func TestInventory(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	good := b.define("web01", nil)
	b.run("qemu-img", "create", "-q", "-f", "qcow2", good.Disks[0].Path, "64M")
	b.define("empty02", func(d *qemu.Definition) { d.Disks = nil })
	b.define("vmdk03", func(d *qemu.Definition) { d.Disks[0].Format = "vmdk" })
	b.define("gone04", func(d *qemu.Definition) { d.Disks[0].ReadOnly = true })
	if err := os.WriteFile(filepath.Join(b.dir, "broken.json"), []byte(`{"name":"broken","colour":1}`), 0o644); err != nil {
		t.Fatal(err)
	}

	machines, err := b.site.Inventory.Machines(t.Context())
	b.must(err)
	want := map[string]string{ // a part of an obstacle
		"broken": "unknown field", "empty02": "no disks", "vmdk03": "convert it", "gone04": "read-only", "web01": "",
	}
	var names []string
	for _, m := range machines {
		names = append(names, m.Name)
		all := strings.Join(m.Obstacles, "; ")
		if want[m.Name] == "" && all != "" || !strings.Contains(all, want[m.Name]) {
			t.Errorf("machine %s has obstacles %q, want %q", m.Name, all, want[m.Name])
		}
	}
	if !slices.IsSorted(names) || len(names) != len(want) {
		t.Errorf("machines: got %v, want %d sorted by name", names, len(want))
	}

	m, err := b.site.Inventory.Machine(t.Context(), good.ID)
	b.must(err)
	if m.Name != "web01" || m.Power != provider.PowerOff || m.Disks[0].Size != 64*mib || !m.Disks[0].Boot {
		t.Errorf("machine by id: %+v", m)
	}
	if _, err := b.site.Inventory.Machine(t.Context(), "nobody"); !errors.Is(err, provider.ErrNotFound) {
		t.Errorf("unknown machine: got %v, want ErrNotFound", err)
	}
	if _, err := b.site.Inventory.Machine(t.Context(), "../web01"); !errors.Is(err, provider.ErrNotFound) {
		t.Errorf("name with a path: got %v, want ErrNotFound", err)
	}
}

func TestStartStopMachine(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	d := b.define("web01", func(d *qemu.Definition) {
		d.NICs = []qemu.NICDef{{ID: "net0", Network: "user"}, {ID: "net1", Network: "restricted"}, {ID: "net2", Network: "none"}}
	})
	b.run("qemu-img", "create", "-q", "-f", "qcow2", d.Disks[0].Path, "64M")
	ctx := t.Context()
	if _, err := b.site.Source.Monitor(ctx, d.ID); !errors.Is(err, provider.ErrNotRunning) {
		t.Errorf("monitor of a machine that is off: got %v, want ErrNotRunning", err)
	}
	b.must(b.site.Source.Shutdown(ctx, d.ID))
	b.must(qemu.StartMachine(ctx, b.dir, "web01"))
	b.must(qemu.StartMachine(ctx, b.dir, "web01"))
	if p := b.power("web01"); p != provider.PowerRunning {
		t.Fatalf("after start: %s", p)
	}
	b.guest("web01", "write -P 1 0 64k")
	b.must(qemu.StopMachine(ctx, b.dir, "web01"))
	b.must(qemu.StopMachine(ctx, b.dir, "web01"))
	b.contains("web01", map[int]byte{0: 1, 1: 0})
	if p := b.power("web01"); p != provider.PowerOff {
		t.Fatalf("after stop: %s", p)
	}
	// A pid file that names another process is not this machine.
	b.must(os.WriteFile(d.PIDFile, []byte("1\n"), 0o644))
	if p := b.power("web01"); p != provider.PowerOff {
		t.Fatalf("with a foreign pid: %s", p)
	}
	b.must(qemu.StartMachine(ctx, b.dir, "web01"))
	b.must(b.site.Source.Kill(ctx, d.ID))
	b.must(b.site.Source.Kill(ctx, d.ID))

	b.must(os.Remove(d.Disks[0].Path))
	err := qemu.StartMachine(ctx, b.dir, "web01")
	if err == nil || !strings.Contains(err.Error(), "web01.qcow2") {
		t.Errorf("start without its disk: got %v, want an error that names it", err)
	}
}
