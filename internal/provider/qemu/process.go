package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/internal/provider"
)

// binary is the QEMU that is started.
const binary = "qemu-system-x86_64"

// reconnectDelay is for how long, in seconds, a recovered machine's read waits
// for a view that has gone away. It is only used there: at the source a delay
// would make the guest's writes wait.
const reconnectDelay = 600

// The names of block nodes.
func diskNode(id string) string    { return nodeName("hf-", id) }
func viewNode(id string) string    { return nodeName("hv-", id) }
func hydrateNode(id string) string { return nodeName("hh-", id) }
func fileNode(node string) string  { return node + "-f" }

// nodeName keeps names, and those of their file nodes, within the 31 bytes that
// QEMU allows.
func nodeName(prefix, id string) string {
	if len(id) <= 24 {
		return prefix + id
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(id)) // never fails
	return fmt.Sprintf("%s%016x", prefix, h.Sum64())
}

// arguments returns the command line for a machine, without the program.
func (d Definition) arguments() []string {
	args := []string{
		"-name", "guest=" + strings.ReplaceAll(d.Name, ",", ",,"),
		"-uuid", d.ID,
		"-daemonize", "-no-user-config", "-nodefaults", "-display", "none",
		"-machine", d.Machine,
		"-smp", strconv.Itoa(d.CPUs),
		"-m", strconv.FormatInt(d.Memory>>20, 10),
		"-pidfile", d.PIDFile,
		"-qmp", "unix:" + strings.ReplaceAll(d.QMP, ",", ",,") + ",server=on,wait=off",
	}
	for accel := range strings.SplitSeq(d.Accel, ":") {
		if accel != "kvm" || kvmUsable() {
			args = append(args, "-accel", accel)
		}
	}
	if d.Serial != "" {
		args = append(args, "-chardev", "file,id=serial0,append=on,path="+strings.ReplaceAll(d.Serial, ",", ",,"),
			"-serial", "chardev:serial0")
	}
	for i, disk := range d.Disks {
		args = append(args, disk.arguments(i+1, d.Handle != "")...)
	}
	for _, n := range d.NICs {
		args = append(args, n.arguments()...)
	}
	// After disks and interfaces, so that these keep their places on the bus.
	if d.Agent != "" {
		args = append(args, "-chardev", "socket,id=hf-agent,server=on,wait=off,path="+strings.ReplaceAll(d.Agent, ",", ",,"),
			"-device", "virtio-serial-pci,id=hf-serial", "-device", "virtserialport,bus=hf-serial.0,chardev=hf-agent,name="+agentChannel)
	}
	if d.Seed != "" {
		args = append(args, "-blockdev", mustJSON(map[string]any{"driver": "raw", "node-name": "hf-seed", "read-only": true,
			"file": map[string]any{"driver": "file", "filename": d.Seed, "read-only": true}}),
			"-device", mustJSON(map[string]any{"driver": "virtio-blk-pci", "id": "hf-seed-drive", "drive": "hf-seed"}))
	}
	if d.Display {
		args = append(args, "-device", "VGA,id=hf-vga")
	}
	return append(args, d.Extra...)
}

func (disk DiskDef) arguments(bootIndex int, recovered bool) []string {
	var args []string
	if disk.View != nil {
		args = append(args, "-blockdev", mustJSON(disk.View.blockdev(viewNode(disk.ID))))
	}
	for _, bd := range disk.blockdevs(diskNode(disk.ID)) {
		args = append(args, "-blockdev", mustJSON(bd))
	}
	dev := map[string]any{"driver": "virtio-blk-pci", "id": disk.ID, "drive": diskNode(disk.ID), "bootindex": bootIndex}
	if recovered {
		// A view that fails, or a full disk, pauses the machine; it goes on
		// once the cause is gone.
		dev["rerror"], dev["werror"] = "stop", "stop"
	}
	return append(args, "-device", mustJSON(dev))
}

// blockdevs describes the nodes of a disk's file, the lower one first.
func (disk DiskDef) blockdevs(node string) []map[string]any {
	file := map[string]any{"driver": "file", "node-name": fileNode(node), "filename": disk.Path, "discard": "unmap"}
	top := map[string]any{"driver": disk.Format, "node-name": node, "file": fileNode(node), "discard": "unmap"}
	if disk.ReadOnly {
		file["read-only"], top["read-only"] = true, true
	}
	if disk.View != nil {
		top["backing"] = viewNode(disk.ID)
	}
	return []map[string]any{file, top}
}

// blockdev describes the view as a block node; node may be empty.
func (v View) blockdev(node string) map[string]any {
	server := map[string]any{"type": "unix", "path": v.Socket}
	if v.Socket == "" {
		host, port, err := net.SplitHostPort(v.Addr)
		if err != nil {
			host, port = v.Addr, "10809"
		}
		server = map[string]any{"type": "inet", "host": host, "port": port}
	}
	bd := map[string]any{
		"driver": "nbd", "server": server, "export": v.Export,
		"read-only": true, "reconnect-delay": reconnectDelay, "open-timeout": 10,
	}
	if node != "" {
		bd["node-name"] = node
	}
	return bd
}

func (n NICDef) arguments() []string {
	dev := map[string]any{"driver": "virtio-net-pci", "id": n.ID, "romfile": ""}
	if n.MAC != "" {
		dev["mac"] = n.MAC
	}
	if n.Network == networkNone {
		return []string{"-device", mustJSON(dev)}
	}
	back := map[string]any{"type": "user", "id": n.ID + "-b"}
	if n.Network == networkRestricted {
		back["restrict"], back["ipv6"] = true, false
	}
	dev["netdev"] = n.ID + "-b"
	return []string{"-netdev", mustJSON(back), "-device", mustJSON(dev)}
}

func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic("qemu: encode argument: " + err.Error()) // maps of strings, numbers and booleans
	}
	return string(b)
}

func kvmUsable() bool {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	return f.Close() == nil
}

// pid returns the process of the machine, or 0 if it does not run. A pid that
// now belongs to another process is not it: its command line must name the
// machine's monitor socket.
func (d Definition) pid() (int, error) {
	b, err := os.ReadFile(d.PIDFile)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read pid of machine %s: %w", d.Name, err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return 0, nil // QEMU is writing it, or it is torn
	}
	cmdline, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil || len(cmdline) == 0 { // gone, or a zombie
		return 0, nil
	}
	want := []byte("unix:" + strings.ReplaceAll(d.QMP, ",", ",,") + ",")
	for arg := range bytes.SplitSeq(cmdline, []byte{0}) {
		if bytes.HasPrefix(arg, want) {
			return pid, nil
		}
	}
	return 0, nil
}

// lockPower locks the machine against being started, guarded, removed and having
// its disks opened at the same time, by this process and others. The caller
// closes the file, which unlocks. It returns the definition as it is then, or
// provider.ErrNotFound if the machine was removed meanwhile.
func (d Definition) lockPower(ctx context.Context) (now Definition, lock *os.File, err error) {
	if d.Handle == "" { // else it is there unless the machine was removed
		if err := os.MkdirAll(filepath.Dir(d.PIDFile), 0o755); err != nil {
			return d, nil, err
		}
	}
	lock, err = os.OpenFile(d.PIDFile+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil, provider.ErrNotFound
	}
	if err != nil {
		return d, nil, err
	}
	if err = flock(ctx, lock); err != nil {
		err = fmt.Errorf("lock %s: %w", lock.Name(), err)
	} else if now, err = loadDefinition(d.dir, d.Name); err == nil && now.ID != d.ID {
		err = fmt.Errorf("%w: another one has its name now", provider.ErrNotFound)
	}
	if err != nil {
		return d, nil, errors.Join(err, lock.Close())
	}
	return now, lock, nil
}

// spawn starts QEMU and returns when it has opened its disks and monitor. It
// is no error if the machine runs; a guarded one is not started. QEMU locks the
// pid file, so that there is never a second process, whoever else starts it.
func (d Definition) spawn(ctx context.Context) (err error) {
	if pid, err := d.pid(); pid != 0 || err != nil {
		return err
	}
	now, lock, err := d.lockPower(ctx)
	if err != nil {
		return fmt.Errorf("start machine %s: %w", d.Name, err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if pid, err := now.pid(); pid != 0 || err != nil {
		return err
	}
	if err := now.checkGuard(); err != nil {
		return err
	}
	return now.launch(ctx)
}

// launch starts QEMU, with the power locked.
func (d Definition) launch(ctx context.Context) error {
	for _, path := range []string{d.QMP, d.Agent, d.Serial} {
		if path == "" {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("start machine %s: %w", d.Name, err)
		}
	}
	said, err := d.run(ctx)
	// A process that was killed may hold the pid file's lock a moment longer than
	// it is seen.
	for end := time.Now().Add(lockPatience); err != nil && strings.Contains(said, "Cannot lock pid file") && time.Now().Before(end); {
		if pid, perr := d.pid(); perr == nil && pid != 0 || wait(ctx, 50*time.Millisecond) != nil {
			break
		}
		said, err = d.run(ctx)
	}
	if err == nil {
		return nil
	}
	if pid, perr := d.pid(); perr == nil && pid != 0 {
		return nil // another start was faster, or an interrupted one went on
	}
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("start machine %s: %w; install the package qemu-system-x86", d.Name, err)
	}
	return fmt.Errorf("start machine %s: QEMU: %w: %s", d.Name, err, said)
}

// lockPatience is for how long a start waits for the lock of a pid file that no
// process is seen to hold.
const lockPatience = 5 * time.Second

// run starts QEMU, which goes into the background, and returns what it said.
func (d Definition) run(ctx context.Context) (said string, err error) {
	cmd := exec.CommandContext(ctx, binary, d.arguments()...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err = cmd.Run()
	return strings.TrimSpace(stderr.String()), err
}

// kill takes the power away and waits until the process is gone.
func (d Definition) kill(ctx context.Context) error {
	pid, err := d.pid()
	if pid == 0 || err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill machine %s: %w", d.Name, err)
	}
	return d.awaitExit(ctx, pid)
}

// awaitExit waits until the machine's process, which pid was before it was told
// to end, is gone with all that it held: its disks can be opened then.
func (d Definition) awaitExit(ctx context.Context, pid int) error {
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for {
		now, err := d.pid()
		if err != nil || now == 0 && !ending(pid) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("machine %s still runs as process %d: %w", d.Name, pid, context.Cause(ctx))
		case <-t.C:
		}
	}
}

// ending says whether a process has not ended though it has no command line any
// more. The kernel takes away its memory first, with that line, and closes its
// files after that, which frees their locks.
func ending(pid int) bool {
	proc := "/proc/" + strconv.Itoa(pid)
	if cmdline, err := os.ReadFile(proc + "/cmdline"); err != nil || len(cmdline) > 0 {
		return false // gone, or another process has its number now
	}
	threads, err := filepath.Glob(proc + "/task/*/stat")
	if err != nil {
		return false
	}
	return slices.ContainsFunc(threads, func(stat string) bool {
		b, err := os.ReadFile(stat)
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // state, five numbers, flags
		if err != nil || len(f) < 7 || f[0] == "Z" || f[0] == "X" {
			return false // a thread that has ended has let go of the files
		}
		flags, err := strconv.ParseUint(f[6], 10, 64)
		return err == nil && flags&kernelThread == 0
	})
}

// kernelThread is set in the flags of a thread of the kernel's, which never has
// a command line.
const kernelThread = 0x00200000

// monitor returns the machine's monitor, or provider.ErrNotRunning.
func (d Definition) monitor() (provider.Monitor, error) {
	pid, err := d.pid()
	if err != nil {
		return nil, err
	}
	if pid == 0 {
		return nil, fmt.Errorf("machine %s: %w", d.Name, provider.ErrNotRunning)
	}
	return perCommand{socket: d.QMP}, nil
}

// StartMachine starts the machine that is defined in a site's directory. It is
// no error if it runs; provider.ErrGuarded if it is guarded.
func StartMachine(ctx context.Context, dir, name string) error {
	d, err := loadDefinition(dir, name)
	if err != nil {
		return err
	}
	return d.spawn(ctx)
}

// StopMachine ends the machine's QEMU cleanly, without asking the guest. It is
// no error if it does not run.
func StopMachine(ctx context.Context, dir, name string) error {
	d, err := loadDefinition(dir, name)
	if err != nil {
		return err
	}
	pid, err := d.pid()
	if pid == 0 || err != nil {
		return err
	}
	mon := perCommand{socket: d.QMP}
	if err := mon.Execute(ctx, "quit", nil, nil); err != nil && !errors.Is(err, ErrClosed) {
		return fmt.Errorf("stop machine %s: %w", name, err)
	}
	return d.awaitExit(ctx, pid)
}
