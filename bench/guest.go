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
	"strconv"
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
// Holdfast, or by QEMU's own mirror into qemu-nbd.
type guestBench struct {
	*lab.Lab
	agent string
	mon   string   // a monitor of the bench's own
	order []string // what the guest is told to write
	last  load     // what the last run has measured
}

// load is what the guest says of its writes.
type load struct{ rate, p50, p99 float64 }

func newGuestBench(ctx context.Context, dir, binary string) (_ *guestBench, err error) {
	l, err := lab.New(lab.Options{Dir: dir, Binary: binary, Log: io.Discard})
	if err != nil {
		return nil, err
	}
	b := &guestBench{Lab: l, agent: filepath.Join(l.Primary, "agent.sock"), mon: filepath.Join(l.Primary, "bench.qmp")}
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
		func() error { return l.StartMachine(ctx, guestName) },
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

// contests are throughput and latency of the guest's writes. The latency's
// figure is turned round, so that larger is better here as well.
func (b *guestBench) contests() []contest {
	big := []string{"-bs", "1048576", "-qd", "4", "-sequential", "-seconds", "4"}
	small := []string{"-bs", "4096", "-qd", "1", "-seconds", "4"}
	figure := func(name, unit string, args []string, pick func(load) float64) contest {
		sides := []side{{"holdfast", b.held}, {"no replication", b.alone}, {"QEMU mirror → qemu-nbd", b.mirrored}}
		c := contest{name: name, unit: unit}
		for _, s := range sides {
			how := s.run
			c.sides = append(c.sides, side{s.name, func(ctx context.Context) (float64, error) {
				b.order = args
				_, err := how(ctx)
				return pick(b.last), err
			}})
		}
		return c
	}
	return []contest{
		figure("guest, 1 MiB writes, 4 at a time", "MB/s", big, func(l load) float64 { return l.rate }),
		figure("guest, 4 KiB writes, one by one: median", "1/s", small, func(l load) float64 { return 1e6 / l.p50 }),
		figure("guest, 4 KiB writes, one by one: 99th percentile", "1/s", small, func(l load) float64 { return 1e6 / l.p99 }),
	}
}

var benchLine = regexp.MustCompile(`mbps=([0-9.]+) p50us=(\d+) p99us=(\d+)`)

// write has the guest write, and notes what it says.
func (b *guestBench) write(ctx context.Context) error {
	out, err := b.guestExec(ctx, append([]string{"bench", "-dev", "/dev/" + guestDisk}, b.order...))
	if err != nil {
		return err
	}
	m := benchLine.FindStringSubmatch(out)
	if m == nil {
		return fmt.Errorf("the guest says %q", out)
	}
	b.last.rate, _ = strconv.ParseFloat(m[1], 64)
	b.last.p50, _ = strconv.ParseFloat(m[2], 64)
	b.last.p99, _ = strconv.ParseFloat(m[3], 64)
	return nil
}

func (b *guestBench) alone(ctx context.Context) (float64, error) { return 0, b.write(ctx) }

func (b *guestBench) held(ctx context.Context) (float64, error) {
	if _, err := b.CLI(ctx, "protect", guestName, "--site", "primary", "--to", "recovery"); err != nil {
		return 0, err
	}
	werr := b.write(ctx)
	_, err := b.CLI(ctx, "item", "disable", guestName)
	return 0, errors.Join(werr, err)
}

// mirrored replicates the disk as Holdfast does, but into qemu-nbd.
func (b *guestBench) mirrored(ctx context.Context) (_ float64, err error) {
	target, socket := filepath.Join(b.Dir, "mirror.raw"), filepath.Join(b.Dir, "nbd.sock")
	if err := sparse(target, guestSize); err != nil {
		return 0, err
	}
	server := exec.CommandContext(ctx, "qemu-nbd", "--format=raw", "--persistent", "--socket="+socket, "--cache=writeback", target)
	if err := server.Start(); err != nil {
		return 0, err
	}
	defer func() {
		_ = server.Process.Kill()
		_ = server.Wait()
		_ = os.Remove(socket)
	}()
	if err := lab.Poll(ctx, "qemu-nbd serves", func() (bool, error) { _, err := os.Stat(socket); return err == nil, nil }); err != nil {
		return 0, err
	}
	mon, err := qemu.Dial(ctx, b.mon)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, mon.Close()) }()
	run := func(command string, args any) error { return mon.Execute(ctx, command, args, nil) }
	if err := run("blockdev-add", map[string]any{"node-name": "peer", "driver": "nbd", "server": map[string]any{"type": "unix", "path": socket}}); err != nil {
		return 0, err
	}
	err = run("blockdev-mirror", map[string]any{"job-id": "peer", "device": guestNode, "target": "peer", "sync": "full", "copy-mode": "write-blocking"})
	if err != nil {
		return 0, err
	}
	if err := b.awaitJob(ctx, mon, "ready"); err != nil {
		return 0, err
	}
	werr := b.write(ctx)
	err = run("block-job-cancel", map[string]any{"device": "peer", "force": true})
	if err == nil {
		err = b.awaitJob(ctx, mon, "")
	}
	return 0, errors.Join(werr, err, run("blockdev-del", map[string]any{"node-name": "peer"}))
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
