package libvirt

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strings"

	"github.com/beevik/etree"
	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/holdfast-dr/holdfast/internal/provider"
)

const (
	// guardSpace names the element in a domain's metadata that is its guard. The
	// hook looks for it, too.
	guardSpace = "https://holdfast-dr.github.io/xmlns/guard"
	guardKey   = "holdfast"
	maxReason  = 1000
)

// Hook is a hook of libvirt, a shell script, that refuses to start a guarded
// domain whoever asks for it.
//
//go:embed hook.sh
var Hook string

// power is the site as provider.Power; its Start takes a machine where the
// target's takes a handle.
type power struct{ s *site }

// guard is the element in a domain's metadata.
type guard struct {
	reason string
	// autostart says that the domain started with its host before it was guarded.
	autostart bool
}

// Start powers a machine on.
func (p power) Start(ctx context.Context, machineID string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d, err := p.s.domain(machineID)
	if err != nil {
		return err
	}
	return p.s.start(d)
}

// start starts a domain with its guest held, and lets it run when it is not
// guarded even then: a guard that came meanwhile counts.
func (s *site) start(d golibvirt.Domain) error {
	p, err := s.power(d)
	if err != nil || p == provider.PowerRunning {
		return err
	}
	if err := s.checkGuard(d); err != nil {
		return err
	}
	if p == provider.PowerOff {
		if _, err := s.l.DomainCreateWithFlags(d, uint32(golibvirt.DomainStartPaused)); err != nil {
			if now, perr := s.power(d); perr != nil || now == provider.PowerOff {
				return fmt.Errorf("start machine %s: %w", d.Name, err)
			}
			// Another start was faster.
		}
	}
	if err := s.checkGuard(d); err != nil {
		return errors.Join(err, s.l.DomainDestroy(d))
	}
	if err := s.l.DomainResume(d); err != nil {
		if now, perr := s.power(d); perr != nil || now != provider.PowerRunning {
			return fmt.Errorf("start machine %s: %w", d.Name, err)
		}
	}
	return nil
}

func (s *site) checkGuard(d golibvirt.Domain) error {
	g, err := s.guardOf(d)
	if err != nil {
		return err
	}
	if g != nil {
		return fmt.Errorf("start machine %s: %w: %s", d.Name, provider.ErrGuarded, g.reason)
	}
	return nil
}

// Guard puts an element into the metadata of the domain's definition, where the
// hook finds it, and sees to it that libvirt does not start the domain with the
// host.
func (p power) Guard(ctx context.Context, machineID, reason string) error {
	if strings.TrimSpace(reason) == "" || strings.ContainsAny(reason, "\r\n") || len(reason) > maxReason {
		return fmt.Errorf("guard machine %s: reason %q: want one line of at most %d bytes", machineID, reason, maxReason)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	d, err := p.s.domain(machineID)
	if err != nil {
		return err
	}
	if err := p.s.guard(d, reason); err != nil {
		return fmt.Errorf("guard machine %s: %w", d.Name, err)
	}
	return nil
}

func (s *site) guard(d golibvirt.Domain, reason string) error {
	if kept, err := s.l.DomainIsPersistent(d); err != nil || kept == 0 {
		return errors.Join(err, errors.New("it is transient: libvirt has no definition of it that could be kept from being started"))
	}
	g := guard{reason: reason}
	old, err := s.guardOf(d)
	if err != nil {
		return err
	}
	auto, err := s.l.DomainGetAutostart(d)
	if err != nil {
		return err
	}
	g.autostart = auto != 0 || old != nil && old.autostart
	if old == nil || *old != g {
		if err := s.setGuard(d, golibvirt.OptString{g.element()}); err != nil {
			return err
		}
	}
	if auto != 0 {
		return s.l.DomainSetAutostart(d, 0)
	}
	return nil
}

func (s *site) setGuard(d golibvirt.Domain, element golibvirt.OptString) error {
	return s.l.DomainSetMetadata(d, int32(golibvirt.DomainMetadataElement), element, golibvirt.OptString{guardKey}, golibvirt.OptString{guardSpace}, golibvirt.DomainAffectConfig)
}

func (g guard) element() string {
	doc := etree.NewDocument()
	e := doc.CreateElement("guard")
	if g.autostart {
		e.CreateAttr("autostart", "yes")
	}
	e.SetText(g.reason)
	text, _ := doc.WriteToString() // never fails: it goes to memory
	return text
}

// guardOf returns a domain's guard, or nil.
func (s *site) guardOf(d golibvirt.Domain) (*guard, error) {
	if kept, err := s.l.DomainIsPersistent(d); err != nil || kept == 0 {
		return nil, err
	}
	text, err := s.l.DomainGetMetadata(d, int32(golibvirt.DomainMetadataElement), golibvirt.OptString{guardSpace}, golibvirt.DomainAffectConfig)
	if isCode(err, golibvirt.ErrNoDomainMetadata) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read guard of machine %s: %w", d.Name, err)
	}
	doc := etree.NewDocument()
	if err := doc.ReadFromString(text); err != nil || doc.Root() == nil {
		return &guard{reason: "its guard cannot be read"}, nil // whatever it says, it is a guard
	}
	return &guard{reason: doc.Root().Text(), autostart: doc.Root().SelectAttrValue("autostart", "") == "yes"}, nil
}

// isCode says whether an error is libvirt's, with a code.
func isCode(err error, codes ...golibvirt.ErrorNumber) bool {
	var le golibvirt.Error
	if !errors.As(err, &le) {
		return false
	}
	for _, c := range codes {
		if le.Code == uint32(c) {
			return true
		}
	}
	return false
}

// Unguard removes the element, and has libvirt start the domain with the host
// again if it did so before.
func (p power) Unguard(ctx context.Context, machineID string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d, err := p.s.domain(machineID)
	if err != nil {
		return err
	}
	g, err := p.s.guardOf(d)
	if err != nil || g == nil {
		return err
	}
	if g.autostart {
		err = p.s.l.DomainSetAutostart(d, 1)
	}
	if err == nil {
		err = p.s.setGuard(d, nil)
	}
	if err != nil {
		return fmt.Errorf("unguard machine %s: %w", d.Name, err)
	}
	return nil
}

// Guarded returns the reason in the element.
func (p power) Guarded(ctx context.Context, machineID string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	d, err := p.s.domain(machineID)
	if err != nil {
		return "", err
	}
	g, err := p.s.guardOf(d)
	if err != nil || g == nil {
		return "", err
	}
	return g.reason, nil
}
