package api

import (
	"encoding/json"
	"time"
)

// Site is a place with machines, seen through a provider.
type Site struct {
	ID        string          `json:"id" doc:"The site's id"`
	Name      string          `json:"name" doc:"Its name, unique"`
	Provider  string          `json:"provider" doc:"What adapter sees it, like qemu or libvirt"`
	Settings  json.RawMessage `json:"settings,omitempty" doc:"The provider's own settings, without secrets"`
	Gateway   string          `json:"gateway,omitempty" doc:"The gateway beside the site's machines; empty for the server's own"`
	CanSource bool            `json:"can_source" doc:"Whether machines can be protected here"`
	CanTarget bool            `json:"can_target" doc:"Whether machines can be recovered here"`
	Reachable bool            `json:"reachable" doc:"Whether the provider answered when last asked"`
	Problem   string          `json:"problem,omitempty" doc:"Why it is not reachable"`
	Items     int             `json:"items" doc:"How many replicated items have it as primary or recovery site"`
	CreatedAt time.Time       `json:"created_at" doc:"When it was added"`
}

// AddSite asks for a new site.
type AddSite struct {
	Name     string          `json:"name" minLength:"1" maxLength:"64" pattern:"^[A-Za-z0-9][A-Za-z0-9._-]*$" doc:"A name that no other site has"`
	Provider string          `json:"provider" minLength:"1" maxLength:"32" pattern:"^[a-z][a-z0-9]*$" doc:"The adapter, like qemu or libvirt"`
	Settings json.RawMessage `json:"settings,omitempty" doc:"The provider's own settings, an object"`
	Gateway  string          `json:"gateway,omitempty" maxLength:"256" doc:"The gateway beside the site's machines; empty for the server's own"`
}

// Machine is what a provider discovers at a site.
type Machine struct {
	ID        string        `json:"id" doc:"Stable at the site, opaque"`
	Name      string        `json:"name" doc:"The name it has at the site"`
	Site      string        `json:"site" doc:"The site's name"`
	Power     string        `json:"power" enum:"running,off,paused,unknown" doc:"Whether it runs"`
	CPUs      int           `json:"cpus" doc:"Virtual processors"`
	Memory    int64         `json:"memory_bytes" doc:"Memory"`
	Firmware  string        `json:"firmware" doc:"bios or uefi"`
	Disks     []MachineDisk `json:"disks" nullable:"false" doc:"Its disks"`
	Networks  []string      `json:"networks" nullable:"false" doc:"The networks it is on"`
	Obstacles []string      `json:"obstacles" nullable:"false" doc:"Why it cannot be protected as it is, each with what to do; empty if it can"`
	Protected bool          `json:"protected" doc:"Whether a replicated item exists for it"`
	Item      string        `json:"item,omitempty" doc:"The replicated item's id"`
	ItemName  string        `json:"item_name,omitempty" doc:"The replicated item's name"`
}

// MachineDisk is a disk of a machine.
type MachineDisk struct {
	ID     string `json:"id" doc:"Stable for the machine"`
	Size   int64  `json:"size_bytes" doc:"Size; 0 if not known"`
	Format string `json:"format,omitempty" doc:"raw, qcow2, …"`
	Boot   bool   `json:"boot" doc:"Whether the machine boots from it"`
}

// SiteList is all sites.
type SiteList struct {
	Sites []Site `json:"sites" nullable:"false" doc:"Sorted by name"`
}

// MachineList is the machines of one site or of all.
type MachineList struct {
	Machines    []Machine     `json:"machines" nullable:"false" doc:"Sorted by site and name"`
	Unreachable []SiteProblem `json:"unreachable" nullable:"false" doc:"Sites that did not answer, whose machines are therefore missing"`
}

// SiteProblem is why a site did not answer.
type SiteProblem struct {
	Site  string `json:"site" doc:"The site's name"`
	Cause string `json:"cause" doc:"Why"`
	Hint  string `json:"hint,omitempty" doc:"What to do about it"`
}
