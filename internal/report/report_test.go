package report_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"encoding/pem"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/report"
)

const hostile = "<script>alert(\"1\")</script>&'\"\x1b[31m\u202e"

func sample() report.Report {
	at := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	rpo, rto, goal, met := 0.25, 4.5, 3600.0, true
	text := "name: shop\n# " + hostile + "\n"
	return report.Report{
		Schema: report.Schema, MadeAt: at.Add(time.Hour), Server: "paris", Versions: map[string]string{"holdfast": "0.1.0"},
		Plan: report.Plan{Name: "shop", Revision: 3, Digest: "6a3e0ba7", Text: text},
		Run: api.PlanRun{
			PlanRunSummary: api.PlanRunSummary{Job: "j1", Kind: "test", Direction: api.ToRecovery, Revision: 3, StartedAt: at, EndedAt: at.Add(10 * time.Second), Outcome: "partial", Drill: true},
			Plan:           "shop", RequestedAt: at, RequestedBy: "admin", Note: hostile, State: "succeeded", Warnings: []string{hostile},
			Machines: []api.PlanMachine{{Item: "web" + hostile, Group: "front", State: "succeeded", Site: "paris", RPOSeconds: &rpo, RTOSeconds: &rto, Point: &api.Point{Time: at, Consistency: "crash"}}},
			Steps: []api.PlanStep{{Name: "stage-001", Title: "Bring up front", What: "machines", State: "succeeded", StartedAt: at, FinishedAt: at.Add(4 * time.Second)},
				{Name: "x", Title: "script " + hostile, What: "script", State: "failed", Error: hostile, Output: hostile, StartedAt: at.Add(4 * time.Second), FinishedAt: at.Add(9 * time.Second)}},
		},
		Objectives: report.Objectives{RPO: &rpo, RTO: &rto, RTOGoal: &goal, Met: &met},
		Evidence:   []report.Evidence{{Item: "web", Job: "j2", Tasks: []report.Task{{Title: "Verify", State: "succeeded", Log: []string{"there is " + hostile}}}, Shot: report.NewPicture([]byte("\x89PNG not really"))}},
	}
}

func newKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	key, err := report.LoadKey(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t *testing.T, r report.Report, key ed25519.PrivateKey) []byte {
	t.Helper()
	r.Plan.Digest = report.DigestOf(r.Plan.Text)
	env, err := report.Sign(t.Context(), r, key)
	if err != nil {
		t.Fatal(err)
	}
	return env
}

func public(key ed25519.PrivateKey) ed25519.PublicKey { return key.Public().(ed25519.PublicKey) }

func TestSignAndOpen(t *testing.T) {
	t.Parallel()
	key, other := newKey(t), newKey(t)
	env := sign(t, sample(), key)
	want := sample()
	want.Plan.Digest = report.DigestOf(want.Plan.Text)
	block, _ := pem.Decode(report.EncodePublic(public(key)))
	want.Key = block.Bytes
	got, who, err := report.Open(t.Context(), env, public(other), public(key))
	if err != nil || !who.Trusted || who.Key != report.KeyID(public(key)) {
		t.Fatalf("signed by %+v, %v", who, err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	got, who, err = report.Open(t.Context(), env, public(other))
	if !errors.Is(err, report.ErrUntrusted) || who.Trusted || who.Key != report.KeyID(public(key)) || got.Run.Job != "j1" {
		t.Errorf("with another key: %+v, %v", who, err)
	}
}

// TestTampered changes every byte of an envelope: it is then no report any more,
// whether or not a key is given.
func TestTampered(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	env := sign(t, sample(), key)
	for i := range env {
		for _, flip := range []byte{1, 0x20} {
			bad := bytes.Clone(env)
			bad[i] ^= flip
			for _, keys := range [][]ed25519.PublicKey{{public(key)}, nil} {
				if _, _, err := report.Open(t.Context(), bad, keys...); !errors.Is(err, report.ErrInvalid) {
					t.Fatalf("byte %d (%q) changed: %v", i, env[i], err)
				}
			}
		}
	}
	for _, more := range []string{" ", "\n", "x"} {
		if _, _, err := report.Open(t.Context(), append(bytes.Clone(env), more...), public(key)); !errors.Is(err, report.ErrInvalid) {
			t.Errorf("%q behind it: %v", more, err)
		}
	}
	for _, cut := range []int{0, 1, len(env) / 2, len(env) - 3} {
		if _, _, err := report.Open(t.Context(), env[:cut], public(key)); !errors.Is(err, report.ErrInvalid) {
			t.Errorf("cut at %d: %v", cut, err)
		}
	}
	if _, _, err := report.Open(t.Context(), append(bytes.Clone(env), env...), public(key)); !errors.Is(err, report.ErrInvalid) {
		t.Errorf("twice: %v", err)
	}
}

// TestLies signs reports whose parts do not belong together.
func TestLies(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	for name, lie := range map[string]func(*report.Report){
		"another text":    func(r *report.Report) { r.Plan.Text += "x" },
		"another picture": func(r *report.Report) { r.Evidence[0].Shot.PNG = []byte("x") },
	} {
		r := sample()
		r.Plan.Digest = report.DigestOf(r.Plan.Text)
		lie(&r)
		env, err := report.Sign(t.Context(), r, key)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := report.Open(t.Context(), env, public(key)); !errors.Is(err, report.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := report.Open(t.Context(), []byte(`{"payloadType":"text/plain","payload":"aGk=","signatures":[]}`)); !errors.Is(err, report.ErrInvalid) || !strings.Contains(err.Error(), "text/plain") {
		t.Errorf("another payload: %v", err)
	}
}

// TestPage makes the page of a report full of hostile text: it is well-formed, has
// no script, and fetches nothing.
func TestPage(t *testing.T) {
	t.Parallel()
	r := sample()
	var out bytes.Buffer
	if err := report.Page(&out, r, report.Signed{Trusted: true, Key: "SHA256:x"}); err != nil {
		t.Fatal(err)
	}
	page := out.String()
	for _, never := range []string{"<script", "\x1b", "\u202e", "http://", "https://", "url(", "<link", "@import"} {
		if strings.Contains(page, never) {
			t.Errorf("the page has %s", never)
		}
	}
	d := xml.NewDecoder(strings.NewReader(strings.NewReplacer("<!doctype html>", "", `<meta charset="utf-8">`, "", "<br>", "").Replace(page)))
	d.Strict, d.Entity, d.AutoClose = false, xml.HTMLEntity, []string{"img"}
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("the page is not well-formed: %v", err)
		}
	}
	for _, want := range []string{"partial", "Bring up front", "4.5 s", "data:image/png;base64,", "verified", "4.0 s"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	out.Reset()
	if err := report.Page(&out, r, report.Signed{}); err != nil || !strings.Contains(out.String(), "Nobody vouches") {
		t.Errorf("unverified: %v", err)
	}
}

func TestKey(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "report.key")
	key, err := report.LoadKey(name)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := report.LoadKey(name); err != nil || !again.Equal(key) {
		t.Errorf("read again it is another, %v", err)
	}
	if st, err := os.Stat(name); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode is %v, %v", st.Mode(), err)
	}
	p, err := report.ParsePublic(report.EncodePublic(public(key)))
	if err != nil || !p.Equal(public(key)) {
		t.Errorf("public key: %v", err)
	}
	if err := os.WriteFile(name, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := report.LoadKey(name); err == nil {
		t.Error("a damaged key was taken, or replaced")
	}
}

// TestVerifyWithoutHoldfast verifies a report as docs/reports.md says it can be done
// with openssl.
func TestVerifyWithoutHoldfast(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not there")
	}
	dir, key := t.TempDir(), newKey(t)
	env := sign(t, sample(), key)
	var e struct {
		PayloadType string
		Payload     []byte
		Signatures  []struct{ Sig []byte }
	}
	if err := json.Unmarshal(env, &e); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"key.pem": report.EncodePublic(public(key)), "sig": e.Signatures[0].Sig, "pae": []byte("DSSEv1 " + itoa(len(e.PayloadType)) + " " + e.PayloadType + " " + itoa(len(e.Payload)) + " " + string(e.Payload))} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "key.pem", "-rawin", "-in", "pae", "-sigfile", "sig")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("openssl: %v\n%s", err, out)
	}
}

func itoa(n int) string {
	b, _ := json.Marshal(n)
	return string(b)
}

// TestLargePictures leaves out what would make a report too large to be read.
func TestLargePictures(t *testing.T) {
	t.Parallel()
	r, key := sample(), newKey(t)
	r.Evidence = nil
	for range 5 {
		r.Evidence = append(r.Evidence, report.Evidence{Item: "web", Shot: report.NewPicture(bytes.Repeat([]byte{7}, 8<<20))})
	}
	got, _, err := report.Open(t.Context(), sign(t, r, key), public(key))
	if err != nil || len(got.Evidence[2].Shot.PNG) == 0 || len(got.Evidence[3].Shot.PNG) != 0 || got.Evidence[4].Shot.SHA256 == "" {
		t.Errorf("it is not read: %v", err)
	}
}

// TestKeyOfMany makes one key, however many ask for it at once.
func TestKeyOfMany(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "key")
	keys := make([]ed25519.PrivateKey, 8)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			var err error
			if keys[i], err = report.LoadKey(name); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, k := range keys {
		if !k.Equal(keys[0]) {
			t.Error("there are several keys")
		}
	}
	if err := os.Chmod(name, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := report.LoadKey(name); err == nil {
		t.Error("a key that others may read was taken")
	}
}

func FuzzOpen(f *testing.F) {
	f.Add([]byte(`{"payloadType":"application/vnd.holdfast.report+json","payload":"e30=","signatures":[{"keyid":"x","sig":"eA=="}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, who, err := report.Open(t.Context(), data)
		if err == nil || who.Trusted {
			t.Errorf("a report that nobody has signed was taken: %+v", r)
		}
	})
}
