package libvirt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/holdfast-dr/holdfast/internal/provider"
)

const (
	// agentWait bounds a call of the agent whose context has no deadline.
	agentWait = 30 * time.Second
	// agentPatience is for how long an agent may take for its first answer.
	agentPatience = 5 * time.Second
	// thawPatience is how long a thaw after a freeze that failed is waited for.
	thawPatience = 15 * time.Second
)

// Ping asks the agent for an answer.
func (s *site) Ping(ctx context.Context, machineID string) error {
	d, err := s.running(ctx, machineID)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, agentPatience)
	defer cancel()
	return s.agent(ctx, d, "guest-ping", nil)
}

// Ask gives the agent one command. One that does not answer a ping is asked for
// nothing.
func (s *site) Ask(ctx context.Context, machineID, command string, arguments, result any) error {
	if err := s.Ping(ctx, machineID); err != nil {
		return err
	}
	d, err := s.running(ctx, machineID)
	if err != nil {
		return err
	}
	return s.agentCommand(ctx, d, agentCommand{command, arguments}, result)
}

// agentCommand is a command as the agent reads it.
type agentCommand struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
}

// agent runs a command without arguments.
func (s *site) agent(ctx context.Context, d golibvirt.Domain, command string, result any) error {
	return s.agentCommand(ctx, d, agentCommand{Execute: command}, result)
}

// Freeze has the agent run the guest's hooks and freeze its file systems. An
// agent that does not answer a ping is asked for nothing.
func (s *site) Freeze(ctx context.Context, machineID string) (fileSystems int, err error) {
	if err := s.Ping(ctx, machineID); err != nil {
		return 0, fmt.Errorf("freeze machine %s: %w", machineID, err)
	}
	d, err := s.running(ctx, machineID)
	if err != nil {
		return 0, err
	}
	err = s.agent(ctx, d, "guest-fsfreeze-freeze", &fileSystems)
	if err == nil {
		return fileSystems, nil
	}
	err = fmt.Errorf("freeze machine %s: %w", d.Name, err)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), thawPatience)
	defer cancel()
	thawed, terr := s.thaw(ctx, d)
	if !thawed && !errors.Is(terr, provider.ErrNotRunning) {
		terr = fmt.Errorf("%w: %w", provider.ErrFrozen, terr)
	}
	return 0, errors.Join(err, terr)
}

// Thaw has the agent thaw the file systems and run the hooks.
func (s *site) Thaw(ctx context.Context, machineID string) error {
	d, err := s.running(ctx, machineID)
	if err != nil {
		return err
	}
	_, err = s.thaw(ctx, d)
	return err
}

// thaw asks until the agent says that all is thawed: one that hangs in a hook
// answers when that ends. An error of a hook leaves the guest thawed.
func (s *site) thaw(ctx context.Context, d golibvirt.Domain) (thawed bool, err error) {
	for {
		var state string
		err = s.agent(ctx, d, "guest-fsfreeze-thaw", nil)
		serr := s.agent(ctx, d, "guest-fsfreeze-status", &state)
		if thawed = serr == nil && state == "thawed"; thawed || errors.Is(serr, provider.ErrNotRunning) {
			return thawed, errors.Join(err, serr)
		}
		if serr == nil {
			serr = fmt.Errorf("the file systems are %s", state)
		}
		if !sleep(ctx, time.Second) {
			return false, fmt.Errorf("thaw machine %s: %w", d.Name, errors.Join(err, serr))
		}
	}
}

// running returns a domain that runs.
func (s *site) running(ctx context.Context, machineID string) (golibvirt.Domain, error) {
	if err := ctx.Err(); err != nil {
		return golibvirt.Domain{}, err
	}
	d, err := s.domain(machineID)
	if err != nil {
		return d, err
	}
	p, err := s.power(d)
	if err == nil && p == provider.PowerOff {
		err = fmt.Errorf("machine %s: %w", d.Name, provider.ErrNotRunning)
	}
	return d, err
}

// agentCommand has libvirt give the agent a command, for as long as ctx has. libvirt's
// client takes no context, so its own time-out, in whole seconds, ends the wait,
// or ctx if that is earlier; then the answer is not waited for.
func (s *site) agentCommand(ctx context.Context, d golibvirt.Domain, command agentCommand, result any) error {
	text, err := json.Marshal(command)
	if err != nil {
		return err
	}
	left := agentWait
	if end, ok := ctx.Deadline(); ok {
		left = time.Until(end)
	}
	seconds := max(1, int32(left/time.Second))
	type answer struct {
		text golibvirt.OptString
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		text, err := s.l.QEMUDomainAgentCommand(d, string(text), seconds, 0)
		got <- answer{text, err}
	}()
	select {
	case <-ctx.Done():
		return fmt.Errorf("%s: %w: %w", command.Execute, provider.ErrNoAgent, context.Cause(ctx))
	case a := <-got:
		if a.err != nil {
			return s.explainAgent(d, command.Execute, a.err)
		}
		return decodeAgent(command.Execute, a.text, result)
	}
}

// explainAgent tells a machine that is off, and an agent that does not answer,
// from an agent that refuses.
func (s *site) explainAgent(d golibvirt.Domain, command string, err error) error {
	if p, perr := s.power(d); perr == nil && p == provider.PowerOff {
		return fmt.Errorf("%s: machine %s: %w", command, d.Name, provider.ErrNotRunning)
	}
	if isCode(err, golibvirt.ErrAgentUnresponsive, golibvirt.ErrAgentUnsynced, golibvirt.ErrAgentCommandTimeout, golibvirt.ErrArgumentUnsupported) {
		return fmt.Errorf("%s: machine %s: %w: %w", command, d.Name, provider.ErrNoAgent, err)
	}
	return fmt.Errorf("%s: machine %s: %w", command, d.Name, err)
}

func decodeAgent(command string, text golibvirt.OptString, result any) error {
	if result == nil {
		return nil
	}
	if len(text) == 0 {
		return fmt.Errorf("%s: the guest agent says nothing", command)
	}
	var a struct {
		Return json.RawMessage `json:"return"`
	}
	err := json.Unmarshal([]byte(text[0]), &a)
	if err == nil {
		err = json.Unmarshal(a.Return, result)
	}
	if err != nil {
		return fmt.Errorf("%s: answer of the guest agent: %w", command, err)
	}
	return nil
}
