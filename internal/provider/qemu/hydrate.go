package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/internal/provider"
)

const (
	// hydratePrefix begins the id of a hydration's block job.
	hydratePrefix = "hydrate-"
	hydratePoll   = 100 * time.Millisecond
	// errorPatience is for how long a copy that meets errors is tried again
	// before Hydrate gives up. The machine runs on meanwhile.
	errorPatience = 15 * time.Second
)

// hydration is one call of Hydrate.
type hydration struct {
	site     *site
	handle   string
	mon      provider.Monitor
	def      Definition
	progress func(done, total int64)
	failing  time.Time // since when a job meets errors; zero: none does
	// interrupt, set by tests, is called after each step of a change-over; an
	// error ends the call there, as if the process had died.
	interrupt func(step string) error
}

// Hydrate mirrors every disk from its view and overlay to a local file while
// the machine runs, then stops the machine for the moment in which its disks
// change over. It may be interrupted at any point and called again: a copy
// under way goes on where it is as long as QEMU runs.
//
// The change-over needs that moment because QEMU keeps the metadata of a qcow2
// file in memory: with the machine stopped both files are complete, so whatever
// is killed then, the definition names a file that has every write.
func (s *site) Hydrate(ctx context.Context, handle string, progress func(done, total int64)) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	r, err := s.openRecovery(ctx, handle)
	if err != nil {
		return err
	}
	if err := r.close(); err != nil {
		return err
	}
	lock, err := os.OpenFile(r.path("hydrate.lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return fmt.Errorf("hydrate %s: %w", handle, err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := flock(ctx, lock); err != nil {
		return fmt.Errorf("hydrate %s: %w", handle, err)
	}
	if progress == nil {
		progress = func(int64, int64) {}
	}
	h := &hydration{site: s, handle: handle, progress: progress, interrupt: s.interrupt}
	if err := h.run(ctx); err != nil {
		return fmt.Errorf("hydrate %s: %w", handle, err)
	}
	return nil
}

func (h *hydration) run(ctx context.Context) error {
	if err := h.locked(ctx, h.settle); err != nil {
		return err
	}
	if !h.def.needsView() {
		return h.locked(ctx, h.clean)
	}
	var err error
	if h.mon, err = h.def.monitor(); err != nil {
		return err
	}
	for {
		ready, err := h.copyStep(ctx)
		if err != nil {
			return err
		}
		if ready {
			break
		}
		if err := wait(ctx, hydratePoll); err != nil {
			return err
		}
	}
	if err := h.locked(ctx, h.change); err != nil {
		return err
	}
	if err := h.interrupted("changed"); err != nil {
		return err
	}
	return h.locked(ctx, h.clean)
}

func (h *hydration) interrupted(step string) error {
	if h.interrupt == nil {
		return nil
	}
	return h.interrupt(step)
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

func (d Definition) needsView() bool {
	for _, disk := range d.Disks {
		if disk.View != nil {
			return true
		}
	}
	return false
}

// locked runs f with the recovery locked and its newest definition.
func (h *hydration) locked(ctx context.Context, f func(context.Context, *recovery) error) (err error) {
	r, err := h.site.openRecovery(ctx, h.handle)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	if h.def, err = r.definition(); err != nil {
		return err
	}
	return f(ctx, r)
}

// settle finishes a change-over that was interrupted.
func (h *hydration) settle(ctx context.Context, r *recovery) error {
	if !r.Switching {
		return nil
	}
	return r.finishSwitch(ctx, h.def, perCommand{socket: h.def.QMP})
}

// copyStep sees that every disk is being copied, and tells whether all are in
// step with their copies.
func (h *hydration) copyStep(ctx context.Context) (ready bool, err error) {
	jobs, err := queryBlockJobs(ctx, h.mon)
	if err != nil {
		return false, err
	}
	ready = true
	var done, total int64
	failing := false
	for _, disk := range h.def.Disks {
		if disk.View == nil {
			continue
		}
		job, ok := findJob(jobs, hydratePrefix+disk.ID)
		if !ok {
			ready = false
			total += disk.Size
			if err := h.startCopy(ctx, disk); err != nil {
				return false, err
			}
			continue
		}
		if job.Status == "concluded" || job.Status == "aborting" {
			return false, h.dismissFailed(ctx, disk, job)
		}
		done, total = done+job.Offset, total+job.Len
		ready = ready && job.Ready && job.Offset == job.Len
		if job.IOStatus != "ok" && job.IOStatus != "" {
			ready, failing = false, true
			if err := h.retryCopy(ctx, disk, job); err != nil {
				return false, err
			}
		}
	}
	if !failing {
		h.failing = time.Time{}
	}
	h.progress(done, total)
	return ready, nil
}

func findJob(jobs []blockJob, id string) (blockJob, bool) {
	for _, j := range jobs {
		if j.Device == id {
			return j, true
		}
	}
	return blockJob{}, false
}

// retryCopy lets a job go on that was paused by an error, for a while.
func (h *hydration) retryCopy(ctx context.Context, disk DiskDef, job blockJob) error {
	if h.failing.IsZero() {
		h.failing = time.Now()
	}
	if time.Since(h.failing) > errorPatience {
		cause := "the view or the local disk fails"
		if job.IOStatus == "nospace" {
			cause = "no space is left"
		}
		return fmt.Errorf("copy disk %s to %s: %s; the machine runs on, repeat when this is mended", disk.ID, disk.hydratedPath(), cause)
	}
	err := h.mon.Execute(ctx, "block-job-resume", map[string]any{"device": job.Device}, nil)
	return ignoreRefusal(err)
}

// ignoreRefusal drops QEMU's refusals: the state that is polled next decides.
func ignoreRefusal(err error) error {
	var refused *provider.MonitorError
	if errors.As(err, &refused) {
		return nil
	}
	return err
}

func (h *hydration) dismissFailed(ctx context.Context, disk DiskDef, job blockJob) error {
	err := h.mon.Execute(ctx, "job-dismiss", map[string]any{"id": job.Device}, nil)
	return errors.Join(fmt.Errorf("copy disk %s: QEMU ended the job: %s; repeat to begin again", disk.ID, job.Error), ignoreRefusal(err))
}

// hydratedPath returns where the disk's own file is, beside its overlay.
func (disk DiskDef) hydratedPath() string {
	return strings.TrimSuffix(disk.Path, ".overlay.qcow2") + ".qcow2"
}

// hydrated returns the disk as it is once nothing depends on the view.
func (disk DiskDef) hydrated() DiskDef {
	return DiskDef{ID: disk.ID, Path: disk.hydratedPath(), Format: "qcow2", Size: disk.Size}
}

// startCopy makes the local file and starts the mirror into it.
func (h *hydration) startCopy(ctx context.Context, disk DiskDef) error {
	root, err := rootNode(ctx, h.mon, disk.ID)
	if err != nil {
		return err
	}
	node := hydrateNode(disk.ID)
	if err := deleteNodes(ctx, h.mon, node, fileNode(node)); err != nil { // of an earlier try
		return err
	}
	local := disk.hydrated()
	if err := os.Remove(local.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := qemuImg(ctx, "create", "-q", "-f", "qcow2", local.Path, fmt.Sprint(disk.Size)); err != nil {
		return err
	}
	for _, bd := range local.blockdevs(node) {
		if err := h.mon.Execute(ctx, "blockdev-add", bd, nil); err != nil {
			return err
		}
	}
	return h.mon.Execute(ctx, "blockdev-mirror", map[string]any{
		"job-id": hydratePrefix + disk.ID, "device": root, "target": node, "sync": "full",
		"copy-mode": "write-blocking", "on-source-error": "stop", "on-target-error": "stop", "auto-dismiss": false,
	}, nil)
}

// rootNode returns the node that a device of the machine reads and writes.
func rootNode(ctx context.Context, mon provider.Monitor, device string) (string, error) {
	var devices []struct {
		QDev     string `json:"qdev"`
		Inserted *struct {
			NodeName string `json:"node-name"`
		} `json:"inserted"`
	}
	if err := mon.Execute(ctx, "query-block", nil, &devices); err != nil {
		return "", err
	}
	for _, d := range devices {
		if d.Inserted != nil && strings.Contains(d.QDev+"/", "/"+device+"/") {
			return d.Inserted.NodeName, nil
		}
	}
	return "", fmt.Errorf("the running machine has no device %q", device)
}

// deleteNodes deletes those of the nodes that exist.
func deleteNodes(ctx context.Context, mon provider.Monitor, names ...string) error {
	var nodes []struct {
		NodeName string `json:"node-name"`
	}
	if err := mon.Execute(ctx, "query-named-block-nodes", map[string]any{"flat": true}, &nodes); err != nil {
		return err
	}
	there := map[string]bool{}
	for _, n := range nodes {
		there[n.NodeName] = true
	}
	for _, name := range names {
		if !there[name] {
			continue
		}
		if err := mon.Execute(ctx, "blockdev-del", map[string]any{"node-name": name}, nil); err != nil {
			return err
		}
	}
	return nil
}

// change stops the machine, makes the local files its disks, and lets it go on.
func (h *hydration) change(ctx context.Context, r *recovery) error {
	before, err := queryStatus(ctx, h.mon)
	if err != nil {
		return err
	}
	if !before.Running {
		return fmt.Errorf("machine %s is %s, not running; start it and repeat", h.def.Name, before.Status)
	}
	r.Switching = true
	if err := r.save(); err != nil {
		return err
	}
	if err := h.interrupted("announced"); err != nil {
		return err
	}
	if err := h.mon.Execute(ctx, "stop", nil, nil); err != nil {
		return errors.Join(err, r.finishSwitch(ctx, h.def, h.mon))
	}
	if err := h.interrupted("stopped"); err != nil {
		return err
	}
	ready, err := h.copyStep(ctx)
	if err != nil || !ready {
		if err == nil {
			err = errors.New("a copy fell behind at the last moment; repeat")
		}
		return errors.Join(err, r.finishSwitch(ctx, h.def, h.mon))
	}
	changed := h.def
	changed.Disks = make([]DiskDef, len(h.def.Disks))
	for i, disk := range h.def.Disks {
		if disk.View != nil {
			disk = disk.hydrated()
		}
		changed.Disks[i] = disk
	}
	if err := saveJSON(definitionPath(h.site.dir, changed.Name), changed, false); err != nil {
		return errors.Join(err, r.finishSwitch(ctx, h.def, h.mon))
	}
	h.def = changed
	if err := h.interrupted("recorded"); err != nil {
		return err
	}
	return r.finishSwitch(ctx, changed, h.mon)
}

// finishSwitch ends a change-over: forward if the definition names the local
// files already, back if not. In both cases the machine runs afterwards, if its
// QEMU does.
func (r *recovery) finishSwitch(ctx context.Context, d Definition, mon provider.Monitor) error {
	err := r.pivot(ctx, d, mon)
	if err == nil {
		err = r.resume(ctx, mon, "paused", "io-error")
	}
	if err != nil && !errors.Is(err, provider.ErrNotRunning) {
		return err
	}
	r.Switching = false
	return r.save()
}

// pivot completes the jobs of disks whose definition names the local file.
func (r *recovery) pivot(ctx context.Context, d Definition, mon provider.Monitor) error {
	for {
		jobs, err := queryBlockJobs(ctx, mon)
		if err != nil {
			return err
		}
		left := false
		for _, disk := range d.Disks {
			job, ok := findJob(jobs, hydratePrefix+disk.ID)
			if !ok || disk.View != nil {
				continue
			}
			left = true
			switch job.Status {
			case "ready":
				err = mon.Execute(ctx, "block-job-complete", map[string]any{"device": job.Device}, nil)
			case "concluded":
				err = mon.Execute(ctx, "job-dismiss", map[string]any{"id": job.Device}, nil)
			}
			if err := ignoreRefusal(err); err != nil {
				return err
			}
		}
		if !left {
			return r.checkPivot(ctx, d, mon)
		}
		if err := wait(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
}

// checkPivot refuses to let a machine go on that writes to an overlay which its
// definition no longer names.
func (r *recovery) checkPivot(ctx context.Context, d Definition, mon provider.Monitor) error {
	var nodes []struct {
		QDev     string `json:"qdev"`
		Inserted *struct {
			File string `json:"file"`
		} `json:"inserted"`
	}
	if err := mon.Execute(ctx, "query-block", nil, &nodes); err != nil {
		return err
	}
	for _, disk := range d.Disks {
		for _, n := range nodes {
			if disk.View != nil || n.Inserted == nil || !strings.Contains(n.QDev+"/", "/"+disk.ID+"/") {
				continue
			}
			if n.Inserted.File != disk.Path {
				return fmt.Errorf("machine %s uses %s as disk %s instead of %s; it stays paused", d.Name, n.Inserted.File, disk.ID, disk.Path)
			}
		}
	}
	return nil
}

// clean removes what nothing depends on any more.
func (h *hydration) clean(ctx context.Context, r *recovery) error {
	mon := perCommand{socket: h.def.QMP}
	for _, disk := range h.def.Disks {
		root, err := rootNode(ctx, mon, disk.ID)
		if err != nil && !errors.Is(err, provider.ErrNotRunning) {
			return err
		}
		if err == nil && root != diskNode(disk.ID) { // else QEMU was started from the local file
			node := diskNode(disk.ID)
			if err := deleteNodes(ctx, mon, node, fileNode(node), viewNode(disk.ID)); err != nil {
				return err
			}
		}
		overlay := r.path(disk.ID + ".overlay.qcow2")
		if overlay == disk.Path {
			continue
		}
		if err := os.Remove(overlay); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return syncDir(r.dir)
}
