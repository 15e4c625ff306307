package orchestrator_test

import (
	"errors"
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/provider"
)

// growing gives the first disk of the machine that lives another size, and
// returns the job that takes it over.
func (r *rig) growing(size int64) (api.Job, error) {
	r.t.Helper()
	at, m := r.active()
	if err := at.GrowDisk(m.ID, "vda", size); err != nil {
		r.t.Fatal(err)
	}
	return r.takesOver(size)
}

// takesOver waits for the job that takes over other disks.
func (r *rig) takesOver(size int64) (api.Job, error) {
	for range 20000 {
		it, err := r.GetItem(r.t.Context(), machine)
		if err != nil {
			return api.Job{}, err
		}
		jobs, err := r.ListJobs(r.t.Context(), api.JobQuery{})
		if err != nil {
			return api.Job{}, err
		}
		for _, j := range jobs {
			if j.Kind == "update_disks" && (!j.Ended() || sizeOf(it, "vda") == size) {
				return j, nil
			}
		}
		time.Sleep(r.tick)
	}
	return api.Job{}, errKilled
}

func sizeOf(it api.Item, disk string) int64 {
	for _, d := range it.Machine.Disks {
		if d.ID == disk {
			return d.Size
		}
	}
	return 0
}

// hasDisks looks whether the item, and the machine that lives, have these disks.
func (r *rig) hasDisks(want map[string]int64) {
	r.t.Helper()
	listed, real := map[string]int64{}, map[string]int64{}
	for _, d := range r.item().Machine.Disks {
		listed[d.ID] = d.Size
	}
	at, m := r.active()
	for _, d := range m.Disks {
		if disk := at.Disk(m.ID, d.ID); disk != nil {
			real[d.ID] = disk.Size()
		}
	}
	if !maps.Equal(listed, want) || !maps.Equal(real, want) {
		r.t.Errorf("the item has disks %v, its machine %v; want %v", listed, real, want)
	}
}

// point makes a recovery point and returns it.
func (r *rig) point(name string) api.Point {
	r.t.Helper()
	r.done(r.MakePoint(r.t.Context(), machine, api.MakePoint{Name: name}))
	all, err := r.ListPoints(r.t.Context(), machine)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, p := range all.Points {
		if p.Name == name {
			return p
		}
	}
	r.t.Fatalf("there is no point %s", name)
	return api.Point{}
}

func (r *rig) changeTo(p api.Point) {
	r.t.Helper()
	r.done(r.ChangePoint(r.t.Context(), machine, api.ChangePoint{Option: "point", Point: p.ID}))
	r.idle()
}

// TestGrownDisk has a disk grown and protection go on: recovery points from
// before have the old size, those from after the new one, whichever the machine
// was brought to before, and test failovers too.
func TestGrownDisk(t *testing.T) {
	t.Parallel()
	inBubble(t, "grown", func(t *testing.T) {
		r := newRig(t)
		r.write(0, 1)
		r.protect()
		before := r.point("before")
		stored := r.gw.sentBytes(r.item().ID)
		r.done(r.growing(2 * diskSize))
		r.idle()
		if sent := r.gw.sentBytes(r.item().ID); sent > stored {
			t.Errorf("%d bytes were sent for a disk that has grown, and nothing was written", sent)
		}
		r.write(diskSize, 5)
		after := r.point("after")
		small, large := map[string]int64{"vda": diskSize, "vdb": 64 << 10}, map[string]int64{"vda": 2 * diskSize, "vdb": 64 << 10}
		r.hasDisks(large)
		for _, p := range []api.Point{before, after} {
			j := r.done(r.TestFailover(t.Context(), machine, api.TestFailover{Option: "point", Point: p.ID}))
			rec, ok := r.recovery.Recovered(j.Result.Test)
			if want := map[string]int64{before.ID: diskSize, after.ID: 2 * diskSize}[p.ID]; !ok || rec.Recovered.Disks[0].Size != want {
				t.Errorf("a test at point %s has disks %+v, want one of %d bytes", p.Name, rec.Recovered.Disks, want)
			}
			r.done(r.CleanUpTest(t.Context(), machine, api.CleanUpTest{}))
		}
		failover(r)
		r.hasDisks(large)
		r.reads(diskSize, 5)
		r.changeTo(before)
		r.hasDisks(small)
		r.reads(0, 1)
		r.changeTo(after)
		r.hasDisks(large)
		r.reads(diskSize, 5)
		r.changeTo(before)
		commit(r)
		reprotect(r)
		// Home again, where the disk is large: it is brought to the size of then.
		r.write(4096, 6)
		r.done(r.Failback(t.Context(), machine, api.Failback{Option: "latest"}))
		r.hasDisks(small)
		r.reads(0, 1)
		r.reads(4096, 6)
		commit(r)
	})
}

// TestGrownAway has the disk grown where the machine was recovered: the disk at
// home gets that size before it is brought up to date.
func TestGrownAway(t *testing.T) {
	t.Parallel()
	inBubble(t, "grown", func(t *testing.T) {
		r := newRig(t)
		r.write(0, 1)
		r.protect()
		reversed(r)
		r.done(r.growing(3 * diskSize))
		r.idle()
		r.write(2*diskSize, 5)
		r.done(r.Failback(t.Context(), machine, api.Failback{Option: "latest"}))
		r.hasDisks(map[string]int64{"vda": 3 * diskSize, "vdb": 64 << 10})
		r.reads(0, 1)
		r.reads(8192, 2)
		r.reads(2*diskSize, 5)
		if at, _ := r.active(); at != r.primary {
			t.Error("the machine is not at home")
		}
		commit(r)
		reprotect(r)
	})
}

// TestGrownBeforeReprotect has a disk grown, and one added, where the machine was
// recovered, before it is replicated again.
func TestGrownBeforeReprotect(t *testing.T) {
	t.Parallel()
	inBubble(t, "grown", func(t *testing.T) {
		r := newRig(t)
		r.write(0, 1)
		r.protect()
		failover(r)
		commit(r)
		at, m := r.active()
		if err := at.GrowDisk(m.ID, "vda", 2*diskSize); err != nil {
			t.Fatal(err)
		}
		reprotect(r)
		large := map[string]int64{"vda": 2 * diskSize, "vdb": 64 << 10}
		r.hasDisks(large)
		r.write(diskSize, 5)
		r.done(r.Failback(t.Context(), machine, api.Failback{Option: "latest"}))
		r.hasDisks(large)
		r.reads(0, 1)
		r.reads(diskSize, 5)
	})
}

// TestGrownInFirstCopy has a disk grown while it is copied for the first time: the
// job says so, and protection comes about all the same.
func TestGrownInFirstCopy(t *testing.T) {
	t.Parallel()
	inBubble(t, "grown", func(t *testing.T) {
		r := newRig(t)
		r.write(0, 1)
		r.gw.mu.Lock()
		r.gw.copies = true
		r.gw.mu.Unlock()
		j, err := r.ProtectMachine(t.Context(), api.Protect{Machine: machine, Site: "primary", RecoverySite: "recovery"})
		if err != nil {
			t.Fatal(err)
		}
		r.eventually("it copies", func() bool { return r.item().State == "initial_replication" })
		took, err := r.growing(2 * diskSize)
		if j = r.ended(j, nil); j.State != "failed" || j.Error.Hint == "" {
			t.Errorf("protect ends %s, %+v", j.State, j.Error)
		}
		r.done(took, err)
		r.gw.mu.Lock()
		r.gw.copies = false
		r.gw.mu.Unlock()
		r.eventually("it is protected", func() bool { return r.item().State == "protected" })
		r.write(diskSize, 5)
		failover(r)
		r.reads(diskSize, 5)
	})
}

// TestSiteLostWhileDisksAreTakenOver loses the gateway when the disks' timeline has
// begun: a failover is not kept waiting, and the order is given when it is back.
func TestSiteLostWhileDisksAreTakenOver(t *testing.T) {
	t.Parallel()
	for _, back := range []bool{false, true} {
		inBubble(t, fmt.Sprint("back ", back), func(t *testing.T) {
			r := newRig(t)
			r.write(0, 1)
			r.protect()
			r.gw.mu.Lock()
			r.gw.refuse = errors.New("it is away")
			r.gw.mu.Unlock()
			began := time.Now()
			if j := r.done(r.growing(2 * diskSize)); len(j.Warnings) == 0 {
				t.Error("nobody is told that the gateway has no order")
			}
			if took := time.Since(began); took > time.Minute {
				t.Errorf("the item was busy for %s", took)
			}
			if !back {
				r.done(r.FailoverItem(t.Context(), machine, api.Failover{Option: "latest_processed"}))
				r.reads(0, 1)
				r.hasDisks(map[string]int64{"vda": diskSize, "vdb": 64 << 10})
				return
			}
			r.gw.mu.Lock()
			r.gw.refuse = nil
			r.gw.mu.Unlock()
			time.Sleep(10 * time.Second)
			r.write(diskSize, 5)
			failover(r)
			r.reads(diskSize, 5)
		})
	}
}

// TestOtherDisks has disks added and removed. Not at once: backup software does so
// for a moment.
func TestOtherDisks(t *testing.T) {
	t.Parallel()
	inBubble(t, "others", func(t *testing.T) {
		r := newRig(t)
		r.write(0, 1)
		r.protect()
		before := r.point("before")
		_, m := r.active()
		two := m
		m.Disks = append([]provider.Disk{{ID: "vdc", Size: 8192, Format: "raw"}}, m.Disks[0])
		m.Memory *= 2
		r.primary.AddMachine(m)
		r.eventually("it is a finding", func() bool {
			for _, f := range r.item().Health.Findings {
				if f.Code == "HF1304" {
					return true
				}
			}
			return false
		})
		time.Sleep(20 * time.Second)
		r.hasFormer(two)
		r.primary.AddMachine(two) // it was for a moment only
		time.Sleep(time.Minute)
		r.hasDisks(map[string]int64{"vda": diskSize, "vdb": 64 << 10})
		r.primary.AddMachine(m)
		if err := r.primary.Disk("m1", "vdc").WriteAt(t.Context(), []byte{9, 9, 9}, 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		r.idle()
		now := map[string]int64{"vda": diskSize, "vdc": 8192}
		r.hasDisks(now)
		failover(r)
		r.hasDisks(now)
		var p [3]byte
		at, up := r.active()
		if err := at.Disk(up.ID, "vdc").ReadAt(t.Context(), p[:], 0); err != nil || p != [3]byte{9, 9, 9} {
			t.Errorf("the new disk has %v, %v", p, err)
		}
		if up.Memory != m.Memory {
			t.Errorf("the recovered machine has %d bytes of memory, want %d", up.Memory, m.Memory)
		}
		r.changeTo(before)
		r.hasFormer(two)
		if _, up = r.active(); up.Memory != two.Memory {
			t.Errorf("at a point from before the machine has %d bytes of memory, want %d", up.Memory, two.Memory)
		}
		r.reads(0, 1)
		r.done(r.UndoFailover(t.Context(), machine, api.UndoFailover{}))
		r.hasDisks(now)
		r.write(0, 2)
		failover(r)
		r.reads(0, 2)
		r.hasDisks(now)
	})
}

// hasFormer looks whether the item has the disks of a machine.
func (r *rig) hasFormer(m provider.Machine) {
	r.t.Helper()
	it := r.item()
	for _, d := range m.Disks {
		if sizeOf(it, d.ID) != d.Size {
			r.t.Errorf("the item has disks %+v, want %+v", it.Machine.Disks, m.Disks)
		}
	}
}

// TestDescribedAnew has a machine get more memory: that is what it is recovered
// with.
func TestDescribedAnew(t *testing.T) {
	t.Parallel()
	inBubble(t, "memory", func(t *testing.T) {
		r := newRig(t)
		r.protect()
		_, m := r.active()
		m.Memory *= 4
		r.primary.AddMachine(m)
		time.Sleep(10 * time.Second)
		failover(r)
		if _, up := r.active(); up.Memory != m.Memory {
			t.Errorf("the recovered machine has %d bytes of memory, want %d", up.Memory, m.Memory)
		}
	})
}

// TestPause has the machine left alone for a time.
func TestPause(t *testing.T) {
	t.Parallel()
	inBubble(t, "pause", func(t *testing.T) {
		r := newRig(t)
		r.write(0, 1)
		r.protect()
		r.done(r.Pause(t.Context(), machine, api.Pause{Duration: 600}))
		finding := func() bool {
			for _, f := range r.item().Health.Findings {
				if f.Code == "HF1305" {
					return true
				}
			}
			return false
		}
		if it := r.item(); it.Replication.Mode != "paused" || !finding() || it.State != "protected" {
			t.Errorf("the item is %+v", it)
		}
		r.write(4096, 2)
		r.kill()
		r.start(nil) // the pause outlives the server
		if !finding() {
			t.Error("the pause is over with the server's death")
		}
		r.done(r.Resume(t.Context(), machine, api.Resume{}))
		if finding() {
			t.Error("the pause is not over")
		}
		failover(r)
		r.reads(0, 1)
		r.reads(4096, 2)
		if _, err := r.Pause(t.Context(), machine, api.Pause{}); err == nil {
			t.Error("what does not replicate can be paused")
		}
	})
}
