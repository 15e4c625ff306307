package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/gateway"
	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/provider"
)

// What is asked of a site, a gateway or the vault may never be answered: a host
// is lost, a connection is half open. So nothing is waited for without a bound.
const (
	// stepWait bounds a task that asks sites, gateways or the vault and copies
	// nothing.
	stepWait = 2 * time.Minute
	// gatewayWait bounds what a gateway is told.
	gatewayWait = time.Minute
	// statusWait bounds what is only looked at, so that one part that hangs does
	// not hide how the others fare.
	statusWait = 3 * time.Second
)

// errNoAnswer says that a bound was reached.
var errNoAnswer = errors.New("no answer in time")

// bound gives what a task does stepWait for each attempt.
func bound(run func(context.Context, *job.Step) error) func(context.Context, *job.Step) error {
	return func(ctx context.Context, step *job.Step) error {
		inner, cancel := context.WithTimeoutCause(ctx, stepWait, errNoAnswer)
		defer cancel()
		return late(ctx, inner, stepWait, run(inner, step))
	}
}

// late says of an error under a bounded context, if that is so, that the bound
// was the reason.
func late(ctx, inner context.Context, wait time.Duration, err error) error {
	if err == nil || ctx.Err() != nil || inner.Err() == nil {
		return err
	}
	hint := holdfast.HintOf(err)
	if hint == "" {
		hint = "Look whether the sites, their gateways and the vault answer, then ask again"
	}
	return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "wait for an answer", Cause: fmt.Sprintf("there was none within %s", wait), Hint: hint, Err: err}
}

// boundedGateway bounds every call of a gateway but Point, which waits for the
// vault and is bounded by who waits.
type boundedGateway struct{ Gateway }

var _ Gateway = boundedGateway{}

// Put gives an order.
func (g boundedGateway) Put(ctx context.Context, o gateway.Order) error {
	ctx, cancel := context.WithTimeoutCause(ctx, gatewayWait, errNoAnswer)
	defer cancel()
	return g.Gateway.Put(ctx, o)
}

// Withdraw takes an order back.
func (g boundedGateway) Withdraw(ctx context.Context, item string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, gatewayWait, errNoAnswer)
	defer cancel()
	return g.Gateway.Withdraw(ctx, item)
}

// Status returns how replication fares.
func (g boundedGateway) Status(ctx context.Context, item string) (gateway.Status, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, statusWait, errNoAnswer)
	defer cancel()
	return g.Gateway.Status(ctx, item)
}

// Machine returns the machine as the gateway saw it last.
func (g boundedGateway) Machine(ctx context.Context, item string) (provider.Machine, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, statusWait, errNoAnswer)
	defer cancel()
	return g.Gateway.Machine(ctx, item)
}

// Mark makes a recovery point.
func (g boundedGateway) Mark(ctx context.Context, item, name string, c holdfast.Consistency) (gateway.PointReply, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, gatewayWait, errNoAnswer)
	defer cancel()
	return g.Gateway.Mark(ctx, item, name, c)
}

// gatewayAt returns the gateway at an address.
func (c *Orchestrator) gatewayAt(address string) (Gateway, error) {
	g, err := c.opts.Gateway(address)
	if err != nil {
		return nil, err
	}
	return boundedGateway{g}, nil
}
