package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// ErrUnknownOrder says that the gateway has no order for an item.
var ErrUnknownOrder = errors.New("the gateway has no order for this item")

// SupervisorOptions say how a gateway works.
type SupervisorOptions struct {
	Dir string // state: orders, journals, spools, sockets; made if missing
	// Bound is for how long a write of a guest may wait for the ingest before
	// the ingest is killed. Default 2 s.
	Bound time.Duration
	// Command returns the command that runs Ingest with its control socket.
	Command func(dir, control string) *exec.Cmd
	Sites   Opener
	Logger  *slog.Logger
	// Getenv returns a variable of the environment, for the secrets of scripts; nil:
	// there are none.
	Getenv func(string) string
}

// Supervisor is the parent process of a gateway: orders, capture, and the watch
// over the ingest process. It carries on by itself while the server is away.
type Supervisor struct {
	opts  SupervisorOptions
	log   *slog.Logger
	child *child
	slots chan struct{} // of comparisons

	// mu guards jobs.
	mu   sync.Mutex
	jobs map[string]*replication
	// begin starts the carrying out of an order; set by Run.
	begin func(*replication)
}

// NewSupervisor reads the orders kept in the directory. It starts nothing.
func NewSupervisor(o SupervisorOptions) (*Supervisor, error) {
	if o.Bound <= 0 {
		o.Bound = 2 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	for _, d := range []string{o.Dir, filepath.Join(o.Dir, "orders")} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return nil, fmt.Errorf("gateway state directory: %w", err)
		}
	}
	s := &Supervisor{opts: o, log: o.Logger, jobs: map[string]*replication{}, slots: make(chan struct{}, scrubsAtOnce)}
	s.child = &child{
		command: func(control string) *exec.Cmd { return o.Command(o.Dir, control) },
		socket:  childSocket(o.Dir), bound: o.Bound, log: o.Logger, started: s.reopen,
	}
	return s, s.load()
}

func (s *Supervisor) load() error {
	names, err := filepath.Glob(filepath.Join(s.opts.Dir, "orders", "*.json"))
	if err != nil {
		return err
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			return fmt.Errorf("read order: %w", err)
		}
		var o Order
		if err = json.Unmarshal(b, &o); err == nil {
			err = o.Validate()
		}
		if err == nil && s.orderFile(o.Item) != name {
			err = fmt.Errorf("it is of item %q", o.Item)
		}
		if err != nil {
			// The server gives it again: it sees that there is none.
			s.log.Error("order is damaged and set aside", "order", name, "error", err)
			if err := os.Rename(name, name+".damaged"); err != nil {
				return fmt.Errorf("set damaged order aside: %w", err)
			}
			continue
		}
		s.jobs[o.Item] = newReplication(s, o)
	}
	return nil
}

// Run keeps the ingest process alive, carries out the orders, and serves the
// control socket, until ctx ends. Mirrors in guests are left as they are: a
// gateway that starts again takes them up.
func (s *Supervisor) Run(ctx context.Context, control net.Listener) error {
	lock, err := vfs.OS.Lock(filepath.Join(s.opts.Dir, "lock"))
	if err != nil {
		return fmt.Errorf("gateway directory %s is in use by another gateway: %w", s.opts.Dir, err)
	}
	defer lock.Close()
	g, ctx := errgroup.WithContext(ctx)
	s.mu.Lock()
	s.begin = func(r *replication) {
		runCtx, cancel := context.WithCancel(ctx)
		r.cancel = cancel
		g.Go(func() error {
			defer close(r.done)
			defer cancel()
			return r.run(runCtx)
		})
	}
	for _, r := range s.jobs {
		s.begin(r)
	}
	s.mu.Unlock()
	g.Go(func() error { return s.child.run(ctx) })
	srv := &http.Server{Handler: s.Handler(), ReadHeaderTimeout: 5 * time.Second}
	g.Go(func() error {
		if err := srv.Serve(control); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve gateway control: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		return srv.Close()
	})
	return g.Wait()
}

// reopen is told that a child has started: its streams must be opened anew.
func (s *Supervisor) reopen() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.jobs {
		wake(r.openAgain)
	}
}

// Put takes an order, durable when it returns, and carries it out. An order for
// an item that has one replaces it.
func (s *Supervisor) Put(ctx context.Context, o Order) error {
	if err := o.Validate(); err != nil {
		return err
	}
	if !itemName.MatchString(o.Item) {
		return fmt.Errorf("item %q: want lower-case letters, digits and hyphens", o.Item)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.begin == nil {
		return errors.New("the gateway is not running yet; try again")
	}
	old := s.jobs[o.Item]
	if old != nil && old.same(o) {
		return nil
	}
	b, err := json.MarshalIndent(o, "", "  ")
	if err != nil {
		return err
	}
	if err := vfs.WriteFileAtomic(vfs.OS, s.orderFile(o.Item), b); err != nil {
		return fmt.Errorf("keep order: %w", err)
	}
	if old != nil {
		old.cancel()
		<-old.done
		if err := old.closeStream(context.WithoutCancel(ctx)); err != nil {
			s.log.Warn("stream is not closed", "item", o.Item, "error", err)
		}
	}
	r := newReplication(s, o)
	s.jobs[o.Item] = r
	s.begin(r)
	return nil
}

var itemName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

func (s *Supervisor) orderFile(item string) string {
	return filepath.Join(s.opts.Dir, "orders", item+".json")
}

// Withdraw ends the replication of an item and leaves its machine as it was
// found, as far as that is there.
func (s *Supervisor) Withdraw(ctx context.Context, item string) error {
	s.mu.Lock()
	r := s.jobs[item]
	delete(s.jobs, item)
	s.mu.Unlock()
	if r == nil {
		return fmt.Errorf("item %q: %w", item, ErrUnknownOrder)
	}
	r.cancel()
	<-r.done
	if err := r.end(ctx); err != nil {
		s.log.Warn("machine is not left as it was found", "item", item, "error", err)
	}
	for _, name := range []string{s.orderFile(item), s.scrubFile(r.order)} {
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("withdraw order: %w", err)
		}
	}
	return nil
}

// Statuses returns how every order fares, sorted by item.
func (s *Supervisor) Statuses(ctx context.Context) []Status {
	s.mu.Lock()
	jobs := make([]*replication, 0, len(s.jobs))
	for _, r := range s.jobs {
		jobs = append(jobs, r)
	}
	s.mu.Unlock()
	sort.Slice(jobs, func(i, k int) bool { return jobs[i].order.Item < jobs[k].order.Item })
	out := make([]Status, len(jobs))
	for i, r := range jobs {
		out[i] = r.status(ctx)
	}
	return out
}

func (s *Supervisor) lookup(item string) (*replication, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.jobs[item]
	if !ok {
		return nil, fmt.Errorf("item %q: %w", item, ErrUnknownOrder)
	}
	return r, nil
}

// Handler serves the gateway's control socket. The server uses it.
func (s *Supervisor) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/orders", func(w http.ResponseWriter, r *http.Request) {
		reply(w, s.Statuses(r.Context()), nil)
	})
	mux.HandleFunc("PUT /v1/orders", func(w http.ResponseWriter, r *http.Request) {
		var o Order
		if decode(w, r, &o) {
			reply(w, struct{}{}, s.Put(r.Context(), o))
		}
	})
	mux.HandleFunc("GET /v1/orders/{item}", func(w http.ResponseWriter, r *http.Request) {
		job, err := s.lookup(r.PathValue("item"))
		if err != nil {
			reply(w, nil, err)
			return
		}
		reply(w, job.status(r.Context()), nil)
	})
	mux.HandleFunc("GET /v1/orders/{item}/machine", func(w http.ResponseWriter, r *http.Request) {
		job, err := s.lookup(r.PathValue("item"))
		if err != nil {
			reply(w, nil, err)
			return
		}
		m, err := job.seen()
		reply(w, m, err)
	})
	mux.HandleFunc("DELETE /v1/orders/{item}", func(w http.ResponseWriter, r *http.Request) {
		reply(w, struct{}{}, s.Withdraw(r.Context(), r.PathValue("item")))
	})
	mux.HandleFunc("POST /v1/orders/{item}/point", func(w http.ResponseWriter, r *http.Request) {
		var req pointRequest
		if !decode(w, r, &req) {
			return
		}
		job, err := s.lookup(r.PathValue("item"))
		if err != nil {
			reply(w, nil, err)
			return
		}
		out, err := job.ingest.point(r.Context(), req)
		reply(w, out, err)
	})
	s.handleGroup(mux)
	s.handleScrub(mux)
	s.handleHolds(mux)
	s.handleScripts(mux)
	return mux
}

// Client speaks with a gateway over its control socket. Safe for concurrent use.
type Client struct{ control *control }

// NewClient returns a client of the gateway at an address: unix:PATH.
func NewClient(address string) (*Client, error) {
	path, ok := strings.CutPrefix(address, "unix:")
	if !ok || path == "" {
		return nil, fmt.Errorf("gateway address %q: want unix:PATH", address)
	}
	return &Client{control: newControl(path)}, nil
}

// Put gives the gateway an order; it is kept when Put returns.
func (c *Client) Put(ctx context.Context, o Order) error {
	return c.control.call(ctx, "PUT", "/v1/orders", o, nil)
}

// Withdraw takes an order back; ErrUnknownOrder if there is none.
func (c *Client) Withdraw(ctx context.Context, item string) error {
	return c.control.call(ctx, "DELETE", "/v1/orders/"+item, nil, nil)
}

// Status returns how an item's replication fares; ErrUnknownOrder if there is
// no order for it.
func (c *Client) Status(ctx context.Context, item string) (Status, error) {
	var st Status
	err := c.control.call(ctx, "GET", "/v1/orders/"+item, nil, &st)
	return st, err
}

// Machine returns an item's machine as it was when its gateway looked last, which
// is every few seconds; ErrUnknownOrder if there is no order for the item.
func (c *Client) Machine(ctx context.Context, item string) (provider.Machine, error) {
	var m provider.Machine
	err := c.control.call(ctx, "GET", "/v1/orders/"+item+"/machine", nil, &m)
	return m, err
}

// Statuses returns how every order fares.
func (c *Client) Statuses(ctx context.Context) ([]Status, error) {
	var out []Status
	err := c.control.call(ctx, "GET", "/v1/orders", nil, &out)
	return out, err
}

// Mark makes everything received so far a recovery point of a consistency that
// the caller has brought about, and returns when it has its place in the stream:
// what arrives from then on is not in it. It is no point if the reply says that
// the stream is not consistent.
func (c *Client) Mark(ctx context.Context, item, name string, consistency holdfast.Consistency) (PointReply, error) {
	var out PointReply
	req := pointRequest{Name: name, Consistency: vault.Consistency(consistency), NoWait: true}
	err := c.control.call(ctx, "POST", "/v1/orders/"+item+"/point", req, &out)
	return out, err
}

// Point makes everything received so far a recovery point, and returns when the
// vault has it.
func (c *Client) Point(ctx context.Context, item, name string) (PointReply, error) {
	var out PointReply
	err := c.control.call(ctx, "POST", "/v1/orders/"+item+"/point", pointRequest{Name: name}, &out)
	return out, err
}
