package vault

import (
	"context"
	"fmt"
	"slices"
)

// Rekey changes who can open the vault: key, and the further recipients. The keys of
// streams and the vault's secret stay what they are; they are encrypted anew. The
// vault must have been opened with a key that opens it now, and nobody else may use
// it for writing: hold its lease. It is durable when it returns. After an
// interruption, open the vault with the new key if that opens it, else with the old
// one, and call it again: at each moment one of the two opens everything.
func (v *Vault) Rekey(ctx context.Context, key Key, recovery []string) error {
	to := append([]string{key.Recipient()}, recovery...)
	both := slices.Compact(slices.Sorted(slices.Values(append(slices.Clone(to), v.desc.Recipients...))))
	for _, recipients := range [][]string{both, to} {
		// The vault's own document is the last: what opens that opens all.
		ids, err := v.Streams(ctx)
		if err != nil {
			return fmt.Errorf("change keys: %w", err)
		}
		for _, id := range ids {
			if err := v.rewrapStream(ctx, streamName(id, "stream"), recipients); err != nil {
				return fmt.Errorf("change keys of stream %s: %w", id, err)
			}
		}
		if err := v.rewrap(ctx, recipients); err != nil {
			return fmt.Errorf("change keys of the vault: %w", err)
		}
	}
	v.key = key
	return nil
}

// rewrapStream encrypts the key of a stream to recipients.
func (v *Vault) rewrapStream(ctx context.Context, name string, recipients []string) error {
	var d streamDescriptor
	etag, err := v.getDocument(ctx, name, &d)
	if err != nil {
		return err
	}
	plain, err := v.unwrap(d.Key)
	if err != nil {
		return damaged(name, err)
	}
	if d.Key, err = wrap(recipients, plain); err != nil {
		return err
	}
	return v.replace(ctx, name, d, etag)
}

// rewrap encrypts the vault's secret to recipients.
func (v *Vault) rewrap(ctx context.Context, recipients []string) error {
	var d descriptor
	etag, err := v.getDocument(ctx, descriptorName, &d)
	if err != nil {
		return err
	}
	d.Recipients = recipients
	if d.Secret, err = wrap(recipients, v.secret[:]); err != nil {
		return err
	}
	if err := v.replace(ctx, descriptorName, d, etag); err != nil {
		return err
	}
	v.desc = d
	return nil
}

// replace writes a document of a known version anew.
func (v *Vault) replace(ctx context.Context, name string, x any, etag string) error {
	b, err := v.secret.document(name, x)
	if err == nil {
		_, err = v.store.CompareAndSwap(ctx, name, b, etag)
	}
	return err
}

// Recipients returns to whom the vault's secrets are encrypted. The first is not
// always the server's key.
func (v *Vault) Recipients() []string { return slices.Clone(v.desc.Recipients) }
