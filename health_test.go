package holdfast_test

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast"
)

func TestFindingsTable(t *testing.T) {
	t.Parallel()
	codes, names := map[holdfast.Code]bool{}, map[string]bool{}
	for _, f := range holdfast.Findings() {
		if !regexp.MustCompile(`^HF1\d{3}$`).MatchString(string(f.Code)) || !regexp.MustCompile(`^[a-z_]+$`).MatchString(f.Name) {
			t.Errorf("%s %s: not the form of a code and a name", f.Code, f.Name)
		}
		if codes[f.Code] || names[f.Name] {
			t.Errorf("%s %s is there twice", f.Code, f.Name)
		}
		codes[f.Code], names[f.Name] = true, true
		for _, text := range []string{f.Summary, f.Cause, f.Advice} {
			if text == "" || strings.HasSuffix(text, ".") {
				t.Errorf("%s: %q: wants text without a full stop", f.Code, text)
			}
		}
		if got := holdfast.NewFinding(f.Code, "d", t0); got.Summary != f.Summary || got.Detail != "d" || !got.Since.Equal(t0) {
			t.Errorf("%s: NewFinding gives %+v", f.Code, got)
		}
	}
	if f := holdfast.NewFinding("HF9999", "", t0); f.Severity != holdfast.SeverityCritical || f.Cause == "" || f.Advice == "" {
		t.Errorf("unknown code: got %+v", f)
	}
}

func TestAssess(t *testing.T) {
	t.Parallel()
	old := holdfast.RecoveryPoint{ID: "p", Timeline: 1, Position: 1, Time: t0}
	healthy := func() holdfast.Item {
		it := itemIn(holdfast.StateProtected, holdfast.Forward)
		it.LastTest = &holdfast.TestRecord{Success: t0.Add(-day)}
		it.Status.RPO = time.Second
		return it
	}
	tests := []struct {
		name   string
		change func(*holdfast.Item)
		seen   holdfast.Observation
		want   string // names, worst first
		health holdfast.Health
	}{
		{"healthy", func(*holdfast.Item) {}, holdfast.Observation{}, "", holdfast.HealthHealthy},
		{"rpo at the threshold", func(it *holdfast.Item) { it.Status.RPO = time.Minute }, holdfast.Observation{}, "", holdfast.HealthHealthy},
		{"rpo above it", func(it *holdfast.Item) { it.Status.RPO = time.Minute + 1 }, holdfast.Observation{}, "rpo_exceeded", holdfast.HealthWarning},
		{"rpo of a machine that is off", func(it *holdfast.Item) { it.Status.RPO = time.Hour }, holdfast.Observation{SourceOff: true}, "source_off", holdfast.HealthHealthy},
		{"no point", func(it *holdfast.Item) { it.Status.Newest = nil }, holdfast.Observation{}, "no_recovery_point", holdfast.HealthCritical},
		{"no point yet is no finding", func(it *holdfast.Item) { it.State = holdfast.StateInitialReplication; it.Status.Newest = nil }, holdfast.Observation{}, "", holdfast.HealthHealthy},
		{"never tested", func(it *holdfast.Item) { it.LastTest = nil }, holdfast.Observation{}, "never_tested", holdfast.HealthHealthy},
		{"tested long ago", func(it *holdfast.Item) { it.LastTest = &holdfast.TestRecord{Success: t0.Add(-91 * day)} }, holdfast.Observation{}, "test_overdue", holdfast.HealthHealthy},
		{"tested long ago, and that is fine", func(it *holdfast.Item) {
			it.LastTest, it.Policy.TestEvery = &holdfast.TestRecord{Success: t0.Add(-91 * day)}, holdfast.Never
		}, holdfast.Observation{}, "", holdfast.HealthHealthy},
		{"never tested matters only where one can", func(it *holdfast.Item) { it.LastTest, it.Direction = nil, holdfast.Reverse }, holdfast.Observation{}, "", holdfast.HealthHealthy},
		{"resync", func(it *holdfast.Item) { it.Status.Mode = holdfast.ModeRescan }, holdfast.Observation{}, "resync_running", holdfast.HealthHealthy},
		{"worst first", func(it *holdfast.Item) { it.Status.RPO = time.Hour; it.Status.Mode = holdfast.ModeRescan },
			holdfast.Observation{VaultFull: "0 bytes free", DiskResized: "disk vda", SourceUnreachable: "no route", ClockSetBack: time.Second},
			"vault_full source_unreachable rpo_exceeded disk_resized clock_set_back resync_running", holdfast.HealthCritical},
		{"everything else", func(*holdfast.Item) {},
			holdfast.Observation{GatewayUnreachable: "x", GatewayCutOff: "x", VaultUnreachable: "x", VaultDamaged: "x", NeedsView: true},
			"gateway_unreachable vault_unreachable vault_damaged gateway_stalled_and_cut view_needed", holdfast.HealthCritical},
		{"failed over", func(it *holdfast.Item) {
			it.State = holdfast.StateCommitPending
			it.Status.RPO = time.Hour
			it.RecoveryPoint = &old
		}, holdfast.Observation{}, "", holdfast.HealthNotApplicable},
		{"failed over and reading from the vault", func(it *holdfast.Item) { it.State = holdfast.StateCommitPending }, holdfast.Observation{NeedsView: true}, "view_needed", holdfast.HealthWarning},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			it := healthy()
			tt.change(&it)
			state := it.State
			it.Status.Findings = it.Assess(tt.seen, t0)
			var names []string
			for _, f := range it.Status.Findings {
				names = append(names, f.Name)
				if !f.Since.Equal(t0) {
					t.Errorf("%s: since %s, want %s", f.Name, f.Since, t0)
				}
			}
			if diff := cmp.Diff(tt.want, strings.Join(names, " ")); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
			if got := it.Health(); got != tt.health || it.State != state {
				t.Errorf("health %s, want %s; state %s, was %s", got, tt.health, it.State, state)
			}
			// A finding that stays keeps its beginning.
			for _, f := range it.Assess(tt.seen, t0.Add(time.Minute)) {
				if !f.Since.Equal(t0) {
					t.Errorf("%s: since %s after another look, want %s", f.Name, f.Since, t0)
				}
			}
		})
	}
}

func TestItemJSON(t *testing.T) {
	t.Parallel()
	it := itemIn(holdfast.StateCommitPending, holdfast.Forward)
	it.RecoveryPoint, it.Stream, it.Timeline, it.Generation = it.Status.Newest, holdfast.StreamID{1}, 2, 3
	it.Disks, it.Machine = []holdfast.Disk{{ID: "vda", Size: 1 << 30, Boot: true}}, json.RawMessage(`{"cpus":2}`)
	it.Version, it.CreatedAt, it.UpdatedAt = 7, t0, t0
	it.Policy = holdfast.DefaultPolicy()
	data, err := json.Marshal(it)
	if err != nil {
		t.Fatal(err)
	}
	var back holdfast.Item
	if err := json.Unmarshal(data, &back); err != nil {
		t.Fatal(err)
	}
	it.Status = holdfast.Status{} // observed, not kept
	if diff := cmp.Diff(it, back); diff != "" {
		t.Errorf("round trip (-want +got):\n%s", diff)
	}
}
