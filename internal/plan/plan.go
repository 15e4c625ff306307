package plan

import (
	"slices"
	"time"
)

// Plan is a recovery plan: groups of machines that come up in order, with
// actions before and after each.
type Plan struct {
	Name        string `yaml:"name"`
	Description string `yaml:"description,omitempty"`
	// AtOnce bounds how many machines are worked on at the same time; 0: 16.
	AtOnce int `yaml:"at_once,omitempty"`
	// Objectives are what a drill is measured against.
	Objectives Objectives `yaml:"objectives,omitempty"`
	// Networks say which network of the other site takes the place of one here.
	Networks []NetworkMap `yaml:"networks,omitempty"`
	// Shutdown is the order in which groups are shut down before a planned
	// failover; nil: the reverse of the order in which they come up.
	Shutdown []string `yaml:"shutdown,omitempty"`
	Groups   []Group  `yaml:"groups"`
	// CleanUp are the actions around the removal of test machines.
	CleanUp Around `yaml:"clean_up,omitempty"`
	Drill   *Drill `yaml:"drill,omitempty"`
}

// Objectives are what recovery may cost; 0: not said.
type Objectives struct {
	RPO Duration `yaml:"rpo,omitempty"`
	RTO Duration `yaml:"rto,omitempty"`
}

// NetworkMap says what takes the place of a network.
type NetworkMap struct {
	From string `yaml:"from"`           // at the site where the machine was protected
	To   string `yaml:"to,omitempty"`   // at the other site
	Test string `yaml:"test,omitempty"` // there, in a test; empty: none with a way out
}

// Around are actions before and after something.
type Around struct {
	Before []Action `yaml:"before,omitempty"`
	After  []Action `yaml:"after,omitempty"`
}

// Group is machines that come up at the same time.
type Group struct {
	Name string `yaml:"name"`
	// Needs are the groups that come up before; nil: the group written before
	// this one. An empty list: none.
	Needs    *[]string `yaml:"needs,omitempty"`
	Before   []Action  `yaml:"before,omitempty"`
	Machines []Machine `yaml:"machines"`
	After    []Action  `yaml:"after,omitempty"`
}

// Machine is an item in a plan.
type Machine struct {
	Item string `yaml:"item"` // name or id
	// Name is the recovered machine's; empty: the one it has.
	Name string `yaml:"name,omitempty"`
	// TestNetwork goes before what Networks say.
	TestNetwork string `yaml:"test_network,omitempty"`
	// NICs say how its network cards are addressed at the other site; those that
	// they do not name keep what the guest gives them.
	NICs []NIC `yaml:"nics,omitempty"`
	// Addressing is what gives them their addresses: agent or cloud_init; empty:
	// agent.
	Addressing string `yaml:"addressing,omitempty"`
	// Verify says how a test finds out whether the machine has booted.
	Verify *Verify `yaml:"verify,omitempty"`
}

// NIC says how a network card is addressed.
type NIC struct {
	// Card is its MAC address, or the network that it is on at the source; empty:
	// the machine has only one.
	Card    string `yaml:"card,omitempty"`
	Address List   `yaml:"address"` // keep, dhcp, or addresses like 10.8.0.12/24
	Gateway List   `yaml:"gateway,omitempty"`
	DNS     List   `yaml:"dns,omitempty"`
	// Test is what takes the place of that in a test; nil: the same.
	Test *TestNIC `yaml:"test,omitempty"`
}

// TestNIC says how a network card is addressed in a test.
type TestNIC struct {
	Address List `yaml:"address"`
	Gateway List `yaml:"gateway,omitempty"`
	DNS     List `yaml:"dns,omitempty"`
}

// List is a list of texts, of which a single one may be written as it is.
type List []string

// The words in the place of an address.
const (
	KeepAddress = "keep"
	DHCPAddress = "dhcp"
)

// Cards returns how a machine's cards are addressed in a run, without those that
// keep what they have.
func (m Machine) Cards(k Kind) []NIC {
	var out []NIC
	for _, n := range m.NICs {
		if n.Test != nil && k == Test {
			n.Address, n.Gateway, n.DNS = n.Test.Address, n.Test.Gateway, n.Test.DNS
		}
		if n.Test = nil; !slices.Contains(n.Address, KeepAddress) {
			out = append(out, n)
		}
	}
	return out
}

// Verify is a boot verification.
type Verify struct {
	Agent      bool     `yaml:"agent,omitempty"`
	Serial     string   `yaml:"serial,omitempty"`
	Ping       bool     `yaml:"ping,omitempty"`
	TCP        int      `yaml:"tcp,omitempty"`
	Script     string   `yaml:"script,omitempty"`
	Timeout    Duration `yaml:"timeout,omitempty"`
	Screenshot bool     `yaml:"screenshot,omitempty"`
}

// Drill is a test failover on a schedule.
type Drill struct {
	Every  Duration `yaml:"every"`
	Option string   `yaml:"option,omitempty"` // which recovery points; empty: latest
	Keep   Duration `yaml:"keep,omitempty"`   // for how long the test machines stay before they are cleaned up
}

// Action is something to be done besides machines. Exactly one of Script,
// Guest, Webhook, Manual and Wait is given.
type Action struct {
	Name      string      `yaml:"name"`
	Runs      []Kind      `yaml:"runs,omitempty"`       // in which kinds of run; nil: test, planned and unplanned
	Direction []Direction `yaml:"directions,omitempty"` // nil: both
	Script    *Script     `yaml:"script,omitempty"`
	Guest     *Guest      `yaml:"guest,omitempty"`
	Webhook   *Webhook    `yaml:"webhook,omitempty"`
	Manual    *Manual     `yaml:"manual,omitempty"`
	Wait      *Wait       `yaml:"wait,omitempty"`
	// Timeout bounds it; 0: 10 minutes. A manual step has none.
	Timeout Duration `yaml:"timeout,omitempty"`
	// Repeatable says that it does no harm to run it twice: it is run again if
	// the server was stopped while it ran.
	Repeatable bool `yaml:"repeatable,omitempty"`
	// OnFailure is stop or continue; empty: continue in a test and an unplanned
	// failover, stop in all other runs.
	OnFailure string `yaml:"on_failure,omitempty"`
}

// Script is a program of the server's directory of scripts, or of that of the
// gateway of a site.
type Script struct {
	Path string   `yaml:"path"`           // below the directory
	Site string   `yaml:"site,omitempty"` // beside whose machines it runs; empty: on the server
	Args []string `yaml:"args,omitempty"`
	// Env is more environment; Secrets is environment whose values are read
	// where the script runs.
	Env     map[string]string `yaml:"env,omitempty"`
	Secrets map[string]Secret `yaml:"secrets,omitempty"`
}

// Secret says where a secret is read, where the script runs.
type Secret struct {
	File string `yaml:"file,omitempty"` // below the secrets directory, or
	Env  string `yaml:"env,omitempty"`  // a variable of the server's environment
}

// Guest is a command inside a machine of the plan, run by its guest agent.
type Guest struct {
	Item    string   `yaml:"item"`
	Command []string `yaml:"command"`
}

// Webhook is an HTTP request with the run's context as its body.
type Webhook struct {
	URL     string            `yaml:"url"`
	Method  string            `yaml:"method,omitempty"` // POST if empty
	Headers map[string]string `yaml:"headers,omitempty"`
	Secrets map[string]Secret `yaml:"secrets,omitempty"` // headers
}

// Manual is a step that a person does and confirms.
type Manual struct {
	Instructions string `yaml:"instructions"`
}

// Wait waits until something answers. Exactly one is given.
type Wait struct {
	TCP   string `yaml:"tcp,omitempty"`   // HOST:PORT
	HTTP  string `yaml:"http,omitempty"`  // URL; an answer of 200 to 399
	Ping  string `yaml:"ping,omitempty"`  // HOST
	Agent string `yaml:"agent,omitempty"` // item
}

// Kind is a kind of run.
type Kind string

// The kinds of run.
const (
	Test      Kind = "test"
	Planned   Kind = "planned"
	Unplanned Kind = "unplanned"
	Reprotect Kind = "reprotect"
	Commit    Kind = "commit"
	CleanUp   Kind = "clean_up"
)

// Kinds returns all kinds of run.
func Kinds() []Kind { return []Kind{Test, Planned, Unplanned, Reprotect, Commit, CleanUp} }

// Moves says of a kind of run that it brings machines to the other site.
func (k Kind) Moves() bool { return k == Planned || k == Unplanned }

// Direction is which way machines go.
type Direction string

// The directions.
const (
	ToRecovery Direction = "primary_to_recovery"
	ToPrimary  Direction = "recovery_to_primary"
)

// The values of OnFailure.
const (
	Stop     = "stop"
	Continue = "continue"
)

// Defaults of what may be left out.
const (
	DefaultAtOnce  = 16
	DefaultTimeout = 10 * time.Minute
)

// Limits.
const (
	MaxText     = 1 << 20 // bytes of a plan
	MaxMachines = 1000
	MaxGroups   = 200
	MaxActions  = 500
)

// in says whether the action is part of a run.
func (a Action) in(k Kind, d Direction) bool {
	kinds := a.Runs
	if kinds == nil {
		kinds = []Kind{Test, Planned, Unplanned}
	}
	return slices.Contains(kinds, k) && (a.Direction == nil || slices.Contains(a.Direction, d))
}

// Stops says whether the run stops when the action fails.
func (a Action) Stops(k Kind) bool {
	if a.OnFailure != "" {
		return a.OnFailure == Stop
	}
	return k != Unplanned && k != Test && k != CleanUp
}

// Bound returns for how long the action may take.
func (a Action) Bound() time.Duration {
	if a.Timeout > 0 {
		return time.Duration(a.Timeout)
	}
	return DefaultTimeout
}

// Mapping returns which network takes the place of which in a run, in a test those
// for tests.
func (p *Plan) Mapping(k Kind) map[string]string {
	out := map[string]string{}
	for _, n := range p.Networks {
		to := n.To
		if k == Test {
			to = n.Test
		}
		if to != "" {
			out[n.From] = to
		}
	}
	return out
}

// What returns what sort of action it is, in a word.
func (a Action) What() string {
	switch {
	case a.Script != nil:
		return "script"
	case a.Guest != nil:
		return "guest"
	case a.Webhook != nil:
		return "webhook"
	case a.Manual != nil:
		return "manual"
	default:
		return "wait"
	}
}

// Machines returns all machines, in the order of the text.
func (p *Plan) Machines() []Machine {
	var out []Machine
	for _, g := range p.Groups {
		out = append(out, g.Machines...)
	}
	return out
}
