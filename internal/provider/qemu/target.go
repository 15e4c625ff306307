package qemu

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/qemutool"
)

// recoveredDir has a directory for each handle.
const recoveredDir = "recovered"

// state is what a recovery must remember, in recovered/HANDLE/state.json. It is
// written before what it announces is done.
type state struct {
	Recovered provider.Recovered `json:"recovered"`
	MachineID string             `json:"machine_id"`
	// Switching says that the machine may have been stopped for the moment in
	// which its disks change from overlay to hydrated file.
	Switching bool `json:"switching"`
}

// recovery is one handle, locked against everyone else.
type recovery struct {
	site *site
	dir  string
	lock *os.File
	state
}

func (s *site) recoveryDir(handle string) string { return filepath.Join(s.dir, recoveredDir, handle) }

// openRecovery locks a handle and loads its state; a handle that was never
// defined is provider.ErrNotFound. The caller calls close.
func (s *site) openRecovery(ctx context.Context, handle string) (*recovery, error) {
	if !handleRE.MatchString(handle) {
		return nil, fmt.Errorf("recovery handle %q: want 1 to 64 letters, digits, dots, dashes or underscores", handle)
	}
	dir := s.recoveryDir(handle)
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("recovery %s: %w", handle, provider.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("recovery %s: %w", handle, err)
	}
	if err := flock(ctx, f); err != nil {
		return nil, errors.Join(fmt.Errorf("lock recovery %s: %w", handle, err), f.Close())
	}
	r := &recovery{site: s, dir: dir, lock: f}
	b, err := readBounded(r.path("state.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("recovery %s: %w", handle, provider.ErrNotFound), r.close())
	}
	if err == nil {
		err = json.Unmarshal(b, &r.state)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read state of recovery %s: %w", handle, err), r.close())
	}
	return r, nil
}

// flock locks a file against other processes and other openings of it.
func flock(ctx context.Context, f *os.File) error {
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.C:
		}
	}
}

func (r *recovery) path(name string) string { return filepath.Join(r.dir, name) }
func (r *recovery) save() error             { return saveJSON(r.path("state.json"), r.state, false) }
func (r *recovery) close() error            { return r.lock.Close() } // unlocks

// definition loads the machine's definition, or what it shall be if Define was
// interrupted before it was written.
func (r *recovery) definition() (Definition, error) {
	d, err := loadDefinition(r.site.dir, r.Recovered.Name)
	if err != nil {
		return d, err
	}
	if d.Handle != r.Recovered.Handle {
		return d, fmt.Errorf("recover machine %s: %w in %s", d.Name, provider.ErrNameTaken, r.site.dir)
	}
	return d, nil
}

// Define makes the overlays and the machine file. Repeated with the same handle
// it changes nothing that is there.
func (s *site) Define(ctx context.Context, want provider.Recovered) (machineID string, err error) {
	r, err := s.openRecovery(ctx, want.Handle)
	if errors.Is(err, provider.ErrNotFound) {
		if err := s.checkName(want); err != nil {
			return "", err
		}
		if err := s.begin(want); err != nil {
			return "", fmt.Errorf("recover machine %s: %w", want.Name, err)
		}
		r, err = s.openRecovery(ctx, want.Handle)
	}
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	switch _, err := r.definition(); {
	case err == nil:
		return r.MachineID, nil
	case errors.Is(err, provider.ErrNameTaken) && want.Name == r.Recovered.Name:
		return "", err
	case !errors.Is(err, provider.ErrNameTaken) && !errors.Is(err, provider.ErrNotFound):
		return "", err
	}
	// Nothing was announced yet, so the wish may have changed.
	if r.Recovered.Name != want.Name {
		if err := s.checkName(want); err != nil {
			return "", err
		}
	}
	r.Recovered = want
	if err := r.save(); err != nil {
		return "", fmt.Errorf("recover machine %s: %w", want.Name, err)
	}
	d, err := r.plan()
	if err != nil {
		return "", err
	}
	for _, disk := range d.Disks {
		if err := makeOverlay(ctx, disk); err != nil {
			return "", fmt.Errorf("recover machine %s: %w", d.Name, err)
		}
	}
	if want.Seed != nil {
		if err := qemutool.WriteSeed(d.Seed, *want.Seed); err != nil {
			return "", fmt.Errorf("recover machine %s: %w", d.Name, err)
		}
	}
	err = saveJSON(definitionPath(s.dir, d.Name), d, true)
	if errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("recover machine %s: %w in %s; choose another name", d.Name, provider.ErrNameTaken, s.dir)
	}
	if err != nil {
		return "", fmt.Errorf("recover machine %s: %w", d.Name, err)
	}
	return r.MachineID, nil
}

// checkName refuses what Define would refuse, before anything was made.
func (s *site) checkName(want provider.Recovered) error {
	if !nameRE.MatchString(want.Name) {
		return fmt.Errorf("recover machine %q: the name may have letters, digits, spaces, dots, dashes and underscores", want.Name)
	}
	for _, name := range want.TargetNetworks() {
		if !isNetwork(name) {
			return fmt.Errorf("recover machine %s: the site has no network %q; it has user, restricted and none", want.Name, name)
		}
	}
	if len(want.Disks) == 0 {
		return fmt.Errorf("recover machine %s: no disks were given", want.Name)
	}
	_, err := os.Lstat(definitionPath(s.dir, want.Name))
	if err == nil {
		return fmt.Errorf("recover machine %s: %w in %s; choose another name", want.Name, provider.ErrNameTaken, s.dir)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// begin records what is intended. The machine's id is drawn here, once.
func (s *site) begin(want provider.Recovered) error {
	if !handleRE.MatchString(want.Handle) {
		return fmt.Errorf("handle %q: want 1 to 64 letters, digits, dots, dashes or underscores", want.Handle)
	}
	dir := s.recoveryDir(want.Handle)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	err := saveJSON(filepath.Join(dir, "state.json"), state{Recovered: want, MachineID: newUUID()}, true)
	if errors.Is(err, fs.ErrExist) {
		return nil // another call was faster
	}
	return errors.Join(err, syncDir(filepath.Join(s.dir, recoveredDir)), syncDir(s.dir))
}

// newUUID returns a random UUID of version 4.
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand aborts the program instead
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// plan returns the definition of the recovered machine.
func (r *recovery) plan() (Definition, error) {
	want := r.Recovered
	if want.Machine.Firmware == "uefi" {
		return Definition{}, fmt.Errorf("recover machine %s: it boots by UEFI, which this provider cannot; use a libvirt site", want.Name)
	}
	d := Definition{
		Name: want.Name, ID: r.MachineID, CPUs: max(want.Machine.CPUs, 1), Memory: want.Machine.Memory, Handle: want.Handle,
		QMP: r.path("qmp.sock"), PIDFile: r.path("pid"), Serial: r.path("serial.log"),
		Agent: r.path("qga.sock"), Display: true,
	}
	if want.Seed != nil {
		d.Seed = r.path("seed.iso")
	}
	if d.Memory < 1<<20 {
		d.Memory = 512 << 20
	}
	// The source's own definition, if it was of this provider, knows more.
	var source struct{ Machine, Accel string }
	if err := json.Unmarshal(want.Machine.Config, &source); err == nil && (source.Machine == "q35" || source.Machine == "pc") {
		d.Machine, d.Accel = source.Machine, source.Accel
	}
	d.applyDefaults()
	for _, disk := range want.Disks {
		d.Disks = append(d.Disks, DiskDef{
			ID: disk.DiskID, Path: r.path(disk.DiskID + ".overlay.qcow2"), Format: "qcow2", Size: disk.Size,
			View: &View{Socket: disk.Socket, Addr: disk.Addr, Export: disk.Export},
		})
	}
	for i, n := range want.Machine.NICs {
		network := networkUser
		switch name, connected := want.NetworkOf(n.Network); {
		case !connected:
			network = networkRestricted
		case isNetwork(name):
			network = name
		}
		d.NICs = append(d.NICs, NICDef{ID: fmt.Sprintf("net%d", i), MAC: n.MAC, Network: network})
	}
	return d, d.Validate()
}

// makeOverlay makes the file that takes a recovered machine's writes, if it is
// not there. It names its view, so that nobody takes it for a whole disk.
func makeOverlay(ctx context.Context, disk DiskDef) error {
	if _, err := os.Stat(disk.Path); err == nil {
		return nil
	}
	temp := disk.Path + ".new"
	backing := mustJSON(map[string]any{"driver": "raw", "file": disk.View.blockdev("")})
	args := []string{"create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "json:" + backing, temp, fmt.Sprint(disk.Size)}
	if err := qemuImg(ctx, args...); err != nil {
		return err
	}
	return errors.Join(os.Rename(temp, disk.Path), syncDir(filepath.Dir(disk.Path)))
}

func qemuImg(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "qemu-img", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("qemu-img %s: %w: %s", args[0], err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Start powers the machine on. A machine that was paused by a failing view, or
// by an interrupted Hydrate, goes on.
func (s *site) Start(ctx context.Context, handle string) (err error) {
	r, err := s.openRecovery(ctx, handle)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	d, err := r.definition()
	if err != nil {
		return err
	}
	if err := d.spawn(ctx); err != nil {
		return err
	}
	mon := perCommand{socket: d.QMP}
	if err := d.checkGuard(); err != nil { // a machine that runs goes on, one that is paused does not
		if st, serr := queryStatus(ctx, mon); serr != nil || !st.Running {
			return errors.Join(err, serr)
		}
		return nil
	}
	if r.Switching {
		return r.finishSwitch(ctx, d, mon)
	}
	return r.resume(ctx, mon, "io-error")
}

// resume lets the machine go on if it is paused for one of the reasons.
func (r *recovery) resume(ctx context.Context, mon provider.Monitor, reasons ...string) error {
	st, err := queryStatus(ctx, mon)
	if err == nil && slices.Contains(reasons, st.Status) {
		err = mon.Execute(ctx, "cont", nil, nil)
	}
	if err != nil {
		return fmt.Errorf("resume machine %s: %w", r.Recovered.Name, err)
	}
	return nil
}

// Status reports power and hydration.
func (s *site) Status(ctx context.Context, handle string) (st provider.Status, err error) {
	if err := ctx.Err(); err != nil {
		return st, err
	}
	b, err := readBounded(filepath.Join(s.recoveryDir(handle), "state.json"))
	if errors.Is(err, fs.ErrNotExist) || !handleRE.MatchString(handle) {
		return st, fmt.Errorf("recovery %s: %w", handle, provider.ErrNotFound)
	}
	r := &recovery{site: s, dir: s.recoveryDir(handle)} // not locked: a hydration may hold the lock for hours
	if err == nil {
		err = json.Unmarshal(b, &r.state)
	}
	if err != nil {
		return st, fmt.Errorf("read state of recovery %s: %w", handle, err)
	}
	st.MachineID, st.Power = r.MachineID, provider.PowerOff
	d, err := r.definition()
	if errors.Is(err, provider.ErrNotFound) {
		st.NeedsView = true
		return st, nil // Define was interrupted
	}
	if err != nil {
		return st, err
	}
	for _, disk := range d.Disks {
		st.Total += disk.Size
		if disk.View != nil {
			st.NeedsView = true
		} else {
			st.Hydrated += disk.Size
		}
	}
	mon, err := d.monitor()
	if errors.Is(err, provider.ErrNotRunning) {
		return st, nil
	}
	if err != nil {
		return st, err
	}
	if info, err := os.Stat(d.PIDFile); err == nil {
		st.StartedAt = info.ModTime()
	}
	return st, r.live(ctx, d, mon, &st)
}

// live adds what the monitor of the running machine tells.
func (r *recovery) live(ctx context.Context, d Definition, mon provider.Monitor, st *provider.Status) error {
	ctx, cancel := context.WithTimeout(ctx, monitorPatience)
	defer cancel()
	run, err := queryStatus(ctx, mon)
	if err != nil {
		st.Power = provider.PowerUnknown
		return fmt.Errorf("status of recovery %s: %w", r.Recovered.Handle, err)
	}
	st.Power = run.power()
	jobs, err := queryBlockJobs(ctx, mon)
	if err != nil {
		return fmt.Errorf("status of recovery %s: %w", r.Recovered.Handle, err)
	}
	for _, disk := range d.Disks {
		for _, j := range jobs {
			if disk.View != nil && j.Device == hydratePrefix+disk.ID && j.Len > 0 {
				st.Hydrated += int64(float64(disk.Size) * float64(j.Offset) / float64(j.Len))
			}
		}
	}
	return nil
}

// Remove kills the machine and removes every trace of it.
func (s *site) Remove(ctx context.Context, handle string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r, err := s.openRecovery(ctx, handle)
	if errors.Is(err, provider.ErrNotFound) {
		if handleRE.MatchString(handle) {
			return os.RemoveAll(s.recoveryDir(handle)) // begun, nothing announced
		}
		return nil
	}
	if err != nil {
		return err
	}
	err = r.undefine(ctx)
	if err == nil {
		err = os.RemoveAll(r.dir)
	}
	// Who found the definition before it was removed may lay a lock here once more.
	for range 10 {
		if errors.Is(err, syscall.ENOTEMPTY) {
			err = os.RemoveAll(r.dir)
		}
	}
	if err := errors.Join(err, r.close()); err != nil {
		return fmt.Errorf("remove recovery %s: %w", handle, err)
	}
	return nil
}

// undefine kills the machine and removes its definition, while nobody starts it
// or does anything else with it.
func (r *recovery) undefine(ctx context.Context) (err error) {
	d, err := r.definition()
	if errors.Is(err, provider.ErrNotFound) || errors.Is(err, provider.ErrNameTaken) {
		return nil // never defined, or removed already
	}
	if err != nil {
		return err
	}
	d, lock, err := d.lockPower(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := d.kill(ctx); err != nil {
		return err
	}
	if err := d.unguard(); err != nil { // first, so that no later machine of the name inherits it
		return err
	}
	return os.Remove(definitionPath(d.dir, d.Name))
}
