package systest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/api"
)

// cutSite is a primary site with a gateway of its own, in a network namespace
// without a way out and a mount namespace, that can be cut off from the server
// and from the vault and goes on running.
type cutSite struct {
	*world
	gateway string // its directory
	cmd     *exec.Cmd
}

func newCutSite(t *testing.T) *cutSite {
	if os.Getuid() != 0 {
		t.Skip("namespaces need root")
	}
	s := &cutSite{world: newWorld(t, worldOptions{cmdline: "rate=50"})}
	s.gateway = filepath.Join(s.Dir, "g")
	s.cmd = exec.Command("unshare", "--mount", "--net", "--propagation", "private", binary, "gateway", "--dir", s.gateway)
	log, err := os.Create(filepath.Join(s.Dir, "g.log"))
	s.must(err)
	s.cmd.Stderr = log
	s.must(errors.Join(s.cmd.Start(), log.Close()))
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		if b, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("the site's own gateway said:\n%s", lastBytes(b))
		}
	})
	socket := filepath.Join(s.gateway, "gateway.sock")
	s.eventually("the site's own gateway is there", func() bool { _, err := os.Stat(socket); return err == nil })
	s.cli("site", "remove", "primary")
	s.cli("site", "add", "primary", "--provider", "qemu", "--set", "directory="+s.Primary, "--gateway", "unix:"+socket)
	return s
}

// inside runs a command among the mounts of the site's gateway.
func (s *cutSite) inside(args ...string) {
	s.t.Helper()
	out, err := exec.Command("nsenter", append([]string{"-t", fmt.Sprint(s.cmd.Process.Pid), "-m"}, args...)...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// cut takes the vault from the site's gateway, and the gateway and the machines
// from the server. Nothing of the site ends.
func (s *cutSite) cut() {
	s.t.Helper()
	s.inside("mount", "-t", "tmpfs", "-o", "size=1M", "away", s.Vault)
	s.must(os.Rename(filepath.Join(s.gateway, "gateway.sock"), filepath.Join(s.gateway, "away.sock")))
	s.must(os.Rename(s.Primary, s.Primary+".away"))
}

func (s *cutSite) join() {
	s.t.Helper()
	s.must(os.Rename(s.Primary+".away", s.Primary))
	s.must(os.Rename(filepath.Join(s.gateway, "away.sock"), filepath.Join(s.gateway, "gateway.sock")))
	s.inside("umount", s.Vault)
}

// first returns the timeline in which the source wrote.
func (s *cutSite) first() api.Timeline {
	s.t.Helper()
	var all api.Timelines
	s.must(s.JSON(s.t.Context(), &all, "timeline", "list", machine))
	i := slices.IndexFunc(all.Timelines, func(tl api.Timeline) bool { return tl.Parent == 0 })
	if i < 0 {
		s.t.Fatalf("timelines are %+v", all)
	}
	return all.Timelines[i]
}

// TestTwoLiveCopies cuts a site off whose guest goes on writing, fails over, and
// lets the site come back: the vault takes nothing of the old copy after the
// fence, the old copy is found running, switched off and kept off, and what it
// had written apart is kept as a timeline of its own.
func TestTwoLiveCopies(t *testing.T) {
	s := newCutSite(t)
	s.protect()
	s.writesOn("while it is protected")
	acked := s.acknowledged()
	time.Sleep(time.Second) // the RPO
	s.cut()
	began := time.Now()
	if _, err := s.CLI(t.Context(), "failover", machine); exitCode(err) != 0 && exitCode(err) != 3 {
		t.Fatal(err)
	}
	t.Logf("failover without the site: %s", time.Since(began).Round(time.Millisecond))
	s.verifiesSince(s.newestRecovered(), acked)
	s.eventually("that the source is not guarded is a finding", s.finds("HF1503"))

	// The old copy is alive, and knows of nothing.
	old := s.SerialPath(s.Primary+".away", machine)
	from := s.ackedIn(old)
	s.eventually("the source writes on", func() bool { return s.ackedIn(old) > from+50 })
	fenced := s.first()
	if !fenced.Ended {
		t.Errorf("the source's timeline is open: %+v", fenced)
	}
	pid := s.sourcePID(s.Primary + ".away")

	began = time.Now()
	s.join()
	s.eventually("the old copy is switched off", func() bool { return !alive(pid) })
	t.Logf("the old copy was switched off %s after its site came back", time.Since(began).Round(time.Millisecond))
	s.eventually("that two copies ran is a finding", s.finds("HF1502"))
	if err := s.StartMachine(t.Context(), machine); err == nil || !strings.Contains(err.Error(), "guarded") {
		t.Errorf("start of the old copy: %v", err)
	}
	last := s.ackedIn(s.SerialPath(s.Primary, machine))
	time.Sleep(2 * time.Second) // its gateway has the vault again, and tries
	if now := s.first(); now.Until != fenced.Until {
		t.Errorf("the vault took something of the old copy after the fence: until %s, before %s", now.Until, fenced.Until)
	}

	s.cli("commit", machine)
	s.cli("reprotect", machine)
	var all api.Timelines
	s.must(s.JSON(t.Context(), &all, "timeline", "list", machine))
	i := slices.IndexFunc(all.Timelines, func(tl api.Timeline) bool { return strings.HasPrefix(tl.Origin, "keep ") })
	if i < 0 {
		t.Fatalf("what the old copy wrote apart was not kept: %+v", all)
	}
	var job api.Job
	s.must(s.JSON(t.Context(), &job, "test-failover", "start", machine, "--timeline", fmt.Sprint(all.Timelines[i].Timeline)))
	s.verifiesSince(s.consoleOf(job.Result.Test), last)
	s.cli("test-failover", "clean-up", machine, "--note", "it is what the old copy had")
	s.checkVault()
}

// consoleOf returns the console of a machine that was made by a handle.
func (s *cutSite) consoleOf(handle string) string {
	s.t.Helper()
	for _, dir := range []string{s.Primary, s.Recovery} {
		found := ""
		s.must(filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			if filepath.Base(path) == "serial.log" && strings.Contains(path, handle) {
				found = path
			}
			return err
		}))
		if found != "" {
			return found
		}
	}
	s.t.Fatalf("%s has no console", handle)
	return ""
}

// finds says whether the item has a finding.
func (s *cutSite) finds(code string) func() bool {
	return func() bool {
		return slices.ContainsFunc(s.item().Health.Findings, func(f api.Finding) bool { return f.Code == code })
	}
}

func (s *cutSite) sourcePID(dir string) int {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, machine+".pid"))
	s.must(err)
	return atoiInt(s.t, strings.TrimSpace(string(b)))
}

func atoiInt(t *testing.T, text string) int {
	t.Helper()
	return int(atoi(t, text))
}

// alive says whether a process runs.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(b), ") Z ")
}

// exitCode returns the code that a command has ended with.
func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}
