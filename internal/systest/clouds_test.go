package systest

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/objstore/objstoretest"
	"github.com/holdfast-dr/holdfast/internal/systest/guest"
)

// TestVaultInS3 takes a guest out and home again with a vault in S3.
func TestVaultInS3(t *testing.T) {
	needsSystem(t)
	s := objstoretest.S3(t, "vaults")
	newWorld(t, worldOptions{vault: string(s.Bucket("vaults", "dr")), credentials: s.Credentials}).lives(true)
}

// TestVaultInAzure has a vault in Azure Blob that hangs for a while under a running
// replication: the guest must not feel it, and nothing be lost. Then the site is
// lost, then the server with its state and the container itself: the copy that the
// server kept in a directory and the vault's key are enough.
func TestVaultInAzure(t *testing.T) {
	needsSystem(t)
	s := objstoretest.Azure(t)
	copied := filepath.Join(t.TempDir(), "copy")
	w := newWorld(t, worldOptions{vault: string(s.Container(t, "vaults")), credentials: s.Credentials, serverFlags: []string{"--vault-copy", copied, "--vault-copy-every", "1s"}})
	w.protect()
	w.writesOn("while the vault answers")
	w.must(syscall.Kill(s.Pid, syscall.SIGSTOP))
	defer func() { _ = syscall.Kill(s.Pid, syscall.SIGCONT) }()
	for began := time.Now(); time.Since(began) < 20*time.Second; {
		w.writesOn("while the vault hangs")
	}
	w.must(syscall.Kill(s.Pid, syscall.SIGCONT))
	w.goesOn()
	w.must(w.KillMachine(machine))
	acked := w.acknowledged()
	r := w.result("failover", machine)
	if *r.RPOSeconds > 60 {
		t.Errorf("RPO is %.1f s", *r.RPOSeconds)
	}
	w.verifiesSince(w.newestRecovered(), acked)
	w.checkVault()
	now := time.Now()
	w.eventually("the copy has all", func() bool {
		var v api.Vault
		w.must(w.JSON(t.Context(), &v, "vault", "show"))
		return v.Copy != nil && v.Copy.AsOf.After(now) && v.Copy.Problem == ""
	})
	file, key, image := filepath.Join(w.Dir, "credentials"), filepath.Join(w.State, "vault.key"), filepath.Join(w.Dir, "saved.raw")
	if out := w.cli("vault", "open", "--vault", w.vaultDir, "--vault-credentials", file, "--vault-key", key); !strings.Contains(out, machine) {
		t.Errorf("vault open says %s", out)
	}
	w.must(syscall.Kill(s.Pid, syscall.SIGSTOP))
	w.cli("vault", "export", machine, "--vault", copied, "--vault-key", key, "--timeline", "1", "--output", image)
	w.must(syscall.Kill(s.Pid, syscall.SIGCONT))
	rep, err := guest.Check(t.Context(), image)
	if err != nil || !rep.OK() || int64(rep.Last) < acked {
		t.Errorf("the exported disk: %+v, %v; %d was acknowledged", rep, err, acked)
	}
}
