package capture

import (
	"errors"
	"testing"
)

// with returns a situation in which all is well, changed by f.
func with(f func(*situation)) situation {
	root := &blockNode{Name: "n"}
	root.Image.Size = 1 << 20
	s := situation{
		disk: Disk{ID: "vda", Size: 1 << 20}, root: root, target: true, known: true,
		job:   &blockJob{ID: "j", Ready: true, Status: "ready", IOStatus: "ok", Len: 7, Offset: 7},
		epoch: 3, connected: true, claimed: true,
	}
	f(&s)
	return s
}

func noJob(s *situation) {
	s.job, s.target, s.connected, s.claimed, s.ready = nil, false, false, false, true
}

func TestDecide(t *testing.T) {
	t.Parallel()
	yes, no := true, false
	for _, c := range []struct {
		name string
		s    situation
		act  action
		mode Mode
	}{
		{"all is well", with(func(s *situation) {}), actNothing, ModeContinuous},
		{"not claimed yet", with(func(s *situation) { s.claimed = false }), actClaim, ModeRescan},
		{"dirty blocks are left", with(func(s *situation) { s.claimed, s.dirty = false, 512 }), actNothing, ModeRescan},
		{"dirty is not known", with(func(s *situation) { s.claimed, s.known = false, false }), actNothing, ModeRescan},
		{"offset is behind", with(func(s *situation) { s.claimed, s.job.Offset = false, 6 }), actNothing, ModeRescan},
		{"QEMU says actively synced", with(func(s *situation) { s.claimed, s.known, s.job.ActivelySynced = false, false, &yes }), actClaim, ModeRescan},
		{"QEMU says not actively synced", with(func(s *situation) { s.claimed, s.job.ActivelySynced = false, &no }), actNothing, ModeRescan},
		{"claimed, and dirty", with(func(s *situation) { s.dirty = 512 }), actCut, ModeRescan},
		{"claimed, and failed on the same connection", with(func(s *situation) { s.job.Paused, s.job.IOStatus = true, "failed" }), actCut, ModePaused},
		{"first pass", with(func(s *situation) { s.claimed, s.job.Ready = false, false }), actNothing, ModeInitialSync},
		{"later pass", with(func(s *situation) { s.claimed, s.job.Ready, s.seeded = false, false, true }), actNothing, ModeRescan},
		{"paused by an error", with(func(s *situation) { s.claimed, s.job.Paused, s.job.IOStatus = false, true, "failed" }), actResume, ModePaused},
		{"paused, ingest away", with(func(s *situation) { s.claimed, s.connected, s.job.Paused = false, false, true }), actNothing, ModeDisconnected},
		{"paused, ingest back", with(func(s *situation) { s.claimed, s.connected, s.ready, s.job.Paused = false, false, true, true }), actResume, ModePaused},
		{"idle, ingest back", with(func(s *situation) { s.claimed, s.connected, s.ready = false, false, true }), actWake, ModeDisconnected},
		{"idle, ingest away", with(func(s *situation) { s.claimed, s.connected = false, false }), actNothing, ModeDisconnected},
		{"ingest does not answer", with(func(s *situation) { s.claimed, s.ingest = false, errors.New("x") }), actNothing, ModeDisconnected},
		{"no such disk", with(func(s *situation) { s.root = nil }), actNothing, ModePaused},
		{"nothing there", with(noJob), actStart, ModeInitialSync},
		{"nothing there, ingest away", with(func(s *situation) { noJob(s); s.ready = false }), actNothing, ModeDisconnected},
		{"nothing there, ingest does not answer", with(func(s *situation) { noJob(s); s.ingest = errors.New("x") }), actNothing, ModeDisconnected},
		{"resized", with(func(s *situation) { noJob(s); s.disk.Size = 512 }), actNothing, ModePaused},
		{"read-only", with(func(s *situation) { noJob(s); s.root.RO = true }), actNothing, ModePaused},
		{"job gone, connection stands", with(func(s *situation) { s.job = nil }), actCut, ModeRescan},
		{"job gone, target left", with(func(s *situation) { noJob(s); s.target = true }), actDelete, ModeRescan},
		{"job gone, target left, ingest does not answer", with(func(s *situation) { noJob(s); s.target, s.ingest = true, errors.New("x") }), actNothing, ModeDisconnected},
		{"job ended, connection stands", with(func(s *situation) { s.job.Status = "concluded" }), actCut, ModeRescan},
		{"job ended", with(func(s *situation) { s.job.Status, s.connected = "concluded", false }), actDismiss, ModeRescan},
		{"job is ending", with(func(s *situation) { s.job.Status, s.connected = "aborting", false }), actNothing, ModeRescan},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := decide(c.s)
			if d.act != c.act || d.mode != c.mode {
				t.Errorf("got %v and mode %s, want %v and %s", d.act, d.mode, c.act, c.mode)
			}
			// What can make QEMU wait for the ingest is never done while the
			// ingest does not answer.
			if c.s.ingest != nil && d.act != actNothing && d.act != actCut {
				t.Errorf("%v although the ingest does not answer", d.act)
			}
		})
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	seen := map[names]bool{}
	for _, prefix := range []string{"item", "0b1c-22", "with space/slash", string(make([]byte, 300))} {
		for _, disk := range []string{"vda", "a-disk-with-a-name-of-32-letters"} {
			n := newTracked(prefix, Disk{ID: disk}).names
			if seen[n] || n != newTracked(prefix, Disk{ID: disk}).names {
				t.Errorf("%q %q: names %v are not unique and stable", prefix, disk, n)
			}
			seen[n] = true
			if len(n.target) > 31 || len(n.filter) > 31 || notID.MatchString(n.job) || len(n.job) > 250 {
				t.Errorf("%q %q: QEMU would refuse %v", prefix, disk, n)
			}
		}
	}
}
