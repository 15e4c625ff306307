package gateway

import (
	"context"
	"net/http"
	"path/filepath"

	"github.com/holdfast-dr/holdfast/internal/script"
)

// ScriptReply is what a script said, and why it failed; empty: it ended with 0.
type ScriptReply struct {
	Output string `json:"output"`
	Failed string `json:"failed,omitempty"`
}

// RunScript runs a program of the gateway's directory of scripts, on its host. If
// ctx ends, or the connection, it is killed with all that it has started. The error
// is that of the way there; why the script failed is in the reply.
func (c *Client) RunScript(ctx context.Context, call script.Call) (ScriptReply, error) {
	var out ScriptReply
	err := c.control.call(ctx, "POST", "/v1/scripts/run", call, &out)
	return out, err
}

// CheckScript says whether a script could be run there.
func (c *Client) CheckScript(ctx context.Context, call script.Call) error {
	return c.control.call(ctx, "POST", "/v1/scripts/check", call, nil)
}

// scripts is where a gateway's scripts and their secrets are.
func (s *Supervisor) scripts() script.Host {
	return script.Host{Scripts: filepath.Join(s.opts.Dir, "scripts"), Secrets: filepath.Join(s.opts.Dir, "secrets"), Getenv: s.opts.Getenv}
}

func (s *Supervisor) handleScripts(mux *http.ServeMux) {
	mux.HandleFunc("POST /v1/scripts/run", func(w http.ResponseWriter, r *http.Request) {
		var call script.Call
		if !decode(w, r, &call) {
			return
		}
		var out ScriptReply
		var err error
		if out.Output, err = s.scripts().Run(r.Context(), call); err != nil {
			out.Failed = err.Error()
		}
		reply(w, out, nil)
	})
	mux.HandleFunc("POST /v1/scripts/check", func(w http.ResponseWriter, r *http.Request) {
		var call script.Call
		if decode(w, r, &call) {
			reply(w, struct{}{}, s.scripts().Check(call))
		}
	})
}
