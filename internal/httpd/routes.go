package httpd

import (
	"net/http"

	"github.com/holdfast-dr/holdfast/internal/auth"
)

// anyone is the permission of a route that needs no token.
const anyone auth.Role = ""

// route is one line of the table of routes: where it is, and who may use it.
type route struct {
	id      string // of the operation in the OpenAPI document
	method  string
	path    string
	role    auth.Role // the least that is needed, or anyone
	status  int       // of success
	summary string
}

// routes is the whole interface with the permission of each route. What is not
// here is not served: New refuses a handler without a line and a line without a
// handler.
func routes() []route {
	const (
		get, post, del  = http.MethodGet, http.MethodPost, http.MethodDelete
		ok, made, taken = http.StatusOK, http.StatusCreated, http.StatusAccepted
	)
	return []route{
		{"get-health", get, "/v1/health", anyone, ok, "How the server fares; without a token, only whether it does"},
		{"get-docs", get, "/v1/docs", anyone, ok, "This interface, for people"},
		{"get-version", get, "/v1/version", auth.RoleViewer, ok, "What the server is"},
		{"get-openapi", get, "/v1/openapi.json", auth.RoleViewer, ok, "This interface, for programs"},
		{"watch-events", get, "/v1/events", auth.RoleViewer, ok, "What happens, as server-sent events"},

		{"list-sites", get, "/v1/sites", auth.RoleViewer, ok, "All sites"},
		{"get-site", get, "/v1/sites/{site}", auth.RoleViewer, ok, "One site"},
		{"add-site", post, "/v1/sites", auth.RoleAdmin, made, "Add a site"},
		{"remove-site", del, "/v1/sites/{site}", auth.RoleAdmin, http.StatusNoContent, "Remove a site that no item needs"},
		{"list-machines", get, "/v1/machines", auth.RoleViewer, ok, "The machines of a site, or of all"},

		{"list-items", get, "/v1/items", auth.RoleViewer, ok, "All replicated items"},
		{"get-item", get, "/v1/items/{item}", auth.RoleViewer, ok, "One replicated item"},
		{"protect-machine", post, "/v1/items", auth.RoleOperator, taken, "Protect a machine: start replicating it"},
		{"list-points", get, "/v1/items/{item}/points", auth.RoleViewer, ok, "What an item can be recovered to"},
		{"list-timelines", get, "/v1/items/{item}/timelines", auth.RoleViewer, ok, "The timelines of an item's history, with those that were given up"},
		{"failover-item", post, "/v1/items/{item}/failover", auth.RoleOperator, taken, "Bring an item up at the other site"},
		{"disable-item", post, "/v1/items/{item}/disable", auth.RoleOperator, taken, "End the protection of an item"},
		{"test-failover", post, "/v1/items/{item}/test-failover", auth.RoleOperator, taken, "Run a copy of an item's machine, apart from the world"},
		{"clean-up-test", post, "/v1/items/{item}/clean-up", auth.RoleOperator, taken, "Remove a test machine"},
		{"failback-item", post, "/v1/items/{item}/failback", auth.RoleOperator, taken, "Bring an item's machine home"},
		{"change-point", post, "/v1/items/{item}/change-point", auth.RoleOperator, taken, "Rebuild a recovered machine from another recovery point"},
		{"commit-item", post, "/v1/items/{item}/commit", auth.RoleOperator, taken, "Make a failover final"},
		{"undo-failover", post, "/v1/items/{item}/undo-failover", auth.RoleOperator, taken, "Give a failover up"},
		{"reprotect-item", post, "/v1/items/{item}/reprotect", auth.RoleOperator, taken, "Replicate an item the other way round"},
		{"resync-item", post, "/v1/items/{item}/resync", auth.RoleOperator, taken, "Compare source and vault, and send what differs"},
		{"pause-item", post, "/v1/items/{item}/pause", auth.RoleOperator, taken, "Leave a machine alone for a time"},
		{"resume-item", post, "/v1/items/{item}/resume", auth.RoleOperator, taken, "End a pause"},
		{"compare-item", post, "/v1/items/{item}/compare", auth.RoleOperator, taken, "Compare a running machine's disks with the vault"},
		{"pin-point", post, "/v1/items/{item}/pin", auth.RoleOperator, ok, "Keep a recovery point, or no longer"},
		{"change-policy", post, "/v1/items/{item}/policy", auth.RoleOperator, ok, "Give an item another policy"},
		{"hold-item", post, "/v1/items/{item}/hold", auth.RoleAdmin, ok, "Hold the history of an item, or release it"},
		{"make-point", post, "/v1/items/{item}/points", auth.RoleOperator, taken, "Make a recovery point of the present moment"},
		{"cancel-item", post, "/v1/items/{item}/cancel", auth.RoleOperator, taken, "Cancel the job that works on an item"},
		{"check-operation", post, "/v1/items/{item}/check", auth.RoleViewer, ok, "What an operation would do; nothing is done"},

		{"list-groups", get, "/v1/groups", auth.RoleViewer, ok, "All replication groups"},
		{"get-group", get, "/v1/groups/{group}", auth.RoleViewer, ok, "One replication group with its points"},
		{"change-group", post, "/v1/groups/{group}", auth.RoleOperator, ok, "Have items join or leave a replication group"},
		{"make-group-point", post, "/v1/groups/{group}/points", auth.RoleOperator, taken, "Make a recovery point of all items of a group, which is one moment for all"},

		{"list-jobs", get, "/v1/jobs", auth.RoleViewer, ok, "Jobs, newest first"},
		{"get-job", get, "/v1/jobs/{job}", auth.RoleViewer, ok, "One job"},
		{"watch-job", get, "/v1/jobs/{job}/events", auth.RoleViewer, ok, "One job as it goes on, as server-sent events; the stream ends with the job"},
		{"get-screenshot", get, "/v1/jobs/{job}/screenshot", auth.RoleViewer, ok, "The picture of a console that was kept with a job"},
		{"cancel-job", post, "/v1/jobs/{job}/cancel", auth.RoleOperator, taken, "Ask a job to stop"},

		{"answer-job", post, "/v1/jobs/{job}/answer", auth.RoleOperator, taken, "Answer what a suspended job asks"},

		{"list-plans", get, "/v1/plans", auth.RoleViewer, ok, "All recovery plans, and the items in none"},
		{"get-plan", get, "/v1/plans/{plan}", auth.RoleViewer, ok, "One recovery plan with its text"},
		{"list-plan-texts", get, "/v1/plans/{plan}/texts", auth.RoleViewer, ok, "The revisions of a plan's text"},
		{"apply-plan", post, "/v1/plans", auth.RoleAdmin, ok, "Give a recovery plan its text: what it says is done with the server's rights"},
		{"diff-plan", post, "/v1/plan-diff", auth.RoleViewer, ok, "How a text differs from the plan that it names; nothing is done"},
		{"remove-plan", del, "/v1/plans/{plan}", auth.RoleAdmin, http.StatusNoContent, "Remove a recovery plan"},
		{"run-plan", post, "/v1/plans/{plan}/run", auth.RoleOperator, taken, "Run a recovery plan"},
		{"check-plan", post, "/v1/plans/{plan}/check", auth.RoleViewer, ok, "What a run would do; nothing is done"},
		{"drill-plan", post, "/v1/plans/{plan}/drill", auth.RoleOperator, taken, "Test a recovery plan and clean up, with nobody there"},
		{"get-report", get, "/v1/plan-runs/{job}/report", auth.RoleViewer, ok, "The signed report of a run that has ended"},
		{"get-report-key", get, "/v1/report-key", auth.RoleViewer, ok, "The public key that reports are signed with"},
		{"get-plan-run", get, "/v1/plan-runs/{job}", auth.RoleViewer, ok, "A run of a plan in full"},

		{"get-vault", get, "/v1/vault", auth.RoleViewer, ok, "The state of the vault"},
		{"verify-vault", post, "/v1/vault/verify", auth.RoleOperator, taken, "Read the vault as a whole and check it"},

		{"list-tokens", get, "/v1/tokens", auth.RoleAdmin, ok, "All tokens, without their secrets"},
		{"create-token", post, "/v1/tokens", auth.RoleAdmin, made, "Make a token"},
		{"revoke-token", del, "/v1/tokens/{token}", auth.RoleAdmin, http.StatusNoContent, "Make a token invalid"},
	}
}
