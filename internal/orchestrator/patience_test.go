package orchestrator_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/api"
)

// TestPlanPatience brings a machine home that looks as if it were in trouble for a
// moment after it was shut down.
func TestPlanPatience(t *testing.T) {
	t.Parallel()
	r := planRig(t)
	set := func(err error) {
		r.gw.mu.Lock()
		defer r.gw.mu.Unlock()
		r.gw.down = err
	}
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		set(errors.New("the monitor is not reached"))
		time.AfterFunc(time.Second, func() { set(nil) })
	}))
	defer srv.Close()
	r.apply("name: shop\ngroups:\n  - name: a\n    machines: [shop, web, mail]\n    before:\n      - {name: trouble, runs: [planned], directions: [recovery_to_primary], webhook: {url: " + srv.URL + "}}\n")
	for _, kind := range []string{"unplanned", "commit", "reprotect", "planned"} {
		r.succeeds(api.RunPlan{Kind: kind})
	}
	r.worksAt("primary")
}
