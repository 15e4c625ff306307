package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// imageVault is a vault with one stream, whose disks have the content of files.
func imageVault(t *testing.T, images ...string) offline {
	t.Helper()
	dir := t.TempDir()
	o := offline{vault: location{at: filepath.Join(dir, "vault")}, key: filepath.Join(dir, "vault.key")}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(o.vault.at, 0o700))
	objects, err := objstore.NewDir(vfs.OS, o.vault.at)
	must(err)
	key, err := vault.NewKey()
	must(err)
	must(os.WriteFile(o.key, []byte(key.String()+"\n"), 0o600))
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	v, err := vault.Create(t.Context(), objects, vault.CreateOptions{Key: key, Now: now})
	must(err)
	opts := vault.StreamOptions{ID: holdfast.NewStreamID(), Name: "web1", Now: now}
	var contents [][]byte
	for i, name := range images {
		b, err := os.ReadFile(name)
		must(err)
		contents = append(contents, b)
		opts.Disks = append(opts.Disks, vault.Disk{ID: "vd" + letters(i), Size: int64(len(b))})
	}
	s, err := v.CreateStream(t.Context(), opts)
	must(err)
	must(s.Refresh(t.Context()))
	w, err := s.Writer(t.Context(), vault.WriterOptions{Timeline: 1, Generation: 1})
	must(err)
	for i, b := range contents {
		const part = 1 << 20
		for off := 0; off < len(b); off += part {
			if p := b[off:min(len(b), off+part)]; len(bytes.Trim(p, "\x00")) > 0 {
				_, err := w.Write(opts.Disks[i].ID, int64(off), p, now)
				must(err)
			}
		}
	}
	_, err = w.Mark(vault.Mark{Kind: vault.MarkConsistent}, now)
	must(err)
	sealed, err := w.Seal(now)
	must(err)
	must(w.Commit(t.Context(), sealed))
	return o
}

// needsGuestfish skips where there is none.
func needsGuestfish(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("guestfish"); err != nil {
		t.Skip("guestfish is not installed; make prepare installs it")
	}
	if os.Getenv("HOLDFAST_SYSTEST") != "1" {
		t.Skip("HOLDFAST_SYSTEST is not 1: guestfish takes half a minute without KVM; make test runs it")
	}
}

// TestFiles lists and copies files of two disks, one an ext4 with an entry in its
// journal alone, as a machine leaves it whose power is lost.
func TestFiles(t *testing.T) {
	t.Parallel()
	needsGuestfish(t)
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree", "etc", "app")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	content := bytes.Repeat([]byte("as it was\n"), 100_000)
	if err := os.WriteFile(filepath.Join(tree, "conf"), content, 0o640); err != nil {
		t.Fatal(err)
	}
	var images []string
	for i, label := range []string{"root", "data"} {
		name := filepath.Join(dir, label)
		args := []string{"-q", "-F", "-L", label, "-d", filepath.Join(dir, "tree"), name, "32M"}
		if out, err := exec.Command("mkfs.ext4", args...).CombinedOutput(); err != nil {
			t.Fatalf("mkfs.ext4: %v: %s", err, out)
		}
		images = append(images, name)
		if i == 0 {
			inJournal(t, name)
		}
	}
	o := imageVault(t, images...)
	run := func(f files) (string, error) {
		var out, progress bytes.Buffer
		f.offline, f.stream = o, "web1"
		err := f.run(context.WithoutCancel(t.Context()), &out, &progress)
		return out.String(), err
	}
	if out, err := run(files{}); err != nil || !strings.Contains(out, "vda          ext4") || !strings.Contains(out, "vdb          ext4") || !strings.Contains(out, "33554432 bytes  data") {
		t.Errorf("file systems: %v\n%s", err, out)
	}
	if out, err := run(files{path: "/etc/app", system: "vdb"}); err != nil || !strings.Contains(out, "conf") {
		t.Errorf("list: %v\n%s", err, out)
	}
	into := filepath.Join(dir, "restored")
	if out, err := run(files{path: "/etc/app", system: "vda", output: into}); err != nil || !strings.Contains(out, into) {
		t.Errorf("copy: %v\n%s", err, out)
	}
	got, err := os.ReadFile(filepath.Join(into, "app", "conf"))
	if err != nil || !bytes.Equal(got, bytes.Replace(content, []byte("as it was\n"), []byte("journal's\n"), 1)) {
		t.Errorf("the file that was copied has %d bytes, beginning %q, %v", len(got), got[:min(len(got), 20)], err)
	}
	for what, f := range map[string]files{
		"it is there already":  {path: "/etc/app", system: "vda", output: into},
		"no such disk":         {path: "/", system: "vdz"},
		"does not begin":       {path: "etc"},
		"in its shortest form": {path: "/etc/../x"},
		"no path is given":     {output: into},
		"No such file":         {path: "/nothing", system: "vda"},
		"no operating system":  {path: "/etc"},
	} {
		if out, err := run(f); err == nil || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(what)) {
			t.Errorf("%+v: %v, want %q\n%s", f, err, what, out)
		}
	}
	verifyVault(t, o)
}

// inJournal has the first block of a file's data in the file system's journal, and
// not yet in its place.
func inJournal(t *testing.T, image string) {
	t.Helper()
	debugfs := func(write bool, command string) string {
		t.Helper()
		args := []string{"-R", command, image}
		if write {
			args = append([]string{"-w"}, args...)
		}
		out, err := exec.Command("debugfs", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("debugfs %s: %v: %s", command, err, out)
		}
		return string(out)
	}
	fields := strings.Fields(debugfs(false, "blocks /etc/app/conf"))
	first := fields[len(fields)-1]
	for i, f := range fields {
		if strings.HasPrefix(f, "debugfs") || strings.Contains(f, "(") {
			continue
		}
		if strings.Trim(f, "0123456789") == "" {
			first = fields[i]
			break
		}
	}
	size := 1024
	if strings.Contains(debugfs(false, "stats"), "Block size:               4096") {
		size = 4096
	}
	b := bytes.Repeat([]byte("as it was\n"), size/10+1)[:size]
	copy(b, "journal's\n")
	data := filepath.Join(t.TempDir(), "block")
	if err := os.WriteFile(data, b, 0o600); err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("jo\njw -b "+first+" "+data+"\njc\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("debugfs", "-w", "-f", script, image).CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v: %s", err, out)
	}
	if !strings.Contains(debugfs(false, "features"), "needs_recovery") {
		t.Fatal("the file system has nothing in its journal")
	}
}

func verifyVault(t *testing.T, o offline) {
	t.Helper()
	v, err := o.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	rep, err := v.Verify(t.Context(), vault.VerifyOptions{})
	if err != nil || len(rep.Damaged) > 0 {
		t.Errorf("verify: %+v, %v", rep, err)
	}
}

// TestFilesOfOtherKinds reads NTFS in a partition, and XFS in a logical volume.
func TestFilesOfOtherKinds(t *testing.T) {
	t.Parallel()
	needsGuestfish(t)
	image := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 420<<20)); err != nil {
		t.Fatal(err)
	}
	const script = `run
part-init /dev/sda gpt
part-add /dev/sda p 2048 104447
part-add /dev/sda p 104448 856000
mkfs ntfs /dev/sda1
pvcreate /dev/sda2
vgcreate vg /dev/sda2
lvcreate-free root vg 100
mkfs xfs /dev/vg/root
mount /dev/vg/root /
mkdir /var
write /var/hello "on XFS"
umount /
mount /dev/sda1 /
write /hello "on NTFS"
`
	cmd := exec.Command("guestfish", "--format=raw", "-a", image)
	cmd.Stdin, cmd.Env = strings.NewReader(script), append(os.Environ(), "LIBGUESTFS_BACKEND_SETTINGS=force_tcg")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("guestfish: %v: %s", err, out)
	}
	o := imageVault(t, image)
	into := t.TempDir()
	for _, c := range []struct{ path, system, name, want string }{
		{"/var", "/dev/vg/root", "var/hello", "on XFS"},
		{"/hello", "vda1", "hello", "on NTFS"},
	} {
		var out bytes.Buffer
		f := files{path: c.path, system: c.system, output: into}
		f.offline, f.stream = o, "web1"
		if err := f.run(t.Context(), &out, &out); err != nil {
			t.Errorf("%s: %v\n%s", c.want, err, &out)
			continue
		}
		if got, err := os.ReadFile(filepath.Join(into, c.name)); err != nil || string(got) != c.want {
			t.Errorf("%q, %v, want %q", got, err, c.want)
		}
	}
	var out, progress bytes.Buffer
	f := files{}
	f.offline, f.stream = o, "web1"
	if err := f.run(t.Context(), &out, &progress); err != nil || !strings.Contains(out.String(), "/dev/vg/root xfs") || !strings.Contains(out.String(), "vda1         ntfs") {
		t.Errorf("%v\n%s", err, &out)
	}
}
