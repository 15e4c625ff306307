package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"

	"github.com/holdfast-dr/holdfast/internal/provider/qemu"
	"github.com/holdfast-dr/holdfast/internal/systest/guest"
	"github.com/holdfast-dr/holdfast/internal/systest/lab"
)

// The disk that the guest writes to in this bench.
const (
	guestName = "bench"
	guestDisk = "vdb"
	guestNode = "hf-" + guestDisk
	guestSize = 256 << 20
)

// guestBench is a guest that writes to its second disk: not replicated, by
// Holdfast, or by QEMU's own mirror into qemu-nbd. QEMU exports the same disk, so
// that it can be written to without the guest's processor, which is emulated
// where there is no KVM and then hides what replication costs.
type guestBench struct {
	*lab.Lab
	agent  string
	mon    string // a monitor of the bench's own
	export string // socket of the second disk's export
}

func newGuestBench(ctx context.Context, dir, binary string) (_ *guestBench, err error) {
	// The lab knows the gateway by the program's path, and that is absolute.
	if binary, err = filepath.Abs(binary); err != nil {
		return nil, err
	}
	l, err := lab.New(lab.Options{Dir: dir, Binary: binary, Log: io.Discard})
	if err != nil {
		return nil, err
	}
	b := &guestBench{
		Lab: l, agent: filepath.Join(l.Primary, "agent.sock"), mon: filepath.Join(l.Primary, "bench.qmp"),
		export: filepath.Join(l.Primary, "bench.nbd"),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	disk, second := filepath.Join(l.Primary, "vda.qcow2"), filepath.Join(l.Primary, "vdb.raw")
	if err := guest.Build(ctx, guest.Options{Path: disk, SizeMB: 256, Format: "qcow2", Cmdline: "nowriter"}); err != nil {
		return nil, err
	}
	if err := sparse(second, guestSize); err != nil {
		return nil, err
	}
	m := lab.Machine{Name: guestName, Disk: disk, Format: "qcow2", Second: second, TestMonitor: b.mon, Agent: b.agent}
	for _, step := range []func() error{
		func() error { return l.AddMachine(m) },
		func() error { return share(filepath.Join(l.Primary, guestName+".json")) },
		func() error { return l.StartMachine(ctx, guestName) },
		func() error { return b.exportDisk(ctx) },
		func() error { return l.StartServer(ctx) },
		func() error { return l.AddSites(ctx) },
		func() error {
			_, err := lab.WaitSerial(ctx, l.SerialPath(l.Primary, guestName), regexp.MustCompile(`GUEST-READY`))
			return err
		},
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func sparse(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

func (b *guestBench) close() error { return errors.Join(b.StopServer(), b.StopAll()) }

// share lets a machine's disks be written by others than its guest.
func share(definition string) error {
	data, err := os.ReadFile(definition)
	if err != nil {
		return err
	}
	var def map[string]any
	if err := json.Unmarshal(data, &def); err != nil {
		return err
	}
	extra, _ := def["extra"].([]any)
	def["extra"] = append(extra, "-global", "virtio-blk-pci.share-rw=on")
	if data, err = json.Marshal(def); err != nil {
		return err
	}
	return os.WriteFile(definition, data, 0o644)
}

// exportDisk has QEMU serve the second disk. It comes before any mirror: QEMU
// puts a mirror between a disk and those that use it then.
func (b *guestBench) exportDisk(ctx context.Context) (err error) {
	mon, err := qemu.Dial(ctx, b.mon)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mon.Close()) }()
	err = mon.Execute(ctx, "nbd-server-start", map[string]any{"addr": map[string]any{"type": "unix", "data": map[string]any{"path": b.export}}}, nil)
	if err != nil {
		return err
	}
	return mon.Execute(ctx, "block-export-add", map[string]any{
		"type": "nbd", "id": guestDisk, "node-name": guestNode, "name": guestDisk, "writable": true}, nil)
}

// replicated has the disk written to while a side replicates it, in sync.
type replicated func(ctx context.Context, write func() error) error

func (b *guestBench) alone(_ context.Context, write func() error) error { return write() }

func (b *guestBench) held(ctx context.Context, write func() error) error {
	if _, err := b.CLI(ctx, "protect", guestName, "--site", "primary", "--to", "recovery"); err != nil {
		return err
	}
	werr := write()
	_, err := b.CLI(ctx, "item", "disable", guestName)
	return errors.Join(werr, err)
}

// mirrored replicates the disk as Holdfast does, but into qemu-nbd.
func (b *guestBench) mirrored(ctx context.Context, write func() error) (err error) {
	target, socket := filepath.Join(b.Dir, "mirror.raw"), filepath.Join(b.Dir, "nbd.sock")
	if err := sparse(target, guestSize); err != nil {
		return err
	}
	server := exec.CommandContext(ctx, "qemu-nbd", "--format=raw", "--persistent", "--socket="+socket, "--cache=writeback", target)
	if err := server.Start(); err != nil {
		return err
	}
	defer func() {
		_ = server.Process.Kill()
		_ = server.Wait()
		_ = os.Remove(socket)
	}()
	if err := lab.Poll(ctx, "qemu-nbd serves", func() (bool, error) { _, err := os.Stat(socket); return err == nil, nil }); err != nil {
		return err
	}
	mon, err := qemu.Dial(ctx, b.mon)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mon.Close()) }()
	run := func(command string, args any) error { return mon.Execute(ctx, command, args, nil) }
	if err := run("blockdev-add", map[string]any{"node-name": "peer", "driver": "nbd", "reconnect-delay": 0, "server": map[string]any{"type": "unix", "path": socket}}); err != nil {
		return err
	}
	err = run("blockdev-mirror", map[string]any{
		"job-id": "peer", "device": guestNode, "target": "peer", "sync": "full", "copy-mode": "write-blocking",
		"on-source-error": "report", "on-target-error": "stop"})
	if err != nil {
		return err
	}
	if err := b.awaitJob(ctx, mon, "ready"); err != nil {
		return err
	}
	werr := write()
	err = run("block-job-cancel", map[string]any{"device": "peer", "force": true})
	if err == nil {
		err = b.awaitJob(ctx, mon, "")
	}
	return errors.Join(werr, err, run("blockdev-del", map[string]any{"node-name": "peer"}))
}

// awaitJob waits until the mirror has a status; empty: until it is gone.
func (b *guestBench) awaitJob(ctx context.Context, mon interface {
	Execute(ctx context.Context, command string, arguments, result any) error
}, status string) error {
	return lab.Poll(ctx, "the mirror is "+status, func() (bool, error) {
		var jobs []struct{ ID, Status string }
		if err := mon.Execute(ctx, "query-jobs", nil, &jobs); err != nil {
			return false, err
		}
		for _, j := range jobs {
			if j.ID == "peer" {
				return j.Status == status, nil
			}
		}
		return status == "", nil
	})
}

// guestExec runs the guest's load program with its agent and returns what it
// says.
func (b *guestBench) guestExec(ctx context.Context, args []string) (string, error) {
	c, err := new(net.Dialer).DialContext(ctx, "unix", b.agent)
	if err != nil {
		return "", err
	}
	defer c.Close()
	in := bufio.NewReader(c)
	ask := func(command string, arguments, out any) error {
		if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			return err
		}
		if err := json.NewEncoder(c).Encode(map[string]any{"execute": command, "arguments": arguments}); err != nil {
			return err
		}
		line, err := in.ReadBytes('\n')
		if err != nil {
			return fmt.Errorf("guest agent: %w", err)
		}
		var reply struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		if err := json.Unmarshal(line, &reply); err != nil {
			return fmt.Errorf("guest agent says %q: %w", line, err)
		}
		if reply.Error != nil {
			return fmt.Errorf("guest agent: %s: %s", command, reply.Error.Desc)
		}
		return json.Unmarshal(reply.Return, out)
	}
	var started struct{ PID int }
	if err := ask("guest-exec", map[string]any{"path": "writer", "arg": args, "capture-output": true}, &started); err != nil {
		return "", err
	}
	for {
		var st struct {
			Exited bool
			Out    string `json:"out-data"`
			Err    string `json:"err-data"`
		}
		if err := ask("guest-exec-status", map[string]any{"pid": started.PID}, &st); err != nil {
			return "", err
		}
		if st.Exited {
			out, err := base64.StdEncoding.DecodeString(st.Out)
			said, _ := base64.StdEncoding.DecodeString(st.Err)
			return string(out) + string(said), err
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}
