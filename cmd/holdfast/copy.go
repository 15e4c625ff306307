package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/store"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// settingCopy names the setting that says where there is a copy of the vault.
const settingCopy = "vault_copy"

// vaultCopy keeps a copy of the vault in another store. What goes wrong with it is in
// its state, and stops nothing else. It implements orchestrator.VaultCopy.
type vaultCopy struct {
	vault *vault.Vault
	at    location
	every time.Duration
	db    *store.Store
	log   *slog.Logger

	// mu guards what follows.
	mu    sync.Mutex
	store objstore.Store // nil: not opened yet
	known bool           // that there is a copy, which must not be begun anew
	state api.VaultCopy
}

// newVaultCopy returns nil if there is to be no copy.
func newVaultCopy(ctx context.Context, o serverOptions, p *parts) (*vaultCopy, error) {
	if o.copy.at == "" {
		return nil, p.db.SetSetting(ctx, settingCopy, "")
	}
	if o.copyEvery <= 0 {
		return nil, &holdfast.Error{Kind: holdfast.KindInvalid, Op: "copy vault", Cause: "--vault-copy-every is " + o.copyEvery.String(), Hint: "Want more than 0, like 1m"}
	}
	if o.copy.name() == o.vault.name() {
		return nil, &holdfast.Error{Kind: holdfast.KindInvalid, Op: "copy vault", Thing: o.copy.name(), Cause: "it is where the vault itself is", Hint: "Name another store with --vault-copy"}
	}
	return &vaultCopy{vault: p.vault, at: o.copy, every: o.copyEvery, db: p.db, log: p.log, state: api.VaultCopy{Location: o.copy.name()}}, nil
}

// State implements orchestrator.VaultCopy.
func (c *vaultCopy) State() api.VaultCopy {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// Verify implements orchestrator.VaultCopy.
func (c *vaultCopy) Verify(ctx context.Context, o vault.VerifyOptions) (rep *vault.Report, healed []string, err error) {
	objects, _, err := c.open(ctx)
	if err != nil {
		c.log.Warn("vault is verified without its copy", "copy", c.at.name(), "error", err)
		rep, err = c.vault.Verify(ctx, o)
		return rep, nil, err
	}
	return c.vault.VerifyAndHeal(ctx, objects, o)
}

// open opens the other store once. known says that it has had a copy.
func (c *vaultCopy) open(ctx context.Context) (objects objstore.Store, known bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.store != nil {
		return c.store, c.known, nil
	}
	where, err := c.db.Setting(ctx, settingCopy)
	if err != nil {
		return nil, false, err
	}
	c.known = where == c.at.name()
	c.store, err = openCopy(ctx, c.at, c.known)
	return c.store, c.known, err
}

// openCopy opens the store of a copy. The directory of one that was there must be
// there again: it may be that its file system is not mounted.
func openCopy(ctx context.Context, at location, known bool) (objstore.Store, error) {
	if dir, ok := objstore.Location(at.at).Directory(); ok && !known {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, startError("make directory of vault's copy", dir, err, "Name a directory that can be written")
		}
	}
	return at.open(ctx)
}

// Run copies until ctx ends.
func (c *vaultCopy) Run(ctx context.Context) error {
	var copier *vault.Copier
	for ctx.Err() == nil {
		objects, known, err := c.open(ctx)
		if err == nil {
			if copier == nil {
				copier = c.vault.NewCopier(objects, known)
			}
			err = c.pass(ctx, copier)
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			c.failed(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(c.every):
		}
	}
	return nil
}

func (c *vaultCopy) pass(ctx context.Context, copier *vault.Copier) error {
	began := time.Now()
	rep, err := copier.Pass(ctx, func(done, total int64) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.state.Done, c.state.Total = done, total
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state.Done, c.state.Total = 0, 0
	if err == nil && !c.known {
		err = c.db.SetSetting(ctx, settingCopy, c.at.name())
	}
	if err != nil {
		return copyError(c.at.name(), err)
	}
	c.known = true
	if c.state.Problem != "" || c.state.AsOf.IsZero() {
		c.log.Info("copy of vault is whole", "copy", c.at.name(), "objects", rep.HasObjects, "bytes", rep.HasBytes)
	}
	if len(rep.Damaged) > len(c.state.Damaged) {
		c.log.Error("vault has damaged objects, which were not copied", "objects", rep.Damaged)
	}
	c.state = api.VaultCopy{Location: c.state.Location, AsOf: began, Objects: rep.HasObjects, Bytes: rep.HasBytes, Damaged: rep.Damaged}
	return nil
}

func (c *vaultCopy) failed(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state.Problem == "" {
		c.log.Error("vault is not copied", "copy", c.at.name(), "error", err)
	}
	c.state.Problem = err.Error()
}

// other are the flags of commands that need a second store.
type other struct {
	offline
	at location
}

// copyCommand is `holdfast vault copy`.
func copyCommand() *cobra.Command {
	var o other
	cmd := &cobra.Command{
		Use: "copy", Args: cobra.NoArgs,
		Short: "Copy a vault to another store, or bring a copy up to date",
		Long: `Copy a vault to another store, or bring a copy up to date: only what is missing there is written, and a
copy that was interrupted goes on. The copy is a vault that the same keys open, with all moments that the
first one has. What is damaged is not copied, and what vanishes from the vault stays in the copy. A server
may work with the vault meanwhile; holdfast server --vault-copy does the same all the time.`,
		Example: "  holdfast vault copy --vault /srv/vault --vault-key vault.key --to s3://copies/vault?region=eu-west-1",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.copy(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.flags(cmd)
	cmd.Flags().StringVar(&o.at.at, "to", "", "where the copy is: a directory, s3://… or azure://…")
	cmd.Flags().StringVar(&o.at.credentials, "to-credentials", "", "file with the credentials of that store (default: the environment)")
	_ = cmd.MarkFlagRequired("to") // the flag is there
	return cmd
}

func (o *other) copy(ctx context.Context, out, progress io.Writer) error {
	if err := o.at.absolute(); err != nil {
		return err
	}
	v, err := o.open(ctx)
	if err != nil {
		return err
	}
	objects, err := openCopy(ctx, o.at, false)
	if err != nil {
		return err
	}
	began := time.Now()
	rep, err := v.NewCopier(objects, false).Pass(ctx, func(done, total int64) {
		rate := float64(done) / time.Since(began).Seconds()
		left := time.Duration(float64(total-done) / max(rate, 1) * float64(time.Second))
		fmt.Fprintf(progress, "\r%3d %% of %d MiB, %.0f MiB/s, %s left   ", 100*done/max(1, total), total>>20, rate/(1<<20), left.Round(time.Second))
	})
	if rep.Objects > 0 {
		fmt.Fprintln(progress)
	}
	if err != nil {
		return copyError(o.at.name(), err)
	}
	fmt.Fprintf(out, "%s: %d objects copied, %d removed; it has %d objects of %d bytes\n", o.at.name(), rep.Objects, rep.Removed, rep.HasObjects, rep.HasBytes)
	if len(rep.Damaged) == 0 {
		return nil
	}
	return &holdfast.Error{Kind: holdfast.KindCorrupt, Op: "copy vault", Thing: o.vault.name(),
		Cause: fmt.Sprintf("%d objects are damaged and were not copied, the first is %s", len(rep.Damaged), rep.Damaged[0]), Hint: "Run holdfast vault heal, or holdfast vault verify"}
}

func copyError(to string, err error) error {
	hint := "Repeat: it goes on where it stopped"
	switch {
	case errors.Is(err, objstore.ErrGone):
		hint = "Mount the file system that it is on. If it is lost for good, start the server once without --vault-copy: after that it is made anew"
	case errors.Is(err, vault.ErrCopyInUse):
		hint = "Name a store that is empty, or has a copy that no server has used"
	case errors.Is(err, vault.ErrExists):
		hint = "Name a store that is empty, or has a copy of this vault"
	}
	return startError("copy vault to", to, err, hint)
}

// healCommand is `holdfast vault heal`.
func healCommand() *cobra.Command {
	var o other
	cmd := &cobra.Command{
		Use: "heal", Args: cobra.NoArgs,
		Short: "Put back what is damaged in a vault, from a copy of it",
		Long: `Read a vault as a whole, and put back from a copy of it what is damaged or missing, as far as it is whole
there. It exits with 0 if no damage is left. A server that has --vault-copy does so with every
holdfast vault verify. It works both ways: name the copy with --vault, and the vault with --from, to heal
the copy.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.heal(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.flags(cmd)
	cmd.Flags().StringVar(&o.at.at, "from", "", "where the copy is: a directory, s3://… or azure://…")
	cmd.Flags().StringVar(&o.at.credentials, "from-credentials", "", "file with the credentials of that store (default: the environment)")
	_ = cmd.MarkFlagRequired("from") // the flag is there
	return cmd
}

func (o *other) heal(ctx context.Context, out, progress io.Writer) error {
	if err := o.at.absolute(); err != nil {
		return err
	}
	objects, err := o.at.open(ctx)
	if err != nil {
		return err
	}
	v, err := o.openDamaged(ctx, out)
	if err != nil {
		return err
	}
	rep, healed, err := v.VerifyAndHeal(ctx, objects, vault.VerifyOptions{Progress: func(done, total int64) {
		fmt.Fprintf(progress, "\r%3d %% of %d MiB read   ", 100*done/max(1, total), total>>20)
	}})
	fmt.Fprintln(progress)
	for _, name := range healed {
		fmt.Fprintf(out, "healed %s\n", name)
	}
	if err != nil {
		return startError("heal vault", o.vault.name(), err, "Repeat: what was put back stays")
	}
	for _, d := range rep.Damaged {
		fmt.Fprintf(out, "damaged %s: %s\n", d.Object, d.Detail)
	}
	fmt.Fprintf(out, "%d segments, %d bytes: %d objects healed, %d damaged\n", rep.Segments, rep.Bytes, len(healed), len(rep.Damaged))
	if len(rep.Damaged) > 0 {
		return &holdfast.Error{Kind: holdfast.KindCorrupt, Op: "heal vault", Thing: o.vault.name(), Cause: fmt.Sprintf("%d objects are damaged, and not whole in the copy either", len(rep.Damaged)),
			Hint: "Recovery points that need them cannot be used; others can: holdfast vault verify names them"}
	}
	return nil
}

// openDamaged opens the vault; if it has lost its descriptor, that of the copy is put
// in its place first.
func (o *other) openDamaged(ctx context.Context, out io.Writer) (*vault.Vault, error) {
	v, key, err := o.openWith(ctx)
	if err == nil || !errors.Is(err, vault.ErrCorrupt) && !errors.Is(err, vault.ErrNotVault) {
		return v, err
	}
	whole := offline{vault: o.at}
	twin, twinErr := whole.openKey(ctx, key)
	if twinErr != nil {
		return nil, errors.Join(err, twinErr)
	}
	objects, twinErr := o.vault.open(ctx)
	if twinErr == nil {
		twinErr = twin.PutDescriptor(ctx, objects)
	}
	if twinErr != nil {
		return nil, errors.Join(err, twinErr)
	}
	fmt.Fprintln(out, "healed vault")
	return o.openKey(ctx, key)
}
