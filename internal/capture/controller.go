package capture

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/holdfast-dr/holdfast/internal/provider"
)

const (
	// greetingTimeout is how long an ingest that is alive takes to greet.
	greetingTimeout = 500 * time.Millisecond
	// stallAfter is how long a pass may stand still before it is called stalled.
	stallAfter = 10 * time.Second
	// refusedPause is the time between two tries of what QEMU refuses.
	refusedPause = 2 * time.Second
)

// controller is a Mirror with an open monitor.
type controller struct {
	*Mirror
	mon      provider.Monitor
	machine  provider.Machine
	version  qemuVersion
	openedAt time.Time
}

// step polls once and does what is to be done. An error means that the monitor
// must be opened anew.
func (c *controller) step(ctx context.Context) error {
	if c.mon == nil {
		if err := c.open(ctx); err != nil {
			return err
		}
	}
	// The epochs first: what QEMU says afterwards is true of this connection or
	// of a later one, and then the epoch has moved.
	situations := make([]situation, len(c.disks))
	for i, t := range c.disks {
		situations[i] = c.ask(ctx, t)
	}
	snap, err := c.query(ctx)
	if err != nil {
		return err
	}
	for i, t := range c.disks {
		s := c.assess(t, snap, situations[i])
		situations[i] = s
		d := decide(s)
		if d.act == actStart && time.Now().Before(t.retryAt) {
			t.state.Mode = ModePaused // with the problem as it was shown
			continue
		}
		t.show(s, d, time.Now())
		if err := c.act(ctx, t, s, d.act); err != nil {
			return err
		}
	}
	c.confirm(ctx, situations)
	c.publish()
	if c.lostDisk(snap) && time.Since(c.openedAt) > refusedPause {
		c.close() // look at the machine anew: it may have changed
	}
	return nil
}

// confirm tells the ingest up to when nothing was missed: until it was asked, if
// what QEMU said after that is that every disk is in sync. The situations have what
// was asked first.
func (c *controller) confirm(ctx context.Context, situations []situation) {
	at := situations[0].asked
	epochs := map[string]uint64{}
	for i, t := range c.disks {
		s := situations[i]
		if !s.claimed || !t.claimed || s.epoch != t.epoch || !s.inSync() {
			return
		}
		if s.asked.Before(at) {
			at = s.asked
		}
		epochs[t.disk.ID] = t.epoch
	}
	if err := c.opts.Ingest.Confirm(ctx, at, epochs); err != nil && ctx.Err() == nil {
		c.log.Debug("the ingest takes no confirmation", "error", err)
	}
}

// lostDisk says whether a disk is not found in QEMU.
func (c *controller) lostDisk(snap snapshot) bool {
	for _, t := range c.disks {
		if snap.root(c.machineDisk(t.disk.ID)) == nil {
			return true
		}
	}
	return false
}

// ask asks the ingest about a disk.
func (c *controller) ask(ctx context.Context, t *tracked) situation {
	s := situation{disk: t.disk, seeded: t.seeded}
	conn, err := c.opts.Ingest.Connection(ctx, t.disk.ID)
	s.ingest, s.epoch, s.connected, s.asked = err, conn.Epoch, conn.Connected, conn.At
	s.ready = conn.Ready && !conn.Connected
	if t.claimed && (s.ingest != nil || !s.connected || s.epoch != t.epoch) {
		t.claimed = false
	}
	s.claimed = t.claimed
	return s
}

// assess adds what QEMU told.
func (c *controller) assess(t *tracked, snap snapshot, s situation) situation {
	s.root = snap.root(c.machineDisk(t.disk.ID))
	s.job = snap.job(t.names.job)
	s.target = snap.node(t.names.target) != nil
	s.others = snap.others()
	if s.root != nil && s.job != nil {
		s.dirty, s.known = snap.dirty(s.root)
	}
	return s
}

// show makes the decision and the progress visible.
func (t *tracked) show(s situation, d decision, now time.Time) {
	st := DiskState{ID: t.disk.ID, Size: t.disk.Size, Mode: d.mode, Problem: d.problem, Resized: d.resized}
	if st.Problem == "" && t.ended != "" && d.mode != ModeContinuous {
		st.Problem = "QEMU ended the copy (" + t.ended + "), and it begins again; if this repeats, look at the source's storage"
	}
	switch {
	case s.job != nil && d.mode != ModeContinuous && !s.job.Ready:
		// The job counts what the guest writes meanwhile, too.
		st.Done, st.Total = s.job.Offset, s.job.Len
		t.passTotal = 0
	case s.job != nil && d.mode != ModeContinuous && s.known:
		t.passTotal = max(t.passTotal, s.dirty)
		st.Done, st.Total = t.passTotal-s.dirty, t.passTotal
	default:
		t.passTotal = 0
	}
	if st.Done != t.state.Done || st.Total == 0 || st.Mode != t.state.Mode && t.state.Mode != ModeStalled {
		t.moved = now
	} else if st.Mode != ModePaused && st.Mode != ModeDisconnected && now.Sub(t.moved) > stallAfter {
		st.Mode, st.Problem = ModeStalled, "the copy stands still; the gateway or the source's storage does not answer"
	}
	st.Rate = t.rate(st, now)
	t.state = st
}

// rate returns the speed of the pass, smoothed over about a second.
func (t *tracked) rate(st DiskState, now time.Time) float64 {
	if st.Total == 0 || st.Done < t.rateDone || t.rateAt.IsZero() {
		t.rateAt, t.rateDone = now, st.Done
		return 0
	}
	dt := now.Sub(t.rateAt).Seconds()
	if dt < 0.2 {
		return t.state.Rate
	}
	fresh := float64(st.Done-t.rateDone) / dt
	t.rateAt, t.rateDone = now, st.Done
	if t.state.Rate == 0 {
		return fresh
	}
	return 0.7*t.state.Rate + 0.3*fresh
}

// act does what was decided. QEMU's refusals are shown and tried again later;
// other errors are the monitor's.
func (c *controller) act(ctx context.Context, t *tracked, s situation, a action) error {
	var err error
	switch a {
	case actNothing:
		return nil
	case actStart:
		err = c.start(ctx, t, s)
	case actCut:
		t.claimed = false
		if err := c.opts.Ingest.Cut(ctx, t.disk.ID); err != nil {
			t.state.Problem = fmt.Sprintf("the gateway's ingest does not answer: %v", err)
		}
		return nil
	case actDismiss:
		c.log.Warn("mirror job ended", "disk", t.disk.ID, "error", s.job.Error)
		t.ended, t.retryAt = s.job.Error, time.Now().Add(refusedPause)
		err = c.execute(ctx, "job-dismiss", map[string]any{"id": t.names.job}, nil)
	case actDelete:
		err = c.execute(ctx, "blockdev-del", map[string]any{"node-name": t.names.target}, nil)
	case actResume:
		err = ignoreRefusal(c.execute(ctx, "block-job-resume", map[string]any{"device": t.names.job}, nil))
	case actWake:
		err = c.wake(ctx, t)
	case actClaim:
		err = c.claim(ctx, t, s)
	}
	var refused *provider.MonitorError
	if errors.As(err, &refused) {
		t.state.Mode, t.state.Problem = ModePaused, refusal(refused, s)
		t.retryAt = time.Now().Add(refusedPause)
		return nil
	}
	return err
}

// refusal explains why QEMU refused a command.
func refusal(e *provider.MonitorError, s situation) string {
	if s.others != "" {
		return fmt.Sprintf("another block job (%s) uses the machine's disks; replication goes on when it has ended. QEMU: %s", s.others, e.Desc)
	}
	return fmt.Sprintf("QEMU refused %s: %s", e.Command, e.Desc)
}

func ignoreRefusal(err error) error {
	var refused *provider.MonitorError
	if errors.As(err, &refused) {
		return nil
	}
	return err
}

// start adds the target and begins a pass over the whole disk.
func (c *controller) start(ctx context.Context, t *tracked, s situation) error {
	socket, export := c.opts.Ingest.Endpoint(t.disk.ID)
	if err := alive(ctx, socket); err != nil { // blockdev-add would wait for it with QEMU's main loop
		t.state.Mode = ModeDisconnected
		return nil
	}
	// A reconnect-delay would make the guest's writes wait. Without discard,
	// QEMU does not zero the whole target before it begins.
	err := c.execute(ctx, "blockdev-add", map[string]any{
		"node-name": t.names.target, "driver": "nbd", "export": export, "reconnect-delay": 0,
		"server": map[string]any{"type": "unix", "path": socket},
	}, nil)
	if err != nil {
		return err
	}
	c.log.Info("mirror begins a pass over the whole disk", "disk", t.disk.ID, "node", s.root.Name)
	args := map[string]any{
		"job-id": t.names.job, "device": s.root.Name, "target": t.names.target, "filter-node-name": t.names.filter,
		"sync": "full", "copy-mode": "write-blocking",
		"on-source-error": "report", "on-target-error": "stop", "auto-dismiss": false,
	}
	if c.opts.SpeedLimit > 0 {
		args["speed"] = c.opts.SpeedLimit
	}
	return c.execute(ctx, "blockdev-mirror", args, nil)
}

// wake makes QEMU notice that the connection is gone, and connect again. A read
// does it; it fails until the connection stands. QEMU's main loop waits for the
// read, so the ingest must show that it is alive first.
func (c *controller) wake(ctx context.Context, t *tracked) error {
	socket, _ := c.opts.Ingest.Endpoint(t.disk.ID)
	if alive(ctx, socket) != nil {
		return nil
	}
	return ignoreRefusal(c.execute(ctx, "human-monitor-command", map[string]any{
		"command-line": fmt.Sprintf("qemu-io %s \"read 0 512\"", t.names.target),
	}, nil))
}

// claim tells the ingest that the disk is in sync, if QEMU says so once more.
func (c *controller) claim(ctx context.Context, t *tracked, s situation) error {
	snap, err := c.query(ctx)
	if err != nil {
		return err
	}
	again := c.assess(t, snap, s)
	if again.root == nil || !again.inSync() {
		return nil
	}
	if err := c.opts.Ingest.Synced(ctx, t.disk.ID, s.epoch); err != nil {
		c.log.Debug("in sync was refused", "disk", t.disk.ID, "error", err)
		return nil // the connection has changed, or the ingest has: the next poll sees
	}
	t.claimed, t.epoch, t.seeded, t.passTotal, t.ended = true, s.epoch, true, 0, ""
	t.state.Mode, t.state.Done, t.state.Total, t.state.Rate = ModeContinuous, 0, 0, 0
	return nil
}

// alive returns nil if an NBD server greets on the socket.
func alive(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, greetingTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(greetingTimeout)); err != nil {
		return err
	}
	var magic [8]byte
	if _, err := conn.Read(magic[:]); err != nil {
		return err
	}
	if string(magic[:]) != "NBDMAGIC" {
		return fmt.Errorf("%s is not an NBD server", socket)
	}
	return nil
}
