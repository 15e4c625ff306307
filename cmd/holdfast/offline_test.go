package main

import (
	"bytes"
	"context"
	"crypto/sha256"
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

// lostServer is a vault of which nothing is left but its directory and its key,
// with a machine whose disk had first one content and then another.
func lostServer(t *testing.T) (o offline, first time.Time, before, after []byte) {
	t.Helper()
	dir := t.TempDir()
	o = offline{vault: location{at: filepath.Join(dir, "vault")}, key: filepath.Join(dir, "vault.key")}
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
	first = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	v, err := vault.Create(t.Context(), objects, vault.CreateOptions{Key: key, Now: first})
	must(err)
	s, err := v.CreateStream(t.Context(), vault.StreamOptions{ID: holdfast.NewStreamID(), Name: "web1", Disks: []vault.Disk{{ID: "vda", Size: 4 << 20}, {ID: "vdb", Size: 1 << 20}}, Now: first})
	must(err)
	must(s.Refresh(t.Context()))
	w, err := s.Writer(t.Context(), vault.WriterOptions{Timeline: 1, Generation: 1})
	must(err)
	before = make([]byte, 4<<20)
	write := func(at time.Time, off int64, fill byte) {
		p := bytes.Repeat([]byte{fill}, 128<<10)
		copy(before[off:], p)
		_, err := w.Write("vda", off, p, at)
		must(err)
	}
	mark := func(at time.Time, m vault.Mark) {
		_, err := w.Mark(m, at)
		must(err)
	}
	write(first, 0, 1)
	write(first, 3<<20, 2)
	mark(first, vault.Mark{Kind: vault.MarkConsistent})
	mark(first, vault.Mark{Kind: vault.MarkPoint, Name: "good", Consistency: vault.AppConsistent})
	after = before
	before = bytes.Clone(before)
	copy(after[1<<20:], bytes.Repeat([]byte{3}, 4096))
	_, err = w.Write("vda", 1<<20, after[1<<20:1<<20+4096], first.Add(time.Hour))
	must(err)
	sealed, err := w.Seal(first.Add(time.Hour))
	must(err)
	must(w.Commit(t.Context(), sealed))
	return o, first, before, after
}

func TestExportWithoutServer(t *testing.T) {
	t.Parallel()
	o, first, before, after := lostServer(t)
	var out bytes.Buffer
	v, err := o.open(t.Context())
	if err == nil {
		err = o.list(t.Context(), v, &out)
	}
	if err != nil || !strings.Contains(out.String(), "web1, stream") || !strings.Contains(out.String(), "app-consistent good") {
		t.Fatalf("open: %v\n%s", err, &out)
	}
	dir := t.TempDir()
	run := func(e export) (string, error) {
		e.offline, e.stream = o, "web1"
		if e.output == "" {
			e.output = filepath.Join(dir, e.format+e.point+e.at)
		}
		var said bytes.Buffer
		return e.output, e.run(context.WithoutCancel(t.Context()), &said, &said)
	}
	want := map[string][]byte{"": after, "good": before}
	for point, content := range want {
		name, err := run(export{disk: "vda", format: "raw", moments: moments{point: point}})
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(name)
		if err != nil || sha256.Sum256(got) != sha256.Sum256(content) {
			t.Errorf("point %q: the image differs, %v", point, err)
		}
		if _, err := exec.LookPath("qemu-img"); err != nil {
			continue
		}
		for _, format := range []string{"qcow2", "vmdk", "vhd"} {
			image, err := run(export{disk: "vda", format: format, moments: moments{point: point}})
			if err != nil {
				t.Errorf("%s: %v", format, err)
				continue
			}
			if said, err := exec.Command("qemu-img", "compare", "-f", "raw", "-F", map[string]string{"qcow2": "qcow2", "vmdk": "vmdk", "vhd": "vpc"}[format], name, image).CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", format, err, said)
			}
		}
	}
	earlier := first.Add(30 * time.Minute).Format(time.RFC3339)
	if name, err := run(export{disk: "vda", format: "raw", moments: moments{at: earlier}}); err != nil {
		t.Error(err)
	} else if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, before) {
		t.Errorf("by time the image differs, %v", err)
	}
	for what, e := range map[string]export{
		"several":           {format: "raw"},
		"no format":         {disk: "vda", format: "tape"},
		"there is such":     {disk: "vda", format: "raw", output: filepath.Join(dir, "raw")},
		"no recovery point": {disk: "vda", format: "raw", moments: moments{point: "bad"}},
		"it is no time":     {disk: "vda", format: "raw", moments: moments{at: "noon"}},
		"exclude each":      {disk: "vda", format: "raw", moments: moments{at: earlier, point: "good"}},
	} {
		if what == "several" {
			what, e.output = "the machine had", filepath.Join(dir, "several")
		}
		if _, err := run(e); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%+v: %v, want %q", e, err, what)
		}
	}
	parts, err := filepath.Glob(filepath.Join(dir, "*.part"))
	if err != nil || len(parts) > 0 {
		t.Errorf("left behind: %v, %v", parts, err)
	}
}

// TestExportGoesOn begins an export again and again, each of which is interrupted, and
// finishes it; what was there already is not written anew, what was damaged is.
func TestExportGoesOn(t *testing.T) {
	t.Parallel()
	o, _, _, after := lostServer(t)
	name := filepath.Join(t.TempDir(), "web1.raw")
	e := export{moments: moments{offline: o, stream: "web1"}, disk: "vda", format: "raw", output: name}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var said bytes.Buffer
	if err := e.run(ctx, &said, &said); err == nil {
		t.Fatal("an export that was cancelled has succeeded")
	}
	part := bytes.Clone(after)
	for i := range 4096 { // as after a crash: a block that was never written out
		part[3<<20+i] = 0
	}
	part[2<<20] = 9 // and one that should be zero
	if err := os.WriteFile(name+".part", part, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := e.run(t.Context(), &said, &said); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, after) {
		t.Errorf("the image differs, %v", err)
	}
	if !strings.Contains(said.String(), "already is looked at") {
		t.Errorf("it does not go on: %s", &said)
	}
	if _, err := os.Stat(name + ".part"); err == nil {
		t.Error("the part is left behind")
	}
}

func TestOpenWithoutServerRefuses(t *testing.T) {
	t.Parallel()
	good, _, _, _ := lostServer(t)
	other, _, _, _ := lostServer(t)
	for _, c := range []struct {
		o    offline
		want string
	}{
		{offline{vault: good.vault, key: other.key}, "vault"},
		{offline{vault: good.vault, key: "/nowhere"}, "read vault key"},
		{offline{vault: location{at: filepath.Join(good.vault.at, "nowhere")}, key: good.key}, "open vault"},
		{offline{vault: location{at: t.TempDir()}, key: good.key}, "open vault"},
	} {
		if _, err := c.o.open(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) || holdfast.HintOf(err) == "" {
			t.Errorf("%+v: %v, hint %q", c.o, err, holdfast.HintOf(err))
		}
	}
}
