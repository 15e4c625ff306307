// Command demo plays Holdfast's main job on this machine, as two sites: it
// protects a real guest while it writes, loses its host, recovers it at the
// other site, and counts what is there. It ends non-zero if a record is missing
// that had been acknowledged and replicated, or if the recovered file system is
// not clean after its journal was replayed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/systest/guest"
	"github.com/holdfast-dr/holdfast/internal/systest/lab"
)

func main() {
	var o options
	flag.StringVar(&o.binary, "binary", "bin/holdfast", "the holdfast program")
	flag.StringVar(&o.dir, "dir", "", "where to work; a temporary directory if empty")
	flag.StringVar(&o.cache, "cache", "", "where the guest's packages are kept; the user's cache if empty")
	flag.DurationVar(&o.write, "write", 5*time.Second, "for how long the guest writes while protected, at least")
	flag.DurationVar(&o.jitter, "jitter", 5*time.Second, "and at most this much longer, by chance")
	flag.StringVar(&o.format, "format", "qcow2", "format of the guest's disk: raw or qcow2")
	flag.IntVar(&o.sizeMB, "size", 512, "size of the guest's disk, in MiB")
	flag.BoolVar(&o.keep, "keep", false, "keep the working directory")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo: FAILED:", err)
		os.Exit(1)
	}
}

type options struct {
	binary, dir, cache, format string
	write, jitter              time.Duration
	sizeMB                     int
	keep                       bool
}

// demo is one play of the main job.
type demo struct {
	options
	*lab.Lab
	out   io.Writer
	began time.Time
	r     report
}

func run(ctx context.Context, o options) (err error) {
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("", "hf-demo-"); err != nil {
			return err
		}
	}
	if o.dir, err = filepath.Abs(o.dir); err != nil {
		return err
	}
	if o.binary, err = filepath.Abs(o.binary); err != nil {
		return err
	}
	if err := os.MkdirAll(o.dir, 0o755); err != nil {
		return err
	}
	logFile, err := os.Create(filepath.Join(o.dir, "server.log"))
	if err != nil {
		return err
	}
	defer logFile.Close()
	l, err := lab.New(lab.Options{Dir: o.dir, Binary: o.binary, Log: logFile})
	if err != nil {
		return err
	}
	d := &demo{options: o, Lab: l, out: os.Stdout, began: time.Now()}
	defer func() {
		err = errors.Join(err, d.cleanUp(err != nil))
	}()
	for _, step := range []func(context.Context) error{d.prepare, d.protect, d.work, d.lose, d.failover, d.check} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return d.r.print(d.out, time.Since(d.began))
}

func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.out, "\n[%5.1fs] "+format+"\n", append([]any{time.Since(d.began).Seconds()}, args...)...)
}

// cleanUp ends everything that the demonstration started.
func (d *demo) cleanUp(failed bool) error {
	err := errors.Join(d.StopServer(), d.StopAll())
	if failed || d.keep {
		fmt.Fprintf(d.out, "\nleft for a look: %s\n", d.dir)
		return err
	}
	return errors.Join(err, os.RemoveAll(d.dir))
}

const machineName = "shop"

// prepare builds the guest, starts it, and starts the server.
func (d *demo) prepare(ctx context.Context) error {
	d.say("Building a small Debian guest that boots by itself (%d MiB, %s)", d.sizeMB, d.format)
	disk := filepath.Join(d.Primary, machineName+"."+d.format)
	if err := guest.Build(ctx, guest.Options{Path: disk, SizeMB: d.sizeMB, Format: d.format, CacheDir: d.cache}); err != nil {
		return err
	}
	if err := d.AddMachine(lab.Machine{Name: machineName, Disk: disk, Format: d.format}); err != nil {
		return err
	}
	d.say("Starting it at site \"primary\": it appends numbered, checksummed records and syncs each")
	if err := d.StartMachine(ctx, machineName); err != nil {
		return err
	}
	d.say("Starting the server, with its vault and a gateway")
	if err := d.StartServer(ctx); err != nil {
		return err
	}
	if err := d.AddSites(ctx); err != nil {
		return err
	}
	boot, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	_, err := lab.WaitSerial(boot, d.SerialPath(d.Primary, machineName), regexp.MustCompile(`ACK \d+`))
	return err
}

// protect has the running machine replicated.
func (d *demo) protect(ctx context.Context) error {
	if err := d.Show(ctx, d.out, "machine", "list", "--site", "primary"); err != nil {
		return err
	}
	d.say("Protecting it while it writes")
	began := time.Now()
	if err := d.Show(ctx, d.out, "protect", machineName, "--site", "primary", "--to", "recovery"); err != nil {
		return err
	}
	d.r.sync = time.Since(began)
	return nil
}

// work lets the guest write and watches the RPO.
func (d *demo) work(ctx context.Context) error {
	d.say("Protected. The RPO, as the vault's end shows it:")
	end := time.Now().Add(d.write + time.Duration(rand.Int64N(int64(d.jitter)+1)))
	serial := d.SerialPath(d.Primary, machineName)
	under := false
	for time.Now().Before(end) || !under {
		var item api.Item
		if err := d.JSON(ctx, &item, "item", "show", machineName); err != nil {
			return err
		}
		acked, err := lab.Acknowledged(serial)
		if err != nil {
			return err
		}
		if r := item.Replication; r != nil && r.RPOSeconds != nil {
			under = under || *r.RPOSeconds < 1
			d.r.rpos = append(d.r.rpos, *r.RPOSeconds)
			fmt.Fprintf(d.out, "         RPO %5.2f s   mode %-12s guest has synced %d records, vault has %.1f MiB\n",
				*r.RPOSeconds, r.Mode, acked, float64(r.StoredBytes)/(1<<20))
		}
		if time.Since(end) > 30*time.Second {
			return errors.New("the RPO did not fall under a second")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(700 * time.Millisecond):
		}
	}
	var item api.Item
	if err := d.JSON(ctx, &item, "item", "show", machineName); err != nil {
		return err
	}
	d.r.received, d.r.stored = item.Replication.ReceivedBytes, item.Replication.StoredBytes
	return nil
}

// lose kills the guest's QEMU, as when its host dies.
func (d *demo) lose(ctx context.Context) error {
	if err := d.KillMachine(machineName); err != nil {
		return err
	}
	d.r.killed = time.Now()
	acked, err := lab.Acknowledged(d.SerialPath(d.Primary, machineName))
	if err != nil {
		return err
	}
	d.r.acknowledged = acked
	d.say("The host is lost: the guest's QEMU was killed with SIGKILL. Its last acknowledged record: %d", acked)
	return nil
}

// failover recovers the machine at the other site, and waits until it works.
func (d *demo) failover(ctx context.Context) error {
	d.say("Failing over to site \"recovery\"")
	if err := d.Show(ctx, d.out, "failover", machineName); err != nil {
		return err
	}
	var item api.Item
	if err := d.JSON(ctx, &item, "item", "show", machineName); err != nil {
		return err
	}
	if item.Recovery == nil {
		return errors.New("the item shows no recovered machine")
	}
	if item.Recovery.RTOSeconds != nil {
		d.r.rto = *item.Recovery.RTOSeconds
	}
	if item.Recovery.RPOSeconds != nil {
		d.r.rpo = *item.Recovery.RPOSeconds
	}
	serial, err := d.RecoveredSerial()
	if err != nil {
		return err
	}
	d.say("The machine runs at site \"recovery\"; waiting for what it says of its records")
	boot, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	m, err := lab.WaitSerial(boot, serial, regexp.MustCompile(`VERIFY first=(\d+) last=(\d+) count=(\d+) gaps=(\d+) bad=(\d+)`))
	if err != nil {
		return err
	}
	d.r.bootToReady = time.Since(d.r.killed)
	d.r.guest.text = m[0]
	for i, p := range []*int64{&d.r.guest.first, &d.r.guest.last, &d.r.guest.count, &d.r.guest.gaps, &d.r.guest.bad} {
		if *p, err = strconv.ParseInt(m[i+1], 10, 64); err != nil {
			return err
		}
	}
	d.r.point, d.r.stream, d.r.timeline = item.Recovery.Point, item.Stream.ID, item.Recovery.Point.Timeline
	return d.Show(ctx, d.out, "item", "show", machineName)
}

// check reads the recovery point from the vault by itself, without the server's
// help, and has the file system checked.
func (d *demo) check(ctx context.Context) error {
	d.say("Reading that recovery point from the vault alone: e2fsck, then its records")
	raw := filepath.Join(d.dir, "point.raw")
	if err := lab.ExportPoint(ctx, lab.Export{
		Vault: d.Vault, KeyFile: filepath.Join(d.State, "vault.key"), Stream: d.r.stream,
		Timeline: d.r.timeline, Position: d.r.point.Position, Disk: "vda", Path: raw,
	}); err != nil {
		return err
	}
	rep, err := guest.Check(ctx, raw)
	if err != nil {
		return err
	}
	d.r.files.clean, d.r.files.detail = rep.Clean, rep.Detail
	d.r.files.last, d.r.files.gaps, d.r.files.bad = int64(rep.Last), int64(rep.Gaps), int64(rep.Bad)
	return d.Show(ctx, d.out, "job", "list")
}
