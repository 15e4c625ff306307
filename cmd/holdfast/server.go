package main

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/internal/auth"
	"github.com/holdfast-dr/holdfast/internal/bandwidth"
	"github.com/holdfast-dr/holdfast/internal/gateway"
	"github.com/holdfast-dr/holdfast/internal/httpd"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/orchestrator"
	"github.com/holdfast-dr/holdfast/internal/planner"
	"github.com/holdfast-dr/holdfast/internal/recovery"
	"github.com/holdfast-dr/holdfast/internal/report"
	"github.com/holdfast-dr/holdfast/internal/script"
	"github.com/holdfast-dr/holdfast/internal/store"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// serverOptions are the flags of `holdfast server`.
type serverOptions struct {
	state, keyFile, listen, logLevel string
	vault, copy                      location
	copyEvery                        time.Duration
	scrub                            orchestrator.Scrub
	gatewayCredentials               string
	hosts                            []string
	noGateway                        bool
	bound                            time.Duration
	tuning                           gateway.Tuning
	bandwidth                        []string
}

// serverCommand is `holdfast server`.
func serverCommand() *cobra.Command {
	var o serverOptions
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run the server: API, jobs, vault, and a gateway for this host",
		Long: `Run the server. It belongs at the recovery site: it must survive the loss of the
primary one. The first start makes the state directory, a vault with a key of
its own, a certificate authority, and an admin token that is printed once.

It also prints the words of a recovery key. Write them down: with vault.key of the
state directory they are all that opens the vault. holdfast vault recovery-key
makes new ones.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, dir := objstore.Location(o.vault.at).Directory(); !dir && o.vault.at != "" && !cmd.Flags().Changed("verify-every") {
				o.scrub.Every = 0 // reading all of it may cost money
			}
			if _, err := bandwidth.Parse(o.bandwidth); err != nil {
				return startError("start server", "", err, bandwidthHint)
			}
			o.scrub.Rate <<= 20
			return runServer(cmd.Context(), o, cmd.OutOrStdout(), newLogger(cmd.ErrOrStderr(), o.logLevel))
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.state, "state", "/var/lib/holdfast", "state directory")
	f.StringVar(&o.vault.at, "vault", "", "the vault: a directory (default: vault in the state directory), s3://BUCKET/PREFIX?endpoint=URL&region=REGION or azure://ACCOUNT/CONTAINER/PREFIX")
	f.StringVar(&o.vault.credentials, "vault-credentials", "", "file with the object store's credentials, as lines NAME=VALUE (default: the environment's "+strings.Join(objstore.CredentialNames(), ", ")+")")
	f.StringVar(&o.gatewayCredentials, "gateway-credentials", "", "the same for gateways, which need not be able to delete anything (default: the server's)")
	f.StringVar(&o.copy.at, "vault-copy", "", "where to keep a copy of the vault, besides: a directory, s3://… or azure://… (default: nowhere)")
	f.StringVar(&o.copy.credentials, "vault-copy-credentials", "", "file with the credentials of that store (default: the environment)")
	f.DurationVar(&o.copyEvery, "vault-copy-every", time.Minute, "how often what is new goes to the copy")
	f.DurationVar(&o.scrub.Every, "verify-every", 7*24*time.Hour, "how often to read all of the vault and check it; 0: never (default for S3 and Azure: never, because that may cost money)")
	f.Int64Var(&o.scrub.Rate, "verify-rate", 50, "MiB per second that are read for that at most; 0: no limit")
	f.DurationVar(&o.scrub.Sources, "compare-every", 7*24*time.Hour, "the time in which all disks of each running machine are compared with the vault once; 0: only with holdfast item compare")
	f.StringVar(&o.keyFile, "vault-key", "", "file with the vault's key (default: vault.key in the state directory)")
	f.StringVar(&o.listen, "listen", "127.0.0.1:8443", "address of the API")
	f.StringSliceVar(&o.hosts, "host", nil, "names and addresses by which clients reach the server, for its certificate")
	f.BoolVar(&o.noGateway, "no-gateway", false, "do not start a gateway on this host")
	f.DurationVar(&o.bound, "bound", 2*time.Second, "for how long a guest's write may wait for the gateway on this host")
	f.StringArrayVar(&o.bandwidth, "bandwidth", nil, "of the gateway on this host: "+bandwidthHelp)
	f.DurationVar(&o.tuning.SealInterval, "seal-interval", 500*time.Millisecond, "how often what was written goes to the vault")
	f.Int64Var(&o.tuning.SpoolLimit, "spool-limit", 1<<30, "bytes that a gateway keeps when the vault is slower than the guests")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	return cmd
}

func (o *serverOptions) applyDefaults() error {
	var err error
	if o.state, err = filepath.Abs(o.state); err != nil {
		return err
	}
	if o.vault.at == "" {
		o.vault.at = filepath.Join(o.state, "vault")
	}
	if o.keyFile == "" {
		o.keyFile = filepath.Join(o.state, "vault.key")
	}
	if o.copy.at != "" {
		if err := o.copy.absolute(); err != nil {
			return err
		}
	}
	return o.vault.absolute()
}

// runServer runs every part until ctx ends.
func runServer(ctx context.Context, o serverOptions, out io.Writer, log *slog.Logger) error {
	if err := o.applyDefaults(); err != nil {
		return err
	}
	if err := os.MkdirAll(o.state, 0o711); err != nil {
		return startError("make state directory", o.state, err, "Name a directory that can be written with --state")
	}
	db, err := store.Open(ctx, filepath.Join(o.state, "holdfast.db"))
	if err != nil {
		return err
	}
	defer db.Close()
	v, key, err := openVault(ctx, o, db, out, log)
	if err != nil {
		return err
	}
	host, _ := os.Hostname() // only for people to read
	owner, err := serverID(ctx, db)
	if err != nil {
		return err
	}
	ctx, lease, err := v.AcquireLease(ctx, vault.LeaseOptions{Owner: owner, Host: host, Logger: log})
	if err != nil {
		return startError("take vault", o.vault.name(), err, "Stop the other server, or give this one a vault of its own with --vault")
	}
	defer lease.Release()
	p, err := newParts(ctx, o, parts{db: db, vault: v, lease: lease, key: key, out: out, log: log})
	if err != nil {
		return err
	}
	return p.run(ctx)
}

// parts are what a server consists of.
type parts struct {
	db     *store.Store
	vault  *vault.Vault
	lease  *vault.Lease
	key    vault.Key
	out    io.Writer
	log    *slog.Logger
	opts   serverOptions
	views  *recovery.Exports
	copy   *vaultCopy // nil: none is kept
	orch   *orchestrator.Orchestrator
	plans  *planner.Planner
	http   *httpd.Server
	tokens *auth.Tokens
	tls    *auth.Authority
}

func newParts(ctx context.Context, o serverOptions, p parts) (*parts, error) {
	p.opts = o
	socket := filepath.Join(o.state, "run", "views.sock")
	if len(socket) > maxSocketPath {
		return nil, fmt.Errorf("state directory %s is too long a path for a socket below it: choose a shorter one", o.state)
	}
	p.views = recovery.NewExports(recovery.Options{Socket: socket, Logger: p.log})
	events := httpd.NewEventLog(10_000, time.Now())
	own := "unix:" + gatewaySocket(o.gatewayDir())
	ref, err := o.vaultRef(p.key)
	if err != nil {
		return nil, err
	}
	var kept orchestrator.VaultCopy
	if p.copy, err = newVaultCopy(ctx, o, &p); err != nil {
		return nil, err
	}
	if p.copy != nil {
		kept = p.copy
	}
	p.orch, err = orchestrator.New(orchestrator.Options{
		Store: p.db, Jobs: p.db, Vault: p.vault, VaultRef: ref,
		Views: p.views, Pictures: pictures(filepath.Join(o.state, "pictures")), Scripts: filepath.Join(o.state, "scripts"), Confirm: p.lease.Confirm, OpenSite: openSite, VaultLocation: o.vault.name(), Tuning: o.tuning, Publish: events.Publish, Logger: p.log,
		VaultFree: o.vault.free(), VaultCopy: kept, Scrub: o.scrub,
		Gateway: func(address string) (orchestrator.Gateway, error) {
			if address == "" {
				address = own
			}
			return gateway.NewClient(address)
		},
	})
	if err != nil {
		return nil, err
	}
	key, err := report.LoadKey(filepath.Join(o.state, "report.key"))
	if err != nil {
		return nil, err
	}
	p.plans, err = planner.New(planner.Options{
		Evidence: evidence(key, pictures(filepath.Join(o.state, "pictures"))),
		Store:    p.db, Engine: p.orch.Engine(), Items: p.orch, Operations: p.orch, Tests: p.orch, Switches: p.orch, Groups: p.orch, Guests: p.orch,
		Host: script.Host{Scripts: filepath.Join(o.state, "scripts"), Secrets: filepath.Join(o.state, "secrets"), Getenv: os.Getenv}, Remote: p.orch, Publish: events.Publish, Logger: p.log,
	})
	if err != nil {
		return nil, err
	}
	hostname, _, err := net.SplitHostPort(o.listen)
	if err != nil {
		return nil, fmt.Errorf("listen address %q: %w", o.listen, err)
	}
	p.tls, err = auth.OpenAuthority(auth.AuthorityOptions{Dir: filepath.Join(o.state, "tls"), Hosts: append(o.hosts, hostname), Logger: p.log})
	if err != nil {
		return nil, err
	}
	p.tokens = auth.NewTokens(p.db)
	p.http, err = httpd.New(httpd.Options{
		Addr: o.listen, TLS: p.tls.ServerTLS(), Tokens: p.tokens, Logger: p.log, Version: version(),
		Service: httpd.Service{Sites: p.orch, Machines: p.orch, Items: p.orch, Points: p.orch, Policies: p.orch, Jobs: p.orch, Vault: p.orch, Events: events, Health: p.orch,
			Tests: p.orch, Failovers: p.orch, Replications: p.orch, Comparisons: p.orch, Plans: p.plans, Runs: p.plans, Groups: p.orch, Reports: p.plans},
	})
	return &p, err
}

// evidence is what reports of runs have besides the runs.
func evidence(key ed25519.PrivateKey, kept pictures) planner.Evidence {
	host, _ := os.Hostname() // only for people to read
	public, _ := key.Public().(ed25519.PublicKey)
	return planner.Evidence{
		Sign: func(ctx context.Context, r report.Report) ([]byte, error) { return report.Sign(ctx, r, key) }, Picture: kept.Picture, PublicKey: report.EncodePublic(public),
		Server: host, Versions: map[string]string{"holdfast": version().Version, "go": runtime.Version()},
	}
}

func (o serverOptions) gatewayDir() string { return filepath.Join(o.state, "gateway") }

// run runs the parts, and says where and how the server is reached.
func (p *parts) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.views.Run(ctx) })
	g.Go(func() error { return p.orch.Run(ctx) })
	g.Go(func() error { return p.plans.Run(ctx) })
	if p.copy != nil {
		g.Go(func() error { return p.copy.Run(ctx) })
	}
	g.Go(func() error { return p.http.Run(ctx) })
	g.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-p.http.Ready():
		}
		if err := p.greet(ctx); err != nil || p.opts.noGateway {
			return err
		}
		// Only now: a gateway outlives its server, so a server that cannot run must
		// not leave one behind.
		return keepGateway(ctx, p.opts, p.log)
	})
	return g.Wait()
}

// greet prints the address, and at the first start the admin token.
func (p *parts) greet(ctx context.Context) error {
	fmt.Fprintf(p.out, "holdfast server listens on https://%s\n", p.http.Addr())
	authority := filepath.Join(p.opts.state, "tls", "ca.pem")
	fmt.Fprintf(p.out, "certificate authority: %s, fingerprint %s\n", authority, p.tls.Fingerprint())
	all, err := p.tokens.List(ctx)
	if err != nil || len(all) > 0 {
		return err
	}
	_, secret, err := p.tokens.Create(ctx, auth.CreateOptions{Name: "admin", Role: auth.RoleAdmin, Now: time.Now()})
	if err != nil {
		return err
	}
	fmt.Fprintf(p.out, "admin token, shown this once: %s\n", secret)
	fmt.Fprintf(p.out, "next: holdfast login https://%s --ca %s\n", p.reachedAt(), authority)
	return nil
}

// reachedAt returns a host and port that the certificate is good for: the
// address itself may be that of all interfaces.
func (p *parts) reachedAt() string {
	if len(p.opts.hosts) == 0 {
		return p.http.Addr().String()
	}
	_, port, err := net.SplitHostPort(p.http.Addr().String())
	if err != nil {
		return p.http.Addr().String()
	}
	return net.JoinHostPort(p.opts.hosts[0], port)
}

// The names of settings in the database.
const (
	settingVault  = "vault_id"
	settingServer = "server_id"
)

// serverID returns what names this server to others, made at its first start.
func serverID(ctx context.Context, db *store.Store) (string, error) {
	id, err := db.Setting(ctx, settingServer)
	if err != nil || id != "" {
		return id, err
	}
	id = fmt.Sprintf("server-%d-%d", os.Getpid(), time.Now().UnixNano())
	return id, db.SetSetting(ctx, settingServer, id)
}

// keepGateway keeps a gateway alive on this host. It is a process of its own and
// survives the server: a guest's replication must not depend on it.
func keepGateway(ctx context.Context, o serverOptions, log *slog.Logger) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c, err := gateway.NewClient("unix:" + gatewaySocket(o.gatewayDir()))
	if err != nil {
		return err
	}
	for {
		ask, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, err := c.Statuses(ask)
		cancel()
		if err != nil && ctx.Err() == nil {
			if err := startGateway(self, o, log); err != nil {
				log.Error("gateway is not started", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// startGateway starts a gateway in a session of its own. If one runs already and
// is only slow to answer, the new one finds its directory locked and ends.
func startGateway(self string, o serverOptions, log *slog.Logger) error {
	if err := os.MkdirAll(o.gatewayDir(), 0o711); err != nil {
		return err
	}
	logFile, err := os.OpenFile(filepath.Join(o.gatewayDir(), "gateway.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close()
	args := []string{"gateway", "--dir", o.gatewayDir(), "--bound", o.bound.String(), "--log-level", o.logLevel}
	cmd := exec.Command(self, append(args, bandwidthArgs(o.bandwidth)...)...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	log.Info("gateway is started", "pid", cmd.Process.Pid, "log", logFile.Name())
	go func() { _ = cmd.Wait() }() // collects it if it ends before the server; why is in its log
	return nil
}
