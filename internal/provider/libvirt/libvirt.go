// Package libvirt is the provider for machines that libvirt runs with QEMU. It
// speaks libvirt's own protocol over its socket; libvirt's library is not
// needed. Only main imports it, and tests.
//
// Machines are domains, named by their UUID. Capture goes through libvirt's
// monitor command, so that the code that mirrors a plain QEMU's disks mirrors a
// domain's; libvirt marks such a domain as tainted. A recovered machine is a
// domain of its own, made from the source's XML, whose disks are overlays in the
// site's storage directory.
package libvirt

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"

	"github.com/holdfast-dr/holdfast/internal/provider"
	"github.com/holdfast-dr/holdfast/internal/provider/qemutool"
)

// Settings are a site's settings.
type Settings struct {
	// URI is qemu:///system, or qemu+unix:///system?socket=/path for another
	// socket. Default qemu:///system.
	URI string `json:"uri"`
	// Storage is the directory for the disks of recovered machines; QEMU's user
	// must be able to reach it. Default /var/lib/libvirt/images/holdfast.
	Storage string `json:"storage"`
}

const (
	defaultURI     = "qemu:///system"
	defaultSocket  = "/var/run/libvirt/libvirt-sock"
	defaultStorage = "/var/lib/libvirt/images/holdfast"
	dialTimeout    = 10 * time.Second
)

// site is a connection to one libvirt.
type site struct {
	l       *golibvirt.Libvirt
	storage string
}

var (
	_ provider.Inventory = (*site)(nil)
	_ provider.Source    = (*site)(nil)
	_ provider.Target    = (*site)(nil)
	_ provider.Power     = power{}
	_ provider.Replica   = (*site)(nil)
	_ provider.Agent     = (*site)(nil)
	_ provider.Console   = (*site)(nil)
	_ provider.Probe     = probe{}
)

// Open connects to a site's libvirt.
func Open(_ context.Context, settings json.RawMessage) (*provider.Site, error) {
	s := Settings{URI: defaultURI, Storage: defaultStorage}
	if len(settings) > 0 {
		dec := json.NewDecoder(bytes.NewReader(settings))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&s); err != nil {
			return nil, fmt.Errorf("settings of libvirt site: %w; known are uri and storage", err)
		}
	}
	socket, err := socketOf(s.URI)
	if err != nil {
		return nil, err
	}
	if !filepath.IsAbs(s.Storage) {
		return nil, fmt.Errorf("settings of libvirt site: storage %q is not an absolute path", s.Storage)
	}
	l := golibvirt.NewWithDialer(dialers.NewLocal(dialers.WithSocket(socket), dialers.WithLocalTimeout(dialTimeout)))
	if err := l.Connect(); err != nil {
		return nil, fmt.Errorf("connect to libvirt at %s: %w; check that libvirtd runs and that this user may use its socket", socket, err)
	}
	st := &site{l: l, storage: s.Storage}
	return &provider.Site{Inventory: st, Source: st, Target: st, Fits: fits, OpenLive: qemutool.Live, Power: power{st}, Replica: st, Agent: st, Console: st, Probe: probe{st}, Close: l.Disconnect}, nil
}

// socketOf returns the socket that a URI means.
func socketOf(uri string) (string, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return "", fmt.Errorf("libvirt uri %q: %w", uri, err)
	}
	if (u.Scheme != "qemu" && u.Scheme != "qemu+unix") || u.Host != "" || u.Path != "/system" {
		return "", fmt.Errorf("libvirt uri %q: want qemu:///system or qemu+unix:///system?socket=/path; run a gateway on a host that is elsewhere", uri)
	}
	if s := u.Query().Get("socket"); s != "" {
		return s, nil
	}
	return defaultSocket, nil
}

// domain finds a domain by its UUID or name; provider.ErrNotFound if there is none.
func (s *site) domain(idOrName string) (golibvirt.Domain, error) {
	if id, ok := parseUUID(idOrName); ok {
		d, err := s.l.DomainLookupByUUID(id)
		if err == nil || !golibvirt.IsNotFound(err) {
			return d, err
		}
	}
	d, err := s.l.DomainLookupByName(idOrName)
	if err != nil && golibvirt.IsNotFound(err) {
		return d, fmt.Errorf("machine %q: %w", idOrName, provider.ErrNotFound)
	}
	return d, err
}

func parseUUID(s string) (golibvirt.UUID, bool) {
	var id golibvirt.UUID
	h := strings.ReplaceAll(s, "-", "")
	if len(h) != 32 {
		return id, false
	}
	for i := range id {
		if _, err := fmt.Sscanf(h[2*i:2*i+2], "%02x", &id[i]); err != nil {
			return id, false
		}
	}
	return id, true
}

func formatUUID(id golibvirt.UUID) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[0:4], id[4:6], id[6:8], id[8:10], id[10:16])
}

// The states of domains, as libvirt numbers them.
func powerOf(state int32) provider.PowerState {
	switch golibvirt.DomainState(state) {
	case golibvirt.DomainRunning, golibvirt.DomainBlocked, golibvirt.DomainShutdown:
		return provider.PowerRunning
	case golibvirt.DomainPaused, golibvirt.DomainPmsuspended:
		return provider.PowerPaused
	case golibvirt.DomainShutoff, golibvirt.DomainCrashed:
		return provider.PowerOff
	}
	return provider.PowerUnknown
}

func (s *site) power(d golibvirt.Domain) (provider.PowerState, error) {
	state, _, err := s.l.DomainGetState(d, 0)
	if err != nil {
		return provider.PowerUnknown, fmt.Errorf("state of machine %s: %w", d.Name, err)
	}
	return powerOf(state), nil
}

// Monitor opens the domain's monitor, through libvirt.
func (s *site) Monitor(_ context.Context, machineID string) (provider.Monitor, error) {
	d, err := s.domain(machineID)
	if err != nil {
		return nil, err
	}
	p, err := s.power(d)
	if err != nil {
		return nil, err
	}
	if p == provider.PowerOff {
		return nil, fmt.Errorf("machine %s: %w", d.Name, provider.ErrNotRunning)
	}
	return &monitor{s: s, d: d}, nil
}

// monitor runs QEMU's commands through libvirt.
type monitor struct {
	s *site
	d golibvirt.Domain
}

// Execute runs one command.
func (m *monitor) Execute(ctx context.Context, command string, arguments, result any) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	req := map[string]any{"execute": command}
	if arguments != nil {
		req["arguments"] = arguments
	}
	b, err := json.Marshal(req)
	if err != nil {
		return err
	}
	type answer struct {
		text string
		err  error
	}
	got := make(chan answer, 1)
	go func() { // libvirt's client takes no context; it answers, or the connection ends
		text, err := m.s.l.QEMUDomainMonitorCommand(m.d, string(b), 0)
		got <- answer{text, err}
	}()
	select {
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", command, context.Cause(ctx))
	case a := <-got:
		if a.err != nil {
			return m.explain(command, a.err)
		}
		return decodeAnswer(command, a.text, result)
	}
}

// explain tells a machine that is off from other faults.
func (m *monitor) explain(command string, err error) error {
	if p, perr := m.s.power(m.d); perr == nil && p == provider.PowerOff {
		return fmt.Errorf("%s: machine %s: %w", command, m.d.Name, provider.ErrNotRunning)
	}
	return fmt.Errorf("%s on machine %s: %w", command, m.d.Name, err)
}

func decodeAnswer(command, text string, result any) error {
	var a struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Class string `json:"class"`
			Desc  string `json:"desc"`
		} `json:"error"`
	}
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		return fmt.Errorf("%s: decode answer: %w", command, err)
	}
	if a.Error != nil {
		return &provider.MonitorError{Command: command, Class: a.Error.Class, Desc: a.Error.Desc}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(a.Return, result); err != nil {
		return fmt.Errorf("%s: decode answer: %w", command, err)
	}
	return nil
}

// Close does nothing: the connection is the site's.
func (m *monitor) Close() error { return nil }

// Shutdown asks the guest to shut down and waits until it is off.
func (s *site) Shutdown(ctx context.Context, machineID string) error {
	d, err := s.domain(machineID)
	if err != nil {
		return err
	}
	if p, err := s.power(d); err != nil || p == provider.PowerOff {
		return err
	}
	if err := s.l.DomainShutdown(d); err != nil {
		return fmt.Errorf("shut machine %s down: %w", d.Name, err)
	}
	return s.waitOff(ctx, d)
}

func (s *site) waitOff(ctx context.Context, d golibvirt.Domain) error {
	for {
		if p, err := s.power(d); err != nil || p == provider.PowerOff {
			return err
		}
		if !sleep(ctx, 200*time.Millisecond) {
			return fmt.Errorf("machine %s is still running: %w", d.Name, context.Cause(ctx))
		}
	}
}

// Kill takes the power away.
func (s *site) Kill(ctx context.Context, machineID string) error {
	d, err := s.domain(machineID)
	if err != nil {
		return err
	}
	if p, err := s.power(d); err != nil || p == provider.PowerOff {
		return err
	}
	if err := s.l.DomainDestroy(d); err != nil {
		return errors.Join(fmt.Errorf("kill machine %s: %w", d.Name, err))
	}
	return s.waitOff(ctx, d)
}

// sleep waits and says whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
