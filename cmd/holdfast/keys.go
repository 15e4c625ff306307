package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// createVault makes a vault with a recovery key, which is shown once and kept nowhere.
func createVault(ctx context.Context, objects objstore.Store, key vault.Key, out io.Writer) (*vault.Vault, error) {
	recovery, err := vault.NewKey()
	if err != nil {
		return nil, err
	}
	v, err := vault.Create(ctx, objects, vault.CreateOptions{Key: key, Recovery: []string{recovery.Recipient()}, Now: time.Now()})
	if err != nil {
		return nil, err
	}
	return v, showWords(out, recovery)
}

// showWords shows a recovery key, for the only time.
func showWords(out io.Writer, k vault.Key) error {
	text, err := k.Words()
	if err != nil {
		return err
	}
	words := strings.Fields(text)
	fmt.Fprintln(out, "recovery key, shown this once. Write these words down, and keep them away from this machine:")
	for i := 0; i < len(words); i += 6 {
		fmt.Fprintf(out, "    %2d  %s\n", i+1, strings.Join(words[i:i+6], " "))
	}
	fmt.Fprintln(out, "With them alone the vault can be read when all else is lost: holdfast vault open --recovery-key.")
	return nil
}

// rekey is what `holdfast vault recovery-key` and `rotate-key` were asked for.
type rekey struct {
	offline
	newKey string
}

// recoveryKeyCommand is `holdfast vault recovery-key`.
func recoveryKeyCommand() *cobra.Command {
	var o rekey
	cmd := &cobra.Command{
		Use: "recovery-key", Args: cobra.NoArgs,
		Short: "Make a new recovery key, and show it as words",
		Long: `Make a new recovery key, and show it as words. The one before opens nothing any more. The server must
be stopped; it needs no new settings afterwards.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.locked(cmd.Context(), o.changeTo(cmd.OutOrStdout()))
		},
	}
	o.flags(cmd)
	return cmd
}

// rotateKeyCommand is `holdfast vault rotate-key`.
func rotateKeyCommand() *cobra.Command {
	var o rekey
	cmd := &cobra.Command{
		Use: "rotate-key", Args: cobra.NoArgs,
		Short: "Give the vault a new key and a new recovery key",
		Long: `Give the vault a new key and a new recovery key; those before open nothing any more. The server must be
stopped. Start it with --vault-key NEW afterwards, or put NEW in the place of the old key: it tells the
gateways. If this is interrupted, run it again in the same way.

What is encrypted does not change: who has kept a copy of the vault's objects from before, and the old key,
can still read that copy.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.rotate(cmd.Context(), cmd.OutOrStdout()) },
	}
	o.flags(cmd)
	cmd.Flags().StringVar(&o.newKey, "new-key", "", "file for the new key; made if it is not there")
	_ = cmd.MarkFlagRequired("new-key") // the flag is there
	return cmd
}

// changeTo returns what gives the vault another recovery key, shown on out.
func (o *rekey) changeTo(out io.Writer) func(context.Context, *vault.Vault, vault.Key) error {
	return func(ctx context.Context, v *vault.Vault, key vault.Key) error { return o.change(ctx, v, key, out) }
}

// change makes key the vault's, with a new recovery key.
func (o *rekey) change(ctx context.Context, v *vault.Vault, key vault.Key, out io.Writer) error {
	recovery, err := vault.NewKey()
	if err != nil {
		return err
	}
	// Shown first: if this is interrupted later, it may be the one that counts.
	if err := showWords(out, recovery); err != nil {
		return err
	}
	if err := v.Rekey(ctx, key, []string{recovery.Recipient()}); err != nil {
		return startError("change keys of vault", o.vault.name(), err, "Run the command again; both the old keys and these work until then")
	}
	fmt.Fprintf(out, "done: vault %s is opened by %s and by these words, and by nothing else\n", v.ID(), o.keyFileNow())
	return nil
}

func (o *rekey) keyFileNow() string {
	if o.newKey != "" {
		return o.newKey
	}
	return o.key
}

func (o *rekey) rotate(ctx context.Context, out io.Writer) error {
	fresh, err := readKey(o.newKey)
	if errors.Is(err, os.ErrNotExist) {
		if fresh, err = vault.NewKey(); err == nil {
			err = vfs.WriteFileAtomic(vfs.OS, o.newKey, []byte(fresh.String()+"\n"))
		}
	}
	if err != nil {
		return startError("make key", o.newKey, err, "Name a file that can be written, or that has a key, with --new-key")
	}
	do := func(ctx context.Context, v *vault.Vault, _ vault.Key) error { return o.change(ctx, v, fresh, out) }
	// After an interruption the new key may be the one that opens all.
	again := *o
	again.offline.key, again.offline.words = o.newKey, false
	err = again.locked(ctx, do)
	if errors.Is(err, vault.ErrWrongKey) {
		err = o.locked(ctx, do)
	}
	return err
}

// locked does something with a vault that nobody else uses meanwhile.
func (o *offline) locked(ctx context.Context, do func(context.Context, *vault.Vault, vault.Key) error) error {
	v, key, err := o.openWith(ctx)
	if err != nil {
		return err
	}
	host, _ := os.Hostname() // only for people to read
	ctx, lease, err := v.AcquireLease(ctx, vault.LeaseOptions{Owner: fmt.Sprintf("keys-%d-%d", os.Getpid(), time.Now().UnixNano()), Host: host, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return startError("take vault", o.vault.name(), err, "Stop the server that uses it")
	}
	defer lease.Release()
	return do(ctx, v, key)
}

// askWords reads a recovery key as a person types it, in as many lines as it takes.
func askWords(in io.Reader, out io.Writer) (vault.Key, error) {
	fmt.Fprintln(out, "recovery key, 24 words, then Enter:")
	var words []string
	for sc := bufio.NewScanner(in); len(words) < 24 && sc.Scan(); {
		for _, w := range strings.Fields(sc.Text()) {
			if strings.Trim(w, "0123456789.") != "" { // not what showWords counts with
				words = append(words, w)
			}
		}
	}
	k, err := vault.ParseKey(strings.Join(words, " "))
	if err != nil {
		return k, &holdfast.Error{Kind: holdfast.KindInvalid, Op: "read recovery key", Err: err, Cause: fmt.Sprintf("%d words came", len(words)), Hint: "Give the 24 words in their order, with blanks between"}
	}
	return k, nil
}
