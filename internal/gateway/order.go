package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/scrub"
)

// VaultRef says where a vault is and how to open it. It is secret.
type VaultRef struct {
	Location    objstore.Location `json:"location"`
	Key         string            `json:"key"`
	Credentials map[string]string `json:"credentials,omitempty"` // of the object store; see objstore.CredentialNames
}

// Digest names what is in it, without telling it.
func (r VaultRef) Digest() string {
	b, err := json.Marshal(r) // maps in the order of their keys
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// SiteRef says how to open the site of a machine.
type SiteRef struct {
	Provider string          `json:"provider"`
	Settings json.RawMessage `json:"settings"`
}

// DiskRef is a disk to be protected.
type DiskRef struct {
	ID   string `json:"id"`
	Size int64  `json:"size"` // bytes
}

// Order is what the server wants of a gateway: replicate one machine into one
// stream. The gateway keeps it and carries it out until it is withdrawn.
type Order struct {
	Item       string              `json:"item"`
	Stream     holdfast.StreamID   `json:"stream"`
	Timeline   holdfast.TimelineID `json:"timeline"`
	Generation holdfast.Generation `json:"generation"`
	Vault      VaultRef            `json:"vault"`
	Site       SiteRef             `json:"site"`
	MachineID  string              `json:"machine_id"`
	Disks      []DiskRef           `json:"disks"`
	Tuning     Tuning              `json:"tuning"`
	// PausedUntil is until when the machine is left alone: no mirror runs, so that
	// others can resize, back up or snapshot its disks. Zero: not.
	PausedUntil time.Time `json:"paused_until,omitzero"`
	// ScrubEvery is the time in which all disks are compared with the vault once, while
	// the machine runs; 0: only when asked.
	ScrubEvery time.Duration `json:"scrub_every,omitempty"`
}

// Validate returns what is wrong with an order.
func (o Order) Validate() error {
	switch {
	case o.Item == "":
		return errors.New("order names no item")
	case o.Stream == holdfast.StreamID{}:
		return errors.New("order names no stream")
	case o.Timeline == 0 || o.Generation == 0:
		return errors.New("order names no timeline or generation")
	case o.Vault.Location == "" || o.Vault.Key == "":
		return errors.New("order names no vault or key")
	case o.Site.Provider == "" || o.MachineID == "":
		return errors.New("order names no provider or machine")
	case len(o.Disks) == 0:
		return errors.New("order names no disks")
	}
	seen := map[string]bool{}
	for _, d := range o.Disks {
		if d.ID == "" || d.Size <= 0 || d.Size%512 != 0 || seen[d.ID] {
			return fmt.Errorf("disk %q of %d bytes: want a unique id and a positive multiple of 512", d.ID, d.Size)
		}
		seen[d.ID] = true
	}
	return nil
}

// Status is how the replication of one item fares, as its gateway sees it.
type Status struct {
	Item       string              `json:"item"`
	Stream     holdfast.StreamID   `json:"stream"`
	Timeline   holdfast.TimelineID `json:"timeline"`
	Mode       string              `json:"mode"` // the worst of the disks'
	Consistent bool                `json:"consistent"`
	Disks      []DiskStatus        `json:"disks"`
	Counts     Counts              `json:"counts"`
	Backlog    int64               `json:"backlog_bytes"` // acknowledged, not in the vault
	Position   holdfast.Position   `json:"position"`      // newest in the vault
	AsOf       time.Time           `json:"as_of"`         // all that had arrived by then is in the vault
	// Code and Problem say why replication does not go on as it should: one of
	// the Problem codes, and the cause in words; since when.
	Code    string    `json:"code,omitempty"`
	Problem string    `json:"problem,omitempty"`
	Since   time.Time `json:"since,omitzero"`
	// Quiet says, while it is paused, that nothing of the gateway is in the machine.
	Quiet bool `json:"quiet,omitempty"`
	// Machine names what the machine was when it was looked at last; when it
	// changes, so has the machine. Empty: it was not looked at yet.
	Machine string `json:"machine,omitempty"`
	// Vault is the digest of the VaultRef that the gateway works with.
	Vault string `json:"vault,omitempty"`
	// Stalls counts how often the ingest process was killed because it did not
	// answer within the bound.
	Stalls int `json:"stalls"`
	// Scrub is how far the disks are compared with the vault.
	Scrub scrub.State `json:"scrub,omitzero"`
}

// DiskStatus is how the replication of one disk fares.
type DiskStatus struct {
	ID    string  `json:"id"`
	Size  int64   `json:"size"`
	Mode  string  `json:"mode"`
	Done  int64   `json:"done"`  // bytes of the pass at hand
	Total int64   `json:"total"` // 0 if no pass is under way
	Rate  float64 `json:"rate"`  // bytes per second
}

// The problem codes of a Status.
const (
	CodeVaultFull        = "vault_full"
	CodeVaultUnreachable = "vault_unreachable"
	CodeFenced           = "fenced"
	CodeBacklog          = "backlog_bound"
	CodeSource           = "source"
	CodeIngest           = "ingest"
	CodeSourceOff        = "source_off"
	CodeDiskResized      = "disk_resized"
	CodePaused           = "paused"
	CodeBandwidth        = "bandwidth"
)

// Opener opens the site that an order names. The command builds it from the
// providers that it knows.
type Opener interface {
	OpenSite(ctx context.Context, ref SiteRef) (*provider.Site, error)
}
