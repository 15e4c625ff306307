package capture

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// Detach ends the mirror and leaves the guest's QEMU as it was found: no job,
// no node of ours. It first has the ingest's connection cut, because QEMU's
// main loop would wait for an ingest that does not answer. It fails with
// provider.ErrNotRunning if the machine is off: then there is nothing to end.
// It may be repeated, and must not be called while Run runs, which it waits for.
func (m *Mirror) Detach(ctx context.Context) error {
	m.run.Lock()
	defer m.run.Unlock()
	c := &controller{Mirror: m}
	defer c.close()
	if err := c.open(ctx); err != nil {
		return fmt.Errorf("detach mirror: %w", err)
	}
	for _, t := range m.disks {
		if err := c.detachDisk(ctx, t); err != nil {
			return fmt.Errorf("detach mirror of disk %s: %w", t.disk.ID, err)
		}
		t.lost(ModeDisconnected)
	}
	m.publish()
	return nil
}

// detachDisk removes what there is of one disk's mirror.
func (c *controller) detachDisk(ctx context.Context, t *tracked) error {
	for {
		snap, err := c.query(ctx)
		if err != nil {
			return err
		}
		job, target := snap.job(t.names.job), snap.node(t.names.target) != nil
		if job == nil && !target {
			return nil
		}
		if err := c.detachStep(ctx, t, job); err != nil {
			return err
		}
		if !sleep(ctx, 20*time.Millisecond) {
			return context.Cause(ctx)
		}
	}
}

// detachStep takes one thing away.
func (c *controller) detachStep(ctx context.Context, t *tracked, job *blockJob) error {
	if job != nil && job.Status == "concluded" {
		return ignoreRefusal(c.execute(ctx, "job-dismiss", map[string]any{"id": t.names.job}, nil))
	}
	if job != nil && job.Status == "aborting" {
		return nil
	}
	if err := c.disconnect(ctx, t); err != nil {
		return err
	}
	if job != nil {
		return ignoreRefusal(c.execute(ctx, "block-job-cancel", map[string]any{"device": t.names.job, "force": true}, nil))
	}
	return c.execute(ctx, "blockdev-del", map[string]any{"node-name": t.names.target}, nil)
}

// disconnect makes sure that QEMU does not wait for the ingest.
func (c *controller) disconnect(ctx context.Context, t *tracked) error {
	cutErr := c.opts.Ingest.Cut(ctx, t.disk.ID)
	if cutErr == nil {
		return nil
	}
	socket, _ := c.opts.Ingest.Endpoint(t.disk.ID)
	err := alive(ctx, socket)
	if socket == "" || errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil // nobody is there who could be waited for
	}
	if err == nil {
		return nil // it answers
	}
	return fmt.Errorf("the gateway's ingest does not answer, and QEMU would wait for it: end its process, then repeat: %w", errors.Join(cutErr, err))
}
