package libvirt

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/qemutool"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// recovery is what is kept of a recovery, in state.json of its directory. It is
// written before anything is made, so that Remove finds all there can be.
type recovery struct {
	Recovered provider.Recovered `json:"recovered"`
	UUID      string             `json:"uuid"`
	StartedAt time.Time          `json:"started_at,omitzero"`
}

var handleRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`)

func (s *site) dir(handle string) string { return filepath.Join(s.storage, handle) }

// load reads what is kept of a recovery; provider.ErrNotFound if there is none.
func (s *site) load(handle string) (*recovery, error) {
	if !handleRE.MatchString(handle) {
		return nil, fmt.Errorf("recovery handle %q: want letters, digits, dashes and underscores", handle)
	}
	b, err := os.ReadFile(filepath.Join(s.dir(handle), "state.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("recovery %s: %w", handle, provider.ErrNotFound)
	}
	r := &recovery{}
	if err == nil {
		err = json.Unmarshal(b, r)
	}
	if err != nil {
		return nil, fmt.Errorf("read state of recovery %s: %w", handle, err)
	}
	return r, nil
}

func (s *site) save(r *recovery) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return vfs.WriteFileAtomic(vfs.OS, filepath.Join(s.dir(r.Recovered.Handle), "state.json"), b)
}

// Define makes overlays and a domain that is off.
func (s *site) Define(ctx context.Context, want provider.Recovered) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	r, err := s.load(want.Handle)
	if errors.Is(err, provider.ErrNotFound) {
		r, err = s.begin(want)
	}
	if err != nil {
		return "", fmt.Errorf("recover machine %s: %w", want.Name, err)
	}
	if d, err := s.domain(r.UUID); err == nil {
		return formatUUID(d.UUID), nil
	}
	if err := s.nameFree(r.Recovered.Name); err != nil {
		return "", err
	}
	for _, disk := range r.Recovered.Disks {
		if err := s.makeOverlay(ctx, r, disk); err != nil {
			return "", fmt.Errorf("recover machine %s: %w", want.Name, err)
		}
	}
	if r.Recovered.Seed != nil {
		if err := qemutool.WriteSeed(s.seed(r), *r.Recovered.Seed); err != nil {
			return "", fmt.Errorf("recover machine %s: %w", want.Name, err)
		}
	}
	text, err := s.definition(r)
	if err != nil {
		return "", fmt.Errorf("recover machine %s: %w", want.Name, err)
	}
	d, err := s.l.DomainDefineXML(text)
	if err != nil {
		return "", fmt.Errorf("recover machine %s: libvirt refuses its definition: %w", want.Name, err)
	}
	return formatUUID(d.UUID), nil
}

// begin records what shall be made.
func (s *site) begin(want provider.Recovered) (*recovery, error) {
	if len(want.Disks) == 0 {
		return nil, errors.New("no disks were given")
	}
	if err := s.nameFree(want.Name); err != nil {
		return nil, err
	}
	for _, name := range want.TargetNetworks() {
		if err := s.networkThere(name); err != nil {
			return nil, err
		}
	}
	r := &recovery{Recovered: want, UUID: want.Machine.ID}
	// The guest keeps its identity, unless the site has a machine with it.
	if id, ok := parseUUID(r.UUID); !ok || s.has(id) {
		sum := sha256.Sum256([]byte("holdfast recovery " + want.Handle))
		r.UUID = formatUUID(golibvirt.UUID(sum[:16]))
	}
	// QEMU's own user reads and writes in it.
	if err := os.MkdirAll(s.dir(want.Handle), 0o711); err != nil {
		return nil, fmt.Errorf("storage: %w", err)
	}
	return r, s.save(r)
}

func (s *site) has(id golibvirt.UUID) bool {
	_, err := s.l.DomainLookupByUUID(id)
	return err == nil
}

func (s *site) nameFree(name string) error {
	_, err := s.l.DomainLookupByName(name)
	if err == nil {
		return fmt.Errorf("recover machine %s: %w: libvirt has a domain of that name; choose another name", name, provider.ErrNameTaken)
	}
	if golibvirt.IsNotFound(err) {
		return nil
	}
	return fmt.Errorf("look for machine %s: %w", name, err)
}

// networkThere checks that the network that is asked for exists.
func (s *site) networkThere(name string) error {
	if name == "" {
		return nil
	}
	nets, _, err := s.l.ConnectListAllNetworks(1, 0)
	if err != nil {
		return fmt.Errorf("list networks: %w", err)
	}
	var have []string
	for _, n := range nets {
		if n.Name == name {
			return nil
		}
		have = append(have, n.Name)
	}
	return fmt.Errorf("the site has no network %q; it has %q", name, have)
}

// seed is the image of the drive that cloud-init reads.
func (s *site) seed(r *recovery) string { return filepath.Join(s.dir(r.Recovered.Handle), "seed.iso") }

func (s *site) overlay(r *recovery, disk string) string {
	return filepath.Join(s.dir(r.Recovered.Handle), disk+".overlay.qcow2")
}

func (s *site) hydrated(r *recovery, disk string) string {
	return filepath.Join(s.dir(r.Recovered.Handle), disk+".qcow2")
}

// makeOverlay makes an empty overlay over a disk's view. One that is there was
// made by an interrupted Define and has never been written.
func (s *site) makeOverlay(ctx context.Context, r *recovery, disk provider.DiskSource) error {
	if disk.Socket == "" {
		return fmt.Errorf("disk %s: only views on a unix socket can be used here", disk.DiskID)
	}
	backing := fmt.Sprintf("nbd+unix:///%s?socket=%s", disk.Export, disk.Socket)
	cmd := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", backing,
		s.overlay(r, disk.DiskID), fmt.Sprint(disk.Size))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make overlay of disk %s: %w: %s", disk.DiskID, err, out)
	}
	return nil
}

// Start starts the domain, if it does not run.
func (s *site) Start(ctx context.Context, handle string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r, err := s.load(handle)
	if err != nil {
		return err
	}
	d, err := s.domain(r.UUID)
	if err != nil {
		return err
	}
	if p, err := s.power(d); err != nil || p == provider.PowerRunning {
		return err
	}
	if err := s.start(d); err != nil {
		return err
	}
	r.StartedAt = time.Now()
	return s.save(r)
}

// Status reports power and hydration.
func (s *site) Status(ctx context.Context, handle string) (provider.Status, error) {
	if err := ctx.Err(); err != nil {
		return provider.Status{}, err
	}
	r, err := s.load(handle)
	if err != nil {
		return provider.Status{}, err
	}
	st := provider.Status{Power: provider.PowerOff, StartedAt: r.StartedAt, NeedsView: true}
	for _, d := range r.Recovered.Disks {
		st.Total += d.Size
	}
	d, err := s.domain(r.UUID)
	if errors.Is(err, provider.ErrNotFound) {
		return st, nil // Define was interrupted
	}
	if err != nil {
		return st, err
	}
	st.MachineID = formatUUID(d.UUID)
	if st.Power, err = s.power(d); err != nil {
		return st, err
	}
	st.NeedsView = false
	for _, disk := range r.Recovered.Disks {
		local, err := s.isLocal(r, d, disk.DiskID)
		if err != nil {
			return st, err
		}
		if local {
			st.Hydrated += disk.Size
			continue
		}
		st.NeedsView = true
		if found, _, _, cur, end, err := s.l.DomainGetBlockJobInfo(d, disk.DiskID, 0); err == nil && found > 0 && end > 0 {
			st.Hydrated += int64(float64(disk.Size) * float64(cur) / float64(end))
		}
	}
	return st, nil
}

// isLocal says whether a disk has been moved to its local file, in the domain as
// it runs and as it is kept.
func (s *site) isLocal(r *recovery, d golibvirt.Domain, disk string) (bool, error) {
	for _, flags := range []golibvirt.DomainXMLFlags{0, golibvirt.DomainXMLInactive} {
		doc, err := s.xml(d, flags)
		if err != nil {
			return false, err
		}
		e := diskOf(doc, disk)
		if e == nil || attr(e, "source", "file") != s.hydrated(r, disk) {
			return false, nil
		}
	}
	return true, nil
}

// Remove stops the domain and removes it and its disks.
func (s *site) Remove(ctx context.Context, handle string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r, err := s.load(handle)
	if errors.Is(err, provider.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	d, err := s.domain(r.UUID)
	switch {
	case errors.Is(err, provider.ErrNotFound):
	case err != nil:
		return err
	default:
		if err := s.ours(d, handle); err != nil {
			return err
		}
		if err := s.Kill(ctx, formatUUID(d.UUID)); err != nil {
			return err
		}
		if err := s.l.DomainUndefineFlags(d, golibvirt.DomainUndefineNvram|golibvirt.DomainUndefineManagedSave|golibvirt.DomainUndefineSnapshotsMetadata); err != nil {
			return fmt.Errorf("remove machine %s: %w", d.Name, err)
		}
	}
	// The state last: what is left can be removed again.
	for _, disk := range r.Recovered.Disks {
		for _, name := range []string{s.overlay(r, disk.DiskID), s.hydrated(r, disk.DiskID)} {
			if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return os.RemoveAll(s.dir(handle))
}

// ours refuses to touch a domain that Holdfast has not made.
func (s *site) ours(d golibvirt.Domain, handle string) error {
	doc, err := s.xml(d, golibvirt.DomainXMLInactive)
	if err != nil {
		return err
	}
	if e := doc.FindElement("domain/metadata/recovery"); e == nil || e.SelectAttrValue("handle", "") != handle {
		return fmt.Errorf("machine %s was not made by recovery %s and is left alone", d.Name, handle)
	}
	return nil
}
