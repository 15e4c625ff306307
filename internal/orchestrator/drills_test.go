package orchestrator_test

import (
	"crypto/ed25519"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/report"
)

// TestDrill has a plan drill itself, and reads the evidence of it.
func TestDrill(t *testing.T) {
	t.Parallel()
	r := planRig(t)
	r.apply(shopPlan + "objectives: {rpo: 1h, rto: 10m}\ndrill: {every: 30d, keep: 50ms}\n")
	j := r.done(r.plans.DrillPlan(t.Context(), "shop", "tester"))
	if n := len(r.recovery.Handles()); n != 0 {
		t.Errorf("%d test machines are left", n)
	}
	r.saw("before-data", "after-data", "after-front", "before-data", "cleaned")
	p, err := r.plans.GetPlan(t.Context(), "shop")
	if err != nil || p.Drill == nil || len(p.Runs) != 2 || len(p.Findings) != 0 || p.Drill.NextAt.Sub(time.Now()) < 29*24*time.Hour {
		t.Fatalf("plan is %+v, %v, after job %s", p, err, j.ID)
	}
	envelope, err := r.plans.Report(t.Context(), runOf(p, "test").Job)
	if err != nil {
		t.Fatal(err)
	}
	key, err := r.plans.ReportKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	public, err := report.ParsePublic(key)
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := report.Open(t.Context(), envelope, public)
	if err != nil || !got.Run.Drill || got.CleanUp == nil || got.CleanUp.Outcome != "succeeded" || len(got.Evidence) != 3 || got.Objectives.Met == nil || !*got.Objectives.Met || got.Objectives.RTO == nil {
		t.Errorf("report is %+v, %v", got, err)
	}
}

func runOf(p api.Plan, kind string) api.PlanRunSummary {
	for _, r := range p.Runs {
		if r.Kind == kind {
			return r
		}
	}
	return api.PlanRunSummary{}
}

// TestDrillFails cleans up whatever became of the test, and says that it failed.
func TestDrillFails(t *testing.T) {
	t.Parallel()
	failing := strings.Replace(shopPlan, "path: note, args: [after-data]", "path: missing", 1) + "drill: {every: 30d}\n"
	manual := strings.Replace(shopPlan, "        script: {path: note, args: [after-data]}", "        manual: {instructions: look}", 1) + "drill: {every: 30d, keep: 1h}\n"
	t.Run("an action", func(t *testing.T) {
		r := planRig(t)
		r.apply(failing)
		if j := r.ended(r.plans.DrillPlan(t.Context(), "shop", "tester")); j.State != "failed" || !strings.Contains(j.Error.Message, "partial") {
			t.Errorf("job is %+v", j)
		}
		p, err := r.plans.GetPlan(t.Context(), "shop")
		if err != nil || len(p.Findings) != 1 || p.Findings[0].Code != "HF1702" || len(r.recovery.Handles()) != 0 {
			t.Errorf("plan is %+v, %v", p, err)
		}
	})
	t.Run("cancelled, with a manual step, and killed", func(t *testing.T) {
		r := planRig(t)
		r.apply(manual)
		j, err := r.plans.DrillPlan(t.Context(), "shop", "tester")
		if err != nil {
			t.Fatal(err)
		}
		r.eventually("the machines are up", func() bool {
			j, err = r.GetJob(t.Context(), j.ID)
			return err == nil && j.Tasks[1].State == "in_progress"
		})
		r.kill()
		r.start(nil)
		r.eventually("it goes on waiting", func() bool {
			j, err = r.GetJob(t.Context(), j.ID)
			return err == nil && j.Tasks[1].State == "in_progress" && len(r.recovery.Handles()) == 3
		})
		if _, err := r.CancelJob(t.Context(), j.ID); err != nil {
			t.Fatal(err)
		}
		if j := r.ended(j, nil); j.State != "cancelled" || len(r.recovery.Handles()) != 0 {
			t.Errorf("job is %s, %d test machines are left", j.State, len(r.recovery.Handles()))
		}
	})
}

// testKey signs the reports of rigs.
var testKey = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
